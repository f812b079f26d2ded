"""Which of the measured executions of a network is used: a rule that needs no clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MARGIN = 1.25
"""How many times faster than the fastest fp32 a reduced precision must be in each of two
measurements. bf16 takes half of fp32's time or less on the processors and GPUs that have it, and a
hundred times as long without; on a shared machine the same network's time varied by a tenth."""


@dataclass(frozen=True)
class Execution:
    """How a network is executed: a backend and its arithmetic."""

    backend: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.backend} {self.dtype}"


def fastest(seconds: Mapping[Execution, float]) -> Execution:
    """The execution that takes the least time."""
    return min(seconds, key=lambda execution: seconds[execution])


def contest(seconds: Mapping[Execution, float]) -> tuple[Execution, Execution] | None:
    """The fastest fp32 and a reduced precision that is faster by `MARGIN`; None without one.

    Where all executions have a reduced precision, the user set it, and there is no contest.
    """
    full = {execution: value for execution, value in seconds.items() if execution.dtype == "fp32"}
    if not full or len(full) == len(seconds):
        return None
    plain, reduced = fastest(full), fastest({e: s for e, s in seconds.items() if e not in full})
    return (plain, reduced) if seconds[reduced] * MARGIN <= seconds[plain] else None


def select(first: Mapping[Execution, float], second: Mapping[Execution, float]) -> Execution:
    """The execution to use: fp32 unless a reduced precision won both contests.

    Args:
        first: seconds per face of all executions that work.
        second: the same for the two executions of ``contest(first)``, measured again; empty without
            a contest.
    """
    pair = contest(first)
    if pair is not None and contest({one: second[one] for one in pair if one in second}) == pair:
        return pair[1]
    full = {execution: value for execution, value in first.items() if execution.dtype == "fp32"}
    return fastest(full or first)


def ordered(
    executions: Iterable[Execution], ms: Mapping[str, float], choice: str | None
) -> list[Execution]:
    """`executions` in the order of trying: `choice`, then fp32 before less, fast before slow.

    Args:
        executions: in the usual order.
        ms: milliseconds by name; executions without a measurement come last, in their own order.
        choice: name of the selected execution; None where a file does not say.
    """
    infinite = float("inf")

    def rank(execution: Execution) -> tuple[bool, bool, bool, float]:
        name = str(execution)
        return name != choice, name not in ms, execution.dtype != "fp32", ms.get(name, infinite)

    return sorted(executions, key=rank)
