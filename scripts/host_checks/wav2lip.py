"""Wav2Lip's ``inference.py``: real but for the network, the spectrogram and the video file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from .stand_ins import (
    CapturedVideo,
    compare,
    expect,
    replace_missing,
    run_without_and_with,
    soft,
    talking_head,
    working_folder,
)

COUNT = 12


class Network(torch.nn.Module):
    """Returns the face that it was given, softened: (N, 3, 96, 96), BGR, 0..1."""

    def forward(self, audio: torch.Tensor, face: torch.Tensor) -> torch.Tensor:
        return soft(face[:, 3:])


def write_video(path: str, frames: list[np.ndarray]) -> list[np.ndarray]:
    """Write frames at 25 fps; returns them as OpenCV reads them."""
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"mp4v"), 25, (width, height))
    for frame in frames:
        writer.write(frame)
    writer.release()
    reader = cv2.VideoCapture(path)
    return [reader.read()[1] for _ in frames]


def spectrogram(count: int) -> np.ndarray:
    """A mel spectrogram that the host cuts into `count` frames at 25 fps, (80, T)."""
    return np.zeros((80, int(80 / 25 * (count - 1)) + 15))


def check(folder: Path) -> None:
    """Run ``inference.py`` with one fixed face box."""
    replace_missing("librosa", "librosa.filters", "numba")
    sys.path.insert(0, str(folder))
    import audio
    import models
    import models.wav2lip as module

    network: Any = Network
    network.__name__ = "Wav2Lip"
    module.Wav2Lip = models.Wav2Lip = network
    audio.load_wav = lambda path, rate: None
    audio.melspectrogram = lambda wav: spectrogram(COUNT)
    frames, boxes = talking_head(COUNT)
    left, top, right, bottom = boxes[0]
    with working_folder():
        Path("temp").mkdir()
        write_video("face.mp4", frames)
        torch.save({"state_dict": {}}, "weights.pth")
        cv2.VideoWriter = CapturedVideo  # type: ignore[assignment, misc]
        words = [str(folder / "inference.py"), "--checkpoint_path", "weights.pth"]
        words += ["--face", "face.mp4", "--audio", "voice.wav", "--wav2lip_batch_size", "5"]
        words += ["--box", *map(str, (top, bottom, left, right))]
        plain, ours = run_without_and_with(words, lambda: CapturedVideo.frames)
    expect(len(plain) == COUNT, f"{len(plain)} of {COUNT} frames")
    compare("inference.py", plain, ours, [boxes[0]] * COUNT)
