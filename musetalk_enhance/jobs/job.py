"""A job for an engine: units, and the three steps that each goes through."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import EnhanceError
from .manifest import State, Unit

if TYPE_CHECKING:
    from .models import RunInfo


class Processor(Protocol):
    """The middle step: holds the networks.

    It has three parts, one after the other, so that those of neighboring units can overlap; of each
    part one call runs at a time.
    """

    def prepare(self, loaded: Any, /) -> Any:
        """From the result of reading to the input of `process`."""

    def process(self, prepared: Any, /) -> Any:
        """Run the network."""

    def finish(self, processed: Any, /) -> Any:
        """From the result of `process` to what is to be written."""

    @property
    def run_info(self) -> RunInfo:
        """What runs."""

    def close(self) -> None:
        """Release the networks."""


ProcessorFactory = Callable[[], Processor]
"""Loads the networks; can be sent to another process. Its paths must be valid there too."""


@dataclass(frozen=True)
class Job:
    """A job, split into units. Everything here can be sent to another process.

    Attributes:
        units: to be processed, in order.
        read: first step, needs no network: from a unit to the input of the processor.
        make_processor: loads the networks; called once in each worker.
        write: last step: writes the results and then the unit's state, and returns it.
        gpu: whether a processor needs a GPU.
        threads: CPU threads of one processor.
    """

    units: Sequence[Unit]
    read: Callable[[Unit], Any]
    make_processor: ProcessorFactory
    write: Callable[[Any], State]
    gpu: bool = False
    threads: int = 1


UnitCallback = Callable[[State], None]
"""Called with the state of each unit as it is finished, in any order."""


class Engine(Protocol):
    """Runs jobs. It can be used again after `close`."""

    def run_info(self, factory: ProcessorFactory) -> RunInfo:
        """Load the networks where the job will run, and return what runs.

        What was loaded or started for that may be kept for the next `run`.

        Raises:
            EnhanceError: they cannot be loaded, or the cluster is unavailable.
        """

    def run(self, job: Job, on_unit: UnitCallback) -> None:
        """Process every unit of `job` and call `on_unit` for each, in this thread.

        Raises:
            EnhanceError: the job cannot continue; finished units stay finished.
        """

    def close(self) -> None:
        """Release networks and processes. Does nothing if there are none."""


class PinnedProcessorFactory(Protocol):
    """A `ProcessorFactory` that is a dataclass with a field `run_info`: of an earlier run; None the
    first time."""

    @property
    def run_info(self) -> RunInfo | None:
        """What ran before."""

    def __call__(self) -> Processor:
        """Load the networks."""


def load_run_info(engine: Engine, factory: PinnedProcessorFactory) -> RunInfo:
    """Return what runs: the same as before, if that is still available.

    Raises:
        EnhanceError: see `Engine.run_info`.
    """
    try:
        return engine.run_info(factory)
    except EnhanceError:
        if factory.run_info is None:
            raise
        unpinned: Any = factory
        return engine.run_info(replace(unpinned, run_info=None))


@dataclass
class Tally:
    """Collects states.

    Attributes:
        states: of the finished units.
    """

    states: list[State] = field(default_factory=list)

    def __call__(self, state: State) -> None:
        self.states.append(state)
