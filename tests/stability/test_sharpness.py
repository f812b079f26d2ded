"""Sharp faces are left alone, soft ones are not, whatever their softness, contrast, light or
noise."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from musetalk_enhance.pipeline.stability.sharpness import SHARP, SOFT, SharpnessMeter, needed
from tests.conftest import ROOT
from tests.stability.conftest import to_faces, to_frames

sys.path.insert(0, str(ROOT / "scripts"))


@pytest.fixture(scope="module")
def meter() -> SharpnessMeter:
    return SharpnessMeter()


@pytest.fixture(scope="module")
def crisp() -> torch.Tensor:
    """Two faces of a photograph, at 256 px and mirrored, with all the detail that their size can
    hold."""
    skimage_data = pytest.importorskip("skimage.data")
    face = np.ascontiguousarray(skimage_data.astronaut()[20:230, 130:320])  # a little grain
    image = cv2.resize(face, (128, 144), interpolation=cv2.INTER_AREA)
    faces = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    return torch.cat([faces, faces.flip(3)])


def resized(faces: torch.Tensor, share: float) -> torch.Tensor:
    size = [round(side * share) for side in faces.shape[2:]]
    small = interpolate(faces, size=size, mode="area")
    return interpolate(small, size=faces.shape[2:], mode="bicubic", align_corners=False).clamp(0, 1)


def test_resized_faces_measure_less_the_smaller_they_were(meter, crisp):
    measured = [
        float(meter.measure(resized(crisp, share)).mean())
        for share in (1, 0.75, 0.6, 0.5, 0.375, 0.3)
    ]
    assert all(
        before > after - 0.01 for before, after in zip(measured[:-1], measured[1:], strict=True)
    )
    assert measured[0] > SHARP > SOFT > measured[3]


def test_decoded_faces_measure_less_the_softer_they_are(meter, crisp, decoder_soft):
    blends = (0.1, 0.25, 0.35, 0.5)
    measured = [float(meter.measure(decoder_soft(crisp, blend)).mean()) for blend in blends]
    assert all(
        before > after - 0.01 for before, after in zip(measured[:-1], measured[1:], strict=True)
    )
    assert max(measured) < float(meter.measure(crisp).mean())
    assert measured[1] < SHARP and measured[3] < SOFT


@pytest.mark.parametrize("sigma", [1, 2])
def test_noise_is_no_detail(meter, soft, sigma):
    generator = torch.Generator().manual_seed(1)
    noisy = (soft[:4] + sigma / 255 * torch.randn(soft[:4].shape, generator=generator)).clamp(0, 1)
    assert meter.measure(to_faces(to_frames(noisy))).max() < SOFT


@pytest.mark.parametrize(
    "change",
    [lambda x: 0.5 * x, lambda x: 0.3 + 0.5 * x, lambda x: x.flip(1), lambda x: x.flip(3)],
    ids=["half the contrast", "brighter", "BGR", "mirrored"],
)
def test_contrast_light_and_color_do_not_matter(meter, crisp, change):
    assert torch.allclose(meter.measure(change(crisp)), meter.measure(crisp), atol=0.05)


def test_each_face_is_measured_by_itself(meter, crisp, soft):
    faces = torch.cat([crisp[:1], resized(crisp[:1], 0.4)])
    both = meter.measure(faces)
    assert torch.allclose(both[:1], meter.measure(faces[:1]), atol=1e-5)
    assert torch.allclose(both[1:], meter.measure(faces[1:]), atol=1e-5)


def test_nothing_to_measure(meter):
    assert meter.measure(torch.full((2, 3, 64, 64), 0.5)).tolist() == [0, 0]
    assert meter.measure(torch.rand(1, 3, 16, 16)).tolist() == [0]
    assert meter.measure(torch.rand(1, 3, 100, 75)).shape == (1,)  # sides that no cell divides


def test_needed_is_a_ramp():
    measured = torch.tensor([0.0, SOFT, (SOFT + SHARP) / 2, SHARP, 9])
    assert needed(measured).tolist() == pytest.approx([1, 1, 0.5, 0, 0], abs=1e-6)


def test_a_sharp_face_is_left_alone_bit_for_bit(make_enhancer, crisp, soft):
    enhancer = make_enhancer(lambda batch: 1 - batch, sharpness_gate=True)
    sharp = to_frames(crisp)
    assert np.array_equal(enhancer(sharp), sharp) and enhancer.stats.sharp == len(sharp)
    enhancer.reset()
    given = to_frames(soft[:2])
    assert np.array_equal(enhancer(given), 255 - given) and enhancer.stats.sharp == len(sharp)


def test_a_face_does_not_switch(make_enhancer, crisp):
    """One sharp frame among soft ones is restored nearly as they are."""
    frames = np.repeat(to_frames(resized(crisp[:1], 0.375)), 6, 0)
    frames[3] = to_frames(crisp[:1])[0]
    strengths = []
    enhancer = make_enhancer(lambda batch: 1 - batch, sharpness_gate=True, stability=0.001)
    enhancer.observe(lambda given, out, note: strengths.append(note.strength))
    enhancer(frames)
    assert strengths[:3] == [1, 1, 1] and strengths[3] > 0.5, "alone it would be left as it is"


def test_in_a_host_the_gate_is_off(make_enhancer, crisp):
    """A decoder has just made the face: by default it is restored, whatever it looks like."""
    enhancer = make_enhancer(lambda batch: 1 - batch, sharpness_gate="auto")
    sharp = to_frames(crisp)
    out = enhancer(sharp)
    assert np.abs(out.astype(int) - sharp).mean() > 30
    assert enhancer.stats.restored == len(sharp) and enhancer.stats.sharp == 0
