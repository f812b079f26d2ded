"""Beside silence the restored face fades into the avatar's own, so that neither jumps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError

FADE_FRAMES = 4
"""Frames over which the restored face fades in and out beside silence: 0.16 s at 25 fps."""


def check_fade_frames(frames: Any) -> None:
    """Raise a ConfigError where the option `fade_frames` is not a number of frames."""
    if isinstance(frames, bool) or not isinstance(frames, int) or frames < 0:
        raise ConfigError("fade_frames", frames, "a number of frames, 0 or more")


def fade_weight(spoken: int, left: int, frames: int) -> float:
    """The share of the restored face in one frame, 0..1.

    Args:
        spoken: frames of its speech up to it, itself included.
        left: frames of its speech from it on, itself included.
        frames: over which the share rises and falls.
    """
    return min(1.0, min(spoken, left) / (frames + 1))


def fade_weights(speech: Sequence[bool], frames: int) -> list[float]:
    """The share of the restored face in each frame, 0..1: rising after silence, falling before it.

    Args:
        speech: whether each frame has speech; nothing is known of those that follow the last.
        frames: over which it rises and falls.
    """

    def counts(flags: Sequence[bool], since: int) -> list[int]:
        result = []
        for flag in flags:
            since = since + 1 if flag else 0
            result.append(since)
        return result

    left = counts(speech[::-1], frames + 1)[::-1]
    return [fade_weight(*each, frames) for each in zip(counts(speech, 0), left, strict=True)]


def faded(source: NDArray[Any], face: NDArray[Any], weight: float) -> NDArray[Any]:
    """`face` with weight `weight` over the original's crop, in the form of `face`.

    Args:
        source: BGR uint8 (h, w, 3).
        face: BGR (H, W, 3), uint8 or float 0..255.
    """
    if weight >= 1:
        return face
    height, width = face.shape[:2]
    smaller = source.shape[0] > height or source.shape[1] > width
    method = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    sized = cv2.resize(source, (width, height), interpolation=method).astype(np.float32)
    mixed = sized + np.float32(weight) * (face.astype(np.float32) - sized)
    mixed = np.rint(mixed) if face.dtype == np.uint8 else mixed
    return np.asarray(np.clip(mixed, 0, 255).astype(face.dtype))
