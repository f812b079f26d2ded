"""YOLOv5-face: both layouts of its output, with figures computed by hand, in graphs built here."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from musetalk_enhance.errors import (
    CheckpointError,
    ConfigError,
    CorruptWeightError,
    MissingDependencyError,
    MissingWeightError,
    RestorerError,
)
from musetalk_enhance.faces.detect import make_detector
from musetalk_enhance.faces.yolov5 import YOLOv5Graph, candidates, decoded_head, faces_of

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

FLOAT = onnx.TensorProto.FLOAT
HALF, THREE_QUARTERS, NINE_TENTHS = 0.0, np.log(3.0), np.log(9.0)
"""Values before the sigmoid of 0.5, 0.75 and 0.9."""


def save(path, outputs, sides=(64, 64), channels=3, kind=FLOAT):
    """A graph that returns `outputs`, plus the largest red value of its input in column 4."""
    node, info = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    column = np.eye(16, dtype=np.float32)[4]
    constants = [
        onnx.numpy_helper.from_array(np.asarray(value, np.int64), name)
        for name, value in (("zero", [0]), ("one", [1]))
    ]
    constants.append(onnx.numpy_helper.from_array(column, "column"))
    nodes = [
        node("Slice", ["input", "zero", "one", "one"], ["red"]),
        node("ReduceMax", ["red"], ["largest"], keepdims=0),
        node("Mul", ["largest", "column"], ["added"]),
    ]
    for index, output in enumerate(outputs):
        constants.append(onnx.numpy_helper.from_array(np.float32(output), f"c{index}"))
        nodes.append(node("Add", [f"c{index}", "added"], [f"out{index}"]))
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [info("input", kind, [1, channels, *sides])],
        [info(f"out{index}", FLOAT, np.shape(out)) for index, out in enumerate(outputs)],
        constants,
    )
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def heads() -> list[np.ndarray]:
    """Three grids of a 64x64 input with one face: stride 8, second anchor (8, 10), row 3, column
    5."""
    grids = [np.full((1, 3, side, side, 16), -50.0, np.float32) for side in (8, 4, 2)]
    landmarks = (1, -0.5, 2, -0.5, 1.5, 0, 1, 0.5, 2, 0.5)
    grids[0][0, 1, 3, 5] = (
        *(THREE_QUARTERS, HALF, HALF, THREE_QUARTERS, NINE_TENTHS, *landmarks, NINE_TENTHS),
    )
    return grids


# x = (2 * 0.75 - 0.5 + 5) * 8 = 48, y = (2 * 0.5 - 0.5 + 3) * 8 = 28, w = (2 * 0.5)^2 * 8 = 8,
# h = (2 * 0.75)^2 * 10 = 22.5; landmarks: 8 * x + 5 * 8, 10 * y + 3 * 8
FACE = (48, 28, 8, 22.5, 0.9, 48, 19, 56, 19, 52, 24, 48, 29, 56, 29, 0.9)
BOX = (44, 16.75, 52, 39.25)


def test_a_head_is_decoded():
    rows = decoded_head(heads()[0][0], 8)
    assert rows.shape == (3 * 8 * 8, 16)
    # anchors first, then rows, then columns
    np.testing.assert_allclose(rows[(1 * 8 + 3) * 8 + 5], FACE, atol=1e-5)


def test_each_stride_has_its_anchors():
    head = np.zeros((3, 2, 2, 16), np.float32)
    for stride, anchor in ((16, (23, 29)), (32, (146, 217))):
        first = decoded_head(head, stride)[0]
        # (2 * 0.5 - 0.5 + 0) * stride, and (2 * 0.5)^2 anchors
        np.testing.assert_allclose(first[:4], (stride / 2, stride / 2, *anchor))
        np.testing.assert_allclose(first[5:15], 0)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_heads_come_in_any_order(order):
    rows = candidates([heads()[index] for index in order], (64, 64))
    assert rows.shape == (3 * (64 + 16 + 4), 16)
    np.testing.assert_allclose(rows[rows[:, 4] > 0.5], [FACE], atol=1e-5)


def test_the_better_of_two_duplicates_stays():
    shifted, elsewhere, unlikely = (np.array(FACE) for _ in range(3))
    shifted[0] += 1
    shifted[4] = 0.8
    elsewhere[:2] = 10, 50
    unlikely[4] = 0.5  # times 0.9 is less than the threshold
    faces = faces_of(np.array([shifted, FACE, unlikely, elsewhere]), 0.6)
    assert sorted(face[0] for face in faces) == [6, 44]
    np.testing.assert_allclose(faces[faces[:, 0] == 44][0, :5], (*BOX, 0.81))


@pytest.mark.parametrize("layout", ["heads", "decoded"])
def test_a_face_at_the_images_size(layout, tmp_path):
    """The graph's 64 px are 128 px of the image; a face has its box and landmarks there."""
    outputs = heads() if layout == "heads" else [np.array([[FACE]])]
    detector = make_detector("yolov5", save(tmp_path / "net.onnx", outputs))
    (face,) = detector.detect(np.zeros((128, 128, 3), np.uint8))
    np.testing.assert_allclose(face.box_xyxy, np.array(BOX) * 2, atol=1e-4)
    np.testing.assert_allclose(face.landmarks, np.reshape(FACE[5:15], (5, 2)) * 2, atol=1e-4)
    assert face.score == pytest.approx(0.81, abs=1e-5)


def test_a_wide_image_is_padded_below(tmp_path):
    """128x64 in a 64x64 graph: half the size, at the top."""
    graph = YOLOv5Graph(save(tmp_path / "net.onnx", [np.array([[FACE]])]))
    (row,) = graph.run(np.zeros((64, 128, 3), np.uint8), 0.5)
    np.testing.assert_allclose(row[:4], np.array(BOX) * 2, atol=1e-4)


def test_the_input_is_rgb_from_0_to_1(tmp_path):
    row = np.array(FACE)
    row[4] = 0  # the graph adds the largest red value
    graph = YOLOv5Graph(save(tmp_path / "net.onnx", [row[None, None]], ("h", "w")))
    image = np.zeros((64, 96, 3), np.uint8)
    image[..., :2] = 255
    assert len(graph.run(image, 0.05)) == 0, "blue and green"
    image[..., 2] = 204
    assert graph.run(image, 0.05)[0, 4] == pytest.approx(0.8 * 0.9, abs=1e-6)


def test_a_dynamic_size_is_a_multiple_of_32(tmp_path):
    row = np.array(FACE)
    row[4] = 0
    graph = YOLOv5Graph(save(tmp_path / "net.onnx", [row[None, None]], ("h", "w")))
    # 40 rows need padding with gray 114, 64 do not
    assert graph.run(np.zeros((40, 64, 3), np.uint8), 0.05)[0, 4] == pytest.approx(114 / 255 * 0.9)
    assert len(graph.run(np.zeros((64, 64, 3), np.uint8), 0.05)) == 0


@pytest.mark.parametrize(
    ("outputs", "options"),
    [
        ([np.zeros((16, 16))], {}),
        (heads()[:2], {}),
        ([*heads()[:2], heads()[0]], {}),
        ([np.array([[FACE]])], {"channels": 4}),
    ],
    ids=["another layout", "two heads", "two heads of a stride", "four channels"],
)
def test_another_graph_is_refused(outputs, options, tmp_path):
    with pytest.raises(CheckpointError, match="YOLOv5-face"):
        make_detector("yolov5", save(tmp_path / "net.onnx", outputs, **options))


def test_no_graph_and_no_file(tmp_path, monkeypatch):
    (tmp_path / "net.onnx").write_bytes(b"no graph")
    with pytest.raises(CorruptWeightError, match="cannot be read as an ONNX graph"):
        make_detector("yolov5", tmp_path / "net.onnx")
    with pytest.raises(MissingWeightError):
        make_detector("yolov5", tmp_path / "none.onnx")
    with pytest.raises(ConfigError, match=r"path of a YOLOv5-face \.onnx file"):
        make_detector("yolov5")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"musetalk_enhance\[onnx\]"):
        make_detector("yolov5", save(tmp_path / "net.onnx", [(1, 6, 16)]))


def test_a_failing_graph_is_a_typed_error(tmp_path, monkeypatch):
    graph = YOLOv5Graph(save(tmp_path / "net.onnx", [np.array([[FACE]])]))
    graph._session = None
    with pytest.raises(RestorerError, match="YOLOv5-face failed"):
        graph.run(np.zeros((64, 64, 3), np.uint8), 0.5)
