"""A network as an ONNX graph, for ONNX Runtime, OpenVINO and users who run it elsewhere.

The graph is traced, which torch offers from 2.0 (where it is the only way) to the current version
(``dynamo=False``). It needs the package onnx, in every version of torch, and nothing else.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..errors import (
    ConfigError,
    EnhanceError,
    MissingDependencyError,
    OutOfMemoryError,
    RestorerError,
)
from ..runtime import memory
from ..runtime.files import AtomicFile
from ..weights.onnx_models import GraphFile
from . import graph_cache
from .base import NetworkSpec

if TYPE_CHECKING:
    import torch

INPUT, OUTPUT, BATCH = "faces", "restored", "batch"
"""Names of the graph's input, of its output, and of their batch axis, which is dynamic."""
OPSET = 17
MAX_DIFFERENCE = 1e-4
"""Largest accepted difference from torch, as a share of the network's value range."""
CHECKED_BATCHES = (1, 3)

_tracing = threading.Lock()
"""torch's exporter, warning filters and stdout are process-wide: one trace at a time."""
_OUT_OF_MEMORY = ("bad_alloc", "bad allocation", "allocaterawinternal", "cudaerrormemoryallocation")


def export(spec: NetworkSpec, path: str | Path, *, facts: Mapping[str, str] | None = None) -> float:
    """Write `spec` to `path`, if the graph gives the same results as torch.

    Args:
        spec: the network.
        path: the .onnx file; an existing one is replaced in one step.
        facts: more entries for the file's metadata, such as the license.

    Returns:
        `difference` of the graph.

    Raises:
        ConfigError: no .onnx file can be written there.
        MissingDependencyError: onnx or onnxruntime is not installed.
        RestorerError: the network cannot be traced, or the graph gives other results.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() != ".onnx" or path.is_dir():
        raise ConfigError("OUT", str(path), "a file name that ends in .onnx")
    runtime("onnxruntime", "checking an ONNX file")
    try:
        with AtomicFile(path) as part:
            part.touch(exist_ok=False)  # fails before the network is traced
            graph = trace(spec, facts)
            error = difference(spec, graph)
            if not error <= MAX_DIFFERENCE:  # NaN is refused, too
                raise RestorerError(
                    f"{spec.name}: the exported graph differs from torch by {error:.1e}, more than "
                    f"{MAX_DIFFERENCE:.0e}; it is not written. Set backend: torch to run this model"
                )
            part.write_bytes(graph)
    except OSError as error:
        if isinstance(error, EnhanceError):
            raise
        expected = "a file in a writable folder"
        raise ConfigError("OUT", str(path), expected, f" {error}") from error
    return error


def graph_file(spec: NetworkSpec) -> GraphFile:
    """The graph of `spec`: its own file, a stored trace (see `graph_cache`), or one made now.

    Raises:
        MissingDependencyError: the package onnx is not installed.
        RestorerError: the network cannot be traced.
    """
    if spec.graph is not None:
        return spec.graph
    graph = graph_cache.get(spec, lambda: trace(spec), f"opset {OPSET}")
    return GraphFile(graph, INPUT, OUTPUT)


def trace(spec: NetworkSpec, facts: Mapping[str, str] | None = None) -> bytes:
    """Trace `spec`.

    Args:
        spec: the network.
        facts: more entries for the graph's metadata.

    Returns:
        A serialized ONNX model: float32 (batch, C, H, W) called ``faces`` in, float32
        (batch, C', H', W') called ``restored`` out, any number of faces, standard operators of
        opset 17.

    Raises:
        MissingDependencyError: the package onnx, which torch's exporter imports, is not installed.
        RestorerError: the network cannot be traced.
    """
    import torch

    if spec.module is None:
        raise RestorerError(f"{spec.name} is an ONNX file: it cannot be traced again")
    onnx = runtime("onnx", "writing an ONNX file")
    parameters = inspect.signature(torch.onnx.export).parameters
    options: dict[str, Any] = {"dynamo": False} if "dynamo" in parameters else {}  # not in 2.0
    content: Any = io.BytesIO()
    sides: list[int] = []
    start = time.perf_counter()
    hook = spec.module.register_forward_hook(lambda *call: sides.append(int(call[2].shape[-1])))
    try:
        with _tracing, _quiet():
            torch.onnx.export(
                spec.module,
                (random_faces(spec, 2),),
                content,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_axes={INPUT: {0: BATCH}, OUTPUT: {0: BATCH}},
                opset_version=OPSET,
                **options,
            )
    except Exception as error:  # torch's exporter raises whatever its parts raise
        raise RestorerError(f"{spec.name} cannot be written as ONNX: {error}") from error
    finally:
        hook.remove()
    graph_cache.logger.debug("traced %s in %.1f s", spec.name, time.perf_counter() - start)
    low, high = spec.value_range
    entries = {
        "name": spec.name,
        "value_range": f"{low:g}..{high:g}",
        "color": "rgb",
        "output_size": str(sides[-1]),  # the graph's own shape may leave it open
        "musetalk_enhance": __version__,
        **(facts or {}),
    }
    props = [onnx.StringStringEntryProto(key=key, value=value) for key, value in entries.items()]
    # a protobuf message may be appended to another: their lists are joined
    content.write(onnx.ModelProto(metadata_props=props).SerializeToString())
    graph: bytes = content.getvalue()
    return graph


def difference(spec: NetworkSpec, graph: bytes) -> float:
    """Largest absolute difference between ONNX Runtime running `graph` and torch running `spec`.

    Both in fp32 on the CPU, over all values of batches of 1 and 3 images of noise, as a share of
    the width of the network's value range.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        RestorerError: the graph cannot be run, or returns another shape.
    """
    import torch

    from .onnx_backend import OnnxBackend
    from .torch_backend import TorchBackend

    cpu = torch.device("cpu")
    reference = TorchBackend(spec, cpu)
    backend = OnnxBackend(spec, cpu, graph=GraphFile(graph, INPUT, OUTPUT))
    (low, high), worst = spec.value_range, torch.tensor(0.0)
    try:
        for count in CHECKED_BATCHES:
            faces = random_faces(spec, count)
            expected, restored = reference.run(faces), backend.run(faces)
            if restored.shape != expected.shape:
                shapes = f"{tuple(restored.shape)}, expected {tuple(expected.shape)}"
                text = f"the exported graph returns, for {count} faces, a batch of {shapes}"
                raise RestorerError(f"{spec.name}: {text}")
            error = (restored - expected).abs().max() / (high - low)
            worst = torch.maximum(worst, error)  # keeps NaN
    finally:
        backend.close()
    return float(worst)


def random_faces(spec: NetworkSpec, count: int) -> torch.Tensor:
    """`count` images of noise, the same every time.

    Returns:
        float32 (count, C, H, W) in the network's value range.
    """
    import torch

    low, high = spec.value_range
    generator = torch.Generator().manual_seed(count)
    return torch.rand(count, *spec.input_shape, generator=generator) * (high - low) + low


def runtime(package: str, purpose: str, extra: str = "onnx") -> ModuleType:
    """Import `package`.

    Raises:
        MissingDependencyError: it is not installed or its import fails; names the `extra` that
            installs it.
    """
    try:
        return import_module(package)
    except Exception as error:  # with another numpy or driver it is not always ImportError
        cause = f"{type(error).__name__}: {error}"
        raise MissingDependencyError(package, extra, purpose, cause) from error


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Raise a runtime's errors as those of this library; `what` is what was being done.

    Raises:
        OutOfMemoryError: memory ran out (`memory.is_out_of_memory` accepts it).
        RestorerError: anything else.
    """
    try:
        yield
    except EnhanceError:
        raise
    except Exception as error:
        text = str(error)
        in_text = any(word in text.lower() for word in _OUT_OF_MEMORY)
        if in_text or memory.is_out_of_memory(error) or memory.is_out_of_memory(RuntimeError(text)):
            raise OutOfMemoryError(f"{what}: out of memory: {text}") from error
        raise RestorerError(f"{what} failed: {type(error).__name__}: {text}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the exporter prints and warns about its own code; its errors are raised."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
