"""The outcome of a frame: one small value. Text is made from it only for output."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Status(Enum):
    """Whether a frame was restored."""

    RESTORED = "restored"
    """At least one value changed."""
    LEFT_ALONE = "left alone"
    """Returned unchanged, by decision."""
    PASSED_THROUGH = "passed through"
    """Returned unchanged, because it could not be restored."""


class Cause(Enum):
    """Why a frame is not restored, or with less than the requested strength."""

    SHARP = "sharp already"
    MOUTH = "held back: mouth"
    EYES = "held back: eyes"
    IDENTITY = "held back: identity"
    RECOVERY = "held back: recovery"
    STRENGTH = "strength 0"
    COVERED = "covered"
    DEADLINE = "no time"
    UNCHANGED = "unchanged"
    INPUT = "input"
    NO_FACE = "no face"
    LOST = "lost from sight"
    NOT_SELECTED = "not selected"
    ALIGNMENT = "cannot be aligned"
    OUT_OF_MEMORY = "out of memory"
    RESTORER = "restorer"
    RELOAD = "reload"


GUARD = {
    Cause.MOUTH: "mouth",
    Cause.EYES: "eyes",
    Cause.IDENTITY: "identity",
    Cause.RECOVERY: "recovery",
}
"""The guard's causes and their names in statistics."""
FAULTS = frozenset({Cause.OUT_OF_MEMORY, Cause.RESTORER, Cause.RELOAD})
"""The causes that are failures, neither decisions nor bad input."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of one frame.

    Attributes:
        status: restored, left alone, or passed through.
        strength: share of the restored face in the result, 0..1.
        cause: why it is not restored, or why with less than the option `strength`; None at full
            strength.
        guard: why the guard lowered the strength; None if it did not. It may
            differ from `cause` where the sharpness gate took more.
        sharp: whether the sharpness gate left out some or all of the restoring.
        cut: whether a scene begins with it.
        aligned: False where ``align: ffhq`` had no landmarks, so that the network got the
            unaligned crop.
        repeated: whether it has the same bits as the frame before, and so has its result.
        change: mean absolute change of the pixels that may change, in 1/255, rounded as 8-bit
            frames are. 0 where none changed.
        detail: of a frame that is passed through: the reason of the `FrameError`, or the class of
            the error.
    """

    status: Status = Status.RESTORED
    strength: float = 1.0
    cause: Cause | None = None
    guard: Cause | None = None
    sharp: bool = False
    cut: bool = False
    aligned: bool = True
    repeated: bool = False
    change: float = field(default=0.0, compare=False)
    detail: str | None = None

    @property
    def restored(self) -> bool:
        """Whether any of its values changed."""
        return self.status is Status.RESTORED

    @property
    def failed(self) -> bool:
        """Whether restoring it failed, which is neither a decision nor the fault of the input."""
        return self.status is Status.PASSED_THROUGH and self.cause in FAULTS

    @property
    def reason(self) -> str | None:
        """`cause` and `detail` in words, for statistics and reports: ``"restorer: ValueError"``."""
        if self.cause is None:
            return None
        if self.cause is Cause.INPUT:
            return self.detail or "input"
        if self.cause in (Cause.RESTORER, Cause.RELOAD, Cause.ALIGNMENT) and self.detail:
            return f"{self.cause.value}: {self.detail}"
        return str(self.cause.value)

    def as_dict(self) -> dict[str, Any]:
        """As plain values, in the words of reports."""
        if self.status is Status.PASSED_THROUGH:
            return {"passthrough": self.reason}
        return {
            "strength": self.strength,
            "guard": None if self.guard is None else GUARD[self.guard],
            "sharp already": self.sharp,
            "cut": self.cut,
            "not aligned": not self.aligned,
            "change": self.change,
            "left alone": None if self.restored else self.reason,
        }


def passed_through(cause: Cause, detail: str | None = None) -> Outcome:
    """The outcome of a frame that could not be restored."""
    return Outcome(Status.PASSED_THROUGH, 0.0, cause, detail=detail)
