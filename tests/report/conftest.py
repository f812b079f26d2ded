"""A talking head as a host has it: sharp and softened crops; a meter without a network."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from tests.conftest import ROOT

SIDE, HOST, FPS = 256, 96, 25.0


def soften(face: np.ndarray) -> np.ndarray:
    """What a host's decoder leaves: averaged to 96 px, bicubic back."""
    small = cv2.resize(face.astype(np.float32), (HOST, HOST), interpolation=cv2.INTER_AREA)
    soft = cv2.resize(small, face.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(np.rint(soft), 0, 255).astype(np.uint8)


@dataclass
class Clip:
    """Face crops, BGR uint8 (N, 256, 256, 3), and how far the lower lip is from rest."""

    sharp: np.ndarray
    soft: np.ndarray
    opening: np.ndarray


@pytest.fixture(scope="session")
def clip() -> Clip:
    """Two seconds of the synthetic talking head, with speech and a blink."""
    sys.path.insert(0, str(ROOT / "examples"))
    from talking_head import pose_at, talking_head

    crops = []
    for frame, (left, top, right, bottom) in talking_head(50, 448):
        crops.append(
            cv2.resize(frame[top:bottom, left:right], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        )
    opening = np.array([pose_at(index / FPS, 0).opening for index in range(len(crops))])
    return Clip(np.stack(crops), np.stack([soften(crop) for crop in crops]), opening)


@pytest.fixture
def rings() -> np.ndarray:
    """Texture, BGR uint8 (64, 64, 3)."""
    y, x = np.mgrid[:64, :64].astype(np.float32)
    levels = 128 + 50 * np.sin(x / 4) * np.cos(y / 5) + 30 * np.sin((x + y) / 9)
    return np.repeat(np.clip(levels, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def plain_meter(faces: torch.Tensor) -> SimpleNamespace:
    """Landmarks at their usual position; a crop's openings are its brightness, set by tests."""
    count, _, height, width = faces.shape
    places = torch.tensor([[0.3, 0.35], [0.7, 0.35], [0.5, 0.55], [0.35, 0.78], [0.65, 0.78]])
    level = faces.mean((1, 2, 3))
    return SimpleNamespace(
        landmarks=(places * torch.tensor([width, height])).expand(count, 5, 2),
        mouth=level,
        eyes=torch.stack([level, level], 1),
        confidence=torch.ones(count),
    )


@pytest.fixture
def meter():
    return plain_meter
