"""Enhance one batch while the host generates the next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


def overlapped(enhance: Callable[[Any], Any], batches: Iterable[Any], depth: int = 1) -> Iterator[Any]:
    """Hand out ``enhance(batch)`` for each of `batches`, in order, while the next ones are generated.

    `enhance` runs in one thread of its own, on a CUDA stream of its own where there is a GPU: the host's kernels
    and ours share the device instead of waiting for each other. On a CPU both share the cores.

    Args:
        enhance: a `GFPGANEnhancer`, or any callable batch -> batch that gives work on its stream back finished
            (arrays are; a CUDA tensor is waited for here).
        batches: a generator of the host's; it is advanced in the calling thread, at most `depth` batches ahead.
        depth: batches that may wait.

    Raises:
        Exception: whatever `enhance` raises, when the batch's turn comes.

    >>> list(overlapped(lambda batch: batch + 1, iter([1, 2, 3])))
    [2, 3, 4]
    """
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="enhance") as pool:
        for batch in batches:
            waiting.append(pool.submit(_on_side_stream, enhance, batch, _ready_events(batch), _device(batch)))
            while len(waiting) > depth:
                yield _handed_over(waiting.popleft().result())
        while waiting:
            yield _handed_over(waiting.popleft().result())


def _cuda() -> Any:
    import torch

    return torch.cuda if torch.cuda.is_available() else None


def _tensors(batch: Any) -> list[Any]:
    """The CUDA tensors of a batch: itself, or those of a list or tuple."""
    import torch

    each = batch if isinstance(batch, (list, tuple)) else [batch]
    return [frame for frame in each if isinstance(frame, torch.Tensor) and frame.is_cuda]


def _device(batch: Any) -> int | None:
    """Number of the GPU: the batch's, or else the calling thread's current one, which the other thread has not."""
    cuda = _cuda()
    if cuda is None:
        return None
    found: int = next((tensor.device.index for tensor in _tensors(batch)), cuda.current_device())
    return found


def _ready_events(batch: Any) -> list[Any]:
    """Events after which the CUDA tensors of the host's are complete."""
    import torch

    return [torch.cuda.current_stream(device).record_event() for device in {each.device for each in _tensors(batch)}]


def _on_side_stream(enhance: Callable[[Any], Any], batch: Any, ready: list[Any], device: int | None) -> Any:
    cuda = _cuda()
    if cuda is None or device is None:
        return enhance(batch)
    stream = _side_stream(device)
    with cuda.stream(stream):  # and with it, its device
        for event in ready:
            stream.wait_event(event)
        for tensor in _tensors(batch):
            tensor.record_stream(stream)
        done = enhance(batch)
        stream.synchronize()
    return done


def _handed_over(done: Any) -> Any:
    """`done`, made on the side stream: its memory is not used anew while the host's stream reads it."""
    import torch

    for tensor in _tensors(done):
        tensor.record_stream(torch.cuda.current_stream(tensor.device))
    return done


_STREAMS: dict[int, Any] = {}


def _side_stream(index: int) -> Any:
    """One stream for each device, made once: the allocator keeps a pool of memory for every stream."""
    import torch

    if index not in _STREAMS:
        _STREAMS[index] = torch.cuda.Stream(index)  # type: ignore[no-untyped-call]
    return _STREAMS[index]
