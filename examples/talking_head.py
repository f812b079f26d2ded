"""A talking head without a download: scikit-image's portrait of an astronaut, set in motion.

The portrait (``skimage.data.astronaut``, Eileen Collins, NASA, public domain) is enlarged with its
edges kept crisp, then warped: the head sways, nods and turns, the jaw opens at the rhythm of
syllables with pauses, the eyes blink. All of it is a function of time and a seed, so the same call
gives the same frames, and the face box of every frame is known without a detector.

Coordinates named *portrait* are pixels of the 512 px portrait; everything else is pixels of the
clip.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]
Box = tuple[int, int, int, int]

CROP_XYXY = (90, 0, 360, 270)
"""The part of the portrait that fills a frame at rest: head and shoulders."""
MARGIN = 16
"""Portrait pixels kept around that part, for the motion to move into (mirrored where the portrait
ends)."""

HEAD_CENTRE, HEAD_RADII = (226.0, 105.0), (72.0, 92.0)
NECK = (226.0, 192.0)
BRIDGE, CHIN, CHEEKS_X = (226.0, 118.0), (224.0, 180.0), (178.0, 274.0)
CHIN_MARGIN = 4.0

MOUTH_X, MOUTH_HALF = 223.5, 21.0
_LIP_X = (202.5, 205.0, 210.0, 215.0, 220.0, 225.0, 230.0, 235.0, 240.0, 244.5)
_LIP_Y = (139.8, 142.0, 146.3, 148.8, 150.0, 150.2, 149.4, 147.2, 144.2, 141.0)
_LIDS = (  # x, upper lid, lower lid of either eye
    ((193.0, 197.0, 201.0, 205.0, 209.0, 214.0), (101.6, 99.6, 98.6, 98.8, 100.4, 103.8),
     (102.0, 103.6, 104.6, 105.0, 104.8, 104.0)),
    ((235.5, 240.0, 244.0, 248.0, 252.0, 259.5), (104.8, 102.0, 100.6, 100.4, 101.2, 104.4),
     (105.2, 106.4, 107.2, 107.4, 107.0, 104.8)),
)  # fmt: skip
_CAVITY, _TONGUE, _TEETH = (22, 18, 42), (66, 60, 124), (146, 164, 176)  # BGR


@dataclass(frozen=True)
class Pose:
    """Where the head is at one moment. Lengths in portrait pixels, angles in degrees.

    Attributes:
        sway_xy: shift of the head.
        roll: turn in the picture plane, about the neck.
        zoom: size of the head, 1.0 at rest.
        turn_xy: how far the nose moves against the head's outline (turning left and right,
            nodding).
        opening: how far the lower lip is from its place in the portrait, which is a smile; negative
            closes it.
        narrow: share by which the mouth is drawn together, 0 at rest.
        blink: 0 open eyes, 1 closed.
    """

    sway_xy: tuple[float, float]
    roll: float
    zoom: float
    turn_xy: tuple[float, float]
    opening: float
    narrow: float
    blink: float


def _smooth(edge0: float, edge1: float, x: Floats) -> Floats:
    t = np.clip((x - edge0) / (edge1 - edge0), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def pose_at(seconds: float, seed: int) -> Pose:
    """The pose at a time of an endless take; `seed` chooses the take."""
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi, 12)
    loud = rng.uniform(0.35, 1.0, 64)

    def wave(hertz: float, index: int) -> float:
        return float(np.sin(2 * np.pi * hertz * seconds + phase[index]))

    beat = 4.6 * seconds + 0.25 * wave(0.7, 0)  # syllables so far
    syllable = int(np.floor(beat))
    # 0 in a pause
    phrase = float(np.clip(3.2 * np.sin(2 * np.pi * seconds / 2.9 + 0.5) + 2.2, 0, 1))
    rise = 0.5 - 0.5 * np.cos(2 * np.pi * beat)
    since_blink = (seconds - 0.9) % 2.7
    return Pose(
        sway_xy=(2.6 * wave(0.31, 1) + 0.9 * wave(0.83, 2), 1.2 * wave(0.43, 3)),
        roll=1.6 * wave(0.27, 4) + 0.5 * wave(0.9, 5),
        zoom=1.0 + 0.012 * wave(0.21, 6),
        turn_xy=(3.2 * wave(0.37, 7), 1.8 * wave(0.61, 8) + 0.7 * phrase * float(rise)),
        opening=-6.0 + phrase * (2.5 + 9.5 * float(rise * loud[syllable % 64])),
        narrow=0.06 + 0.06 * phrase * wave(1.9, 9),
        blink=float(np.exp(-(((since_blink - 0.12) / 0.065) ** 2))),
    )


def _shock(image_bgr: Floats, rounds: int) -> Floats:
    """Make edges steeper without ringing: grow or shrink each side of an edge towards it.

    The shock filter of Osher and Rudin (1990), with the sign of the second derivative along the
    gradient replaced by a tanh, so that skin stays smooth.
    """
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    for _ in range(rounds):
        grey = cv2.GaussianBlur(cv2.cvtColor(image_bgr, cv2.COLOR_BGR2GRAY), (0, 0), 1.0)
        dx, dy = (cv2.Sobel(grey, cv2.CV_32F, *order) / 8 for order in ((1, 0), (0, 1)))
        dxx, dyy, dxy = (
            cv2.Sobel(grey, cv2.CV_32F, *order) / 4 for order in ((2, 0), (0, 2), (1, 1))
        )
        along = (dx * dx * dxx + 2 * dx * dy * dxy + dy * dy * dyy) / (dx * dx + dy * dy + 1e-3)
        speed = -0.25 * np.tanh(along / 6.0)[..., None]
        wide, thin = cv2.dilate(image_bgr, cross), cv2.erode(image_bgr, cross)
        image_bgr = image_bgr + np.where(
            speed > 0, speed * (wide - image_bgr), speed * (image_bgr - thin)
        )
    return image_bgr


def _back_project(image_bgr: Floats, small_bgr: Floats, rounds: int) -> Floats:
    """Add what is missing until the image, shrunk, is `small_bgr` again (Irani and Peleg, 1991)."""
    size, small_size = image_bgr.shape[1::-1], small_bgr.shape[1::-1]
    for _ in range(rounds):
        missing = small_bgr - cv2.resize(image_bgr, small_size, interpolation=cv2.INTER_AREA)
        image_bgr = image_bgr + cv2.resize(missing, size, interpolation=cv2.INTER_CUBIC)
    return image_bgr


def make_still(scale: float, seed: int) -> Image:
    """The portrait's part `CROP_XYXY` and `MARGIN` around it, `scale` times as large, crisp; BGR
    uint8."""
    from skimage import data

    portrait_rgb: Any = data.astronaut()  # type: ignore[no-untyped-call, unused-ignore]
    portrait_bgr: Floats = portrait_rgb[..., ::-1].astype(np.float32)
    portrait = cv2.copyMakeBorder(portrait_bgr, MARGIN, 0, 0, 0, cv2.BORDER_REFLECT_101)
    left, top, right, bottom = CROP_XYXY
    small = np.array(
        portrait[top : bottom + 2 * MARGIN, left - MARGIN : right + MARGIN], np.float32
    )
    size = (round(small.shape[1] * scale), round(small.shape[0] * scale))
    large = np.asarray(cv2.resize(small, size, interpolation=cv2.INTER_LANCZOS4), np.float32)
    large = _back_project(_shock(_back_project(large, small, 4), 4), small, 1)
    grain = cv2.GaussianBlur(
        np.random.default_rng(seed).normal(0, 2.0, size[::-1]).astype(np.float32), (0, 0), 0.6
    )
    return np.asarray(np.clip(np.rint(large + grain[..., None]), 0, 255), np.uint8)


def _head_source(x: Floats, y: Floats, pose: Pose) -> tuple[Floats, Floats]:
    """Where in the portrait at rest the point (x, y) of the moved portrait comes from: head motion
    only."""
    u, v = (x - HEAD_CENTRE[0]) / HEAD_RADII[0], (y - HEAD_CENTRE[1]) / HEAD_RADII[1]
    radius = np.asarray(np.sqrt(u * u + v * v), np.float32)
    follows = (1 - 0.88 * _smooth(0.95, 1.9, radius)) * (1 - 0.88 * _smooth(178, 224, y))
    angle = np.deg2rad(pose.roll)
    cos, sin = float(np.cos(angle)) / pose.zoom, float(np.sin(angle)) / pose.zoom
    dx, dy = x - NECK[0] - pose.sway_xy[0], y - NECK[1] - pose.sway_xy[1]
    bulge = np.exp(-1.4 * radius * radius)
    source_x = x + follows * (NECK[0] + cos * dx + sin * dy - x) - pose.turn_xy[0] * bulge
    source_y = y + follows * (NECK[1] - sin * dx + cos * dy - y) - pose.turn_xy[1] * bulge
    return np.asarray(source_x, np.float32), np.asarray(source_y, np.float32)


def _lip_line(x: Floats) -> Floats:
    """The inner edge of the lower lip in the portrait, level beyond the corners of the mouth."""
    fit = np.polynomial.Polynomial.fit(_LIP_X, _LIP_Y, 4)
    return np.asarray(fit(np.clip(x, _LIP_X[0], _LIP_X[-1])), np.float32)


def _jaw_shift(x: Floats, below: Floats, opening: float) -> Floats:
    """How far down skin moves that lies `below` the lip line at rest: the lip, then the chin, not
    the neck."""
    at_lip = np.clip(1 - ((x - MOUTH_X) / MOUTH_HALF) ** 2, 0, 1)
    at_chin = np.exp(-(((x - MOUTH_X) / 30.0) ** 2))
    width = at_lip + (at_chin - at_lip) * _smooth(0, 16, below)
    # a closing lip stretches over the teeth, the chin stays behind
    chin = 0.8 if opening > 0 else 0.35
    fade = (1 - (1 - chin) * _smooth(2, 18, below)) * (1 - _smooth(26, 58, below))
    return np.asarray(opening * width * fade, np.float32)


def _paint_mouth(frame: Floats, x: Floats, y: Floats, pose: Pose, scale: float) -> None:
    """Darkness, a tongue and a hint of lower teeth where the lips have opened; in place."""
    lip = _lip_line(x)
    gap = _jaw_shift(x, np.zeros_like(x), pose.opening)
    inside = np.clip((y - lip) * scale + 0.5, 0, 1) * np.clip(gap * scale, 0, 1)
    depth = np.asarray(np.clip((y - lip) / np.maximum(gap, 1e-3), 0, 1), np.float32)
    centred = np.clip(1 - ((x - MOUTH_X) / (0.62 * MOUTH_HALF)) ** 2, 0, 1)
    wide = float(np.clip((pose.opening - 2) / 4, 0, 1))
    colour = np.empty_like(frame)
    colour[:] = _CAVITY
    tongue = (0.75 * wide * centred * _smooth(0.25, 0.8, depth))[..., None]
    colour += tongue * (np.array(_TONGUE, np.float32) - colour)
    teeth = (0.45 * wide * np.sqrt(centred) * _smooth(0.74, 0.84, depth))[..., None]
    colour += teeth * (np.array(_TEETH, np.float32) - colour)
    frame += inside[..., None] * (colour - frame)


def _front_layer(x: Floats, y: Floats, pose: Pose, scale: float) -> tuple[Floats, Floats]:
    """What lies in front: the lower jaw with its lip, and the eyelids.

    Returns the source row of every point there, and how much of the point it covers, 0..1.
    """
    lip = _lip_line(x)
    source = y.copy()
    for _ in range(5):  # the inverse of a contraction, by iteration
        source = np.asarray(
            y - _jaw_shift(x, np.maximum(source - lip, 0), pose.opening), np.float32
        )
    source = np.maximum(source, lip)
    edge = lip + _jaw_shift(x, np.zeros_like(x), pose.opening)
    cover = np.clip((y - edge) * scale + 0.5, 0, 1)
    for xs, upper, lower in _LIDS:
        high, low = (np.polynomial.Polynomial.fit(xs, line, 3)(x) for line in (upper, lower))
        shift = pose.blink * np.maximum(low - high, 0) * ((x > xs[0]) & (x < xs[-1]))
        fold = high - 6.5  # the skin between here and the lashes stretches over the eye
        lid = (y > fold) & (y < 120) & (shift > 0)
        source = np.where(lid, fold + (y - fold) * 6.5 / (6.5 + shift), source)
        cover = np.where(lid, np.clip((high + shift - y) * scale + 0.5, 0, 1), cover)
    return np.asarray(source, np.float32), np.asarray(cover, np.float32)


def _face_box(pose: Pose, scale: float) -> Box:
    """The box a landmark host would crop: chin to as far above the bridge of the nose, cheek to
    cheek."""

    def moved(x: float, y: float) -> tuple[float, float]:
        at = np.array([[x, y]], np.float32)
        for _ in range(8):
            source = np.stack(_head_source(at[:, 0], at[:, 1], pose), axis=1)
            at = at + np.array([[x, y]], np.float32) - source
        return float(at[0, 0] - CROP_XYXY[0]) * scale, float(at[0, 1] - CROP_XYXY[1]) * scale

    jaw = float(
        _jaw_shift(
            np.array([CHIN[0]], np.float32), np.array([CHIN[1] - 150], np.float32), pose.opening
        )[0]
    )
    bridge, chin = moved(*BRIDGE), moved(CHIN[0], CHIN[1] + jaw)
    left, right = (moved(x, BRIDGE[1])[0] for x in CHEEKS_X)
    top = 2 * bridge[1] - chin[1]
    return round(left), round(top), round(right), round(chin[1] + CHIN_MARGIN * scale)


def render(still: Image, pose: Pose, size: int) -> Image:
    """One frame, BGR uint8 ``(size, size, 3)``, of a still made for the scale ``size / 270``."""
    scale = size / (CROP_XYXY[2] - CROP_XYXY[0])
    steps = (np.arange(size, dtype=np.float32) + 0.5) / scale
    x, y = np.meshgrid(steps + CROP_XYXY[0], steps + CROP_XYXY[1])
    x, y = _head_source(x, y, pose)

    def sample(at_x: Floats, at_y: Floats) -> Floats:
        column = (at_x - (CROP_XYXY[0] - MARGIN)) * np.float32(scale) - 0.5
        row = (at_y - (CROP_XYXY[1] - MARGIN)) * np.float32(scale) - 0.5
        picture = cv2.remap(
            still, column, row, cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REFLECT_101
        )
        return np.asarray(picture, np.float32)

    mouth = np.exp(-(((x - MOUTH_X) / 24) ** 2) - ((y - 147) / 15) ** 2)
    x = np.asarray(x + pose.narrow * (x - MOUTH_X) * mouth, np.float32)
    frame = sample(x, y)
    rows, cols = _window(size, (160, 75, 295, 250))  # all that moves in the face
    face, face_x, face_y = frame[rows, cols], x[rows, cols], y[rows, cols]
    if pose.opening > 0:
        _paint_mouth(face, face_x, face_y, pose, scale)
    source, cover = _front_layer(face_x, face_y, pose, scale)
    face += cover[..., None] * (sample(face_x, source) - face)
    return np.asarray(np.clip(np.rint(frame), 0, 255), np.uint8)


def _window(size: int, portrait_xyxy: Box) -> tuple[slice, slice]:
    """Rows and columns of a frame that show a part of the portrait."""
    scale = size / (CROP_XYXY[2] - CROP_XYXY[0])
    left, top, right, bottom = (
        round(min(max((v - CROP_XYXY[i % 2]) * scale, 0), size))
        for i, v in enumerate(portrait_xyxy)
    )
    return slice(top, bottom), slice(left, right)


def talking_head(
    count: int, size: int = 640, fps: Fraction = Fraction(25), seed: int = 0
) -> Iterator[tuple[Image, Box]]:
    """Yield `count` frames of the talking head with their face boxes.

    Args:
        count: number of frames.
        size: side of the square frames in pixels, 160 at least; the face box is about 0.38 by 0.5
            of it.
        fps: frames per second of the take.
        seed: another take: other motion, other loudness of the syllables, other grain.

    Yields:
        ``(frame_bgr, box_xyxy)``: uint8 ``(size, size, 3)``; the box's ends are exclusive and
        inside the frame.

    Raises:
        ValueError: `size` is under 160.
    """
    if size < 160:
        raise ValueError(f"size: got {size}; expected 160 or more")
    scale = size / (CROP_XYXY[2] - CROP_XYXY[0])
    still = make_still(scale, seed)
    for index in range(count):
        pose = pose_at(index / float(fps), seed)
        yield render(still, pose, size), _face_box(pose, scale)
