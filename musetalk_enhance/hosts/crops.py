"""The original crops of a looping avatar, in the order in which the host encoded them."""

from __future__ import annotations

import threading
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray


class LoopedCrops(threading.local):
    """What a thread of the host encoded for a clip, frame by frame, for the frames that it decodes.

    The host plays an avatar forward and backward, and decodes one frame for each step from the
    first on. The crops are kept as PNG: a minute of 256 px takes about 150 MB, raw twice that.
    """

    def __init__(self) -> None:
        self._crops: list[NDArray[np.uint8]] = []
        self._step = 0
        self._played = False

    def add(self, crop_bgr: Any) -> None:
        """Keep the crop of the next frame, BGR uint8 (H, W, 3); after frames were taken it begins
        another avatar."""
        if self._played:
            self._crops, self._step, self._played = [], 0, False
        if isinstance(crop_bgr, np.ndarray) and crop_bgr.dtype == np.uint8:
            packed = cv2.imencode(".png", crop_bgr, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
            self._crops.append(np.asarray(packed, np.uint8))

    def rewind(self) -> None:
        """Begin again with the first frame: another audio for the same avatar."""
        self._step = 0

    def take(self, count: int) -> list[NDArray[np.uint8]] | None:
        """Crops of the next frames; None where nothing was encoded in this thread."""
        length = len(self._crops)
        if not length:
            return None
        self._played = True
        steps = range(self._step, self._step + count)
        self._step += count
        numbers = [mirror_index(length, step) for step in steps]
        return [
            np.asarray(cv2.imdecode(self._crops[number], cv2.IMREAD_COLOR), np.uint8)
            for number in numbers
        ]


def mirror_index(length: int, step: int) -> int:
    """The frame of a loop of `length` frames, played forward and backward, at a step."""
    turn, rest = divmod(step, length)
    return rest if turn % 2 == 0 else length - 1 - rest
