"""Work on the images of a batch beside each other, on as many threads as torch may use."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

Result = TypeVar("Result")
PREFIX = "musetalk_enhance-"
"""Of the names of this library's threads."""


def for_each(function: Callable[..., Result], *arguments: Iterable[object]) -> list[Result]:
    """``list(map(function, *arguments))``, for functions that leave the interpreter's lock.

    Args:
        function: changes nothing that another call reads; a call may run twice.
        arguments: as many of each.

    Raises:
        Exception: whatever a call raises; that of the first one that does.
    """
    import torch

    calls: Sequence[tuple[object, ...]] = list(zip(*arguments, strict=True))
    threads = min(torch.get_num_threads(), len(calls))
    # a thread of the pool that waited for others of it could wait forever, and one that works
    # beside the network leaves it the other cores
    if threads < 2 or threading.current_thread().name.startswith(PREFIX):
        return [function(*call) for call in calls]
    pool = _pool(os.getpid(), threads)  # of this process: threads do not outlive a fork
    return [each.result() for each in [submit(pool, function, *call) for call in calls]]


def submit(
    pool: ThreadPoolExecutor, function: Callable[..., Result], *arguments: object
) -> Future[Result]:
    """``pool.submit``, or the call itself where no thread can start.

    That is so once the main thread has ended, while a host's other threads still work.
    """
    try:
        return pool.submit(function, *arguments)
    except RuntimeError:
        future: Future[Result] = Future()
        future.set_result(function(*arguments))
        return future


@lru_cache(maxsize=4)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, f"{PREFIX}images")
