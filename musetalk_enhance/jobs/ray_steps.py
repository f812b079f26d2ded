"""What runs on the workers of a Ray cluster: the three steps, and how values are passed between
them.

Between two steps a unit is one row of an Arrow table, pickled into one binary value: blocks stay
whole, no types are inferred, and it is read in place from Ray's shared memory. An error is passed
on in place of the result: Ray neither retries nor wraps it, and the caller gets the original error.
"""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import RestorerError
from .job import Processor, ProcessorFactory

ATTEMPTS = 3
"""How often a unit may kill its worker, by a crash or for lack of memory, before the job is
aborted."""
COLUMN = "unit"


class ElsewhereError(Exception):
    """The traceback of an error in another process: the ``__cause__`` of that error."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


@dataclass(frozen=True)
class Failure:
    """An error on its way to the caller.

    Attributes:
        error: the error.
        trace: its traceback as text.
    """

    error: Exception
    trace: str = ""

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """From an error that is being handled; one that cannot be pickled becomes a
        `RestorerError`."""
        try:
            same = type(pickle.loads(pickle.dumps(error))) is type(error)
        except Exception:
            same = False
        trace = "".join(traceback.format_exception(error))
        return cls(error if same else RestorerError(f"{type(error).__name__}: {error}"), trace)

    def throw(self) -> None:
        """Raise the error.

        Raises:
            Exception: the error.
        """
        raise self.error from ElsewhereError(self.trace)


def pack(number: int, value: Any) -> Any:
    """A unit's number and its value, as an Arrow table of one row."""
    import pyarrow as pa

    return pa.table(
        {COLUMN: pa.array([pickle.dumps((number, value), protocol=5)], pa.large_binary())}
    )


def unpack(table: Any) -> tuple[int, Any]:
    """Inverse of `pack`."""
    number, value = pickle.loads(table.column(COLUMN)[0].as_buffer())
    return number, value


class Attempts:
    """Counts, as an actor, how often a step of a unit was started and did not end."""

    def __init__(self) -> None:
        self._begun: dict[tuple[str, int], int] = {}

    def begin(self, step: str, number: int) -> int:
        """Record a start; returns how often it started without an end, this time included."""
        self._begun[step, number] = self._begun.get((step, number), 0) + 1
        return self._begun[step, number]

    def end(self, step: str, number: int) -> None:
        """Record an end, with a result or an error."""
        self._begun.pop((step, number), None)


def run_step(table: Any, name: str, step: Callable[[Any], Any], attempts: Any) -> Any:
    """Run one step of one unit, in a task or an actor of Ray; never raises an `Exception` of the
    step.

    Args:
        table: made by `pack`.
        name: of the step.
        step: the function to call.
        attempts: an `Attempts` actor.
    """
    import ray

    number, value = unpack(table)
    if isinstance(value, Failure):
        return table
    count = ray.get(attempts.begin.remote(name, number))
    try:
        if count > ATTEMPTS:
            raise RestorerError(
                f"unit {number}, step {name!r}: its worker process died {count - 1} times in a "
                "row. See Ray's logs; the usual reason is too little CPU or GPU memory"
            )
        packed = pack(number, step(value))
    except Exception as error:
        packed = pack(number, Failure.of(error))
    attempts.end.remote(name, number)
    return packed


class ProcessStep:
    """The middle step: an actor that holds the networks. They are loaded with its first unit.

    Args:
        make_processor: loads them.
        threads: number of CPU threads.
        attempts: an `Attempts` actor.
    """

    def __init__(self, make_processor: ProcessorFactory, threads: int, attempts: Any) -> None:
        set_threads(str(threads))
        self._make_processor, self._attempts = make_processor, attempts
        self._processor: Processor | None = None

    def __call__(self, table: Any) -> Any:
        return run_step(table, "restore", self._process, self._attempts)

    def _process(self, loaded: Any) -> Any:
        if self._processor is None:
            self._processor = self._make_processor()
        return self._processor.finish(self._processor.process(self._processor.prepare(loaded)))


def set_threads(threads: str | None) -> None:
    """Set ``OMP_NUM_THREADS`` of a worker before torch is imported. Ray sets it to 1, which changes
    sums.

    Args:
        threads: None for all cores.
    """
    if threads is None:
        os.environ.pop("OMP_NUM_THREADS", None)
    else:
        os.environ["OMP_NUM_THREADS"] = threads


def worker_run_info(factory: ProcessorFactory, threads: str | None) -> bytes:
    """Load the networks as a worker would, and return what runs: pickled `RunInfo`, or a pickled
    `Failure`.

    Args:
        factory: loads them.
        threads: ``OMP_NUM_THREADS`` of the caller, None if it is not set.
    """
    set_threads(threads)
    answer: Any
    try:
        processor = factory()
        answer = processor.run_info
        processor.close()
    except Exception as error:
        answer = Failure.of(error)
    return pickle.dumps(answer)
