"""The original crops of a looping avatar, in the order in which the host encoded them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Packed = NDArray[np.uint8]
"""A crop as PNG."""


class LoopedCrops(threading.local):
    """What a thread of the host encoded for a clip, frame by frame, for the frames that it decodes.

    `begin` says which latents the host plays. Without it, that is what was encoded last, forward
    and backward. The crops are kept as PNG for as long as the host keeps the latents: a minute of
    256 px takes about 150 MB, raw twice that.
    """

    def __init__(self) -> None:
        self._crops: list[Packed] = []
        self._of_latents: dict[int, Packed] = {}
        self._loop: list[Packed | None] | None = None
        self._step = 0
        self._played = False

    def add(self, crop_bgr: Any, latents: Any = None) -> None:
        """Keep the crop of the next frame; after frames were taken it begins another avatar.

        Args:
            crop_bgr: uint8 (H, W, 3).
            latents: what the host encoded it to.
        """
        if self._played:
            self._crops, self._loop, self._step, self._played = [], None, 0, False
        if isinstance(crop_bgr, np.ndarray) and crop_bgr.dtype == np.uint8:
            packed = cv2.imencode(".png", crop_bgr, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
            self._crops.append(np.asarray(packed, np.uint8))
            with suppress(TypeError):  # no weak reference to such latents
                weakref.finalize(latents, self._of_latents.pop, id(latents), None).atexit = False
                self._of_latents[id(latents)] = self._crops[-1]

    def begin(self, latents: Sequence[Any]) -> None:
        """Begin with the first of the latents that the host plays in a loop; those of an avatar
        that was encoded in another run have no crops."""
        self._crops, self._step = [], 0
        self._loop = [self._of_latents.get(id(each)) for each in latents]

    def rewind(self) -> None:
        """Begin again with the first frame: another audio for the same avatar."""
        self._step = 0

    def take(self, count: int) -> list[NDArray[np.uint8] | None] | None:
        """Crops of the next frames; None where there is none, or for those without."""
        loop = self._crops + self._crops[::-1] if self._loop is None else self._loop
        self._played = True
        steps = range(self._step, self._step + count)
        self._step += count
        crops = [_decoded(loop[step % len(loop)]) for step in steps] if loop else []
        return crops if any(crop is not None for crop in crops) else None


def _decoded(packed: Packed | None) -> NDArray[np.uint8] | None:
    if packed is None:
        return None
    return np.asarray(cv2.imdecode(packed, cv2.IMREAD_COLOR), np.uint8)


def mirror_index(length: int, step: int) -> int:
    """The frame of a loop of `length` frames, played forward and backward, at a step."""
    turn, rest = divmod(step, length)
    return rest if turn % 2 == 0 else length - 1 - rest
