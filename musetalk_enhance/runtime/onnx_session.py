"""ONNX Runtime sessions without torch: the provider asked for runs, or an error says why."""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import (
    CheckpointError,
    ConfigError,
    MissingDependencyError,
    OutOfMemoryError,
    RestorerError,
)
from .memory import is_out_of_memory

logger = logging.getLogger("musetalk_enhance")

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
}
"""ONNX Runtime's names for the values of `provider`."""
_QUIET = 4  # of onnxruntime's levels: fatal only; errors come as exceptions
_ADVICE = "set allow_cpu: true to fall back to the CPU"
_TF32_SINCE = (1, 18)


def providers() -> list[str]:
    """The values of `provider` that the installed onnxruntime has, in its own order.

    A provider is part of the package even where its driver or library is not installed.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
    """
    names = {name: word for word, name in PROVIDERS.items()}
    return [names[name] for name in _runtime().get_available_providers() if name in names]


def usable_provider(provider: str, *, allow_cpu: bool = False) -> str:
    """`provider` if onnxruntime has it; ``"cpu"``, with a warning, where that is allowed.

    Whether it starts is known only when a session is opened.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        ConfigError: an unknown provider.
        RestorerError: the provider is not part of the installed onnxruntime.
    """
    if provider not in PROVIDERS:
        raise ConfigError("provider", provider, " | ".join(PROVIDERS))
    runtime = _runtime()
    installed = runtime.get_available_providers()
    if PROVIDERS[provider] in installed:
        return provider
    gpu = provider in ("cuda", "tensorrt")
    install = ". `pip install onnxruntime-gpu` in place of onnxruntime installs cuda" if gpu else ""
    problem = (
        f"provider {provider} is not part of the installed onnxruntime {runtime.__version__} "
        f"(it has {', '.join(installed)}){install}; {_ADVICE}"
    )
    if not allow_cpu:
        raise RestorerError(problem)
    logger.warning("%s: falling back to the CPU", problem)
    return "cpu"


def open_session(
    graph: Path | bytes,
    provider: str = "cpu",
    *,
    allow_cpu: bool = False,
    threads: int = 0,
    device_id: int | None = None,
) -> Any:
    """An ``onnxruntime.InferenceSession`` of a graph, with all optimizations.

    TensorRT builds its engine in the first run, and again for a batch larger than any before. In
    fp32, a GPU's TF32 arithmetic is used where torch would use it
    (``torch.backends.cudnn.allow_tf32``); TensorRT always uses it.

    Args:
        graph: the .onnx file, or its content.
        provider: a key of `PROVIDERS`. Single operators that it lacks run on the CPU.
        allow_cpu: run on the CPU, with a warning, where the provider cannot run.
        threads: of the CPU; 0 is as many as torch uses if it is imported, else onnxruntime's own.
        device_id: number of the GPU; None is the provider's first.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        ConfigError: an unknown provider.
        CheckpointError: it is not an ONNX graph that onnxruntime can load.
        OutOfMemoryError: memory ran out.
        RestorerError: the provider is not part of onnxruntime, or does not start.
    """
    provider = usable_provider(provider, allow_cpu=allow_cpu)
    runtime = _runtime()
    options = runtime.SessionOptions()
    options.log_severity_level = _QUIET
    if not threads and (torch := sys.modules.get("torch")):
        threads = torch.get_num_threads()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    try:
        return _start(runtime, graph, provider, options, device_id)
    except RestorerError as error:
        if not allow_cpu or provider == "cpu":
            raise
        logger.warning("%s: falling back to the CPU", error)
        return _start(runtime, graph, "cpu", options)


def provider_of(session: Any) -> str:
    """The provider that a session runs: a key of `PROVIDERS`."""
    running = session.get_providers()[0]
    return next(word for word, name in PROVIDERS.items() if name == running)


def _start(
    runtime: Any, graph: Path | bytes, provider: str, options: Any, device_id: int | None = None
) -> Any:
    source = graph if isinstance(graph, bytes) else str(graph)
    chain = _chain(runtime, provider, device_id)
    try:
        session = runtime.InferenceSession(source, options, chain, enable_fallback=0)
    except Exception as error:  # of any class, and the same for a bad file and a missing driver
        text = str(error)
        if is_out_of_memory(error):
            raise OutOfMemoryError(f"loading the graph: out of memory: {text}") from error
        if provider != "cpu":
            raise RestorerError(
                f"provider {provider} does not start ({text}); {_ADVICE}"
            ) from error
        path = None if isinstance(graph, bytes) else graph
        actual = f"a file that onnxruntime cannot load ({text})"
        raise CheckpointError(path, actual, "an ONNX graph") from error
    running = session.get_providers()[0]
    if running != PROVIDERS[provider]:  # onnxruntime leaves it out without an error
        raise RestorerError(
            f"provider {provider} does not start, onnxruntime would run {running}: its drivers or "
            f"libraries do not fit; {_ADVICE}"
        )
    return session


def _chain(
    runtime: Any, provider: str, device_id: int | None
) -> list[str | tuple[str, dict[str, str]]]:
    """`provider` and those it falls back to for single operators, each with its options."""
    chain: list[str | tuple[str, dict[str, str]]] = [PROVIDERS["cpu"]]
    if provider == "cpu":
        return chain
    device = {} if device_id is None else {"device_id": str(device_id)}
    if provider not in ("cuda", "tensorrt"):
        return [(PROVIDERS[provider], device), *chain]
    cuda = {
        **device,
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    torch = sys.modules.get("torch")
    version = tuple(int(part) for part in runtime.__version__.split(".")[:2])
    if torch and version >= _TF32_SINCE:
        cuda["use_tf32"] = str(int(torch.backends.cudnn.allow_tf32))
    chain.insert(0, (PROVIDERS["cuda"], cuda))
    if provider == "tensorrt":  # its fp16 returns a flat color with GFPGAN
        chain.insert(0, (PROVIDERS["tensorrt"], {**device, "trt_fp16_enable": "0"}))
    return chain


def _runtime() -> Any:
    try:
        runtime = import_module("onnxruntime")
    except Exception as error:  # with another numpy or driver it is not always ImportError
        cause = f"{type(error).__name__}: {error}"
        raise MissingDependencyError("onnxruntime", "onnx", "an ONNX file", cause) from error
    runtime.disable_telemetry_events()
    return runtime
