"""torch: eager, in the order and type that suit the device; CUDA graphs where they win."""

from __future__ import annotations

import copy
import inspect
import logging
import math
import time
from functools import cache
from typing import TYPE_CHECKING, Any

from ..errors import RestorerError
from ..runtime.memory import is_out_of_memory
from ..runtime.precision import without_autocast
from .base import Backend, NetworkSpec

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("musetalk_enhance")

BUCKETS = (1, 2, 4, 8, 16, 32, 64)
"""Batch sizes that get a CUDA graph; others are filled up to the next one."""

_EMULATED = 8.0  # times slower than fp32, from which on a dtype has no instructions of its own


class TorchBackend(Backend):
    """Runs a `torch.nn.Module` under inference mode.

    Args:
        spec: the network. In fp32 on the CPU its module is used as it is, otherwise a copy.
        device: where it runs.
        dtype: ``"fp32"``, ``"bf16"`` or ``"fp16"``; buffers that a module names in ``full_precision`` stay fp32.
        graphs: whether CUDA graphs may be tried; they keep memory of their own for every bucket.
    """

    name = "torch"

    def __init__(self, spec: NetworkSpec, device: torch.device, dtype: str = "fp32", graphs: bool = True) -> None:
        import torch

        self.dtype = dtype
        self._type = _type(dtype)
        self._asked, self._device = dtype, device
        self._order = torch.channels_last if spec.channels_last else torch.contiguous_format
        shared = dtype == "fp32" and device.type == "cpu"
        self.module = cast(spec.module if shared else copy.deepcopy(spec.module), self._type).to(device)
        if spec.channels_last:
            self.module.to(memory_format=self._order)
        self._may_graph = graphs
        self._graphs: dict[tuple[int, ...], _Graph | None] = {}  # None: running was quicker

    def run(self, batch: torch.Tensor) -> torch.Tensor:
        """See `Backend.run`."""
        import torch

        with torch.inference_mode(), without_autocast(batch.device):
            faces = batch.to(self._type).contiguous(memory_format=self._order)
            if self._may_graph and faces.is_cuda and len(faces) <= BUCKETS[-1]:
                return self._graphed(faces).float()
            restored: torch.Tensor = self.module(faces)
            return restored.float()

    @property
    def forms(self) -> tuple[str, ...]:
        """See `Backend.forms`."""
        from .ops import Modulated

        parts = () if self.module is None else self.module.modules()
        return tuple(part.form for part in parts if isinstance(part, Modulated))

    def _graphed(self, faces: torch.Tensor) -> torch.Tensor:
        import torch

        count = len(faces)
        bucket = next(size for size in BUCKETS if size >= count)
        key = (bucket, *faces.shape[1:])
        if key not in self._graphs:
            filled = torch.cat([faces, faces[-1:].expand(bucket - count, -1, -1, -1)])
            try:
                graph = _Graph(self.module, filled.contiguous(memory_format=self._order))
            except RuntimeError as error:
                self._graphs.clear()
                if is_out_of_memory(error):
                    raise
                logger.warning("CUDA graphs are off: %s", error)
                self._may_graph = False
            else:
                self._graphs[key] = graph if graph.wins else None
            del filled
        known = self._graphs.get(key)
        return known.replay(faces) if known else self.module(faces)

    def to(self, device: torch.device) -> None:
        """See `Backend.to`. Off a GPU it works in fp32: on the CPU, less may take many times as long."""
        self._graphs.clear()
        if device.type != self._device.type:
            self.dtype = "fp32" if device.type == "cpu" else self._asked
            self._type = _type(self.dtype)
        self._device = device
        cast(self.module.to(device), self._type)

    def close(self) -> None:
        """See `Backend.close`."""
        self._graphs.clear()
        self.module = None  # type: ignore[assignment]


def _alone() -> dict[str, Any]:
    """What keeps a capture from failing at, and from breaking, what other threads of the host do on the GPU."""
    import torch

    known = inspect.signature(torch.cuda.graph.__init__).parameters
    return {"capture_error_mode": "thread_local"} if "capture_error_mode" in known else {}  # since torch 2.1


class _Graph:
    """One batch size, captured. `wins` says whether replaying was quicker than running, or as quick."""

    def __init__(self, module: torch.nn.Module, faces: torch.Tensor) -> None:
        import torch

        with torch.cuda.device(faces.device):  # a capture sees the streams of the current device only
            self._capture(module, faces)

    def _capture(self, module: torch.nn.Module, faces: torch.Tensor) -> None:
        import torch

        self._input = faces.clone()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                expected = module(self._input)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # torch's own stream for captures belongs to the device that was current when it was first asked for
        with torch.cuda.graph(self._graph, stream=side, **_alone()):
            self._output = module(self._input)
        self._output.zero_()  # a graph that captured nothing would leave in it what is right by chance
        self._graph.replay()
        if not torch.allclose(self._output.float(), expected.float(), atol=1e-2):
            raise RuntimeError("a captured batch came out different")
        self.wins = _seconds(self._graph.replay) <= 1.02 * _seconds(lambda: module(self._input))

    def replay(self, faces: torch.Tensor) -> torch.Tensor:
        """Run the graph on (n, C, H, W), n not above its size; the answer is the caller's own."""
        count = len(faces)
        self._input[:count].copy_(faces)
        self._graph.replay()
        restored: torch.Tensor = self._output[:count].clone()
        return restored


def _type(dtype: str) -> torch.dtype:
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]


def _seconds(function: object, times: int = 5) -> float:
    import torch

    assert callable(function)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(times):
        function()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / times


@cache
def is_emulated(dtype: str, side: int = 256) -> bool:
    """Whether torch on this CPU multiplies in `dtype` over 8 times slower than in fp32.

    A CPU without instructions for bf16 or fp16 takes minutes for a face of GFPGAN.

    Args:
        dtype: ``"fp32"``, ``"bf16"`` or ``"fp16"``; any other name is not emulated.
        side: of the square matrices that are multiplied.
    """
    import torch

    def seconds(name: str) -> float:
        a, b = (torch.ones(side, side, dtype=_type(name)) for _ in range(2))
        best = math.inf
        for _ in range(3):
            start = time.perf_counter()
            torch.mm(a, b)
            best = min(best, time.perf_counter() - start)
        return best

    return dtype in ("bf16", "fp16") and seconds(dtype) > _EMULATED * seconds("fp32")


def cast(module: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """Bring the floating tensors of `module` to `dtype`, in place, but for those it names in ``full_precision``.

    Raises:
        RestorerError: a tensor is on no device.
    """
    for part in module.modules():
        kept = getattr(part, "full_precision", ())
        for store in (part._parameters, part._buffers):
            for name, tensor in store.items():
                if tensor is None or not tensor.is_floating_point() or name in kept:
                    continue
                if tensor.is_meta:
                    raise RestorerError(f"{name} of {type(part).__name__} has no values")
                tensor.data = tensor.data.to(dtype)
    return module
