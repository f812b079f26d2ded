"""torch: eager, in the memory order and dtype that suit the device; CUDA graphs where they help."""

from __future__ import annotations

import copy
import inspect
import logging
import math
import time
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from ..errors import RestorerError
from ..runtime import memory
from ..runtime.precision import without_autocast
from .base import Backend, NetworkSpec

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("musetalk_enhance")

MAX_GRAPHS = 8
"""Batch sizes that may have a CUDA graph; further sizes run eagerly."""
LAUNCH_SHARE = 0.5
"""Share of a batch's time that launching its kernels takes, below which a graph saves nothing: the
GPU is busy for longer than the launches take."""

Forward = Callable[["torch.Tensor"], "torch.Tensor"]
_EMULATED = 8.0  # times slower than fp32 from which a dtype has no instructions of its own


class TorchBackend(Backend):
    """Runs a `torch.nn.Module` in inference mode.

    A CUDA graph is captured when a batch size comes for the second time and launching its kernels
    is what takes the time; sizes are not rounded up. All graphs share one memory pool, which
    `memory.free_bytes` takes into account, and all are dropped when memory runs out.

    ``"fp32"`` follows torch's own switches: convolutions on an NVIDIA GPU multiply in TF32 unless
    ``torch.backends.cudnn.allow_tf32`` is False. The switch belongs to the whole process, so it is
    left to the host.

    Args:
        spec: the network. In fp32 on the CPU its module is used as it is, otherwise a copy.
        device: where it runs.
        dtype: ``"fp32"``, ``"bf16"`` or ``"fp16"``; buffers that a module names in
            ``full_precision`` stay fp32.
        graphs: whether CUDA graphs may be used.
    """

    name = "torch"

    def __init__(
        self, spec: NetworkSpec, device: torch.device, dtype: str = "fp32", graphs: bool = True
    ) -> None:
        import torch

        self.dtype = dtype
        self._type = _type(dtype)
        self._asked, self._device = dtype, device
        self._order = torch.channels_last if spec.channels_last else torch.contiguous_format
        shared = dtype == "fp32" and device.type == "cpu"
        assert spec.module is not None
        module = spec.module if shared else copy.deepcopy(spec.module)
        self.module = cast(module, self._type).to(device)
        if spec.channels_last:
            self.module.to(memory_format=self._order)
        self._graphs: _Graphs | None = _Graphs(self._forward) if graphs else None

    def run(self, batch: torch.Tensor) -> torch.Tensor:
        """See `Backend.run`."""
        import torch

        with torch.inference_mode(), without_autocast(batch.device):
            faces = batch.to(self._type).contiguous(memory_format=self._order)
            if self._graphs is None or not faces.is_cuda:
                return self._forward(faces).float()
            try:
                return self._graphs.run(faces).float()
            except Exception as error:
                if not memory.is_out_of_memory(error) or not self._graphs.clear():
                    raise
                memory.forget_locals(error)
            logger.warning("out of memory: CUDA graphs are off for this network")
            self._graphs = None
            memory.release(faces.device)
            return self._forward(faces).float()

    def _forward(self, faces: torch.Tensor) -> torch.Tensor:
        restored: torch.Tensor = self.module(faces)
        return restored

    def to(self, device: torch.device) -> None:
        """See `Backend.to`. On the CPU it works in fp32: less may take many times as long there."""
        if self._graphs is not None:
            self._graphs.clear()
        if device.type != self._device.type:
            self.dtype = "fp32" if device.type == "cpu" else self._asked
            self._type = _type(self.dtype)
        self._device = device
        cast(self.module.to(device), self._type)

    def close(self) -> None:
        """See `Backend.close`."""
        if self._graphs is not None:
            self._graphs.clear()
        self.module = None  # type: ignore[assignment]


class _Graphs:
    """CUDA graphs of one network, by the shape of the batch.

    Args:
        forward: runs the network.
    """

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._graphs: dict[tuple[int, ...], _Graph | None] = {}  # None: runs eagerly
        self._sizes: set[tuple[int, ...]] = set()  # that came once
        self._off = False
        self._pool: Any = None
        self._last: Any = None  # event of the last replay, whatever stream it was on

    def run(self, faces: torch.Tensor) -> torch.Tensor:
        """Run the network on (n, C, H, W), by a graph if there is one for this shape."""
        key = tuple(faces.shape)
        if key not in self._graphs and key in self._sizes and not self._off:
            graphs = [graph for graph in self._graphs.values() if graph is not None]
            self._graphs[key] = self._capture(faces) if len(graphs) < MAX_GRAPHS else None
        self._sizes.add(key)
        graph = self._graphs.get(key)
        return self._forward(faces) if graph is None else self._replay(graph, faces)

    def _replay(self, graph: _Graph, faces: torch.Tensor) -> torch.Tensor:
        """Replay after the last replay has ended: the graphs share their memory."""
        import torch

        stream = torch.cuda.current_stream(faces.device)
        if self._last is not None:
            stream.wait_event(self._last)
        restored = graph.replay(faces)
        self._last = stream.record_event()
        return restored

    def _capture(self, faces: torch.Tensor) -> _Graph | None:
        """A graph for batches like `faces`; None where it saves nothing or fails."""
        import torch

        if not self._is_launch_bound(faces):
            return None
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            return _Graph(self._forward, faces, self._pool)
        except RuntimeError as error:
            logger.warning("CUDA graphs are off: a batch of %d: %s", len(faces), error)
            memory.forget_locals(error)
        self.clear()
        self._off = True
        return None

    def _is_launch_bound(self, faces: torch.Tensor) -> bool:
        import torch

        torch.cuda.synchronize(faces.device)
        start = time.perf_counter()
        self._forward(faces)
        launched_s = time.perf_counter() - start
        torch.cuda.synchronize(faces.device)
        return launched_s > LAUNCH_SHARE * (time.perf_counter() - start)

    def clear(self) -> bool:
        """Drop all graphs and with them their memory; whether there were any."""
        graphs = [graph for graph in self._graphs.values() if graph is not None]
        for graph in graphs:
            graph.close()
        self._graphs.clear()
        self._sizes.clear()
        self._pool = self._last = None
        return bool(graphs)


class _Graph:
    """The captured run of one batch size.

    Raises:
        RuntimeError: the capture failed, or its result differs.
    """

    def __init__(self, forward: Forward, faces: torch.Tensor, pool: Any) -> None:
        import torch

        self._device, self._pool_bytes = faces.device, 0
        with torch.cuda.device(faces.device):  # a capture uses streams of the current device only
            self._input = faces.clone()
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                expected = forward(self._input)
            torch.cuda.current_stream().wait_stream(side)
            torch.cuda.empty_cache()  # of the side stream, so that what is added now is the pool's
            reserved = torch.cuda.memory_reserved()
            self._graph = torch.cuda.CUDAGraph()
            # torch's own capture stream is one of the device that was current when it was created
            with torch.cuda.graph(self._graph, pool=pool, stream=side, **_capture_mode()):
                self._output = forward(self._input)
            self._pool_bytes = max(0, torch.cuda.memory_reserved() - reserved)
            memory.count_graph_pool(self._device, self._pool_bytes)
            self._output.zero_()  # an empty graph would leave in it what is right by chance
            self._graph.replay()
            if not torch.allclose(self._output.float(), expected.float(), atol=1e-2):
                self.close()
                raise RuntimeError("the captured run gives another result")

    def replay(self, faces: torch.Tensor) -> torch.Tensor:
        """Run the graph on a batch of its shape; the result is the caller's own."""
        self._input.copy_(faces)
        self._graph.replay()
        restored: torch.Tensor = self._output.clone()
        return restored

    def close(self) -> None:
        """No longer count its share of the pool, which goes with the last graph."""
        memory.count_graph_pool(self._device, -self._pool_bytes)
        self._pool_bytes = 0


def _capture_mode() -> dict[str, Any]:
    """Keep the capture and the GPU work of the host's other threads from failing each other."""
    import torch

    name = "capture_error_mode"  # since torch 2.1
    parameters = inspect.signature(torch.cuda.graph.__init__).parameters
    return {name: "thread_local"} if name in parameters else {}


def _type(dtype: str) -> torch.dtype:
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]


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
    """Convert the floating-point tensors of `module`, except those in ``full_precision``.

    Args:
        module: converted in place; its submodules may name tensors in ``full_precision``.
        dtype: the new dtype.

    Returns:
        `module`.

    Raises:
        RestorerError: a tensor has no values (it is on the meta device).
    """
    for part in module.modules():
        full_precision = getattr(part, "full_precision", ())
        for store in (part._parameters, part._buffers):
            for name, tensor in store.items():
                if tensor is None or not tensor.is_floating_point() or name in full_precision:
                    continue
                if tensor.is_meta:
                    raise RestorerError(f"{name} of {type(part).__name__} has no values")
                tensor.data = tensor.data.to(dtype)
    return module
