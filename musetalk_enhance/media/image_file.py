"""Image files without metadata: pixels in, pixels out, through OpenCV."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import MediaError
from ..runtime.files import PathLike, write_bytes
from .arrays import Image, check_bgr


def read_image(path: PathLike) -> Image:
    """An image file as BGR uint8 ``(H, W, 3)``, upright; alpha is dropped, 16 bits become 8.

    Raises:
        MediaError: missing, or not an image that OpenCV can read.
    """
    import cv2

    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise MediaError(path, f"cannot be read ({error.strerror or error})") from error
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        raise MediaError(path, "is not a readable image")
    return np.asarray(image, np.uint8)


def write_image(path: PathLike, image_bgr: Image) -> None:
    """Write an image to a file whose extension gives the format (``.png``, ``.jpg``, ...).

    Args:
        path: where to; a file of this name is replaced only when the new one is complete.
        image_bgr: BGR uint8 ``(H, W, 3)``, any strides.

    Raises:
        FrameError: another shape or dtype.
        MediaError: unknown extension, or the file cannot be written.
    """
    import cv2

    check_bgr(image_bgr)
    extension = Path(path).suffix
    try:
        success, data = cv2.imencode(extension, np.ascontiguousarray(image_bgr))
    except cv2.error as error:
        what = f"cannot be written: {extension!r} is not the extension of an image format"
        raise MediaError(path, what) from error
    if not success:
        raise MediaError(path, "cannot be encoded")
    write_bytes(path, data.tobytes())
