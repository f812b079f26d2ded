"""Tilted, lying and upside-down faces: landmarks are where they are, or the face is left alone."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from musetalk_enhance.faces.detect import FFHQ_512, Face, NetworkDetector, YuNet
from musetalk_enhance.faces.rotated import RotatedFaces, misfit, roll
from musetalk_enhance.jobs.image_restorer import NOT_ALIGNED, RESTORED
from tests.jobs.test_image_restorer import make  # noqa: F401 - a fixture

COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]


class Dots(NetworkDetector):
    """Finds five dots, but like a real network: landmarks too upright, a lower score for a tilt.

    Args:
        blind: degrees of tilt from which on it finds nothing.
        share: of the tilt, that its landmarks show.
    """

    def __init__(self, blind: float = 100, share: float = 0.5) -> None:
        super().__init__(None, 0.6)
        self.blind, self.share = blind, share
        self.calls = 0

    def _find(self, image_bgr, threshold):
        self.calls += 1
        points = []
        for color in COLORS:
            ys, xs = np.nonzero(np.abs(image_bgr.astype(int) - color).max(axis=2) < 60)
            if len(xs) < 3:
                return np.empty((0, 15))
            points.append((xs.mean() + 0.5, ys.mean() + 0.5))
        points = np.array(points)
        tilt = (roll(points) + 180) % 360 - 180
        if abs(tilt) > self.blind:
            return np.empty((0, 15))
        shown = turned(points, points.mean(axis=0), -(1 - self.share) * tilt)
        box = np.concatenate((points.min(axis=0) - 20, points.max(axis=0) + 20))
        score = 0.95 - abs(tilt) / 400
        return np.concatenate((box, [score], shown.ravel()))[None] if score >= threshold else []


def turned(points, center, degrees):
    angle = np.radians(degrees)
    matrix = np.array(((np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))))
    return (points - center) @ matrix.T + center


def scene(degrees: float, side: float = 220, shape=(480, 640)):
    """An image with five dots, rotated clockwise, and where they are."""
    center = np.array((330.0, 230.0))
    points = turned((FFHQ_512 - FFHQ_512.mean(axis=0)) * side / 512 + center, center, degrees)
    image = np.full((*shape, 3), 128, np.uint8)
    for point, color in zip(points, COLORS, strict=True):
        cv2.circle(image, tuple(int(round(v - 0.5)) for v in point), 6, color, -1)
    return image, points


@pytest.mark.parametrize("degrees", [25, -40, 60, 90, -90, 130, 180, 217, 300])
def test_landmarks_of_a_tilted_face_are_found(degrees):
    image, points = scene(degrees)
    (face,) = RotatedFaces(Dots()).detect(image)
    assert face.aligned and face.landmarks.dtype == np.float32
    assert np.abs(face.landmarks - points).max() < 6
    assert np.allclose(face.box_xyxy.reshape(2, 2).mean(axis=0), points.mean(axis=0), atol=25)


def test_an_upright_face_keeps_its_landmarks_for_one_more_detection():
    image, _ = scene(4)
    detector = Dots()
    (plain,) = detector.detect(image)
    calls = detector.calls
    (face,) = RotatedFaces(detector).detect(image)
    assert np.array_equal(face.landmarks, plain.landmarks) and face.aligned
    assert detector.calls == 2 * calls + 1


def test_what_fits_in_no_rotation_is_left_alone():
    image, points = scene(0)
    wrong = image.copy()
    for point, color in zip(points[:2], COLORS[1::-1], strict=True):  # the eyes have changed sides
        cv2.circle(wrong, tuple(int(v) for v in point), 8, color, -1)
    (face,) = RotatedFaces(Dots()).detect(wrong)
    assert not face.aligned


def test_a_face_that_is_not_found_again_is_left_alone():
    class Once(Dots):
        def detect_once(self, image_bgr, threshold):
            return []

    (face,) = RotatedFaces(Once()).detect(scene(30)[0])
    assert not face.aligned


def test_no_face_in_any_rotation():
    detector = Dots()
    assert RotatedFaces(detector).detect(np.full((64, 80, 3), 128, np.uint8)) == []


def test_misfit_is_of_the_shape_alone():
    assert misfit(turned(FFHQ_512 * 0.3 + 50, np.zeros(2), 77)) < 1e-6
    squashed = FFHQ_512 * (1, 0.4)
    assert misfit(squashed) > 0.2


def test_a_face_that_does_not_fit_is_counted_as_left_alone(make):  # noqa: F811
    class Flagged(Dots):
        def detect_once(self, image_bgr, threshold):
            return []

    image, _ = scene(30)
    (one,) = make(Flagged()).restore([image])
    assert [note.state for note in one.faces] == [NOT_ALIGNED]
    assert np.array_equal(one.bgr, image)
    (one,) = make(Dots()).restore([image])
    assert [note.state for note in one.faces] == [RESTORED]


PEOPLE = "s0 s1 s10 s11 s22 s3 s4 s5 s6 s7 s8".split()


@pytest.mark.slow
def test_rotated_portraits(shared):
    """The figures of docs/rotated_faces.md, on a part of its portraits and angles."""
    path = shared / "weights/face_detection_yunet_2023mar.onnx"
    detector = YuNet(path, max_side=1280, min_face=32)
    rotated, errors, plain_errors = RotatedFaces(detector), [], []
    for name in PEOPLE[::2]:
        image = cv2.imread(str(shared / f"data/portraits/{name}.jpg"))
        scale = 480 / max(image.shape[:2])
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        upright = roll(detector.detect(image)[0].landmarks.astype(float))
        for degrees in (40, 100, 180, 290):
            side = int(np.hypot(*image.shape[:2])) + 4
            matrix = cv2.getRotationMatrix2D((image.shape[1] / 2, image.shape[0] / 2), -degrees, 1)
            matrix[:, 2] += (side - image.shape[1]) / 2, (side - image.shape[0]) / 2
            tilted = cv2.warpAffine(image, matrix, (side, side), borderValue=(127, 127, 127))
            for each, into in ((rotated, errors), (detector, plain_errors)):
                face = next(iter(each.detect(tilted)), None)
                is_lost = face is None or not face.aligned
                into.append(180.0 if is_lost else error(face, upright, degrees))
    assert np.median(errors) < 8 and np.mean(np.array(errors) > 20) <= 0.1
    assert np.mean(np.array(plain_errors) > 20) > 0.7


def error(face: Face, upright: float, degrees: float) -> float:
    shown = roll(face.landmarks.astype(float))
    return abs((shown - upright - degrees + 180) % 360 - 180)
