"""Requests in progress: how many, for how long, and in which threads."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

from starlette.requests import Request

from ..errors import ServiceError
from ..pipeline.engine import Engine, Restored
from ..pipeline.engine import Request as EngineRequest
from .batcher import Batcher

T = TypeVar("T")
_LONGEST_RETRY_S = 60


class Ticket:
    """Lets the event loop cancel a request that runs in a thread."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._future: Future[Restored] | None = None

    def cancel(self) -> None:
        """The result is no longer needed: the thread stops at its next check."""
        self._cancelled.set()
        if self._future is not None:
            self._future.cancel()

    def check(self) -> None:
        """Raises:
        CancelledError: `cancel` was called.
        """
        if self._cancelled.is_set():
            raise CancelledError

    def restore(self, batcher: Batcher, engine: Engine, request: EngineRequest) -> Restored:
        """Run a request in a batch with others, and wait for its result.

        Raises:
            CancelledError: `cancel` was called before the network began.
        """
        self.check()
        self._future = batcher.submit(engine, request)
        if self._cancelled.is_set():
            self._future.cancel()
        return self._future.result()


class Slot:
    """One of the places for requests in progress; a context manager that frees it.

    Attributes:
        deadline: time on the clock of `time.monotonic` at which the request gets 503.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner, self._work = runner, None
        self._begin = time.monotonic()
        self.deadline = self._begin + runner.time_limit

    def __enter__(self) -> Slot:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        work: Future[Any] | None = self._work
        if work is None or work.done():
            self._runner.release(self._begin)
        else:  # a thread is still at it, and needs its place until it notices
            work.add_done_callback(lambda _: self._runner.release(self._begin))

    async def within_limit(self, awaitable: Awaitable[T]) -> T:
        """The result of something that must be ready before the deadline.

        Raises:
            ServiceError: it was not.
        """
        try:
            return await asyncio.wait_for(awaitable, self.deadline - time.monotonic())
        except asyncio.TimeoutError:
            raise self._runner.too_late() from None

    async def run(self, request: Request, function: Callable[[Ticket], T]) -> T:
        """Run a function in a thread, until the deadline or until the client is gone.

        Args:
            request: whose body has been read.
            function: gets a ticket, and stops when that is cancelled.

        Raises:
            ServiceError: the deadline is over.
            CancelledError: the client is gone.
        """
        ticket = Ticket()
        self._work = self._runner.threads.submit(function, ticket)  # type: ignore[assignment]
        work: asyncio.Future[T] = asyncio.wrap_future(self._work)  # type: ignore[arg-type]
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            timeout = self.deadline - time.monotonic()
            either: set[asyncio.Future[Any]] = {work, gone}
            await asyncio.wait(either, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            if gone.done():
                raise CancelledError
            raise self._runner.too_late()
        finally:
            gone.cancel()
            if not work.done():
                ticket.cancel()
                work.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Runner:
    """Counts the requests in progress and runs them in threads.

    Args:
        places: most requests in progress.
        time_limit: seconds for one.
        threads: of which as many run at once.
    """

    def __init__(self, places: int, time_limit: float, threads: int) -> None:
        self.places, self.time_limit = places, time_limit
        self.threads = ThreadPoolExecutor(threads, "request")
        self._parallel = threads
        self._mean_s = 0.5
        self._lock = threading.Lock()
        self.active = 0
        self.stopping = False

    def slot(self) -> Slot:
        """A place for one more request.

        Raises:
            ServiceError: there is none, or the server is stopping.
        """
        with self._lock:
            if self.stopping:
                raise ServiceError(503, "stopping", "the server is stopping", 5)
            if self.active >= self.places:
                text = f"{self.active} requests are in progress, the most that are allowed"
                raise ServiceError(429, "busy", text, self._retry_after())
            self.active += 1
        return Slot(self)

    def release(self, begin: float) -> None:
        """Free the place of a request that began at that time."""
        with self._lock:
            self.active -= 1
            self._mean_s += 0.1 * (time.monotonic() - begin - self._mean_s)

    def too_late(self) -> ServiceError:
        """The error of a request that took too long."""
        text = f"the request took longer than {self.time_limit:g} s"
        return ServiceError(503, "time_limit", text, self._retry_after())

    def close(self) -> None:
        """Wait for what runs in threads."""
        self.stopping = True
        self.threads.shutdown(cancel_futures=True)

    def _retry_after(self) -> int:
        # the mean includes the wait for a thread: after it, about half of the places are free
        return max(1, min(_LONGEST_RETRY_S, math.ceil(self._mean_s / 2)))


__all__ = ["CancelledError", "Runner", "Slot", "Ticket"]
