"""Ditto's decoder, its threads for decoding and putting back, and `examples/ditto.py`.

The decoder's network is a stand-in; the faces are put back by the host's numpy code, because the
other one is compiled on first use.
"""

from __future__ import annotations

import queue
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import torch

from .stand_ins import Box, compare, example, expect, replace_missing, soft, talking_head

COUNT = 10
SIDE = 512


class Network:
    """Returns the crop that it was given, softened."""

    def run(self, names: Any, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [soft(torch.from_numpy(inputs["feature"]), 2).numpy()]


def crop_matrices(boxes: list[Box], scale: float) -> list[np.ndarray]:
    """From a crop of `SIDE` pixels, `scale` times the face, to the frame: (3, 3) each."""
    matrices = []
    for left, top, right, bottom in boxes:
        step = scale * max(right - left, bottom - top) / SIDE
        x, y = (left + right) / 2 - step * SIDE / 2, (top + bottom) / 2 - step * SIDE / 2
        matrices.append(np.array([[step, 0, x], [0, step, y], [0, 0, 1]]))
    return matrices


def crops(frames: list[np.ndarray], matrices: list[np.ndarray]) -> list[np.ndarray]:
    """RGB uint8 (SIDE, SIDE, 3)."""
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return [
        cv2.warpAffine(frame, matrix[:2], (SIDE, SIDE), flags=flags, borderMode=cv2.BORDER_REFLECT)[
            ..., ::-1
        ].copy()
        for frame, matrix in zip(frames, matrices, strict=True)
    ]


def grown(matrix: np.ndarray, size: int) -> Box:
    """The part of the frame that a crop covers."""
    left, top = matrix[:2, 2]
    side = matrix[0, 0] * SIDE
    return (
        max(0, int(left) - 1),
        max(0, int(top) - 1),
        min(size, int(left + side) + 2),
        min(size, int(top + side) + 2),
    )


def check(folder: Path) -> None:
    """Run the threads without us and with us."""
    from musetalk_enhance import FaceEnhancer

    replace_missing("librosa", "mediapipe", "pyximport")
    replace_missing("skimage", "imageio", "filetype", "einops")
    sys.path.insert(0, str(folder))
    sys.modules["core.utils.blend"] = ModuleType("core.utils.blend")
    vars(sys.modules["core.utils.blend"])["blend_images_cy"] = None
    import core.models.decoder as module
    from core.atomic_components.decode_f3d import DecodeF3D
    from core.atomic_components.putback import PutBackNumpy
    from stream_pipeline_offline import StreamSDK

    module.load_model = lambda path, **options: (Network(), "onnx")
    frames, boxes = talking_head(COUNT)
    matrices = crop_matrices(boxes, 1.6)
    sdk = object.__new__(StreamSDK)
    sdk.decode_f3d = DecodeF3D({"model_path": "", "device": "cpu"})
    sdk.putback = PutBackNumpy()
    sdk.source_info = {
        "img_rgb_lst": [frame[..., ::-1] for frame in frames],
        "M_c2o_lst": matrices,
    }

    def run() -> list[np.ndarray]:
        sdk.stop_event, sdk.worker_exception = threading.Event(), None
        sdk.decode_f3d_queue, sdk.putback_queue, sdk.writer_queue = (queue.Queue() for _ in "123")
        for number, crop in enumerate(crops(frames, matrices)):
            feature = crop.transpose(2, 0, 1)[None].astype(np.float32) / 255
            sdk.decode_f3d_queue.put([number, feature])
        sdk.decode_f3d_queue.put(None)
        workers = (sdk.decode_f3d_worker, sdk.putback_worker)
        threads = [threading.Thread(target=worker) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if sdk.worker_exception is not None:
            raise sdk.worker_exception
        return [frame[..., ::-1] for frame in list(sdk.writer_queue.queue)[:-1]]  # None is last

    plain = run()
    stream = example("ditto").restore_faces(sdk, FaceEnhancer(model="lite", device="cpu"))
    ours = run()
    expect(stream.stats.restored == COUNT, f"{stream.stats.restored} of {COUNT} faces restored")
    areas = [grown(matrix, frames[0].shape[0]) for matrix in matrices]
    compare("decode_f3d_worker, putback_worker", plain, ours, areas)
