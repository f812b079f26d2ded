"""What an engine is given: units of work, and the three steps that each goes through."""

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

    It comes in three parts, one after the other, so that those of neighbouring units can overlap; of each part one
    call runs at a time.
    """

    def prepare(self, loaded: Any, /) -> Any:
        """From what was read to what `make` takes."""

    def process(self, prepared: Any, /) -> Any:
        """The network's part."""

    def finish(self, processed: Any, /) -> Any:
        """From what `make` gave to what is to be written."""

    @property
    def run_info(self) -> RunInfo:
        """What runs."""

    def close(self) -> None:
        """Give back what it holds."""


ProcessorFactory = Callable[[], Processor]
"""Loads the networks; can be sent to another process. Its paths must hold there too."""


@dataclass(frozen=True)
class Job:
    """A job, cut into units. Everything here can be sent to another process.

    Attributes:
        units: what is to be done, in order.
        read: first step, needs no network: from a unit to what the maker takes.
        open_maker: loads the networks; called once in each worker.
        write: last step: writes the results and then the unit's state, and returns it.
        gpu: whether a maker wants a GPU.
        threads: processor threads of one maker.
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
    """Runs the work. After `close` it can be used again."""

    def run_info(self, factory: ProcessorFactory) -> RunInfo:
        """Load the networks where the work will be done, and say what runs.

        What was loaded or started for that may be kept for the next `run`.

        Raises:
            EnhanceError: they cannot be loaded, or there is no such place.
        """

    def run(self, job: Job, on_unit: UnitCallback) -> None:
        """Do every unit of `work` and call `done` for each, in this thread.

        Raises:
            EnhanceError: the work cannot go on; what is done stays done.
        """

    def close(self) -> None:
        """Give back what is kept: networks, processes. Harmless where there is nothing."""


class PinnedProcessorFactory(Protocol):
    """An `Opener` that is a dataclass with a field `facts`: what ran before, to run again; None the first time."""

    @property
    def run_info(self) -> RunInfo | None:
        """What ran before."""

    def __call__(self) -> Processor:
        """Load the networks."""


def load_run_info(engine: Engine, factory: PinnedProcessorFactory) -> RunInfo:
    """What runs: what ran before, so far as it is still to be had.

    Raises:
        EnhanceError: see `Engine.facts`.
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
    """States as they come in.

    Attributes:
        states: of the units that are done.
    """

    states: list[State] = field(default_factory=list)

    def __call__(self, state: State) -> None:
        self.states.append(state)
