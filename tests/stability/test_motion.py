"""Motion between frames: known shifts are found, lips are told from heads, cuts from motion."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from musetalk_enhance.pipeline.stability.motion import LONGEST, SHORTEST, MotionFinder, working_size
from musetalk_enhance.pipeline.stability.temporal import moved
from tests.stability.conftest import to_frames


@pytest.fixture(scope="module")
def pictures(soft) -> np.ndarray:
    return np.ascontiguousarray(to_frames(soft)[..., ::-1])


def shifted(picture: np.ndarray, x: int, y: int) -> np.ndarray:
    """The picture's content moved by (x, y) pixels."""
    return np.roll(picture, (y, x), (0, 1))


def test_a_shift_is_found_and_explains_the_frame(pictures):
    before = pictures[0]
    motion = MotionFinder().between(before, shifted(before, 3, -2))
    inner = np.s_[32:-32, 32:-32]
    assert np.abs(np.median(motion.flow[inner], (0, 1)) - (-3, 2)).max() < 0.2
    assert (
        np.abs(motion.error[inner]).mean()
        < 0.2 * np.abs(shifted(before, 3, -2)[inner] / 255 - before[inner] / 255).mean()
    )
    assert motion.rigid[8:-8, 8:-8].min() > 0.9 and not motion.cut, "a head that moves as a whole is held"


def test_the_same_frame_has_not_moved(pictures):
    motion = MotionFinder().between(pictures[3], pictures[3])
    assert np.abs(motion.flow).max() < 1e-3 and np.abs(motion.error).max() < 1e-3


def test_what_moves_otherwise_than_the_head_is_told(pictures):
    before, now = pictures[0], pictures[0].copy()
    now[170:220, 90:170] = shifted(before, 0, 6)[170:220, 90:170]
    rigid = MotionFinder().between(before, now).rigid
    assert rigid[45:52, 25:40].min() < 0.1 and np.median(rigid[:30]) > 0.95


def test_another_scene_is_a_cut_and_a_talking_head_is_none(pictures):
    finder = MotionFinder()
    found = finder.all(None, list(pictures))
    assert found[0] is None and not any(motion.cut for motion in found[1:])
    assert finder.between(pictures[0], pictures[0][::-1].copy()).cut, "upside down"
    assert finder.between(pictures[0], np.random.default_rng(0).integers(0, 256, pictures[0].shape, np.uint8)).cut


def test_another_size_begins_anew(pictures):
    assert MotionFinder().all(pictures[0][:128, :128].copy(), [pictures[1]]) == [None]


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (256, 256), (512, 300), (60, 900)])
def test_working_size(size):
    height, width = working_size(*size)
    assert min(height, width) >= min(SHORTEST, min(size)) and (max(size) <= LONGEST or min(height, width) >= SHORTEST)
    assert height / width == pytest.approx(size[0] / size[1], rel=0.05)


@pytest.mark.parametrize("size", [(16, 8192), (2500, 17), (30, 900), (65, 300), (256, 100), (2100, 2100)])
def test_no_strip_is_too_long(size):
    """Enlarged like other small faces, a strip of 16x8192 pixels would be wider than OpenCV can handle."""
    height, width = working_size(*size)
    assert height * width <= LONGEST**2 and min(height, width) >= SHORTEST
    picture = np.random.default_rng(1).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_CUBIC)
    motion = MotionFinder().between(picture, np.roll(picture, 2, axis=1))
    assert np.median(motion.flow[..., 0]) == pytest.approx(-2, abs=0.1) and not motion.cut


def test_moved_fetches_what_the_flow_points_at():
    picture = torch.rand(1, 3, 48, 64)
    flow = np.zeros((48, 64, 2), np.float32)
    flow[..., 0], flow[..., 1] = 5, -3
    inner = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    assert torch.allclose(moved(picture, flow)[inner], torch.roll(picture, (3, -5), (2, 3))[inner], atol=1e-4)
    small = np.ascontiguousarray(flow[::2, ::2] / 2)
    assert torch.allclose(moved(picture, small), moved(picture, flow), atol=1e-4), "a flow of half the size"


@pytest.mark.parametrize("scale", [1, 2])
def test_moved_is_the_same_on_the_cpu_as_elsewhere(scale, monkeypatch):
    """OpenCV does it on the CPU, torch on a GPU."""
    from musetalk_enhance.pipeline.stability import temporal

    rng = torch.Generator().manual_seed(2)
    picture = torch.nn.functional.interpolate(torch.rand(1, 3, 16, 16, generator=rng), (128, 128), mode="bicubic")
    small = torch.randn(1, 2, 8, 8, generator=rng) * 3
    flow = torch.nn.functional.interpolate(small, (128 // scale, 128 // scale), mode="bicubic")
    flow = flow[0].permute(1, 2, 0).contiguous().numpy()
    here = moved(picture, flow)
    monkeypatch.setattr(temporal, "_moved_here", temporal._moved_there)
    assert torch.allclose(here, moved(picture, flow), atol=0.01)
    assert float((here - moved(picture, flow)).abs().mean()) < 0.001
