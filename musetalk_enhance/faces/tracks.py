"""Faces followed through a film: which face of this frame is which of the frame before, and steady landmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from .align import LandmarkTrack
from .detect import Face

HOLD = 3
"""Frames for which a face that the detector misses is taken to be where it was."""
LEAST_OVERLAP = 0.3
"""Intersection over union of two boxes from which on they may be one face."""
KEPT = 0.8
"""A face that was large enough stays so until its box is smaller than this share of the least size."""
_SPEED_KEPT = 0.5  # how much of the speed before goes into that of a box now


@dataclass(frozen=True, eq=False)
class Seen:
    """A face of one frame.

    Attributes:
        track: which face it is; no two faces ever have the same number.
        landmarks: float64 (5, 2), x, y in pixels of the frame, smoothed.
        box_xyxy: as the detector gave it; of the frame before, where it missed the face.
        first: whether the face was not there in the frame before.
        held: whether the detector missed it.
    """

    track: int
    landmarks: NDArray[np.float64]
    box_xyxy: NDArray[np.float64]
    first: bool = False
    held: bool = False


class _Track:
    def __init__(self, number: int, fps: float) -> None:
        self.number, self.missed, self.age = number, 0, 0
        self.box_xyxy: NDArray[np.float64] = np.zeros(4)
        self._speed: NDArray[np.float64] = np.zeros(4)
        self.steady = LandmarkTrack(fps=fps, hold=HOLD)

    def expected(self) -> NDArray[np.float64]:
        """Where its box is in the next frame, if it goes on as before."""
        return self.box_xyxy + self._speed * (self.missed + 1)

    def update(self, face: Face | None) -> Seen | None:
        """The face in the next frame; None once it has been gone for too long."""
        nowhere = np.full((5, 2), np.nan)
        points = self.steady.update(landmarks=nowhere if face is None else face.landmarks)
        if face is not None:
            self._move(np.asarray(face.box_xyxy, np.float64))
        self.missed = 0 if face is not None else self.missed + 1
        if points is None or self.missed > HOLD:
            return None
        self.age += 1
        return Seen(self.number, points, self.box_xyxy, self.age == 1, face is None)

    def _move(self, box: NDArray[np.float64]) -> None:
        """Take a box; its speed is that of its middle, because detectors are less sure of sides."""
        if self.age:
            step = (box - self.box_xyxy) / (self.missed + 1)
            step = np.tile((step[:2] + step[2:]) / 2, 2)
            self._speed = _SPEED_KEPT * self._speed + (1 - _SPEED_KEPT) * step if self.age > 1 else step
        self.box_xyxy = box


class FaceTracks:
    """Follows all faces of one film.

    Faces of two frames are one where their boxes overlap most, best pairs first: a face is looked for where it would
    be if it went on as before, so that two that cross keep their numbers, and then where it was. What overlaps
    nothing is new. In which order a detector names faces does not matter.

    Args:
        fps: frames per second.
        min_face: a face is taken up when a side of its box has as many pixels.
        only_center: follow only one face: the one nearest to the middle when there was none before.

    Raises:
        ConfigError: an impossible value.
    """

    def __init__(self, fps: float, *, min_face: float = 0, only_center: bool = False) -> None:
        if min_face < 0:
            raise ConfigError("min_face", min_face, "0 or more pixels")
        self._fps, self._min_face, self._only_center = fps, min_face, only_center
        self._tracks: list[_Track] = []
        self._next = 0

    def update(self, faces: Sequence[Face], size_wh: tuple[int, int]) -> list[Seen]:
        """The faces of the next frame.

        Args:
            faces: what the detector found in it.
            size_wh: width and height of the frame, in pixels.
        """
        faces = sorted(faces, key=_rank)
        pairs = self._pairs(faces)
        taken = set(pairs.values())
        seen, alive = [], []
        for index, track in enumerate(self._tracks):
            found = track.update(faces[pairs[index]] if index in pairs else None)
            if found is not None and self._large(track.box_xyxy, KEPT):
                seen.append(found)
                alive.append(track)
        self._tracks = alive
        for index in self._new(faces, taken, size_wh):
            track = _Track(self._next, self._fps)
            found = track.update(faces[index])
            self._next += 1
            if found is not None:
                self._tracks.append(track)
                seen.append(found)
        return seen

    def _new(self, faces: Sequence[Face], taken: set[int], size_wh: tuple[int, int]) -> list[int]:
        """Which faces to take up."""
        fresh = [index for index, face in enumerate(faces) if index not in taken and self._large(face.box_xyxy)]
        if not self._only_center:
            return fresh
        middle = np.array(size_wh) / 2

        def apart(index: int) -> float:
            box = faces[index].box_xyxy
            return float(np.hypot(*((box[:2] + box[2:]) / 2 - middle)))

        return [] if self._tracks else sorted(fresh, key=apart)[:1]

    def _large(self, box: NDArray[np.float64], share: float = 1.0) -> bool:
        return float((box[2:] - box[:2]).max()) >= share * self._min_face

    def _pairs(self, faces: Sequence[Face]) -> dict[int, int]:
        """Track to face, by overlap."""
        pairs: dict[int, int] = {}
        for places in ([track.expected() for track in self._tracks], [track.box_xyxy for track in self._tracks]):
            rated = sorted(
                (-_overlap(place, face.box_xyxy), here, there)
                for here, place in enumerate(places)
                for there, face in enumerate(faces)
            )
            for overlap, here, there in rated:
                if -overlap >= LEAST_OVERLAP and here not in pairs and there not in pairs.values():
                    pairs[here] = there
        return pairs


def _rank(face: Face) -> tuple[float, ...]:
    """The largest face first; where it is decides between two of one size."""
    box = [float(side) for side in face.box_xyxy]
    return ((box[0] - box[2]) * (box[3] - box[1]), *box)


def _overlap(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Intersection over union of two boxes."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    common = float(np.prod(np.maximum(sides, 0)))
    both = float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - common
    return common / both if both > 0 else 0.0
