"""`Report`: the results as numbers, as a page and as files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._version import __version__
from ..errors import MediaError
from ..runtime.files import write_bytes
from .events import Events
from .flicker import FlickerWindows
from .series import Series, jsonable, plain
from .verdicts import FAIL, Verdict
from .worst import FrameImages, WorstFrames

SCHEMA = 1
"""Version of the JSON file's schema."""


@dataclass(frozen=True)
class Report:
    """The results for one clip.

    Attributes:
        title: heading.
        fps: frames per second.
        notes: sentences at the top of the page.
        series: the values of every frame.
        flicker: the windows in which flicker was measured.
        events: the enhancer's notes on the frames.
        cuts: first frame of each new scene.
        worst: images of the worst frames.
        totals: the enhancer's counters.
        verdicts: one for each check, in order.
        typical: the faces of a frame from the middle or the second half of the clip.
    """

    title: str
    fps: float
    notes: list[str]
    series: Series
    flicker: FlickerWindows
    events: Events
    cuts: list[int]
    worst: WorstFrames
    totals: dict[str, Any]
    verdicts: list[Verdict]
    typical: FrameImages | None = None

    @property
    def frames(self) -> int:
        """Number of frames."""
        return self.series.frames

    @property
    def failed(self) -> list[Verdict]:
        """Checks that fail."""
        return [verdict for verdict in self.verdicts if verdict.state == FAIL]

    def worst_frame(self) -> tuple[str, FrameImages] | None:
        """Kind and images of the worst frame: of the first check that fails, or else the one in
        which the face's structure changed most; None if no frame is worse than another."""
        kinds = (*(verdict.kind for verdict in self.failed), "structure", *self.worst.kinds())
        frames = ((kind, frame) for kind in kinds for frame in self.worst.of(kind))
        return next(frames, None)

    def verdict(self, key: str) -> Verdict:
        """The verdict with this key.

        Raises:
            KeyError: no verdict has this key.
        """
        for verdict in self.verdicts:
            if verdict.key == key:
                return verdict
        raise KeyError(key)

    def as_dict(self) -> dict[str, Any]:
        """Everything except the images, ready for JSON: no NaN, five significant digits."""
        return {
            "schema": SCHEMA,
            "made_by": f"musetalk_enhance {__version__}",
            "title": self.title,
            "frames": self.frames,
            "fps": plain(self.fps, 8),
            "notes": self.notes,
            "passed": not self.failed,
            "verdicts": [verdict.as_dict() for verdict in self.verdicts],
            "worst": {
                kind: [
                    {"frame": frame.index, "score": plain(frame.score)}
                    for frame in self.worst.of(kind)
                ]
                for kind in self.worst.kinds()
            },
            "totals": jsonable(self.totals),
            "events": self.events.as_dict(),
            "cuts": self.cuts,
            "flicker_windows": [
                {
                    "first": window.first,
                    "last": window.last,
                    "still": plain(window.still),
                    "energy": {name: plain(value) for name, value in window.energy.items()},
                }
                for window in self.flicker.windows
            ],
            "series": self.series.as_dict(),
        }

    def html(self) -> str:
        """The page: one self-contained document.

        Raises:
            MissingDependencyError: matplotlib is not installed.
        """
        from .page import render

        return render(self)

    def lines(self) -> list[str]:
        """The verdicts for a terminal, one per line."""
        return [terminal_line(verdict) for verdict in self.verdicts]

    def write(self, folder: str | Path) -> list[Path]:
        """Write ``report.json`` and ``report.html`` to a folder; existing files are replaced.

        Args:
            folder: is created if it does not exist.

        Returns:
            Their paths.

        Raises:
            MediaError: the folder cannot be created or written to.
        """
        target = Path(folder).expanduser()
        files = {
            "report.json": json.dumps(self.as_dict(), allow_nan=False, indent=1) + "\n",
            "report.html": self.html(),
        }
        try:
            target.mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                write_bytes(target / name, text.encode())
        except OSError as error:
            raise MediaError(target, f"cannot be written ({error.strerror or error})") from error
        return [target / name for name in files]


def terminal_line(verdict: Verdict) -> str:
    """``pass  Warping error, after/before   1.02 (at most 1.05)``."""
    value, limit = verdict.figures
    bound = "at most" if verdict.at_most else "at least"
    state = verdict.state.upper() if verdict.state == FAIL else verdict.state
    return f"{state:<10} {verdict.label:<28} {value}{limit and f' ({bound} {limit})'}"
