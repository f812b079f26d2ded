"""SMPTE timecodes (SMPTE ST 12-1): reading one from a video and moving it by frames."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

_TIMECODE = re.compile(r"(\d\d):(\d\d):(\d\d)([:;.,])(\d\d)")


def read_timecode(source: Any) -> str | None:
    """The timecode of the first frame, as the container or one of its streams states it."""
    for metadata in (*(stream.metadata for stream in source.streams), source.metadata):
        for key, text in metadata.items():
            if key.lower() == "timecode" and _TIMECODE.fullmatch(text):
                return str(text)
    return None


def move_timecode(text: str, frames: int, fps: Fraction) -> str:
    """The timecode `frames` frames later, within 24 hours.

    >>> move_timecode("01:00:00:00", 30, Fraction(25))
    '01:00:01:05'
    >>> move_timecode("00:00:59;29", 1, Fraction(30000, 1001))
    '00:01:00;02'

    Args:
        text: ``HH:MM:SS:FF``, or with ``;`` before the frames: drop-frame, which leaves out the
            first 2 (of 60 a second: 4) numbers of each minute but every tenth.
        frames: how many frames later, 0 or more.
        fps: frames per second.
    """
    match = _TIMECODE.fullmatch(text)
    if match is None:
        return text
    hours, minutes, seconds, number = (int(match[group]) for group in (1, 2, 3, 5))
    rate = max(1, round(fps))
    dropped = round(rate / 15) if match[4] != ":" else 0
    total_minutes = 60 * hours + minutes
    count = (60 * total_minutes + seconds) * rate + number
    count += frames - dropped * (total_minutes - total_minutes // 10)
    if dropped:
        per_ten = 600 * rate - 9 * dropped
        tens, rest = divmod(count, per_ten)
        count += 9 * dropped * tens
        count += dropped * max(0, (rest - dropped) // (60 * rate - dropped))
    seconds, number = divmod(count, rate)
    clock = f"{seconds // 3600 % 24:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{clock}{match[4]}{number:02}"
