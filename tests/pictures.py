"""Faces and frames of tests, one from the other."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import interpolate


def soften(faces: torch.Tensor) -> torch.Tensor:
    """The detail of 96 px, as a decoder leaves it; (N, 3, 256, 256) to the same."""
    small = interpolate(faces, size=(96, 96), mode="area")
    return interpolate(small, size=faces.shape[2:], mode="bicubic", align_corners=False).clamp(0, 1)


def to_frames(faces: torch.Tensor) -> np.ndarray:
    """float (N, 3, H, W), RGB, 0..1 to uint8 (N, H, W, 3), BGR."""
    return (
        faces.flip(1).mul(255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
    )


def to_faces(frames: np.ndarray) -> torch.Tensor:
    """uint8 (N, H, W, 3), BGR to float (N, 3, H, W), RGB, 0..1."""
    return torch.from_numpy(frames[..., ::-1].copy()).permute(0, 3, 1, 2).float() / 255
