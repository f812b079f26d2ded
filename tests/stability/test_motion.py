"""Motion between frames: known shifts are found, lips are told from heads, cuts from motion."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from musetalk_enhance.pipeline.scene_cuts import (
    LEAST_FRAME_CORRELATION,
    scene_cuts,
    thumbnails,
)
from musetalk_enhance.pipeline.stability.motion import (
    LONGEST,
    SHORTEST,
    MotionEstimator,
    working_size,
)
from musetalk_enhance.pipeline.stability.temporal import _moved, _sampled
from tests.stability.conftest import to_frames


@pytest.fixture(scope="module")
def pictures(soft) -> np.ndarray:
    return np.ascontiguousarray(to_frames(soft)[..., ::-1])


def shifted(picture: np.ndarray, x: int, y: int) -> np.ndarray:
    """The picture's content moved by (x, y) pixels."""
    return np.roll(picture, (y, x), (0, 1))


def test_a_shift_is_found_and_explains_the_frame(pictures):
    before = pictures[0]
    motion = MotionEstimator().between(before, shifted(before, 3, -2))
    inner = np.s_[32:-32, 32:-32]
    assert np.abs(np.median(motion.flow[inner], (0, 1)) - (-3, 2)).max() < 0.2
    assert (
        np.abs(motion.error[inner]).mean()
        < 0.2 * np.abs(shifted(before, 3, -2)[inner] / 255 - before[inner] / 255).mean()
    )
    assert motion.rigid[8:-8, 8:-8].min() > 0.9, "a head that moves as a whole is kept steady"


def test_the_same_frame_has_not_moved(pictures):
    motion = MotionEstimator().between(pictures[3], pictures[3])
    assert np.abs(motion.flow).max() < 1e-3 and np.abs(motion.error).max() < 1e-3


def test_what_moves_otherwise_than_the_head_is_told(pictures):
    before, now = pictures[0], pictures[0].copy()
    now[170:220, 90:170] = shifted(before, 0, 6)[170:220, 90:170]
    rigid = MotionEstimator().between(before, now).rigid
    assert rigid[45:52, 25:40].min() < 0.1 and np.median(rigid[:30]) > 0.95


def cuts_of(*images) -> list[bool]:
    faces = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    return scene_cuts(thumbnails(faces), None).tolist()


def test_another_scene_is_a_cut_and_a_talking_head_is_none(pictures):
    assert not any(cuts_of(*pictures))
    assert cuts_of(pictures[0], pictures[0][::-1].copy()) == [False, True], "upside down"
    noise = np.random.default_rng(0).integers(0, 256, pictures[0].shape, np.uint8)
    assert cuts_of(pictures[0], noise, noise) == [False, True, False]
    assert cuts_of(pictures[0], 255 - pictures[0]) == [False, True]


def test_a_cut_is_told_against_the_frame_before_the_batch(pictures):
    faces = (
        torch.from_numpy(np.stack([pictures[5], 255 - pictures[5]])).permute(0, 3, 1, 2).float()
        / 255
    )
    small = thumbnails(faces)
    assert scene_cuts(small[:1], small[1:]).tolist() == [True]
    assert scene_cuts(small[:1], small[:1]).tolist() == [False]


def test_flat_frames_are_no_cut_of_each_other():
    black = np.zeros((64, 64, 3), np.uint8)
    assert cuts_of(black, black + 1, black) == [False, False, False] and cuts_of(
        black, black + 200
    ) == [False, True]


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (256, 256), (512, 300), (60, 900)])
def test_working_size(size):
    height, width = working_size(*size)
    assert min(height, width) >= min(SHORTEST, min(size)) and (
        max(size) <= LONGEST or min(height, width) >= SHORTEST
    )
    assert height / width == pytest.approx(size[0] / size[1], rel=0.05)


@pytest.mark.parametrize(
    "size", [(16, 8192), (2500, 17), (30, 900), (65, 300), (256, 100), (2100, 2100)]
)
def test_no_strip_is_too_long(size):
    """Enlarged like other small faces, a strip of 16x8192 pixels would be wider than OpenCV can
    handle."""
    height, width = working_size(*size)
    assert height * width <= LONGEST**2 and min(height, width) >= SHORTEST
    picture = np.random.default_rng(1).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC)
    motion = MotionEstimator().between(picture, np.roll(picture, 2, axis=1))
    assert np.median(motion.flow[..., 0]) == pytest.approx(-2, abs=0.1)


def moved(picture: torch.Tensor, flow: np.ndarray) -> torch.Tensor:
    rows = picture[0].permute(1, 2, 0).contiguous().numpy()
    return torch.from_numpy(_moved(rows, flow, (0.0, 1.0))).permute(2, 0, 1)[None]


def test_moved_fetches_what_the_flow_points_at():
    picture = torch.rand(1, 3, 48, 64)
    flow = np.zeros((48, 64, 2), np.float32)
    flow[..., 0], flow[..., 1] = 5, -3
    inner = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    assert torch.allclose(
        moved(picture, flow)[inner], torch.roll(picture, (3, -5), (2, 3))[inner], atol=1e-4
    )
    small = np.ascontiguousarray(flow[::2, ::2] / 2)
    assert torch.allclose(moved(picture, small), moved(picture, flow), atol=1e-4), (
        "a flow of half the size"
    )


def test_moved_rows_are_those_of_the_whole():
    picture = torch.rand(1, 3, 64, 64)
    flow = np.random.default_rng(0).normal(0, 1, (64, 64, 2)).astype(np.float32)
    rows = picture[0, :, 28:].permute(1, 2, 0).contiguous().numpy()
    lower = torch.from_numpy(_moved(rows, flow, (28 / 64, 1.0))).permute(2, 0, 1)[None]
    assert torch.allclose(lower[:, :, 8:], moved(picture, flow)[:, :, 36:], atol=1e-5)


@pytest.mark.parametrize("scale", [1, 2])
def test_moved_is_the_same_on_the_cpu_as_elsewhere(scale):
    """OpenCV does it on the CPU, torch on a GPU."""
    rng = torch.Generator().manual_seed(2)
    picture = torch.nn.functional.interpolate(
        torch.rand(1, 3, 16, 16, generator=rng), (128, 128), mode="bicubic"
    )
    small = torch.randn(1, 2, 8, 8, generator=rng) * 3
    flow = torch.nn.functional.interpolate(small, (128 // scale, 128 // scale), mode="bicubic")
    on_cpu = moved(picture, flow[0].permute(1, 2, 0).contiguous().numpy())
    elsewhere = _sampled(picture, flow)
    assert (
        torch.allclose(on_cpu, elsewhere, atol=0.01)
        and float((on_cpu - elsewhere).abs().mean()) < 0.001
    )


def test_the_same_frames_give_the_same_bits_wherever_they_lie_in_memory(pictures):
    """OpenCV 5's magnitude and BLAS do not; so neither is used."""
    first, estimator = None, MotionEstimator()
    for offset in range(24):
        memory = np.empty(pictures[1].size + offset, np.uint8)
        image = memory[offset:].reshape(pictures[1].shape)
        image[:] = pictures[1]
        motion = estimator.between(pictures[0], image)
        bits = motion.flow.tobytes(), motion.error.tobytes(), motion.rigid.tobytes()
        first = first or bits
        assert bits == first


def test_whole_frames_may_be_less_alike_than_faces():
    """Something dark jumps before a wall: little difference, and a correlation of 0.59."""
    first, second = torch.full((2, 1, 3, 32, 32), 0.8)
    first[..., 5:11] = second[..., 7:13] = 0.2
    assert scene_cuts(second, first).tolist() == [True]
    assert scene_cuts(second, first, LEAST_FRAME_CORRELATION).tolist() == [False]
