"""Whole images as arrays: faces restored, every other value as it was."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from musetalk_enhance.errors import ConfigError, FrameError
from musetalk_enhance.faces.detect import Face, FaceDetector
from musetalk_enhance.hosts.whole_images import WholeImages, to_bytes
from tests.jobs.conftest import ADDED, SMALL, Middle, picture


class Blinking(FaceDetector):
    """`Middle`, but blind for the calls whose numbers are given."""

    def __init__(self, *blind: int) -> None:
        self.calls, self.blind = 0, blind

    def detect(self, picture_bgr) -> list[Face]:
        self.calls += 1
        return [] if self.calls - 1 in self.blind else Middle().detect(picture_bgr)


@pytest.fixture
def enhancer(make_enhancer):
    """Brightens what it is shown; its color and size are of no use for whole images."""
    return make_enhancer(lambda faces: faces + ADDED / 255, SMALL, color="rgb", output_size=32)


def images(count: int = 3, dtype=np.float32) -> np.ndarray:
    stack = np.stack([picture(40 + 10 * index, (128, 96)) for index in range(count)])
    stack[..., 0] += 20  # red: no face is blue
    if dtype == np.uint8:
        return stack
    return (stack / np.float32(255) + np.float32(0.0003)).astype(dtype)  # none is a whole byte


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8])
@pytest.mark.parametrize("fps", [None, 25.0])
def test_only_the_face_changes(enhancer, dtype, fps):
    before = images(dtype=dtype)
    kept = before.copy()
    after, notes = WholeImages(enhancer, Middle(), fps=fps).restore(before)
    assert np.array_equal(before, kept)
    assert after.dtype == dtype and after.shape == before.shape and after.flags.c_contiguous
    changed = (after != before).any(-1)
    assert changed[:, 56:72, 40:56].all() and not changed[:, :8].any()
    brighter = to_bytes(after).astype(int) - to_bytes(before)
    assert np.abs(brighter[:, 60:68, 44:52] - ADDED).max() <= 1
    assert [note["box_xyxy"] for note in notes] == [(28.8, 44.8, 67.2, 83.2)] * 3
    assert all(note["strength"] == 1 and note["change"] > 30 for note in notes)


@pytest.mark.parametrize("fps", [None, 25.0])
def test_an_image_without_a_face_is_unchanged(enhancer, fps):
    blue = images(2)[..., ::-1] * np.float32([0.1, 1, 1]) + np.float32([0, 0, 0.4])
    before = np.stack([blue[0], images(1)[0]])
    after, notes = WholeImages(enhancer, Middle(), fps=fps).restore(before)
    assert np.array_equal(after[0], before[0]) and not np.array_equal(after[1], before[1])
    assert notes[0]["passthrough"] == "no face" and notes[0]["box_xyxy"] is None


def test_a_video_is_tracked_over_batches_and_stills_are_not(enhancer):
    before = images(1).repeat(6, 0)
    for fps, changed in ((25.0, [True] * 6), (None, [True, True, True, False, True, True])):
        whole = WholeImages(enhancer, Blinking(3), fps=fps, min_face=8)
        parts = [whole.restore(before[:3])[0], whole.restore(before[3:])[0]]
        assert [
            bool((a != b).any()) for a, b in zip(np.concatenate(parts), before, strict=True)
        ] == changed


@pytest.mark.parametrize("fps", [None, 25.0])
def test_a_failure_of_the_network_is_logged(make_enhancer, caplog, fps):
    before = images(2)
    enhancer = make_enhancer(lambda faces: 1 / 0, SMALL)
    with caplog.at_level(logging.WARNING, "musetalk_enhance.hosts"):
        after, notes = WholeImages(enhancer, Middle(), fps=fps).restore(before)
    assert np.array_equal(after, before)
    assert len([line for line in caplog.messages if "is not restored" in line]) == 2
    assert all("ZeroDivisionError" in str(note) for note in notes)


def test_small_faces_and_those_at_the_side_are_left_alone(enhancer):
    before = images(1)
    after, notes = WholeImages(enhancer, Middle(), min_face=60).restore(before)
    assert np.array_equal(after, before) and notes[0]["left alone"] == "too small"
    assert notes[0]["change"] == 0


def test_what_is_no_number_stays_and_hurts_nothing(enhancer):
    before = images(1)
    before[0, 0, 0] = np.nan
    after, _ = WholeImages(enhancer, Middle()).restore(before)
    assert np.isnan(after[0, 0, 0]).all() and np.isfinite(after[0, 1:]).all()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (np.zeros((8, 8, 3), np.uint8), "shape"),
        (np.zeros((1, 8, 8, 4), np.uint8), "shape"),
        (np.zeros((1, 0, 8, 3), np.uint8), "shape"),
        (np.zeros((1, 8, 8, 3), np.int32), "dtype"),
    ],
)
def test_other_arrays_are_errors(enhancer, bad, reason):
    with pytest.raises(FrameError) as error:
        WholeImages(enhancer, Middle()).restore(bad)
    assert error.value.reason == reason


def test_no_image_is_no_error(enhancer):
    for fps in (None, 25.0):
        after, notes = WholeImages(enhancer, Middle(), fps=fps).restore(images(1)[:0])
        assert len(after) == 0 and notes == []


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_an_error(enhancer, fps):
    with pytest.raises(ConfigError, match="fps"):
        WholeImages(enhancer, Middle(), fps=fps)
