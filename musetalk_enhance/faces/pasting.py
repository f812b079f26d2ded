"""The faces of whole pictures: cut out on the FFHQ template, and laid back where they were.

What `align.Aligner` does for a host's crops on their device is done here for pictures of any size with OpenCV, on
the part of the picture that matters. Coordinates as there: a picture spans 0..W and 0..H, the middle of its first
pixel is (0.5, 0.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FrameError
from .align import TEMPLATE_SIDE, Aligner

if TYPE_CHECKING:
    from collections.abc import Sequence

Image = NDArray[np.uint8]
Mask = NDArray[np.float32]
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in whole pixels, right and bottom beyond the last one."""

FEATHER = 32
"""Width, in pixels of the 512 px template, over which a face fades out at the template's border."""
_MARGIN = 4  # pixels around what is looked at, for the reach of a bicubic


@dataclass(frozen=True, eq=False)
class FaceCut:
    """A face as the network shall see it.

    Attributes:
        aligned: BGR uint8 (side, side, 3), on the FFHQ template.
        to_template: float64 (2, 3): ``A @ (x, y, 1)`` are the coordinates in the 512 px template of a place in the
            picture.
        picture_hw: height and width of the picture it was cut from.
    """

    aligned: Image
    to_template: NDArray[np.float64]
    picture_hw: tuple[int, int]

    @property
    def to_picture(self) -> NDArray[np.float64]:
        """The way back: float64 (2, 3)."""
        inverse = np.linalg.inv(self.to_template[:, :2])
        return np.column_stack((inverse, -inverse @ self.to_template[:, 2]))

    def box(self, size_hw: tuple[int, int] | None = None) -> Box:
        """Where the template lies in the picture, or in the picture brought to `size_hw`, cut off at its edges; may
        be empty."""
        size = size_hw or self.picture_hw
        scale = np.array([[size[1] / self.picture_hw[1]], [size[0] / self.picture_hw[0]]])
        return _bounds(self.to_picture * scale, size, 0)


@dataclass(frozen=True, eq=False)
class Paste:
    """What laying one face over a picture takes.

    Attributes:
        cut: where it was cut out.
        restored: BGR uint8 (T, T, 3), the whole template at any size T.
        mask: float32 (M, M), 0..1, which part of the template is face; None: all of it.
    """

    cut: FaceCut
    restored: Image
    mask: Mask | None = None


def cut_face(picture_bgr: Image, landmarks: Any, side: int = TEMPLATE_SIDE) -> FaceCut:
    """Cut a face out of a picture, turned and scaled as the FFHQ template has it.

    Bicubic; where it shrinks, areas are averaged first. Beyond the picture's edge its border goes on.

    Args:
        picture_bgr: BGR uint8 (H, W, 3).
        landmarks: (5, 2) x, y in pixels, in the order of `detect.Face.landmarks`.
        side: of the aligned face, in pixels.

    Raises:
        FrameError: the landmarks are no face's, or lie far outside; see `Aligner.problems`.
    """
    import cv2

    height, width = picture_bgr.shape[:2]
    points = np.asarray(landmarks, np.float64)[None]
    matrix = Aligner(side).fit(points, (height, width), aspect=width / height).to_template[0]
    cut = FaceCut(np.empty((0, 0, 3), np.uint8), matrix, (height, width))
    left, top, right, bottom = _bounds(cut.to_picture, (height, width), _MARGIN)
    part = picture_bgr[top:bottom, left:right]
    way = cut.to_picture.copy()
    way[:, :2] *= TEMPLATE_SIDE / side
    way[:, 2] -= (left, top)
    part, way = _thinned(part, way)
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    aligned = cv2.warpAffine(part, _of_indices(way), (side, side), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return FaceCut(np.asarray(aligned, np.uint8), matrix, (height, width))


def paste_faces(canvas_bgr: Image, pastes: Sequence[Paste], *, replace: bool = False) -> None:
    """Lay restored faces over a picture, in place.

    What the network changed is added: ``canvas + mask * (restored - aligned)``, brought to the canvas. So a network
    that changes nothing changes no pixel, detail of a face that is larger than the template stays, and outside the
    masks every pixel is as it was. Where faces overlap, what an earlier one has covered is left to it.

    Args:
        canvas_bgr: BGR uint8 (H, W, 3), the picture that the faces were cut from, or that picture enlarged.
        pastes: the faces, the most important first.
        replace: put the restored face in place of what the canvas shows: for a canvas that was itself restored, on
            which the same change would be made twice.

    Raises:
        FrameError: the canvas is not the picture enlarged as a whole, but for rounding.
    """
    size_hw = canvas_bgr.shape[0], canvas_bgr.shape[1]
    for paste in pastes:
        _check_enlarged(size_hw, paste.cut.picture_hw)
    boxes = [paste.cut.box(size_hw) for paste in pastes]
    room = np.ones(canvas_bgr.shape[:2], np.float32) if _any_overlap(boxes) else None
    for paste, box in zip(pastes, boxes, strict=True):
        left, top, right, bottom = box
        if left >= right or top >= bottom:
            continue
        here = canvas_bgr[top:bottom, left:right]
        free = None if room is None else room[top:bottom, left:right]
        here[:] = _laid(here, paste, box, size_hw, free, replace)


def coverage(side: int, mask: Mask | None = None) -> Mask:
    """How much of a restored face is laid over the picture, on the template: float32 (side, side), 0..1, 0 at the
    border. `mask`, (M, M), limits it."""
    import cv2

    ramp: Mask = _ramp(side)
    if mask is None:
        return ramp
    if mask.shape != ramp.shape:
        mask = np.asarray(cv2.resize(mask, (side, side), interpolation=cv2.INTER_LINEAR), np.float32)
    return np.minimum(ramp, mask)


def _laid(here: Image, paste: Paste, box: Box, size_hw: tuple[int, int], free: Mask | None, replace: bool) -> Image:
    """One face over its part of a canvas of `size_hw`; what it covers is taken off `free`."""
    import cv2

    restored, side = paste.restored, paste.restored.shape[0]
    mask = coverage(side, paste.mask)
    way = paste.cut.to_template.copy()
    way[:, :2] *= (paste.cut.picture_hw[1] / size_hw[1], paste.cut.picture_hw[0] / size_hw[0])
    way[:, 2] += way[:, :2] @ np.array(box[:2])
    way *= side / TEMPLATE_SIDE
    size_wh = (box[2] - box[0], box[3] - box[1])
    layers = np.empty((side, side, 3), np.float32)
    aligned = None if replace else _sized(paste.cut.aligned, side)
    if aligned is None:
        layers[:] = restored
    else:
        cv2.subtract(restored, aligned, dst=layers, dtype=cv2.CV_32F)
    if free is None and not replace:
        cv2.multiply(layers, _ramps(side) if paste.mask is None else cv2.merge([mask, mask, mask]), dst=layers)
        delta = _warped(layers, way, size_wh)
        return np.asarray(cv2.add(here, delta, dtype=cv2.CV_8U), np.uint8)
    weight = np.maximum(_warped(mask, way, size_wh), 0)
    if free is not None:
        weight = np.minimum(weight, free)
        free -= weight
    change = _warped(layers, way, size_wh, cv2.BORDER_REPLICATE)
    if replace:
        change -= here
    change *= weight[..., None]
    return np.asarray(cv2.add(here, change, dtype=cv2.CV_8U), np.uint8)


def _warped(layers: Mask, way: NDArray[np.float64], size_wh: tuple[int, int], border: int | None = None) -> Mask:
    """`layers` (T, T[, 3]) as seen from a part of the canvas, of which `way` leads into them."""
    import cv2

    layers, way = _thinned(layers, way)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    mode = cv2.BORDER_CONSTANT if border is None else border
    return np.asarray(cv2.warpAffine(layers, _of_indices(way), size_wh, flags=flags, borderMode=mode), np.float32)


def _thinned(source: Any, way: NDArray[np.float64]) -> tuple[Any, NDArray[np.float64]]:
    """A source that is finer than what is made of it, averaged to about that density, and the way into it."""
    import cv2

    density = float(np.sqrt(abs(np.linalg.det(way[:, :2]))))
    height, width = source.shape[:2]
    size_wh = max(1, round(width / density)), max(1, round(height / density))
    if density <= 1 or size_wh == (width, height):
        return source, way
    factors = np.array([[size_wh[0] / width], [size_wh[1] / height]])
    thinned = np.asarray(way * factors, np.float64)
    return cv2.resize(source, size_wh, interpolation=cv2.INTER_AREA), thinned


def _of_indices(way: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same way between indices of pixels, whose first has its middle at 0 and not at 0.5."""
    shifted: NDArray[np.float64] = way.copy()
    shifted[:, 2] += way[:, :2] @ np.array((0.5, 0.5)) - 0.5
    return shifted


def _bounds(to_picture: NDArray[np.float64], picture_hw: tuple[int, int], margin: int) -> Box:
    side = float(TEMPLATE_SIDE)
    corners = np.array([(0.0, 0.0, 1.0), (side, 0.0, 1.0), (side, side, 1.0), (0.0, side, 1.0)])
    places = to_picture @ corners.T
    low, high = np.floor(places.min(axis=1)) - margin, np.ceil(places.max(axis=1)) + margin
    height, width = picture_hw
    left, top = (int(min(max(0.0, value), limit)) for value, limit in zip(low, (width, height), strict=True))
    right, bottom = (int(min(max(0.0, value), limit)) for value, limit in zip(high, (width, height), strict=True))
    return left, top, right, bottom


def _check_enlarged(canvas_hw: tuple[int, int], picture_hw: tuple[int, int]) -> None:
    """Some factor gives both sides, each rounded."""
    least = max((side - 0.5) / own for side, own in zip(canvas_hw, picture_hw, strict=True))
    most = min((side + 0.5) / own for side, own in zip(canvas_hw, picture_hw, strict=True))
    if least > most:
        raise FrameError("size", f"a canvas of {canvas_hw}", f"{picture_hw} enlarged as a whole")


def _any_overlap(boxes: Sequence[Box]) -> bool:
    return any(
        max(a[0], b[0]) < min(a[2], b[2]) and max(a[1], b[1]) < min(a[3], b[3])
        for index, a in enumerate(boxes)
        for b in boxes[:index]
    )


def _sized(aligned: Image, side: int) -> Image:
    """The aligned face at the size of what the network made."""
    import cv2

    if aligned.shape[0] == side:
        return aligned
    how = cv2.INTER_AREA if side < aligned.shape[0] else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(aligned, (side, side), interpolation=how), np.uint8)


@lru_cache(maxsize=8)
def _ramp(side: int) -> Mask:
    """0 at the template's border, 1 from `FEATHER` inside it, a smoothstep between."""
    place = (np.arange(side) + 0.5) * (TEMPLATE_SIDE / side)
    inside = np.minimum(place, TEMPLATE_SIDE - place)
    share = np.clip(np.minimum.outer(inside, inside) / FEATHER, 0, 1)
    ramp: Mask = (share * share * (3 - 2 * share)).astype(np.float32)
    ramp.setflags(write=False)
    return ramp


@lru_cache(maxsize=4)
def _ramps(side: int) -> Mask:
    """`_ramp` for three channels."""
    ramps: Mask = np.repeat(_ramp(side)[..., None], 3, axis=2)
    ramps.setflags(write=False)
    return ramps


__all__ = ["FEATHER", "Box", "FaceCut", "Image", "Mask", "Paste", "coverage", "cut_face", "paste_faces"]
