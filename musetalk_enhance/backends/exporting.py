"""A network as an ONNX file: the graph that ONNX Runtime and OpenVINO execute, and that users take elsewhere.

The graph is traced, which torch offers from 2.0 (where it is the only way) to the current version
(``dynamo=False``). It needs the package onnx, in every version of torch, and nothing else.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import secrets
import shutil
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..errors import ConfigError, EnhanceError, MissingDependencyError, OutOfMemoryError, RestorerError
from ..runtime import memory
from .base import NetworkSpec

if TYPE_CHECKING:
    import torch

INPUT, OUTPUT, BATCH = "faces", "restored", "batch"
"""Names of the graph's input, of its output, and of the axis along which it takes any number of faces."""
OPSET = 17
MOST_DIFFERENCE = 1e-4
"""Largest difference from torch at which a file is kept; 1 is the width of the network's value range."""
CHECKED_BATCHES = (1, 3)
_shared: ContextVar[Path | None] = ContextVar("musetalk_enhance_shared", default=None)  # one for each thread
_tracing = threading.Lock()
"""torch's exporter, the warning filters and stdout are the whole process's: one network is traced at a time."""
_OUT_OF_MEMORY = ("bad_alloc", "bad allocation", "allocaterawinternal", "cudaerrormemoryallocation")


def export(spec: NetworkSpec, path: str | Path, *, facts: Mapping[str, str] | None = None) -> float:
    """Write `spec` to `path` and run the file beside torch; `path` is replaced only when both agree.

    Args:
        spec: the network.
        path: the .onnx file; an older file there is replaced in one step.
        facts: more entries for the file's metadata, such as the licence.

    Returns:
        `difference` of the file.

    Raises:
        ConfigError: no .onnx file can be written there.
        MissingDependencyError: onnx or onnxruntime is not installed.
        RestorerError: the network cannot be traced, or the file does not compute the same.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() != ".onnx" or path.is_dir():
        raise ConfigError("OUT", str(path), "a file that ends in .onnx")
    runtime("onnxruntime", "checking an ONNX file")
    with _beside(path) as temporary:
        write(spec, temporary, facts=facts)
        found = difference(spec, temporary)
        if not found <= MOST_DIFFERENCE:  # also refuses NaN
            raise RestorerError(
                f"{spec.name}: the exported graph differs from torch by {found:.1e} (at most {MOST_DIFFERENCE:.0e} "
                "is allowed), so it was not kept. Run it with backend: torch"
            )
        os.replace(temporary, path)
    return found


@contextlib.contextmanager
def shared() -> Iterator[None]:
    """While inside, a network that several backends want is traced once; for measuring them one after another."""
    with tempfile.TemporaryDirectory(prefix="musetalk_enhance-", ignore_cleanup_errors=True) as folder:
        token = _shared.set(Path(folder))
        try:
            yield
        finally:
            _shared.reset(token)


def write(spec: NetworkSpec, path: Path, *, facts: Mapping[str, str] | None = None) -> None:
    """Write `spec` to `path` as it is, unchecked; inside `shared`, a copy of what was written before.

    The arguments and errors are those of `_write`.
    """
    folder = _shared.get()
    if folder is None or facts:
        return _write(spec, path, facts)
    known = folder / f"{id(spec)}.onnx"
    if not known.exists():
        _write(spec, known, None)
    shutil.copyfile(known, path)
    return None


def _write(spec: NetworkSpec, path: Path, facts: Mapping[str, str] | None) -> None:
    """Trace `spec` and write it to `path`.

    float32 (batch, C, H, W) called ``faces`` in, float32 (batch, C', H', W') called ``restored`` out, any
    number of faces, no operator of anybody's own, opset 17.

    Raises:
        MissingDependencyError: the package onnx, which torch's exporter imports, is not installed.
        RestorerError: the network cannot be traced.
    """
    import torch

    onnx = runtime("onnx", "writing an ONNX file")
    known = inspect.signature(torch.onnx.export).parameters
    tracing: dict[str, Any] = {"dynamo": False} if "dynamo" in known else {}  # torch 2.0 knows nothing else
    try:
        with _tracing, _one_form(spec.module), _quiet():
            torch.onnx.export(
                spec.module,
                (random_faces(spec, 2),),
                str(path),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_axes={INPUT: {0: BATCH}, OUTPUT: {0: BATCH}},
                opset_version=OPSET,
                **tracing,
            )
    except Exception as error:  # torch's exporter raises whatever its parts raise
        raise RestorerError(f"{spec.name} cannot be written as ONNX: {error}") from error
    low, high = spec.value_range
    entries = {
        "name": spec.name,
        "value_range": f"{low:g}..{high:g}",
        "color": "rgb",
        "musetalk_enhance": __version__,
        **(facts or {}),
    }
    props = [onnx.StringStringEntryProto(key=key, value=value) for key, value in entries.items()]
    with path.open("ab") as file:  # a protobuf message may be appended to another: the lists are joined
        file.write(onnx.ModelProto(metadata_props=props).SerializeToString())


def difference(spec: NetworkSpec, path: Path) -> float:
    """Largest absolute difference between ONNX Runtime running `path` and torch running `spec`.

    Both in fp32 on the CPU, over all values of batches of 1 and 3 pictures of noise, as a share of the width of
    the network's value range: what it comes to in a picture of 0..1.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        RestorerError: the file cannot be run, or answers in another shape.
    """
    import torch

    from .onnx_backend import OnnxBackend
    from .torch_backend import TorchBackend

    cpu = torch.device("cpu")
    reference, backend = TorchBackend(spec, cpu), OnnxBackend(spec, cpu, provider="cpu", path=path)
    (low, high), worst = spec.value_range, torch.tensor(0.0)
    try:
        for count in CHECKED_BATCHES:
            faces = random_faces(spec, count)
            expected, restored = reference.run(faces), backend.run(faces)
            if restored.shape != expected.shape:
                shapes = f"{tuple(restored.shape)} instead of {tuple(expected.shape)}"
                raise RestorerError(f"{spec.name}: the exported graph answers a batch of {count} with {shapes}")
            found = (restored - expected).abs().max() / (high - low)
            worst = torch.maximum(worst, found)  # keeps NaN
    finally:
        backend.close()
    return float(worst)


def random_faces(spec: NetworkSpec, count: int) -> torch.Tensor:
    """The same `count` pictures of noise every time: float32 (count, C, H, W) in the network's value range."""
    import torch

    low, high = spec.value_range
    generator = torch.Generator().manual_seed(count)
    return torch.rand(count, *spec.input_shape, generator=generator) * (high - low) + low


def runtime(package: str, purpose: str, extra: str = "onnx") -> ModuleType:
    """Import `package`.

    Raises:
        MissingDependencyError: it is not installed or does not import; names the `extra` that brings it.
    """
    try:
        return import_module(package)
    except Exception as error:  # a runtime beside a strange numpy or driver fails in more ways than ImportError
        raise MissingDependencyError(package, extra, purpose, f"{type(error).__name__}: {error}") from error


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """The one place where a runtime's errors become ours; `what` says what was being done.

    Raises:
        OutOfMemoryError: memory ran out; `memory.is_out_of_memory` knows it.
        RestorerError: anything else.
    """
    try:
        yield
    except EnhanceError:
        raise
    except Exception as error:
        text = str(error)
        words = any(word in text.lower() for word in _OUT_OF_MEMORY)
        if words or memory.is_out_of_memory(error) or memory.is_out_of_memory(RuntimeError(text)):
            raise OutOfMemoryError(f"{what}: memory ran out: {text}") from error
        raise RestorerError(f"{what} failed: {type(error).__name__}: {text}") from error


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A new file in the folder of `path`, gone afterwards unless it was moved away."""
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}.onnx")
    try:
        temporary.touch(exist_ok=False)
        yield temporary
    except EnhanceError:
        raise
    except OSError as error:
        raise ConfigError("OUT", str(path), "a file in a folder that can be written", f" {error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def _one_form(module: torch.nn.Module) -> Iterator[None]:
    """Every modulated convolution in the form that holds for every batch; afterwards as it was."""
    from .ops import FORMS, Modulated

    layers = [part for part in module.modules() if isinstance(part, Modulated)]
    forms = [layer.form for layer in layers]
    try:
        for layer in layers:
            layer.form = FORMS[0]
        yield
    finally:
        for layer, form in zip(layers, forms, strict=True):
            layer.form = form


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the exporter prints and warns about its own code; its errors come through."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
