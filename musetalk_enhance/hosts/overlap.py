"""Enhance one batch while the host generates the next.

`overlapped` is for a host that has a generator of batches. `Ahead` is for a host that calls a
function and hands single frames of its result to another thread: what it gets are frames that are
not there yet, and whoever looks at one waits for it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from ..errors import HostError

logger = logging.getLogger("musetalk_enhance")


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


class PendingFrame:
    """A frame that is not there yet; what an array has waits for it: ``astype``, ``shape``, ...

    ``numpy.asarray(frame)`` is the array itself, (H, W, 3).
    """

    def __init__(self, batch: Future[Any], index: int) -> None:
        self._batch, self._index = batch, index

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        frame = self._batch.result()[self._index]
        return np.array(frame, dtype) if copy else np.asarray(frame, dtype)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._batch.result()[self._index], name)

    def __getitem__(self, key: Any) -> Any:
        return self._batch.result()[self._index][key]

    def __len__(self) -> int:
        return len(self._batch.result()[self._index])


class PendingFrames(Sequence[Any]):
    """A batch of `PendingFrame`; its length is known at once, all else waits for it."""

    def __init__(self, batch: Future[Any], count: int) -> None:
        self._batch, self._count = batch, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int):
            return PendingFrame(self._batch, range(self._count)[index])
        return self._batch.result()[index]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._batch.result(), name)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        batch = self._batch.result()
        return np.array(batch, dtype) if copy else np.asarray(batch, dtype)


class Ahead:
    """Enhances batches in order in a thread of its own while the host goes on.

    Args:
        depth: batches that may be unfinished; a host that is faster waits for the oldest.
    """

    def __init__(self, depth: int = 2) -> None:
        self._depth = depth
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="enhance")
        self._unfinished: deque[Future[Any]] = deque()
        self._errors: deque[Exception] = deque()

    def submit(
        self, enhance: Callable[[Any], Any], frames: Any, on_error: str = "passthrough"
    ) -> PendingFrames:
        """Frames that will be ``enhance(frames)``, or `frames` themselves where that fails.

        Args:
            enhance: called in the thread, one batch after the other.
            frames: (N, H, W, 3) array or (N, 3, H, W) tensor, which the host does not change.
            on_error: as the option; with ``"raise"`` the next call raises what this batch did. Its
                frames are `frames` all the same: the thread that waits for them may not survive.

        Raises:
            Exception: whatever an earlier `enhance` raised.
        """
        while len(self._unfinished) >= self._depth:
            self._unfinished.popleft().result()
        self._raise()
        events, device = _ready_events(frames), _device(frames)
        errors = self._errors if on_error == "raise" else None
        batch = self._pool.submit(_enhanced_or_given, enhance, frames, events, device, errors)
        self._unfinished.append(batch)
        return PendingFrames(batch, len(frames))

    def close(self) -> None:
        """Finish what is under way; frames that were handed out stay usable.

        Raises:
            Exception: as `submit`.
        """
        self._pool.shutdown()
        self._raise()

    def _raise(self) -> None:
        if self._errors:
            error = self._errors.popleft()
            self._errors.clear()
            raise error


def _enhanced_or_given(
    enhance: Callable[[Any], Any],
    frames: Any,
    events: list[Any],
    device: int | None,
    errors: deque[Exception] | None,
) -> Any:
    try:
        result = _on_side_stream(enhance, frames, events, device)
        if len(result) != len(frames):
            raise HostError(f"{len(result)} frames came back for {len(frames)}")
        return result
    except Exception as error:
        if errors is not None:
            errors.append(error)
        # a host that loses a frame loses its audio too, or waits for it for ever
        logger.warning("a batch is returned as it was", exc_info=True)
        if isinstance(frames, np.ndarray):
            return frames
        return frames.permute(0, 2, 3, 1).contiguous().cpu().numpy()


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
