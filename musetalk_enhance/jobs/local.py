"""The work on this machine, in this process: while one unit is restored, the next is read and the last written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from .manifest import State, Unit
from .work import Done, Maker, Opener, Work

if TYPE_CHECKING:
    from .models import Facts

AHEAD = 1
"""Units that are read before they are wanted; as many may wait to be written."""


class LocalEngine:
    """Runs the work here.

    Args:
        maker: networks that are loaded already, and stay the caller's; None loads them when they are wanted.
    """

    def __init__(self, maker: Maker | None = None) -> None:
        self._given = maker
        self._kept: Maker | None = None

    def facts(self, opener: Opener) -> Facts:
        """See `Engine.facts`. The networks stay loaded for the work that follows."""
        if self._given is not None:
            return self._given.facts
        self.close()
        self._kept = opener()
        return self._kept.facts

    def run(self, work: Work, done: Done) -> None:
        """See `Engine.run`. Networks that it loaded are given back."""
        try:
            if not work.units:
                return
            if self._given is None and self._kept is None:
                self._kept = work.open_maker()
            maker = self._given or self._kept
            assert maker is not None
            with ThreadPoolExecutor(1, "read") as readers, ThreadPoolExecutor(1, "write") as writers:
                self._run(work, maker, done, readers, writers)
        finally:
            self.close()

    def close(self) -> None:
        """See `Engine.close`."""
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.close()

    def _run(
        self, work: Work, maker: Maker, done: Done, readers: ThreadPoolExecutor, writers: ThreadPoolExecutor
    ) -> None:
        coming: deque[Future[Any]] = deque()
        going: deque[Future[Any]] = deque()
        units = iter(work.units)
        try:
            while True:
                _fill(coming, units, AHEAD + 1, lambda unit: readers.submit(_before, work, maker, unit))
                if not coming:
                    break
                made = maker.make(coming.popleft().result())
                going.append(writers.submit(_after, work, maker, made))
                del made  # the writer holds it
                while going and (len(going) > AHEAD or going[0].done()):
                    done(going.popleft().result())
            while going:
                done(going.popleft().result())
        finally:
            for waiting in (*coming, *going):
                waiting.cancel()


def _before(work: Work, maker: Maker, unit: Unit) -> Any:
    return maker.prepare(work.read(unit))


def _after(work: Work, maker: Maker, made: Any) -> State:
    return work.write(maker.finish(made))


def _fill(coming: deque[Future[Any]], units: Any, size: int, submit: Callable[[Any], Future[Any]]) -> None:
    while len(coming) < size:
        unit = next(units, None)
        if unit is None:
            return
        coming.append(submit(unit))
