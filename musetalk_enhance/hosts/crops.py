"""The original crops of a looping avatar, in the order in which the host plays them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Packed = NDArray[np.uint8]
"""A crop as PNG."""


class _Loop(threading.local):
    """What a thread of the host plays.

    Attributes:
        crops: of the loop's latents; empty where it is not known which these are.
        step: of the next frame.
    """

    def __init__(self) -> None:
        self.crops: list[Packed | None] = []
        self.step = 0


class LoopedCrops:
    """The original crops of the latents that the host plays, for the frames that it decodes.

    What a host decodes are other latents, which its network made of those that it encoded, perhaps
    of another clip than the last. So there are no crops before `begin` says which ones it plays.
    They are kept as PNG for as long as the host keeps the latents: a minute of 256 px takes about
    150 MB, raw twice that.
    """

    def __init__(self) -> None:
        self._of_latents: dict[int, Packed] = {}
        self._loop = _Loop()

    def add(self, crop_bgr: Any, latents: Any) -> None:
        """Keep the crop of some latents.

        Args:
            crop_bgr: uint8 (H, W, 3).
            latents: what the host encoded it to.
        """
        if isinstance(crop_bgr, np.ndarray) and crop_bgr.dtype == np.uint8:
            packed = cv2.imencode(".png", crop_bgr, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
            with suppress(TypeError):  # no weak reference to such latents
                weakref.finalize(latents, self._of_latents.pop, id(latents), None).atexit = False
                self._of_latents[id(latents)] = np.asarray(packed, np.uint8)

    def begin(self, latents: Sequence[Any], first: int = 0) -> None:
        """Begin a loop of latents that the calling thread plays, with the one at index `first`,
        taken modulo their number; those of an avatar that was encoded in another run have no
        crops."""
        self._loop.crops = [self._of_latents.get(id(each)) for each in latents]
        self._loop.step = first

    def begin_any(self, arguments: Iterable[Any], first: int = 0) -> None:
        """As `begin`, with the list among a call's arguments that holds latents with crops."""
        lists = [each for each in arguments if isinstance(each, (list, tuple))]
        loops = (each for each in lists if any(id(item) in self._of_latents for item in each))
        self.begin(next(loops, ()), first)

    def end(self) -> None:
        """The calling thread goes on with something else: it is not known what it plays then."""
        self._loop.crops = []

    def take(self, count: int) -> list[NDArray[np.uint8] | None] | None:
        """Crops of the next frames; None where there is none, or for those without."""
        loop, first = self._loop.crops, self._loop.step
        self._loop.step += count
        steps = range(first, first + count)
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
