"""Which faces of a video are restored: by position, or by likeness to a reference photo."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..media.arrays import Image
from .detect import Face
from .identity import SAME_PERSON, ReferenceFaces

TrackKey = tuple[int, int]
"""Number of a track, and of the scene that it is in: a track over a scene cut is decided again."""

LOOK_AHEAD = 8
"""Frames that are known before the first frame of a track is decided; also the longest gap, in
frames, that is filled."""
HYSTERESIS = 0.1
"""How far the likeness of a selected track may fall below `SAME_PERSON`."""
BEST, RECENT = 3, 16
"""A track is as like as the mean of its `BEST` among its `RECENT` measurements: a profile or a
closed eye lowers single ones, and after a change of person the old ones fade."""
INTERVAL = 4
"""Frames between two measurements of a track that is older than `LOOK_AHEAD`."""


class FaceSelection(ABC):
    """Decides for each track of a video whether its face is restored."""

    @abstractmethod
    def observe(self, image_bgr: Image, faces: Mapping[TrackKey, Face]) -> None:
        """Take the detected faces of the next frame, in BGR uint8 (H, W, 3)."""

    @abstractmethod
    def is_selected(self, key: TrackKey) -> bool:
        """Whether a track that has been observed is selected, as far as it is known by now."""


class PositionSelection(FaceSelection):
    """Selects the face that covers a point, or is nearest to it, where its track begins.

    A track competes with those observed within `LOOK_AHEAD` frames. One that has lost stays out.

    Args:
        point_xy: x, y in pixels of an upright frame.
    """

    def __init__(self, point_xy: tuple[float, float]) -> None:
        self._point = np.asarray(point_xy, np.float64)
        self._distances: dict[TrackKey, tuple[float, float]] = {}
        self._recent: deque[set[TrackKey]] = deque(maxlen=LOOK_AHEAD + 1)
        self._excluded: set[TrackKey] = set()

    def observe(self, image_bgr: Image, faces: Mapping[TrackKey, Face]) -> None:
        """See `FaceSelection.observe`."""
        for key in faces.keys() - self._distances.keys():
            self._distances[key] = _distance(faces[key].box_xyxy, self._point)
        self._recent.append(set(faces))

    def is_selected(self, key: TrackKey) -> bool:
        """See `FaceSelection.is_selected`."""
        rivals = (other for keys in self._recent for other in keys if other[1] == key[1])
        if any(self._distances[other] < self._distances[key] for other in rivals):
            self._excluded.add(key)
        return key not in self._excluded


@dataclass
class _Likeness:
    """What is known of one track."""

    age: int = 0
    selected: bool = False
    similarities: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    def add(self, similarity: float) -> None:
        self.similarities.append(similarity)
        mean = float(np.mean(sorted(self.similarities)[-BEST:]))
        self.selected = mean >= SAME_PERSON - HYSTERESIS * self.selected


class IdentitySelection(FaceSelection):
    """Selects the tracks of people on reference photos.

    Args:
        reference: the faces of the photos.
    """

    def __init__(self, reference: ReferenceFaces) -> None:
        self._reference = reference
        self._tracks: dict[TrackKey, _Likeness] = {}

    def observe(self, image_bgr: Image, faces: Mapping[TrackKey, Face]) -> None:
        """See `FaceSelection.observe`."""
        for key, face in faces.items():
            track = self._tracks.setdefault(key, _Likeness())
            if track.age <= LOOK_AHEAD or track.age % INTERVAL == 0:
                track.add(self._reference.similarity(image_bgr, face))
            track.age += 1

    def is_selected(self, key: TrackKey) -> bool:
        """See `FaceSelection.is_selected`."""
        return self._tracks[key].selected


def _distance(box_xyxy: NDArray[np.float64], point: NDArray[np.float64]) -> tuple[float, float]:
    """Distance of a point from a box, 0 inside, and from its center."""
    outside = np.maximum(np.maximum(box_xyxy[:2] - point, point - box_xyxy[2:]), 0)
    center = (box_xyxy[:2] + box_xyxy[2:]) / 2 - point
    return float(np.hypot(*outside)), float(np.hypot(*center))
