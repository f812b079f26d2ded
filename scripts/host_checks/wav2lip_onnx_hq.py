"""wav2lip-onnx-HQ's script: real but for its ONNX networks, windows and video file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import torch

from .stand_ins import (
    SIZE,
    CapturedVideo,
    compare,
    expect,
    replace_missing,
    run_without_and_with,
    soft,
    talking_head,
    working_folder,
)
from .wav2lip import spectrogram, write_video

COUNT = 8


class Session:
    """Stands in for an ONNX session of the lip sync network."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def run(self, names: Any, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [soft(torch.from_numpy(inputs["video_frames"][:, 3:])).numpy()]


class Detector:
    """Finds the same five points in every frame: those of a face in the middle of the frame."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def detect(self, image: np.ndarray, **kwargs: Any) -> tuple[list[Any], list[np.ndarray]]:
        points = np.array([[193, 240], [319, 240], [257, 314], [201, 371], [313, 371]]) / 512
        return [None], [(points * SIZE * 0.7 + SIZE * 0.15).astype(np.float32)]


def check(folder: Path) -> None:
    """Run the script, which chooses its enhancer, for a clip."""
    replace_missing("librosa", "librosa.filters", "numba")
    sys.path.insert(0, str(folder))
    import audio
    import onnxruntime

    audio.load_wav = lambda path, rate: None
    audio.melspectrogram = lambda wav: spectrogram(COUNT)
    onnxruntime.InferenceSession = Session
    for name, values in {
        "utils.retinaface": {"RetinaFace": Detector},
        "faceID.faceID": {"FaceRecognition": lambda path: lambda face: [np.ones(1)]},
    }.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(values)
    os.system = lambda command: 0
    cv2.selectROI = lambda *args, **kwargs: (0, 0, 0, 0)
    cv2.destroyAllWindows = lambda: None
    frames, _ = talking_head(COUNT)
    with working_folder():
        Path("temp").mkdir()
        write_video("face.mp4", frames)
        cv2.VideoWriter = CapturedVideo  # type: ignore[assignment, misc]
        words = [str(folder / "inference_onnxModel.py"), "--checkpoint_path", "weights.onnx"]
        words += ["--face", "face.mp4", "--audio", "voice.wav"]
        sys.modules["subprocess"].call = lambda *args, **kwargs: 0  # type: ignore[attr-defined]
        plain, ours = run_without_and_with(words, lambda: CapturedVideo.frames)
    expect(len(plain) == COUNT, f"{len(plain)} of {COUNT} frames")
    # the aligned face of 256 px covers 0.7 of the frame's side
    left, top, right, bottom = (round(SIZE * share) for share in (0.15, 0.15, 0.85, 0.85))
    compare("inference_onnxModel.py", plain, ours, [(left, top, right, bottom)] * COUNT)
