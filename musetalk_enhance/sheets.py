"""Pictures beside each other with a line of text above each: what a person looks at to judge a restoration.

Pictures are BGR uint8 ``(H, W, 3)`` in and out. Nothing is cropped; text is cut short with ``...`` before it
would run out of its cell, and characters other than ASCII, which OpenCV's font lacks, are drawn as ``?``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError, FrameError

Image = NDArray[np.uint8]

GAP = 4
"""Pixels between two cells of a row."""
LINE_GAP = 12
"""Pixels between two lines of a contact sheet, so that a caption belongs to the picture below it."""
MIN_CELL = 96
"""No cell is narrower, in pixels, so that a few words fit above the smallest picture."""
MAX_HEIGHT = 12000
"""A contact sheet is not higher, in pixels."""

_PAPER, _INK = 24, 235  # grey values
_SMALLEST, _LARGEST = 20, 64  # height of a band of text in pixels
_LONGEST_TEXT = 400  # characters looked at; no cell shows that many


def side_by_side(pictures: Sequence[Image], labels: Sequence[str], *, max_side: int = 2048) -> Image:
    """Pictures in one row, all as high as the highest, a label above each: before and after, or a sweep.

    Lower ones are enlarged plainly (cubic), so that a restored picture can be told from one that was only made
    larger; the highest keep their pixels unchanged. Only a row that is longer than `max_side` is made smaller,
    all pictures by the same factor.

    Args:
        pictures: BGR uint8 ``(H, W, 3)``, one or more, of any sizes.
        labels: one for each.
        max_side: longest side of the result in pixels, 256 or more. Only more cells than have room at their least
            width, `MIN_CELL`, exceed it.

    Returns:
        BGR uint8 ``(height, width, 3)``.

    Raises:
        ConfigError: `max_side` is under 256.
        FrameError: no picture, one of another shape or dtype, or not as many labels.
    """
    if max_side < 256:
        raise ConfigError("max_side", max_side, "a number of pixels, 256 or more")
    _check(pictures, labels)
    height = max(picture.shape[0] for picture in pictures)
    widths = [picture.shape[1] * height / picture.shape[0] for picture in pictures]
    band = _band(min(max(sum(widths), height), max_side) / 32)
    room_wh = max_side - GAP * (len(pictures) - 1), max_side - band
    height = _row_height([picture.shape for picture in pictures], min(height, room_wh[1]), room_wh[0])
    widest = max(1, room_wh[0] - MIN_CELL * (len(pictures) - 1))  # of what is a hair's breadth high
    sized = [_resized(picture, (min(widest, _across(picture.shape, height)), height)) for picture in pictures]
    pairs = zip(sized, labels, strict=True)
    return _row([_cell(picture, text, max(MIN_CELL, picture.shape[1]), band) for picture, text in pairs])


def contact_sheet(rows: Sequence[Image], captions: Sequence[str], *, width: int = 1600, columns: int = 1) -> Image:
    """Many pictures on one page, in reading order, a caption above each.

    A picture wider than its cell is made smaller, none is enlarged. A page higher than `MAX_HEIGHT` gets more
    columns; if that is not enough, the highest pictures are made smaller.

    Args:
        rows: BGR uint8 ``(H, W, 3)``, one or more, of any sizes: strips of `side_by_side`, or single pictures.
        captions: one for each.
        width: of the page in pixels, `MIN_CELL` or more.
        columns: cells beside each other, at least.

    Returns:
        BGR uint8 ``(height, width, 3)``, `MAX_HEIGHT` high at most.

    Raises:
        ConfigError: `width` is too small for so many columns, or `columns` is under 1.
        FrameError: no picture, one of another shape or dtype, not as many captions, or more pictures than a page
            of this width can hold.
    """
    _check(rows, captions)
    most = (width + GAP) // (MIN_CELL + GAP)
    if columns < 1:
        raise ConfigError("columns", columns, "a whole number, 1 or more")
    if columns > most:
        raise ConfigError("width", width, f"{columns * (MIN_CELL + GAP) - GAP} pixels or more for {columns} columns")
    columns = _enough_columns(rows, width, columns, most)
    cell, band = _cell_of(width, columns)
    room = MAX_HEIGHT + LINE_GAP - _lines(len(rows), columns) * (band + LINE_GAP)
    limit = _height_limit(_heights(rows, cell), columns, room)
    pairs = zip(rows, captions, strict=True)
    cells = [_cell(_within(picture, cell, limit), text, cell, band) for picture, text in pairs]
    page = [_row(cells[at : at + columns], width) for at in range(0, len(cells), columns)]
    return _stacked(page)


def _check(pictures: Sequence[Image], labels: Sequence[str]) -> None:
    if not len(pictures):
        raise FrameError("count", "no picture", "one or more")
    if len(labels) != len(pictures):
        raise FrameError("labels", f"{len(labels)} labels", f"one for each of {len(pictures)} pictures")
    for index, picture in enumerate(pictures):
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
            raise FrameError("shape", f"{picture.dtype} {picture.shape}", "uint8 (H, W, 3)", index)


def _band(wanted: float) -> int:
    """Height of a band of text in pixels, from what suits the size of the sheet."""
    return int(min(_LARGEST, max(_SMALLEST, round(wanted))))


def _resized(picture: Image, size_wh: tuple[int, int]) -> Image:
    """Area where it shrinks, cubic where it grows, the very pixels where neither."""
    import cv2

    if picture.shape[1::-1] == size_wh:
        return picture
    shrinks = size_wh[0] <= picture.shape[1] and size_wh[1] <= picture.shape[0]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(np.ascontiguousarray(picture), size_wh, interpolation=how), np.uint8)


def _across(shape: tuple[int, ...], height: int) -> int:
    """Width of a picture at this height, its proportions kept."""
    return max(1, shape[1] * height // shape[0])


def _row_height(shapes: Sequence[tuple[int, ...]], height: int, room: int) -> int:
    """The greatest height, up to `height`, at which cells of these pictures have room beside each other."""
    fits, fails = 1, height + 1
    while fails - fits > 1:
        middle = (fits + fails) // 2
        across = sum(max(MIN_CELL, _across(shape, middle)) for shape in shapes)
        fits, fails = (middle, fails) if across <= room else (fits, middle)
    return fits


def _within(picture: Image, width: int, height: int) -> Image:
    """A picture that fits a box, its proportions kept; never enlarged."""
    scale = min(1.0, width / picture.shape[1], height / picture.shape[0])
    return _resized(picture, (max(1, int(picture.shape[1] * scale)), max(1, int(picture.shape[0] * scale))))


def _cell(picture: Image, text: str, width: int, band: int) -> Image:
    """A picture in the middle of its cell, a band of text above it."""
    cell = np.full((band + picture.shape[0], width, 3), _PAPER, np.uint8)
    left = (width - picture.shape[1]) // 2
    cell[band:, left : left + picture.shape[1]] = picture
    _write(cell[:band], text)
    return cell


def _row(cells: Sequence[Image], width: int | None = None) -> Image:
    """Cells beside each other, a gap between two; paper fills up to `width` and below the lower ones."""
    own = sum(cell.shape[1] for cell in cells) + GAP * (len(cells) - 1)
    row = np.full((max(cell.shape[0] for cell in cells), width or own, 3), _PAPER, np.uint8)
    left = 0
    for cell in cells:
        row[: cell.shape[0], left : left + cell.shape[1]] = cell
        left += cell.shape[1] + GAP
    return row


def _stacked(rows: Sequence[Image]) -> Image:
    gap = np.full((LINE_GAP, rows[0].shape[1], 3), _PAPER, np.uint8)
    return np.concatenate([part for row in rows for part in (row, gap)][:-1])


def _lines(count: int, columns: int) -> int:
    return -(-count // columns)


def _cell_of(width: int, columns: int) -> tuple[int, int]:
    """Width of a cell and height of its band."""
    cell = (width - GAP * (columns - 1)) // columns
    return cell, _band(cell / 40)


def _heights(pictures: Sequence[Image], width: int) -> list[int]:
    """Of pictures made smaller where they are wider than `width`."""
    return [max(1, int(picture.shape[0] * min(1.0, width / picture.shape[1]))) for picture in pictures]


def _enough_columns(rows: Sequence[Image], width: int, columns: int, most: int) -> int:
    """The fewest columns with which the page is low enough as it is; else the most that make sense."""
    last = max(columns, min(most, len(rows)))
    for count in range(columns, last):
        cell, band = _cell_of(width, count)
        bands = _lines(len(rows), count) * (band + LINE_GAP) - LINE_GAP
        if _page_height(_heights(rows, cell), count) + bands <= MAX_HEIGHT:
            return count
    return last


def _page_height(heights: Sequence[int], columns: int, limit: float = math.inf) -> int:
    """Pixels that the pictures of a page need, one above the other, when none is higher than `limit`."""
    return sum(int(min(limit, max(heights[at : at + columns]))) for at in range(0, len(heights), columns))


def _height_limit(heights: Sequence[int], columns: int, room: int) -> int:
    """The greatest height of a picture with which all lines of a page find room."""
    fits, fails = 0, MAX_HEIGHT + 1
    while fails - fits > 1:
        middle = (fits + fails) // 2
        fits, fails = (middle, fails) if _page_height(heights, columns, middle) <= room else (fits, middle)
    if fits < min(16, max(heights)):
        fewer = "fewer of them, or a wider page: these would be no more than dots"
        raise FrameError("count", f"{len(heights)} pictures", fewer)
    return fits


def _write(band: Image, text: str) -> None:
    """Draw a line of text into the middle of its band, as large as fits, cut short where the smallest does not."""
    import cv2

    height, width = band.shape[:2]
    plain = "".join(mark if " " <= mark <= "~" else "?" for mark in " ".join(text[:_LONGEST_TEXT].split()))
    shown, scale = _fitted(plain, width - height // 2, height)
    (across, up), below = _measured(shown, scale)
    at = (max(0, (width - across) // 2), (height + up - below // 2) // 2)
    thick = max(1, round(scale * 1.5))
    cv2.putText(band, shown, at, cv2.FONT_HERSHEY_SIMPLEX, scale, (_INK, _INK, _INK), thick, cv2.LINE_AA)


def _measured(text: str, scale: float) -> tuple[tuple[int, int], int]:
    """Width, height above the line, and depth below it, in pixels."""
    import cv2

    (across, up), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, max(1, round(scale * 1.5)))
    return (across, up), below


def _fitted(text: str, width: int, height: int) -> tuple[str, float]:
    """Text and scale that fill a band of this height, or less of it where the text is long."""
    (_, up), below = _measured("Ag", 1.0)
    scale = 0.75 * height / (up + below)
    least = scale * max(_SMALLEST / height, 0.6)
    across = _measured(text, scale)[0][0]
    if across > width:
        scale = max(least, scale * width / across)
    if _measured(text, scale)[0][0] <= width:
        return text, scale
    kept = len(text)
    while kept and _measured(text[:kept].rstrip() + "...", scale)[0][0] > width:
        kept -= 1
    return text[:kept].rstrip() + "...", scale
