"""The landmarks of a stream: the host's own, or found once; steady, and the same however frames are
batched."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from musetalk_enhance.errors import MissingWeightError
from musetalk_enhance.faces import landmarks
from musetalk_enhance.faces.align import LandmarkTrack
from musetalk_enhance.faces.detect import Face
from musetalk_enhance.faces.landmarks import LandmarkFinder
from musetalk_enhance.faces.meter import FaceMeter
from musetalk_enhance.frames.hints import Hints


@pytest.fixture
def looks(monkeypatch) -> list[int]:
    """How many faces the meter was asked for, call by call."""
    asked, real = [], FaceMeter.measure

    def measure(self, faces):
        asked.append(len(faces))
        return real(self, faces)

    monkeypatch.setattr(FaceMeter, "measure", measure)
    return asked


@pytest.fixture(scope="module")
def own(soft) -> np.ndarray:
    """What the meter says of every frame by itself."""
    return FaceMeter().measure(soft).landmarks.numpy()


class Stream:
    """A finder with the track of one stream."""

    def __init__(self, source):
        self.finder, self.track = LandmarkFinder(source), LandmarkTrack()

    def reset(self):
        self.track.reset()


def fill(stream, faces, **hints) -> list:
    return stream.finder.fill(faces, Hints.of(len(faces), **hints), stream.track)


def noise(count: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, 256, 256, generator=torch.Generator().manual_seed(3))


def test_the_meter_fills_what_the_host_leaves_open(soft, own, looks):
    told = own[1] + 1.5
    found = fill(Stream("embedded"), soft[:3], landmarks=[None, told, None])
    assert looks == [2], "the frame that the host knows is not looked at"
    assert all(each.dtype == np.float32 and each.shape == (5, 2) for each in found)
    assert np.allclose(found[0], own[0], atol=1e-3), "the first of a stream is not smoothed"
    alone = fill(Stream("embedded"), soft[:1], landmarks=[told])
    assert np.allclose(alone[0], told, atol=1e-4)


def test_the_host_wins_over_the_meter(soft, own, looks):
    elsewhere = own[:4] + 40
    found = fill(Stream("embedded"), soft[:4], landmarks=elsewhere)
    assert (
        looks == []
        and np.abs(np.array(found) - elsewhere).max() < 4
        and np.abs(found - own[:4]).min() > 30
    )


def test_keys_are_not_looked_for_again(soft, looks):
    finder = Stream("embedded")
    first = fill(finder, soft[:4], keys=[0, 1, 2, 3])
    again = fill(finder, torch.zeros_like(soft[:6]), keys=[3, 2, 1, 0, 1, 2])
    assert looks == [4]
    assert all(
        np.array_equal(one, first[key]) for one, key in zip(again, [3, 2, 1, 0, 1, 2], strict=True)
    )


def test_no_face_is_none_also_for_its_key(looks):
    finder = Stream("embedded")
    assert fill(finder, noise(3), keys=["a", None, "b"]) == [None] * 3
    assert fill(finder, noise(2), keys=["a", "b"]) == [None] * 2 and looks == [3]


def test_a_face_that_is_lost_for_a_moment_stays_where_it_was(soft):
    finder = Stream("embedded")
    found = fill(finder, torch.cat([soft[:1], noise(9), soft[1:2]]))
    assert all(np.array_equal(each, found[0]) for each in found[1:6])
    assert found[6:10] == [None] * 4 and found[10] is not None


def test_reset_forgets_keys_and_the_past(soft, looks):
    finder = Stream("embedded")
    fill(finder, soft[:3], keys=[0, 1, 2])
    finder.reset()
    found = fill(finder, soft[20:22], keys=[0, 1])
    assert looks == [3, 2]
    assert np.array_equal(found, fill(Stream("embedded"), soft[20:22])), (
        "as if nothing had been before"
    )


def test_smoothing_waits_for_no_later_frame(soft, own):
    told = own + np.random.default_rng(2).normal(0, 2, own.shape)
    whole = fill(Stream("embedded"), soft, landmarks=told)
    changed = told.copy()
    changed[20:] += 30
    part = fill(Stream("embedded"), soft, landmarks=changed)
    assert np.array_equal(whole[:20], part[:20]) and not np.array_equal(whole[20], part[20])


def test_smoothing_takes_jitter_off(soft, own):
    told = own[:1] + np.random.default_rng(2).normal(0, 1, (40, 5, 2))
    steady = np.array(fill(Stream("embedded"), soft, landmarks=told))
    assert np.diff(steady, axis=0).std() < 0.5 * np.diff(told, axis=0).std()
    assert np.abs(steady[10:].mean(0) - own[0]).max() < 1


@pytest.mark.parametrize("size", [1, 3, 8])
def test_batches_do_not_matter(soft, size):
    whole = fill(Stream("embedded"), soft)
    finder = Stream("embedded")
    parts = [
        points
        for start in range(0, 40, size)
        for points in fill(finder, soft[start : start + size])
    ]
    assert np.abs(np.array(parts) - np.array(whole)).max() < 0.01


def test_frames_of_two_sizes_are_one_stream(soft):
    """Their landmarks are smoothed as shares of the sides, each handed back in pixels of its own
    frame."""
    steady = np.array(fill(Stream("embedded"), soft[:12]))
    finder = Stream("embedded")
    for index in range(12):
        width = 256 if index % 2 else 224
        face = interpolate(
            soft[index : index + 1], size=(256, width), mode="bilinear", antialias=True
        )
        (points,) = fill(finder, face)
        assert np.abs(points * (256 / width, 1) - steady[index]).max() < 4


def test_a_key_is_the_same_place_in_a_frame_of_another_size(soft):
    finder = Stream("embedded")
    (first,) = fill(finder, soft[:1], keys=["one"])
    (large,) = fill(finder, torch.zeros(1, 3, 512, 384), keys=["one"])
    assert np.allclose(large, first * (1.5, 2), atol=1e-3)


class Told:
    """A detector that says what it is told, and remembers what it saw."""

    def __init__(self, points: np.ndarray | None) -> None:
        self.points, self.seen = points, []

    def detect(self, picture_bgr):
        self.seen.append(picture_bgr)
        if self.points is None:
            return []
        return [Face(np.array((0, 0, 9, 9.0)), self.points.astype(np.float32), 0.9)]


def test_a_detector_is_asked_in_bgr_and_only_where_it_must_be(soft, own, monkeypatch):
    detector = Told(own[0] + 5)
    monkeypatch.setattr("musetalk_enhance.faces.detect.make_detector", lambda name: detector)
    finder = Stream("yunet")
    found = fill(finder, soft[:3], landmarks=[own[0], None, None], keys=[None, "a", "b"])
    assert len(detector.seen) == 2 and np.allclose(found[0], own[0], atol=1e-3)
    bgr = soft[1].flip(0).mul(255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(detector.seen[0], bgr) and detector.seen[0].flags.c_contiguous
    fill(finder, soft[1:3], keys=["b", "a"])
    assert len(detector.seen) == 2


def test_a_detector_that_finds_nothing(soft, monkeypatch):
    monkeypatch.setattr("musetalk_enhance.faces.detect.make_detector", lambda name: Told(None))
    assert fill(Stream("yunet"), soft[:2]) == [None, None]


def test_yunet_needs_its_weight():
    with pytest.raises(MissingWeightError, match="YuNet"):
        Stream("yunet")


def test_a_face_the_meter_is_unsure_of_is_none(soft, monkeypatch):
    monkeypatch.setattr(landmarks, "MIN_CONFIDENCE", 1.1)
    assert fill(Stream("embedded"), soft[:2]) == [None, None]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_default_dtype_of_the_host_means_nothing_here(soft, own, dtype):
    torch.set_default_dtype(dtype)
    try:
        found = fill(Stream("embedded"), soft[:1])
    finally:
        torch.set_default_dtype(torch.float32)
    assert np.allclose(found[0], own[0], atol=1e-3)
