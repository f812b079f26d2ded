"""YOLOv5-face as an ONNX graph: its input, and the two layouts of its output.

Qi et al., "YOLO5Face: Why Reinventing a Face Detector", 2021. Its authors' code and weights are
under the GPL-3.0, so that the table of weights has none. The package `uniface`, which runs it too,
needs NumPy 1.24 and Python 3.11, more than MuseTalk's environment has, and only its own files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, RestorerError
from ..runtime.onnx_session import open_session

COLUMNS = 16  # of a candidate: x, y, w, h, objectness, five x, y, class score
ANCHORS: dict[int, NDArray[np.float32]] = {
    8: np.array([(4, 5), (8, 10), (13, 16)], np.float32),
    16: np.array([(23, 29), (43, 55), (73, 105)], np.float32),
    32: np.array([(146, 217), (231, 300), (335, 433)], np.float32),
}
"""Width and height of the anchors in pixels by stride, as in the authors' ``yolov5s.yaml``."""

_STRIDE = 32  # of the coarsest grid: the sides of an input are multiples of it
_GRAY = 114
_MAX_OVERLAP = 0.5  # intersection over union of two faces
_EXPECTED = (
    "YOLOv5-face: one float32 input (1, 3, H, W), and one output (1, n, 16), or three (1, 3, h, w, "
    "16) for the strides 8, 16 and 32"
)


class YOLOv5Graph:
    """The graph on the CPU, from an image to the faces in it.

    Args:
        path: the .onnx file, with one input (1, 3, H, W), RGB, 0..1, of fixed or dynamic size.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        MissingWeightError: there is no file at `path`.
        CheckpointError: the file is not an ONNX graph, or another network's.
    """

    def __init__(self, path: str | Path) -> None:
        from ..weights import open_file

        self.path = open_file(path).path
        self._session = open_session(self.path)
        inputs = self._session.get_inputs()
        shape: list[Any] = list(inputs[0].shape) if len(inputs) == 1 else []
        if len(shape) != 4 or shape[1] != 3 or inputs[0].type != "tensor(float)":
            signature = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
            raise CheckpointError(self.path, f"a graph with the input {signature}", _EXPECTED)
        self._input: str = inputs[0].name
        self._size_hw = tuple(side if isinstance(side, int) else None for side in shape[2:])
        try:
            self.run(np.zeros((64, 64, 3), np.uint8), 0.5)
        except RestorerError as error:
            raise CheckpointError(self.path, f"another graph ({error})", _EXPECTED) from error

    def run(self, image_bgr: NDArray[np.uint8], threshold: float) -> NDArray[np.float64]:
        """The faces of an image, without duplicates: (k, 15) x1, y1, x2, y2, score, five x, y.

        Args:
            image_bgr: BGR uint8 (H, W, 3).
            threshold: minimum score, 0..1.

        Raises:
            RestorerError: the graph failed, or its output has another layout.
        """
        import cv2

        height, width = image_bgr.shape[:2]
        to_height, to_width = (
            fixed or -(-side // _STRIDE) * _STRIDE
            for fixed, side in zip(self._size_hw, (height, width), strict=True)
        )
        scale = 1.0
        if None not in self._size_hw:
            scale = min(to_height / height, to_width / width)
        size_wh = min(to_width, round(width * scale)), min(to_height, round(height * scale))
        canvas = np.full((to_height, to_width, 3), _GRAY, np.uint8)
        resized = cv2.resize(image_bgr, size_wh, interpolation=cv2.INTER_LINEAR)
        canvas[: size_wh[1], : size_wh[0]] = resized
        blob = canvas[None, ..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) / 255
        try:
            outputs = self._session.run(None, {self._input: np.ascontiguousarray(blob)})
        except Exception as error:
            raise RestorerError(f"YOLOv5-face failed: {error}") from error
        rows = faces_of(candidates(outputs, (to_height, to_width)), threshold)
        scales_xy = np.array((width / size_wh[0], height / size_wh[1]))
        rows[:, :4] *= np.tile(scales_xy, 2)
        rows[:, 5:] *= np.tile(scales_xy, 5)
        return rows


def candidates(outputs: list[NDArray[Any]], size_hw: tuple[int, int]) -> NDArray[np.float64]:
    """The candidates of both layouts: (n, 16), decoded, in pixels of the graph's input.

    Args:
        outputs: one array (1, n, 16), decoded by the graph, or one (1, 3, h, w, 16) for each
            stride, before the sigmoid.
        size_hw: of the graph's input, in pixels.

    Raises:
        RestorerError: another layout.
    """
    if len(outputs) == 1 and outputs[0].ndim == 3 and outputs[0].shape[2] == COLUMNS:
        return np.asarray(outputs[0][0], np.float64)
    grids = {(size_hw[0] // stride, size_hw[1] // stride): stride for stride in ANCHORS}
    heads = [out for out in outputs if out.ndim == 5 and out.shape[1::3] == (3, COLUMNS)]
    if len(heads) != len(ANCHORS) or {head.shape[2:4] for head in heads} != set(grids):
        shapes = ", ".join(str(out.shape) for out in outputs)
        raise RestorerError(f"YOLOv5-face failed: its outputs have the shapes {shapes}")
    return np.vstack([decoded_head(head[0], grids[head.shape[2:4]]) for head in heads])


def decoded_head(head: NDArray[Any], stride: int) -> NDArray[np.float64]:
    """One grid of candidates, decoded as the authors' ``Detect`` layer does.

    Args:
        head: (3, h, w, 16), for each anchor of the stride, before the sigmoid.
        stride: of the grid, in pixels.

    Returns:
        (3 * h * w, 16), in pixels of the graph's input.
    """
    head = head.astype(np.float64)
    rows, columns = np.mgrid[: head.shape[1], : head.shape[2]]
    cells = np.stack((columns, rows), axis=-1)[None]
    anchors = ANCHORS[stride][:, None, None]
    scores = 1 / (1 + np.exp(-np.clip(head, -80, 80)))
    landmarks = head[..., 5:15] * np.tile(anchors, 5) + np.tile(cells, 5) * stride
    parts = (
        (scores[..., :2] * 2 - 0.5 + cells) * stride,
        (scores[..., 2:4] * 2) ** 2 * anchors,
        scores[..., 4:5],
        landmarks,
        scores[..., 15:],
    )
    return np.concatenate(parts, axis=-1).reshape(-1, COLUMNS)


def faces_of(rows: NDArray[np.float64], threshold: float) -> NDArray[np.float64]:
    """Candidates (n, 16) to faces (k, 15): score at least `threshold`, the best of duplicates."""
    import cv2

    scores = rows[:, 4] * rows[:, 15]
    rows, scores = rows[scores >= threshold], scores[scores >= threshold]
    corners = rows[:, :2] - rows[:, 2:4] / 2
    boxes_xywh = np.hstack((corners, rows[:, 2:4]))
    best = cv2.dnn.NMSBoxes(boxes_xywh.tolist(), scores.tolist(), threshold, _MAX_OVERLAP)
    faces = np.hstack((corners, corners + rows[:, 2:4], scores[:, None], rows[:, 5:15]))
    return np.asarray(faces[np.asarray(best, int).reshape(-1)], np.float64)


__all__ = ["ANCHORS", "YOLOv5Graph", "candidates", "decoded_head", "faces_of"]
