"""Sheets: everything is there, nothing is cropped or enlarged without need, and the text can be
read."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from musetalk_enhance.errors import ConfigError, FrameError
from musetalk_enhance.media.contact_sheet import (
    GAP,
    LINE_GAP,
    MAX_HEIGHT,
    MIN_CELL,
    contact_sheet,
    side_by_side,
)

PAPER = 24


def noise(rng, width, height) -> np.ndarray:
    """No grey value as dark as the paper or as bright as the ink."""
    return rng.integers(60, 200, (height, width, 3), np.uint8)


def flat(width, height, color=(0, 0, 180)) -> np.ndarray:
    return np.full((height, width, 3), color, np.uint8)


def ink(part) -> np.ndarray:
    """Columns of a band of text that hold ink."""
    return np.flatnonzero((part > PAPER + 40).any(axis=(0, 2)))


def boxes(page, colors) -> list[tuple[int, int, int, int]]:
    """Left, top, width and height of what has nearly each colour."""
    found = []
    for color in colors:
        rows, columns = np.nonzero((np.abs(page.astype(int) - color) <= 2).all(axis=2))
        found.append((columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1))
    return found


def test_after_stays_as_it_is_and_before_is_enlarged_plainly(rng):
    before, after = noise(rng, 100, 75), noise(rng, 400, 300)
    sheet = side_by_side([before, after], ["before", "after"])
    band = sheet.shape[0] - 300
    assert sheet.shape == (300 + band, 800 + GAP, 3) and sheet.dtype == np.uint8
    assert np.array_equal(sheet[band:, 400 + GAP :], after)
    assert np.array_equal(
        sheet[band:, :400], cv2.resize(before, (400, 300), interpolation=cv2.INTER_CUBIC)
    )
    assert (sheet[band:, 400 : 400 + GAP] == PAPER).all()
    assert ink(sheet[:band, :400]).size and ink(sheet[:band, 400 + GAP :]).size
    assert side_by_side([before, after], ["before", "after"]).tobytes() == sheet.tobytes()


def test_pictures_are_not_changed_and_views_are_taken(rng):
    picture = noise(rng, 120, 100)
    kept = picture.copy()
    sheet = side_by_side([picture[:, ::-1], picture[::-1]], ["a", "b"])
    assert np.array_equal(sheet[-100:, :120], picture[:, ::-1]) and np.array_equal(picture, kept)


def test_the_row_is_only_made_smaller_where_it_is_too_long(rng):
    exact = noise(rng, 509, 300)
    sheet = side_by_side([exact] * 4, list("abcd"))
    assert sheet.shape[1] == 2048 and np.array_equal(sheet[-300:, -509:], exact)
    sheet = side_by_side([noise(rng, 510, 300)] * 4, list("abcd"))
    assert 2030 < sheet.shape[1] <= 2048
    pictures = [noise(rng, 1000, 600)] * 5
    sheet = side_by_side(pictures, list("abcde"))
    assert 2000 < sheet.shape[1] <= 2048
    assert 2000 < max(side_by_side([noise(rng, 300, 5000)], ["tall"]).shape) <= 2048
    assert 480 < max(side_by_side(pictures, list("abcde"), max_side=500).shape) <= 500


@pytest.mark.parametrize(
    "sizes",
    [
        [(1, 1)],
        [(1, 3000), (3000, 1)],
        [(5000, 2)],
        [(2, 5000)] * 3,
        [(2000, 2000)] + [(9, 2000)] * 12,
    ],
)
def test_extreme_shapes_stay_bounded(sizes):
    sheet = side_by_side([flat(*size) for size in sizes], ["some label"] * len(sizes))
    assert max(sheet.shape) <= 2048 and sheet.shape[1] >= MIN_CELL * len(sizes)
    assert ink(sheet[: boxes(sheet, [(0, 0, 180)])[0][1]]).size


def test_a_small_picture_lies_in_a_cell_with_room_for_text(rng):
    tiny = noise(rng, 8, 8)
    sheet = side_by_side([tiny, tiny], ["before", "after"])
    band = sheet.shape[0] - 8
    assert sheet.shape[1] == 2 * MIN_CELL + GAP
    assert np.array_equal(sheet[band:, 44:52], tiny)


@pytest.mark.parametrize(
    "label", ["x" * 3000, "fidelity=0.7 with a name that is much longer than its cell", "W" * 30]
)
@pytest.mark.parametrize("width", [40, 300, 2000])
def test_long_labels_are_cut_short_inside_their_cell(label, width):
    sheet = side_by_side([flat(width, 100)] * 2, [label, label])
    band = boxes(sheet, [(0, 0, 180)])[0][1]
    half = (sheet.shape[1] - GAP) // 2
    for part in (sheet[:band, :half], sheet[:band, half + GAP :]):
        columns = ink(part)
        assert columns.min() >= 2 and columns.max() < half - 2
        # but as much is shown as there is room for
        assert columns.max() - columns.min() > 0.6 * half
    assert (sheet[:band, half : half + GAP] == PAPER).all()


def test_a_cut_label_ends_in_dots():
    cut = side_by_side([flat(MIN_CELL, 50)], ["abcdefgh" * 10])
    band = cut.shape[0] - 50
    for kept in range(1, 30):
        if np.array_equal(
            side_by_side([flat(MIN_CELL, 50)], [("abcdefgh" * 10)[:kept] + "..."])[:band],
            cut[:band],
        ):
            return
    pytest.fail("no beginning of the label with three dots looks like what was drawn")


@pytest.mark.parametrize("label", ["", " \n\t ", "Zoë", "人物.png", "a\nb", "\x00"])
def test_any_text_can_be_drawn(label):
    plain = "".join(
        mark if mark.isascii() and mark.isprintable() else "?" for mark in " ".join(label.split())
    )
    sheet, expected = (side_by_side([flat(200, 100)], [text]) for text in (label, plain))
    assert np.array_equal(sheet, expected)
    assert bool(ink(sheet[:-100]).size) is bool(plain)


def test_text_grows_with_the_picture_and_is_never_too_small():
    heights = []
    for side in (16, 200, 1000, 2000):
        sheet = side_by_side([flat(side, side)], ["H"])
        band = boxes(sheet, [(0, 0, 180)])[0][1]
        heights.append(np.ptp(np.flatnonzero((sheet[:band] > 100).any(axis=(1, 2)))) + 1)
    assert heights == sorted(heights) and heights[0] >= 7 and heights[-1] >= 20


def test_a_contact_sheet_shows_every_picture_whole():
    colors = [(0, 0, 180), (0, 180, 0), (180, 0, 0), (180, 180, 0), (0, 180, 180)]
    sizes = [(400, 100), (2000, 500), (50, 300), (1, 1), (700, 10)]
    page = contact_sheet(
        [flat(*size, color) for size, color in zip(sizes, colors, strict=True)], list("abcde")
    )
    found = boxes(page, colors)
    assert [box[2:] for box in found] == [(400, 100), (1600, 400), (50, 300), (1, 1), (700, 10)]
    assert [box[1] for box in found] == sorted(box[1] for box in found)
    assert page.shape == (811 + 5 * 40 + 4 * LINE_GAP, 1600, 3)
    for left, _, width, _ in found:
        assert abs(left + width / 2 - 800) <= 1


def test_columns_are_in_reading_order():
    colors = [(0, 0, 180), (0, 180, 0), (180, 0, 0)]
    page = contact_sheet(
        [flat(300, 200, color) for color in colors], ["a", "b", "c"], width=604, columns=2
    )
    first, second, third = boxes(page, colors)
    assert [first[2:], second[2:], third[2:]] == [(300, 200)] * 3
    assert (first[0], second[0], third[0]) == (0, 300 + GAP, 0) and first[1] == second[1]
    assert third[1] == 2 * first[1] + 200 + LINE_GAP
    assert (page[first[1] + 200 :, 300 : 300 + GAP] == PAPER).all()


def test_pixels_that_need_no_shrinking_are_untouched(rng):
    picture = noise(rng, 640, 360)
    page = contact_sheet([picture] * 2, ["a", "b"], width=640)
    assert np.array_equal(page[-360:], picture)
    assert contact_sheet([picture] * 2, ["a", "b"], width=640).tobytes() == page.tobytes()


def test_more_than_fits_gets_more_columns():
    strips = [flat(1000, 333)] * 60
    page = contact_sheet(strips, ["caption"] * 60)
    assert page.shape[0] <= MAX_HEIGHT and page.shape[1] == 1600
    left, _, width, _ = boxes(page[:400], [(0, 0, 180)])[0]
    assert left == 0 and width == 1600  # two columns of 798, the gap between
    assert (page[:, 798 : 798 + GAP] == PAPER).all()


@pytest.mark.parametrize(
    ("count", "size"), [(1, (10, 30000)), (3, (300, 13000)), (700, (100, 400)), (2000, (64, 64))]
)
def test_a_page_is_never_higher_than_the_limit(count, size):
    page = contact_sheet([flat(*size)] * count, ["a caption"] * count)
    assert page.shape[0] <= MAX_HEIGHT and page.shape[1] == 1600
    # whose last line may hold a lower picture
    assert (page[-1] == (0, 0, 180)).all(axis=1).any() or count == 700


def test_only_the_high_ones_shrink():
    colors = [(0, 0, 180), (0, 180, 0)]
    page = contact_sheet([flat(150, 20000), flat(96, 90, colors[1])], ["high", "low"], width=100)
    high, low = boxes(page, colors)
    assert page.shape[0] <= MAX_HEIGHT and low[2:] == (96, 90)
    assert high[3] > 11800 and abs(high[2] / high[3] - 150 / 20000) < 2e-4


def test_impossible_wishes_are_named(rng):
    one = noise(rng, 8, 8)
    for sheet in (side_by_side, contact_sheet):
        with pytest.raises(FrameError, match="no images"):
            sheet([], [])
        with pytest.raises(FrameError, match="1 labels; expected one for each of 2 images"):
            sheet([one, one], ["a"])
        for wrong in (one[..., 0], one.astype(np.float32), one[:0]):
            with pytest.raises(FrameError, match=r"frame 1: .*uint8 \(H, W, 3\)"):
                sheet([one, wrong], ["a", "b"])
    with pytest.raises(ConfigError, match="max_side"):
        side_by_side([one], ["a"], max_side=255)
    with pytest.raises(ConfigError, match="columns"):
        contact_sheet([one], ["a"], columns=0)
    with pytest.raises(
        ConfigError, match="width: invalid value 195; .*196 pixels or more for 2 columns"
    ):
        contact_sheet([one], ["a"], width=195, columns=2)
    with pytest.raises(FrameError, match="9000 images; expected fewer"):
        contact_sheet([one.repeat(4, 0)] * 9000, ["a"] * 9000)


def test_real_portraits(shared):
    paths = sorted((shared / "data" / "portraits").glob("*.jpg"))[:3]
    strips = []
    for path in paths:
        after = cv2.imread(str(path))
        before = cv2.resize(after, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
        strips.append(side_by_side([before, after], ["before", "after"], max_side=1200))
        assert max(strips[-1].shape) <= 1200
    page = contact_sheet(strips, [path.name for path in paths], width=800)
    assert page.shape[1] == 800 and page.std() > 20
