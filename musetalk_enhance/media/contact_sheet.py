"""Images beside each other with a caption above each: for judging a restoration by eye.

Images are BGR uint8 ``(H, W, 3)`` in and out. Nothing is cropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..errors import ConfigError, FrameError
from .arrays import Image, check_bgr, resize_image
from .caption import MAX_HEIGHT as MAX_CAPTION
from .caption import MIN_HEIGHT as MIN_CAPTION
from .caption import PAPER, draw_caption

GAP = 4
"""Pixels between two cells of a row."""
LINE_GAP = 12
"""Pixels between two lines of a contact sheet, so that a caption belongs to the image below it."""
MIN_CELL = 96
"""Least width of a cell in pixels, so that a few words fit above the smallest image."""
MAX_FACES = 12
"""Most faces at full size on a comparison."""
MAX_HEIGHT = 12000
"""Largest height of a contact sheet, in pixels."""


def side_by_side(images: Sequence[Image], labels: Sequence[str], *, max_side: int = 2048) -> Image:
    """Images in one row, all as high as the highest, a label above each: a comparison or a sweep.

    Lower ones are enlarged by plain cubic interpolation, so that a restored image can be told from
    an enlarged one; the highest keep their pixels unchanged. Only a row that is longer than
    `max_side` is reduced, all images by the same factor.

    Args:
        images: BGR uint8 ``(H, W, 3)``, one or more, of any sizes.
        labels: one for each.
        max_side: longest side of the result in pixels, 256 or more. It is exceeded only if so many
            cells do not fit at their least width, `MIN_CELL`.

    Returns:
        BGR uint8 ``(height, width, 3)``.

    Raises:
        ConfigError: `max_side` is under 256.
        FrameError: no images, one of another shape or dtype, or another number of labels.
    """
    if max_side < 256:
        raise ConfigError("max_side", max_side, "a number of pixels, 256 or more")
    _check(images, labels)
    height = max(image.shape[0] for image in images)
    total_width = sum(image.shape[1] * height / image.shape[0] for image in images)
    band = _band_height(min(max(total_width, height), max_side) / 32)
    room_wh = max_side - GAP * (len(images) - 1), max_side - band
    shapes = [image.shape for image in images]
    height = _row_height(shapes, min(height, room_wh[1]), room_wh[0])
    widest = max(1, room_wh[0] - MIN_CELL * (len(images) - 1))  # for an image of hardly any height
    cells = []
    for image, label in zip(images, labels, strict=True):
        width = min(widest, _proportional_width(image.shape, height))
        resized = resize_image(image, (width, height))
        cells.append(_cell(resized, label, max(MIN_CELL, width), band))
    return _row(cells)


def comparison_sheet(
    original: Image, restored: Image, boxes_xyxy: Sequence[Sequence[float]] = ()
) -> Image:
    """An image before and after, and below it the faces at full size, where the row is reduced.

    Args:
        original: BGR uint8 ``(H, W, 3)``.
        restored: BGR uint8 ``(h, w, 3)``, of the same shape or larger.
        boxes_xyxy: faces, in pixels of `original`; the first `MAX_FACES` are shown, with a margin.

    Returns:
        BGR uint8 ``(height, width, 3)``.

    Raises:
        FrameError: an image of another shape or dtype.
    """
    rows = [side_by_side([original, restored], ["before", "after"])]
    if rows[0].shape[0] < restored.shape[0]:
        scale = restored.shape[1] / original.shape[1], restored.shape[0] / original.shape[0]
        boxes = [_with_margin(box, original.shape) for box in boxes_xyxy[:MAX_FACES]]
        for number, box in enumerate(boxes):
            left, top, right, bottom = box
            x1, x2 = (round(side * scale[0]) for side in (left, right))
            y1, y2 = (round(side * scale[1]) for side in (top, bottom))
            faces = [original[top:bottom, left:right], restored[y1:y2, x1:x2]]
            labels = [f"face {number + 1} before", "after"]
            room = 2 * max(x2 - x1, y2 - y1, MIN_CELL) + GAP + MAX_CAPTION
            rows.append(side_by_side(faces, labels, max_side=max(256, room)))
    width = max(row.shape[1] for row in rows)
    return _stack([_row([row], width) for row in rows])


def _with_margin(box: Sequence[float], shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """A face's box with a third of its size around it, within the image; never empty."""
    x1, y1, x2, y2 = box
    margin = max(x2 - x1, y2 - y1) / 3
    left, top = max(0, int(x1 - margin)), max(0, int(y1 - margin))
    left, top = min(left, shape[1] - 1), min(top, shape[0] - 1)
    right, bottom = min(shape[1], math.ceil(x2 + margin)), min(shape[0], math.ceil(y2 + margin))
    return left, top, max(left + 1, right), max(top + 1, bottom)


def contact_sheet(
    images: Sequence[Image], captions: Sequence[str], *, width: int = 1600, columns: int = 1
) -> Image:
    """Many images on one page, in reading order, a caption above each.

    An image wider than its cell is reduced, none is enlarged. A page higher than `MAX_HEIGHT` gets
    more columns; if that is not enough, the highest images are reduced.

    Args:
        images: BGR uint8 ``(H, W, 3)``, one or more, of any sizes: rows of `side_by_side`, or
            single images.
        captions: one for each.
        width: of the page in pixels, `MIN_CELL` or more.
        columns: the least number of cells beside each other.

    Returns:
        BGR uint8 ``(height, width, 3)``, at most `MAX_HEIGHT` high.

    Raises:
        ConfigError: `width` is too small for so many columns, or `columns` is under 1.
        FrameError: no images, one of another shape or dtype, another number of captions, or more
            images than a page of this width can hold.
    """
    _check(images, captions)
    max_columns = (width + GAP) // (MIN_CELL + GAP)
    if columns < 1:
        raise ConfigError("columns", columns, "an integer, 1 or more")
    if columns > max_columns:
        needed = columns * (MIN_CELL + GAP) - GAP
        raise ConfigError("width", width, f"{needed} pixels or more for {columns} columns")
    columns = _enough_columns(images, width, columns, max_columns)
    cell, band = _cell_size(width, columns)
    room = MAX_HEIGHT + LINE_GAP - _line_count(len(images), columns) * (band + LINE_GAP)
    limit = _height_limit(_heights(images, cell), columns, room)
    pairs = zip(images, captions, strict=True)
    cells = [_cell(_reduce(image, cell, limit), text, cell, band) for image, text in pairs]
    rows = [_row(cells[at : at + columns], width) for at in range(0, len(cells), columns)]
    return _stack(rows)


def _check(images: Sequence[Image], labels: Sequence[str]) -> None:
    if not len(images):
        raise FrameError("count", "no images", "one or more")
    if len(labels) != len(images):
        expected = f"one for each of {len(images)} images"
        raise FrameError("labels", f"{len(labels)} labels", expected)
    for index, image in enumerate(images):
        check_bgr(image, index)


def _band_height(proposal: float) -> int:
    """Height of a band of text in pixels: the proposed one, within its limits."""
    return int(min(MAX_CAPTION, max(MIN_CAPTION, round(proposal))))


def _proportional_width(shape: tuple[int, ...], height: int) -> int:
    """Width of an image at this height, with its aspect ratio."""
    return max(1, shape[1] * height // shape[0])


def _row_height(shapes: Sequence[tuple[int, ...]], height: int, room: int) -> int:
    """The greatest height, up to `height`, at which cells of these images fit beside each other."""
    fits, fails = 1, height + 1
    while fails - fits > 1:
        middle = (fits + fails) // 2
        width = sum(max(MIN_CELL, _proportional_width(shape, middle)) for shape in shapes)
        fits, fails = (middle, fails) if width <= room else (fits, middle)
    return fits


def _reduce(image: Image, width: int, height: int) -> Image:
    """An image that fits a box, with its aspect ratio; never enlarged."""
    scale = min(1.0, width / image.shape[1], height / image.shape[0])
    size_wh = max(1, int(image.shape[1] * scale)), max(1, int(image.shape[0] * scale))
    return resize_image(image, size_wh)


def _cell(image: Image, text: str, width: int, band: int) -> Image:
    """An image in the middle of its cell, a band of text above it."""
    cell = np.full((band + image.shape[0], width, 3), PAPER, np.uint8)
    left = (width - image.shape[1]) // 2
    cell[band:, left : left + image.shape[1]] = image
    draw_caption(cell[:band], text)
    return cell


def _row(cells: Sequence[Image], width: int | None = None) -> Image:
    """Cells beside each other with gaps; paper fills up to `width` and below the lower ones."""
    total_width = sum(cell.shape[1] for cell in cells) + GAP * (len(cells) - 1)
    height = max(cell.shape[0] for cell in cells)
    row = np.full((height, width or total_width, 3), PAPER, np.uint8)
    left = 0
    for cell in cells:
        row[: cell.shape[0], left : left + cell.shape[1]] = cell
        left += cell.shape[1] + GAP
    return row


def _stack(rows: Sequence[Image]) -> Image:
    gap = np.full((LINE_GAP, rows[0].shape[1], 3), PAPER, np.uint8)
    return np.concatenate([part for row in rows for part in (row, gap)][:-1])


def _line_count(count: int, columns: int) -> int:
    return -(-count // columns)


def _cell_size(width: int, columns: int) -> tuple[int, int]:
    """Width of a cell and height of its band."""
    cell = (width - GAP * (columns - 1)) // columns
    return cell, _band_height(cell / 40)


def _heights(images: Sequence[Image], width: int) -> list[int]:
    """Heights of the images, reduced where they are wider than `width`."""
    scales = [min(1.0, width / image.shape[1]) for image in images]
    return [max(1, int(image.shape[0] * s)) for image, s in zip(images, scales, strict=True)]


def _enough_columns(images: Sequence[Image], width: int, columns: int, max_columns: int) -> int:
    """The fewest columns with which the page is low enough; else as many as are of use."""
    last = max(columns, min(max_columns, len(images)))
    for count in range(columns, last):
        cell, band = _cell_size(width, count)
        bands = _line_count(len(images), count) * (band + LINE_GAP) - LINE_GAP
        if _page_height(_heights(images, cell), count) + bands <= MAX_HEIGHT:
            return count
    return last


def _page_height(heights: Sequence[int], columns: int, limit: float = math.inf) -> int:
    """Height in pixels of all lines of images, with no image higher than `limit`."""
    lines = (heights[at : at + columns] for at in range(0, len(heights), columns))
    return sum(int(min(limit, max(line))) for line in lines)


def _height_limit(heights: Sequence[int], columns: int, room: int) -> int:
    """The greatest height of an image with which all lines of a page fit."""
    fits, fails = 0, MAX_HEIGHT + 1
    while fails - fits > 1:
        middle = (fits + fails) // 2
        enough = _page_height(heights, columns, middle) <= room
        fits, fails = (middle, fails) if enough else (fits, middle)
    if fits < min(16, max(heights)):
        fewer = "fewer of them, or a wider page: these would be mere dots"
        raise FrameError("count", f"{len(heights)} images", fewer)
    return fits
