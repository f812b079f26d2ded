"""A synthetic talking head as a host would hand it over: sharp, and softened as a decoder leaves it."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "examples"))


def soften(faces: torch.Tensor) -> torch.Tensor:
    """The detail of 96 px, as a decoder leaves it; (N, 3, 256, 256) to the same."""
    small = interpolate(faces, size=(96, 96), mode="area")
    return interpolate(small, size=faces.shape[2:], mode="bicubic", align_corners=False).clamp(0, 1)


def to_frames(faces: torch.Tensor) -> np.ndarray:
    """float (N, 3, H, W), RGB, 0..1 to uint8 (N, H, W, 3), BGR."""
    return faces.flip(1).mul(255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def to_faces(frames: np.ndarray) -> torch.Tensor:
    """uint8 (N, H, W, 3), BGR to float (N, 3, H, W), RGB, 0..1."""
    return torch.from_numpy(frames[..., ::-1].copy()).permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="session")
def take() -> torch.Tensor:
    """40 sharp crops of the talking head, float (40, 3, 256, 256), RGB, 0..1; eyes and mouth open and close."""
    pytest.importorskip("skimage")
    from talking_head import talking_head

    crops = []
    for frame_bgr, (left, top, right, bottom) in talking_head(40, size=640):
        face = cv2.resize(frame_bgr[top:bottom, left:right, ::-1], (256, 256), interpolation=cv2.INTER_AREA)
        crops.append(torch.from_numpy(face).permute(2, 0, 1).float() / 255)
    return torch.stack(crops)


@pytest.fixture(scope="session")
def soft(take: torch.Tensor) -> torch.Tensor:
    """`take`, softened, and rounded to 8 bits as a host hands it over."""
    return to_faces(to_frames(soften(take)))
