"""Where the face is: by what differs, grown to a face, or along a detector's boxes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from musetalk_enhance.report.region import (
    Track,
    find_difference,
    follow,
    grow_to_face,
    inside,
    with_margin,
)

WH = (320, 240)


@pytest.fixture
def scene(rng) -> np.ndarray:
    noise = rng.normal(0, 40, (WH[1], WH[0], 3))
    return np.clip(128 + cv2.GaussianBlur(noise, (0, 0), 1.0), 0, 255).astype(np.uint8)


def packed(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A trace of a codec's noise."""
    return np.clip(frame + np.rint(rng.normal(0, 0.7, frame.shape)), 0, 255).astype(np.uint8)


def pairs(scene, rng, change):
    for _ in range(6):
        yield packed(scene, rng), packed(change(scene.copy()), rng)


def sharpened(frame):
    part = frame[100:180, 120:220].astype(np.float32)
    frame[100:180, 120:220] = np.clip(2 * part - cv2.GaussianBlur(part, (0, 0), 2), 0, 255)
    return frame


def tinted(frame):
    frame[100:180, 120:220] = np.clip(frame[100:180, 120:220].astype(int) + 4, 0, 255)
    return frame


@pytest.mark.parametrize("change", [sharpened, tinted])
def test_the_restored_region_is_found_under_noise(scene, rng, change):
    box = find_difference(pairs(scene, rng, change))
    assert np.abs(np.subtract(box, (120, 100, 220, 180))).max() <= 10


def test_noise_alone_is_no_difference(scene, rng):
    assert find_difference(pairs(scene, rng, lambda frame: frame)) is None
    assert find_difference([(scene, scene)]) is None and find_difference([]) is None


def test_the_lower_half_grows_upward_to_a_face():
    assert grow_to_face((100, 120, 200, 180), WH) == (
        94,
        48,
        206,
        188,
    )  # 125 high, and 6 % on each side
    assert grow_to_face((100, 60, 200, 180), WH) == (
        94,
        53,
        206,
        187,
    )  # a whole face stays as it is
    assert grow_to_face((0, 20, 200, 100), WH) == (0, 0, 212, 115)  # inside the frame


def test_boxes_stay_inside_and_are_not_too_small():
    assert inside((-5, 3, 400, 100), WH) == (0, 3, 320, 100)
    left, top, right, bottom = inside((310, 100, 315, 101), WH)
    assert right - left == bottom - top == 32 and right <= 320
    assert with_margin((100, 100, 200, 200), WH, 0.1) == (90, 90, 210, 210)


def test_a_head_that_hardly_moves_gets_one_box(rng):
    boxes = [
        (index, np.array([100, 80, 200, 200]) + rng.normal(0, 2, 4)) for index in range(0, 50, 5)
    ]
    track = follow(boxes)
    assert track.at(0, WH) == track.at(49, WH)
    assert np.abs(np.subtract(track.at(7, WH), (94, 73, 206, 207))).max() <= 4


def test_a_head_that_strays_is_followed_with_a_box_of_one_size():
    boxes = [(index, (50 + 3 * index, 80, 110 + 3 * index, 160)) for index in range(0, 60, 4)]
    track = follow(boxes)
    sizes = {
        (right - left, bottom - top)
        for left, top, right, bottom in (track.at(k, WH) for k in range(60))
    }
    assert len(sizes) == 1
    assert abs(track.at(30, WH)[0] - (50 + 90 - 4)) <= 2
    assert track.at(59, WH)[2] <= 320 and track.at(10_000, WH) == track.at(59, WH)


def test_a_fixed_box_is_that_box():
    assert Track.fixed((10, 20, 110, 140)).at(5, WH) == (10, 20, 110, 140)
    assert Track.fixed((0, 0, *WH)).at(5, WH) == (0, 0, *WH)
