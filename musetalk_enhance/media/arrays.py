"""The array type of images, and the checks and resizing that all of them share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FrameError

Image = NDArray[np.uint8]
"""uint8 ``(H, W, 3)`` in BGR order, or ``(H, W)`` for a single plane such as alpha."""


def check_bgr(image_bgr: Image, index: int | None = None) -> None:
    """Check that an array is an image.

    Args:
        image_bgr: BGR uint8 ``(H, W, 3)``.
        index: its position in a batch, for the error.

    Raises:
        FrameError: another shape or dtype, or empty.
    """
    wrong_shape = image_bgr.ndim != 3 or image_bgr.shape[2] != 3 or not image_bgr.size
    if wrong_shape or image_bgr.dtype != np.uint8:
        raise FrameError("shape", f"{image_bgr.dtype} {image_bgr.shape}", "uint8 (H, W, 3)", index)


def as_bgr_image(value: Any) -> Image:
    """`value` as a C-contiguous BGR image; copied only where its memory layout is another.

    Args:
        value: BGR uint8 ``(H, W, 3)``, in any memory layout.

    Raises:
        FrameError: it is something else, or empty.
    """
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8:
        actual = str(getattr(value, "dtype", type(value).__name__))
        raise FrameError("dtype", actual, "a BGR uint8 array (H, W, 3)")
    if value.ndim != 3 or value.shape[2] != 3 or not value.size:
        raise FrameError("shape", f"shape {value.shape}", "a non-empty BGR uint8 array (H, W, 3)")
    return np.ascontiguousarray(value)


def resize_image(image: Image, size_wh: tuple[int, int]) -> Image:
    """Resize to (width, height): area averages where it shrinks, cubic where it grows.

    Args:
        image: uint8 ``(H, W)`` or ``(H, W, C)``, any strides; returned itself if it has this size.
        size_wh: width and height, in pixels.
    """
    import cv2

    height, width = image.shape[:2]
    if (width, height) == size_wh:
        return image
    shrinks = size_wh[0] <= width and size_wh[1] <= height
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    resized = cv2.resize(np.ascontiguousarray(image), size_wh, interpolation=interpolation)
    return np.asarray(resized, np.uint8)


def pad_to(image_bgr: Image, size_wh: tuple[int, int]) -> Image:
    """Extend an image on the right and at the bottom by repeating its last column and row.

    Args:
        image_bgr: uint8 ``(H, W, 3)``, any strides.
        size_wh: width and height, in pixels, not smaller than the image's.

    Returns:
        uint8 ``(height, width, 3)``, C-contiguous.
    """
    height, width = image_bgr.shape[:2]
    pads = [(0, size_wh[1] - height), (0, size_wh[0] - width), (0, 0)]
    padded = np.pad(image_bgr, pads, mode="edge") if any(map(any, pads)) else image_bgr
    return np.ascontiguousarray(padded)
