"""Regions: what may change changes, what may not stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from musetalk_enhance.frames.resize import (
    LOWER_FROM,
    LOWER_FULL,
    kept_rows,
    lower_weights,
    mean_change,
    pooled,
    residual_of,
    resize,
)


def test_full_keeps_every_row():
    assert kept_rows("full", 256) == range(0, 256)


@pytest.mark.parametrize("height", [16, 96, 256, 511, 512])
def test_lower_rises_from_nothing_to_all(height):
    weights = lower_weights(height)
    assert len(weights) == height and sorted(weights) == weights
    assert weights[kept_rows("lower", height).start - 1] == 0 and weights[-1] == 1
    assert all(weight == 1 for weight in weights[int(np.ceil(height * LOWER_FULL)) :])
    assert all(weight == 0 for weight in weights[: int(height * LOWER_FROM)])


def test_the_residual_is_what_leads_from_the_frame_to_the_restored_one():
    faces, restored = torch.rand(2, 3, 64, 64), torch.ones(2, 3, 128, 128)
    assert torch.allclose(
        faces + residual_of(faces, faces, restored, (64, 64), faces), torch.ones(2, 3, 64, 64)
    )


def test_the_mean_change_is_that_of_8_bits_where_it_is_allowed():
    before = torch.full((3, 3, 8, 8), 0.5)
    after = before.clone()
    after[0, :, 4:] += 10 / 255
    after[1] += 0.2 / 255
    after[2, 0, 0, 0] = 7
    assert mean_change(before, after).tolist() == pytest.approx([5, 0, 127 / 192])
    lower = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    lower[..., 4:, :] = True
    assert mean_change(before, after, lower)[:2].tolist() == pytest.approx([10, 0])
    each = torch.cat([lower, lower, torch.zeros_like(lower)])
    assert mean_change(before, before, each).tolist() == [0, 0, 0]
    assert mean_change(torch.full((1, 3, 8, 8), 1.2), torch.full((1, 3, 8, 8), 1.5)).tolist() == [
        0
    ], "white is white"


def test_the_host_keeps_nothing_of_the_ramp():
    """MuseTalk cuts its mask at half the box and blurs it by 0.05 of 1.5 boxes, half of that to
    each side."""
    reach = 0.5 - 0.05 * 1.5 / 2
    assert reach < LOWER_FULL  # the blur's last tail, weight under 1 %, meets the end of the ramp
    # OpenCV's own rule for this kernel, 256 px box
    sigma = 0.3 * ((0.05 * 1.5 * 256 - 1) * 0.5 - 1) + 0.8
    tail = 0.5 * (1 - torch.erf(torch.tensor((0.5 - LOWER_FULL) * 256 / sigma / 2**0.5)))
    assert float(tail) < 0.03


def test_shrinking_by_any_factor_leaves_no_moire():
    """A checkerboard is grey when it is made smaller; without antialiasing it beats against the new
    grid."""
    board = (
        (torch.arange(96)[:, None] + torch.arange(96)[None, :])
        .remainder(2)
        .float()
        .expand(1, 3, 96, 96)
    )
    for size in ((48, 48), (70, 70), (50, 90), (70, 120), (120, 70)):
        assert (resize(board, size)[..., 4:-4, 4:-4] - 0.5).abs().max() < 0.2


@pytest.mark.parametrize("cells", [(32, 32), (48, 16), (3, 96), (96, 96), (40, 40), (1, 1)])
def test_pooled_is_the_mean_of_every_cell(cells):
    from torch.nn.functional import adaptive_avg_pool2d

    values = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    given = values.clone()
    assert torch.allclose(pooled(values, cells), adaptive_avg_pool2d(values, cells), atol=1e-6)
    assert torch.equal(values, given)
