"""Gathers the faces of requests that arrive at about the same time into batches for the network."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from ..errors import RestorerError
from ..pipeline.engine import Engine, Request, Restored

logger = logging.getLogger("musetalk_enhance")


@dataclass(frozen=True)
class _Entry:
    """A request that waits for the network."""

    engine: Engine
    request: Request
    faces: int
    future: Future[Restored] = field(default_factory=Future)


class Batcher:
    """One thread that runs the engines over one network, each time with all requests that wait.

    Args:
        size: faces of a full batch.
        wait_s: seconds that the first request waits for others if the batch is not full.
        on_batch: called with the number of faces of each batch.
    """

    def __init__(
        self, size: int, wait_s: float, on_batch: Callable[[int], None] | None = None
    ) -> None:
        self.size, self._wait_s, self._on_batch = max(1, size), wait_s, on_batch
        self._entries: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._postponed: list[_Entry] = []
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, engine: Engine, request: Request) -> Future[Restored]:
        """Queue a request. Cancelling its future drops it, if the network has not begun it.

        Requests of one stream are run in the order in which they are submitted.

        Raises:
            RestorerError: the batcher was closed.
        """
        entry = _Entry(engine, request, len(request.frames))
        with self._lock:
            if self._closed:
                raise RestorerError("this model was closed; send the request again")
            self._entries.put(entry)
        return entry.future

    def close(self) -> None:
        """Run what is queued, and end the thread."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._entries.put(None)
        self._thread.join()

    def _work(self) -> None:
        is_open = True
        while is_open or self._postponed:
            batch, is_open = self._gather(is_open)
            batch = [entry for entry in batch if entry.future.set_running_or_notify_cancel()]
            if not batch:
                continue
            if self._on_batch is not None:
                self._on_batch(sum(entry.faces for entry in batch))
            for engine in {id(entry.engine): entry.engine for entry in batch}.values():
                _run(engine, [entry for entry in batch if entry.engine is engine])

    def _gather(self, is_open: bool) -> tuple[list[_Entry], bool]:
        """The entries of the next batch, and whether more may come."""
        waiting, self._postponed = self._postponed, []
        batch: list[_Entry] = []
        streams: set[int] = set()
        faces, until = 0, 0.0
        while waiting or (is_open and faces < self.size):
            if waiting:
                entry: _Entry | None = waiting.pop(0)
            else:
                try:
                    timeout = max(0.0, until - time.monotonic()) if batch else None
                    entry = self._entries.get(timeout=timeout)
                except queue.Empty:
                    break
            if entry is None:
                is_open = False
            elif id(entry.request.stream) in streams:
                self._postponed.append(entry)  # a stream is in a batch once
            else:
                if not batch:
                    until = time.monotonic() + self._wait_s
                batch.append(entry)
                streams.add(id(entry.request.stream))
                faces += entry.faces
        return batch, is_open


def _run(engine: Engine, batch: Sequence[_Entry]) -> None:
    """Run requests together; if that fails, each alone, so that one cannot harm the others."""
    try:
        results: Sequence[Restored | BaseException] = engine.restore(
            [entry.request for entry in batch]
        )
    except Exception as error:
        if len(batch) > 1:
            logger.warning("a batch of %d requests failed: running each alone", len(batch))
            for entry in batch:
                _run(engine, [entry])
            return
        results = [error]
    for entry, result in zip(batch, results, strict=True):
        if isinstance(result, BaseException):
            entry.future.set_exception(result)
        else:
            entry.future.set_result(result)
