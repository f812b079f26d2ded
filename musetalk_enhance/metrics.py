"""How sharp a picture is, how near to another one, and whether its colour has moved.

Pictures are BGR uint8 ``(H, W, 3)`` or grey uint8 ``(H, W)``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import FrameError

Image = NDArray[np.uint8]


def psnr(a: Image, b: Image) -> float:
    """Peak signal-to-noise ratio in dB: ``10 log10(255² / mean((a - b)²))``, over all pixels and channels.

    The usual definition, e.g. Huynh-Thu and Ghanbari, "Scope of validity of PSNR in image/video quality
    assessment", 2008. Equal pictures give infinity.

    Args:
        a: uint8 picture.
        b: uint8 picture of the same shape.

    Raises:
        FrameError: not uint8, or of two shapes.
    """
    _check_pair(a, b)
    error = float(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2, dtype=np.float64))
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))


def laplacian_energy(image: Image) -> float:
    """Sharpness: the variance of ``cv2.Laplacian`` (3x3) of the 8-bit grey picture, in grey levels squared.

    The measure LAPV of Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", 2000. It grows
    with edges and with noise, and depends on the picture's size: compare pictures of one view and size only.

    Args:
        image: BGR uint8 ``(H, W, 3)`` or grey uint8 ``(H, W)``.

    Raises:
        FrameError: another dtype or shape, or an empty picture.
    """
    import cv2

    _check(image)
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if image.ndim == 3 else image
    return float(cv2.Laplacian(grey, cv2.CV_64F).var())


def color_drift(a: Image, b: Image) -> float:
    """The largest difference between the per-channel means of two pictures, in steps of 1/255.

    ``max over c of |mean(a[..., c]) - mean(b[..., c])|``. The two may differ in size.

    Raises:
        FrameError: not uint8, or unequal numbers of channels.
    """
    _check(a)
    _check(b)
    if a.shape[2:] != b.shape[2:]:
        raise FrameError("channels", f"shapes {a.shape} and {b.shape}", "as many channels in both")
    return float(np.max(np.abs(a.mean(axis=(0, 1)) - b.mean(axis=(0, 1)))))


def _check(image: NDArray[Any]) -> None:
    if image.dtype != np.uint8:
        raise FrameError("dtype", f"{image.dtype}", "uint8")
    if image.size == 0 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
        raise FrameError("shape", f"shape {image.shape}", "(H, W, 3) or (H, W), not empty")


def _check_pair(a: NDArray[Any], b: NDArray[Any]) -> None:
    _check(a)
    _check(b)
    if a.shape != b.shape:
        raise FrameError("shape", f"shapes {a.shape} and {b.shape}", "two pictures of one shape")
