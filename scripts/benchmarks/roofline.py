"""How fast this machine could be: the network's arithmetic over the rate of a large matrix product.

The arithmetic is that of *direct* convolution in the published network; only convolutions and
matrix products count. A backend with Winograd or FFT convolutions needs fewer multiplications and
can beat the limit; so can ``region: lower``, which computes a part of the network.
"""

from __future__ import annotations

import math
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
class WorkloadCost:
    """The cost of one face.

    Attributes:
        macs: multiply-accumulate operations of all convolutions and matrix products.
        activation_bytes: their inputs and outputs, each once, fp32; what comes between two of them
            is taken as fused into the first.
        weight_bytes: their weights, fp32.
    """

    macs: int
    activation_bytes: int
    weight_bytes: int


def work_of(subject: Subject) -> WorkloadCost | None:
    """The cost of one face in the published network; None for other networks."""
    import torch

    from . import checkpoints

    if subject.name == "lite":
        from musetalk_enhance.config.settings import EnhancerSettings
        from musetalk_enhance.restorers.base import LoadRequest
        from musetalk_enhance.restorers.lite import LiteRestorer

        request = LoadRequest(LiteRestorer.info, EnhancerSettings(), torch.device("cpu"))
        network = LiteRestorer.network(request).module.to("meta")
        return count(lambda: network(torch.empty(1, 3, 256, 256, device="meta")))
    if subject.arch is None:
        return None
    gfpgan = checkpoints.architecture(subject.arch)
    return count(lambda: gfpgan(torch.empty(1, 3, 512, 512, device="meta"), return_rgb=False))


def count(call: Callable[[], Any]) -> WorkloadCost:
    """Run `call` and count its convolutions and matrix products; tensors on the meta device cost
    nothing."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    aten = torch.ops.aten
    first = dict.fromkeys((aten.convolution, aten._convolution, aten.mm, aten.bmm), 0)
    first |= dict.fromkeys((aten.addmm, aten.baddbmm), 1)  # whose first argument is what is added

    def counter(bytes_of: Callable[..., int]) -> FlopCounterMode:
        """Counts bytes where torch's own counts operations: `bytes_of` takes the shapes of input,
        weight, output."""

        def formula(at: int) -> Callable[..., int]:
            return lambda *shapes, out_shape, **_: bytes_of(shapes[at], shapes[at + 1], out_shape)

        return FlopCounterMode(
            display=False, custom_mapping={op: formula(at) for op, at in first.items()}
        )

    activations = counter(lambda x, weight, out: 4 * (math.prod(x) + math.prod(out)))
    weights = counter(lambda x, weight, out: 4 * math.prod(weight))
    operations = FlopCounterMode(display=False)  # two for each multiply-accumulate
    with torch.no_grad(), activations, weights, operations:
        call()
    return WorkloadCost(
        operations.get_total_flops() // 2, activations.get_total_flops(), weights.get_total_flops()
    )


_LONG_S = 0.06
"""Seconds for a matrix product after which no larger one is tried."""


class _Probe(Runner):
    """A large matrix product or a large copy.

    Attributes:
        amount: work of one call, in MAC or in bytes.
        seconds: the fastest call so far.
    """

    faces = 1

    def __init__(self, call: Callable[[], object], amount: float) -> None:
        import torch
        from torch.utils.benchmark import Timer

        self._timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
        self.amount, self.seconds = amount, math.inf

    def run(self) -> None:
        times = self._timer.blocked_autorange(min_run_time=_LONG_S / 2).times
        self.seconds = min(self.seconds, *times)

    def stages(self) -> dict[str, float]:
        return {"per_second": self.amount / self.seconds}


def probes(
    device: torch.device, side: int | None = None, copy_bytes: int | None = None
) -> list[Candidate]:
    """Candidates that measure the machine, among the others: matrix products and a copy.

    Their `Runner.stages` holds ``per_second``, the best rate measured: MAC/s, or bytes/s read and
    written.

    Args:
        device: where.
        side: of the square matrices, or a half, a quarter, ... of it where that would take too
            long; None takes 8192 on a GPU, 2048 elsewhere.
        copy_bytes: size of what is copied; None takes 1 GiB on a GPU, 256 MiB elsewhere.
    """
    gpu = device.type == "cuda"
    dtypes = ("fp32", "tf32", "bf16", "fp16") if gpu else ("fp32", "bf16")
    side = side or (8192 if gpu else 2048)
    size = copy_bytes or (2**30 if gpu else 2**28)
    products = [_product(device, dtype, side) for dtype in dtypes]
    return [
        *products,
        Candidate("copy", lambda: _copy(device, size), {"path": PROBE, "dtype": "bytes"}),
    ]


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

    def multiply() -> None:
        allowed = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
        torch.mm(a, b)
        torch.backends.cuda.matmul.allow_tf32 = allowed

    return _Probe(multiply, float(side) ** 3)


def _copy(device: torch.device, size: int) -> Runner:
    import torch

    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return _Probe(lambda: target.copy_(source), 2.0 * size)


@dataclass(frozen=True)
class Limit:
    """The limits of one dtype.

    Attributes:
        dtype: of the matrix product.
        arithmetic_ms: a face, direct convolution.
        memory_ms: a face, activations and (batch 1) weights moved once at the rate of a large copy.
    """

    dtype: str
    arithmetic_ms: float
    memory_ms: float


def limits(work: WorkloadCost, rates: dict[str, float]) -> dict[str, Limit]:
    """Limits by dtype.

    Args:
        work: of one face.
        rates: dtype to MAC/s, and ``bytes`` to bytes/s.
    """
    by_dtype = {}
    for dtype, rate in rates.items():
        if dtype != "bytes":
            share = 1.0 if dtype in ("fp32", "tf32") else 0.5
            moved = share * (work.activation_bytes + work.weight_bytes)
            memory_ms = moved / rates["bytes"] * 1e3 if "bytes" in rates else math.nan
            by_dtype[dtype] = Limit(dtype, work.macs / rate * 1e3, memory_ms)
    return by_dtype
