"""Counters of an enhancer, and their texts."""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from .outcome import GUARD, Outcome, Status


def counted(number: int, what: str) -> str:
    """A number of things in words: 1 face, 2 faces."""
    return f"{number} {what}{'' if number == 1 else 's'}"


LAST_CALLS = 1000
"""Calls whose times are kept, for percentiles."""
PERCENTILES = (50, 95, 99)

_REMEDIES = (
    ("sharp already", "sharpness_gate", "false"),
    ("held back", "guard", "false"),
    ("strength 0", "strength", "1"),
    ("too small", "min_face", "0"),
    ("not the center face", "only_center_face", "false"),
)
"""Prefix of the reason for which a face is left alone; option and value that restore it."""


def by_reason(counts: Mapping[str, int]) -> str:
    """Counts in words: ``3 held back: mouth, 40 sharp already``."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))


def mean_or_none(total: float, number: int, digits: int) -> float | None:
    """A rounded mean; None of nothing."""
    return round(total / number, digits) if number else None


def restored_words(strength: float | None, change: float | None, partial: Mapping[str, int]) -> str:
    """How much restored faces changed: ``by 2.31 of 255 at strength 0.98 in the mean``."""
    if strength is None or change is None:
        return ""
    words = f", by {change:.2f} of 255 at strength {strength:.2f} in the mean"
    return f"{words} ({sum(partial.values())} in part: {by_reason(partial)})" if partial else words


def mostly_left_alone(
    faces: int,
    left_alone: Mapping[str, int],
    partial: Mapping[str, int],
    share: float | None,
    option: Callable[[str, str], str],
    limits: Sequence[str] = (),
) -> str | None:
    """A warning if most of the restoration did not reach the result, else None.

    Args:
        faces: all faces, those included that were passed through.
        left_alone: reason to number of faces that were left alone.
        partial: reason to number of faces that got less than the option `strength`.
        share: mean share of `strength` that the faces got, 0..1; None where it was not measured.
        option: spells an option and its value as the user sets it.
        limits: options that limit the time of a call; all of them count.
    """
    alone, reduced = sum(left_alone.values()), sum(partial.values())
    if 2 * alone <= faces and not (alone + reduced and share is not None and share < 0.5):
        return None
    words = (
        [f"{alone} of {counted(faces, 'face')} left alone ({by_reason(left_alone)})"]
        if alone
        else []
    )
    words += [f"{reduced} restored in part ({by_reason(partial)})"] if reduced else []
    causes = Counter(left_alone) + Counter(partial)
    ways = {
        option(name, value): -sum(n for reason, n in causes.items() if reason.startswith(start))
        for start, name, value in _REMEDIES
        if any(reason.startswith(start) for reason in causes)
    }
    if limits and causes["no time"]:
        ways[" and ".join(option(name, "0") for name in limits)] = -causes["no time"]
    change = (
        f"; to restore more, set {' or '.join(sorted(ways, key=ways.__getitem__))}" if ways else ""
    )
    return f"most of the restoration is not in the result: {', '.join(words)}{change}"


@dataclass
class EnhancerStats:
    """Counters of one stream since its creation or the last `EnhancerStats.clear`.

    ``restored + sum(left_alone) + sum(passed_through)`` is `frames`.

    Attributes:
        limits: names of the options that limit the time of a call.
        frames: input frames.
        restored: frames of which at least one value changed, rounded to 8 bits.
        left_alone: reason to number of frames that were returned unchanged by decision: ``sharp
            already``, ``held back: mouth`` (``eyes``, ``identity``), ``strength 0``, ``covered``,
            ``no time``, ``unchanged``.
        partial: reason to number of restored frames that got less than the option `strength`:
            ``sharp already``, ``held back: mouth`` (``eyes``, ``identity``, ``recovery``), ``no
            time``.
        failed: frames whose restoration failed (they are part of `passed_through` as well).
        passed_through: reason to number of frames that could not be restored and were returned
            unchanged.
        batches: batches of this stream that went through the network.
        backoffs: times memory ran out and the batch was halved or moved to the CPU.
        fallbacks: times a reduced precision differed from fp32, which then replaced it.
        over_budget: batches that took more than ``memory_budget``: one face that does so alone, or
            the first batch of a size that turned out to need more than the smaller ones had shown.
        guarded: reason to number of frames whose strength the guard lowered, in part or to nothing:
            ``mouth``, ``eyes``, ``identity``; ``recovery``: not itself at fault, but soon after one
            that was.
        sharp: frames that were sharp already and were left alone, in part or altogether.
        unaligned: frames that ``align: ffhq`` could not align, for lack of landmarks; restored
            without alignment.
        cuts: frames that begin another scene.
        repeated: frames with the same bits as the one before, whose results have the same bits.
        reloads: times the network was loaded again after `FaceEnhancer.unload`.
        steps: frames by what a deadline left of the work: ``full``, ``lower half``, ``lite``,
            ``none``; empty without a deadline.
        late: calls that took longer than a deadline allows.
        switches: times that a deadline left no face to fade with: from over half the strength to 0.
        ms: stage to milliseconds spent: ``prepare``, ``network``, ``finish``, and where they are
            needed ``landmarks`` and ``motion``.
        calls: stage to milliseconds of each of the last `LAST_CALLS` calls; ``call`` is all of one.
        strength_total: sum of the strengths of the restored frames; see `mean_strength`.
        change_total: sum of the mean changes of the restored frames; see `mean_change`.
        share_total: sum of strength / option `strength` over `processed` frames; see `mean_share`.
    """

    limits: tuple[str, ...] = ()
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
    late: int = 0
    switches: int = 0
    steps: Counter[str] = field(default_factory=Counter)
    ms: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    calls: dict[str, deque[float]] = field(
        default_factory=lambda: defaultdict(lambda: deque(maxlen=LAST_CALLS))
    )
    left_alone: Counter[str] = field(default_factory=Counter)
    partial: Counter[str] = field(default_factory=Counter)
    strength_total: float = 0.0
    change_total: float = 0.0
    share_total: float = 0.0

    @property
    def processed(self) -> int:
        """Frames that could be restored: those that were, and those that were left alone."""
        return self.restored + self.left_alone.total()

    @property
    def mean_strength(self) -> float | None:
        """Mean strength of the restored frames, 0..1; None where there is none."""
        return mean_or_none(self.strength_total, self.restored, 4)

    @property
    def mean_change(self) -> float | None:
        """Mean absolute change of the restored frames where they may change, in 1/255; or None."""
        return mean_or_none(self.change_total, self.restored, 3)

    @property
    def mean_share(self) -> float | None:
        """Mean share of the option `strength` that the `processed` frames got, 0..1; or None."""
        return mean_or_none(self.share_total, self.processed, 4)

    def add(self, outcome: Outcome, strength: float) -> None:
        """Count a frame.

        Args:
            outcome: what became of it.
            strength: the option.
        """
        self.guarded.update([GUARD[outcome.guard]] if outcome.guard is not None else [])
        self.sharp += outcome.sharp
        self.cuts += outcome.cut
        self.unaligned += not outcome.aligned
        self.repeated += outcome.repeated
        reason = outcome.reason or ""
        if outcome.status is Status.PASSED_THROUGH:
            self.passed_through[reason] += 1
        elif outcome.status is Status.LEFT_ALONE:
            self.left_alone[reason] += 1
        else:
            self.restored += 1
            self.strength_total += outcome.strength
            self.change_total += outcome.change
            self.share_total += outcome.strength / strength if strength else 0.0
            self.partial.update([reason] if reason else [])

    def merge(self, other: EnhancerStats) -> None:
        """Add the counters of another stream to these."""
        for each in fields(self):
            own, more = getattr(self, each.name), getattr(other, each.name)
            if isinstance(own, Counter):
                own.update(more)
            elif isinstance(own, dict):
                for stage, value in more.items():  # of a deque: its values
                    own[stage] += value
            elif isinstance(own, tuple):
                setattr(self, each.name, tuple(dict.fromkeys(own + more)))
            else:
                setattr(self, each.name, own + more)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to ``ms[stage]``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.ms[stage] += (time.perf_counter() - start) * 1e3

    def add_call(self, before: Mapping[str, float], ms: float) -> None:
        """Note how long a call took.

        Args:
            before: `ms` when it began.
            ms: milliseconds of all of it.
        """
        self.calls["call"].append(ms)
        for stage, total in self.ms.items():
            if total > before.get(stage, 0.0):
                self.calls[stage].append(total - before.get(stage, 0.0))

    def percentiles(self) -> dict[str, dict[str, float]]:
        """Milliseconds of a call: stage to ``p50``, ``p95`` and ``p99`` of the last calls."""
        return {
            stage: {
                f"p{share}": round(float(value), 2)
                for share, value in zip(
                    PERCENTILES, np.percentile(list(times), PERCENTILES), strict=True
                )
            }
            for stage, times in self.calls.items()
        }

    def clear(self) -> None:
        """Set every counter to zero."""
        self.__init__(self.limits)  # type: ignore[misc]

    def as_dict(self) -> dict[str, Any]:
        """All counters as plain numbers, ready for JSON."""
        counts = {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if not each.name.endswith("_total") and each.name not in ("calls", "limits")
        }
        return {
            **{name: dict(n) if isinstance(n, Counter) else n for name, n in counts.items()},
            "limits": ", ".join(self.limits) or None,
            "ms": {stage: round(value, 2) for stage, value in self.ms.items()},
            "call_ms": self.percentiles(),
            "processed": self.processed,
            "mean_strength": self.mean_strength,
            "mean_change": self.mean_change,
            "mean_share": self.mean_share,
        }

    def summary(self) -> str:
        """One line for a log."""
        passed, alone = self.passed_through.total(), self.left_alone.total()
        per_face = self.ms["network"] / self.processed if self.processed else 0.0
        return (
            f"{self.restored} of {counted(self.frames, 'face')} restored"
            f"{restored_words(self.mean_strength, self.mean_change, self.partial)}"
            f"; {alone} left alone{f' ({by_reason(self.left_alone)})' if alone else ''}"
            f"; {passed} passed through{f' ({by_reason(self.passed_through)})' if passed else ''}"
            f"; {per_face:.1f} ms a face in the network"
        )

    def warning(self, option: Callable[[str, str], str] | None = None) -> str | None:
        """A warning if most of the restoration did not reach the result, else None.

        Args:
            option: spells an option and its value as the user sets it; None: as in a YAML
                file.
        """
        spelled = option or (lambda name, value: f"{name}: {value}")
        return mostly_left_alone(
            self.frames, self.left_alone, self.partial, self.mean_share, spelled, self.limits
        )
