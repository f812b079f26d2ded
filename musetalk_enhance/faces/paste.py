"""The faces of whole images: cropped to the FFHQ template, and pasted back in place.

What `align.Aligner` does for a host's crops on their device is done here for images of any size
with OpenCV, on the part of the image that matters. The coordinates are the same: an image spans
0..W and 0..H, the center of its first pixel is (0.5, 0.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FrameError
from ..media.arrays import Image, resize_image
from .align import Aligner
from .templates import TEMPLATE_SIDE

if TYPE_CHECKING:
    from collections.abc import Sequence

Mask = NDArray[np.float32]
Matrix = NDArray[np.float64]
"""float64 (2, 3), an affine transform of points (x, y, 1)."""
Box = tuple[int, int, int, int]
"""Left, top, right, bottom in whole pixels, right and bottom exclusive."""

FEATHER = 32
"""Width, in pixels of the 512 px template, over which a face fades out at the template's border."""
COLORLESS, MAX_COLORED = 3, 0.001
"""Largest difference of two channels in 1/255, and share of pixels over it, of a colorless face:
rounding in a video's YUV makes up to 3, single pixels come from compression."""
_MARGIN = 4  # pixels around the region that is sampled, for the support of a bicubic


@dataclass(frozen=True, eq=False)
class FaceCrop:
    """A face as the network takes it.

    Attributes:
        aligned: BGR uint8 (side, side, 3), on the network's template.
        to_template: float64 (2, 3): ``A @ (x, y, 1)`` maps a point of the image to the 512 px
            template.
        image_hw: height and width of the image that the face was cropped from.
    """

    aligned: Image
    to_template: Matrix
    image_hw: tuple[int, int]

    @property
    def to_image(self) -> Matrix:
        """The inverse of `to_template`: float64 (2, 3)."""
        inverse = np.linalg.inv(self.to_template[:, :2])
        return np.column_stack((inverse, -inverse @ self.to_template[:, 2]))

    def box(self, size_hw: tuple[int, int] | None = None) -> Box:
        """The template's bounding box in the image, or in the image resized to `size_hw`.

        Clipped to the image; may be empty.
        """
        size = size_hw or self.image_hw
        scale = np.array([[size[1] / self.image_hw[1]], [size[0] / self.image_hw[0]]])
        return _bounds(self.to_image * scale, size, 0)


@dataclass(frozen=True, eq=False)
class Paste:
    """One face to paste.

    Attributes:
        crop: where it was cropped.
        restored: BGR uint8 (T, T, 3), the whole template at any size T.
        mask: float32 (M, M), 0..1, which part of the template is face; None pastes all of it.
    """

    crop: FaceCrop
    restored: Image
    mask: Mask | None = None


def without_added_color(source_bgr: Image, restored_bgr: Image) -> Image:
    """`restored_bgr`; only its luminance where the source has no color.

    A network trained on color paints lips and skin into a black and white photograph.

    Args:
        source_bgr: BGR uint8 (H, W, 3), what was restored.
        restored_bgr: BGR uint8 (h, w, 3).
    """
    import cv2

    blue, green, red = source_bgr[..., 0], source_bgr[..., 1], source_bgr[..., 2]
    high, low = np.maximum(np.maximum(blue, green), red), np.minimum(np.minimum(blue, green), red)
    colored = np.count_nonzero(high - low > COLORLESS)
    if colored > MAX_COLORED * high.size:
        return restored_bgr
    gray = cv2.cvtColor(restored_bgr, cv2.COLOR_BGR2GRAY)
    return np.asarray(cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR), np.uint8)


def crop_face(
    image_bgr: Image, landmarks: Any, side: int = TEMPLATE_SIDE, template: str | None = None
) -> FaceCrop:
    """Crop a face, rotated and scaled to a template.

    Bicubic; area-averaged first where it shrinks. Beyond the image's edge its border is replicated.

    Args:
        image_bgr: BGR uint8 (H, W, 3).
        landmarks: (5, 2) x, y in pixels, in the order of `detect.Face.landmarks`.
        side: side of the aligned face, in pixels.
        template: a key of `templates.TEMPLATES`; None is FFHQ's.

    Raises:
        FrameError: the landmarks are not a face's, or far outside; see `Aligner.problems`.
    """
    height, width = image_bgr.shape[:2]
    points = np.asarray(landmarks, np.float64)[None]
    aligner = Aligner(side, template=template)
    matrix = aligner.fit(points, (height, width), aspect=width / height).to_template[0]
    return crop_by_matrix(image_bgr, matrix, side)


def crop_by_matrix(image_bgr: Image, to_template: Matrix, side: int) -> FaceCrop:
    """Crop a face by its transform, as `crop_face` does.

    Args:
        image_bgr: BGR uint8 (H, W, 3).
        to_template: float64 (2, 3), from the image to a template of 512 px, not only FFHQ's.
        side: side of the aligned face, in pixels.
    """
    import cv2

    height, width = image_bgr.shape[:2]
    crop = FaceCrop(np.empty((0, 0, 3), np.uint8), to_template, (height, width))
    left, top, right, bottom = _bounds(crop.to_image, (height, width), _MARGIN)
    source = image_bgr[top:bottom, left:right]
    to_source = crop.to_image.copy()
    to_source[:, :2] *= TEMPLATE_SIDE / side
    to_source[:, 2] -= (left, top)
    source, to_source = _reduced(source, to_source)
    aligned = cv2.warpAffine(
        source,
        _between_indices(to_source),
        (side, side),
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return FaceCrop(np.asarray(aligned, np.uint8), to_template, (height, width))


def paste_faces(canvas_bgr: Image, pastes: Sequence[Paste], *, replace: bool = False) -> None:
    """Paste restored faces into an image, in place.

    The network's change is added: ``canvas + mask * (restored - aligned)``, warped to the canvas.
    So a network that changes nothing changes no pixel, a face that is larger than the template
    keeps its detail, and outside the masks no pixel changes. Where faces overlap, a pixel belongs
    to the first one that covers it.

    Args:
        canvas_bgr: BGR uint8 (H, W, 3), the image that the faces were cropped from, or that image
            enlarged.
        pastes: the faces, the most important first.
        replace: replace the canvas by the restored face instead of adding the change: for a canvas
            that was itself restored and would get the same change twice.

    Raises:
        FrameError: the canvas does not have the image's proportions, up to rounding.
    """
    size_hw = canvas_bgr.shape[0], canvas_bgr.shape[1]
    for paste in pastes:
        _check_proportions(size_hw, paste.crop.image_hw)
    boxes = [paste.crop.box(size_hw) for paste in pastes]
    free = np.ones(canvas_bgr.shape[:2], np.float32) if _any_overlap(boxes) else None
    for paste, box in zip(pastes, boxes, strict=True):
        left, top, right, bottom = box
        if left >= right or top >= bottom:
            continue
        target = canvas_bgr[top:bottom, left:right]
        weights = None if free is None else free[top:bottom, left:right]
        target[:] = _composite(target, paste, box, size_hw, weights, replace)


def coverage(side: int, mask: Mask | None = None) -> Mask:
    """The weight of a restored face on the template: float32 (side, side), 0..1, 0 at the border.

    Args:
        side: of the template, in pixels.
        mask: (M, M), 0..1, an upper limit.
    """
    import cv2

    ramp: Mask = _ramp(side)
    if mask is None:
        return ramp
    if mask.shape != ramp.shape:
        resized = cv2.resize(mask, (side, side), interpolation=cv2.INTER_LINEAR)
        mask = np.asarray(resized, np.float32)
    return np.minimum(ramp, mask)


def _composite(
    target: Image,
    paste: Paste,
    box: Box,
    size_hw: tuple[int, int],
    free: Mask | None,
    replace: bool,
) -> Image:
    """One face over `target`, the part `box` of a canvas of `size_hw`.

    `free` is the weight that is left there, from which the face's own is subtracted.
    """
    import cv2

    restored, side = paste.restored, paste.restored.shape[0]
    mask = coverage(side, paste.mask)
    image_hw = paste.crop.image_hw
    to_template = paste.crop.to_template.copy()
    to_template[:, :2] *= (image_hw[1] / size_hw[1], image_hw[0] / size_hw[0])
    to_template[:, 2] += to_template[:, :2] @ np.array(box[:2])
    to_template *= side / TEMPLATE_SIDE
    size_wh = (box[2] - box[0], box[3] - box[1])
    layers = np.empty((side, side, 3), np.float32)
    aligned = None if replace else resize_image(paste.crop.aligned, (side, side))
    if aligned is None:
        layers[:] = restored
    else:
        cv2.subtract(restored, aligned, dst=layers, dtype=cv2.CV_32F)
    if free is None and not replace:
        weights = _ramps(side) if paste.mask is None else cv2.merge([mask, mask, mask])
        cv2.multiply(layers, weights, dst=layers)
        delta = _warped(layers, to_template, size_wh)
        return np.asarray(cv2.add(target, delta, dtype=cv2.CV_8U), np.uint8)
    weight = np.maximum(_warped(mask, to_template, size_wh), 0)
    if free is not None:
        weight = np.minimum(weight, free)
        free -= weight
    change = _warped(layers, to_template, size_wh, cv2.BORDER_REPLICATE)
    if replace:
        change -= target
    change *= weight[..., None]
    return np.asarray(cv2.add(target, change, dtype=cv2.CV_8U), np.uint8)


def _warped(
    layers: Mask, to_layers: Matrix, size_wh: tuple[int, int], border: int | None = None
) -> Mask:
    """`layers` (T, T[, 3]) warped to a part of the canvas, from which `to_layers` maps to them."""
    import cv2

    layers, to_layers = _reduced(layers, to_layers)
    warped = cv2.warpAffine(
        layers,
        _between_indices(to_layers),
        size_wh,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT if border is None else border,
    )
    return np.asarray(warped, np.float32)


def _reduced(source: Any, to_source: Matrix) -> tuple[Any, Matrix]:
    """A source that is finer than the result, averaged to about its density, and its transform."""
    import cv2

    density = float(np.sqrt(abs(np.linalg.det(to_source[:, :2]))))
    height, width = source.shape[:2]
    size_wh = max(1, round(width / density)), max(1, round(height / density))
    if density <= 1 or size_wh == (width, height):
        return source, to_source
    factors = np.array([[size_wh[0] / width], [size_wh[1] / height]])
    scaled = np.asarray(to_source * factors, np.float64)
    return cv2.resize(source, size_wh, interpolation=cv2.INTER_AREA), scaled


def _between_indices(matrix: Matrix) -> Matrix:
    """The same transform between pixel indices, where the first pixel's center is 0, not 0.5."""
    shifted: Matrix = matrix.copy()
    shifted[:, 2] += matrix[:, :2] @ np.array((0.5, 0.5)) - 0.5
    return shifted


def _bounds(to_image: Matrix, image_hw: tuple[int, int], margin: int) -> Box:
    """The template's bounding box in the image, with a margin, clipped."""
    side = float(TEMPLATE_SIDE)
    corners = np.array([(0.0, 0.0, 1.0), (side, 0.0, 1.0), (side, side, 1.0), (0.0, side, 1.0)])
    points = to_image @ corners.T
    low, high = np.floor(points.min(axis=1)) - margin, np.ceil(points.max(axis=1)) + margin
    limits_wh = image_hw[1], image_hw[0]
    left, top = (
        int(min(max(0.0, value), limit)) for value, limit in zip(low, limits_wh, strict=True)
    )
    right, bottom = (
        int(min(max(0.0, value), limit)) for value, limit in zip(high, limits_wh, strict=True)
    )
    return left, top, right, bottom


def _check_proportions(canvas_hw: tuple[int, int], image_hw: tuple[int, int]) -> None:
    """Check that a single factor gives both sides, each rounded."""
    low = max((side - 0.5) / source for side, source in zip(canvas_hw, image_hw, strict=True))
    high = min((side + 0.5) / source for side, source in zip(canvas_hw, image_hw, strict=True))
    if low > high:
        expected = f"the proportions of the image, {image_hw}"
        raise FrameError("size", f"a canvas of {canvas_hw}", expected)


def _any_overlap(boxes: Sequence[Box]) -> bool:
    return any(
        max(a[0], b[0]) < min(a[2], b[2]) and max(a[1], b[1]) < min(a[3], b[3])
        for index, a in enumerate(boxes)
        for b in boxes[:index]
    )


@lru_cache(maxsize=8)
def _ramp(side: int) -> Mask:
    """0 at the template's border, 1 from `FEATHER` inside it, a smoothstep between."""
    position = (np.arange(side) + 0.5) * (TEMPLATE_SIDE / side)
    inside = np.minimum(position, TEMPLATE_SIDE - position)
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


__all__ = [
    "FEATHER",
    "Box",
    "FaceCrop",
    "Image",
    "Mask",
    "Paste",
    "coverage",
    "crop_by_matrix",
    "crop_face",
    "paste_faces",
]
