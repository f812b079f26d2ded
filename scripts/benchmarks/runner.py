"""The interface of what can be measured: it restores the same faces in every run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Value = str | int | float


class Runner(ABC):
    """A loaded candidate.

    Attributes:
        faces: how many one `run` restores.
    """

    faces: int

    @abstractmethod
    def run(self) -> np.ndarray | None:
        """Restore the faces and return only when all is done; uint8 (faces, H, W, 3), or None for
        no picture."""

    def start(self) -> None:  # noqa: B027 - optional
        """Warm-up is over: what is counted starts anew."""

    def stages(self) -> dict[str, float]:
        """Stage to milliseconds a face, since `start`."""
        return {}

    def runs_as(self) -> str:
        """What really runs, in words, where that may differ from what was asked for."""
        return ""

    def close(self) -> None:  # noqa: B027 - optional
        """Give the memory back."""


@dataclass(frozen=True)
class Candidate:
    """Something to be measured, not loaded yet.

    Attributes:
        name: unique, for tables.
        build: loads it; what it raises is reported as the reason why it is not measured.
        facts: what its row says about it (``path``, ``backend``, ``dtype``, ``batch``, ``region``).
    """

    name: str
    build: Callable[[], Runner]
    facts: dict[str, Value] = field(default_factory=dict)
