"""Faces are found at any size, also where they fill the picture, and their weights are treated as
every weight."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from musetalk_enhance.errors import (
    CheckpointError,
    ConfigError,
    FrameError,
    MissingDependencyError,
    MissingWeightError,
    UntrustedWeightError,
)
from musetalk_enhance.faces.detect import (
    FFHQ_512,
    NetworkDetector,
    RetinaFace,
    YuNet,
    make_detector,
)

NO_FACE = {"s40", "s41"}  # a drawing and a cat
SMALL = "detection_mobilenet0.25_Final.pth"
YUNET = "face_detection_yunet_2023mar.onnx"


class Squares(NetworkDetector):
    """Finds white squares as faces, those that keep `room` pixels to the edge; remembers the sizes
    it saw."""

    def __init__(self, max_side=None, room=0, score=0.9, min_face=0):
        super().__init__(max_side, 0.5, min_face)
        self.room, self.score, self.seen = room, score, []

    def _find(self, image_bgr, threshold):
        self.seen.append(image_bgr.shape[:2])
        mask = (image_bgr[..., 0] > 180).astype(np.uint8)
        rows = []
        for x, y, w, h, _ in cv2.connectedComponentsWithStats(mask)[2][1:]:
            inside = min(x, y, mask.shape[1] - x - w, mask.shape[0] - y - h) >= self.room
            middle = (x + w / 2, y + h / 2)
            rows += [[x, y, x + w, y + h, self.score, *middle * 5]] if inside else []
        return np.array(rows).reshape(-1, 15)


def squares(*boxes_xyxy, size_hw=(200, 300)):
    picture = np.zeros((*size_hw, 3), np.uint8)
    for x1, y1, x2, y2 in boxes_xyxy:
        picture[y1:y2, x1:x2] = 255
    return picture


def test_faces_come_largest_first_in_pixels_of_the_picture():
    faces = Squares().detect(squares((10, 20, 40, 60), (100, 50, 200, 150)))
    assert [face.box_xyxy.tolist() for face in faces] == [[100, 50, 200, 150], [10, 20, 40, 60]]
    assert (
        faces[0].landmarks.dtype == np.float32 and faces[0].landmarks.tolist() == [[150, 100]] * 5
    )
    assert faces[0].size_wh == (100, 100)


def test_a_large_picture_is_reduced_and_the_answer_enlarged():
    detector = Squares(max_side=160)
    face = detector.detect(squares((600, 320, 1000, 720), size_hw=(960, 1600)))[0]
    assert detector.seen == [(96, 160)]
    assert np.abs(face.box_xyxy - (600, 320, 1000, 720)).max() <= 5
    assert np.abs(face.landmarks - (800, 520)).max() <= 5


def test_a_small_picture_is_not_enlarged():
    detector = Squares(max_side=640)
    detector.detect(squares((10, 20, 40, 60)))
    assert detector.seen == [(200, 300)]


def test_a_face_that_fills_the_picture_is_found_within_a_border():
    detector = Squares(room=10)
    face = detector.detect(squares((4, 2, 250, 253), size_hw=(256, 256)))[0]
    assert detector.seen == [(256, 256), (384, 384)]
    assert face.box_xyxy.tolist() == [4, 2, 250, 253]
    assert face.landmarks[0].tolist() == [127, 127.5]


@pytest.mark.parametrize(
    ("score", "boxes", "looks"),
    [
        (0.95, [(50, 50, 200, 200)], 1),
        (0.85, [(50, 50, 200, 200)], 2),
        (0.95, [(14, 50, 200, 200)], 2),
        (0.95, [(50, 50, 200, 200), (210, 10, 220, 20)], 2),
    ],
    ids=["sure and with room", "not sure", "no room", "not alone"],
)
def test_a_second_look_only_where_the_first_leaves_a_doubt(score, boxes, looks):
    detector = Squares(score=score, min_face=32)
    faces = detector.detect(squares(*boxes, size_hw=(256, 256)))
    assert len(detector.seen) == looks and len(faces) == len(boxes)


def test_a_large_face_of_a_film_is_always_looked_at_in_the_same_way():
    """Its score and its room hover about any limit from frame to frame: that must not move it."""
    for score, left in ((0.95, 50), (0.85, 50), (0.95, 14)):
        detector = Squares(score=score)
        assert len(detector.detect(squares((left, 50, left + 150, 200), size_hw=(256, 256)))) == 1
        assert len(detector.seen) == 2


def test_a_coarse_look_is_held_to_the_same_score():
    class Dim(Squares):
        def __init__(self, threshold):
            NetworkDetector.__init__(self, None, threshold, 32)
            self.room, self.score, self.seen = 0, 0.92, []

    picture = squares((100, 100, 300, 300), size_hw=(512, 512))
    assert len(Dim(0.9).detect(picture)) == 1 and Dim(0.95).detect(picture) == []


@pytest.mark.parametrize(
    ("least", "score", "boxes", "sizes"),
    [
        (32, 0.95, [(100, 100, 300, 300)], [384]),
        (16, 0.95, [(100, 100, 300, 300)], [512]),  # a face of 16 pixels needs 768
        (0, 0.95, [(100, 100, 300, 300)], [512]),
        (32, 0.85, [(100, 100, 300, 300)], [384, 512]),
        (32, 0.95, [(100, 100, 300, 300), (400, 400, 440, 440)], [384, 512]),
        (32, 0.95, [(100, 100, 150, 150)], [384, 512]),
        (32, 0.95, [], [384, 512, 384]),
        (32, 0.95, [(10, 100, 290, 400)], [384, 384]),
    ],
    ids=[
        "plain",
        "small faces count",
        "no hurry",
        "not sure",
        "not alone",
        "small",
        "none",
        "no room",
    ],
)
def test_a_coarse_look_counts_where_it_leaves_no_doubt(least, score, boxes, sizes):
    detector = Squares(score=score, min_face=least)
    faces = detector.detect(squares(*boxes, size_hw=(512, 512)))
    assert [max(size) for size in detector.seen] == sizes and len(faces) == len(boxes)
    for face, box in zip(faces, boxes, strict=True):
        assert np.abs(face.box_xyxy - box).max() <= 3


def test_what_might_be_a_face_calls_for_a_closer_look():
    class Hinted(Squares):
        def _find(self, image_bgr, threshold):
            rows = super()._find(image_bgr, threshold)
            if len(rows) == 2:
                rows[rows[:, 0].argmax(), 4] = 0.4  # under the threshold, over a hint
            return rows[rows[:, 4] >= threshold]

    detector = Hinted(score=0.95, min_face=32)
    faces = detector.detect(squares((100, 100, 300, 300), (400, 400, 440, 440), size_hw=(512, 512)))
    assert detector.seen == [(384, 384), (512, 512)] and len(faces) == 1


@pytest.mark.shared
def test_a_coarse_look_loses_no_face(shared, detectors):
    quick = make_detector("yunet", shared / "weights" / YUNET, max_side=1280, min_face=32)
    slow = make_detector("yunet", shared / "weights" / YUNET, max_side=1280)
    for name, picture in [*portraits(shared), *clip_frames(shared)]:
        found, expected = (
            quick.detect(picture),
            [one for one in slow.detect(picture) if max(one.size_wh) >= 32],
        )
        for face in expected:
            assert min(distance(one, face) for one in found) < 0.08, name


def test_a_large_crop_is_reduced_before_the_border():
    detector = Squares(room=10)
    face = detector.detect(squares((20, 20, 980, 980), size_hw=(1024, 1024)))[0]
    assert detector.seen == [(1024, 1024), (384, 384)]
    assert np.abs(face.box_xyxy - (20, 20, 980, 980)).max() <= 4


def test_what_was_found_first_stays_where_the_border_finds_nothing():
    class Once(Squares):
        def _find(self, image_bgr, threshold):
            return super()._find(image_bgr, threshold) if not self.seen else np.empty((0, 15))

    assert len(Once().detect(squares((4, 2, 250, 253), size_hw=(256, 256)))) == 1


def test_small_faces_beside_a_large_one_are_kept():
    picture = squares((100, 20, 280, 180), (20, 90, 40, 110), size_hw=(200, 300))
    faces = Squares().detect(picture)
    assert np.abs(faces[0].box_xyxy - (100, 20, 280, 180)).max() <= 2  # looked at in another size
    assert [face.box_xyxy.tolist() for face in faces[1:]] == [[20, 90, 40, 110]]


def test_no_face():
    assert Squares().detect(squares()) == []


def test_a_view_with_negative_strides_is_taken_and_not_changed():
    picture = squares((100, 50, 200, 150))[::-1, :, ::-1]
    before = picture.copy()
    assert Squares().detect(picture)[0].box_xyxy.tolist() == [100, 50, 200, 150]
    assert (picture == before).all()


def test_answers_with_nan_or_a_low_score_are_dropped():
    class Odd(Squares):
        def _find(self, image_bgr, threshold):
            row = np.array([10, 10, 20, 20, 0.9, *[15] * 10])
            return np.stack((row, row * np.nan, np.where(np.arange(15) == 4, 0.4, row)))

    assert len(Odd().detect(squares())) == 1


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (np.zeros((8, 8, 3), np.float32), "dtype"),
        ([[0]], "dtype"),
        (np.zeros((8, 8), np.uint8), "shape"),
        (np.zeros((8, 8, 4), np.uint8), "shape"),
        (np.zeros((0, 8, 3), np.uint8), "shape"),
    ],
)
@pytest.mark.parametrize("detector", [Squares(), make_detector("none")], ids=["network", "none"])
def test_something_else_than_a_picture_is_refused(detector, picture, reason):
    with pytest.raises(FrameError) as caught:
        detector.detect(picture)
    assert caught.value.reason == reason


def test_none_takes_the_whole_picture_for_one_face():
    (face,) = make_detector("none").detect(np.zeros((100, 256, 3), np.uint8))
    assert face.box_xyxy.tolist() == [0, 0, 256, 100]
    assert np.allclose(face.landmarks / (256, 100), FFHQ_512 / 512, atol=1e-6)


def test_impossible_options():
    with pytest.raises(ConfigError, match="retinaface-mobile"):
        make_detector("retina")
    with pytest.raises(ConfigError, match="max_side"):
        make_detector("yunet", max_side=10)
    with pytest.raises(ConfigError, match="threshold"):
        make_detector("yunet", threshold=1.5)
    with pytest.raises(ConfigError, match="network"):
        RetinaFace("resnet18")


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("yunet", "YuNet"),
        ("retinaface", "RetinaFace-R50"),
        ("RetinaFace-Mobile", "RetinaFace-mobile0.25"),
    ],
)
def test_a_missing_weight_is_said_before_any_work(name, weight):
    with pytest.raises(MissingWeightError, match=f"musetalk-enhance weights fetch {weight}"):
        make_detector(name)


def test_another_graph_than_yunet_is_refused(tmp_path):
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "other.onnx"
    values = [onnx.helper.make_tensor_value_info(name, 1, [1, 3, 64, 64]) for name in ("a", "b")]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["a"], ["b"])], "g", values[:1], values[1:]
    )
    onnx.save(
        onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
        ),
        path,
    )
    with pytest.raises(CheckpointError, match="YuNet"):
        make_detector("yunet", path)


def test_retinaface_without_facexlib(shared, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "facexlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "facexlib", None)
    with pytest.raises(MissingDependencyError, match=r"musetalk_enhance\[gfpgan\]"):
        make_detector("retinaface-mobile", shared / "weights" / SMALL, trust_unpinned=True)


def test_an_unknown_pickle_is_not_opened(shared):
    with pytest.raises(UntrustedWeightError, match="trust_unpinned"):
        make_detector("retinaface-mobile", shared / "weights" / SMALL)


def test_the_other_network_is_refused(shared):
    pytest.importorskip("facexlib")
    with pytest.raises(CheckpointError, match="RetinaFace resnet50"):
        make_detector("retinaface", shared / "weights" / SMALL, trust_unpinned=True)


@pytest.mark.slow
def test_retinaface_resnet50_is_built_without_a_download(tmp_path, monkeypatch):
    """No published weight is at hand: the official network with random weights goes through the
    loader."""
    import torch

    from musetalk_enhance.restorers.official_stack import import_official

    pytest.importorskip("facexlib")
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("a download"))
    torch.manual_seed(0)
    with pytest.warns(UserWarning):
        net = import_official("facexlib.detection.retinaface").RetinaFace(
            "resnet50", device=torch.device("cpu")
        )
    torch.save(
        {f"module.{name}": value for name, value in net.state_dict().items()}, tmp_path / "r50.pth"
    )
    state = torch.get_rng_state()
    weight = tmp_path / "r50.pth"
    detector = make_detector("retinaface", weight, trust_unpinned=True, max_side=128, threshold=0.6)
    assert torch.equal(torch.get_rng_state(), state)
    picture = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    rows = detector._find(picture, 0.6)
    with torch.no_grad():
        want = net.eval().detect_faces(picture, 0.6)
    assert (
        len(rows) > 3
        and np.shape(want) == rows.shape == (len(rows), 15)
        and np.allclose(rows, want, atol=1e-3)
    )


@pytest.fixture(scope="module")
def detectors(shared):
    """Those that can run here, by name."""
    found = {"yunet": make_detector("yunet", shared / "weights" / YUNET)}
    if importlib.util.find_spec("facexlib"):
        found["retinaface-mobile"] = make_detector(
            "retinaface-mobile", shared / "weights" / SMALL, trust_unpinned=True
        )
    return found


def portraits(shared):
    for path in sorted((shared / "data" / "portraits").glob("*.jpg")):
        if path.stem not in NO_FACE:
            yield path.stem, cv2.imread(str(path))


def clip_frames(shared):
    for path in sorted((shared / "data" / "clips").glob("*.mp4")):
        video = cv2.VideoCapture(str(path))
        video.set(cv2.CAP_PROP_POS_FRAMES, 10)
        yield path.stem, video.read()[1]
        video.release()


def distance(a, b) -> float:
    """Root mean square distance of two sets of landmarks, as a share of the larger side of face
    `b`."""
    return float(np.sqrt(((a.landmarks - b.landmarks) ** 2).sum(1).mean())) / max(b.size_wh)


def upright(landmarks) -> bool:
    left_eye, right_eye, nose, left_mouth, right_mouth = landmarks
    return (
        left_eye[0] < right_eye[0]
        and left_mouth[0] < right_mouth[0]
        and left_eye[1] < nose[1] < left_mouth[1]
    )


@pytest.mark.shared
def test_both_detectors_agree_on_real_pictures(shared, detectors):
    pytest.importorskip("facexlib")
    for name, picture in [*portraits(shared), *clip_frames(shared)]:
        if name == "s30":  # a painting
            continue
        yunet, retina = (detectors[kind].detect(picture) for kind in ("yunet", "retinaface-mobile"))
        assert yunet and retina, name
        assert upright(yunet[0].landmarks) and upright(retina[0].landmarks), name
        assert min(distance(face, yunet[0]) for face in retina) < 0.2, name


@pytest.mark.shared
@pytest.mark.parametrize("side", [256, 512])
@pytest.mark.parametrize("kind", ["yunet", "retinaface-mobile"])
def test_faces_in_tight_crops_are_found_where_they_are(shared, detectors, kind, side):
    """The 256x256 crop of a host, squashed and as soft as a decoder of 96 px leaves it."""
    if kind not in detectors:
        pytest.skip("facexlib is not installed")
    for name, picture in clip_frames(shared):
        face = detectors["yunet"].detect(picture)[0]
        x1, y1, x2, y2 = np.round(face.box_xyxy).astype(int).clip(0)
        soft = cv2.resize(picture[y1:y2, x1:x2], (96, 96), interpolation=cv2.INTER_AREA)
        found = detectors[kind].detect(
            cv2.resize(soft, (side, side), interpolation=cv2.INTER_CUBIC)
        )
        assert found, name
        assert upright(found[0].landmarks), name
        back = found[0].landmarks * ((x2 - x1) / side, (y2 - y1) / side) + (x1, y1)
        error = np.sqrt(((back - face.landmarks) ** 2).sum(1).mean()) / max(face.size_wh)
        assert error < 0.12, f"{name}: {error:.3f}"


@pytest.mark.shared
def test_a_picture_of_a_camera_is_searched_at_the_limit(shared, detectors):
    picture = cv2.imread(str(shared / "data" / "portraits" / "s8.jpg"))
    large = cv2.resize(picture, None, fx=4, fy=4, interpolation=cv2.INTER_LINEAR)
    for detector in detectors.values():
        small, big = detector.detect(picture)[0], detector.detect(large)[0]
        assert np.abs(big.landmarks / 4 - small.landmarks).max() < 0.06 * max(small.size_wh)


@pytest.mark.shared
def test_the_same_picture_gives_the_same_answer(shared, detectors):
    (_, first), (_, second) = list(clip_frames(shared))[:2]
    for detector in detectors.values():
        before = detector.detect(first)[0]
        detector.detect(second[:200, :300])
        again = detector.detect(first)[0]
        assert (before.landmarks == again.landmarks).all() and (
            before.box_xyxy == again.box_xyxy
        ).all()


@pytest.mark.shared
def test_yunet_comes_from_the_cache(shared, own_cache):
    own_cache.mkdir()
    shutil.copy(shared / "weights" / YUNET, own_cache / YUNET)
    assert isinstance(make_detector("yunet"), YuNet)


@pytest.mark.shared
def test_opencv_prints_nothing(shared, capfd):
    make_detector("yunet", shared / "weights" / YUNET).detect(np.zeros((64, 64, 3), np.uint8))
    assert capfd.readouterr() == ("", "")


def test_the_template_is_the_one_of_the_official_stack():
    pytest.importorskip("facexlib")
    from musetalk_enhance.restorers.official_stack import import_official

    module = import_official("facexlib.utils.face_restoration_helper")
    source = Path(module.__file__).read_text(encoding="utf-8")
    assert FFHQ_512.shape == (5, 2)
    assert all(str(value) in source for value in FFHQ_512.ravel())
