"""What the checks share: a talking head, a softened face, modules that are missing, comparisons."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
FLAGS = ("--enable_gfpgan", "--gfpgan_model", "lite", "--gfpgan_device", "cpu")
SIZE = 320
SOFT_SIDE = 64
"""Side of the face that the stand-ins for networks keep, in pixels."""

PICTURE: Path | None = None
"""File of a picture, without and with us, that `compare` writes instead of comparing."""
PICTURE_SIZE, PICTURE_SOFT_SIDE = 960, 96
"""`SIZE` and `SOFT_SIDE` of pictures."""
LOWER_FACE = ((0.42, 0.72), (0.3, 0.7))
"""Rows and columns of the lower face in the talking head's frames, as shares of their side."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class LiveRun:
    """How long a live loop runs, and at which rate."""

    minutes: float
    fps: float = 25


def talking_head(count: int) -> tuple[list[np.ndarray], list[Box]]:
    """Frames, BGR uint8 (320, 320, 3), and the boxes of their faces: left, top, right, bottom."""
    sys.path.append(str(ROOT / "examples"))
    from talking_head import talking_head as frames_of

    frames, boxes = [], []
    for frame, box in frames_of(count, size=SIZE):
        frames.append(np.ascontiguousarray(frame))
        boxes.append(tuple(int(value) for value in box))
    return frames, boxes


def example(name: str) -> Any:
    """The module of an example."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def soft(faces: torch.Tensor, scale: int = 1) -> torch.Tensor:
    """Faces (N, 3, H, W) with the detail of `scale` * 64 px, within the range of the input."""
    resize = torch.nn.functional.interpolate
    small = resize(faces.float(), size=(scale * SOFT_SIDE, scale * SOFT_SIDE), mode="area")
    large = resize(small, size=faces.shape[2:], mode="bicubic")
    return large.clamp(float(faces.min()), float(faces.max()))


class _AnyType(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()


class Anything(metaclass=_AnyType):
    """Has every attribute and may be called, subclassed and used as a decorator."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and callable(args[0]) else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()


def import_libraries() -> None:
    """Import diffusers and transformers before `replace_missing`: they look for packages."""
    for library, names in {
        "diffusers": ("AutoencoderKL", "UNet2DConditionModel", "DDIMScheduler"),
        "diffusers.models.attention": ("FeedForward",),
        "transformers": ("WhisperModel", "AutoFeatureExtractor", "HubertModel"),
        "transformers.models.wav2vec2": ("Wav2Vec2Processor",),
    }.items():
        if importlib.util.find_spec(library.split(".")[0]) is not None:
            for name in names:
                getattr(importlib.import_module(library), name)


def replace_missing(*names: str) -> None:
    """Put empty modules where these cannot be imported; a dotted name after its package."""
    missing = {
        name
        for name in names
        if name.split(".")[0] in sys.modules
        and isinstance(sys.modules[name.split(".")[0]], _Empty)
        or importlib.util.find_spec(name.split(".")[0]) is None
    }
    for name in names:
        if name in missing:
            sys.modules[name] = _Empty(name)


class MissingPackages(ImportError):
    """A check needs packages of the host that no stand-in replaces."""


def need(*names: str) -> None:
    """Raise `MissingPackages` where one of these cannot be imported."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackages(f"needs {', '.join(missing)}")


class _Empty(ModuleType):
    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (Anything,), {})


class CapturedVideo:
    """Stands in for `cv2.VideoWriter`: keeps the frames that the host writes."""

    frames: list[np.ndarray] = []

    def __init__(self, *args: Any) -> None:
        CapturedVideo.frames = []

    def write(self, frame: np.ndarray) -> None:
        CapturedVideo.frames.append(frame.copy())

    def release(self) -> None:
        pass


@contextmanager
def working_folder() -> Iterator[Path]:
    """A new folder as the working directory."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)


def run_without_and_with(words: Sequence[str], collect: Callable[[], Any]) -> list[Any]:
    """Run a host's script without us and with us; what `collect` returns after each."""
    from musetalk_enhance.cli import main

    results = []
    for flags in ((), FLAGS):
        code = main(["run", *words, *flags])
        expect(code == 0, f"{words[0]} ended with {code}")
        results.append(collect())
    return results


def sharpness(frame: np.ndarray, box: Box) -> float:
    """Variance of the Laplacian within a box, in gray."""
    left, top, right, bottom = box
    gray = cv2.cvtColor(frame[top:bottom, left:right], cv2.COLOR_BGR2GRAY)
    return float(cv2.Laplacian(gray, cv2.CV_64F).var())


def compare(
    label: str, plain: list[np.ndarray], ours: list[np.ndarray], boxes: Sequence[Box]
) -> None:
    """What holds of the same frames of a host without us and with us; prints the figures.

    Raises:
        AssertionError: a frame is missing, not sharper, or differs outside the face's box.
    """
    expect(len(plain) == len(ours) > 0, f"{len(plain)} frames without us, {len(ours)} with us")
    if PICTURE is not None:
        middle = len(ours) // 2
        write_picture(PICTURE, plain[middle], ours[middle])
        return
    sharp = np.zeros((2, len(plain)))
    for row, (before, after, box) in enumerate(zip(plain, ours, boxes, strict=True)):
        left, top, right, bottom = box
        outside = np.ones(before.shape[:2], bool)
        outside[top:bottom, left:right] = False
        expect((before[outside] == after[outside]).all(), f"{label} {row}: outside the box")
        sharp[:, row] = sharpness(before, box), sharpness(after, box)
        expect(sharp[1, row] > sharp[0, row], f"{label}: frame {row} is not sharper")
        drift = np.abs(before.mean((0, 1)) - after.mean((0, 1))).max()
        expect(drift < 1, f"{label}: the colors of frame {row} drift by {drift:.2f}")
    low, high = sharp.mean(1)
    print(f"  {label}: {len(ours)} frames, sharpness {low:.0f} -> {high:.0f}, outside identical")


def write_picture(path: Path, before: np.ndarray, after: np.ndarray) -> None:
    """Write the lower face of a frame without us and with us, side by side, where it is missing."""
    side = before.shape[0]  # of a frame of the talking head, enlarged or reduced
    rows, columns = (slice(round(low * side), round(high * side)) for low, high in LOWER_FACE)
    panels = []
    for label, frame in {"before": before, "after": after}.items():
        panel = cv2.copyMakeBorder(
            frame[rows, columns], 28, 0, 4, 4, cv2.BORDER_CONSTANT, value=(255, 255, 255)
        )
        place, font = (6, 20), cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(panel, label, place, font, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
        panels.append(panel)
    if not path.exists():
        cv2.imwrite(str(path), np.hstack(panels), [cv2.IMWRITE_JPEG_QUALITY, 92])


def expect(condition: Any, statement: str) -> None:
    """Raise an AssertionError with `statement` where something does not hold."""
    if not condition:
        raise AssertionError(statement)
