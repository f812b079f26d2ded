"""The measures, against their formulas worked out by hand."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from musetalk_enhance.errors import ConfigError, FrameError, MissingDependencyError
from musetalk_enhance.report.metrics import (
    Motion,
    changed_region,
    color_change,
    color_drift,
    correlation,
    flicker_energy,
    gradient_energy,
    laplacian_energy,
    opening_lag,
    psnr,
    seam_step,
    similarity,
    similarity_map,
    warping_error,
)

pytestmark = pytest.mark.filterwarnings("error")


def flat(value, size=(8, 6)) -> np.ndarray:
    return np.full((*size, 3), value, np.uint8)


def test_psnr_of_a_known_error():
    assert psnr(flat(100), flat(110)) == pytest.approx(10 * math.log10(255**2 / 100))
    assert psnr(flat(0), flat(255)) == pytest.approx(0)


def test_psnr_does_not_wrap_around_and_is_symmetric():
    assert psnr(flat(5), flat(250)) == psnr(flat(250), flat(5)) < 1


def test_psnr_of_equal_pictures_is_infinite(rng):
    image = rng.integers(0, 256, (9, 9, 3), np.uint8)
    assert psnr(image, image.copy()) == math.inf


def test_laplacian_energy_of_a_single_bright_pixel():
    grey = np.zeros((10, 10), np.uint8)
    grey[5, 5] = 1
    # The default kernel leaves -4 in the middle and 1 at its four neighbours: mean 0, mean square
    # 20 / 100.
    assert laplacian_energy(grey) == pytest.approx(0.2)


def test_laplacian_energy_is_that_of_the_grey_picture_and_falls_with_blur(rng):
    image = rng.integers(0, 256, (32, 32, 3), np.uint8)
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    assert laplacian_energy(image) == laplacian_energy(grey)
    assert laplacian_energy(cv2.GaussianBlur(image, (0, 0), 2)) < 0.1 * laplacian_energy(image)
    assert laplacian_energy(flat(77)) == 0


def test_color_drift_is_the_worst_channel():
    assert color_drift(flat((10, 20, 30)), flat((11, 17, 30))) == 3
    assert color_drift(flat((10, 20, 30)), flat((11, 17, 30), (4, 4))) == 3


@pytest.mark.parametrize("measure", [psnr, color_drift])
def test_pairs_that_cannot_be_compared(measure):
    with pytest.raises(FrameError, match="float64"):
        measure(flat(0).astype(np.float64), flat(0))
    with pytest.raises(FrameError, match=r"\(8, 6\)"):
        measure(flat(0)[..., 0], flat(0))


def test_psnr_needs_one_size():
    with pytest.raises(FrameError, match="one shape"):
        psnr(flat(0), flat(0, (4, 4)))


@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 4, 4), (4,)])
def test_pictures_that_are_none(shape):
    image = np.zeros(shape, np.uint8)
    with pytest.raises(FrameError, match="shape"):
        laplacian_energy(image)


def texture(size=(64, 80), shift=0.0) -> np.ndarray:
    """Smooth waves, BGR uint8; `shift` pixels to the right."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    x = x - shift
    levels = 128 + 60 * np.sin(x / 5 + np.sin(y / 11)) + 40 * np.cos(y / 7 + x / 17)
    return np.repeat(np.clip(np.rint(levels), 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def test_gradient_energy_of_a_ramp():
    ramp = np.tile(np.arange(0, 40, 2, dtype=np.uint8), (10, 1))
    assert gradient_energy(ramp) == 4.0
    assert gradient_energy(flat(9)) == 0


def test_similarity():
    image = texture()
    assert similarity(image, image) == similarity(image, image, 32) == pytest.approx(1)
    blurred = cv2.GaussianBlur(image, (0, 0), 3)
    assert similarity(image, blurred) < 0.99
    assert similarity(image, 255 - image) < 0
    assert similarity_map(image, blurred, 40).shape == (32, 40)
    noisy = np.clip(image + np.random.default_rng(0).normal(0, 20, image.shape), 0, 255).astype(
        np.uint8
    )
    # low frequencies do not see it
    assert similarity(image, noisy, 16) > similarity(image, noisy) + 0.2
    with pytest.raises(FrameError, match="11 pixels"):
        similarity(image, image, 8)


def test_similarity_needs_scikit_image(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    with pytest.raises(MissingDependencyError, match=r"musetalk_enhance\[report\]"):
        similarity(texture(), texture())


def test_color_change_by_place():
    grey, brighter = flat(119, (32, 32)), flat(119, (32, 32))
    brighter[:16] = 122
    found = color_change(grey, brighter, 4)
    assert found.shape == (4, 4) and found[2:].max() == 0
    # L* of sRGB 119 and 122 is 50.03 and 51.21; near L* = 50 CIEDE2000's weight of lightness is 1.
    assert found[:2] == pytest.approx(np.full((2, 4), 1.18), abs=0.03)
    assert color_change(grey, cv2.resize(grey, (64, 64))).max() == 0
    with pytest.raises(FrameError):
        color_change(grey[..., 0], grey[..., 0])


def test_changed_region_is_one_part_without_holes():
    before = texture((96, 96))
    after = before.copy()
    after[30:70, 20:60] = np.clip(after[30:70, 20:60].astype(int) + 9, 0, 255)
    after[45:50, 35:40] = before[45:50, 35:40]
    after[5:8, 5:8] += 20
    region = changed_region(before, after)
    assert region[32:68, 22:58].all() and not region[:20].any() and not region[:, 70:].any()
    assert not changed_region(before, before).any()


def test_seam_step_of_a_hard_edge_and_a_feathered_one():
    before = texture((96, 96))
    region = np.zeros((96, 96), bool)
    region[48:] = True
    hard, soft = before.astype(int), before.astype(float)
    hard[48:] += 6
    soft += 6 * np.clip((np.arange(96)[:, None, None] - 48) / 40, 0, 1)
    hard, soft = np.clip(hard, 0, 255).astype(np.uint8), np.clip(soft, 0, 255).astype(np.uint8)
    assert seam_step(before, hard, region) == pytest.approx(6, abs=0.5)
    inside = np.zeros((96, 96), bool)
    inside[30:70, 20:70] = True
    # what is inside lies 0 to 3 levels higher, without an edge
    assert seam_step(before, soft, inside) < 4
    assert seam_step(before, before, region) == 0
    assert seam_step(before, hard, np.zeros((96, 96), bool)) == 0
    with pytest.raises(FrameError, match="region"):
        seam_step(before, hard, region[1:])


def test_a_crop_that_is_restored_up_to_its_edge_is_held_against_what_lies_outside():
    before = texture((96, 96))
    after = np.clip(before.astype(int) - 5, 0, 255).astype(np.uint8)
    assert seam_step(before, after, np.ones((96, 96), bool)) == pytest.approx(5)


def test_detail_is_no_step(rng):
    before = flat(128, (96, 96))
    after = (
        np.clip(128 + np.rint(rng.normal(0, 4, (96, 96, 1))), 0, 255).astype(np.uint8).repeat(3, 2)
    )
    region = np.zeros((96, 96), bool)
    region[30:66, 30:66] = True
    assert seam_step(before, after, region) < 1.6


def test_a_static_clip_has_no_warping_error():
    image = texture()
    motion = Motion.between(image, image)
    assert (
        warping_error(image, image, motion) == 0
        and motion.speed.max() < 0.01
        and motion.visible.mean() > 0.99
    )


def test_a_clip_that_moves_by_the_known_flow_has_next_to_none():
    here, there = texture(), texture(shift=3)
    flow = np.zeros((64, 80, 2), np.float32)
    flow[..., 0] = 3
    motion = Motion(flow, -flow)
    # what left the picture is not held against it
    assert not motion.visible[:, -3:].any() and motion.visible[:, :-3].all()
    assert warping_error(here, there, motion) < 0.2
    still = Motion(0 * flow, 0 * flow)
    by_hand = np.mean((here.astype(float) - there) ** 2)
    assert warping_error(here, there, still) == pytest.approx(by_hand) and by_hand > 100


def test_the_estimated_flow_is_the_known_one():
    motion = Motion.between(texture((128, 160)), texture((128, 160), shift=2))
    middle = motion.flow[20:-20, 20:-20]
    assert np.median(middle[..., 0]) == pytest.approx(2, abs=0.1)
    assert np.abs(np.median(middle[..., 1])) < 0.1


def test_a_flow_that_does_not_come_back_is_occluded():
    flow = np.zeros((20, 20, 2), np.float32)
    back = flow.copy()
    back[:10, :, 0] = 5
    motion = Motion(flow, back)
    assert not motion.visible[:10].any() and motion.visible[10:].all()
    nothing = Motion(flow, np.full_like(flow, 5))
    assert math.isnan(warping_error(texture((20, 20)), texture((20, 20)), nothing))


def test_brightness_that_jumps_is_a_warping_error():
    here = flat(100, (32, 32))
    motion = Motion(np.zeros((32, 32, 2), np.float32), np.zeros((32, 32, 2), np.float32))
    assert warping_error(here, flat(103, (32, 32)), motion) == 9
    with pytest.raises(FrameError, match="motion"):
        warping_error(flat(0), flat(0), motion)
    with pytest.raises(FrameError, match="16 pixels"):
        Motion.between(flat(0), flat(0))


def sine(hertz, amplitude, fps=25.0, count=50, phase=0.3) -> np.ndarray:
    moments = amplitude * np.sin(2 * np.pi * hertz * np.arange(count) / fps + phase)
    return np.full((count, 2, 3), 100, np.float32) + moments[:, None, None].astype(np.float32)


def test_flicker_energy_of_a_planted_sine():
    assert flicker_energy(sine(8, 4), 25) == pytest.approx(np.full((2, 3), 8), rel=0.02)  # A² / 2
    assert flicker_energy(sine(8, 4, fps=50, count=64), 50) == pytest.approx(
        np.full((2, 3), 8), rel=0.02
    )
    assert flicker_energy(sine(2, 4), 25).max() < 1e-3  # slower than 5 Hz
    assert flicker_energy(sine(0, 0), 25).max() < 1e-6


def test_flicker_energy_of_alternating_frames_and_of_noise(rng):
    alternating = (
        np.full((16, 1, 1), 50, np.float32)
        + 3 * (-1.0) ** np.arange(16, dtype=np.float32)[:, None, None]
    )
    assert flicker_energy(alternating, 25)[0, 0] == pytest.approx(9, rel=0.02)
    noise = rng.normal(0, 2, (64, 30, 30)).astype(np.float32)
    share = np.mean(np.fft.rfftfreq(64, 1 / 25)[1:] > 5)  # white: as much energy at every frequency
    assert flicker_energy(noise, 25).mean() == pytest.approx(4 * share, rel=0.05)


def test_flicker_energy_of_what_cannot_be_measured():
    with pytest.raises(FrameError, match="8 or more"):
        flicker_energy(sine(8, 4, count=7), 25)
    with pytest.raises(ConfigError, match="10 frames per second"):
        flicker_energy(sine(1, 4), 10)


def test_correlation():
    x = np.array([0.0, 1, 2, 3, np.nan])
    assert correlation(x, 2 * x + 1) == pytest.approx(1) and correlation(x, -x) == pytest.approx(-1)
    assert correlation(x, np.array([0, 1.0, 0, 1, 5])) == pytest.approx(1 / np.sqrt(5))
    assert correlation(x, np.ones(5)) == 0
    assert math.isnan(correlation(x[2:], x[2:]))


@pytest.mark.parametrize("lag", [-7, -1, 0, 3, 10])
def test_a_shifted_signal_has_its_lag(rng, lag):
    speech = np.convolve(rng.normal(size=140), np.ones(4), "same")
    found, best = opening_lag(speech[20:120], speech[20 - lag : 120 - lag])
    assert found == lag and best == pytest.approx(1)


def test_lag_of_what_cannot_be_told():
    assert opening_lag(np.ones(40), np.ones(40))[0] == 0
    lag, best = opening_lag(np.full(30, np.nan), np.ones(30))
    assert lag == 0 and math.isnan(best)
    assert math.isnan(opening_lag(np.ones(2), np.ones(2))[1])
