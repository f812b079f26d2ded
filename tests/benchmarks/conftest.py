"""Candidates without a network, and a small GFPGANer that remembers how it was called."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scripts.benchmarks.measure import Rounds
from scripts.benchmarks.runner import Candidate, Runner

CPU = torch.device("cpu")


class FakeRunner(Runner):
    """Notes its name in `log` whenever it runs; `fails` raises in that run."""

    def __init__(self, name: str, log: list[str], faces: int = 2, fails: int | None = None) -> None:
        self.name, self.log, self.faces, self.fails = name, log, faces, fails
        self.ran = 0

    def run(self) -> np.ndarray:
        self.ran += 1
        if self.ran == self.fails:
            raise RuntimeError("the network\nfell over")
        self.log.append(self.name)
        return np.full((self.faces, 4, 4, 3), len(self.name), np.uint8)

    def start(self) -> None:
        self.log.append(f"{self.name} starts")

    def stages(self) -> dict[str, float]:
        return {"network": 1.5}

    def runs_as(self) -> str:
        return "torch fp32"

    def close(self) -> None:
        self.log.append(f"{self.name} closed")


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def fake(log):
    """fake(name, path="ours", ...) -> a candidate whose runner is a FakeRunner."""

    def make(
        name: str,
        path: str = "ours",
        error: Exception | None = None,
        fails: int | None = None,
        **facts,
    ):
        def build():
            if error is not None:
                raise error
            log.append(f"{name} loaded")
            return FakeRunner(name, log, fails=fails)

        facts = {"backend": "torch", "dtype": "fp32", "batch": 1, "region": "full", **facts}
        return Candidate(name, build, {"path": path, **facts})

    return make


@pytest.fixture
def rounds(log) -> Rounds:
    return Rounds(2, 1, CPU, 2**40, lambda line: None)


class FakeGfpganer:
    """Has the parts of GFPGANer that the reference paths touch."""

    def __init__(self) -> None:
        self.calls: list[dict] = []
        self.detected: list[tuple[int, ...]] = []
        self.answers: list[np.ndarray] = []
        self.face_helper = SimpleNamespace(face_det=SimpleNamespace(detect_faces=self._detect))

    def _detect(self, image, threshold):
        self.detected.append(image.shape)
        return np.zeros((0, 15), np.float32)

    def enhance(self, image, has_aligned=False, only_center_face=False, paste_back=True):
        self.calls.append(
            {
                "aligned": has_aligned,
                "center": only_center_face,
                "paste": paste_back,
                "shape": image.shape,
            }
        )
        if has_aligned:
            return [image], [image], None
        self.answers.append(self.face_helper.face_det.detect_faces(image, 0.97))
        faces = [image] * len(self.answers[-1])
        return faces, faces, image


@pytest.fixture
def gfpganer() -> FakeGfpganer:
    return FakeGfpganer()
