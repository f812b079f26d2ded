"""Label, train and evaluate the face meter (``musetalk_enhance.faces.meter``).

The teacher is mediapipe's FaceMesh, which is needed for the first stage only and may live in
another environment::

    python scripts/train_meter.py label --data DATA  # needs mediapipe==0.10.14, OpenCV
    python scripts/train_meter.py draw --data DATA   # augmented views; may run beside train
    python scripts/train_meter.py train --data DATA \\
        --export musetalk_enhance/faces/assets/meter.safetensors
    python scripts/train_meter.py eval --data DATA --yunet YUNET.onnx

DATA has ``clips/*.mp4`` and ``portraits/*.jpg``. The people in ``lite_data.HELD_OUT`` are never
trained on. Each stage goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

try:  # the environment of `label` needs none of it
    import torch
    from safetensors.torch import save_file
    from torch.nn.functional import binary_cross_entropy_with_logits
    from torch.nn.functional import smooth_l1_loss as smooth_l1

    from musetalk_enhance.faces.meter import (
        SIDE,
        FaceMeter,
        MeterNetwork,
        Reading,
        axes,
        mouth_share,
        shrink,
    )
except ImportError:
    if "label" not in sys.argv:
        raise

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]
Losses = dict[str, "torch.Tensor"]

# The points of FaceMesh that are kept, as seen in the picture: left before right, and each point's
# mirror image.
_LEFT_EYE = (33, 246, 161, 160, 159, 158, 157, 173, 133), (33, 7, 163, 144, 145, 153, 154, 155, 133)
_RIGHT_EYE = (
    (263, 466, 388, 387, 386, 385, 384, 398, 362),
    (263, 249, 390, 373, 374, 380, 381, 382, 362),
)
_INNER = (
    (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308),
    (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308),
)
_OUTER = (
    (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291),
    (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291),
)
_REST = (1, 6, 152, 234, 454)  # tip and bridge of the nose, chin, cheeks
KEPT = tuple(dict.fromkeys(sum((*_LEFT_EYE, *_RIGHT_EYE, *_INNER, *_OUTER, _REST), ())))
MIRRORED = dict(zip(KEPT, KEPT, strict=True)) | {234: 454, 454: 234}
for _here, _there in zip((*_LEFT_EYE, *_RIGHT_EYE), (*_RIGHT_EYE, *_LEFT_EYE), strict=True):
    MIRRORED |= dict(zip(_here, _there, strict=True))
for _line in (*_INNER, *_OUTER):
    MIRRORED |= dict(zip(_line, _line[::-1], strict=True))


def at(*points: int) -> list[int]:
    """Places of FaceMesh's points among those that are kept."""
    return [KEPT.index(point) for point in points]


MIRROR = at(*(MIRRORED[point] for point in KEPT))


def list_sources(data: Path) -> list[Path]:
    """Clips and portraits under `data`, sorted."""
    return [*sorted((data / "clips").glob("*.mp4")), *sorted((data / "portraits").glob("*.jpg"))]


def read_frames(path: Path, every: int) -> Iterator[tuple[int, Image]]:
    """Every `every`-th frame of a clip with its number, or the one picture of an image file;
    RGB."""
    if path.suffix != ".mp4":
        yield 0, np.ascontiguousarray(cv2.imread(str(path))[..., ::-1])
        return
    video, index = cv2.VideoCapture(str(path)), 0
    while video.grab():
        if index % every == 0:
            yield index, np.ascontiguousarray(video.retrieve()[1][..., ::-1])
        index += 1
    video.release()


def label(args: argparse.Namespace) -> None:
    """Write ``labels/NAME.npz`` for every file: frame numbers and points ``(n, 2, points, 2)`` in
    pixels.

    The second axis holds two readings, of the frame and of its mirror image (mirrored back): their
    mean is what is learnt, their difference is the teacher's own noise.
    """
    import mediapipe

    mesh: Any = mediapipe.solutions.face_mesh.FaceMesh(
        static_image_mode=True, refine_landmarks=True, max_num_faces=1, min_detection_confidence=0.4
    )

    def read(image_rgb: Image) -> Floats | None:
        found = mesh.process(image_rgb).multi_face_landmarks
        if not found:
            return None
        size_wh = np.float32([image_rgb.shape[1], image_rgb.shape[0]])
        return np.float32([[p.x, p.y] for p in found[0].landmark])[list(KEPT)] * size_wh

    folder = args.work / "labels"
    folder.mkdir(parents=True, exist_ok=True)
    for path in list_sources(args.data):
        target = folder / f"{path.stem}.npz"
        if target.exists():
            continue
        numbers, points = [], []
        for number, frame in read_frames(path, args.every):
            one, other = read(frame), read(np.ascontiguousarray(frame[:, ::-1]))
            if one is not None and other is not None:
                other = other[MIRROR] * np.float32([-1, 1]) + np.float32([frame.shape[1], 0])
                numbers.append(number)
                points.append(np.stack([one, other]))
        print(f"{path.name}: {len(numbers)} frames with a face", flush=True)
        if numbers:
            np.savez(target, numbers=np.array(numbers), points=np.stack(points))


SOURCE, VIEW = 320, 160  # side of a cached picture, and of a crop while it is softened; pixels
REACH = 4.6  # side of a cached picture, in distances from the eyes to the mouth
CORNERS, MOUTH, NOSE, CHIN = at(33, 133, 362, 263), at(61, 291), at(1), at(152)
LIPS = at(82, 13, 312), at(87, 14, 317)
LIDS = (at(160, 159, 158), at(144, 145, 153)), (at(387, 386, 385), at(373, 374, 380))


def load_labels(args: argparse.Namespace, name: str) -> tuple[NDArray[np.int64], Floats]:
    """Frame numbers and points (n, 2 readings, points, 2) of one file."""
    with np.load(args.work / "labels" / f"{name}.npz") as saved:
        return saved["numbers"], saved["points"].astype(np.float32)


def eyes_to_mouth(points: Floats) -> tuple[Floats, Floats]:
    """Middle of the eyes' corners and of the mouth's, each (..., 2), of points (..., points, 2)."""
    return points[..., CORNERS, :].mean(-2), points[..., MOUTH, :].mean(-2)


def level(frame_rgb: Image, points: Floats) -> tuple[Image, Floats]:
    """Cut a `SOURCE` px square with level eyes around a face, and its points in it."""
    eyes, mouth = eyes_to_mouth(points)
    across = points[CORNERS[2:]].mean(0) - points[CORNERS[:2]].mean(0)
    scale = SOURCE / REACH / float(np.linalg.norm(mouth - eyes))
    matrix = cv2.getRotationMatrix2D(
        (0.0, 0.0), float(np.degrees(np.arctan2(across[1], across[0]))), scale
    )
    matrix[:, 2] = SOURCE / 2 - matrix[:, :2] @ (eyes + 0.42 * (mouth - eyes))
    small = frame_rgb
    mode = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    if scale < 0.7:  # no aliasing
        small = cv2.resize(frame_rgb, None, fx=scale, fy=scale, interpolation=mode)
        ratio = np.array([small.shape[1] / frame_rgb.shape[1], small.shape[0] / frame_rgb.shape[0]])
        pixels = matrix.copy()
        pixels[:, :2] /= ratio
    else:
        pixels = matrix
    picture = cv2.warpAffine(
        small, pixels, (SOURCE, SOURCE), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
    )
    return np.asarray(picture, np.uint8), np.float32(points @ matrix[:, :2].T + matrix[:, 2])


def away_from(frame_rgb: Image, points: Floats, rng: np.random.Generator) -> Image | None:
    """A `VIEW` px square of a frame that shows no face, or None."""
    height, width = frame_rgb.shape[:2]
    low, high = points.min(0), points.max(0)
    for _ in range(20):
        side = int(rng.integers(min(48, min(height, width) - 1), min(height, width)))
        x, y = (int(rng.integers(0, limit - side + 1)) for limit in (width, height))
        if x > high[0] or x + side < low[0] or y > high[1] or y + side < low[1]:
            cut = frame_rgb[y : y + side, x : x + side]
            return np.asarray(cv2.resize(cut, (VIEW, VIEW), interpolation=cv2.INTER_AREA), np.uint8)
    return None


def gather(args: argparse.Namespace, most: int = 200) -> None:
    """Write ``sources.npz``: level pictures of the people to train on, their points, and pictures
    of no face."""
    rng = np.random.default_rng(args.seed)
    pictures, points, names, empty = [], [], [], []
    for path in list_sources(args.data):
        if path.stem in held_out() or not (args.work / "labels" / f"{path.stem}.npz").exists():
            continue
        numbers, readings = load_labels(args, path.stem)
        unit = np.linalg.norm(np.subtract(*eyes_to_mouth(readings.mean(1))), axis=-1).mean()
        if np.linalg.norm(readings[:, 0] - readings[:, 1], axis=-1).mean() > 0.035 * unit:
            # drawings, animals
            print(f"{path.name}: left out, the teacher does not agree with itself")
            continue
        wanted = dict(zip(numbers.tolist(), readings.mean(1), strict=True))
        chosen = set(numbers[:: max(1, len(numbers) // most)].tolist())
        for number, frame in read_frames(path, 1):
            if number in chosen:
                picture, placed = level(frame, wanted[number])
                pictures.append(picture)
                points.append(placed)
                names.append(path.stem)
                for _ in range(8 if path.suffix == ".jpg" else 1):
                    nothing = away_from(frame, wanted[number], rng)
                    empty += [] if nothing is None else [nothing]
    np.save(args.work / "pictures.npy", np.stack(pictures))
    np.savez(
        args.work / "sources.npz",
        points=np.stack(points),
        names=np.array(names),
        empty=np.stack(empty),
    )
    print(
        f"{len(pictures)} pictures of {len(set(names))} files, {len(empty)} of no face", flush=True
    )


def held_out() -> frozenset[str]:
    """People that are measured on and never trained on: those of the embedded sharpener."""
    from lite_data import HELD_OUT

    return HELD_OUT


def smooth(start: float, end: float, x: Floats) -> Floats:
    """0 up to `start`, 1 from `end` on, a smooth step between."""
    t = np.clip((x - start) / (end - start), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def line(points: Floats, indices: list[int], x: Floats) -> Floats:
    """Height at `x` of a line through points that run from left to right or back."""
    places = points[indices]
    places = places[np.argsort(places[:, 0])]
    return np.interp(x, places[:, 0], places[:, 1]).astype(np.float32)


UPPER_LIP, LOWER_LIP = at(*_INNER[0]), at(*_INNER[1])
EYELIDS = tuple((at(*upper), at(*lower)) for upper, lower in (_LEFT_EYE, _RIGHT_EYE))


@dataclass(frozen=True)
class Grimace:
    """A change of a levelled face by columns: the lower lip and chin move, the upper lids come
    down.

    Attributes:
        points: the face as it is, pixels of its picture.
        mouth: gap between the lips that is wanted, in distances from the eyes to the mouth; None
            leaves it.
        lids: share of the gap that either upper lid comes down by.
    """

    points: Floats
    mouth: float | None
    lids: tuple[float, float]

    def lip_shift(self, x: Floats) -> tuple[Floats, float, float]:
        """How far down the lower lip moves at `x`, the greatest such shift, and the middle of the
        mouth."""
        (eyes, mouth), (upper, lower) = (
            eyes_to_mouth(self.points),
            (self.points[each] for each in LIPS),
        )
        unit, middle = float(np.linalg.norm(mouth - eyes)), float(mouth[0])
        if self.mouth is None:
            return np.zeros_like(x), 0.0, middle
        now = max(0.0, float((lower - upper)[:, 1].mean()))
        most = self.mouth * unit - now
        inner = self.points[[UPPER_LIP[0], UPPER_LIP[-1]], 0]
        half = max(4.0, 0.5 * float(np.abs(inner[1] - inner[0])))
        if most < 0:
            gap = np.maximum(line(self.points, LOWER_LIP, x) - line(self.points, UPPER_LIP, x), 0)
            return np.asarray(gap * (most / max(now, 1e-3)), np.float32), most, middle
        return (
            np.asarray(most * np.clip(1 - ((x - middle) / half) ** 2, 0, 1), np.float32),
            most,
            middle,
        )

    def moved(self) -> Floats:
        """The points after it."""
        points = self.points.copy()
        inside = LOWER_LIP[1:-1]
        points[inside, 1] += self.lip_shift(self.points[inside, 0])[0]
        for (upper, lower), share in zip(EYELIDS, self.lids, strict=True):
            at_x = self.points[upper[1:-1], 0]
            points[upper[1:-1], 1] += share * np.maximum(
                line(self.points, lower, at_x) - points[upper[1:-1], 1], 0
            )
        return points

    def sources(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Row from which every point of the changed picture comes, and how much of a new gap it
        shows, 0..1."""
        inside = np.zeros_like(y)
        rows = y
        if self.mouth is not None:
            unit = float(np.linalg.norm(np.subtract(*eyes_to_mouth(self.points))))
            upper, lower = line(self.points, UPPER_LIP, x), line(self.points, LOWER_LIP, x)
            shift, most, middle = self.lip_shift(x)
            chin = (
                (0.75 if most > 0 else 0.4) * most * np.exp(-(((x - middle) / (0.6 * unit)) ** 2))
            )
            rows = y.copy()
            for _ in range(4):  # the inverse of a contraction, by iteration
                below = np.maximum(rows - lower, 0)
                moved = shift + (chin - shift) * smooth(0, 0.35 * unit, below)
                rows = y - moved * (1 - smooth(0.5 * unit, 1.4 * unit, below))
            gap = np.maximum(lower - upper, 0)
            wide = gap + shift
            within = (y > upper) & (y < upper + wide)
            rows = np.where(y <= upper, y, np.maximum(rows, lower))
            rows = np.where(within, upper + (y - upper) * gap / np.maximum(wide, 1e-3), rows)
            edge = np.clip(np.minimum(y - upper, upper + wide - y) + 0.5, 0, 1)
            inside = edge * np.clip(shift / 2, 0, 1) * (1 - smooth(0.03 * unit, 0.08 * unit, gap))
        for (high, low), share in zip(EYELIDS, self.lids, strict=True):
            ends = self.points[[high[0], high[-1]], 0]
            if share > 0:
                lid, under = line(self.points, high, x), line(self.points, low, x)
                fold = lid - 0.3 * float(np.abs(ends[1] - ends[0]))
                down = lid + share * np.maximum(under - lid, 0)
                skin = (y > fold) & (y < down) & (x > ends.min()) & (x < ends.max())
                rows = np.where(
                    skin, fold + (y - fold) * (lid - fold) / np.maximum(down - fold, 1e-3), rows
                )
        return np.asarray(rows, np.float32), np.asarray(inside, np.float32)


def draw_grimace(points: Floats, rng: np.random.Generator) -> Grimace:
    """Four in ten faces as they are; the rest with the mouth opened or closed, or the eyes more or
    less shut."""
    mouth, lids = None, (0.0, 0.0)
    if rng.random() < 0.45:
        mouth = 0.0 if rng.random() < 0.2 else float(rng.uniform(0, 0.42))
    if rng.random() < 0.35:
        both = float(rng.uniform(0.1, 0.95))
        lids = (
            (both, both)
            if rng.random() < 0.75
            else ((both, 0.0) if rng.random() < 0.5 else (0.0, both))
        )
    return Grimace(points, mouth, lids)


def paint_gap(view: Floats, inside: Floats, y: Floats, rng: np.random.Generator) -> Floats:
    """Darkness, and often teeth or a tongue, where lips have parted."""
    if inside.max() <= 0:
        return view
    rows = y[inside > 0.5] if (inside > 0.5).any() else y[inside > 0]
    depth = (y - rows.min()) / max(1.0, float(np.ptp(rows)))
    colour = np.empty_like(view)
    colour[:] = rng.uniform(8, 70) * np.float32([1.0, rng.uniform(0.4, 0.8), rng.uniform(0.4, 0.8)])
    if rng.random() < 0.6:
        teeth = (1 - smooth(*np.sort(rng.uniform(0.15, 0.9, 2)) + [0, 0.1], depth))[..., None]
        colour += teeth * (np.float32([1.0, 0.95, 0.85]) * rng.uniform(110, 230) - colour)
    if rng.random() < 0.4:
        tongue = smooth(0.5, 0.9, depth)[..., None]
        colour += tongue * (np.float32([150, 80, 80]) * rng.uniform(0.5, 1.2) - colour)
    return np.asarray(view + inside[..., None] * (colour - view), np.float32)


def draw_window(points: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Origin (2,) and axes (2, 2; rows: to the right, down) of a host's crop, in pixels of the
    picture."""
    eyes, mouth = eyes_to_mouth(points)
    unit = float(np.linalg.norm(mouth - eyes))
    size = np.float32([rng.uniform(1.9, 2.7), rng.uniform(2.1, 3.6)])
    bottom = float(points[CHIN[0], 1] - eyes[1]) / unit + rng.uniform(-0.12, 0.3)
    if rng.random() < 0.35:
        size = np.float32(rng.uniform(2.4, 4.6) * np.array([rng.uniform(0.85, 1.1), 1.0]))
        bottom = 0.5 * size[1] + 0.42 + rng.uniform(-0.3, 0.3)
    middle = np.float32([float((eyes + mouth)[0]) / 2, eyes[1] + unit * (bottom - size[1] / 2)])
    middle[0] += unit * size[0] * rng.normal(0, 0.05)
    angle = np.radians(rng.uniform(-20, 20) if rng.random() < 0.6 else rng.normal(0, 3))
    turn = np.float32([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    sides = unit * size[:, None] * turn
    return np.float32(middle - sides.sum(0) / 2), sides


def recolour(view: Floats, rng: np.random.Generator) -> Floats:
    """Exposure, contrast, gamma, white balance, a light from one side, sometimes grey."""
    view = np.clip(view / 255, 0, 1) ** rng.uniform(0.65, 1.5)
    view = (view - 0.5) * rng.uniform(0.6, 1.3) + 0.5 + rng.uniform(-0.12, 0.12)
    if rng.random() < 0.4:
        slope = rng.normal(0, 0.35, 2)
        ramp = np.linspace(-0.5, 0.5, VIEW, dtype=np.float32)
        view = view * (1 + slope[0] * ramp[None, :, None] + slope[1] * ramp[:, None, None])
    if rng.random() < 0.15:
        view = np.repeat(view.mean(2, keepdims=True), 3, 2)
    return np.asarray(np.clip(view * rng.uniform(0.85, 1.15, 3) * 255, 0, 255), np.float32)


def crisp(view: Floats, rng: np.random.Generator) -> Floats:
    """A restored or well filmed face: sharpened, noisy or packed, or as it is."""
    if rng.random() < 0.4:
        soft = cv2.GaussianBlur(view, (0, 0), rng.uniform(0.6, 2.0))
        view = view + rng.uniform(0.2, 1.2) * (view - soft)
    return packed(view, rng)


def soft(view: Floats, rng: np.random.Generator) -> Floats:
    """A decoder's face: area down to the detail of 64..192 px of 256 (often 96) and bicubic back,
    or blurred."""
    detail = 96 if rng.random() < 0.4 else int(rng.integers(56, 192))
    side = round(detail * VIEW / 256)
    small = cv2.resize(view, (side, side), interpolation=cv2.INTER_AREA)
    view = np.asarray(cv2.resize(small, (VIEW, VIEW), interpolation=cv2.INTER_CUBIC), np.float32)
    if rng.random() < 0.25:
        view = np.asarray(cv2.GaussianBlur(view, (0, 0), rng.uniform(0.3, 1.2)), np.float32)
    tint = rng.normal(1, 0.02, 3) if rng.random() < 0.5 else 1.0
    return packed(view * tint, rng)


def packed(view: Floats, rng: np.random.Generator) -> Floats:
    """A little noise and JPEG on some."""
    if rng.random() < 0.3:
        view = view + rng.normal(0, rng.uniform(0.5, 6), view.shape).astype(np.float32)
    view = np.clip(view, 0, 255)
    if rng.random() < 0.25:
        code = cv2.imencode(
            ".jpg", np.uint8(view), [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(40, 95))]
        )[1]
        view = np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR), np.float32)
    return np.asarray(view, np.float32)


def truths(points: Floats, origin: Floats, sides: Floats) -> Floats:
    """What is to be said of a crop, 24 numbers in shares of it: 5 landmarks, 4 corners, lips, 2
    lids (vectors)."""
    inverse = np.linalg.inv(sides)
    places = (points - origin) @ inverse
    corners = places[CORNERS].reshape(2, 2, 2)
    landmarks = np.concatenate([corners.mean(1), places[NOSE], places[MOUTH]])
    lips = places[LIPS[1]].mean(0) - places[LIPS[0]].mean(0)
    lids = [places[lower].mean(0) - places[upper].mean(0) for upper, lower in LIDS]
    return np.concatenate([landmarks.ravel(), corners.ravel(), lips, *lids]).astype(np.float32)


class Sampler:
    """Draws training views from the gathered pictures: a file by its share, a picture of it, a
    grimace, a crop."""

    def __init__(self, work: Path) -> None:
        self.pictures = np.load(work / "pictures.npy", mmap_mode="r")
        with np.load(work / "sources.npz") as saved:
            self.points, names, self.empty = saved["points"], saved["names"], saved["empty"]
        self.files = [np.flatnonzero(names == name) for name in np.unique(names)]
        share = np.array([len(file) for file in self.files]) ** 0.35
        self.share = share / share.sum()

    def view(self, rng: np.random.Generator) -> tuple[Floats, Floats | None]:
        """A `VIEW` px crop, 0..255, and its truths; None where it shows no face to be measured."""
        kind = rng.random()
        if kind < 0.06:
            return self.empty[int(rng.integers(len(self.empty)))].astype(np.float32), None
        file = self.files[int(rng.choice(len(self.files), p=self.share))]
        index = int(file[int(rng.integers(len(file)))])
        points = self.points[index]
        origin, sides = draw_window(points, rng)
        if 0.06 < kind < 0.08:  # beside the face
            origin = origin + (
                rng.uniform(0.6, 0.9) * rng.choice([-1, 1]) * sides[int(rng.integers(2))]
            )
        grimace = draw_grimace(points, rng)
        steps = (np.arange(VIEW, dtype=np.float32) + 0.5) / VIEW
        x, y = (
            origin[i] + steps[None, :] * sides[0, i] + steps[:, None] * sides[1, i] for i in (0, 1)
        )
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
        rows, inside = grimace.sources(x, y)
        picture = np.asarray(self.pictures[index])
        view = cv2.remap(
            picture, x - 0.5, rows - 0.5, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
        )
        view = paint_gap(view.astype(np.float32), inside, y, rng)
        if kind < 0.08:
            return view, None
        if kind < 0.1:  # parts of a face, upside down or shuffled
            turned = np.rot90(view, int(rng.integers(1, 4)))
            tiles = (
                turned.reshape(4, VIEW // 4, 4, VIEW // 4, 3)
                .swapaxes(1, 2)
                .reshape(16, VIEW // 4, VIEW // 4, 3)
            )
            if rng.random() < 0.5:
                tiles = tiles[rng.permutation(16)]
            tiles = tiles.reshape(4, 4, VIEW // 4, VIEW // 4, 3).swapaxes(1, 2)
            return np.ascontiguousarray(tiles.reshape(VIEW, VIEW, 3)), None
        if kind < 0.12:  # nothing, or noise of any grain
            side = int(2 ** rng.uniform(0, 7))
            grain = rng.normal(128, rng.uniform(0, 70), (side, side, 3)).astype(np.float32)
            return np.asarray(np.clip(cv2.resize(grain, (VIEW, VIEW)), 0, 255), np.float32), None
        return view, truths(grimace.moved(), origin, sides)


def draw(args: argparse.Namespace, size: int = 1024) -> None:
    """Write ``shards/NNNN.npz``: crisp and soft views of `SIDE` px, truths, and whether there are
    any."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if not (args.work / "sources.npz").exists():
        gather(args)
    sampler, folder = Sampler(args.work), args.work / "shards"
    folder.mkdir(exist_ok=True)
    for shard in range(args.shards):
        target = folder / f"{shard:04}.npz"
        if target.exists():
            continue
        rng = np.random.default_rng((args.seed, shard))
        views = np.empty((size, 2, 3, SIDE, SIDE), np.uint8)
        said, faces = np.zeros((size, 24), np.float32), np.zeros(size, np.bool_)
        for index in range(size):
            view, truth = sampler.view(rng)
            view = recolour(view, rng)
            pair = np.stack([crisp(view, rng), soft(view, rng)])
            small = shrink(torch.from_numpy(pair).permute(0, 3, 1, 2), SIDE)
            views[index] = small.round().clamp(0, 255).byte().numpy()
            if truth is not None:
                said[index], faces[index] = truth, True
        partial = target.with_suffix(".partial.npz")
        np.savez(partial, views=views, truths=said, faces=faces)
        partial.replace(target)
        print(target.name, flush=True)


class Views:
    """Random batches of the drawn views; more of them as they are drawn."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed, self.shards = folder, seed, dict[str, dict[str, NDArray[Any]]]()

    def look(self) -> int:
        """Load what is new; the number of files."""
        for path in sorted(self.folder.glob("[0-9][0-9][0-9][0-9].npz")):
            if path.name not in self.shards:
                with np.load(path) as saved:
                    self.shards[path.name] = dict(saved)
        return len(self.shards)

    def batch(self, step: int, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Views (2, size, 3, SIDE, SIDE), 0..1, truths (size, 24) and whether there are any
        (size,)."""
        rng = np.random.default_rng((self.seed, step))
        names = list(self.shards)
        parts = []
        for _ in range(4):
            shard = self.shards[names[int(rng.integers(len(names)))]]
            chosen = rng.integers(0, len(shard["faces"]), size // 4)
            parts.append([shard[name][chosen] for name in ("views", "truths", "faces")])
        views, said, faces = (
            torch.from_numpy(np.concatenate(each)) for each in zip(*parts, strict=True)
        )
        pictures = views.float().transpose(0, 1) / 255
        turned = torch.from_numpy(rng.random(len(faces)) < 0.5)
        pictures = torch.where(turned[None, :, None, None, None], pictures.flip(-1), pictures)
        return pictures, torch.where(turned[:, None], mirrored(said), said), faces


def mirrored(said: torch.Tensor) -> torch.Tensor:
    """The truths (N, 24) of the mirrored crops."""
    places, vectors = said[:, :18].reshape(-1, 9, 2), said[:, 18:].reshape(-1, 3, 2)
    places = torch.stack([1 - places[..., 0], places[..., 1]], 2)[:, [1, 0, 2, 4, 3, 8, 7, 6, 5]]
    vectors = torch.stack([-vectors[..., 0], vectors[..., 1]], 2)[:, [0, 2, 1]]
    return torch.cat([places, vectors], 1).flatten(1)


def truth_reading(said: torch.Tensor) -> Reading:
    """The truths (N, 24) as the network would say them."""
    landmarks, corners = said[:, :10].reshape(-1, 5, 2), said[:, 10:18].reshape(-1, 2, 2, 2)
    lips, lids = said[:, 18:20], said[:, 20:].reshape(-1, 2, 2)
    return Reading(
        said[:, 0], landmarks, landmarks, mouth_share(lips, landmarks), lips, lids, corners
    )


def losses(
    network: MeterNetwork, views: torch.Tensor, said: torch.Tensor, faces: torch.Tensor
) -> Losses:
    """Weighted terms on views (2, N, 3, SIDE, SIDE) of the same N crops."""
    count, truth = len(said), truth_reading(said)
    unit = axes(truth.landmarks)[1].norm(dim=1).clamp_min(0.05)[:, None, None]
    square = views.new_ones(2)
    # second looks from the true landmarks, displaced and stretched, or from the first look
    shake = 0.05 * torch.randn(2 * count, 5, 2) + 0.05 * torch.randn(2 * count, 1, 2)
    frame = truth.landmarks.repeat(2, 1, 1) + shake * unit.repeat(2, 1, 1)
    rough, logit = network.first(views.flatten(0, 1))
    frame = torch.where(torch.rand(2 * count, 1, 1) < 0.6, rough.detach(), frame)
    reading = network.second(views.flatten(0, 1), frame, rough, logit)
    both = faces.repeat(2)

    def apart(name: str, beta: float) -> torch.Tensor:
        ours, true = (
            getattr(reading, name)[both],
            getattr(truth, name).repeat(2, *[1] * (getattr(truth, name).dim() - 1)),
        )
        scale = unit.repeat(2, 1, 1)[both].reshape(-1, *[1] * (ours.dim() - 1))
        return smooth_l1((ours - true[both]) / scale, ours.new_zeros(()).expand_as(ours), beta=beta)

    mouth, eyes = reading.mouth, reading.eye_shares(square)
    true_mouth, true_eyes = truth.mouth.repeat(2), truth.eye_shares(square).repeat(2, 1)
    terms = {
        "rough": 2 * apart("rough", 0.05),
        "landmarks": 3 * apart("landmarks", 0.03),
        "corners": 2 * apart("corners", 0.03),
        "mouth": 6 * smooth_l1(mouth[both], true_mouth[both], beta=0.02),
        "eyes": 4 * smooth_l1(eyes[both], true_eyes[both], beta=0.02),
        "confidence": 0.15 * binary_cross_entropy_with_logits(reading.logit, both.float()),
    }
    ours = [(value[:count][faces] - value[count:][faces]).abs().mean() for value in (mouth, eyes)]
    moved = (reading.landmarks[:count] - reading.landmarks[count:]) / unit
    terms["same mouth"], terms["same eyes"] = 2 * ours[0], 0.5 * ours[1]
    terms["same landmarks"] = moved[faces].abs().mean()
    return terms


def export(network: MeterNetwork, path: Path, steps: int) -> None:
    """Write the weights, halved to fp16, replacing the file in one move."""
    state = {
        name: tensor.detach().half().contiguous() for name, tensor in network.state_dict().items()
    }
    partial = path.with_suffix(".partial")
    save_file(
        state,
        partial,
        {"architecture": "MeterNetwork", "steps": str(steps), "licence": "apache-2.0"},
    )
    partial.replace(path)


def train(args: argparse.Namespace) -> None:
    """Run to ``--steps`` on what `draw` has written, with checkpoints; goes on where it stopped."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    views = Views(args.work / "shards", args.seed)
    network = MeterNetwork()
    slow = copy.deepcopy(network)
    optimiser = torch.optim.AdamW(network.parameters(), lr=args.lr, weight_decay=0.01)
    checkpoint, step = args.work / f"{args.name}.pt", 0
    parts = {"network": network, "slow": slow, "optimiser": optimiser}
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        step = int(saved.pop("step"))
        for name, state in saved.items():
            parts[name].load_state_dict(state)
    began, sums, first = time.monotonic(), dict[str, float](), step
    while step < args.steps:
        if step % 100 == 0 or not views.shards:
            views.look()
        rate = float(
            args.lr
            * min(1.0, (step + 1) / 200)
            * (0.02 + 0.49 * (1 + np.cos(np.pi * step / args.steps)))
        )
        for group in optimiser.param_groups:
            group["lr"] = rate
        terms = losses(network, *views.batch(step, args.batch))
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(torch.stack(list(terms.values())).sum())
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        step += 1
        with torch.no_grad():
            for held, fresh in zip(slow.parameters(), network.parameters(), strict=True):
                held.lerp_(fresh, 1 - min(0.998, step / (step + 20)))
        for name, term in terms.items():
            sums[name] = sums.get(name, 0.0) + float(term.detach()) / 100
        if step % 100 == 0:
            text = " ".join(f"{name}={value:.4f}" for name, value in sums.items())
            print(f"{step} {(time.monotonic() - began) / (step - first):.3f}s {text}", flush=True)
            sums = {}
        if step % 250 == 0 or step == args.steps:
            partial = checkpoint.with_suffix(".partial")
            torch.save(
                {"step": step} | {name: part.state_dict() for name, part in parts.items()}, partial
            )
            partial.replace(checkpoint)
    if args.export:
        export(slow, args.export, step)


CROPS = ("tight", "landmarks", "ffhq", "head")
HOST, CROP = 96, 256  # detail that a host's decoder leaves, and the side of its crops; pixels


def crop_of(frame_rgb: Image, box_xyxy: Floats, points: Floats) -> tuple[Image, Floats]:
    """A host's `CROP` px crop, squashed to a square, and the points in it."""
    limits = np.array(frame_rgb.shape[1::-1] * 2)
    left, top, right, bottom = (int(v) for v in np.clip(np.rint(box_xyxy), 0, limits))
    mode = cv2.INTER_AREA if right - left > CROP else cv2.INTER_CUBIC
    picture = cv2.resize(frame_rgb[top:bottom, left:right], (CROP, CROP), interpolation=mode)
    places = (points - [left, top]) * [CROP / (right - left), CROP / (bottom - top)]
    return np.asarray(picture, np.uint8), places.astype(np.float32)


def boxes(found_xywh: tuple[float, ...], points: Floats) -> dict[str, Floats]:
    """The hosts' boxes: tight from a detector, tight from landmarks (as MuseTalk), framed as FFHQ,
    wider still."""
    x, y, w, h = found_xywh
    bridge, chin = (points[at(one)[0]] for one in (6, 152))
    cheeks = np.sort(points[at(234, 454), 0])
    side = 0.9 * max(w, h)
    middle = x + w / 2, y + 0.42 * h
    eyes, mouth = eyes_to_mouth(points)
    unit = float(np.linalg.norm(mouth - eyes))
    across, down, half = (
        float((eyes + mouth)[0]) / 2,
        float(eyes[1]) + 0.125 * unit,
        3.95 * unit / 2,
    )
    found = {
        "tight": (x, y + 0.08 * h, x + w, y + h),
        "landmarks": (cheeks[0], 2 * bridge[1] - chin[1], cheeks[1], chin[1]),
        "ffhq": (across - half, down - half, across + half, down + half),
        "head": (middle[0] - side, middle[1] - side, middle[0] + side, middle[1] + side),
    }
    return {name: np.float32(box) for name, box in found.items()}


def host_soft(crops_rgb: Image) -> Image:
    """(N, `CROP`, `CROP`, 3): area down to `HOST` px, bicubic back."""
    return np.stack(
        [
            np.asarray(
                cv2.resize(
                    cv2.resize(crop, (HOST, HOST), interpolation=cv2.INTER_AREA),
                    (CROP, CROP),
                    interpolation=cv2.INTER_CUBIC,
                ),
                np.uint8,
            )
            for crop in crops_rgb
        ]
    )


def measured(meter: FaceMeter, crops_rgb: Image) -> dict[str, Floats]:
    """The meter on uint8 (N, h, w, 3), as arrays by field; landmarks in pixels of `CROP`."""
    parts = []
    for first in range(0, len(crops_rgb), 32):
        faces = torch.from_numpy(crops_rgb[first : first + 32]).permute(0, 3, 1, 2).float() / 255
        parts.append(meter.measure(faces))
    found = {
        name: torch.cat([getattr(part, name) for part in parts]).numpy() for name in vars(parts[0])
    }
    found["landmarks"] = found["landmarks"] * np.float32(CROP / crops_rgb.shape[1])
    return found


def dark_gap(crop_rgb: Image, places: Floats) -> float:
    """What needs no network: rows much darker than the skin, in a strip about the middle of the
    (true) mouth."""
    grey = cv2.cvtColor(crop_rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)
    eyes, mouth = eyes_to_mouth(places)
    unit, (x, y) = float(mouth[1] - eyes[1]), mouth
    strip = grey[
        max(0, int(y - 0.3 * unit)) : int(y + 0.5 * unit),
        max(0, int(x - 0.08 * unit)) : int(x + 0.08 * unit),
    ]
    skin = np.median(grey[max(0, int(y - 0.6 * unit)) : int(y + 0.7 * unit)])
    return float((strip.mean(1) < 0.5 * skin).sum() / unit)


def correlation(one: Floats, other: Floats) -> float:
    """Pearson's; 0 where one side does not vary."""
    return float(np.corrcoef(one, other)[0, 1]) if min(one.std(), other.std()) > 1e-6 else 0.0


def spread(differences: Floats) -> dict[str, float]:
    """Mean, 95th and 99th percentile and largest of absolute differences."""
    size = np.abs(differences).ravel()
    return {
        "mean": size.mean(),
        "p95": np.percentile(size, 95),
        "p99": np.percentile(size, 99),
        "max": size.max(),
    }


def shifted_eyes(crops_rgb: Image, places: Floats, pixels: float = 5.0) -> Image:
    """Both eyes moved to the right by `pixels`, with the skin around them."""
    y, x = np.mgrid[:CROP, :CROP].astype(np.float32)
    views = []
    for crop, points in zip(crops_rgb, places, strict=True):
        near = np.zeros_like(x)
        for one, other in (CORNERS[:2], CORNERS[2:]):
            middle, width = (
                points[[one, other]].mean(0),
                np.linalg.norm(points[one] - points[other]),
            )
            far = np.hypot(x - middle[0], y - middle[1]) / width
            near = np.maximum(near, 1 - smooth(0.6, 1.2, far))
        views.append(
            cv2.remap(crop, x - pixels * near, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        )
    return np.stack(views)


def grimaced(crops_rgb: Image, places: Floats, mouth: float | None, lids: float) -> Image:
    """Crops with the mouth brought to a gap and the lids down by a share."""
    y, x = np.mgrid[:CROP, :CROP].astype(np.float32) + np.float32(0.5)
    rows = [Grimace(points, mouth, (lids, lids)).sources(x, y)[0] for points in places]
    return np.stack(
        [
            cv2.remap(c, x - 0.5, r - 0.5, cv2.INTER_CUBIC)
            for c, r in zip(crops_rgb, rows, strict=True)
        ]
    )


def teacher_says(places: Floats) -> dict[str, Floats]:
    """The measures of points (n, points, 2), as the meter defines them."""
    unit = np.eye(2, dtype=np.float32)
    said = torch.from_numpy(
        np.stack([truths(each, np.zeros(2, np.float32), unit) for each in places])
    )
    truth = truth_reading(said)
    eyes = truth.eye_shares(said.new_ones(2) * 1.0)
    return {
        "landmarks": truth.landmarks.numpy(),
        "mouth": truth.mouth.numpy(),
        "eyes": eyes.numpy(),
    }


def lite_faces(crops_rgb: Image) -> Image:
    """uint8 (N, 512, 512, 3): the embedded sharpener on soft crops."""
    from musetalk_enhance import GFPGANEnhancer

    with GFPGANEnhancer(model="lite", color="rgb", output_size="native", region="full") as enhancer:
        return np.stack(enhancer([crop for crop in crops_rgb]))


def evaluate_clip(meter: FaceMeter, args: argparse.Namespace, path: Path) -> dict[str, Any]:
    """Everything that is asked of one held-out clip, or picture."""
    from lite_data import FaceFinder

    finder, rng = FaceFinder(args.yunet), np.random.default_rng(0)
    numbers, readings = load_labels(args, path.stem)
    wanted = dict(zip(numbers.tolist(), readings, strict=True))
    crops: dict[str, list[Image]] = {}
    places: dict[str, list[Floats]] = {}
    own, empty = [], []
    for number, frame in read_frames(path, 1):
        found = finder.find(frame) if number in wanted else None
        if found is None:
            continue
        points = wanted[number].mean(0)
        for name, box in (
            (name, box) for name, box in boxes(found, points).items() if name in args.crops
        ):
            crop, placed = crop_of(frame, box, points)
            crops.setdefault(name, []).append(crop)
            places.setdefault(name, []).append(placed)
        own.append(wanted[number])
        nothing = away_from(frame, points, rng) if number % 10 == 0 else None
        empty += [] if nothing is None else [nothing]
    result: dict[str, Any] = {"frames": len(own)}
    if len(own) > 1:
        one, other = (teacher_says(np.stack(own)[:, i]) for i in (0, 1))
        result["teacher with itself"] = {
            "mouth r": correlation(one["mouth"], other["mouth"]),
            "eyes r": correlation(one["eyes"].mean(1), other["eyes"].mean(1)),
            "mouth": spread(one["mouth"] - other["mouth"]),
        }
    for name in crops:
        sharp, points = np.stack(crops[name]), np.stack(places[name])
        truth, blurred = teacher_says(points), host_soft(sharp)
        views = {"sharp": measured(meter, sharp), "soft": measured(meter, blurred)}
        between = np.linalg.norm(truth["landmarks"][:, 0] - truth["landmarks"][:, 1], axis=1)
        for view, says in views.items():
            error = np.linalg.norm(says["landmarks"] - truth["landmarks"], axis=2).mean(1) / between
            result[f"{name}, {view}"] = {
                "mouth r": correlation(says["mouth"], truth["mouth"]),
                "eyes r": correlation(says["eyes"].mean(1), truth["eyes"].mean(1)),
                "mouth error": spread(says["mouth"] - truth["mouth"]),
                "eyes error": spread(says["eyes"] - truth["eyes"]),
                "landmarks": float(error.mean()),
                "confidence": [
                    float(np.percentile(says["confidence"], share)) for share in (0, 1, 50)
                ],
            }
        result[f"{name}, soft against sharp"] = compared(views["soft"], views["sharp"])
        result[f"{name}, truth"] = {
            "mouth sd": float(truth["mouth"].std()),
            "mouth": float(truth["mouth"].mean()),
        }
        dark = [
            np.float32([dark_gap(c, p) for c, p in zip(v, points, strict=True)])
            for v in (sharp, blurred)
        ]
        result[f"{name}, dark gap"] = {
            "mouth r": correlation(dark[0], truth["mouth"]),
            "mouth r, soft": correlation(dark[1], truth["mouth"]),
            "soft against sharp": spread(dark[0] - dark[1]),
        }
        some = slice(0, None, max(1, len(sharp) // 30))
        softs = {key: value[some] for key, value in views["soft"].items()}
        clear = {key: value[some] for key, value in views["sharp"].items()}
        restored = lite_faces(blurred[some])
        result[f"{name}, lite against soft"] = compared(measured(meter, restored), softs)
        some_points = points[some]
        parted = truth["mouth"][some] > 0.1
        if parted.any():
            shut = measured(meter, grimaced(sharp[some][parted], some_points[parted], 0.0, 0.0))
            result[f"{name}, mouth shut"] = {
                "change / truth": float(
                    np.median(
                        (softs["mouth"][parted] - shut["mouth"]) / truth["mouth"][some][parted]
                    )
                ),
                "change": [
                    float(v) for v in np.percentile(softs["mouth"][parted] - shut["mouth"], (5, 50))
                ],
            }
        opened = measured(meter, grimaced(sharp[some], some_points, 0.3, 0.0))
        result[f"{name}, lips parted to 0.3 (unpainted)"] = [
            float(v) for v in np.percentile(opened["mouth"], (5, 50))
        ]
        wide = truth["eyes"][some].mean(1) > 0.2
        if wide.any():
            blink = measured(meter, grimaced(sharp[some][wide], some_points[wide], None, 0.9))
            change = (softs["eyes"][wide] - blink["eyes"]).mean(1)
            result[f"{name}, eyes shut"] = {
                "change": [float(v) for v in np.percentile(change, (5, 50))],
                "truth": float(truth["eyes"][some][wide].mean()),
            }
        moved = measured(meter, shifted_eyes(sharp[some], some_points))
        went = (moved["landmarks"] - softs["landmarks"])[:, :2, 0].mean(1)
        held = (clear["landmarks"] - softs["landmarks"])[:, :2, 0].mean(1)
        result[f"{name}, eyes 5 px to the right"] = {
            "change px": [float(v) for v in np.percentile(went, (5, 50))],
            "unmoved, px": spread(held),
        }
    if empty:
        says = measured(meter, np.stack(empty))["confidence"]
        result["no face"] = {
            "confidence": [float(np.percentile(says, share)) for share in (50, 90, 100)]
        }
    return result


def compared(one: dict[str, Floats], other: dict[str, Floats]) -> dict[str, Any]:
    """Differences of two looks at the same crops; landmarks in pixels of `CROP`."""
    apart = np.linalg.norm(one["landmarks"] - other["landmarks"], axis=2)
    return {
        "mouth": spread(one["mouth"] - other["mouth"]),
        "eyes": spread(one["eyes"] - other["eyes"]),
        "eye landmarks px": spread(apart[:, :2]),
        "landmarks px": spread(apart),
    }


def evaluate_synthetic(meter: FaceMeter) -> dict[str, Any]:
    """Against the known poses of ``examples/talking_head.py``."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
    from talking_head import pose_at, talking_head

    crops = [
        crop_of(f[..., ::-1], np.float32(b), np.zeros((1, 2), np.float32))[0]
        for f, b in talking_head(200)
    ]
    poses = [pose_at(index / 25, 0) for index in range(200)]
    opening, blink = (
        np.float32([getattr(pose, name) for pose in poses]) for name in ("opening", "blink")
    )
    result: dict[str, Any] = {"frames": 200}
    views = {
        "sharp": measured(meter, np.stack(crops)),
        "soft": measured(meter, host_soft(np.stack(crops))),
    }
    for view, says in views.items():
        result[view] = {
            "mouth r": correlation(says["mouth"], opening),
            "eyes r": correlation(says["eyes"].mean(1), -blink),
        }
    return result | {"soft against sharp": compared(views["soft"], views["sharp"])}


def evaluate(args: argparse.Namespace) -> None:
    """Write ``eval.json`` and print the main figures of the held-out people."""
    torch.set_num_threads(args.threads)
    meter, result = FaceMeter(), dict[str, Any]()
    result["synthetic"] = evaluate_synthetic(meter)
    print("synthetic", json.dumps(rounded(result["synthetic"])), flush=True)
    for path in list_sources(args.data):
        if path.stem in held_out() and path.suffix == ".mp4":
            found = result[path.stem] = evaluate_clip(meter, args, path)
            for key, value in found.items():
                print(path.stem, key, json.dumps(rounded(value)), flush=True)
    (args.work / "eval.json").write_text(json.dumps(rounded(result), indent=1))
    print(table(result))


def table(result: dict[str, Any]) -> str:
    """The main figures as Markdown: agreement by clip and crop, then what two looks at one face
    differ by."""
    agreement = [
        "| clip, crop | frames | teacher with itself | mouth | soft | dark gap | eyes | soft | "
        "landmarks |"
    ]
    agreement.append("|---" * 9 + "|")
    stability = [
        "| clip, crop | mouth, soft / sharp | lite / soft | eyes, soft / sharp | lite / soft | "
        "eyes' px |"
    ]
    stability.append("|---" * 6 + "|")
    for clip, found in result.items():
        for crop in CROPS:
            if f"{crop}, sharp" not in found:
                continue
            sharp, soft_view = found[f"{crop}, sharp"], found[f"{crop}, soft"]
            cells = [
                found["teacher with itself"]["mouth r"],
                sharp["mouth r"],
                soft_view["mouth r"],
            ]
            cells += [
                found[f"{crop}, dark gap"]["mouth r"],
                sharp["eyes r"],
                soft_view["eyes r"],
                sharp["landmarks"],
            ]
            numbers = " | ".join(f"{cell:.3f}" for cell in cells)
            agreement.append(f"| {clip}, {crop} | {found['frames']} | {numbers} |")
            looks = [
                found[f"{crop}, {pair}"] for pair in ("soft against sharp", "lite against soft")
            ]
            texts = [
                f"{look[key]['mean']:.4f} ({look[key]['max']:.3f})"
                for key in ("mouth", "eyes")
                for look in looks
            ]
            still = looks[0]["eye landmarks px"]
            stability.append(
                f"| {clip}, {crop} | {' | '.join(texts)} | {still['mean']:.2f} "
                f"({still['max']:.2f}) |"
            )
    return "\n".join([*agreement, "", *stability])


def rounded(value: Any) -> Any:
    """Numbers to four places, through dictionaries and lists."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else round(float(value), 4)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("label", "draw", "train", "eval"))
    parser.add_argument("--data", type=Path, required=True, help="has clips/ and portraits/")
    parser.add_argument(
        "--work", type=Path, default=Path(".train/meter"), help="labels, cache, checkpoints"
    )
    parser.add_argument("--yunet", type=Path, help="YuNet face detector, ONNX; for eval")
    parser.add_argument(
        "--crops", nargs="+", choices=CROPS, default=CROPS, help="framings for eval"
    )
    parser.add_argument("--every", type=int, default=1, help="label every n-th frame")
    parser.add_argument("--shards", type=int, default=72, help="files of 1024 views to draw")
    parser.add_argument("--name", default="meter", help="name of the checkpoint")
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument(
        "--batch", type=int, default=40, help="crops, in fours, each twice: crisp and soft"
    )
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--export", type=Path, help="write the averaged weights here")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse_args()
    {"label": label, "draw": draw, "train": train, "eval": evaluate}[arguments.stage](arguments)
