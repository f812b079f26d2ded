"""Colors: a tint and a brightness step are taken off, detail is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from musetalk_enhance.faces.regions import region_mask
from musetalk_enhance.pipeline.stability.color import low_frequencies, without_tint
from tests.stability.conftest import to_frames

ONLY = {"color_match": True}


@pytest.mark.parametrize("region", ["full", "lower", "mouth"])
def test_a_tint_is_taken_off(make_enhancer, soft, region):
    tint = torch.tensor([0.08, 0.0, -0.06]).view(1, 3, 1, 1)
    given = to_frames(soft[:2])
    out = make_enhancer(lambda batch: batch + tint, region=region, **ONLY)(given)
    assert np.abs(out.astype(int) - given).max() <= 1
    tinted = make_enhancer(lambda batch: batch + tint, region=region)(given)
    assert np.abs(tinted.astype(int) - given).max() > 10, "without it the tint is there"


def test_a_gradient_of_light_is_taken_off(make_enhancer, soft):
    slope = torch.linspace(-0.1, 0.1, 512).view(1, 1, 1, 512)
    given = to_frames(soft[:1])
    out = make_enhancer(lambda batch: batch + slope, **ONLY)(given)
    assert np.abs(out.astype(int) - given)[:, 16:-16, 16:-16].max() <= 2


def test_detail_stays(make_enhancer, soft):
    stripes = 0.05 * (torch.arange(512) // 4 % 2 * 2 - 1).float().view(1, 1, 1, 512)
    given = to_frames(soft[:1])
    out, plain = (
        make_enhancer(lambda batch: batch + stripes, color_match=on)(given) for on in (True, False)
    )
    assert np.abs(out.astype(int) - plain).mean() < 0.5


def test_the_mean_of_a_sharpened_face_stays(make_enhancer, take, soft):
    given = to_frames(soft)
    truth = iter(take.split(1))
    out = make_enhancer(
        lambda batch: next(truth).repeat_interleave(2, 2).repeat_interleave(2, 3) * 1.1,
        batch_size=1,
        **ONLY,
    )(given)
    assert np.abs(out.mean((1, 2)) - given.mean((1, 2))).max() < 1


def test_rows_alone_come_out_as_in_the_whole_face(soft):
    """What is computed only from the upper edge of the region down is the same as with zeros above
    it."""
    residual = (soft[:2] - soft[2:4]) * 0.5
    mask = region_mask("lower", (256, 256))
    whole = without_tint(residual, mask)[:, :, 112:]
    rows = without_tint(residual[:, :, 112:], mask[:, :, 112:])
    assert torch.allclose(rows, whole, atol=0.01) and (rows - whole).abs().mean() < 1e-3


def test_what_lies_outside_has_no_say():
    residual = torch.zeros(1, 3, 64, 64)
    residual[:, :, :28] = -1  # rows that were not computed
    mask = region_mask("lower", (64, 64))
    inside = without_tint(residual * (mask > 0), mask)[:, :, 32:]
    assert inside.abs().max() < 1e-3
    assert low_frequencies(torch.ones(1, 1, 40, 50)).allclose(torch.ones(1))
