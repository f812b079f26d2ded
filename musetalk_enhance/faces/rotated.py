"""Faces that are tilted, lying or upside down: detected again on crops of several rotations.

A detector that was trained on upright faces detects others too, but places their landmarks as if
they were nearly upright: of 40 degrees YuNet shows 3 to 25. Its score tells which of several
rotations is the right one. Figures behind the limits: docs/rotated_faces.md.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..media.arrays import Image, as_bgr_image
from .detect import FFHQ_512, Face, FaceDetector, NetworkDetector

CLEAR_SCORE, CLEAR_ROLL = 0.92, 7.0
"""Score from which on a face is taken for upright, if on its aligned crop the landmarks are rotated
by no more degrees than this."""
MAX_ROLL = 10.0
"""Degrees by which landmarks that are detected again on the aligned crop may be rotated."""
MAX_MISFIT = 0.35
"""Root mean square distance of these landmarks to the template's, after a similarity, in distances
of the template's eyes."""
_SIDE = 224  # of a crop, in pixels
_BOX_SIDES, _LANDMARK_SIDES = 2.0, 4.0  # side of a crop in sizes of a box, and of eyes to mouth
_ROTATIONS = tuple(45.0 * step for step in range(8))
_CANDIDATES, _ROUNDS, _THRESHOLD = 2, 4, 0.5
_Points = NDArray[np.float64]


class RotatedFaces(FaceDetector):
    """Detects faces of any rotation in still images.

    If a detector finds no face, the image is rotated by quarter turns. Each face is then detected
    again on its aligned crop, and if that disagrees, on crops in eight rotations; the best of them
    are aligned and detected again. Faces that are upright keep their landmarks as they are.

    Args:
        detector: a network for upright faces; `close` closes it.
    """

    def __init__(self, detector: NetworkDetector) -> None:
        self.detector = detector

    def detect(self, image_bgr: Image) -> list[Face]:
        """See `FaceDetector.detect`; `Face.aligned` is False where no rotation fits."""
        image = as_bgr_image(image_bgr)
        faces = self.detector.detect(image) or self._in_quarter_turns(image)
        return [self._rotated(image, face) for face in faces]

    def close(self) -> None:
        """Close the detector."""
        self.detector.close()

    def _in_quarter_turns(self, image: Image) -> list[Face]:
        """The faces of the rotation that shows the one with the highest score."""
        best: tuple[float, int, list[Face]] | None = None
        for turns in (1, 3, 2):
            faces = self.detector.detect(np.ascontiguousarray(np.rot90(image, turns)))
            score = max((face.score for face in faces), default=0.0)
            if faces and (best is None or score > best[0]):
                best = score, turns, faces
        if best is None:
            return []
        height, width = image.shape[:2]
        return [_turned_back(face, best[1], width, height) for face in best[2]]

    def _rotated(self, image: Image, face: Face) -> Face:
        points = np.asarray(face.landmarks, np.float64)
        if face.score >= CLEAR_SCORE and _fits(self._aligned(image, points), CLEAR_ROLL):
            return face
        left, top, right, bottom = face.box_xyxy
        center = np.array(((left + right) / 2, (top + bottom) / 2))
        side = _BOX_SIDES * max(right - left, bottom - top)
        detections = [self._on_crop(image, center, side, degrees) for degrees in _ROTATIONS]
        candidates = sorted(
            (each for each in detections if each is not None), key=lambda each: -each[0]
        )
        refined = []
        for _, _, candidate in candidates[:_CANDIDATES]:
            for _ in range(_ROUNDS):
                detection = self._aligned(image, candidate)
                if detection is None:
                    break
                score, on_crop, candidate = detection
            else:
                refined.append((score, on_crop, candidate))
        best = max(refined, key=lambda each: each[0], default=None)
        if best is None or not _fits(best, MAX_ROLL):
            return replace(face, aligned=False)
        if abs(_signed(roll(best[2]) - roll(points))) <= CLEAR_ROLL:
            return face
        return replace(face, landmarks=best[2].astype(np.float32))

    def _aligned(self, image: Image, points: _Points) -> tuple[float, _Points, _Points] | None:
        """Detect again on the crop that landmarks align."""
        eyes, mouth = points[:2].mean(axis=0), points[3:].mean(axis=0)
        size = max(np.linalg.norm(points[0] - points[1]), np.linalg.norm(mouth - eyes))
        if size < 1:
            return None
        side = _LANDMARK_SIDES * float(size)
        return self._on_crop(image, points.mean(axis=0), side, roll(points))

    def _on_crop(
        self, image: Image, center: _Points, side: float, degrees: float
    ) -> tuple[float, _Points, _Points] | None:
        """Score and landmarks, in the crop and in the image, of the face in its middle.

        The crop is a square of `side` pixels of the image, rotated so that a face that is rotated
        clockwise by `degrees` is upright.
        """
        import cv2

        scale, angle = _SIDE / side, np.radians(-degrees)
        cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
        linear = np.array(((cosine, -sine), (sine, cosine)))
        matrix = np.column_stack((linear, _SIDE / 2 - linear @ center))
        flags = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        crop = cv2.warpAffine(
            image, matrix, (_SIDE, _SIDE), flags=flags, borderMode=cv2.BORDER_REPLICATE
        )
        faces = self.detector.detect_once(np.asarray(crop, np.uint8), _THRESHOLD)
        if not faces:
            return None
        offsets = [face.landmarks.mean(axis=0) - _SIDE / 2 for face in faces]
        middle = faces[int(np.argmin([np.hypot(*offset) for offset in offsets]))]
        on_crop = np.asarray(middle.landmarks, np.float64)
        return middle.score, on_crop, (on_crop - matrix[:, 2]) @ np.linalg.inv(linear).T


def _fits(detection: tuple[float, _Points, _Points] | None, max_roll: float) -> bool:
    """Whether landmarks on an aligned crop are upright and shaped like the template's."""
    if detection is None:
        return False
    return abs(_signed(roll(detection[1]))) <= max_roll and misfit(detection[1]) <= MAX_MISFIT


def roll(points: _Points) -> float:
    """Degrees by which a face is rotated clockwise, from the middle of its eyes to its mouth's."""
    down = points[3:].mean(axis=0) - points[:2].mean(axis=0)
    return float(np.degrees(np.arctan2(-down[0], down[1])))


def misfit(points: _Points) -> float:
    """Distance of landmarks to the FFHQ template after the best similarity; see `MAX_MISFIT`."""
    template = FFHQ_512 - FFHQ_512.mean(axis=0)
    centered = points - points.mean(axis=0)
    ours, theirs = (each[:, 0] + 1j * each[:, 1] for each in (centered, template))
    by = (theirs * ours.conj()).sum() / max(float((abs(ours) ** 2).sum()), 1e-9)
    distance = np.sqrt((abs(by * ours - theirs) ** 2).mean())
    return float(distance / np.linalg.norm(FFHQ_512[0] - FFHQ_512[1]))


def _signed(degrees: float) -> float:
    return (degrees + 180) % 360 - 180


def _turned_back(face: Face, turns: int, width: int, height: int) -> Face:
    """A face of an image that was rotated by quarter turns counterclockwise, in the image."""

    def back(points: NDArray[np.floating]) -> _Points:
        x, y = points[:, 0].astype(np.float64), points[:, 1].astype(np.float64)
        pairs = {1: (width - y, x), 2: (width - x, height - y), 3: (y, height - x)}
        return np.stack(pairs[turns], axis=1)

    corners = back(face.box_xyxy.reshape(2, 2))
    box = np.concatenate((corners.min(axis=0), corners.max(axis=0)))
    return replace(face, box_xyxy=box, landmarks=back(face.landmarks).astype(np.float32))
