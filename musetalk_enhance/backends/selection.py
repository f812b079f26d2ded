"""Selects the backend of a network: the requested one, or the one that was measured fastest.

A measurement is stored before the first result, and later runs use it. Where it cannot be stored,
nothing is measured: a selection by the noise of each run's own measurement would give other bits in
each run.
"""

from __future__ import annotations

import logging
import time
from functools import cache, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, EnhanceError, MissingDependencyError, RestorerError
from ..runtime import memory
from . import tuning
from .base import Backend, BackendOptions, NetworkSpec
from .checked import CheckedBackend, Opener
from .execution import Execution, contest, ordered, select
from .torch_backend import TorchBackend

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("musetalk_enhance")

DTYPES = {
    "torch": ("fp32", "bf16", "fp16"),
    "onnx": ("fp32",),
    "openvino": ("fp32", "bf16"),
    "ncnn": ("fp32", "bf16"),
}
"""Each backend's dtypes."""
GRAPH_BACKENDS = ("onnx", "openvino")
"""Those that run a graph in a file."""
ORDER = {
    "cpu": (("ncnn", "fp32"), ("openvino", "fp32"), ("onnx", "fp32"), ("torch", "fp32")),
    "cuda": (("torch", "bf16"), ("torch", "fp16"), ("torch", "fp32"), ("onnx", "fp32")),
    "mps": (("torch", "fp32"),),
}
"""Executions worth measuring on a kind of device, and their order if nothing is measured.
On the CPUs measured (AVX2, and AVX-512 with bf16) ncnn was the fastest in fp32, for GFPGAN by two;
OpenVINO in bf16, where the processor has that, took 0.5 to 0.9 of its time."""
SAFER = {"fp16": ("bf16", "fp32"), "bf16": ("fp32",), "fp32": ()}
BF16_CAPABILITY = (8, 0)
"""CUDA compute capability from which there are instructions for bf16; torch emulates it below."""
ROUNDS = 3
"""Timed runs of an execution; the fastest counts."""
WARM_UPS = {"cuda": 3}
"""Runs before those, by kind of device, else 1: they allocate, compile, let cuDNN choose its
algorithms and capture CUDA graphs."""
NEEDED = 10
"""Bytes that must be free for measuring on a CPU, for each byte of weights. Opening and running
GFPGAN (0.35 GB) took 3.0 GB with ncnn, 1.9 with OpenVINO, 1.6 with ONNX Runtime, 0.6 with torch."""
TOO_SLOW = 2.0
"""An execution that takes this many times as long as the best one is not measured further."""


def open_backend(spec: NetworkSpec, options: BackendOptions, device: torch.device) -> Backend:
    """The backend for `spec` on `device`.

    Args:
        spec: the network.
        options: what is requested.
        device: where it runs.

    Raises:
        ConfigError: backend, dtype and device do not go together.
        MissingDependencyError: the requested runtime is not installed.
        RestorerError: it cannot run this network.
    """
    executions = possible_executions(options, device, spec)
    if options.backend == "auto" and device.type == "cpu" and spec.graph is None:
        _suggest_a_runtime(bool(_bf16_on(device)))
    if len(executions) > 1:
        executions = _measured_order(spec, options, device, executions)
    return _open_first(executions, spec, options, device)


@cache
def _suggest_a_runtime(bf16: bool) -> None:
    """Logged once where torch is the only backend."""
    if not any(find_spec(package) for package in ("ncnn", "openvino", "onnxruntime")):
        name = "openvino" if bf16 else "ncnn"
        text = "torch is the only backend; %s is usually twice as fast on this processor: %s"
        logger.info(text, name, f"pip install 'musetalk_enhance[{name}]'")


def possible_executions(
    options: BackendOptions, device: torch.device, spec: NetworkSpec | None = None
) -> list[Execution]:
    """The executions that `options` allow, most promising first.

    Args:
        options: what is requested.
        device: where the network runs.
        spec: the network; a graph in a file runs in `GRAPH_BACKENDS` only.

    Raises:
        ConfigError: none, as the options contradict each other.
    """
    if spec is not None and spec.graph is not None:
        if options.backend not in ("auto", *GRAPH_BACKENDS):
            allowed = f"auto | {' | '.join(GRAPH_BACKENDS)} with an ONNX file"
            raise ConfigError("backend", options.backend, allowed)
        usual = possible_executions(options, device)
        executions = [each for each in usual if each.backend in GRAPH_BACKENDS]
        if not executions:
            raise ConfigError("dtype", options.dtype, "auto | fp32 with an ONNX file")
        return executions
    if options.backend == "auto":
        executions = _usual(device)
        more = ("ncnn", "torch") if device.type == "cpu" else ("torch",)
        if options.dtype != "auto":
            names = (name for name in more if options.dtype in DTYPES[name])
            executions += [Execution(name, options.dtype) for name in names]
            executions = [each for each in executions if each.dtype == options.dtype]
        return list(dict.fromkeys(executions))
    backend, dtypes = options.backend, DTYPES[options.backend]
    if device.type != "cpu" and backend in ("openvino", "ncnn") and not options.allow_cpu:
        allowed = f"cpu (or auto with allow_cpu: true) with backend: {backend}"
        raise ConfigError("device", str(device), allowed)
    if options.dtype == "auto":
        usual = [each for each in _usual(device) if each.backend == backend]
        return usual or [Execution(backend, "fp32")]
    if options.dtype not in dtypes:
        allowed = f"auto | {' | '.join(dtypes)} with backend: {backend}"
        raise ConfigError("dtype", options.dtype, allowed)
    return [Execution(backend, options.dtype)]


def _usual(device: torch.device) -> list[Execution]:
    """`ORDER`, with bf16 on a CPU that has it; fp16 first on a GPU that emulates bf16."""
    executions = [Execution(*pair) for pair in (*ORDER[device.type], *_bf16_on(device))]
    if device.type == "cuda" and _capability(device) < BF16_CAPABILITY:
        executions.sort(key=lambda execution: execution.dtype != "fp16")
    return executions


def _bf16_on(device: torch.device) -> list[tuple[str, str]]:
    """Executions in bf16, on a CPU that has instructions for it."""
    flags = ("avx512_bf16", "amx_bf16")
    if device.type != "cpu" or not any(flag in tuning.cpu_name() for flag in flags):
        return []
    return [("openvino", "bf16"), ("ncnn", "bf16"), ("torch", "bf16")]


def _capability(device: torch.device) -> tuple[int, int]:
    """CUDA's compute capability; that of a current GPU where there is none to ask."""
    import torch

    if not torch.cuda.is_available():
        return BF16_CAPABILITY
    return torch.cuda.get_device_capability(device)


def _open_first(
    executions: list[Execution], spec: NetworkSpec, options: BackendOptions, device: torch.device
) -> Backend:
    """The first execution that opens; a reduced precision is checked and has fallbacks."""
    problems: list[EnhanceError] = []
    for execution in executions:
        dtypes = [dtype for dtype in SAFER[execution.dtype] if dtype in DTYPES[execution.backend]]
        safer = [Execution(execution.backend, dtype) for dtype in dtypes]
        openers: list[Opener] = [
            partial(open_execution, each, spec, options) for each in (execution, *safer)
        ]
        try:
            return CheckedBackend(spec, openers, device) if safer else openers[0](device)
        except (MissingDependencyError, RestorerError) as error:
            problems.append(error)
    raise problems[0]


def open_execution(
    execution: Execution, spec: NetworkSpec, options: BackendOptions, device: torch.device
) -> Backend:
    """Open one execution.

    Args:
        execution: backend and dtype.
        spec: the network.
        options: what else the backend depends on.
        device: where it runs.

    Raises:
        MissingDependencyError: its runtime is not installed.
        RestorerError: it cannot run this network on this machine.
    """
    dtype = execution.dtype
    if execution.backend == "onnx":
        from .onnx_backend import OnnxBackend

        provider, allow_cpu = options.provider, options.allow_cpu
        return OnnxBackend(spec, device, dtype=dtype, provider=provider, allow_cpu=allow_cpu)
    if execution.backend == "openvino":
        from .openvino_backend import OpenVinoBackend

        return OpenVinoBackend(spec, device, dtype=dtype)
    if execution.backend == "ncnn":
        from .ncnn_backend import NcnnBackend

        return NcnnBackend(spec, dtype)
    return TorchBackend(spec, device, dtype, graphs=options.mode == "batch")


def _measured_order(
    spec: NetworkSpec, options: BackendOptions, device: torch.device, executions: list[Execution]
) -> list[Execution]:
    """`executions`, the selected one first; measured now if no measurement is stored."""
    if not tuning.enabled():
        return executions
    key = _key(spec, options, device)
    entry = _stored(key)
    if entry is not None:
        order = ordered(executions, entry["ms"], entry.get("chosen"))
        where = f"selected earlier on this machine ({tuning.path()})"
        logger.info("%s runs with %s, %s", spec.name, order[0], where)
        return order
    if _lacks_memory(spec, device):
        # torch in fp32 first: it runs the network as it is in memory already
        order = sorted(executions, key=lambda execution: execution != Execution("torch", "fp32"))
        text = "too little memory is free to measure how %s runs fastest: using %s"
        logger.warning(text, spec.name, order[0])
        return order
    try:
        waiting = f"waiting for another process that measures how {spec.name} runs fastest"
        with tuning.turn(key, waiting):
            entry = _stored(key)
            if entry is None:
                entry = _measure_entry(spec, options, device, executions)
                tuning.keep(key, entry)
    except tuning.NotKeptError as error:
        _warn_of_fixed_order(spec.name, str(executions[0]), str(error))
        return executions
    except Exception as error:
        if not memory.is_out_of_memory(error):
            raise
        text = "out of memory while measuring how %s runs fastest: using %s"
        logger.warning(text, spec.name, executions[0])
        memory.forget_locals(error)
        memory.release(device)
        return executions
    logger.info("%s", summary(spec.name, entry["ms"], entry.get("chosen")))
    return ordered(executions, entry["ms"], entry.get("chosen"))


def _lacks_memory(spec: NetworkSpec, device: torch.device) -> bool:
    """Whether measuring might end the process: the kernel kills it, and no error is raised."""
    return device.type == "cpu" and memory.free_bytes(device) < NEEDED * spec.weight_bytes


@cache
def _warn_of_fixed_order(name: str, execution: str, reason: str) -> None:
    """Logged once for each network."""
    logger.warning(
        "%s runs with %s, which may not be the fastest: nothing is measured, because the result "
        "cannot be stored and the next run could select another (%s). Set MUSETALK_ENHANCE_CACHE "
        "to a writable folder, or set `backend` and `dtype`",
        name,
        execution,
        reason,
    )


def _stored(key: str) -> dict[str, Any] | None:
    """An earlier measurement: ``ms`` by execution, ``chosen``; None without a valid one."""
    entry = tuning.remembered(key) or {}
    ms = entry.get("ms")
    valid = isinstance(ms, dict) and all(isinstance(value, (int, float)) for value in ms.values())
    return entry if valid and ms else None


def _key(spec: NetworkSpec, options: BackendOptions, device: torch.device) -> str:
    # on a GPU the mode decides on CUDA graphs and on the measured batch
    mode = "" if device.type == "cpu" else f" {options.mode}"
    asked = f"{options.backend} {options.dtype} {options.provider}{mode}"
    return tuning.key_of(f"{spec.key} {asked}", device)


def tune(
    spec: NetworkSpec,
    options: BackendOptions,
    device: torch.device,
    executions: list[Execution] | None = None,
) -> dict[str, float]:
    """Measure now, whatever is stored, and store the result.

    Args:
        spec: the network.
        options: backend and dtype limit the executions.
        device: where it will run.
        executions: those to measure; None measures all that `options` allow.

    Returns:
        Milliseconds per face by the name of the execution.

    Raises:
        EnhanceError: none works here.
    """
    executions = executions or possible_executions(options, device, spec)
    entry = _measure_entry(spec, options, device, executions)
    problem = tuning.remember(_key(spec, options, device), entry)
    if problem is not None:
        logger.warning("the measurement is not stored and has no effect: %s", problem)
    logger.info("%s", summary(spec.name, entry["ms"], entry["chosen"]))
    ms: dict[str, float] = entry["ms"]
    return ms


def _measure_entry(
    spec: NetworkSpec, options: BackendOptions, device: torch.device, executions: list[Execution]
) -> dict[str, Any]:
    """An entry for `tuning`: all executions measured, twice where a reduced precision won."""
    text = "measuring once how %s runs fastest on this machine, of %s ..."
    logger.info(text, spec.name, ", ".join(map(str, executions)))
    first = measure(spec, options, device, executions)
    pair = contest(first)
    second: dict[Execution, float] = {}
    if pair is not None:
        logger.info("measuring again, as %s was clearly faster than %s ...", pair[1], pair[0])
        try:
            second = measure(spec, options, device, list(pair))
        except (MissingDependencyError, RuntimeError) as error:  # then it has not won twice
            if memory.is_out_of_memory(error):
                raise
            logger.debug("measured only once: %s", error)
    ms = {str(execution): round(value * 1e3, 2) for execution, value in first.items()}
    return {"network": spec.key, "ms": ms, "chosen": str(select(first, second))}


def summary(name: str, ms: dict[str, float], choice: str | None = None) -> str:
    """One line: what was selected (None: the fastest), and the times of the others."""
    ranked = sorted(ms, key=lambda execution: (execution != choice, ms[execution]))
    others = ", ".join(f"{execution} {ms[execution]:.0f}" for execution in ranked[1:])
    text = f"{name} runs with {ranked[0]}: {ms[ranked[0]]:.0f} ms per face"
    return f"{text} ({others})" if others else text


def measure(
    spec: NetworkSpec, options: BackendOptions, device: torch.device, executions: list[Execution]
) -> dict[Execution, float]:
    """Seconds per face of each execution that works here, the best of a few runs.

    Only one is open at a time.

    Raises:
        EnhanceError: none works; the error of the first.
        MemoryError, RuntimeError: memory ran out, which says nothing about speed.
    """
    import torch

    count = 1 if device.type == "cpu" or options.mode == "memory" else 8
    generator = torch.Generator().manual_seed(0)
    low, high = spec.value_range
    noise = torch.rand(count, *spec.input_shape, generator=generator)
    faces = (noise * (high - low) + low).to(device)
    seconds: dict[Execution, float] = {}
    problem: Exception | None = None
    for execution in executions:
        if seconds and _is_emulated(execution, device):
            continue
        try:
            best = min(seconds.values(), default=float("inf"))
            backend = open_execution(execution, spec, options, device)
            try:
                seconds[execution] = _best_of_runs(backend, faces, device, best)
            finally:
                backend.close()
            ms = seconds[execution] / count * 1e3
            logger.info("%s with %s: %.0f ms per face", spec.name, execution, ms)
        # besides our own errors: an operation that this torch or GPU lacks in this dtype
        except (MissingDependencyError, RuntimeError) as error:
            if memory.is_out_of_memory(error):
                raise
            problem = problem or error
            memory.forget_locals(error)
            logger.debug("%s: %s", execution, error)
        memory.release(device)
    if not seconds:
        assert problem is not None
        raise problem
    return {execution: value / count for execution, value in seconds.items()}


def _best_of_runs(
    backend: Backend, faces: torch.Tensor, device: torch.device, best: float
) -> float:
    """Seconds of the fastest run; fewer runs where it cannot compete with `best` seconds."""
    for _ in range(WARM_UPS.get(device.type, 1)):
        _timed(backend, faces, device)
    seconds = _timed(backend, faces, device)
    for _ in range(ROUNDS - 1):
        if seconds > TOO_SLOW * best:
            break
        seconds = min(seconds, _timed(backend, faces, device))
    return seconds


def _is_emulated(execution: Execution, device: torch.device) -> bool:
    """Whether torch has no instructions for this on the CPU: a face may take minutes then."""
    reduced = execution.backend == "torch" and execution.dtype != "fp32"
    return reduced and device.type == "cpu" and not _bf16_on(device)


def _timed(backend: Backend, faces: torch.Tensor, device: torch.device) -> float:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    backend.run(faces)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
