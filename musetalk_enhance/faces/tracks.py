"""Face tracking through a video: one track per face, with smoothed landmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..media.arrays import Image
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
        selected: whether it is one of the faces to restore.
        next_image: the frame that ends the gap, BGR uint8 (H, W, 3), where the face is missed and
            detected again later; else None.
        next_landmarks: the landmarks detected in it, float32 (5, 2), in pixels.
    """

    track: int
    landmarks: NDArray[np.float64]
    box_xyxy: NDArray[np.float64]
    first: bool = False
    missed: bool = False
    selected: bool = True
    next_image: Image | None = None
    next_landmarks: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class Match:
    """A track in one frame.

    Attributes:
        track: number of the track; never used twice.
        face: its detection; None where the detector missed the face.
        previous: its last detection before this frame; None in the first frame of the track.
        gap: number of frames since `previous`, 1 for neighbors; 0 in the first frame.
    """

    track: int
    face: Face | None
    previous: Face | None
    gap: int


class _Track:
    def __init__(self, number: int, face: Face) -> None:
        self.number, self.missed, self.age, self.face = number, 0, 1, face
        self._speed: NDArray[np.float64] = np.zeros(4)

    @property
    def box_xyxy(self) -> NDArray[np.float64]:
        """The last detected box."""
        return np.asarray(self.face.box_xyxy, np.float64)

    def predict(self) -> NDArray[np.float64]:
        """The box in the next frame at constant speed."""
        return self.box_xyxy + self._speed * (self.missed + 1)

    def update(self, face: Face | None) -> Match:
        """The next frame; None where the detector missed the face."""
        match = Match(self.number, face, self.face, self.missed + 1)
        if face is not None:
            self._move(np.asarray(face.box_xyxy, np.float64))
            self.face = face
        self.missed = 0 if face is not None else self.missed + 1
        self.age += 1
        return match

    def _move(self, box: NDArray[np.float64]) -> None:
        """Set the speed to that of the center, because detectors are less accurate at sides."""
        step = (box - self.box_xyxy) / (self.missed + 1)
        step = np.tile((step[:2] + step[2:]) / 2, 2)
        mean = _MOMENTUM * self._speed + (1 - _MOMENTUM) * step
        self._speed = mean if self.age > 1 else step


class TrackMatcher:
    """Matches the faces of each frame to tracks.

    Faces of two frames are matched greedily by the overlap of their boxes, best pairs first: first
    with each track's position predicted at constant speed, so that two faces that cross keep their
    tracks, then with its last position. A face that overlaps no track starts a new one. The order
    of the detector's faces does not matter.

    Args:
        min_face: smallest longer side of a box, in pixels, that starts a track.
        only_center: track a single face: the one nearest to the center when there is no track.
        max_missed: frames for which a track waits for a face that the detector misses.

    Raises:
        ConfigError: an invalid value.
    """

    def __init__(
        self, *, min_face: float = 0, only_center: bool = False, max_missed: int = MAX_MISSED
    ) -> None:
        if min_face < 0:
            raise ConfigError("min_face", min_face, "0 or more pixels")
        self._min_face, self._only_center, self._max_missed = min_face, only_center, max_missed
        self._tracks: list[_Track] = []
        self._next = 0

    def update(
        self, faces: Sequence[Face], size_wh: tuple[int, int], *, cut: bool = False
    ) -> list[Match]:
        """The tracks in the next frame.

        Args:
            faces: the frame's detections.
            size_wh: width and height of the frame, in pixels.
            cut: a scene begins with the frame: tracks whose faces are missed end.
        """
        if cut:
            self._tracks = [track for track in self._tracks if not track.missed]
        faces = sorted(faces, key=_rank)
        pairs = self._match(faces)
        matches, alive = [], []
        for index, track in enumerate(self._tracks):
            match = track.update(faces[pairs[index]] if index in pairs else None)
            is_over = track.missed > (0 if cut else self._max_missed)
            if not is_over and self._is_large(track.box_xyxy, SIZE_HYSTERESIS):
                matches.append(match)
                alive.append(track)
        self._tracks = alive
        for index in self._unmatched(faces, set(pairs.values()), size_wh):
            self._tracks.append(_Track(self._next, faces[index]))
            matches.append(Match(self._next, faces[index], None, 0))
            self._next += 1
        return matches

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


class FaceTracker:
    """Tracks all faces of one video, frame by frame, without a look ahead.

    Args:
        fps: frames per second.
        min_face: see `TrackMatcher`.
        only_center: see `TrackMatcher`.

    Raises:
        ConfigError: an invalid value.
    """

    def __init__(self, fps: float, *, min_face: float = 0, only_center: bool = False) -> None:
        self._matcher = TrackMatcher(min_face=min_face, only_center=only_center)
        self._smoother = LandmarkSmoother(fps)

    def update(self, faces: Sequence[Face], size_wh: tuple[int, int]) -> list[TrackedFace]:
        """The tracked faces of the next frame; a missed one stays where it was for `MAX_MISSED`.

        Args:
            faces: the frame's detections.
            size_wh: width and height of the frame, in pixels.
        """
        matches = self._matcher.update(faces, size_wh)
        self._smoother.keep({match.track for match in matches})
        tracked = []
        for match in matches:
            points = self._smoother.update(match.track, match.face)
            face = match.face or match.previous
            if points is not None and face is not None:
                box = np.asarray(face.box_xyxy, np.float64)
                first, missed = match.previous is None, match.face is None
                tracked.append(TrackedFace(match.track, points, box, first, missed))
        return tracked


class LandmarkSmoother:
    """The smoothed landmarks of every track.

    Args:
        fps: frames per second.
    """

    def __init__(self, fps: float) -> None:
        self._fps = fps
        self._tracks: dict[int, LandmarkTrack] = {}

    def update(self, track: int, face: Face | None) -> NDArray[np.float64] | None:
        """The landmarks of a track's next frame, float64 (5, 2) in pixels.

        Args:
            track: number of the track.
            face: None where it is missed: for `MAX_MISSED` frames it stays where it was.

        Raises:
            ConfigError: `fps` is not above 0.
        """
        if track not in self._tracks:
            self._tracks[track] = LandmarkTrack(fps=self._fps, hold=MAX_MISSED)
        no_face = np.full((5, 2), np.nan)
        return self._tracks[track].update(landmarks=no_face if face is None else face.landmarks)

    def keep(self, tracks: set[int]) -> None:
        """Forget all other tracks."""
        for track in self._tracks.keys() - tracks:
            del self._tracks[track]


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
