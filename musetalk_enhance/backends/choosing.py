"""Which backend runs a network: the one that was asked for, or the one that measured fastest here.

What was measured is kept before the first result, and later runs take it from there. Where it
cannot be kept, nothing is measured: a choice that the noise of a measurement makes anew in every
run gives other bits each time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, EnhanceError, MissingDependencyError, RestorerError
from ..runtime import memory
from . import tuning
from .base import Backend, NetworkSpec
from .checked import CheckedBackend
from .ranking import Way, chosen, contest, ordered
from .torch_backend import TorchBackend

if TYPE_CHECKING:
    import torch

    from ..config.settings import EnhancerSettings

logger = logging.getLogger("musetalk_enhance")

DTYPES = {
    "torch": ("fp32", "bf16", "fp16"),
    "onnx": ("fp32",),
    "openvino": ("fp32", "bf16"),
    "ncnn": ("fp32", "bf16"),
}
"""Backend to the arithmetic it knows."""
ORDER = {
    "cpu": (("ncnn", "fp32"), ("openvino", "fp32"), ("onnx", "fp32"), ("torch", "fp32")),
    "cuda": (("torch", "bf16"), ("torch", "fp16"), ("torch", "fp32"), ("onnx", "fp32")),
    "mps": (("torch", "fp32"),),
}
"""Ways worth measuring on a kind of device, and the order in which they are taken where measuring is off."""
SAFER = {"fp16": ("bf16", "fp32"), "bf16": ("fp32",), "fp32": ()}
BF16_CAPABILITY = (8, 0)
"""CUDA compute capability from which there are instructions for bf16; torch emulates it below."""
ROUNDS = 3
"""Timed runs of a way; the fastest counts."""
WARM_UPS = {"cuda": 2}
"""Runs before those, by kind of device, else 1: they allocate, compile, let cuDNN choose and
capture graphs."""
NEEDED = 10
"""Bytes that must be free for measuring on a CPU, for each byte of weights. Opening and running
GFPGAN (0.35 GB) took 3.0 GB with ncnn, 1.9 with OpenVINO, 1.6 with ONNX Runtime, 0.6 with torch."""
TOO_SLOW = 2.0
"""A way that took this many times as long as the best one is not measured further."""


def open_backend(
    spec: NetworkSpec,
    settings: EnhancerSettings,
    device: torch.device,
    forms: Sequence[str] | None = None,
) -> Backend:
    """The backend that `settings` mean for `spec` on `device`.

    Args:
        spec: the network.
        settings: all options.
        device: where it runs.
        forms: `Backend.forms` of an earlier run that is to be repeated; None chooses them.

    Raises:
        ConfigError: backend, dtype and device do not go together.
        MissingDependencyError: the runtime that was asked for is not installed.
        RestorerError: it cannot run this network.
    """
    ways = possible_ways(settings, device)
    if settings.backend == "auto" and device.type == "cpu" and spec.symbolic and find_spec("ncnn") is None:
        _say_once_that_ncnn_is_faster()
    with ExitStack() as traced:  # the graph that is traced for measuring serves the final backend
        if len(ways) > 1:
            ways = _picked(spec, settings, device, ways, traced)
        return _opened(ways, spec, settings, device, forms)


@cache
def _say_once_that_ncnn_is_faster() -> None:
    logger.info("on a CPU, ncnn is usually two to four times faster: pip install 'musetalk_enhance[ncnn]'")


def possible_ways(settings: EnhancerSettings, device: torch.device) -> list[Way]:
    """The ways that `settings` leave open, most promising first.

    Raises:
        ConfigError: none, as the options contradict each other.
    """
    if settings.backend == "auto":
        ways = _usual(device)
        more = ("ncnn", "torch") if device.type == "cpu" else ("torch",)
        ways += [Way(name, settings.dtype) for name in more if settings.dtype in DTYPES[name]]
    else:
        if device.type != "cpu" and settings.backend in ("openvino", "ncnn"):
            if not settings.allow_cpu:
                allowed = "cpu (or auto with allow_cpu: true)"
                raise ConfigError("device", str(device), f"{allowed} with backend: {settings.backend}")
        dtypes = DTYPES[settings.backend]
        if settings.dtype != "auto" and settings.dtype not in dtypes:
            allowed = f"auto | {' | '.join(dtypes)} with backend: {settings.backend}"
            raise ConfigError("dtype", settings.dtype, allowed)
        order = [way for way in _usual(device) if way.backend == settings.backend]
        ways = order or [Way(settings.backend, "fp32")]
        if settings.dtype != "auto":
            ways = [Way(settings.backend, settings.dtype)]
    if settings.dtype != "auto":
        ways = [way for way in ways if way.dtype == settings.dtype]
    return list(dict.fromkeys(ways))


def _usual(device: torch.device) -> list[Way]:
    """The ways of `ORDER`, bf16 on a CPU that has it; fp16 first on a GPU that emulates bf16."""
    ways = [Way(*pair) for pair in (*ORDER[device.type], *_bf16(device))]
    if device.type == "cuda" and _capability(device) < BF16_CAPABILITY:
        ways.sort(key=lambda way: way.dtype != "fp16")
    return ways


def _capability(device: torch.device) -> tuple[int, int]:
    """CUDA's compute capability; that of a current GPU where there is none to ask."""
    import torch

    if not torch.cuda.is_available():
        return BF16_CAPABILITY
    return torch.cuda.get_device_capability(device)


def _bf16(device: torch.device) -> list[tuple[str, str]]:
    """Ways in bf16 on a CPU that has instructions for it."""
    if device.type != "cpu" or not any(word in tuning.cpu_name() for word in ("avx512_bf16", "amx_bf16")):
        return []
    return [("openvino", "bf16"), ("ncnn", "bf16"), ("torch", "bf16")]


def _opened(
    ways: list[Way],
    spec: NetworkSpec,
    settings: EnhancerSettings,
    device: torch.device,
    forms: Sequence[str] | None,
) -> Backend:
    """The first of `ways`, with its safer ones behind it; where auto left a choice, the first that opens."""
    problems: list[EnhanceError] = []
    for way in ways:
        safer = [Way(way.backend, dtype) for dtype in SAFER[way.dtype] if dtype in DTYPES[way.backend]]
        openers: list[Callable[[], Backend]] = [
            partial(open_way, each, spec, settings, device, forms) for each in (way, *safer)
        ]
        try:
            return openers[0]() if way.dtype == "fp32" else CheckedBackend(spec, openers, device)
        except (MissingDependencyError, RestorerError) as error:
            problems.append(error)
    raise problems[0]


def open_way(
    way: Way,
    spec: NetworkSpec,
    settings: EnhancerSettings,
    device: torch.device,
    forms: Sequence[str] | None = None,
) -> Backend:
    """Open one way.

    Args:
        way: backend and dtype.
        spec: the network.
        settings: what else the backend is told.
        device: where it runs.
        forms: of torch's modulated convolutions; None measures them, seconds on a CPU, and ``()``
            leaves them.

    Raises:
        MissingDependencyError: its runtime is not installed.
        RestorerError: it cannot run this network on this machine.
    """
    if way.backend == "onnx":
        from .onnx_backend import OnnxBackend

        return OnnxBackend(spec, device, dtype=way.dtype, provider=settings.provider, allow_cpu=settings.allow_cpu)
    if way.backend == "openvino":
        from .openvino_backend import OpenVinoBackend

        return OpenVinoBackend(spec, device, dtype=way.dtype)
    if way.backend == "ncnn":
        from .ncnn_backend import NcnnBackend

        return NcnnBackend(spec, way.dtype)
    from .forms import choose_forms

    choose_forms(spec, device, forms)
    return TorchBackend(spec, device, way.dtype, graphs=settings.mode == "batch")


def _picked(
    spec: NetworkSpec,
    settings: EnhancerSettings,
    device: torch.device,
    ways: list[Way],
    traced: ExitStack,
) -> list[Way]:
    """`ways` with the chosen one first, as measured; unchanged where nothing is measured."""
    if not tuning.enabled():
        return ways
    key = _key(spec, settings, device)
    entry = _remembered(key)
    if entry is not None:
        order = ordered(ways, entry["ms"], entry.get("chosen"))
        logger.info(
            "%s runs with %s, chosen on this machine before (%s)",
            spec.name,
            order[0],
            tuning.path(),
        )
        return order
    if _lacks_memory(spec, device):
        return _leanest(spec, ways)
    try:
        waiting = f"another process is measuring how {spec.name} runs fastest: waiting for it"
        with tuning.turn(key, waiting):
            entry = _remembered(key)
            if entry is None:
                entry = _measured(spec, settings, device, ways, traced)
                tuning.keep(key, entry)
    except tuning.NotKeptError as error:
        _warn_of_a_fixed_choice(spec.name, str(ways[0]), str(error))
        return ways
    except Exception as error:
        if not memory.is_out_of_memory(error):
            raise
        logger.warning("no memory to measure how %s runs fastest: %s is taken", spec.name, ways[0])
        memory.forget_locals(error)
        memory.release(device)
        return ways
    logger.info("%s", picked_text(spec.name, entry["ms"], entry.get("chosen")))
    return ordered(ways, entry["ms"], entry.get("chosen"))


def _lacks_memory(spec: NetworkSpec, device: torch.device) -> bool:
    """Whether measuring might end the process: the kernel kills it, and no error is raised."""
    tensors = (*spec.module.parameters(), *spec.module.buffers())
    needed = NEEDED * sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return device.type == "cpu" and memory.free_bytes(device) < needed


def _leanest(spec: NetworkSpec, ways: list[Way]) -> list[Way]:
    """`ways`, torch in fp32 first: it runs the network as it is in memory already."""
    order = sorted(ways, key=lambda way: way != Way("torch", "fp32"))
    logger.warning(
        "too little memory is free to measure how %s runs fastest: %s is taken", spec.name, order[0]
    )
    return order


@cache
def _warn_of_a_fixed_choice(name: str, way: str, reason: str) -> None:
    """Once for each network."""
    logger.warning(
        "%s runs with %s, which may not be the fastest: nothing is measured, because the result "
        "cannot be kept and the next run could choose differently (%s). Set MUSETALK_ENHANCE_CACHE "
        "to a folder that can be written, or `backend` and `dtype`",
        name,
        way,
        reason,
    )


def _remembered(key: str) -> dict[str, Any] | None:
    """What was measured before: ``ms`` by way, ``chosen``; None where nothing sound is kept."""
    entry = tuning.remembered(key) or {}
    ms = entry.get("ms")
    sound = isinstance(ms, dict) and ms and all(isinstance(value, (int, float)) for value in ms.values())
    return entry if sound else None


def _key(spec: NetworkSpec, settings: EnhancerSettings, device: torch.device) -> str:
    mode = "" if device.type == "cpu" else f" {settings.mode}"  # which decides on CUDA graphs and the batch measured
    return tuning.key_of(f"{spec.key} {settings.backend} {settings.dtype} {settings.provider}{mode}", device)


def tune(
    spec: NetworkSpec, settings: EnhancerSettings, device: torch.device, ways: list[Way] | None = None
) -> dict[str, float]:
    """Measure now, whatever is remembered, and remember that: way to milliseconds a face.

    Args:
        spec: the network.
        settings: backend and dtype say which ways there are.
        device: where it shall run.
        ways: those to measure; None takes all that `settings` leave open.

    Raises:
        EnhanceError: not one way works here.
    """
    with ExitStack() as traced:
        entry = _measured(spec, settings, device, ways or possible_ways(settings, device), traced)
    problem = tuning.remember(_key(spec, settings, device), entry)
    if problem is not None:
        logger.warning("the measurement decides nothing, as it is not kept: %s", problem)
    logger.info("%s", picked_text(spec.name, entry["ms"], entry["chosen"]))
    ms: dict[str, float] = entry["ms"]
    return ms


def _measured(
    spec: NetworkSpec,
    settings: EnhancerSettings,
    device: torch.device,
    ways: list[Way],
    traced: ExitStack,
) -> dict[str, Any]:
    """An entry for `tuning`: all ways measured, and again where a reduced precision won.

    `traced` is given the file of the traced graph.
    """
    from .exporting import shared

    logger.info("measuring once how %s runs fastest on this machine ...", spec.name)
    traced.enter_context(shared())
    first = measure(spec, settings, device, ways)
    pair = contest(first)
    if pair is not None:
        logger.info("measuring again, as %s was clearly faster than %s ...", pair[1], pair[0])
    second = _second_look(spec, settings, device, list(pair)) if pair else {}
    ms = {str(way): round(value * 1e3, 2) for way, value in first.items()}
    return {"network": spec.key, "ms": ms, "chosen": str(chosen(first, second))}


def _second_look(
    spec: NetworkSpec, settings: EnhancerSettings, device: torch.device, ways: list[Way]
) -> dict[Way, float]:
    """`measure` of ways that worked once; what fails now has not won twice."""
    try:
        return measure(spec, settings, device, ways)
    except (MissingDependencyError, RuntimeError) as error:
        if memory.is_out_of_memory(error):
            raise
        logger.debug("measured once only: %s", error)
        return {}


def picked_text(name: str, ms: dict[str, float], choice: str | None = None) -> str:
    """One line for a person: what was picked (None: the fastest) and what the others took."""
    ranked = sorted(ms, key=lambda way: (way != choice, ms[way]))
    others = ", ".join(f"{way} {ms[way]:.0f}" for way in ranked[1:])
    return f"{name} runs with {ranked[0]}: {ms[ranked[0]]:.0f} ms a face{f' ({others})' if others else ''}"


def measure(spec: NetworkSpec, settings: EnhancerSettings, device: torch.device, ways: list[Way]) -> dict[Way, float]:
    """Seconds a face for each way that works here: best of a few runs, one way open at a time.

    Raises:
        EnhanceError: not one of them works; the first one's own error.
        MemoryError, RuntimeError: memory ran out; not a word on which way is the fastest.
    """
    import torch

    count = 1 if device.type == "cpu" or settings.mode == "memory" else 8
    generator = torch.Generator().manual_seed(0)
    low, high = spec.value_range
    faces = (torch.rand(count, *spec.input_shape, generator=generator) * (high - low) + low).to(device)
    took: dict[Way, float] = {}
    problem: Exception | None = None
    for way in ways:
        if took and _is_emulated(way, device):
            continue
        try:
            best = min(took.values(), default=float("inf"))
            took[way] = _best_of_runs(way, spec, settings, faces, device, best)
            logger.info("%s with %s: %.0f ms a face", spec.name, way, took[way] / count * 1e3)
        # besides our own errors: an operation that this torch or GPU does not have in this type
        except (MissingDependencyError, RuntimeError) as error:
            if memory.is_out_of_memory(error):
                raise
            problem = problem or error
            memory.forget_locals(error)
            logger.debug("%s: %s", way, error)
        memory.release(device)
    if not took:
        assert problem is not None
        raise problem
    return {way: value / count for way, value in took.items()}


def _best_of_runs(
    way: Way,
    spec: NetworkSpec,
    settings: EnhancerSettings,
    faces: torch.Tensor,
    device: torch.device,
    best: float,
) -> float:
    """Seconds of a way's fastest run; fewer runs where it cannot compete with `best` seconds."""
    # on a CPU the forms differ by a tenth, and measuring them takes longer than all of this
    backend = open_way(way, spec, settings, device, () if device.type == "cpu" else None)
    try:
        for _ in range(WARM_UPS.get(device.type, 1)):
            _timed(backend, faces, device)
        took = _timed(backend, faces, device)
        for _ in range(ROUNDS - 1):
            if took > TOO_SLOW * best:
                break
            took = min(took, _timed(backend, faces, device))
        return took
    finally:
        backend.close()


def _is_emulated(way: Way, device: torch.device) -> bool:
    """Whether torch has no instructions for this on the CPU: a face may take minutes then."""
    return way.backend == "torch" and way.dtype != "fp32" and device.type == "cpu" and not _bf16(device)


def _timed(backend: Backend, faces: torch.Tensor, device: torch.device) -> float:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    backend.run(faces)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
