"""How quick this machine could be: the network's arithmetic over what a large matrix product reaches here.

The arithmetic is that of *direct* convolution of the network as it was published, everything but convolutions
and matrix products left out. A backend with Winograd or FFT convolutions needs fewer multiplications and can
beat the limit; so can ``region: lower``, which does not compute all of the network.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .runner import Candidate, Runner
from .subject import Subject

if TYPE_CHECKING:
    import torch

PROBE = "probe"
"""``path`` of the probes among the facts of their candidates."""


@dataclass(frozen=True)
class Work:
    """What one face costs.

    Attributes:
        macs: multiply-accumulate operations of all convolutions and matrix products.
        activation_bytes: what they read and write besides weights, each input and output once, fp32; what comes
            between two of them is taken as fused into the first.
        weight_bytes: what they read of weights, fp32.
    """

    macs: int
    activation_bytes: int
    weight_bytes: int


def work_of(subject: Subject) -> Work | None:
    """Count what one face costs in the published network; None for a network that is not known here."""
    import torch

    from . import checkpoints

    if subject.name == "lite":
        from spandrel.architectures.Compact import CompactArch

        from ..restorers import lite
        from ..weights import open_file

        network = CompactArch().load(open_file(lite.ASSET).state_dict()).model.to("meta")
        return count(lambda: lite.operator(network, torch.empty(1, 3, 256, 256, device="meta")))
    if subject.arch is None:
        return None
    gfpgan = checkpoints.architecture(subject.arch)
    return count(lambda: gfpgan(torch.empty(1, 3, 512, 512, device="meta"), return_rgb=False))


def count(call: Callable[[], Any]) -> Work:
    """Run `call` and count its convolutions and matrix products; tensors on the meta device cost nothing."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    totals = [0, 0, 0]

    class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            cost = _cost(func._schema.name.partition("::")[2], args, out)
            for index, value in enumerate(cost):
                totals[index] += value
            return out

    with torch.no_grad(), Counter():  # type: ignore[no-untyped-call]
        call()
    return Work(*totals)


def _cost(name: str, args: Any, out: Any) -> tuple[int, int, int]:
    """Multiplications, bytes of activations and bytes of weights of one operation; zeros for all others."""
    if name in ("convolution", "_convolution", "conv2d", "conv_transpose2d"):
        x, weight = args[0], args[1]
        transposed = name == "conv_transpose2d" or (len(args) > 6 and bool(args[6]))
        macs = (x if transposed else out).numel() * math.prod(weight.shape[1:])
    elif name in ("addmm", "baddbmm"):
        x, weight = args[1], args[2]
        macs = out.numel() * x.shape[-1]
    elif name in ("mm", "bmm", "matmul", "linear"):
        x, weight = args[0], args[1]
        macs = out.numel() * x.shape[-1]
    else:
        return 0, 0, 0
    return macs, 4 * (x.numel() + out.numel()), 4 * weight.numel()


_LONG_S = 0.06
"""Seconds for a matrix product after which no larger one is tried."""

_EMULATED = 8.0


class _Probe(Runner):
    """A large matrix product or a large copy.

    Attributes:
        amount: what is done once, in MAC or in bytes.
        seconds: the quickest once so far.
    """

    faces = 1

    def __init__(self, device: torch.device, once: Callable[[], object], amount: float) -> None:
        self._device, self._once, self.amount = device, once, amount
        self.seconds = math.inf

    def run(self) -> None:
        for _ in range(3):
            self._wait()
            start = time.perf_counter()
            self._once()
            self._wait()
            self.seconds = min(self.seconds, time.perf_counter() - start)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._device)

    def stages(self) -> dict[str, float]:
        return {"per_second": self.amount / self.seconds}


def probes(device: torch.device, side: int | None = None, copy_bytes: int | None = None) -> list[Candidate]:
    """Candidates that measure the machine, among the others: matrix products and a copy.

    Their `Runner.stages` holds ``per_second``, the best rate seen: MAC/s, or bytes/s read and written.

    Args:
        device: where.
        side: of the square matrices, or a half, a quarter, ... of it where that would take too long; None takes
            8192 on a GPU, 2048 elsewhere.
        copy_bytes: size of what is copied; None takes 1 GiB on a GPU, 256 MiB elsewhere.
    """
    gpu = device.type == "cuda"
    dtypes = ("fp32", "tf32", "bf16", "fp16") if gpu else ("fp32", "bf16")
    side = side or (8192 if gpu else 2048)
    size = copy_bytes or (2**30 if gpu else 2**28)
    found = [_product(device, dtype, side) for dtype in dtypes]
    return [*found, Candidate("copy", lambda: _copy(device, size), {"path": PROBE, "dtype": "bytes"})]


def _product(device: torch.device, dtype: str, side: int) -> Candidate:
    def build() -> Runner:
        for size in (side >> shift for shift in (4, 3, 2, 1, 0)):
            probe = _square(device, dtype, max(1, size))
            probe.run()
            if probe.seconds > _LONG_S:  # the next would take eight times as long
                break
        return probe

    return Candidate(f"matrix product {dtype}", build, {"path": PROBE, "dtype": dtype})


def _square(device: torch.device, dtype: str, side: int) -> _Probe:
    import torch

    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(dtype, torch.float32)
    a, b = (torch.randn(side, side, device=device).to(kind) for _ in range(2))

    def once() -> None:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
        torch.mm(a, b)
        torch.backends.cuda.matmul.allow_tf32 = before

    return _Probe(device, once, float(side) ** 3)


def emulated(dtype: str, side: int = 256) -> bool:
    """Whether torch on this CPU multiplies in `dtype` more than `_EMULATED` times slower than in fp32.

    A CPU without instructions for bf16 or fp16 takes minutes for a face then, and a bench would stand still.
    """
    import torch

    found = [_square(torch.device("cpu"), kind, side) for kind in ("fp32", dtype)]
    for probe in found:
        probe.run()
    return found[1].seconds > _EMULATED * found[0].seconds


def _copy(device: torch.device, size: int) -> Runner:
    import torch

    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return _Probe(device, lambda: target.copy_(source), 2.0 * size)


@dataclass(frozen=True)
class Limit:
    """What one dtype could reach at most.

    Attributes:
        dtype: of the matrix product.
        arithmetic_ms: a face, direct convolution.
        memory_ms: a face, activations and (batch 1) weights moved once at the rate of a large copy.
    """

    dtype: str
    arithmetic_ms: float
    memory_ms: float


def limits(work: Work, rates: dict[str, float]) -> dict[str, Limit]:
    """Limits by dtype.

    Args:
        work: of one face.
        rates: dtype to MAC/s, and ``bytes`` to bytes/s.
    """
    found = {}
    for dtype, rate in rates.items():
        if dtype != "bytes":
            share = 1.0 if dtype in ("fp32", "tf32") else 0.5
            moved = share * (work.activation_bytes + work.weight_bytes)
            memory_ms = moved / rates["bytes"] * 1e3 if "bytes" in rates else math.nan
            found[dtype] = Limit(dtype, work.macs / rate * 1e3, memory_ms)
    return found
