"""Warp templates: where a network expects the eyes, the nose and the mouth of a face."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..faces.align import TEMPLATE_SIDE
from ..faces.detect import FFHQ_512
from ..faces.paste import FaceCrop, Matrix
from .analysis import AnalyzedFace

_ARCFACE_112 = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655)]
    + [(70.7299, 92.2041)]
)
_FRONTAL_112 = np.array(
    [(39.730, 51.138), (72.270, 51.138), (56.000, 68.493), (42.463, 87.010), (69.537, 87.010)]
)

TEMPLATES: dict[str, NDArray[np.float64]] = {
    "arcface_112_v1": _FRONTAL_112 / 112,
    "arcface_112_v2": _ARCFACE_112 / 112,
    "arcface_128": (_ARCFACE_112 + (8.0, 0.0)) / 128,
    "ffhq_512": FFHQ_512 / 512,
}
"""Five points each, (5, 2) x, y as shares of the side: left eye, right eye, nose, left and right
mouth corner. The names are FaceFusion's (``facefusion/face_helper.py``, which states the same
figures to eight digits). The arcface ones are insightface's
(``python-package/insightface/utils/face_align.py``): v1 is the frontal pose of its older set
``src3``, v2 is ``arcface_src``, and 128 is v2 moved by 8 px in a 128 px square. ffhq_512 is
facexlib's ``face_template``."""


@dataclass(frozen=True, eq=False)
class PreparedFace:
    """A face and its crop on the template.

    Attributes:
        face: from the analysis.
        crop: BGR uint8 (side, side, 3), and the transform to the template, scaled to 512 px.
    """

    face: AnalyzedFace
    crop: FaceCrop

    @property
    def affine_matrix(self) -> Matrix:
        """float64 (2, 3): ``A @ (x, y, 1)`` maps a point of the image to the network's input."""
        return self.crop.to_template * (len(self.crop.aligned) / TEMPLATE_SIDE)


def fit(landmarks: Any, template: str) -> Matrix:
    """The similarity from an image to a template of 512 px, by least squares.

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns",
    1991, in two dimensions, without reflection, written with complex numbers.

    Args:
        landmarks: (5, 2) x, y in pixels, not all the same.
        template: a key of `TEMPLATES`.

    Returns:
        float64 (2, 3).
    """
    points, target = np.asarray(landmarks, np.float64), TEMPLATES[template] * TEMPLATE_SIDE
    source = (points - points.mean(axis=0)) @ (1, 1j)
    goal = (target - target.mean(axis=0)) @ (1, 1j)
    factor = complex(np.vdot(source, goal) / np.vdot(source, source).real)
    linear = np.array([(factor.real, -factor.imag), (factor.imag, factor.real)])
    return np.column_stack((linear, target.mean(axis=0) - linear @ points.mean(axis=0)))
