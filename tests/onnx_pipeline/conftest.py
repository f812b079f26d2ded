"""Small ONNX files with the inputs of published restorers, and a portrait with known landmarks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from musetalk_enhance.faces.detect import FFHQ_512

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
FLOAT, HALF, DOUBLE = (getattr(onnx.TensorProto, name) for name in ("FLOAT", "FLOAT16", "DOUBLE"))


def save_graph(path, nodes, inputs, outputs, constants=(), opset=17) -> Path:
    """Write a graph. `inputs` and `outputs`: (name, type, shape); `constants`: name to array."""
    info = onnx.helper.make_tensor_value_info
    tensors = [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in dict(constants).items()]
    graph = onnx.helper.make_graph(
        nodes, "g", [info(*one) for one in inputs], [info(*one) for one in outputs], tensors
    )
    opsets = [onnx.helper.make_opsetid("", opset)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


@pytest.fixture
def restorer(tmp_path) -> Callable[..., Path]:
    """restorer(name, gain=1, shift=0, side=512, ...): a file that returns ``gain * x + shift``."""

    def make(
        name="gfpgan_1.4.onnx",
        gain=1.0,
        shift=0.0,
        side=512,
        batch="N",
        image="input",
        kind=FLOAT,
        fidelity=None,
        opset=17,
    ) -> Path:
        dtype = np.float16 if kind == HALF else np.float32
        node, shape = onnx.helper.make_node, [batch, 3, side, side]
        nodes = [node("Mul", [image, "gain"], ["a"]), node("Add", ["a", "shift"], ["b"])]
        inputs, last = [(image, kind, shape)], "b"
        if fidelity is not None:
            inputs.append((fidelity, DOUBLE, [1]))
            nodes += [node("Cast", [fidelity], ["f"], to=kind), node("Add", ["b", "f"], ["c"])]
            last = "c"
        nodes.append(node("Identity", [last], ["output"]))
        constants = {"gain": dtype(gain), "shift": dtype(shift)}
        outputs = [("output", kind, shape)]
        return save_graph(tmp_path / name, nodes, inputs, outputs, constants, opset)

    return make


@pytest.fixture
def portrait(rng) -> np.ndarray:
    """A smooth BGR image, (480, 640, 3), with a face where `face` says."""
    import cv2

    coarse = rng.integers(40, 216, (12, 16, 3), np.uint8)
    return cv2.resize(coarse, (640, 480), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def face() -> dict:
    """One face of an analysis: FFHQ's landmarks, rotated by 10 degrees, half as large."""
    angle = np.deg2rad(10)
    turn = np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
    points = (FFHQ_512 - 256) @ turn.T * 0.5 + (320, 240)
    return {"bounding_box": [220, 130, 420, 370], "landmark_5": points.tolist(), "score": 0.9}
