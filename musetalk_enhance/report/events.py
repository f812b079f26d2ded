"""The enhancer's notes on each frame: numbers become curves, words become runs of frames."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from .series import simple


class Events:
    """Words and flags of the frames, stored as runs: a long clip of one kind is one entry."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}
        self._runs: dict[str, list[tuple[int, int, str]]] = {}

    def add(self, index: int, notes: Mapping[str, Any]) -> dict[str, float]:
        """Add the notes of a frame.

        Args:
            index: frame number.
            notes: False, None and empty strings are ignored.

        Returns:
            The notes that are numbers, as values of the curves ``note_NAME``.
        """
        numbers: dict[str, float] = {}
        for name, note in notes.items():
            value = simple(note)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                numbers[f"note_{name}"] = float(value)
            elif value:
                self._add_word(index, str(name), "yes" if value is True else str(value))
        return numbers

    def _add_word(self, index: int, name: str, word: str) -> None:
        self.counts.setdefault(name, Counter())[word] += 1
        runs = self._runs.setdefault(name, [])
        if runs and runs[-1][1:] == (index - 1, word):
            runs[-1] = (runs[-1][0], index, word)
        else:
            runs.append((index, index, word))

    def runs(self, name: str) -> list[tuple[int, int, str]]:
        """``(first frame, last frame, word)`` in order."""
        return list(self._runs.get(name, ()))

    def as_dict(self) -> dict[str, Any]:
        """Counts by name and word, and the runs, ready for JSON."""
        return {
            name: {"frames": dict(counts), "runs": [list(run) for run in self._runs[name]]}
            for name, counts in self.counts.items()
        }
