"""A real clip, softened as by a host: the original and the embedded model are measured."""

from __future__ import annotations

from itertools import islice

import cv2
import numpy as np
import pytest

from musetalk_enhance import GFPGANEnhancer
from musetalk_enhance.media import read_frames
from musetalk_enhance.report import ReportBuilder

from .conftest import FPS, SIDE, soften

pytestmark = [pytest.mark.slow, pytest.mark.shared]

COUNT = 48


@pytest.fixture(scope="module")
def crops(shared) -> np.ndarray:
    """Face crops of a talking person, BGR uint8 (N, 256, 256, 3)."""
    frames = list(islice(read_frames(shared / "data" / "clips" / "d12.mp4"), COUNT))
    height, width = frames[0].shape[:2]
    finder = cv2.FaceDetectorYN.create(
        str(shared / "weights" / "face_detection_yunet_2023mar.onnx"), "", (width, height)
    )
    boxes = np.array([finder.detect(frame)[1][0][:4] for frame in frames[::8]])
    x, y, w, h = np.median(boxes, axis=0)
    rows, columns = slice(round(y + 0.08 * h), round(y + h)), slice(max(0, round(x)), round(x + w))
    return np.stack(
        [cv2.resize(f[rows, columns], (SIDE, SIDE), interpolation=cv2.INTER_AREA) for f in frames]
    )


@pytest.mark.parametrize("restored", ["original", "lite"])
def test_a_real_face_is_not_accused(crops, restored):
    soft = np.stack([soften(crop) for crop in crops])
    out = crops
    if restored == "lite":
        with GFPGANEnhancer(model="lite", backend="torch", device="cpu") as enhancer:
            out = enhancer(soft)
    builder = ReportBuilder(FPS)
    for face_in, face_out, truth in zip(soft, out, crops, strict=True):
        builder.add(face_in, face_out, truth)
    report = builder.finish()
    allowed = (
        {"warping"} if restored == "lite" else set()
    )  # stability is not the model's own affair
    assert {verdict.key for verdict in report.failed} <= allowed, "\n".join(report.lines())
    assert report.verdict("sharpness").value > 1.5
