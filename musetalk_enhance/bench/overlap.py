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
            waiting.append(pool.submit(_on_side_stream, enhance, batch, _ready_event(batch)))
            while len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _cuda() -> Any:
    import torch

    return torch.cuda if torch.cuda.is_available() else None


def _ready_event(batch: Any) -> Any:
    """An event after which a CUDA tensor of the host's is complete; None for anything else."""
    import torch

    if not (isinstance(batch, torch.Tensor) and batch.is_cuda):
        return None
    return torch.cuda.current_stream(batch.device).record_event()


def _on_side_stream(enhance: Callable[[Any], Any], batch: Any, ready: Any) -> Any:
    cuda = _cuda()
    if cuda is None:
        return enhance(batch)
    stream = _side_stream()
    with cuda.stream(stream):
        if ready is not None:
            stream.wait_event(ready)
            batch.record_stream(stream)
        done = enhance(batch)
        stream.synchronize()
    return done


_STREAMS: dict[int, Any] = {}


def _side_stream() -> Any:
    """One stream for each device, made once: the allocator keeps a pool of memory for every stream."""
    import torch

    index = torch.cuda.current_device()
    if index not in _STREAMS:
        _STREAMS[index] = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    return _STREAMS[index]
