"""Face tracking through a video: one track per face, with smoothed landmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from .align import LandmarkTrack
from .detect import Face

MAX_MISSED = 3
"""Frames for which a track keeps its last position while the detector misses its face."""
MIN_IOU = 0.3
"""Smallest intersection over union of two boxes that may belong to one face."""
SIZE_HYSTERESIS = 0.8
"""A tracked face is dropped when its box is smaller than this share of the minimum size."""
_MOMENTUM = 0.5  # weight of the previous speed in that of a box


@dataclass(frozen=True, eq=False)
class TrackedFace:
    """A face of one frame.

    Attributes:
        track: number of the track; never used twice.
        landmarks: float64 (5, 2), x, y in pixels of the frame, smoothed.
        box_xyxy: as detected; the previous frame's where the detector missed the face.
        first: whether the track starts with this frame.
        missed: whether the detector missed the face.
    """

    track: int
    landmarks: NDArray[np.float64]
    box_xyxy: NDArray[np.float64]
    first: bool = False
    missed: bool = False


class _Track:
    def __init__(self, number: int, fps: float) -> None:
        self.number, self.missed, self.age = number, 0, 0
        self.box_xyxy: NDArray[np.float64] = np.zeros(4)
        self._speed: NDArray[np.float64] = np.zeros(4)
        self.landmarks = LandmarkTrack(fps=fps, hold=MAX_MISSED)

    def predict(self) -> NDArray[np.float64]:
        """The box in the next frame at constant speed."""
        return self.box_xyxy + self._speed * (self.missed + 1)

    def update(self, face: Face | None) -> TrackedFace | None:
        """The face in the next frame; None once it has been missed for too long."""
        no_face = np.full((5, 2), np.nan)
        points = self.landmarks.update(landmarks=no_face if face is None else face.landmarks)
        if face is not None:
            self._move(np.asarray(face.box_xyxy, np.float64))
        self.missed = 0 if face is not None else self.missed + 1
        if points is None or self.missed > MAX_MISSED:
            return None
        self.age += 1
        return TrackedFace(self.number, points, self.box_xyxy, self.age == 1, face is None)

    def _move(self, box: NDArray[np.float64]) -> None:
        """Set the box; its speed is its center's, because detectors are less accurate at sides."""
        if self.age:
            step = (box - self.box_xyxy) / (self.missed + 1)
            step = np.tile((step[:2] + step[2:]) / 2, 2)
            mean = _MOMENTUM * self._speed + (1 - _MOMENTUM) * step
            self._speed = mean if self.age > 1 else step
        self.box_xyxy = box


class FaceTracker:
    """Tracks all faces of one video.

    Faces of two frames are matched greedily by the overlap of their boxes, best pairs first: first
    with each track's position predicted at constant speed, so that two faces that cross keep their
    tracks, then with its last position. A face that overlaps no track starts a new one. The order
    of the detector's faces does not matter.

    Args:
        fps: frames per second.
        min_face: smallest longer side of a box, in pixels, that starts a track.
        only_center: track a single face: the one nearest to the center when there is no track.

    Raises:
        ConfigError: an invalid value.
    """

    def __init__(self, fps: float, *, min_face: float = 0, only_center: bool = False) -> None:
        if min_face < 0:
            raise ConfigError("min_face", min_face, "0 or more pixels")
        self._fps, self._min_face, self._only_center = fps, min_face, only_center
        self._tracks: list[_Track] = []
        self._next = 0

    def update(self, faces: Sequence[Face], size_wh: tuple[int, int]) -> list[TrackedFace]:
        """The tracked faces of the next frame.

        Args:
            faces: the frame's detections.
            size_wh: width and height of the frame, in pixels.
        """
        faces = sorted(faces, key=_rank)
        pairs = self._match(faces)
        matched = set(pairs.values())
        tracked, alive = [], []
        for index, track in enumerate(self._tracks):
            face = track.update(faces[pairs[index]] if index in pairs else None)
            if face is not None and self._is_large(track.box_xyxy, SIZE_HYSTERESIS):
                tracked.append(face)
                alive.append(track)
        self._tracks = alive
        for index in self._unmatched(faces, matched, size_wh):
            track = _Track(self._next, self._fps)
            face = track.update(faces[index])
            self._next += 1
            if face is not None:
                self._tracks.append(track)
                tracked.append(face)
        return tracked

    def _unmatched(
        self, faces: Sequence[Face], matched: set[int], size_wh: tuple[int, int]
    ) -> list[int]:
        """Indices of the faces that start a track."""
        unmatched = [
            index
            for index, face in enumerate(faces)
            if index not in matched and self._is_large(face.box_xyxy)
        ]
        if not self._only_center:
            return unmatched
        center = np.array(size_wh) / 2

        def distance(index: int) -> float:
            box = faces[index].box_xyxy
            return float(np.hypot(*((box[:2] + box[2:]) / 2 - center)))

        return [] if self._tracks else sorted(unmatched, key=distance)[:1]

    def _is_large(self, box: NDArray[np.float64], share: float = 1.0) -> bool:
        return float((box[2:] - box[:2]).max()) >= share * self._min_face

    def _match(self, faces: Sequence[Face]) -> dict[int, int]:
        """Index of track to index of face, by overlap."""
        pairs: dict[int, int] = {}
        predicted = [track.predict() for track in self._tracks]
        last = [track.box_xyxy for track in self._tracks]
        for boxes in (predicted, last):
            candidates = sorted(
                (-_iou(box, face.box_xyxy), track, index)
                for track, box in enumerate(boxes)
                for index, face in enumerate(faces)
            )
            for negative_iou, track, index in candidates:
                is_free = track not in pairs and index not in pairs.values()
                if -negative_iou >= MIN_IOU and is_free:
                    pairs[track] = index
        return pairs


def _rank(face: Face) -> tuple[float, ...]:
    """Sort key: the largest face first, then by position."""
    box = [float(side) for side in face.box_xyxy]
    return ((box[0] - box[2]) * (box[3] - box[1]), *box)


def _iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Intersection over union of two boxes."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    intersection = float(np.prod(np.maximum(sides, 0)))
    union = float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - intersection
    return intersection / union if union > 0 else 0.0
