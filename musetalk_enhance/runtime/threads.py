"""Work on the images of a batch beside each other, on as many threads as torch may use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

Result = TypeVar("Result")


def for_each(function: Callable[..., Result], *arguments: Iterable[object]) -> list[Result]:
    """``list(map(function, *arguments))``, for functions that leave the interpreter's lock.

    Args:
        function: changes nothing that another call reads.
        arguments: as many of each.

    Raises:
        Exception: whatever a call raises; that of the first one that does.
    """
    import torch

    calls: Sequence[tuple[object, ...]] = list(zip(*arguments, strict=True))
    threads = min(torch.get_num_threads(), len(calls))
    if threads < 2:
        return [function(*call) for call in calls]
    # of this process: threads do not outlive a fork
    return list(_pool(os.getpid(), threads).map(lambda call: function(*call), calls))


@lru_cache(maxsize=4)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "musetalk_enhance-images")
