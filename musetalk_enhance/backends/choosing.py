"""Which backend runs a network: the one that was asked for, or the one that measured fastest here."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ..errors import ConfigError, EnhanceError, MissingDependencyError, RestorerError
from ..runtime import memory
from . import tuning
from .base import Backend, NetworkSpec
from .checked import CheckedBackend
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
ROUNDS = 3
TOO_SLOW = 2.0
"""A way that took this many times as long as the best one is not measured further."""


@dataclass(frozen=True)
class Way:
    """One way of running a network: a backend and its arithmetic."""

    backend: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.backend} {self.dtype}"


def open_backend(spec: NetworkSpec, settings: EnhancerSettings, device: torch.device) -> Backend:
    """The backend that `settings` mean for `spec` on `device`.

    Raises:
        ConfigError: backend, dtype and device do not go together.
        MissingDependencyError: the runtime that was asked for is not installed.
        RestorerError: it cannot run this network.
    """
    ways = possible_ways(settings, device)
    if settings.backend == "auto" and device.type == "cpu" and spec.symbolic and find_spec("ncnn") is None:
        _say_once_that_ncnn_is_faster()
    if len(ways) > 1:
        ways = _picked(spec, settings, device, ways)
    return _opened(ways, spec, settings, device)


@cache
def _say_once_that_ncnn_is_faster() -> None:
    logger.info("on a CPU, ncnn is usually two to four times faster: pip install 'musetalk_enhance[ncnn]'")


def possible_ways(settings: EnhancerSettings, device: torch.device) -> list[Way]:
    """The ways that `settings` leave open, most promising first.

    Raises:
        ConfigError: none, as the options contradict each other.
    """
    if settings.backend == "auto":
        ways = [Way(*pair) for pair in (*ORDER[device.type], *_bf16(device))]
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
        order = [Way(*pair) for pair in (*ORDER[device.type], *_bf16(device)) if pair[0] == settings.backend]
        ways = order or [Way(settings.backend, "fp32")]
        if settings.dtype != "auto":
            ways = [Way(settings.backend, settings.dtype)]
    if settings.dtype != "auto":
        ways = [way for way in ways if way.dtype == settings.dtype]
    return list(dict.fromkeys(ways))


def _bf16(device: torch.device) -> list[tuple[str, str]]:
    """Ways in bf16 on a CPU that has instructions for it."""
    if device.type != "cpu" or not any(word in tuning.cpu_name() for word in ("avx512_bf16", "amx_bf16")):
        return []
    return [("openvino", "bf16"), ("ncnn", "bf16"), ("torch", "bf16")]


def _opened(ways: list[Way], spec: NetworkSpec, settings: EnhancerSettings, device: torch.device) -> Backend:
    """The first of `ways`, with its safer ones behind it; where auto left a choice, the first that opens."""
    problems: list[EnhanceError] = []
    for way in ways:
        safer = [Way(way.backend, dtype) for dtype in SAFER[way.dtype] if dtype in DTYPES[way.backend]]
        openers: list[Callable[[], Backend]] = [
            partial(open_way, each, spec, settings, device) for each in (way, *safer)
        ]
        try:
            return openers[0]() if way.dtype == "fp32" else CheckedBackend(spec, openers, device)
        except (MissingDependencyError, RestorerError) as error:
            problems.append(error)
    raise problems[0]


def open_way(
    way: Way, spec: NetworkSpec, settings: EnhancerSettings, device: torch.device, forms: bool = True
) -> Backend:
    """Open one way.

    Args:
        way: backend and dtype.
        spec: the network.
        settings: what else the backend is told.
        device: where it runs.
        forms: whether torch may measure the forms of modulated convolutions, seconds on a CPU.

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
    if forms:
        from .forms import choose_forms

        choose_forms(spec, device)
    return TorchBackend(spec, device, way.dtype, graphs=settings.mode == "batch")


def _picked(spec: NetworkSpec, settings: EnhancerSettings, device: torch.device, ways: list[Way]) -> list[Way]:
    """`ways` with the fastest first, as measured now or before; as they are where measuring is off."""
    if not tuning.enabled():
        return ways
    ms = _remembered_ms(_key(spec, settings, device))
    if ms is None:
        try:
            ms = tune(spec, settings, device, ways)
        except Exception as error:
            if not memory.is_out_of_memory(error):
                raise
            logger.warning("no memory to measure how %s runs fastest: %s is taken", spec.name, ways[0])
            memory.forget_locals(error)
            ms = {}
        if not ms:
            memory.release(device)
    known = {str(way): way for way in ways}
    best = [known[name] for name in sorted(ms, key=lambda name: ms[name]) if name in known]
    return best + [way for way in ways if way not in best]


def _remembered_ms(key: str) -> dict[str, float] | None:
    """Way to milliseconds, as measured before; None where that was not, or where somebody spoilt the file."""
    ms = (tuning.remembered(key) or {}).get("ms")
    sound = isinstance(ms, dict) and ms and all(isinstance(value, (int, float)) for value in ms.values())
    return ms if sound else None


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
    logger.info("measuring once how %s runs fastest on this machine ...", spec.name)
    from .exporting import shared

    with shared():
        took = measure(spec, settings, device, ways or possible_ways(settings, device))
    ms = {str(way): round(value * 1e3, 2) for way, value in took.items()}
    tuning.remember(_key(spec, settings, device), {"network": spec.key, "ms": ms})
    logger.info("%s", picked_text(spec.name, ms))
    return ms


def picked_text(name: str, ms: dict[str, float]) -> str:
    """One line for a person: what was picked and what the others took."""
    ranked = sorted(ms, key=lambda way: ms[way])
    others = ", ".join(f"{way} {ms[way]:.0f}" for way in ranked[1:])
    return f"{name} runs with {ranked[0]}: {ms[ranked[0]]:.0f} ms a face{f' ({others})' if others else ''}"


def measure(spec: NetworkSpec, settings: EnhancerSettings, device: torch.device, ways: list[Way]) -> dict[Way, float]:
    """Seconds a face for each way that works here: best of a few interleaved runs.

    Raises:
        EnhanceError: not one of them works; the first one's own error.
        MemoryError, RuntimeError: memory ran out; not a word on which way is the fastest.
    """
    import torch

    count = 1 if device.type == "cpu" or settings.mode == "memory" else 8
    generator = torch.Generator().manual_seed(0)
    low, high = spec.value_range
    faces = (torch.rand(count, *spec.input_shape, generator=generator) * (high - low) + low).to(device)
    backends: dict[Way, Backend] = {}
    took: dict[Way, float] = {}
    problem: Exception | None = None
    try:
        for way in ways:
            if took and _is_emulated(way, device):
                continue
            try:
                # on a CPU the forms differ by a tenth, and measuring them takes longer than all of this
                backends[way] = open_way(way, spec, settings, device, forms=device.type != "cpu")
                first = _timed(backends[way], faces, device)  # allocates and compiles
                again = first <= TOO_SLOW * min(took.values(), default=first)
                took[way] = _timed(backends[way], faces, device) if again else first
            # besides our own errors: an operation that this torch, or this GPU, does not have in this type
            except (MissingDependencyError, RuntimeError) as error:
                if memory.is_out_of_memory(error):
                    raise
                problem = problem or error
                logger.debug("%s: %s", way, error)
        for _ in range(ROUNDS - 1):
            for way in [way for way in took if took[way] <= TOO_SLOW * min(took.values())]:
                took[way] = min(took[way], _timed(backends[way], faces, device))
    finally:
        for backend in backends.values():
            backend.close()
    if not took:
        assert problem is not None
        raise problem
    return {way: value / count for way, value in took.items()}


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
