"""Warp templates: where a network expects the eyes, the nose and the mouth of a face."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .detect import FFHQ_512

TEMPLATE_SIDE = 512
"""Side of the square that templates are scaled to, in pixels."""

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


def template_points(name: str | None) -> NDArray[np.float64]:
    """The five points of a template in pixels of `TEMPLATE_SIDE`, (5, 2); None is FFHQ's."""
    return TEMPLATES[name or "ffhq_512"] * TEMPLATE_SIDE
