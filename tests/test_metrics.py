"""The three measures, against their formulas worked out by hand."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from musetalk_enhance.errors import FrameError
from musetalk_enhance.metrics import color_drift, laplacian_energy, psnr

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
    # The default kernel leaves -4 in the middle and 1 at its four neighbours: mean 0, mean square 20 / 100.
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
