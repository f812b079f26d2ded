"""What the tests of stability share; the talking head itself stands in ``tests/conftest.py``."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from tests.pictures import soften, to_faces, to_frames

__all__ = ["soften", "to_faces", "to_frames"]


@pytest.fixture(scope="session")
def decoder_soft(shared: Path):
    """``decoder_soft(faces, blend, noise, generator)``: what a real, tiny latent decoder leaves of
    faces."""
    path = shared / "tools" / "tiny_autoencoder.py"
    if not path.exists():
        pytest.skip(f"no {path.name} in the data folder")
    spec = importlib.util.spec_from_file_location("tiny_autoencoder", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.decoder_soft


@pytest.fixture(scope="session")
def decoded(decoder_soft, take) -> torch.Tensor:
    """`take` as a latent decoder leaves it (blend 0.35, noise 0.1), rounded to 8 bits."""
    generator = torch.Generator().manual_seed(0)
    parts = [decoder_soft(part, 0.35, 0.1, generator) for part in take.split(4)]
    return to_faces(to_frames(torch.cat(parts)))


@pytest.fixture(params=["resized", "decoded"])
def given(request) -> torch.Tensor:
    """`take` in both kinds of softness, one after the other."""
    return request.getfixturevalue({"resized": "soft", "decoded": "decoded"}[request.param])
