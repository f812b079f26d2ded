"""The work on this machine, in this process: while one unit is restored, the next is read and the last written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from .job import Job, Processor, ProcessorFactory, UnitCallback
from .manifest import State, Unit

if TYPE_CHECKING:
    from .models import RunInfo

AHEAD = 1
"""Units that are read before they are wanted; as many may wait to be written."""


class LocalEngine:
    """Runs the work here.

    Args:
        maker: networks that are loaded already, and stay the caller's; None loads them when they are wanted.
    """

    def __init__(self, processor: Processor | None = None) -> None:
        self._given = processor
        self._kept: Processor | None = None

    def run_info(self, factory: ProcessorFactory) -> RunInfo:
        """See `Engine.facts`. The networks stay loaded for the work that follows."""
        if self._given is not None:
            return self._given.run_info
        self.close()
        self._kept = factory()
        return self._kept.run_info

    def run(self, job: Job, done: UnitCallback) -> None:
        """See `Engine.run`. Networks that it loaded are given back."""
        try:
            if not job.units:
                return
            if self._given is None and self._kept is None:
                self._kept = job.make_processor()
            processor = self._given or self._kept
            assert processor is not None
            with ThreadPoolExecutor(1, "read") as readers, ThreadPoolExecutor(1, "write") as writers:
                self._run(job, processor, done, readers, writers)
        finally:
            self.close()

    def close(self) -> None:
        """See `Engine.close`."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.close()

    def _run(
        self, job: Job, processor: Processor, done: UnitCallback, readers: ThreadPoolExecutor, writers: ThreadPoolExecutor
    ) -> None:
        coming: deque[Future[Any]] = deque()
        going: deque[Future[Any]] = deque()
        units = iter(job.units)
        try:
            while True:
                _fill(coming, units, AHEAD + 1, lambda unit: readers.submit(_before, job, processor, unit))
                if not coming:
                    break
                made = processor.process(coming.popleft().result())
                going.append(writers.submit(_after, job, processor, made))
                del made  # the writer holds it
                while going and (len(going) > AHEAD or going[0].done()):
                    done(going.popleft().result())
            while going:
                done(going.popleft().result())
        finally:
            for waiting in (*coming, *going):
                waiting.cancel()


def _before(job: Job, processor: Processor, unit: Unit) -> Any:
    return processor.prepare(job.read(unit))


def _after(job: Job, processor: Processor, made: Any) -> State:
    return job.write(processor.finish(made))


def _fill(coming: deque[Future[Any]], units: Any, size: int, submit: Callable[[Any], Future[Any]]) -> None:
    while len(coming) < size:
        unit = next(units, None)
        if unit is None:
            return
        coming.append(submit(unit))
