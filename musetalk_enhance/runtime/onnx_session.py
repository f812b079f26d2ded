"""ONNX Runtime sessions without torch: the provider asked for runs, or an error says why."""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError, MissingDependencyError, RestorerError

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
_OPTIONS = {"tensorrt": {"trt_fp16_enable": "0"}}  # its fp16 returns a flat color with GFPGAN
_QUIET = 4  # of onnxruntime's levels: fatal only; errors come as exceptions


def providers() -> list[str]:
    """The values of `provider` that the installed onnxruntime has, in its own order.

    A provider is part of the package even where its driver or library is not installed.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
    """
    names = {name: word for word, name in PROVIDERS.items()}
    return [names[name] for name in _runtime().get_available_providers() if name in names]


def open_session(
    path: Path,
    provider: str = "cpu",
    *,
    allow_cpu: bool = False,
    threads: int = 0,
    device_id: int | None = None,
) -> Any:
    """An ``onnxruntime.InferenceSession`` of a file.

    Args:
        path: the .onnx file.
        provider: a key of `PROVIDERS`. Single operators that it lacks run on the CPU.
        allow_cpu: run on the CPU, with a warning, where the provider cannot run.
        threads: of the CPU; 0 is as many as torch uses if it is imported, else onnxruntime's own.
        device_id: number of the GPU; None is the provider's first.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        ConfigError: an unknown provider.
        CheckpointError: the file is not an ONNX graph that onnxruntime can load.
        RestorerError: the provider is not part of onnxruntime, or does not start.
    """
    if provider not in PROVIDERS:
        raise ConfigError("provider", provider, " | ".join(PROVIDERS))
    runtime = _runtime()
    options = runtime.SessionOptions()
    options.log_severity_level = _QUIET
    if not threads and (torch := sys.modules.get("torch")):
        threads = torch.get_num_threads()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    try:
        return _start(runtime, path, provider, options, device_id)
    except RestorerError as error:
        if not allow_cpu or provider == "cpu":
            raise
        logger.warning("%s: falling back to the CPU", error)
        return _start(runtime, path, "cpu", options)


def _start(
    runtime: Any, path: Path, provider: str, options: Any, device_id: int | None = None
) -> Any:
    name, installed = PROVIDERS[provider], runtime.get_available_providers()
    advice = "set allow_cpu: true to fall back to the CPU"
    if name not in installed:
        raise RestorerError(
            f"provider {provider} is not part of the installed onnxruntime {runtime.__version__} "
            f"(it has {', '.join(installed)}); {advice}"
        )
    chain: list[Any] = [PROVIDERS["cpu"]]
    if provider != "cpu":
        device = {} if device_id is None else {"device_id": str(device_id)}
        chain.insert(0, (name, {**_OPTIONS.get(provider, {}), **device}))
    try:
        session = runtime.InferenceSession(str(path), options, chain, enable_fallback=0)
    except Exception as error:  # of any class, and the same for a bad file and a missing driver
        if provider != "cpu":
            raise RestorerError(
                f"provider {provider} does not start ({error}); {advice}"
            ) from error
        actual = f"a file that onnxruntime cannot load ({error})"
        raise CheckpointError(path, actual, "an ONNX graph") from error
    if session.get_providers()[0] != name:  # onnxruntime leaves it out without an error
        running = session.get_providers()[0]
        raise RestorerError(
            f"provider {provider} does not start, onnxruntime would run {running}; {advice}"
        )
    return session


def _runtime() -> Any:
    try:
        return import_module("onnxruntime")
    except Exception as error:  # with another numpy or driver it is not always ImportError
        cause = f"{type(error).__name__}: {error}"
        raise MissingDependencyError("onnxruntime", "onnx", "an ONNX file", cause) from error
