"""Which of the measured ways of running a network is taken: a rule without a clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MARGIN = 1.25
"""How many times faster than the fastest fp32 a reduced precision must be in each of two
measurements. bf16 takes half of fp32's time or less on the processors and GPUs that have it, and
the hundredfold without; on a shared machine the same network's time varied by a tenth."""


@dataclass(frozen=True)
class Way:
    """One way of running a network: a backend and its arithmetic."""

    backend: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.backend} {self.dtype}"


def fastest(seconds: Mapping[Way, float]) -> Way:
    """The way that takes the least time."""
    return min(seconds, key=lambda way: seconds[way])


def contest(seconds: Mapping[Way, float]) -> tuple[Way, Way] | None:
    """The fastest fp32 and a reduced precision that is faster by `MARGIN`; None without one.

    Where all ways are of a reduced precision, it was asked for, and there is no contest.
    """
    full = {way: value for way, value in seconds.items() if way.dtype == "fp32"}
    if not full or len(full) == len(seconds):
        return None
    plain, reduced = fastest(full), fastest({w: s for w, s in seconds.items() if w not in full})
    return (plain, reduced) if seconds[reduced] * MARGIN <= seconds[plain] else None


def chosen(first: Mapping[Way, float], second: Mapping[Way, float]) -> Way:
    """The way that is taken: fp32 unless a reduced precision won both contests.

    Args:
        first: seconds a face of all ways that work.
        second: the same for the two ways of ``contest(first)``, measured again; empty without.
    """
    pair = contest(first)
    if pair is not None and contest({way: second[way] for way in pair if way in second}) == pair:
        return pair[1]
    full = {way: value for way, value in first.items() if way.dtype == "fp32"}
    return fastest(full or first)


def ordered(ways: Iterable[Way], ms: Mapping[str, float], choice: str | None) -> list[Way]:
    """`ways` in the order of trying: `choice`, then fp32 before less, fast before slow.

    Args:
        ways: in the usual order.
        ms: milliseconds by name; ways that were not measured come last, in their own order.
        choice: name of the way that was chosen; None where a file does not say.
    """
    infinite = float("inf")

    def rank(way: Way) -> tuple[bool, bool, bool, float]:
        name = str(way)
        return name != choice, name not in ms, way.dtype != "fp32", ms.get(name, infinite)

    return sorted(ways, key=rank)
