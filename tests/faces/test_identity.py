"""SFace through OpenCV, with a graph made here in place of its weight, and reference photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from musetalk_enhance.errors import (
    CheckpointError,
    ConfigError,
    FrameError,
    MissingWeightError,
)
from musetalk_enhance.faces.detect import FFHQ_512, Face, WholeImage
from musetalk_enhance.faces.identity import SAME_PERSON, ReferenceFaces, SFace

ARCFACE_112 = np.array(
    [
        (38.2946, 51.6963),
        (73.5318, 51.5014),
        (56.0252, 71.7366),
        (41.5493, 92.3655),
        (70.7299, 92.2041),
    ]
)
"""The template that SFace's crops are aligned to."""


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Path:
    """An ONNX file with SFace's input and output: 112x112 in a grid of 8x8 mean colors, 192."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node(
            "AveragePool", ["data"], ["grid"], kernel_shape=[14, 14], strides=[14, 14]
        ),
        helper.make_node("Flatten", ["grid"], ["fc1"]),
    ]
    data = helper.make_tensor_value_info("data", kind, [1, 3, 112, 112])
    out = helper.make_tensor_value_info("fc1", kind, [1, 192])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [data], [out]),
        opset_imports=[helper.make_opsetid("", 11)],
        ir_version=7,
    )
    path = tmp_path_factory.mktemp("sface") / "sface.onnx"
    onnx.save(model, str(path))
    return path


def person(seed: int, size: int = 112) -> np.ndarray:
    """A picture of 8x8 random colors on a black border, BGR uint8."""
    grid = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return grid.repeat(size // 8, 0).repeat(size // 8, 1)


def face_in(scale: float = 1.0, offset=(0.0, 0.0)) -> Face:
    points = ARCFACE_112 * scale + offset
    box = np.array((*offset, offset[0] + 112 * scale, offset[1] + 112 * scale))
    return Face(box, points.astype(np.float32), 0.9)


def test_faces_are_aligned_by_their_landmarks(graph):
    net, picture = SFace(graph), person(1)
    expected = net.embed(picture, face_in())
    assert expected.shape == (192,) and expected.dtype == np.float32
    assert abs(np.linalg.norm(expected) - 1) < 1e-5
    large = np.zeros((400, 400, 3), np.uint8)
    large[100:324, 60:284] = person(1, 224)
    assert expected @ net.embed(large, face_in(2.0, (60, 100))) > 0.995
    assert expected @ net.embed(large, face_in(2.0, (160, 100))) < 0.9
    assert np.array_equal(net.embed(picture[:, ::-1][:, ::-1], face_in()), expected)


def test_colors_are_in_the_order_of_the_network(graph):
    """It wants RGB: the first 64 values are of the red channel."""
    red = np.zeros((112, 112, 3), np.uint8)
    red[..., 2] = 200
    embedding = SFace(graph).embed(red, face_in())
    assert embedding[:64].min() > 0.1 and np.abs(embedding[64:]).max() < 1e-6


def test_a_missing_weight_names_the_command():
    with pytest.raises(MissingWeightError, match="musetalk-enhance weights fetch sface"):
        SFace()


def test_a_network_that_cannot_run_is_an_error(graph, tmp_path):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(graph))
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, str(tmp_path / "other.onnx"))
    with pytest.raises(CheckpointError, match="cannot run as SFace"):
        SFace(tmp_path / "other.onnx")


def test_an_impossible_image_is_an_error(graph):
    with pytest.raises(FrameError):
        SFace(graph).embed(np.zeros((8, 8), np.uint8), face_in())


class Direction:
    """A recognizer whose embedding is the direction that the first pixel states, in degrees."""

    def embed(self, image_bgr, face):
        angle = np.radians(float(image_bgr[0, 0, 0]))
        return np.array((np.cos(angle), np.sin(angle)), np.float32)


def stated(degrees: int) -> np.ndarray:
    return np.full((32, 32, 3), degrees, np.uint8)


FACE = Face(np.array((0.0, 0, 32, 32)), (FFHQ_512 / 16).astype(np.float32), 0.9)


def test_the_most_similar_photo_counts():
    photos = {"a.jpg": stated(0), "b.jpg": stated(90)}
    reference = ReferenceFaces(Direction(), WholeImage(), photos)
    assert reference.similarity(stated(80), FACE) == pytest.approx(np.cos(np.radians(10)))
    assert reference.similarity(stated(180), FACE) == pytest.approx(0, abs=1e-6)
    limit = int(np.degrees(np.arccos(SAME_PERSON)))
    single = ReferenceFaces(Direction(), WholeImage(), {"a.jpg": stated(0)})
    assert single.is_same_person(stated(limit - 1), FACE)
    assert not single.is_same_person(stated(limit + 1), FACE)


@pytest.mark.parametrize("count", [0, 2])
def test_a_photo_needs_one_face(count):
    class Several(WholeImage):
        def detect(self, image_bgr):
            return super().detect(image_bgr) * count

    with pytest.raises(ConfigError, match=f"face: invalid value 'a.jpg'.*finds {count}"):
        ReferenceFaces(Direction(), Several(), {"a.jpg": stated(0)})


def test_a_face_whose_landmarks_do_not_fit_is_none():
    class Crooked(WholeImage):
        def detect(self, image_bgr):
            return [Face(FACE.box_xyxy, FACE.landmarks, 0.9, aligned=False)]

    with pytest.raises(ConfigError, match="finds 0"):
        ReferenceFaces(Direction(), Crooked(), {"a.jpg": stated(0)})
