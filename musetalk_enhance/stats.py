"""What an enhancer counts."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


def counted(number: int, what: str) -> str:
    """A number of things in words: 1 face, 2 faces."""
    return f"{number} {what}{'' if number == 1 else 's'}"


@dataclass
class EnhancerStats:
    """Counters of one enhancer since it was made; `EnhancerStats.clear` starts anew.

    Attributes:
        frames: frames that came in.
        restored: frames that went through the network.
        failed: frames whose restoration failed (they are part of `passed_through` as well).
        passed_through: reason to number of frames handed back as they came.
        batches: runs of the network that succeeded.
        backoffs: times memory ran out and the batch was halved or moved to the CPU.
        fallbacks: times a reduced precision came to another picture than fp32 and was given up.
        over_budget: batches that took more than ``memory_budget``: one face that does so alone, or the first
            batch of a size that turned out dearer than the smaller ones had shown.
        guarded: reason to number of frames whose strength the guard lowered: ``mouth``, ``eyes``, ``identity``;
            ``recovery``: not itself at fault, but soon after one that was.
        sharp: frames that were sharp already and were left alone, in part or altogether.
        unaligned: frames that ``align: ffhq`` could not align, for want of landmarks; restored as they came.
        cuts: frames with which another scene began.
        repeated: frames that were the same bits as the one before, and came back as the same bits.
        reloads: times the network was loaded again after `GFPGANEnhancer.unload`.
        ms: stage to milliseconds spent: ``prepare``, ``network``, ``finish``, and where they are needed
            ``landmarks`` and ``motion``.
    """

    frames: int = 0
    restored: int = 0
    failed: int = 0
    passed_through: Counter[str] = field(default_factory=Counter)
    batches: int = 0
    backoffs: int = 0
    fallbacks: int = 0
    over_budget: int = 0
    guarded: Counter[str] = field(default_factory=Counter)
    sharp: int = 0
    unaligned: int = 0
    cuts: int = 0
    repeated: int = 0
    reloads: int = 0
    ms: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to ``ms[stage]``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.ms[stage] += (time.perf_counter() - start) * 1e3

    def clear(self) -> None:
        """Set every counter to zero."""
        self.__init__()  # type: ignore[misc]

    def as_dict(self) -> dict[str, Any]:
        """All counters as plain numbers, ready for JSON."""
        return {
            "frames": self.frames,
            "restored": self.restored,
            "failed": self.failed,
            "passed_through": dict(self.passed_through),
            "batches": self.batches,
            "backoffs": self.backoffs,
            "fallbacks": self.fallbacks,
            "over_budget": self.over_budget,
            "guarded": dict(self.guarded),
            "sharp": self.sharp,
            "unaligned": self.unaligned,
            "cuts": self.cuts,
            "repeated": self.repeated,
            "reloads": self.reloads,
            "ms": {stage: round(value, 2) for stage, value in self.ms.items()},
        }

    def summary(self) -> str:
        """One line for a person."""
        passed = sum(self.passed_through.values())
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.passed_through.items()))
        guarded = sum(count for reason, count in self.guarded.items() if reason != "recovery")
        per_face = self.ms["network"] / self.restored if self.restored else 0.0
        return (
            f"{self.restored} of {self.frames} faces restored, {passed} handed back as they came"
            f"{f' ({reasons})' if reasons else ''}{f', {guarded} held back by the guard' if guarded else ''}"
            f"{f', {self.sharp} sharp already' if self.sharp else ''}; {per_face:.1f} ms a face in the network"
        )
