"""LivePortrait's ``parse_output`` and ``paste_back``, and `examples/liveportrait.py`.

The stand-in is the network in front of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import torch

from .ditto import SIDE, crop_matrices, crops, grown
from .stand_ins import compare, example, expect, replace_missing, soft, talking_head

COUNT = 10


def check(folder: Path) -> None:
    """Paste faces back without us and with us."""
    from musetalk_enhance import FaceEnhancer

    replace_missing("rich", "rich.progress", "rich.console", "tyro", "scipy", "scipy.spatial")
    replace_missing("imageio", "onnxruntime", "insightface", "pykalman", "yaml")
    sys.path.insert(0, str(folder))
    from src.live_portrait_wrapper import LivePortraitWrapper
    from src.utils.crop import paste_back, prepare_paste_back

    wrapper = object.__new__(LivePortraitWrapper)
    frames, boxes = talking_head(COUNT)
    matrices = crop_matrices(boxes, 1.6)
    mask = np.zeros((SIDE, SIDE, 3), np.uint8)
    mask[40:-40, 40:-40] = 255
    mask = cv2.GaussianBlur(mask, (63, 63), 0)
    size = frames[0].shape[1], frames[0].shape[0]

    def run() -> list[np.ndarray]:
        results = []
        for frame, crop, matrix in zip(frames, crops(frames, matrices), matrices, strict=True):
            images = torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 255
            face = wrapper.parse_output(soft(images, 2))[0]
            weights = prepare_paste_back(mask, matrix, dsize=size)
            results.append(paste_back(face, matrix, frame[..., ::-1], weights)[..., ::-1])
        return results

    plain = run()
    stream = example("liveportrait").restore_faces(wrapper, FaceEnhancer(model="lite"))
    ours = run()
    expect(stream.stats.restored == COUNT, f"{stream.stats.restored} of {COUNT} faces restored")
    areas = [grown(matrix, frames[0].shape[0]) for matrix in matrices]
    compare("parse_output, paste_back", plain, ours, areas)
