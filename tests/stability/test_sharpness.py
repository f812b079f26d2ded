"""Sharp faces are left alone, soft ones are not, whatever their contrast, light or noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from musetalk_enhance.stability.sharpness import SHARP, SOFT, detail_ratio, needed
from tests.stability.conftest import to_faces, to_frames


@pytest.fixture(scope="module")
def crisp(take) -> torch.Tensor:
    """Smaller faces of the same take, with all the detail that their size can hold."""
    return interpolate(take[:4], size=(80, 80), mode="area")


def test_soft_and_sharp_are_told_apart(soft, crisp):
    assert detail_ratio(soft).max() < SOFT < SHARP < detail_ratio(crisp).min()


@pytest.mark.parametrize("sigma", [1, 2, 4])
def test_noise_is_no_detail(soft, sigma):
    noisy = (soft[:4] + sigma / 255 * torch.randn(soft[:4].shape, generator=torch.Generator().manual_seed(1))).clamp(
        0, 1
    )
    assert detail_ratio(to_faces(to_frames(noisy))).max() < SOFT


@pytest.mark.parametrize(
    "change", [lambda x: 0.5 * x, lambda x: 0.3 + 0.5 * x, lambda x: x.flip(1), lambda x: x.flip(3)]
)
def test_contrast_light_and_colour_do_not_matter(crisp, change):
    assert torch.allclose(detail_ratio(change(crisp)), detail_ratio(crisp), rtol=0.02)


def test_nothing_to_see(crisp):
    assert detail_ratio(torch.full((2, 3, 64, 64), 0.5)).tolist() == [0, 0]
    assert detail_ratio(torch.rand(1, 3, 16, 16)).tolist() == [0]
    assert needed(torch.tensor([0.0, SOFT, (SOFT + SHARP) / 2, SHARP, 9])).tolist() == pytest.approx(
        [1, 1, 0.5, 0, 0], abs=1e-6
    )


def test_a_sharp_face_is_left_alone_bit_for_bit(make_enhancer, crisp, soft):
    enhancer = make_enhancer(lambda batch: 1 - batch, sharpness_gate=True)
    sharp = to_frames(crisp)
    assert np.array_equal(enhancer(sharp), sharp) and enhancer.stats.sharp == len(sharp)
    enhancer.reset()
    given = to_frames(soft[:2])
    assert np.array_equal(enhancer(given), 255 - given) and enhancer.stats.sharp == len(sharp)


def test_a_face_does_not_switch(make_enhancer, crisp):
    """One sharp frame among soft ones is restored nearly as they are."""
    blurred = interpolate(interpolate(crisp[:1], size=(30, 30), mode="area"), size=(80, 80), mode="bicubic")
    frames = np.repeat(to_frames(blurred.clamp(0, 1)), 6, 0)
    frames[3] = to_frames(crisp[:1])[0]
    notes = []
    enhancer = make_enhancer(lambda batch: 1 - batch, sharpness_gate=True)
    enhancer.observe(lambda given, out, note: notes.append(note.strength))
    enhancer(frames)
    assert notes[:3] == [1, 1, 1] and notes[3] > 0.5, "alone it would be left as it is"
