"""Enhance one batch while the host generates the next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


def overlapped(
    enhance: Callable[[Any], Any], batches: Iterable[Any], depth: int = 1
) -> Iterator[Any]:
    """Yield ``enhance(batch)`` for each of `batches`, in order, while the next ones are generated.

    `enhance` runs in one thread of its own, and on a CUDA stream of its own if there is a GPU: the
    host's kernels and the enhancer's share the device instead of waiting for each other. On a CPU
    both share the cores.

    Args:
        enhance: a `GFPGANEnhancer`, or any callable batch -> batch whose result is complete when it
            returns (arrays are; CUDA tensors are waited for here).
        batches: the host's generator; it is advanced in the calling thread, at most `depth` batches
            ahead.
        depth: number of batches that may be queued.

    Raises:
        Exception: whatever `enhance` raises, when its batch is due.

    >>> list(overlapped(lambda batch: batch + 1, iter([1, 2, 3])))
    [2, 3, 4]
    """
    queue: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="enhance") as pool:
        for batch in batches:
            events, device = _ready_events(batch), _device(batch)
            queue.append(pool.submit(_on_side_stream, enhance, batch, events, device))
            while len(queue) > depth:
                yield _recorded(queue.popleft().result())
        while queue:
            yield _recorded(queue.popleft().result())


def _cuda() -> Any:
    import torch

    return torch.cuda if torch.cuda.is_available() else None


def _tensors(batch: Any) -> list[Any]:
    """The CUDA tensors of a batch: itself, or those of a list or tuple."""
    import torch

    frames = batch if isinstance(batch, (list, tuple)) else [batch]
    return [frame for frame in frames if isinstance(frame, torch.Tensor) and frame.is_cuda]


def _device(batch: Any) -> int | None:
    """Index of the batch's GPU, else of the calling thread's current one.

    The current device is per thread: the worker's own may be another.
    """
    cuda = _cuda()
    if cuda is None:
        return None
    indices = (tensor.device.index for tensor in _tensors(batch))
    index: int = next(indices, cuda.current_device())
    return index


def _ready_events(batch: Any) -> list[Any]:
    """Events after which the host's CUDA tensors are complete."""
    import torch

    devices = {tensor.device for tensor in _tensors(batch)}
    return [torch.cuda.current_stream(device).record_event() for device in devices]


def _on_side_stream(
    enhance: Callable[[Any], Any], batch: Any, events: list[Any], device: int | None
) -> Any:
    cuda = _cuda()
    if cuda is None or device is None:
        return enhance(batch)
    stream = _side_stream(device)
    with cuda.stream(stream):  # which also sets its device
        for event in events:
            stream.wait_event(event)
        for tensor in _tensors(batch):
            tensor.record_stream(stream)
        result = enhance(batch)
        stream.synchronize()
    return result


def _recorded(result: Any) -> Any:
    """`result` with its memory, allocated on the side stream, kept until the host's has read it."""
    import torch

    for tensor in _tensors(result):
        tensor.record_stream(torch.cuda.current_stream(tensor.device))
    return result


_STREAMS: dict[int, Any] = {}


def _side_stream(index: int) -> Any:
    """One stream per device, created once: the allocator keeps a memory pool for every stream."""
    import torch

    if index not in _STREAMS:
        _STREAMS[index] = torch.cuda.Stream(index)  # type: ignore[no-untyped-call]
    return _STREAMS[index]
