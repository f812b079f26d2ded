"""Whole pictures: every face is restored and lands where it was; what fails costs one face or one
picture."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from musetalk_enhance.errors import ConfigError, OutOfMemoryError, RestorerError
from musetalk_enhance.faces.detect import FFHQ_512, Face, FaceDetector, WholeImage, YuNet
from musetalk_enhance.faces.rotated import RotatedFaces
from musetalk_enhance.jobs import image_restorer
from musetalk_enhance.jobs.image_restorer import (
    NOT_ALIGNED,
    NOT_CENTER,
    NOT_SELECTED,
    RESTORED,
    TOO_SMALL,
    PictureRestorer,
)
from musetalk_enhance.pipeline.stability import sharpness

from .conftest import RECORD

ALIGNED = replace(RECORD, input_size=512, output_size=512)
YUNET = "face_detection_yunet_2023mar.onnx"
ANIMALS = ("s23", "s25", "s30", "s31", "s40", "s41")


class Given(FaceDetector):
    """Says what it was told, for each size of picture."""

    def __init__(self, **by_height):
        self.by_height = {int(name[1:]): faces for name, faces in by_height.items()}

    def detect(self, picture_bgr):
        found = self.by_height.get(picture_bgr.shape[0], [])
        if isinstance(found, Exception):
            raise found
        return found


def face(x: float, y: float, side: float, score: float = 0.9) -> Face:
    """A face whose template is a square of `side`, its left upper corner at x, y; the box is its
    middle half."""
    box = np.array((x + side / 4, y + side / 4, x + side * 3 / 4, y + side * 3 / 4))
    return Face(box, (FFHQ_512 * (side / 512) + (x, y)).astype(np.float32), score)


def brighter(faces: torch.Tensor) -> torch.Tensor:
    return faces + 40 / 255


def marking(faces: torch.Tensor) -> torch.Tensor:
    """A round mark at each landmark of the template."""
    y, x = torch.meshgrid(torch.arange(512.0) + 0.5, torch.arange(512.0) + 0.5, indexing="ij")
    marks = torch.zeros(512, 512)
    for px, py in FFHQ_512:
        marks = torch.maximum(marks, torch.exp(-((x - px) ** 2 + (y - py) ** 2) / 72))
    return faces + marks * (0.6 - 1.2 * (faces > 0.5))  # darker where it is bright


def grey(height: int = 300, width: int = 600) -> np.ndarray:
    return np.full((height, width, 3), 100, np.uint8)


@pytest.fixture
def make(make_enhancer):
    def make(detector, function=brighter, enhancer=None, **options) -> PictureRestorer:
        return PictureRestorer(
            make_enhancer(function, ALIGNED, **(enhancer or {})), detector, **options
        )

    return make


@pytest.fixture(scope="session")
def portraits(shared) -> dict[str, np.ndarray]:
    return {
        path.stem: cv2.imread(str(path))
        for path in sorted((shared / "data" / "portraits").glob("*.jpg"))
    }


@pytest.fixture(scope="session")
def yunet(shared) -> YuNet:
    return YuNet(shared / "weights" / YUNET, max_side=1280)


def to_picture(landmarks: np.ndarray) -> np.ndarray:
    """Where the template's landmarks lie by the similarity that brings them nearest: plain linear
    least squares."""
    x, y = FFHQ_512.T
    zero, one = np.zeros(5), np.ones(5)
    points = np.asarray(landmarks, np.float64)
    rows = np.concatenate(
        (
            np.column_stack((points[:, 0], -points[:, 1], one, zero)),
            np.column_stack((points[:, 1], points[:, 0], zero, one)),
        )
    )
    a, b, c, d = np.linalg.lstsq(rows, np.concatenate((x, y)), rcond=None)[0]
    return (FFHQ_512 - (c, d)) @ np.linalg.inv(np.array([(a, -b), (b, a)])).T


@pytest.mark.shared
def test_every_face_of_the_portraits_lands_where_it_was(make, portraits, yunet):
    """The bar: faces over 64 px are restored, the marks that the network painted lie on the
    landmarks, and nothing else of the picture changed. Of animals, landmarks may fit no face."""
    found = make(yunet, marking).restore(list(portraits.values()))
    counted, pictures, worst = 0, 0, 0.0
    for (name, before), after in zip(portraits.items(), found, strict=True):
        faces = RotatedFaces(yunet).detect(before)
        states = [RESTORED if one.aligned else NOT_ALIGNED for one in faces]
        assert [note.state for note in after.faces] == states, name
        assert name in ANIMALS or all(one.aligned for one in faces)
        faces = [one for one in faces if one.aligned]
        large = [one for one in faces if max(one.size_wh) > 64]
        change = np.abs(after.bgr.astype(int) - before).max(axis=2)
        left = change.copy()
        for one in faces:
            off, count = landed(change, left, to_picture(one.landmarks))
            worst, counted = max(worst, off), counted + count
        pictures += bool(large)
        assert not left.any(), name
    print(f"{counted} marks in {pictures} pictures, {worst:.2f} px at worst")
    assert pictures >= 14 and counted >= 60 and worst < 0.5


def landed(change: np.ndarray, left: np.ndarray, places: np.ndarray) -> tuple[float, int]:
    """How far marks at most landed from their places, and how many lie in the picture; they are
    taken off `left`."""
    side = 512 * np.linalg.norm(places[1] - places[0]) / np.linalg.norm(FFHQ_512[1] - FFHQ_512[0])
    reach, worst, count = 30 * side / 512 + 2, 0.0, 0
    for px, py in places:
        y, x = np.mgrid[: change.shape[0], : change.shape[1]][
            :, max(0, int(py - reach)) :, max(0, int(px - reach)) :
        ]
        y, x = (part[: int(2 * reach) + 3, : int(2 * reach) + 3] for part in (y, x))
        near = np.hypot(x + 0.5 - px, y + 0.5 - py) < reach
        weight = np.where(near, change[y, x], 0)
        left[y[near], x[near]] = 0
        if min(px, py, change.shape[1] - px, change.shape[0] - py) > reach:
            middle = (
                ((x + 0.5) * weight).sum() / weight.sum(),
                ((y + 0.5) * weight).sum() / weight.sum(),
            )
            worst, count = max(worst, np.hypot(middle[0] - px, middle[1] - py)), count + 1
    return worst, count


@pytest.mark.shared
@pytest.mark.parametrize("upscale", [1, 2])
def test_a_network_that_changes_nothing_changes_no_portrait(make, portraits, yunet, upscale):
    some = {name: portraits[name] for name in ("s0", "s10", "s22", "s31")}
    found = make(yunet, None, upscale=upscale).restore(list(some.values()))
    for before, after in zip(some.values(), found, strict=True):
        assert not after.restored and {note.state for note in after.faces} == {"unchanged"}
        large = cv2.resize(before, None, fx=upscale, fy=upscale, interpolation=cv2.INTER_LANCZOS4)
        assert np.array_equal(after.bgr, large if upscale > 1 else before)


@pytest.mark.shared
def test_several_faces_in_one_picture(make, portraits, yunet):
    some = [
        cv2.resize(portraits[name], (400, 400), interpolation=cv2.INTER_AREA)
        for name in ("s5", "s6", "s7")
    ]
    together = np.hstack(some)
    after = make(yunet).restore([together])[0]
    assert after.restored == 3
    middles = sorted((one.box_xyxy[0] + one.box_xyxy[2]) / 2 for one in after.faces)
    assert [int(middle // 400) for middle in middles] == [0, 1, 2]
    for at in range(3):
        part = (
            after.bgr[150:250, 400 * at + 150 : 400 * at + 250].astype(int)
            - together[150:250, 400 * at + 150 : 400 * at + 250]
        )
        assert np.median(part) > 20


def test_faces_of_many_pictures_run_together_and_come_back_to_their_own(make, make_enhancer):
    batches = []

    def seen(faces):
        batches.append(len(faces))
        return brighter(faces)

    detector = Given(h300=[face(20, 30, 200), face(350, 40, 160)], h301=[face(100, 50, 200)])
    restorer = make(detector, seen, {"batch_size": 8})
    found = restorer.restore([grey(), grey(299), grey(301), grey()])
    assert [one.restored for one in found] == [2, 0, 1, 2] and batches == [5]
    assert (
        found[0].bgr[130, 120].tolist() == [140] * 3
        and found[0].bgr[120, 430].tolist() == [140] * 3
    )
    assert (
        np.array_equal(found[1].bgr, grey(299)) and found[1].faces == () and found[1].error is None
    )
    assert (
        found[2].bgr[150, 200].tolist() == [140] * 3
        and found[2].bgr[120, 430].tolist() == [100] * 3
    )
    assert np.array_equal(found[0].bgr, found[3].bgr)


def test_more_faces_than_go_at_once(make):
    crowd = [face(10 + 36 * (index % 12), 10 + 40 * (index // 12), 36) for index in range(70)]
    after = make(Given(h300=crowd)).restore([grey()])[0]
    assert after.restored == 70


def test_pictures_are_not_changed_and_the_same_bits_come_again(make, rng):
    picture = rng.integers(0, 256, (300, 600, 3), np.uint8)
    given = picture.copy()
    detector = Given(h300=[face(20, 30, 200), face(120, 40, 160)])
    first, second = make(detector).restore([picture, picture])
    assert np.array_equal(picture, given) and np.array_equal(first.bgr, second.bgr)
    assert not np.shares_memory(first.bgr, picture) and np.array_equal(
        make(detector).restore([picture])[0].bgr, first.bgr
    )
    assert not np.shares_memory(make(Given()).restore([picture])[0].bgr, picture)


def test_small_faces_are_left(make):
    detector = Given(h300=[face(20, 30, 200), face(350, 40, 100)])
    after = make(detector, min_face=60).restore([grey()])[0]
    assert [note.state for note in after.faces] == [RESTORED, TOO_SMALL]
    assert (
        (after.bgr[:, 300:] == 100).all() and after.faces[1].strength == 0 and after.restored == 1
    )


def test_only_the_face_nearest_to_the_middle(make):
    detector = Given(h300=[face(20, 30, 200), face(240, 100, 100)])
    after = make(detector, only_center_face=True).restore([grey()])[0]
    assert [note.state for note in after.faces] == [NOT_CENTER, RESTORED]
    assert after.bgr[150, 290, 0] == 140 and (after.bgr[:, :230] == 100).all()


def test_the_center_face_may_be_too_small(make):
    detector = Given(h300=[face(20, 30, 200), face(240, 100, 100)])
    after = make(detector, only_center_face=True, min_face=70).restore([grey()])[0]
    assert [note.state for note in after.faces] == [NOT_CENTER, TOO_SMALL]
    assert np.array_equal(after.bgr, grey())


class Reference:
    """In place of the photos' faces: takes every face whose box is larger than 80 px for them."""

    def is_same_person(self, image_bgr, face):
        return face.size_wh[0] > 80


def test_only_people_on_the_photos(make):
    detector = Given(h300=[face(20, 30, 200), face(350, 40, 100), face(350, 200, 20)])
    after = make(detector, min_face=30, reference=Reference()).restore([grey()])[0]
    assert [note.state for note in after.faces] == [RESTORED, NOT_SELECTED, TOO_SMALL]
    assert (after.bgr[:, 300:] == 100).all() and after.bgr[150, 100, 0] == 140


def test_a_failure_of_the_recognizer_is_listed(make):
    class Failing:
        def is_same_person(self, image_bgr, face):
            raise RestorerError("SFace failed: no reason")

    after = make(Given(h300=[face(20, 30, 200)]), reference=Failing()).restore([grey()])[0]
    assert after.error == "SFace failed: no reason" and np.array_equal(after.bgr, grey())


def test_a_face_that_cannot_be_aligned_is_listed(make):
    lost = Face(np.array((0.0, 0, 90, 90)), np.full((5, 2), 45, np.float32), 0.9)
    after = make(Given(h300=[face(20, 30, 200), lost])).restore([grey()])[0]
    assert [note.state for note in after.faces] == [RESTORED, "cannot be aligned: collapsed"]
    assert after.error is None


def test_a_face_that_is_sharp_already_is_left(make, monkeypatch):
    monkeypatch.setattr(sharpness, "needed", lambda ratio: torch.zeros_like(ratio))
    after = make(Given(h300=[face(20, 30, 200)]), enhancer={"sharpness_gate": True}).restore(
        [grey()]
    )[0]
    assert [note.state for note in after.faces] == ["sharp already"] and after.faces[
        0
    ].strength == 0
    assert after.restored == 0 and after.error is None and np.array_equal(after.bgr, grey())


def test_notes_are_plain_values(make):
    note = make(Given(h300=[face(20, 30, 200, 0.98765)])).restore([grey()])[0].faces[0]
    assert note.as_dict() == {
        "box_xyxy": [70.0, 80.0, 170.0, 180.0],
        "score": 0.9877,
        "state": RESTORED,
        "strength": 1.0,
        "lowered": None,
        "change": 40.0,
    }


def test_a_network_that_fails_costs_its_faces_only(make):
    """NaN for bright faces: theirs are listed, everything else is restored."""

    def nan_where_bright(faces):
        return torch.where(faces.mean((1, 2, 3), keepdim=True) > 0.5, torch.nan, brighter(faces))

    bright = np.full((301, 600, 3), 200, np.uint8)
    mixed = grey(302)
    mixed[:, 300:] = 200
    detector = Given(
        h300=[face(20, 30, 200)],
        h301=[face(20, 30, 200)],
        h302=[face(20, 30, 200), face(350, 40, 160)],
    )
    found = make(detector, nan_where_bright).restore([grey(), bright, mixed])
    assert [one.restored for one in found] == [1, 0, 1]
    assert (
        found[1].faces[0].state == "handed back: restorer: RestorerError"
        and found[1].faces[0].strength == 0
    )
    assert found[0].error is None and "1 of 1 faces: handed back" in found[1].error
    assert "1 of 2 faces" in found[2].error
    assert np.array_equal(found[1].bgr, bright) and np.array_equal(
        found[2].bgr[:, 300:], mixed[:, 300:]
    )
    assert found[2].bgr[130, 120, 0] == 140


@pytest.mark.parametrize(
    "error", [RestorerError("the detector broke"), ValueError("some plug-in's")]
)
def test_a_detector_that_raises_costs_one_picture(make, error):
    found = make(Given(h300=[face(20, 30, 200)], h301=error), upscale=2).restore(
        [grey(301), grey()]
    )
    assert found[0].error and str(error) in found[0].error and found[0].faces == ()
    assert np.array_equal(found[0].bgr, grey(602, 1200)) and found[1].restored == 1


@pytest.mark.parametrize("what", ["detector", "network", "parser", "background"])
def test_on_error_raise_raises(make, what):
    class Broken:
        def mask(self, faces_rgb):
            raise RestorerError("broken parser")

        def enlarge(self, picture_bgr, scale):
            raise RestorerError("broken background")

    def fail(faces):
        raise RuntimeError("broken network")

    faces = RestorerError("broken detector") if what == "detector" else [face(20, 30, 200)]
    options = {what: Broken()} if what in ("parser", "background") else {}
    function = fail if what == "network" else brighter
    with pytest.raises(RestorerError, match=f"broken {what}"):
        make(Given(h300=faces), function, {"on_error": "raise"}, **options).restore([grey()])


class HalfMask:
    """The left half of the template is face; fails for bright faces."""

    def __init__(self):
        self.seen = []

    def mask(self, faces_rgb):
        self.seen.append(faces_rgb)
        if float(faces_rgb.mean()) > 0.7:
            raise OutOfMemoryError("no room")
        mask = torch.zeros(1, 1, 512, 512)
        mask[..., :256] = 1
        return mask


def test_a_parser_limits_what_is_pasted(make):
    parser = HalfMask()
    picture = grey()
    picture[..., 2] = 60  # red: 100 of brightness comes on top
    after = make(Given(h300=[face(20, 30, 200)]), parser=parser).restore([picture])[0]
    assert after.bgr[130, 70, 0] == 140 and (after.bgr[:, 122:] == picture[:, 122:]).all()
    shown = parser.seen[0]
    assert shown.shape == (1, 3, 512, 512) and shown.dtype == torch.float32
    assert shown[0, :, 256, 256].mul(255).round().tolist() == [100, 140, 140]  # RGB, restored


def test_a_parser_that_fails_costs_one_face(make):
    picture = grey()
    picture[:, 300:] = 200
    detector = Given(h300=[face(20, 30, 200), face(350, 40, 160)])
    after = make(detector, parser=HalfMask()).restore([picture])[0]
    assert [note.state for note in after.faces] == [
        RESTORED,
        "failed: no room",
    ] and "1 of 2 faces" in after.error
    assert np.array_equal(after.bgr[:, 300:], picture[:, 300:])


class Darker:
    """Enlarges by repetition and takes 50 off; fails for one size."""

    def enlarge(self, picture_bgr, scale):
        if picture_bgr.shape[0] == 301:
            raise OutOfMemoryError("Real-ESRGAN failed: no room")
        return picture_bgr.repeat(scale, 0).repeat(scale, 1) - 50


@pytest.mark.parametrize("upscale", [1, 2, 4])
def test_a_background_is_restored_and_faces_take_its_place(make, upscale):
    after = make(Given(h300=[face(20, 30, 200)]), background=Darker(), upscale=upscale).restore(
        [grey()]
    )[0]
    assert after.bgr.shape == (300 * upscale, 600 * upscale, 3)
    assert (
        after.bgr[130 * upscale, 120 * upscale, 0] == 140
    )  # the face itself, not the difference on a darker ground
    assert (after.bgr[:, 300 * upscale :] == 50).all()


def test_a_background_that_fails_costs_one_picture(make):
    detector = Given(h300=[face(20, 30, 200)], h301=[face(20, 30, 200)])
    found = make(detector, background=Darker(), upscale=2).restore([grey(301), grey()])
    assert "no room" in found[0].error and found[0].restored == 0
    assert np.array_equal(found[0].bgr, grey(602, 1200)) and found[1].restored == 1


@pytest.mark.parametrize("upscale", [1, 1.5, 2, 4])
@pytest.mark.parametrize("size", [(300, 600), (301, 133)])
def test_sizes(make, upscale, size):
    after = make(
        Given(h300=[face(20, 30, 200)], h301=[face(10, 30, 100)]), upscale=upscale
    ).restore([grey(*size)])[0]
    assert (
        after.bgr.shape == (round(size[0] * upscale), round(size[1] * upscale), 3)
        and after.restored == 1
    )


@pytest.mark.parametrize("upscale", [1, 2])
def test_whole_pictures_are_face_crops(make, upscale):
    restorer = make(
        WholeImage(), brighter, {"output_size": "upscale", "upscale": upscale}, upscale=upscale
    )
    found = restorer.restore([grey(64, 64), grey(3, 5), grey(40, 64)])
    assert [one.bgr.shape[:2] for one in found] == [
        (h * upscale, w * upscale) for h, w in ((64, 64), (3, 5), (40, 64))
    ]
    assert (
        [one.restored for one in found] == [1, 0, 1]
        and (found[0].bgr == 140).all()
        and (found[1].bgr == 100).all()
    )
    assert found[1].faces[0].state.startswith("handed back: ") and found[1].error is None
    assert found[0].faces[0].box_xyxy == (0, 0, 64, 64)
    assert restorer.restore([]) == []


def test_a_whole_picture_on_which_the_network_fails(make):
    options = {"output_size": "upscale", "upscale": 2}
    found = make(WholeImage(), lambda faces: faces * torch.nan, options, upscale=2).restore(
        [grey(64, 64)]
    )[0]
    assert "1 of 1 faces" in found.error and np.array_equal(found.bgr, grey(128, 128))


def test_no_pictures_at_all(make):
    assert make(Given()).restore([]) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"upscale": 0.5}, "upscale"),
        ({"upscale": float("nan")}, "upscale"),
        ({"min_face": -1}, "min_face"),
    ],
)
def test_impossible_values(make, options, said):
    with pytest.raises(ConfigError, match=said):
        make(Given(), None, **options)


def test_the_size_does_not_depend_on_the_enhancers_options(make):
    """One enhancer serves callers with different scales."""
    options = {"output_size": "native", "upscale": 4}
    for detector in (Given(), WholeImage()):
        (image,) = make(detector, brighter, options, upscale=2).restore([grey(64, 64)])
        assert image.bgr.shape == (128, 128, 3)


def test_a_callers_own_run_gets_every_request(make, make_enhancer):
    requests = []
    enhancer = make_enhancer(brighter, ALIGNED)

    def run(request):
        requests.append(request)
        return enhancer.engine.restore([request])[0]

    (image,) = make(WholeImage(), run=run).restore([grey(64, 64)])
    assert len(requests) == 1 and (image.bgr == 140).all()


def test_old_names_work_for_one_release(make):
    restorer = make(Given())
    items = restorer.restore_faces(restorer.find([grey()]))
    with pytest.warns(DeprecationWarning, match="paste"):
        (image,) = restorer.lay(items)
    with pytest.warns(DeprecationWarning, match="RestoredImage"):
        assert image_restorer.RestoredPicture is type(image)


def painting(faces: torch.Tensor) -> torch.Tensor:
    """Reddens whatever it sees."""
    return faces + torch.tensor([80.0, 0.0, 20.0])[:, None, None] / 255


@pytest.mark.parametrize("whole", [True, False])
def test_no_color_is_added_where_there_is_none(make, rng, whole):
    side = 300
    gray = cv2.resize(rng.integers(40, 160, (9, 9, 1), np.uint8), (side, side))
    image = np.repeat(gray[..., None], 3, axis=2)
    image[5, 5] = (10, 20, 200)  # a single pixel of color is dirt
    options = {"enhancer": {"output_size": "upscale", "upscale": 1}} if whole else {}
    detector = WholeImage() if whole else Given(h300=[face(0, 0, side)])
    one = make(detector, painting, **options).restore([image])[0]
    assert one.restored == 1
    inside = one.bgr[20:-20, 20:-20].astype(int)
    assert np.ptp(inside, axis=2).max() == 0 and inside.mean() - image[20:-20, 20:-20].mean() > 10
    tinted = image.copy()
    tinted[..., 0] += 20
    one = make(detector, painting, **options).restore([tinted])[0]
    assert np.ptp(one.bgr[20:-20, 20:-20].astype(int) - tinted[20:-20, 20:-20], axis=2).min() > 40
