"""Runs a job in this process: reading, restoring and writing of neighboring units overlap."""

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
"""Units read ahead of the network; as many may wait to be written."""


class LocalEngine:
    """Runs jobs in this process.

    Args:
        processor: a processor with its networks already loaded, which stays the caller's; None
            loads one when it is needed.
    """

    def __init__(self, processor: Processor | None = None) -> None:
        self._external = processor
        self._loaded: Processor | None = None

    def run_info(self, factory: ProcessorFactory) -> RunInfo:
        """See `Engine.run_info`. The networks stay loaded for the job that follows."""
        if self._external is not None:
            return self._external.run_info
        self.close()
        self._loaded = factory()
        return self._loaded.run_info

    def run(self, job: Job, on_unit: UnitCallback) -> None:
        """See `Engine.run`. Networks that it loaded are released."""
        try:
            if not job.units:
                return
            if self._external is None and self._loaded is None:
                self._loaded = job.make_processor()
            processor = self._external or self._loaded
            assert processor is not None
            with (
                ThreadPoolExecutor(1, "read") as readers,
                ThreadPoolExecutor(1, "write") as writers,
            ):
                self._run(job, processor, on_unit, readers, writers)
        finally:
            self.close()

    def close(self) -> None:
        """See `Engine.close`."""
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            loaded.close()

    def _run(
        self,
        job: Job,
        processor: Processor,
        on_unit: UnitCallback,
        readers: ThreadPoolExecutor,
        writers: ThreadPoolExecutor,
    ) -> None:
        inputs: deque[Future[Any]] = deque()
        results: deque[Future[Any]] = deque()
        units = iter(job.units)
        try:
            while True:
                _fill(
                    inputs,
                    units,
                    AHEAD + 1,
                    lambda unit: readers.submit(_prepare, job, processor, unit),
                )
                if not inputs:
                    break
                processed = processor.process(inputs.popleft().result())
                results.append(writers.submit(_finish, job, processor, processed))
                del processed  # the writer holds it
                while results and (len(results) > AHEAD or results[0].done()):
                    on_unit(results.popleft().result())
            while results:
                on_unit(results.popleft().result())
        finally:
            for future in (*inputs, *results):
                future.cancel()


def _prepare(job: Job, processor: Processor, unit: Unit) -> Any:
    return processor.prepare(job.read(unit))


def _finish(job: Job, processor: Processor, processed: Any) -> State:
    return job.write(processor.finish(processed))


def _fill(
    inputs: deque[Future[Any]], units: Any, size: int, submit: Callable[[Any], Future[Any]]
) -> None:
    while len(inputs) < size:
        unit = next(units, None)
        if unit is None:
            return
        inputs.append(submit(unit))
