"""The third service: masks, blending, and the faces back in their image."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from ..faces.occlusion import FEATHER
from ..faces.paste import Mask, Paste, coverage, paste_faces, without_added_color
from ..faces.regions import ACROSS, ALONG, CORNERS, DROP, PLATEAU
from ..media.arrays import Image, as_bgr_image, resize_image
from ..weights.onnx_models import RestorerModel
from .templates import PreparedFace

logger = logging.getLogger("musetalk_enhance")

_MASK_SIDE = 256
_LOWER_FROM, _LOWER_FULL = 0.25, 0.5  # shares of the way from the eyes to the mouth


@dataclass(frozen=True)
class FaceResult:
    """What became of a face.

    Attributes:
        index: its position in the analysis.
        status: ``"restored"``; ``"unchanged"``, no pixel differs; or ``"failed"``.
        occlusion_share: share of the face that is covered, 0..1; None without an occluder.
        detail: why it failed.
    """

    index: int
    status: str
    occlusion_share: float | None = None
    detail: str = ""


@dataclass(frozen=True, eq=False)
class Composite:
    """What `Postprocess` returns: BGR uint8 (H, W, 3), one result per face, milliseconds."""

    image_bgr: Image
    faces: tuple[FaceResult, ...]
    elapsed_ms: float


class Postprocess:
    """Pastes restored faces: the network's change is added, within the masks.

    A face fades out at its crop's border (box mask), stays as it is where it is covered (occlusion
    mask), and outside the region (region mask); the masks are combined by their minimum. A network
    that changes nothing changes no pixel.

    Args:
        model: the restorer's facts.
        blend: share of the restored face, 0..100.
        region: ``"full"``, ``"lower"`` (below the middle between eyes and mouth) or ``"mouth"``.
    """

    def __init__(self, model: RestorerModel, *, blend: float = 100, region: str = "full") -> None:
        self.model, self.blend, self.region = model, blend, region

    def run(
        self,
        image_bgr: Image,
        faces: Sequence[PreparedFace],
        restored: NDArray[np.float32],
        visibility: NDArray[np.float32] | None = None,
    ) -> Composite:
        """Paste the faces into a copy of the image.

        Args:
            image_bgr: BGR uint8 (H, W, 3), the image that the faces were cropped from.
            faces: the most important first; where faces overlap, it is on top.
            restored: float32 (n, 3, T, T), the network's output for each face.
            visibility: float32 (n, h, w), 0..1, 1 where the face is visible.

        Raises:
            FrameError: `image_bgr` is something else.
        """
        start = perf_counter()
        image = as_bgr_image(image_bgr).copy()
        source, pastes = image.copy(), []
        for index, (face, values) in enumerate(zip(faces, restored, strict=True)):
            if np.isfinite(values).all():
                mask = None if visibility is None else visibility[index]
                pastes.append((index, self._paste(face, values, mask)))
        paste_faces(image, [paste for _, paste in pastes])
        is_pasted = {index for index, _ in pastes}
        results = []
        for index, face in enumerate(faces):
            if index not in is_pasted:
                detail = "the network returned NaN or infinite values"
                results.append(FaceResult(face.face.index, "failed", None, detail))
                continue
            left, top, right, bottom = face.crop.box()
            region = np.s_[top:bottom, left:right]
            same = np.array_equal(image[region], source[region])
            share = None if visibility is None else _occlusion_share(visibility[index])
            results.append(FaceResult(face.face.index, "unchanged" if same else "restored", share))
        elapsed_ms = 1000 * (perf_counter() - start)
        logger.debug("postprocess: %d faces", len(pastes))
        return Composite(image, tuple(results), elapsed_ms)

    def _paste(
        self, face: PreparedFace, values: NDArray[np.float32], visibility: Mask | None
    ) -> Paste:
        import cv2

        low, high = self.model.value_range
        planes = np.rint((values - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
        order = planes[::-1] if self.model.color == "rgb" else planes
        result: Image = np.asarray(cv2.merge(list(order)), np.uint8)
        side = result.shape[0]
        aligned = resize_image(face.crop.aligned, (side, side))
        if self.blend < 100:
            share = self.blend / 100
            mixed = cv2.addWeighted(result, share, aligned, 1 - share, 0)
            result = np.asarray(mixed, np.uint8)
        if not np.array_equal(result, aligned):
            result = without_added_color(face.crop.aligned, result)
        masks = [] if visibility is None else [_feathered(visibility)]
        if self.region != "full":
            masks.append(self._region_mask(face))
        sized = [_resized(mask) for mask in masks]
        return Paste(face.crop, result, np.minimum.reduce(sized) if sized else None)

    def _region_mask(self, face: PreparedFace) -> Mask:
        """float32 (256, 256), 0..1, from the face's landmarks on its crop."""
        matrix = face.crop.to_template * (_MASK_SIDE / 512)
        points = face.face.landmarks @ matrix[:, :2].T + matrix[:, 2]
        eyes, mouth = points[:2].mean(axis=0), points[3:].mean(axis=0)
        length = max(1.0, hypot(*(mouth - eyes)))
        down = (mouth - eyes) / length
        across = np.array((down[1], -down[0]))
        grid = np.stack(np.meshgrid(*[np.arange(_MASK_SIDE) + 0.5] * 2), axis=-1)
        depth = ((grid - eyes) @ down / length - _LOWER_FROM) / (_LOWER_FULL - _LOWER_FROM)
        mask = _smoothstep(depth)
        if self.region == "mouth":
            offset = grid - (mouth + DROP * length * down)
            mouth_width = abs(float((points[4] - points[3]) @ across))
            half_width = max(ACROSS * length, CORNERS / 2 * mouth_width)
            radius = np.hypot(offset @ across / half_width, offset @ down / (ALONG * length))
            mask = mask * _smoothstep((1 - radius) / (1 - PLATEAU))
        return mask.astype(np.float32)


def _smoothstep(position: NDArray[np.float64]) -> NDArray[np.float64]:
    inside = position.clip(0, 1)
    return np.asarray(inside * inside * (3 - 2 * inside))


def _resized(mask: Mask, side: int = _MASK_SIDE) -> Mask:
    import cv2

    return np.asarray(cv2.resize(mask, (side, side), interpolation=cv2.INTER_LINEAR), np.float32)


def _feathered(visibility: Mask) -> Mask:
    """The edges feathered on their visible side, as `faces.occlusion.feathered` does with torch."""
    import cv2

    sigma = FEATHER * max(visibility.shape)
    radius = int(np.ceil(3 * sigma))
    covered = np.ascontiguousarray(1 - visibility, np.float32)
    size = (2 * radius + 1, 2 * radius + 1)
    blurred = cv2.GaussianBlur(covered, size, sigma, borderType=cv2.BORDER_REPLICATE)
    feathered: Mask = np.minimum((1 - 2 * np.asarray(blurred, np.float32)).clip(0, 1), visibility)
    return feathered


def _occlusion_share(visibility: Mask) -> float:
    """Share of the pasted area that is covered."""
    weights = coverage(_MASK_SIDE)
    return float(1 - (weights * _resized(visibility)).sum() / weights.sum())
