"""The first service: from an image and an analysis to the network's input."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..faces.align import Aligner
from ..faces.paste import crop_by_matrix
from ..media.arrays import Image, as_bgr_image
from ..weights.onnx_models import RestorerModel
from .analysis import AnalyzedFace, SkippedFace, read_analysis
from .templates import PreparedFace, fit

logger = logging.getLogger("musetalk_enhance")


@dataclass(frozen=True, eq=False)
class Prepared:
    """What `Preprocess` returns.

    Attributes:
        faces: the largest first, with their crops.
        skipped: faces that are left as they are.
        batch: float32 (n, 3, side, side), in the model's colors and value range.
        elapsed_ms: milliseconds, detection included.
    """

    faces: tuple[PreparedFace, ...]
    skipped: tuple[SkippedFace, ...]
    batch: NDArray[np.float32]
    elapsed_ms: float


class Preprocess:
    """Reads the analysis, or detects faces, and aligns each face to the model's template.

    Args:
        model: the restorer's facts.
        detector: from an image to its faces, as a face detector's `detect`; for images without an
            analysis.
    """

    def __init__(
        self, model: RestorerModel, detector: Callable[[Image], Sequence[Any]] | None = None
    ) -> None:
        self.model, self.detector = model, detector

    def run(self, image_bgr: Image, analysis: Any = None) -> Prepared:
        """Prepare the faces of an image.

        Args:
            image_bgr: BGR uint8 (H, W, 3); not modified.
            analysis: see `read_analysis`; None detects.

        Raises:
            FrameError: `image_bgr` is something else.
            AnalysisError: see `read_analysis`; or None without a detector.
            EnhanceError: the detector's own.
        """
        start = perf_counter()
        image = as_bgr_image(image_bgr)
        if analysis is None and self.detector is not None:
            detections = self.detector(image)
            analysis = [
                {"bbox": face.box_xyxy, "kps": face.landmarks, "score": face.score}
                for face in detections
            ]
        readable, skipped = read_analysis(analysis)
        faces = []
        for face in readable:
            problem = Aligner.problems(face.landmarks[None], image.shape[:2]).get(0)
            if problem is None:
                faces.append(self._crop(image, face))
            else:
                detail = f"got {problem.actual}; expected {problem.expected}"
                skipped.append(SkippedFace(face.index, problem.reason, detail))
        faces.sort(key=lambda each: -each.crop.to_image[:, 0] @ each.crop.to_image[:, 0])
        side = self.model.input_size
        crops = [self._values(each.crop.aligned) for each in faces]
        batch = np.stack(crops) if crops else np.empty((0, 3, side, side), np.float32)
        elapsed_ms = 1000 * (perf_counter() - start)
        logger.debug("preprocess: %d faces, %d skipped", len(faces), len(skipped))
        return Prepared(tuple(faces), tuple(skipped), batch, elapsed_ms)

    def _crop(self, image: Image, face: AnalyzedFace) -> PreparedFace:
        matrix = fit(face.landmarks, self.model.template)
        return PreparedFace(face, crop_by_matrix(image, matrix, self.model.input_size))

    def _values(self, aligned_bgr: Image) -> NDArray[np.float32]:
        low, high = self.model.value_range
        pixels = aligned_bgr[..., ::-1] if self.model.color == "rgb" else aligned_bgr
        values = pixels.transpose(2, 0, 1).astype(np.float32) * ((high - low) / 255) + low
        return np.ascontiguousarray(values, np.float32)
