"""One segment of a film: what the network made lands on the face, and everything else stays as it
was."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from musetalk_enhance.errors import MediaError, RestorerError
from musetalk_enhance.faces.detect import FFHQ_512, Face, FaceDetector
from musetalk_enhance.faces.identity import ReferenceFaces
from musetalk_enhance.faces.paste import crop_face
from musetalk_enhance.faces.selection import LOOK_AHEAD
from musetalk_enhance.faces.tracks import MAX_MISSED
from musetalk_enhance.jobs import VideoSettings, video_processor
from musetalk_enhance.jobs.manifest import file_digest, outputs_of
from musetalk_enhance.jobs.model_loader import VideoModels
from musetalk_enhance.jobs.models import LoadedModel
from musetalk_enhance.jobs.video_processor import (
    CHUNK,
    PREROLL,
    VideoProcessor,
    VideoProcessorFactory,
)
from musetalk_enhance.media import SegmentWriter, VideoWriter, index_video, segment_reader
from musetalk_enhance.pipeline import engine as engine_module
from musetalk_enhance.pipeline.engine import Restored
from musetalk_enhance.pipeline.outcome import Cause, Outcome
from musetalk_enhance.pipeline.stability import sharpness
from musetalk_enhance.restorers.base import LoadRequest
from musetalk_enhance.restorers.catalog import Choice, Model
from tests.conftest import PLAIN, RECORD, FakeRestorer
from tests.media.clips import decoded, open_files, same_planes

WIDTH, HEIGHT, SQUARE, TEMPLATE = 224, 128, 36, 64
SIDE = 128
WHOLE = replace(RECORD, input_size=SIDE, output_size=SIDE)
SETTINGS = VideoSettings(crf=0, preset="ultrafast", min_face=16, batch_size=4, **PLAIN)


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    """Faces of 128 px and one thread: the squares are small, and the machine may be busy."""
    monkeypatch.setattr(engine_module, "crop_size", lambda _: SIDE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Squares(FaceDetector):
    """Takes every green square for a face; sees none in a picture whose first pixel is white."""

    def detect(self, picture_bgr):
        if picture_bgr[0, 0].min() > 240:
            return []
        green = (
            (picture_bgr[..., 1] > 150) & (picture_bgr[..., 0] < 140) & (picture_bgr[..., 2] < 140)
        )
        count, _, stats, middles = cv2.connectedComponentsWithStats(green.astype(np.uint8))
        return [
            face_at(x + 0.5, y + 0.5)
            for (x, y), one in zip(middles[1:count], stats[1:count], strict=True)
            if one[4] > 99
        ]


def face_at(x: float, y: float) -> Face:
    points = (FFHQ_512 / 512 - 0.5) * TEMPLATE + (x, y)
    half = SQUARE / 2
    return Face(np.array((x - half, y - half, x + half, y + half)), points.astype(np.float32), 0.9)


def scene(at: int, places, blind: bool = False, seed: int = 0) -> np.ndarray:
    """A dim smooth picture with a green square at each (x, y): blue tells the frame, red which
    square."""
    rng = np.random.default_rng(seed)
    image = cv2.resize(
        rng.integers(20, 120, (6, 8, 3), np.uint8), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC
    )
    for number, (x, y) in enumerate(places):
        left, top = x - SQUARE // 2, y - SQUARE // 2
        image[top : top + SQUARE, left : left + SQUARE] = (3 * at, 200, 30 + 80 * number)
    image[:4, :4] = 255 if blind else 0
    return image


def film(path, pictures):
    with VideoWriter(path, Fraction(25), (WIDTH, HEIGHT), crf=0) as writer:
        for picture in pictures:
            writer.write(picture)
    return path


def opened_with(function=None, detector=None, record=WHOLE, **options) -> VideoModels:
    settings = SETTINGS.replace(**options)
    wanted = settings.enhancer(model="lite")
    restorer = FakeRestorer(LoadRequest(record, wanted, torch.device("cpu")), function)
    loaded = LoadedModel(restorer, Choice(Model(record, lambda: FakeRestorer), wanted), None, [])
    return VideoModels(
        detector or Squares(), loaded.enhancer(output_size="same"), settings, run_info=None
    )


def make(path, folder, opened=None, first=0, stop=None, number=0):
    """One segment: the path of its file and its state."""
    index = index_video(path)
    processor = VideoProcessor(opened or opened_with(), path, index, folder)
    state = processor.process({"id": number, "first": first, "stop": stop or len(index)})
    return folder / next(iter(outputs_of(state))), state


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    """40 frames of a square that goes to the right."""
    pictures = [scene(at, [(60 + 2 * at, 64)]) for at in range(40)]
    return film(tmp_path_factory.mktemp("moving") / "film.mp4", pictures)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """36 frames of two squares, the second one there from frame 10 to frame 30."""
    pictures = [
        scene(at, [(44, 64), (180 - at // 2, 66)][: 2 if 10 <= at < 30 else 1]) for at in range(36)
    ]
    return film(tmp_path_factory.mktemp("pair") / "film.mp4", pictures)


def box_of(x: int, y: int, margin: int = 2) -> tuple[int, int, int, int]:
    half = TEMPLATE // 2 + margin
    return max(0, x - half), max(0, y - half), min(WIDTH, x + half), min(HEIGHT, y + half)


def split(planes, box):
    """The planes inside a box, and the planes with the box blackened."""
    inside, outside = [], []
    for at, plane in enumerate(planes):
        left, top, right, bottom = (side // (2 if at else 1) for side in box)
        inside.append(plane[top:bottom, left:right].astype(int))
        outside.append(plane.copy())
        outside[-1][top:bottom, left:right] = 0
    return inside, outside


def test_a_network_that_changes_nothing_restores_nothing(moving, tmp_path):
    path, state = make(moving, tmp_path, stop=24)
    assert same_planes(decoded(moving)[:24], decoded(path))
    item = state["items"][0]
    assert item["counts"]["faces_restored"] == 0 and item["left"] == {"unchanged": 24}
    assert item["notes"][3]["left alone"] == "unchanged" and item["notes"][3]["change"] == 0


def test_a_network_that_changes_next_to_nothing_changes_no_more(moving, tmp_path):
    path, state = make(moving, tmp_path, opened_with(lambda faces: faces + 1 / 255), stop=24)
    before, after = decoded(moving)[:24], decoded(path)
    item = state["items"][0]
    assert item["counts"]["faces_restored"] == 24 and item["left"] == item["partial"] == {}
    assert item["restored"]["strength"] == 24 and 20 < item["restored"]["change"] <= 24.1
    for at, (one, other) in enumerate(zip(before, after, strict=True)):
        near, far = split(one, box_of(60 + 2 * at, 64))
        near_after, far_after = split(other, box_of(60 + 2 * at, 64))
        assert all(np.array_equal(a, b) for a, b in zip(far, far_after, strict=True)), (
            "not a bit outside the box"
        )
        assert np.abs(near[0] - near_after[0]).max() <= 3, "luma: there and back in whole numbers"
        assert all(np.abs(a - b).mean() < 1.5 for a, b in zip(near, near_after, strict=True))


def test_frames_without_a_face_go_through_untouched(tmp_path):
    pictures = [scene(at, [], seed=at) for at in range(12)] + [
        scene(at, [(100, 64)]) for at in range(12, 20)
    ]
    source = film(tmp_path / "film.mp4", pictures)
    path, state = make(source, tmp_path, opened_with(lambda faces: 1 - faces))
    before, after = decoded(source), decoded(path)
    assert same_planes(before[:12], after[:12]) and not same_planes(before[12:13], after[12:13])
    item = state["items"][0]
    assert (
        item["notes"][:12] == [{"passthrough": "no face"}] * 12 and "strength" in item["notes"][12]
    )
    assert item["counts"] == {
        "frames": 20,
        "frames_with_restored_faces": 8,
        "faces": 8,
        "faces_restored": 8,
        "faces_held": 0,
        "faces_failed": 0,
    }


def test_faces_that_are_left_alone_go_through_untouched(moving, tmp_path, monkeypatch):
    monkeypatch.setattr(sharpness, "needed", lambda ratio: torch.zeros_like(ratio))
    path, state = make(
        moving, tmp_path, opened_with(lambda faces: 1 - faces, sharpness_gate=True), stop=24
    )
    assert same_planes(decoded(moving)[:24], decoded(path))
    item = state["items"][0]
    assert item["counts"]["faces_restored"] == item["counts"]["frames_with_restored_faces"] == 0
    assert item["left"] == {"sharp already": 24} and item["passed_through"] == item["partial"] == {}
    assert item["restored"] == {"strength": 0, "change": 0}
    assert [note["strength"] for note in item["notes"]] == [0.0] * 24


def test_what_the_network_made_lands_on_the_face_while_it_moves(moving, tmp_path):
    """A dark left half and a bright right half, to see place and direction."""

    def marker(faces):
        half = faces.shape[3] // 2
        faces = torch.zeros_like(faces)
        faces[..., half:] = 1.0
        return faces

    path, _ = make(moving, tmp_path, opened_with(marker), stop=24)
    before = decoded(moving)
    for at, planes in enumerate(decoded(path)):
        x = 60 + 2 * at
        row = planes[0][64]
        assert row[x - 20 : x - 4].max() < 50 and row[x + 4 : x + 20].min() > 200, at
        edge = x - 10 + int(np.argmax(np.diff(row[x - 10 : x + 10].astype(int))))
        assert abs(edge + 0.5 - x) <= 2, "smoothed landmarks are two pixels behind at most"
        outside = split(planes, box_of(x, 64, 6))[1]
        assert all(
            np.array_equal(a, b)
            for a, b in zip(outside, split(before[at], box_of(x, 64, 6))[1], strict=True)
        )


def test_between_two_faces_nothing_changes(pair, tmp_path):
    path, _ = make(pair, tmp_path, opened_with(lambda faces: 1 - faces))
    for at, (one, other) in enumerate(zip(decoded(pair), decoded(path), strict=True)):
        right = 180 - at // 2 - TEMPLATE // 2 - 6
        for plane, (a, b) in enumerate(zip(one, other, strict=True)):
            columns = np.s_[:, (44 + 40) // (2 if plane else 1) : right // (2 if plane else 1)]
            assert np.array_equal(a[columns], b[columns]), at
        assert not np.array_equal(one[0], other[0])


class RecordedStream:
    """Remembers which frames of which square it was given."""

    def __init__(self):
        self.frames, self.points, self.closed = [], None, False

    def close(self):
        self.closed = True


class RecordedEngine:
    """In place of an enhancer and its engine: hands the frames back, and keeps every stream that
    was opened."""

    def __init__(self, fail_at=None):
        self.settings, self.engine = SimpleNamespace(region="full", match="none"), self
        self.model = SimpleNamespace(info=SimpleNamespace(landmark_template=None))
        self.streams, self.fail_at, self.batches = [], fail_at, []

    def crop_face(self, image_bgr, landmarks):
        return crop_face(image_bgr, landmarks, SIDE)

    def stream(self, **hints):
        assert hints == {"color": "bgr", "output_size": "same"}
        self.streams.append(RecordedStream())
        return self.streams[-1]

    def restore(self, requests):
        self.batches.append(len(requests))
        return [self.restored(request) for request in requests]

    def restored(self, request):
        stream = request.stream
        assert not stream.closed
        stream.points = request.hints[0]
        for frame in request.frames:
            blue, _, red = (float(value) for value in frame[SIDE // 2, SIDE // 2])
            stream.frames.append((round((red - 30) / 80), round(blue / 3)))
            if len(stream.frames) - 1 == self.fail_at:
                raise RestorerError("the network failed")
        return Restored(np.array(request.frames), [Outcome()] * len(request.frames))


def recorded(fail_at=None, detector=None):
    engine = RecordedEngine(fail_at)
    opened = SimpleNamespace(
        detector=detector or Squares(),
        settings=SETTINGS,
        enhancer=engine,
        reference=None,
        close=lambda: None,
    )
    return opened, engine


def test_each_face_has_its_own_stream_in_order(pair, tmp_path):
    opened, engine = recorded()
    make(pair, tmp_path, opened)
    short, long = sorted((stream.frames for stream in engine.streams), key=len)
    assert short[:20] == [(1, at) for at in range(10, 30)]
    assert long == [(0, at) for at in range(36)]
    assert set(engine.batches) == {1, 2}, "both faces of a chunk are restored together"


def test_what_runs_up_to_a_segment_comes_first_and_is_thrown_away(pair, tmp_path):
    opened, engine = recorded()
    path, state = make(pair, tmp_path, opened, first=28, stop=36)
    short, long = sorted((stream.frames for stream in engine.streams), key=len)
    assert long == [(0, at) for at in range(28 - PREROLL, 36)]
    assert short[:18] == [(1, at) for at in range(28 - PREROLL, 30)]
    assert len(decoded(path)) == 8 and len(state["items"][0]["notes"]) == 8
    assert state["items"][0]["counts"]["frames"] == 8


def test_each_segment_opens_streams_of_its_own(pair, tmp_path):
    opened, engine = recorded()
    processor = VideoProcessor(opened, pair, index_video(pair), tmp_path)
    for number in (0, 1):
        processor.process({"id": number, "first": 18 * number, "stop": 18 * (number + 1)})
    assert len(engine.streams) == 4, "two faces in each of two segments"
    for stream in engine.streams:
        assert len({square for square, _ in stream.frames}) <= 1, "no stream was given two faces"
        numbers = [at for _, at in stream.frames]
        assert numbers == sorted(numbers)


def test_mouths_come_with_the_landmarks_of_the_template(moving, tmp_path):
    opened, engine = recorded()
    engine.settings.region = "mouth"
    make(moving, tmp_path, opened, stop=8)
    points = engine.streams[0].points
    assert len(points) == 8 and all(np.array_equal(each, FFHQ_512 * SIDE / 512) for each in points)


@pytest.mark.parametrize("stability", [0, 0.6])
def test_a_segment_does_not_depend_on_what_was_made_before(pair, tmp_path, stability):
    def opened():
        record = replace(RECORD, input_size=64, output_size=SIDE)
        return opened_with(
            lambda faces: (faces * 0.8 + 0.1) ** 1.2, record=record, stability=stability
        )

    index, unit = index_video(pair), {"id": 1, "first": 20, "stop": 36}
    states = []
    for name, before in {
        "alone": [],
        "after": [{"id": 0, "first": 0, "stop": 20}],
        "again": [unit, unit],
    }.items():
        processor = VideoProcessor(opened(), pair, index, tmp_path / name)
        for each in before:
            processor.process(each)
        states.append(processor.process(unit))
        processor.close()
    assert states[0] == states[1] == states[2]
    digests = [
        file_digest(tmp_path / name / "segments/000001.mp4") for name in ("alone", "after", "again")
    ]
    assert len(set(digests)) == 1 and digests[0] == next(iter(outputs_of(states[0]).values()))


def test_a_missed_face_is_restored_where_it_was(tmp_path):
    pictures = [scene(at, [(100, 64)], blind=at in (9, 10, 11)) for at in range(20)]
    source = film(tmp_path / "film.mp4", pictures)
    path, state = make(source, tmp_path, opened_with(lambda faces: 1 - faces))
    assert (
        state["items"][0]["counts"]["faces_held"] == 3
        and state["items"][0]["counts"]["faces_restored"] == 20
    )
    levels = [int(planes[0][64, 100]) for planes in decoded(path)]
    assert max(levels) - min(levels) < 12, "no flicker"


def test_a_face_is_not_held_over_a_cut(tmp_path):
    """What comes after the cut is no face; a network would paint one on it."""
    pictures = [scene(at, [(100, 64)]) for at in range(12)] + [
        scene(at, [], seed=5) for at in range(12, 20)
    ]
    source = film(tmp_path / "film.mp4", pictures)
    path, state = make(source, tmp_path, opened_with(lambda faces: 1 - faces))
    assert same_planes(decoded(source)[12:], decoded(path)[12:])
    item = state["items"][0]
    assert item["left"] == {} and item["counts"]["faces_held"] == 0
    assert item["notes"][12:] == [{"passthrough": "no face"}] * 8


def cover(picture) -> None:
    """Faint stripes around (100, 64): no scene cut."""
    stripes = np.where(np.arange(64) // 8 % 2, 60, 120).astype(np.uint8)
    picture[32:96, 68:132] = stripes[:, None, None]


def test_a_face_that_is_gone_is_not_held(tmp_path):
    """Something else is in its place, and the scene stays."""
    pictures = [scene(at, [(100, 64)] if at < 12 else []) for at in range(20)]
    for picture in pictures[12:]:
        cover(picture)
    source = film(tmp_path / "film.mp4", pictures)
    path, state = make(source, tmp_path, opened_with(lambda faces: 1 - faces))
    assert same_planes(decoded(source)[12:], decoded(path)[12:])
    item = state["items"][0]
    assert item["left"] == {Cause.LOST.value: MAX_MISSED} and item["counts"]["faces_held"] == 0
    assert item["notes"][12] == {"passthrough": Cause.LOST.value}
    assert item["notes"][15] == {"passthrough": "no face"}


def with_gap(path, first: int, stop: int, count: int = 32):
    """A square that goes to the right, unseen by the detector from `first` to `stop`."""
    places = [(60 + 2 * at, 64) for at in range(count)]
    pictures = [scene(at, [place], blind=first <= at < stop) for at, place in enumerate(places)]
    return film(path / "film.mp4", pictures)


def inverted_at(planes, x: int) -> bool:
    """Whether the square at x is inverted, up to its edges; it is green otherwise."""
    row = planes[0][64].astype(int)
    return bool(row[x - 14 : x + 15].max() < 125 < row[x - 30] + 200)


def test_a_gap_is_filled_from_both_sides(tmp_path):
    source = with_gap(tmp_path, 12, 12 + LOOK_AHEAD)
    path, state = make(source, tmp_path, opened_with(lambda faces: 1 - faces))
    before, after = decoded(source), decoded(path)
    assert not any(inverted_at(planes, 60 + 2 * at) for at, planes in enumerate(before))
    assert all(inverted_at(planes, 60 + 2 * at) for at, planes in enumerate(after))
    counts = state["items"][0]["counts"]
    assert counts["faces_held"] == LOOK_AHEAD and counts["faces_restored"] == 32
    for at, (one, other) in enumerate(zip(before, after, strict=True)):
        outside = [split(planes, box_of(60 + 2 * at, 64, 6))[1] for planes in (one, other)]
        assert all(np.array_equal(a, b) for a, b in zip(*outside, strict=True)), at


def test_a_longer_gap_is_not_filled(tmp_path):
    source = with_gap(tmp_path, 12, 13 + LOOK_AHEAD)
    _, state = make(source, tmp_path, opened_with(lambda faces: 1 - faces))
    assert [
        at
        for at, note in enumerate(state["items"][0]["notes"])
        if note == {"passthrough": "no face"}
    ] == list(range(12 + MAX_MISSED, 13 + LOOK_AHEAD))


def test_a_gap_over_a_cut_is_not_filled(tmp_path):
    """The other scene has a face at the same place, and the detector misses both for a while."""
    pictures = [
        scene(at, [(100, 64)], blind=10 <= at < 14, seed=5 * (at >= 12)) for at in range(24)
    ]
    source = film(tmp_path / "film.mp4", pictures)
    path, state = make(source, tmp_path, opened_with(lambda faces: 1 - faces))
    assert same_planes(decoded(source)[12:14], decoded(path)[12:14])
    notes = state["items"][0]["notes"]
    assert [at for at, note in enumerate(notes) if "passthrough" in note] == [12, 13]


def test_a_face_that_is_covered_in_a_gap_is_left_alone(tmp_path):
    pictures = [scene(at, [(100, 64)], blind=12 <= at < 17) for at in range(28)]
    for picture in pictures[12:17]:
        cover(picture)
    source = film(tmp_path / "film.mp4", pictures)
    path, state = make(source, tmp_path, opened_with(lambda faces: 1 - faces))
    assert same_planes(decoded(source)[12:17], decoded(path)[12:17])
    assert state["items"][0]["left"] == {Cause.LOST.value: 5}


def test_a_face_that_looks_as_after_the_gap_is_restored_in_it(tmp_path):
    """What surrounds it changes while the detector misses it."""
    pictures = [scene(at, [(100, 64)], blind=12 <= at < 17) for at in range(28)]
    for picture in pictures[14:]:
        square = picture[46:82, 82:118].copy()
        cover(picture)
        picture[46:82, 82:118] = square // 2
        picture[46:82, 82:118, 1] = 200
    source = film(tmp_path / "film.mp4", pictures)
    _, state = make(source, tmp_path, opened_with(lambda faces: 1 - faces))
    item = state["items"][0]
    assert item["left"] == {} and item["counts"]["faces_held"] == 5


def test_a_gap_at_the_end_of_a_segment_is_filled(tmp_path):
    source = with_gap(tmp_path, 16, 22)
    whole = decoded(make(source, tmp_path / "whole", opened_with(lambda faces: 1 - faces))[0])
    path, state = make(
        source, tmp_path / "part", opened_with(lambda faces: 1 - faces), first=2, stop=18
    )
    assert same_planes(whole[2:18], decoded(path))
    assert state["items"][0]["counts"]["faces_held"] == 2


def test_a_segment_does_not_depend_on_its_chunks(pair, tmp_path, monkeypatch):
    states = []
    for chunk in (CHUNK, 5, 1):
        monkeypatch.setattr(video_processor, "CHUNK", chunk)
        states.append(make(pair, tmp_path, opened_with(lambda faces: 1 - faces))[1])
    assert states[0] == states[1] == states[2]


def test_the_face_at_a_point(pair, tmp_path):
    """The second square is there from frame 10 to 30; it goes to the left."""
    for point, restored in (((44, 64), 36), ((190, 60), 20)):
        source = decoded(pair)
        path, state = make(pair, tmp_path, opened_with(lambda faces: 1 - faces, at=point))
        item = state["items"][0]
        changed = [not same_planes([a], [b]) for a, b in zip(source, decoded(path), strict=True)]
        assert item["left"][Cause.NOT_SELECTED.value] == 56 - item["counts"]["faces_restored"]
        if restored == 36:
            assert all(changed) and item["counts"]["faces_restored"] == 36
        else:  # alone, the first one is the nearest until the second one is near
            assert item["counts"]["faces_restored"] == 2 + 20
            assert changed == [at < 2 or 10 <= at < 30 for at in range(36)]


class ByRed:
    """A recognizer that tells squares by their red: 30 or 110."""

    def embed(self, image_bgr, face):
        x, y = face.landmarks.mean(0).astype(int)
        angle = image_bgr[y, x, 2] / 80 * np.pi / 2
        return np.array((np.cos(angle), np.sin(angle)), np.float32)


@pytest.mark.parametrize("number", [0, 1])
def test_faces_like_a_photo(pair, tmp_path, number):
    photo = scene(0, [(100, 64)])
    photo[46:82, 82:118, 2] = 30 + 80 * number
    reference = ReferenceFaces(ByRed(), Squares(), {"photo": photo})
    opened = replace(opened_with(lambda faces: 1 - faces), reference=reference)
    path, state = make(pair, tmp_path, opened)
    item, count = state["items"][0], (36, 20)[number]
    assert item["counts"]["faces_restored"] == count
    assert item["left"][Cause.NOT_SELECTED.value] == 56 - count
    assert ("passthrough" in item["notes"][0]) == (number == 1)
    if number == 1:
        assert item["notes"][0] == {"passthrough": Cause.NOT_SELECTED.value}


def test_another_person_at_the_same_place_is_a_cut(tmp_path):
    textures = np.random.default_rng(2).integers(0, 255, (2, 9, 9), np.uint8)

    def person(at):
        picture = scene(at // 8, [(100, 64)], seed=at // 8)
        texture = (
            cv2.resize(textures[at // 8], (SQUARE - 8, SQUARE - 8), interpolation=cv2.INTER_CUBIC)
            // 2
        )
        inner = picture[50:78, 86:114]
        inner[..., 0] = inner[..., 2] = texture
        return picture

    source = film(tmp_path / "film.mp4", [person(at) for at in range(16)])
    record = replace(RECORD, input_size=64, output_size=SIDE)
    _, state = make(source, tmp_path, opened_with(record=record, stability=0.6))
    assert [at for at, note in enumerate(state["items"][0]["notes"]) if note["cut"]] in (
        [8],
        [0, 8],
    )


class Crooked(Squares):
    """All landmarks in one place from the fifth picture on."""

    def __init__(self):
        self.count = 0

    def detect(self, picture_bgr):
        self.count += 1
        faces = super().detect(picture_bgr)
        flat = np.full((5, 2), 100, np.float32)
        return (
            faces if self.count < 5 else [Face(face.box_xyxy, flat, face.score) for face in faces]
        )


def test_a_face_that_cannot_be_aligned_is_left_alone(moving, tmp_path):
    path, state = make(moving, tmp_path, opened_with(lambda faces: 1 - faces, Crooked()), stop=12)
    (reason, count), *others = state["items"][0]["left"].items()
    assert reason.startswith("cannot be aligned: ") and count == 8 and not others
    assert same_planes(decoded(moving)[4:12], decoded(path)[4:12])


class FailsAt(Squares):
    def __init__(self, number: int) -> None:
        self.left = number

    def detect(self, picture_bgr):
        self.left -= 1
        if self.left < 0:
            raise RestorerError("the detector failed")
        return super().detect(picture_bgr)


def failing_write(number):
    plain, count = SegmentWriter.write, Counter()

    def write(self, *words):
        count["frames"] += 1
        if count["frames"] > number:
            raise MediaError(self.path, "the disk is full")
        plain(self, *words)

    return write


@pytest.mark.parametrize("at", [0, 3, 21])
@pytest.mark.parametrize("who", ["reader", "network", "writer", "film"])
def test_a_failure_stops_cleanly(moving, tmp_path, monkeypatch, who, at):
    opened, _ = recorded(
        fail_at=at if who == "network" else None, detector=FailsAt(at) if who == "reader" else None
    )
    if who == "writer":
        monkeypatch.setattr(SegmentWriter, "write", failing_write(at))
    if who == "film":
        plain = video_processor.read_segment

        def cut_off(*words):
            for shot in plain(*words):
                if shot.index == at:
                    raise MediaError(moving, "is cut off")
                yield shot

        monkeypatch.setattr(video_processor, "read_segment", cut_off)
    before = set(threading.enumerate())
    with pytest.raises((MediaError, RestorerError), match="failed|disk is full|cut off"):
        make(moving, tmp_path, opened)
    assert set(threading.enumerate()) <= before, "no thread is left"
    assert not [path for path in tmp_path.rglob("*") if path.is_file()] and not open_files(
        moving.parent
    )


def test_a_maker_goes_on_after_a_failure(moving, tmp_path):
    detector = FailsAt(11)
    opened = opened_with(detector=detector)
    processor, unit = (
        VideoProcessor(opened, moving, index_video(moving), tmp_path),
        {"id": 0, "first": 0, "stop": 20},
    )
    with pytest.raises(RestorerError):
        processor.process(unit)
    detector.left = 1000
    assert processor.process(unit) == make(moving, tmp_path / "other", opened_with(), stop=20)[1]


def test_memory_does_not_grow_with_the_film(tmp_path, monkeypatch):
    class Counted(segment_reader.DecodedFrame):
        live = most = 0

        def __init__(self, *words):
            super().__init__(*words)
            Counted.live += 1
            Counted.most = max(Counted.most, Counted.live)

        def __del__(self):
            Counted.live -= 1

    monkeypatch.setattr(segment_reader, "DecodedFrame", Counted)
    source = film(
        tmp_path / "film.mp4", [scene(at % 40, [(60 + at % 90, 64)]) for at in range(300)]
    )
    opened, log = recorded()
    told = []
    processor = VideoProcessor(opened, source, index_video(source), tmp_path, told.append)
    processor.process({"id": 0, "first": 0, "stop": 300})
    assert Counted.most <= 4 * CHUNK + LOOK_AHEAD and Counted.live == 0
    assert sum(told) == 300 and max(told) == CHUNK


def test_a_worker_opens_the_networks_with_what_ran_before(moving, tmp_path, monkeypatch):
    asked = []

    def load_video_models(settings, run_info):
        asked.append((settings, run_info))
        return opened_with()

    monkeypatch.setattr(video_processor, "load_video_models", load_video_models)
    processor = VideoProcessorFactory(SETTINGS, "facts", moving, index_video(moving), tmp_path)()
    assert asked == [(SETTINGS, "facts")] and processor.prepare({"id": 3}) == {"id": 3}
    assert processor.finish({"unit": 1}) == {"unit": 1}
