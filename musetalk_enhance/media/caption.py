"""A line of text in a band of an image, drawn with Pillow's default font."""

from __future__ import annotations

from typing import Any

import numpy as np

from .arrays import Image

MIN_HEIGHT, MAX_HEIGHT = 20, 64
"""Height of a band of text, in pixels."""
PAPER, INK = 24, 235
"""Gray values of the background and of the text."""

_MAX_CHARACTERS = 400  # no band has room for more


def draw_caption(band: Image, text: str) -> None:
    """Draw a line of text into the middle of a band, as large as it fits.

    Text that does not fit at the smallest size is shortened, with ``...`` at its end. Characters
    other than ASCII, which Pillow's default font lacks, are drawn as ``?``.

    Args:
        band: BGR uint8 ``(H, W, 3)`` in the color `PAPER`, H from `MIN_HEIGHT` to `MAX_HEIGHT`;
            changed in place.
        text: any text; line breaks become spaces.
    """
    height, width = band.shape[:2]
    words = " ".join(text[:_MAX_CHARACTERS].split())
    ascii_text = "".join(char if " " <= char <= "~" else "?" for char in words)
    if not ascii_text:
        return
    fitted, size = _fit(ascii_text, width - height // 2, height)
    coverage = _render(fitted, size)[:height, :width].astype(np.float32) / 255
    top, left = (height - coverage.shape[0]) // 2, (width - coverage.shape[1]) // 2
    gray = np.rint(PAPER + (INK - PAPER) * coverage).astype(np.uint8)
    band[top : top + gray.shape[0], left : left + gray.shape[1]] = gray[..., None]


def _fit(text: str, width: int, height: int) -> tuple[str, int]:
    """The text, shortened if need be, and the largest font size at which it fits a band."""
    largest = int(0.75 * height)  # a line is about 1.2 times as high
    smallest = -(-largest * max(MIN_HEIGHT * 10, 6 * height) // (10 * height))
    shortened = text
    if _width(text, smallest) > width:
        fits, fails = 0, len(text)
        while fails - fits > 1:
            middle = (fits + fails) // 2
            enough = _width(_shorten(text, middle), smallest) <= width
            fits, fails = (middle, fails) if enough else (fits, middle)
        shortened = _shorten(text, fits)
    size = smallest
    while size < largest and _width(shortened, size + 1) <= width:
        size += 1
    return shortened, size


def _shorten(text: str, count: int) -> str:
    return text[:count].rstrip() + "..."


def _font(size: int) -> Any:
    """Pillow's default font; before Pillow 10.1 a bitmap font of one size."""
    from PIL import ImageFont

    try:
        return ImageFont.load_default(size)
    except (TypeError, ImportError):
        return ImageFont.load_default()


def _width(text: str, size: int) -> int:
    """Width of a line in pixels."""
    font = _font(size)
    if hasattr(font, "getmetrics"):
        return int(np.ceil(font.getlength(text)))
    width, height = font.getmask(text).size
    return int(width * _enlargement(size, height))


def _enlargement(size: int, height: int) -> int:
    """By how much a bitmap font is enlarged in place of a font size."""
    return max(1, size // height)


def _render(text: str, size: int) -> Image:
    """Coverage of a line of text, 0 to 255: uint8 (H, W), as high for every text."""
    from PIL import Image as PillowImage
    from PIL import ImageDraw

    font = _font(size)
    if hasattr(font, "getmetrics"):
        line_wh, enlargement = (_width(text, size), sum(font.getmetrics())), 1
    else:
        line_wh = font.getmask(text).size
        enlargement = _enlargement(size, line_wh[1])
    line = PillowImage.new("L", line_wh)
    ImageDraw.Draw(line).text((0, 0), text, fill=255, font=font)
    return np.asarray(line).repeat(enlargement, 0).repeat(enlargement, 1)
