"""Faces of whole pictures are cut out on the template and land where they were, to a fraction of a
pixel."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from musetalk_enhance.errors import FrameError
from musetalk_enhance.faces.detect import FFHQ_512
from musetalk_enhance.faces.paste import FEATHER, Paste, coverage, crop_face, paste_faces
from musetalk_enhance.faces.templates import TEMPLATE_SIDE

SIZE_HW = (700, 900)
POSES = {  # middle x, y of the template in the picture; its side in the picture; turn in degrees
    "upright": (450, 350, 300, 0),
    "turned": (450, 350, 300, 33),
    "on its head": (450, 350, 260, 180),
    "small": (210, 480, 48, -20),
    "larger than the template": (450, 340, 800, 12),
    "over the left edge": (90, 330, 320, -15),
    "over the lower corner": (820, 640, 300, 25),
}


def pose(name: str) -> np.ndarray:
    """(2, 3) from the template to the picture."""
    x, y, side, degrees = POSES[name]
    turn = np.deg2rad(degrees)
    linear = (
        side
        / TEMPLATE_SIDE
        * np.array([(np.cos(turn), -np.sin(turn)), (np.sin(turn), np.cos(turn))])
    )
    return np.column_stack((linear, np.array((x, y)) - linear @ np.full(2, TEMPLATE_SIDE / 2)))


def moved(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


def landmarks(name: str) -> np.ndarray:
    return moved(pose(name), FFHQ_512)


def noise(rng, size_hw=SIZE_HW) -> np.ndarray:
    return rng.integers(0, 256, (*size_hw, 3), np.uint8)


def smooth(rng, size_hw=SIZE_HW) -> np.ndarray:
    coarse = rng.integers(0, 256, (7, 9, 3), np.uint8)
    return cv2.resize(coarse, size_hw[::-1], interpolation=cv2.INTER_CUBIC)


def grey(size_hw=SIZE_HW, value=100) -> np.ndarray:
    return np.full((*size_hw, 3), value, np.uint8)


def enlarged(picture: np.ndarray, scale: float) -> np.ndarray:
    return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_LANCZOS4)


def around(field: np.ndarray, px: float, py: float, reach: float):
    """The part of a field about a point, and x and y of its pixels."""
    left, top = max(0, int(px - reach)), max(0, int(py - reach))
    part = field[top : max(0, int(py + reach) + 1), left : max(0, int(px + reach) + 1)]
    y, x = np.mgrid[top : top + part.shape[0], left : left + part.shape[1]] + 0.5
    return part, x, y


def blobs(size_hw: tuple[int, int], points: np.ndarray, sigma: float) -> np.ndarray:
    """One round mark at each point, float32 (H, W), 1 at its middle."""
    found = np.zeros(size_hw, np.float32)
    for px, py in points:
        part, x, y = around(found, px, py, 5 * sigma + 1)
        part[:] = np.maximum(part, np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * sigma**2)))
    return found


def centroids(change: np.ndarray, points: np.ndarray, reach: float) -> np.ndarray:
    """Middle of what changed around each point; NaN where the circle leaves the picture."""
    found = np.full((len(points), 2), np.nan)
    for index, (px, py) in enumerate(points):
        if min(px, py, change.shape[1] - px, change.shape[0] - py) > reach:
            part, x, y = around(change, px, py, reach)
            weight = np.where((x - px) ** 2 + (y - py) ** 2 < reach**2, part, 0).astype(np.float64)
            assert weight.sum() > 0, f"nothing landed at {px:.0f}, {py:.0f}"
            found[index] = (x * weight).sum() / weight.sum(), (y * weight).sum() / weight.sum()
    return found


def marked(aligned: np.ndarray, sigma: float) -> np.ndarray:
    """An aligned face, brightened at the template's landmarks."""
    side = aligned.shape[0]
    marks = blobs((side, side), FFHQ_512 * (side / TEMPLATE_SIDE), sigma * side / TEMPLATE_SIDE)
    return (aligned + 120 * marks[..., None]).clip(0, 255).round().astype(np.uint8)


def inside(name: str, scale: float, shape_hw: tuple[int, int], by: float) -> np.ndarray:
    """Pixels of the canvas that lie in the template, `by` pixels around it."""
    corners = moved(pose(name), np.array([(0, 0), (512, 0), (512, 512), (0, 512)], float)) * scale
    middle = corners.mean(axis=0)
    corners += (
        by * np.sqrt(2) * (corners - middle) / np.linalg.norm(corners - middle, axis=1)[:, None]
    )
    y, x = np.ogrid[: shape_hw[0], : shape_hw[1]]
    found = np.ones(shape_hw, bool)
    for (x1, y1), (x2, y2) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        found &= (x2 - x1) * (y + 0.5 - y1) - (y2 - y1) * (x + 0.5 - x1) >= 0
    return found


@pytest.mark.parametrize("name", POSES)
def test_the_cut_shows_the_landmarks_where_the_template_has_them(name):
    points = landmarks(name)
    sigma = POSES[name][2] / 40
    picture = (
        (100 + 120 * blobs(SIZE_HW, points, sigma)[..., None].repeat(3, 2)).round().astype(np.uint8)
    )
    cut = crop_face(picture, points)
    assert cut.aligned.shape == (512, 512, 3) and cut.aligned.dtype == np.uint8
    found = centroids(cut.aligned[..., 1].astype(float) - 100, FFHQ_512, 36)
    seen = (points > 3 * sigma).all(axis=1) & (points < np.array(SIZE_HW[::-1]) - 3 * sigma).all(
        axis=1
    )
    assert seen.sum() >= 2
    off = np.abs(found - FFHQ_512)[seen].max() * POSES[name][2] / TEMPLATE_SIDE
    print(f"{name}: {off:.3f} px of the picture")
    assert off < 0.5


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("name", POSES)
def test_what_the_network_paints_lands_on_the_landmarks(name, scale, replace):
    """Nothing here rests on the difference to an identity: marks at the template's landmarks are
    looked for."""
    size_hw = SIZE_HW if scale < 4 else (350, 450)  # quick
    half = 1 if scale < 4 else 0.5
    points = landmarks(name) * half
    picture = grey(size_hw)
    cut = crop_face(picture, points)
    canvas = enlarged(picture, scale)
    paste_faces(canvas, [Paste(cut, marked(cut.aligned, 6.0))], replace=replace)
    change = canvas[..., 1].astype(float) - 100
    reach = 24 * POSES[name][2] / TEMPLATE_SIDE * scale * half + 2
    found = centroids(change, points * scale, reach)
    seen = np.isfinite(found[:, 0])
    assert seen.sum() >= 2 and change.max() > 40
    off = np.abs(found - points * scale)[seen].max()
    print(f"{name} x{scale}: {off:.3f} px")
    assert off < 0.5


@pytest.mark.parametrize("side", [256, 512, 1024])
def test_a_network_may_make_another_size(side):
    cut = crop_face(grey(), landmarks("turned"))
    restored = marked(cv2.resize(cut.aligned, (side, side)), 6.0)
    canvas = grey()
    paste_faces(canvas, [Paste(cut, restored)])
    found = centroids(canvas[..., 1].astype(float) - 100, landmarks("turned"), 16)
    assert np.abs(found - landmarks("turned")).max() < 0.5


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("name", POSES)
def test_a_network_that_changes_nothing_changes_no_pixel(name, scale, rng):
    picture = noise(rng, (350, 450))
    cut = crop_face(picture, landmarks(name) / 2)
    canvas = enlarged(picture, scale)
    before = canvas.copy()
    paste_faces(canvas, [Paste(cut, cut.aligned.copy(), coverage(512))])
    assert np.array_equal(canvas, before)


@pytest.mark.parametrize(("scale", "replace"), [(1, False), (1, True), (2, False)])
@pytest.mark.parametrize("name", POSES)
def test_outside_the_template_no_pixel_changes(name, scale, replace, rng):
    picture = noise(rng)
    cut = crop_face(picture, landmarks(name))
    canvas = enlarged(picture, scale)
    before = canvas.copy()
    paste_faces(canvas, [Paste(cut, 255 - cut.aligned)], replace=replace)
    changed = (canvas != before).any(axis=2)
    assert not (changed & ~inside(name, scale, changed.shape, 1)).any()
    x, y = (int(side * scale) for side in POSES[name][:2])
    assert changed[y - 4 : y + 5, x - 4 : x + 5].mean() > 0.5


def test_outside_a_mask_no_pixel_changes(rng):
    picture = noise(rng)
    cut = crop_face(picture, landmarks("upright"))
    mask = np.zeros((512, 512), np.float32)
    mask[:, 256:] = 1  # the right half is face: x over 450 in the picture
    for shape in ((512, 512), (128, 128)):
        canvas = picture.copy()
        paste_faces(canvas, [Paste(cut, 255 - cut.aligned, cv2.resize(mask, shape))])
        changed = (canvas != picture).any(axis=2)
        assert not changed[:, :447].any() and changed[300:400, 455:560].mean() > 0.9


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("name", POSES)
def test_replacing_brings_a_smooth_picture_back(name, scale, rng):
    """Cut out and laid back, nothing added: what the way there and back costs."""
    picture = smooth(rng)
    cut = crop_face(picture, landmarks(name))
    canvas = enlarged(picture, scale)
    before = canvas.astype(int)
    paste_faces(canvas, [Paste(cut, cut.aligned)], replace=True)
    off = np.abs(canvas - before).max()
    print(f"{name} x{scale}: {off}/255")
    assert off <= 2


def test_coverage_fades_at_the_border():
    ramp = coverage(512)
    assert ramp.shape == (512, 512) and ramp.dtype == np.float32
    assert ramp[0].max() < 0.01 and ramp[:, -1].max() < 0.01
    assert (ramp[FEATHER:-FEATHER, FEATHER:-FEATHER] == 1).all()
    assert ramp[256, FEATHER // 2] == pytest.approx(0.5, abs=0.05)
    assert (coverage(512, np.full((64, 64), 0.25, np.float32)) <= 0.25).all()
    assert (
        np.abs(coverage(256) - cv2.resize(ramp, (256, 256), interpolation=cv2.INTER_AREA)).max()
        < 0.02
    )


def side_by_side_cuts(apart: int, size_hw=(500, 800)):
    """Two faces of 300 px, `apart` pixels from each other, in a plain grey picture."""
    left = moved(np.array([(300 / 512, 0, 100.0), (0, 300 / 512, 100.0)]), FFHQ_512)
    return [crop_face(grey(size_hw), left), crop_face(grey(size_hw), left + (apart, 0))]


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("apart", [0, 40, 150, 280])
def test_overlapping_faces_are_not_counted_twice(apart, replace):
    cuts = side_by_side_cuts(apart)
    canvas = grey((500, 800))
    paste_faces(canvas, [Paste(cut, cut.aligned + 40) for cut in cuts], replace=replace)
    assert canvas.max() == 140
    alone = grey((500, 800))
    paste_faces(alone, [Paste(cuts[0], cuts[0].aligned + 40)], replace=replace)
    assert (canvas.astype(int) - alone).min() >= -1  # never less than one face gives


def test_where_faces_overlap_the_first_has_its_way():
    cuts = side_by_side_cuts(100)
    canvas = grey((500, 800))
    paste_faces(
        canvas, [Paste(cuts[0], cuts[0].aligned + 40), Paste(cuts[1], cuts[1].aligned - 40)]
    )
    assert (canvas[130:370, 130:370] == 140).all()
    assert (canvas[150:350, 420:470] == 60).all()


def test_faces_apart_are_what_each_is_alone(rng):
    picture = noise(rng)
    cuts = [
        crop_face(picture, landmarks("small")),
        crop_face(picture, landmarks("over the lower corner")),
    ]
    both, one_by_one = picture.copy(), picture.copy()
    paste_faces(both, [Paste(cut, 255 - cut.aligned) for cut in cuts])
    for cut in cuts:
        paste_faces(one_by_one, [Paste(cut, 255 - cut.aligned)])
    assert np.array_equal(both, one_by_one)


@pytest.mark.parametrize("scale", [1.5, 1.3, 3.7])
def test_a_factor_that_is_no_whole_number(scale):
    """Both sides are rounded: the canvas is not enlarged by quite the same factor across and
    down."""
    picture = grey((401, 133))
    points = moved(np.array([(100 / 512, 0, 15.0), (0, 100 / 512, 200.0)]), FFHQ_512)
    cut = crop_face(picture, points)
    canvas = grey((round(401 * scale), round(133 * scale)))
    paste_faces(canvas, [Paste(cut, marked(cut.aligned, 8.0))])
    found = centroids(canvas[..., 1].astype(float) - 100, points * scale, 8 * scale)
    assert np.abs(found - points * scale).max() < 0.5


def test_another_canvas_is_refused(rng):
    cut = crop_face(noise(rng), landmarks("upright"))
    with pytest.raises(FrameError, match="the proportions of the image"):
        paste_faces(grey((700, 1800)), [Paste(cut, cut.aligned)])
    paste_faces(grey((3, 5)), [])


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (np.full((5, 2), np.nan), "nonfinite"),
        (FFHQ_512 + 5000, "outside"),
        (np.full((5, 2), 100.0) + FFHQ_512 / 1e4, "collapsed"),
        (FFHQ_512[[4, 2, 0, 1, 3]], "landmarks"),
    ],
)
def test_landmarks_of_no_face_are_refused(points, reason, rng):
    with pytest.raises(FrameError) as caught:
        crop_face(noise(rng), points)
    assert caught.value.reason == reason


def test_the_box_is_cut_off_at_the_edges(rng):
    cut = crop_face(noise(rng), landmarks("upright"))
    assert np.abs(np.subtract(cut.box(), (300, 200, 600, 500))).max() <= 1
    assert np.abs(np.subtract(cut.box((1400, 1800)), (600, 400, 1200, 1000))).max() <= 1
    left, top, right, bottom = crop_face(noise(rng), landmarks("over the left edge")).box()
    assert left == 0 and 0 < top < bottom <= 700 and right < 900
