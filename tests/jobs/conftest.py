"""A job whose network and detector are made in the test, and pictures of plain colours."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from musetalk_enhance.faces.detect import FFHQ_512, Face, FaceDetector, WholeImage
from musetalk_enhance.jobs import ImageSettings, folder, model_loader
from musetalk_enhance.jobs.manifest import FOLDER
from musetalk_enhance.jobs.models import LoadedModel
from musetalk_enhance.restorers.base import LoadRequest
from musetalk_enhance.restorers.catalog import Choice, Model
from tests.conftest import RECORD, FakeRestorer

ADDED = 40
SMALL = replace(RECORD, input_size=64, output_size=64)


class Network:
    """What the fake job runs: counts, and can be told to fail.

    Attributes:
        function: from faces to faces; adds `ADDED` unless a test says otherwise.
        opened: how many times it was loaded.
        faces: how many faces it saw.
        closed: how many times it was given back.
    """

    def __init__(self) -> None:
        self.function: Callable = lambda faces: faces + ADDED / 255
        self.opened = self.faces = self.closed = 0

    def load(self, settings, *, pinned=None) -> LoadedModel:
        self.opened += 1
        wanted = settings.enhancer(model="lite", color_match=False)
        fake = FakeRestorer(LoadRequest(SMALL, wanted, torch.device("cpu")), self.run)
        fake.close = self.close
        return LoadedModel(fake, Choice(Model(SMALL, lambda: FakeRestorer), wanted), None, [])

    def run(self, faces):
        self.faces += len(faces)
        return self.function(faces)

    def close(self):
        self.closed += 1


class Middle(FaceDetector):
    """Takes the middle of every picture that is not blue for a face."""

    def detect(self, picture_bgr):
        height, width = picture_bgr.shape[:2]
        if picture_bgr[0, 0, 0] > picture_bgr[0, 0, 2] + 50:
            return []
        side = 0.8 * min(height, width)
        x, y = (width - side) / 2, (height - side) / 2
        box = np.array((x + side / 4, y + side / 4, x + side * 3 / 4, y + side * 3 / 4))
        return [Face(box, (FFHQ_512 * (side / 512) + (x, y)).astype(np.float32), 0.9)]


@pytest.fixture
def network(monkeypatch) -> Network:
    """In place of the model and the detector, for `face_detector` none and yunet."""
    network = Network()
    monkeypatch.setattr(
        gc, "collect", lambda *_: 0
    )  # at every close, and slow beside all that the tests import
    monkeypatch.setattr(model_loader, "load", network.load)
    found = {"none": WholeImage, "yunet": Middle}
    monkeypatch.setattr(model_loader, "make_detector", lambda name, *_, **__: found[name]())
    return network


@pytest.fixture
def pairs(monkeypatch) -> None:
    """Two pictures in a unit."""
    monkeypatch.setattr(folder, "MAX_IMAGES", 2)


WHOLE = ImageSettings(face_detector="none")


def picture(value: int = 100, size_hw=(64, 64)) -> np.ndarray:
    """Smooth, and different for each value; never blue."""
    row = np.linspace(value, value + 30, size_hw[1])
    return np.broadcast_to(row[:, None], (*size_hw, 3)).astype(np.uint8).copy()


def put(folder: Path, *names: str, size_hw=(64, 64)) -> None:
    """Write a different picture under each name."""
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        suffix = path.suffix.lower()
        done, data = cv2.imencode(
            suffix if suffix != ".jfif" else ".jpg", picture(20 * index + 20, size_hw)
        )
        assert done
        path.write_bytes(data.tobytes())


def files(folder: Path) -> dict[str, bytes]:
    """Everything below a folder but the memory of the job."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and FOLDER not in path.parts
    }


def read(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
