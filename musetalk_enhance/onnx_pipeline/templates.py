"""A face on the template of its network."""

from __future__ import annotations

from dataclasses import dataclass

from ..faces.align import fit
from ..faces.paste import FaceCrop, Matrix
from ..faces.templates import TEMPLATE_SIDE, TEMPLATES
from .analysis import AnalyzedFace


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


__all__ = ["TEMPLATES", "PreparedFace", "fit"]
