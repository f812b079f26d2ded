"""Face tracking in recorded video: some frames are read ahead, so that gaps are filled from both
sides and a track is selected before its first frame is restored."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..media.arrays import Image
from .detect import Face
from .selection import LOOK_AHEAD, FaceSelection, TrackKey
from .tracks import LandmarkSmoother, Match, TrackedFace, TrackMatcher


@dataclass
class _Entry:
    """A track in a frame that waits; `face` is None where it is missed."""

    key: TrackKey
    face: Face | None
    box_xyxy: NDArray[np.float64]
    first: bool
    missed: bool
    next_image: Image | None = None
    next_face: Face | None = None


class LookAheadTracker:
    """Tracks the faces of a video, `LOOK_AHEAD` frames behind the frames that it is given.

    A face that the detector misses in up to `LOOK_AHEAD` frames and then detects again is
    interpolated between, unless there is a scene cut. One that is not detected again stays where
    it was for `MAX_MISSED` frames.

    Args:
        fps: frames per second.
        min_face: see `TrackMatcher`.
        only_center: see `TrackMatcher`.
        selection: which tracks are restored; None: all.

    Raises:
        ConfigError: an invalid value.
    """

    def __init__(
        self,
        fps: float,
        *,
        min_face: float = 0,
        only_center: bool = False,
        selection: FaceSelection | None = None,
    ) -> None:
        self._matcher = TrackMatcher(
            min_face=min_face, only_center=only_center, max_missed=LOOK_AHEAD
        )
        self._smoother, self._selection = LandmarkSmoother(fps), selection
        self._window: deque[list[_Entry]] = deque()
        self._scene = 0

    def update(
        self, image_bgr: Image, faces: Sequence[Face], *, cut: bool = False
    ) -> list[TrackedFace] | None:
        """Take the next frame.

        Args:
            image_bgr: the frame, BGR uint8 (H, W, 3).
            faces: its detections.
            cut: a scene begins with it.

        Returns:
            The tracked faces of the frame `LOOK_AHEAD` before it; None if that has not been given.

        Raises:
            RestorerError: the selection's network failed.
        """
        self._scene += cut
        height, width = image_bgr.shape[:2]
        matches = self._matcher.update(faces, (width, height), cut=cut)
        for match in matches:
            self._fill(match, image_bgr)
        self._window.append([self._entry(match) for match in matches])
        if self._selection is not None:
            detected = {each.key: each.face for each in self._window[-1] if each.face is not None}
            self._selection.observe(image_bgr, detected)
        return self._pop() if len(self._window) > LOOK_AHEAD else None

    def flush(self) -> Iterator[list[TrackedFace]]:
        """The tracked faces of the frames that are still waiting, as far as they are known."""
        while self._window:
            yield self._pop()

    def _entry(self, match: Match) -> _Entry:
        face = match.face or match.previous
        box = np.zeros(4) if face is None else np.asarray(face.box_xyxy, np.float64)
        key = (match.track, self._scene)
        return _Entry(key, match.face, box, match.previous is None, match.face is None)

    def _fill(self, match: Match, image_bgr: Image) -> None:
        """Interpolate the face of a track through the frames in which it was missed."""
        if match.face is None or match.previous is None:
            return
        for back in range(1, min(match.gap - 1, len(self._window)) + 1):
            weight = 1 - back / match.gap
            for entry in self._window[-back]:
                if entry.key[0] == match.track:
                    entry.face = _interpolated(match.previous, match.face, weight)
                    entry.box_xyxy = entry.face.box_xyxy
                    entry.next_image, entry.next_face = image_bgr, match.face

    def _pop(self) -> list[TrackedFace]:
        entries = self._window.popleft()
        self._smoother.keep({entry.key[0] for entry in entries})
        tracked = []
        for entry in entries:
            points = self._smoother.update(entry.key[0], entry.face)
            if points is not None:
                tracked.append(self._tracked_face(entry, points))
        return tracked

    def _tracked_face(self, entry: _Entry, points: NDArray[np.float64]) -> TrackedFace:
        is_selected = self._selection is None or self._selection.is_selected(entry.key)
        return TrackedFace(
            entry.key[0],
            points,
            entry.box_xyxy,
            entry.first,
            entry.missed,
            is_selected,
            entry.next_image,
            None if entry.next_face is None else entry.next_face.landmarks,
        )


def _interpolated(start: Face, end: Face, weight: float) -> Face:
    """The face between two detections; `weight` of the second, 0..1."""
    box = (1 - weight) * start.box_xyxy + weight * end.box_xyxy
    landmarks = (1 - weight) * start.landmarks + weight * end.landmarks
    return Face(box, np.asarray(landmarks, np.float32), 0.0)
