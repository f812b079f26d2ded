"""`restore_video`: everything but the faces is kept, and a run that was stopped goes on to the same
bytes."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from musetalk_enhance.errors import ConfigError, MediaError, MissingWeightError
from musetalk_enhance.jobs import VideoSettings, model_loader, restore_video, video, video_processor
from musetalk_enhance.jobs.manifest import FOLDER, locked
from musetalk_enhance.jobs.models import LoadedModel, load
from musetalk_enhance.jobs.sidecar import read_head, sidecar_path, write_sidecar
from musetalk_enhance.jobs.video import excerpt, parts_folder, segment_of
from musetalk_enhance.jobs.video_processor import VideoProcessor
from musetalk_enhance.media import (
    SegmentWriter,
    VideoWriter,
    check_output,
    concat_segments,
    index_video,
    read_frames,
)
from musetalk_enhance.pipeline import engine
from musetalk_enhance.restorers.base import LoadRequest
from musetalk_enhance.restorers.catalog import Choice, Model
from tests.conftest import PLAIN, RECORD, ROOT, FakeRestorer
from tests.media import clips
from tests.media.clips import (
    FLIPS,
    QUARTERS,
    as_displayed,
    decoded,
    make_film,
    same_planes,
    sound,
    times,
    turn,
)

COUNT, SIDE, SEGMENT = 36, 256, 16
SMALL = replace(RECORD, input_size=64, output_size=128)
QUICK = {
    "model": "lite",
    "detection_size": 128,
    "backend": "torch",
    "device": "cpu",
    "segment": SEGMENT,
    "preset": "ultrafast",
    **PLAIN,
}


@pytest.fixture(scope="module")
def small(shared):
    """The first frames of a real clip, (COUNT, SIDE, SIDE, 3)."""
    frames = []
    for frame in read_frames(shared / "data/clips/d18.mp4"):
        frames.append(cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
        if len(frames) == COUNT:
            return np.stack(frames)
    raise AssertionError("the clip is too short")


@pytest.fixture(scope="module")
def clip(shared, small, tmp_path_factory):
    """A small copy of a real clip, with its sound."""
    folder = tmp_path_factory.mktemp("clip")
    source = shared / "data/clips/d18.mp4"
    with VideoWriter(folder / "silent.mp4", Fraction(30), (SIDE, SIDE), crf=10) as writer:
        for frame in small:
            writer.write(frame)
    concat_segments(
        [folder / "silent.mp4"], index_video(source, end=COUNT / 30), source, folder / "clip.mp4"
    )
    return folder / "clip.mp4"


@pytest.fixture(scope="module")
def settings(shared):
    return VideoSettings(
        detector_path=str(shared / "weights/face_detection_yunet_2023mar.onnx"), **QUICK
    )


@pytest.fixture(autouse=True)
def cheap(request):
    """Small faces, few frames before a segment, one thread, and a network that is none, except with
    `lite`."""
    with cheaply(with_network="lite" in request.fixturenames):
        yield


@contextlib.contextmanager
def cheaply(with_network: bool):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "crop_size", lambda _: 128)
        for module in (video_processor, video):
            patch.setattr(module, "PREROLL", 4)
        if not with_network:
            patch.setattr(model_loader, "load", load_fake)
        yield
    torch.set_num_threads(threads)


def more_contrast(faces):
    return (faces * 1.2 - 0.1).clip(0, 1)


def load_fake(settings, *, pinned=None, function=more_contrast, record=SMALL) -> LoadedModel:
    """A network that adds contrast, in place of the lite model."""
    if settings.model != "lite":
        return load(settings, pinned=pinned)
    wanted = settings.enhancer()
    restorer = FakeRestorer(LoadRequest(record, wanted, torch.device("cpu")), function)
    return LoadedModel(restorer, Choice(Model(record, lambda: FakeRestorer), wanted), None, [])


def run_through(clip, settings, folder, with_network):
    with cheaply(with_network):
        restore_video(clip, folder / "out.mp4", settings)
    return bytes_of(folder / "out.mp4")


@pytest.fixture(scope="module")
def whole(clip, settings, tmp_path_factory):
    """What a run that nobody stopped leaves: the bytes of the film and of the file beside it."""
    return run_through(clip, settings, tmp_path_factory.mktemp("whole"), with_network=False)


@pytest.fixture(scope="module")
def lite(clip, settings, tmp_path_factory):
    """The same with the lite model, for tests that run it."""
    return run_through(clip, settings, tmp_path_factory.mktemp("lite"), with_network=True)


def bytes_of(out: Path) -> tuple[bytes, bytes]:
    assert {path.name for path in out.parent.iterdir() if "out" in path.name} == {
        out.name,
        f"{out.name}.json",
    }
    return out.read_bytes(), sidecar_path(out).read_bytes()


@pytest.fixture
def made(monkeypatch):
    """Numbers of the segments that are made."""
    numbers, plain = [], VideoProcessor.process

    def process(self, unit):
        numbers.append(unit["id"])
        return plain(self, unit)

    monkeypatch.setattr(VideoProcessor, "process", process)
    return numbers


class Stop(Exception):
    """What a test throws in."""


def failing(name, owner, after, monkeypatch):
    """Let `owner.name` fail in its call after `after` ones; hands back what undoes it."""
    plain, left = getattr(owner, name), [after]

    def fails(*words, **options):
        left[0] -= 1
        if left[0] < 0:
            raise Stop
        return plain(*words, **options)

    monkeypatch.setattr(owner, name, fails)
    return lambda: monkeypatch.setattr(owner, name, plain)


def stopped(
    clip, out, settings, monkeypatch, name="write", owner=SegmentWriter, after=SEGMENT + 12
):
    undo = failing(name, owner, after, monkeypatch)
    with pytest.raises(Stop):
        restore_video(clip, out, settings)
    undo()


def test_everything_but_the_face_is_kept(clip, settings, lite, tmp_path):
    out = tmp_path / "out.mp4"
    out.write_bytes(lite[0])
    index, after = index_video(clip), index_video(out)
    assert sound(out) == sound(clip) and len(sound(clip)) > 50
    assert times(out) == times(clip) and len(times(clip)) == COUNT
    kept = (
        "fps",
        "time_base",
        "pts",
        "stop_pts",
        "colorspace",
        "color_range",
        "color_primaries",
        "color_trc",
        "audio",
    )
    assert all(
        getattr(index, name) == getattr(after, name) for name in kept
    ) and after.fps == Fraction(30)
    before = list(read_frames(clip))
    for one, other in zip(before, read_frames(out), strict=True):
        change = np.abs(one.astype(int) - other).mean(axis=2)
        assert change[:10].mean() < 3 and change[100:180, 80:180].mean() > 1.2 * change[:10].mean()


def whole_lines(sidecar: bytes) -> int:
    """Notes that stand in a line of their own."""
    lines = sidecar.decode().split("\n")
    return sum(
        bool(json.loads(line.rstrip(","))) for line in lines[lines.index(' "notes": [') + 1 : -3]
    )


def test_the_file_beside_it_says_what_was_done(lite):
    stats = json.loads(lite[1])
    totals = stats["totals"]
    assert 0 < totals.pop("mean_strength") <= 1 and 0 < totals.pop("mean_change") < 20
    assert sum(totals.pop("partial").values()) <= COUNT
    assert totals == {
        "frames": COUNT,
        "restored": COUNT,
        "faces": COUNT,
        "faces_restored": COUNT,
        "faces_held": 0,
        "faces_failed": 0,
        "passed_through": {"no face": 0},
        "left": {},
    }
    assert whole_lines(lite[1]) == COUNT and len(stats["notes"]) == COUNT
    assert all(0 < note["strength"] <= 1 and note["change"] > 0 for note in stats["notes"])
    assert all(note["left alone"] is None for note in stats["notes"])
    job = stats["job"]
    assert (
        job["model_that_ran"]["model"] == "lite"
        and job["fps"] == "30"
        and job["size_wh"] == [SIDE, SIDE]
    )
    assert "shared" not in lite[1].decode() and "/tmp" not in lite[1].decode(), (
        "no path of this machine"
    )


def test_a_second_run_has_nothing_to_do(clip, settings, whole, tmp_path, made, caplog):
    out, told = tmp_path / "out.mp4", []
    out.write_bytes(whole[0])
    sidecar_path(out).write_bytes(whole[1])
    stamps = [path.stat().st_mtime_ns for path in (out, sidecar_path(out))]
    with caplog.at_level(logging.INFO, "musetalk_enhance"):
        again = restore_video(clip, out, settings, progress=lambda *words: told.append(words))
    assert (
        not made
        and again.resumed == COUNT
        and "already done" in caplog.text
        and told == [(COUNT, COUNT)]
    )
    said = json.loads(whole[1])
    assert len(said.pop("notes")) == COUNT and again.stats == said and bytes_of(out) == whole
    assert stamps == [path.stat().st_mtime_ns for path in (out, sidecar_path(out))]


POINTS = {
    "first segment": ("write", SegmentWriter, 3, 0),
    "third segment": ("write", SegmentWriter, 2 * SEGMENT + 2, 2 * SEGMENT),
    "state of the second": ("write_state", video_processor, 1, SEGMENT),
    "join": ("concat_segments", video, 0, COUNT),
    "sidecar": ("_stats", video, 0, COUNT),
    "film in place": ("_move", video, 1, COUNT),
}
"""What fails, in which call after how many, and the frames that are done then."""


@pytest.mark.parametrize("point", POINTS)
def test_a_stopped_run_goes_on_to_the_same_bytes(
    clip, settings, whole, tmp_path, made, monkeypatch, point
):
    name, owner, after, resumed = POINTS[point]
    out, told = tmp_path / "out.mp4", []
    stopped(clip, out, settings, monkeypatch, name, owner, after)
    assert out.exists() is (point == "film in place") and parts_folder(out).is_dir()
    made.clear()
    done = restore_video(clip, out, settings, progress=lambda *words: told.append(words))
    assert bytes_of(out) == whole and done.resumed == resumed
    assert made == list(range(-(-resumed // SEGMENT), 3)), "nothing is done twice"
    assert told[0] == (resumed, COUNT) and told[-1] == (COUNT, COUNT) and told == sorted(told)


def test_stopped_between_the_end_and_the_clean_up(
    clip, settings, whole, tmp_path, made, monkeypatch
):
    out = tmp_path / "out.mp4"
    stopped(clip, out, settings, monkeypatch, "rmtree", video.shutil, 0)
    assert parts_folder(out).is_dir() and made == [0, 1, 2]
    restore_video(clip, out, settings)
    assert bytes_of(out) == whole and made == [0, 1, 2]


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garbled(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def emptied(path: Path) -> None:
    path.write_text(json.dumps({"unit": json.loads(path.read_text())["unit"], "items": []}))


@pytest.mark.parametrize(
    ("name", "damage", "again"),
    [
        ("segments/000000.mp4", garbled, [0, 2]),
        ("segments/000001.mp4", cut_short, [1, 2]),
        ("segments/000000.mp4", Path.unlink, [0, 2]),
        (f"{FOLDER}/units/000001.json", cut_short, [1, 2]),
        (f"{FOLDER}/units/000000.json", emptied, [0, 2]),
        (f"{FOLDER}/manifest.json", cut_short, [2]),
    ],
)
def test_what_is_damaged_is_made_again(
    clip, settings, whole, tmp_path, made, monkeypatch, name, damage, again
):
    out = tmp_path / "out.mp4"
    stopped(clip, out, settings, monkeypatch, after=2 * SEGMENT + 2)
    damage(parts_folder(out) / name)
    made.clear()
    restore_video(clip, out, settings)
    assert bytes_of(out) == whole and made == again


def test_segments_of_a_damaged_manifest_are_not_mixed_with_others(
    clip, settings, tmp_path, monkeypatch, caplog
):
    out, fresh, other = tmp_path / "out.mp4", tmp_path / "fresh.mp4", settings.replace(crf=30)
    stopped(clip, out, settings, monkeypatch)
    cut_short(parts_folder(out) / FOLDER / "manifest.json")
    restore_video(clip, out, other)
    assert "cannot be read: starting over" in caplog.text
    restore_video(clip, fresh, other)
    assert out.read_bytes() == fresh.read_bytes()


def test_other_settings_start_afresh_and_say_so(
    clip, settings, whole, tmp_path, made, monkeypatch, caplog
):
    out = tmp_path / "out.mp4"
    stopped(clip, out, settings.replace(crf=40), monkeypatch)
    made.clear()
    restore_video(clip, out, settings)
    assert made == [0, 1, 2] and bytes_of(out) == whole
    assert (
        "the settings differ from the last run (crf: 40 then, 18 now): starting over" in caplog.text
    )


def test_a_finished_film_of_other_settings_is_made_again(
    clip, settings, whole, tmp_path, made, caplog
):
    out = tmp_path / "out.mp4"
    out.write_bytes(whole[0])
    sidecar_path(out).write_bytes(whole[1])
    restore_video(clip, out, settings, end=0.5)
    assert (
        made == [0]
        and len(decoded(out)) == 15
        and "with other settings or from another video" in caplog.text
    )


def test_another_film_under_the_same_name_starts_afresh(
    clip, settings, tmp_path, made, monkeypatch, caplog
):
    source, out = tmp_path / "in.mp4", tmp_path / "out.mp4"
    source.write_bytes(clip.read_bytes())
    stopped(source, out, settings, monkeypatch)
    make_film(source, 20, (SIDE, SIDE))
    made.clear()
    restore_video(source, out, settings)
    assert made == [0, 1] and "input_sha256" in caplog.text and len(decoded(out)) == 20
    assert json.loads(sidecar_path(out).read_text())["totals"]["passed_through"] == {"no face": 20}


@pytest.mark.parametrize("damage", [Path.unlink, garbled])
def test_a_result_that_is_gone_or_damaged_is_made_again(
    clip, settings, whole, tmp_path, made, caplog, damage
):
    out = tmp_path / "out.mp4"
    out.write_bytes(whole[0])
    sidecar_path(out).write_bytes(whole[1])
    damage(out)
    restore_video(clip, out, settings)
    assert made == [0, 1, 2] and bytes_of(out) == whole and "starting over" in caplog.text


@pytest.mark.parametrize(
    "text", ["", "[]", '{"job": "x"}', '{"job": {"facts": {"threads": 1}}}', "\x00\xff"]
)
def test_a_file_beside_it_that_is_not_ours_is_not_replaced(clip, settings, tmp_path, made, text):
    out = tmp_path / "out.mp4"
    sidecar_path(out).write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match="without out.mp4.json, .*--overwrite replaces it"):
        restore_video(clip, out, settings, end=0.1)
    assert sidecar_path(out).read_text(encoding="latin-1") == text and not out.exists()
    restore_video(clip, out, settings.replace(overwrite=True), end=0.1)
    assert made == [0] and json.loads(sidecar_path(out).read_text())["totals"]["frames"] == 3


def test_the_head_of_the_file_beside_it_is_read_alone(tmp_path):
    path, head = tmp_path / "film.mp4.json", {"totals": {"frames": 2}, "job": {"notes": "["}}
    write_sidecar(path, head, iter([{"strength": 0.5}, {"passthrough": 'a "notes": [ in it'}]))
    whole = json.loads(path.read_text())
    assert (
        whole.pop("notes") == [{"strength": 0.5}, {"passthrough": 'a "notes": [ in it'}]
        and whole == head
    )
    assert read_head(path) == head
    path.write_text(path.read_text()[: path.read_text().index("strength")])
    assert read_head(path) == head, "what stands before the notes needs nothing of them"
    write_sidecar(path, head, [])
    assert read_head(path) == head and json.loads(path.read_text())["notes"] == []


def test_notes_that_cannot_be_had_are_named(tmp_path):
    def notes():
        yield {}
        raise MediaError(tmp_path / "units" / "000001.json", "is missing or damaged")

    with pytest.raises(MediaError, match="^[^:]*000001.json: is missing or damaged$"):
        write_sidecar(tmp_path / "film.json", {"totals": {}}, notes())
    with pytest.raises(MediaError, match="film.json: cannot be written"):
        write_sidecar(tmp_path / "missing" / "film.json", {"totals": {}}, [])


@pytest.mark.parametrize(
    "text", ["", "{}", '"notes": [', "x" * 2**20 + '\n"notes": [', '{"a": 1}\n"notes": [', "\xff"]
)
def test_a_head_of_something_else_is_none(tmp_path, text):
    (tmp_path / "film.mp4.json").write_bytes(text.encode("latin-1"))
    assert read_head(tmp_path / "film.mp4.json") is None and read_head(tmp_path / "missing") is None


def test_a_stretch_is_that_stretch(clip, settings, tmp_path):
    out = tmp_path / "out.mp4"
    restore_video(clip, out, settings.replace(crf=0), start=0.4, end=0.8)
    assert len(decoded(out)) == 12 and times(out)[:2] == [0, Fraction(1, 30)]
    with excerpt(clip, out, 0.4, 0.8) as part:
        assert same_planes(decoded(part), decoded(clip)[12:24]) and times(part) == times(out)
        assert part.parent.parent == tmp_path
    assert not part.exists() and bytes_of(out)
    with excerpt(clip, out, None, None) as part:
        assert part == clip


def turned_film(path, frames, name) -> Path:
    """Upright frames as a phone stores them: rotated, with a display matrix that rotates back."""
    back = {90: 270, 270: 90}.get(name, name)
    stored = [np.ascontiguousarray(as_displayed(frame, back)) for frame in frames]
    height, width = stored[0].shape[:2]
    with VideoWriter(path, Fraction(25), (width, height), crf=1) as writer:
        for frame in stored:
            writer.write(frame)
    return turn(path, (QUARTERS | FLIPS)[name])


@pytest.mark.parametrize("name", [*QUARTERS, *FLIPS])
def test_a_turned_film_stays_turned(small, settings, tmp_path, monkeypatch, name):
    upright = small[: SEGMENT + 4, :, 16:-16]
    source, out = turned_film(tmp_path / "in.mp4", upright, name), tmp_path / "out.mp4"
    settings = settings.replace(crf=1)
    stopped(source, out, settings, monkeypatch, after=SEGMENT + 2)
    done = restore_video(source, out, settings)
    assert done.resumed == SEGMENT
    index = index_video(out)
    assert index.display_matrix == index_video(source).display_matrix == (QUARTERS | FLIPS)[name]
    assert (index.width, index.height) == (SIDE - 32, SIDE)
    assert done.stats["totals"]["restored"] == len(upright), "faces are detected upright"
    face = np.s_[SIDE // 4 : SIDE * 3 // 4, SIDE // 4 : SIDE // 2]
    for before, after in zip(upright, read_frames(out), strict=True):
        distance = np.abs(before.astype(int) - after)
        assert distance[:8].mean() < 4 < distance[face].mean() + 2
    with pytest.raises(MediaError, match="rotation|flip"):
        restore_video(source, tmp_path / "out.mkv", settings)


@pytest.mark.parametrize("name", [*QUARTERS, *FLIPS])
def test_a_turned_film_with_nothing_to_restore_is_displayed_the_same(
    small, settings, tmp_path, name
):
    record = replace(RECORD, input_size=128, output_size=128)  # that of the crops: no resize
    identity = partial(load_fake, function=lambda faces: faces, record=record)
    source = turned_film(tmp_path / "in.mp4", small[:6, :, 16:-16], name)
    with pytest.MonkeyPatch.context() as patch:  # undone before `cheap` is: it patches it, too
        patch.setattr(model_loader, "load", identity)
        done = restore_video(source, tmp_path / "out.mp4", settings.replace(crf=0))
    assert done.stats["totals"]["faces"] == 6 and done.stats["totals"]["restored"] == 0
    for before, after in zip(read_frames(source), read_frames(done.output), strict=True):
        assert np.array_equal(before, after)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_no_sound_and_uneven_times(small, settings, tmp_path, monkeypatch, suffix):
    uneven = [0, 7, 40, 41, 90, 200, 201, 203, 260, 300]
    monkeypatch.setattr(clips, "picture", lambda at, size_wh: small[at])
    source = make_film(
        tmp_path / f"in{suffix}", 10, (SIDE, SIDE), pts=uneven, time_base=Fraction(1, 1000)
    )
    done = restore_video(source, tmp_path / f"out{suffix}", settings)
    assert (
        times(done.output) == [Fraction(at, 1000) for at in uneven]
        and done.stats["totals"]["restored"] == 10
    )
    assert not index_video(done.output).audio


def test_what_is_refused(clip, settings, tmp_path, made):
    inside = tmp_path / "in.mp4"
    inside.write_bytes(clip.read_bytes())
    (tmp_path / "link.mp4").symlink_to(inside)
    for output in (inside, tmp_path / "link.mp4", tmp_path / "x" / ".." / "in.mp4"):
        with pytest.raises(ConfigError, match="another file than IN"):
            restore_video(inside, output, settings)
    with pytest.raises(MediaError, match="not a supported container"):
        restore_video(inside, tmp_path / "out.webm", settings)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.mp4")
        with pytest.raises(MediaError, match="not a regular file"):
            restore_video(tmp_path / "pipe.mp4", tmp_path / "out.mp4", settings)
        (tmp_path / "pipe.mp4").unlink()
    with pytest.raises(MediaError, match="folder does not exist"):
        restore_video(inside, tmp_path / "nowhere" / "out.mp4", settings)
    with pytest.raises(ConfigError, match="end"):
        restore_video(inside, tmp_path / "out.mp4", settings, start=1, end=1)
    with pytest.raises(MediaError, match="does not exist"):
        restore_video(tmp_path / "missing.mp4", tmp_path / "out.mp4", settings)
    assert {path.name for path in tmp_path.iterdir()} - {"weight-cache"} == {"in.mp4", "link.mp4"}
    assert not made and inside.read_bytes() == clip.read_bytes()


def test_a_network_that_cannot_be_loaded_leaves_nothing(clip, settings, tmp_path):
    with pytest.raises(Exception, match="weight"):
        restore_video(clip, tmp_path / "out.mp4", settings.replace(model="gfpgan-1.4"))
    assert not parts_folder(tmp_path / "out.mp4").exists()


def test_two_runs_at_once_are_refused(clip, settings, tmp_path):
    out = tmp_path / "out.mp4"
    with locked(parts_folder(out)):
        with pytest.raises(ConfigError, match="no other run"):
            restore_video(clip, out, settings)
        assert (parts_folder(out) / FOLDER).is_dir(), "it is the other one's"


def test_a_film_without_times_is_cut_into_few_segments(tmp_path):
    index = index_video(make_film(tmp_path / "film.mp4", 200, (32, 32)))
    counted = replace(index, counted=True)
    assert segment_of(index, VideoSettings(segment=16)) == 16
    assert (
        segment_of(counted, VideoSettings(segment=16)) == 25
        and segment_of(counted, VideoSettings()) == 240
    )


KILLED = """
import sys
import torch
from musetalk_enhance.jobs import VideoSettings, restore_video, video, video_processor
from musetalk_enhance.pipeline import engine
engine.crop_size, video_processor.PREROLL, video.PREROLL = lambda _: 128, 4, 4
torch.set_num_threads(1)
source, out, detector, *quick = sys.argv[1:]
settings = VideoSettings(detector_path=detector, **eval(quick[0]))
restore_video(source, out, settings, progress=lambda done, total: print(done, flush=True))
"""


def test_kill_9_in_the_middle(clip, settings, lite, tmp_path, made):
    out = tmp_path / "out.mp4"
    words = [
        sys.executable,
        "-c",
        KILLED,
        str(clip),
        str(out),
        str(settings.detector_path),
        repr(QUICK),
    ]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        for line in run.stdout:
            if int(line) > SEGMENT:
                break
        os.kill(run.pid, signal.SIGKILL)
    assert run.returncode == -signal.SIGKILL and not out.exists()
    done = restore_video(clip, out, settings)
    assert bytes_of(out) == lite and done.resumed in (0, SEGMENT, 2 * SEGMENT) and len(made) < 4


def test_checking_the_output_writes_no_file(clip, tmp_path, monkeypatch):
    """A run that is killed while it checks leaves nothing: the check writes to memory."""
    opened, plain = [], av.open

    def note(file, mode="r", *args, **options):
        opened.append((str(file), mode))
        return plain(file, mode, *args, **options)

    monkeypatch.setattr(av, "open", note)
    assert check_output(index_video(clip), clip, tmp_path / "out.mp4") == ()
    assert [file for file, mode in opened if mode == "w" and "BytesIO" not in file] == []
    assert any(mode == "w" for _, mode in opened) and not list(tmp_path.iterdir())


def test_a_network_that_fails_at_some_faces_is_counted_and_the_next_run_does_better(
    clip, settings, whole, tmp_path, made, monkeypatch, caplog
):
    plain, calls = FakeRestorer.restore, []

    def fails(self, faces_rgb):
        calls.append(len(faces_rgb))
        if 3 <= len(calls) < 3 + video_processor.CHUNK + 1:
            raise RuntimeError("the driver is gone")
        return plain(self, faces_rgb)

    monkeypatch.setattr(FakeRestorer, "restore", fails)
    out = tmp_path / "out.mp4"
    first = restore_video(clip, out, settings)
    assert 0 < first.errors <= video_processor.CHUNK and "notes" not in first.stats
    assert first.stats["totals"]["left"] == {"restorer: RuntimeError": first.errors}
    assert bytes_of(out) != whole
    monkeypatch.setattr(FakeRestorer, "restore", plain)
    again = restore_video(clip, out, settings)
    assert again.errors == 0 and "the network failed: starting over" in caplog.text
    assert bytes_of(out) == whole


@pytest.fixture(scope="module")
def broken(clip):
    """The clip with two packets of noise, and as many frames."""
    rng = np.random.default_rng(3)

    def edit(packet, at):
        return rng.bytes(packet.size) if at in (12, 41) else bytes(packet)

    return clips.remuxed(clip, clip.with_name("broken.mp4"), edit)


def test_damaged_frames_go_through_and_are_named(broken, clip, settings, tmp_path, caplog):
    out = tmp_path / "out.mp4"
    result = restore_video(broken, out, settings)
    runs = result.stats["totals"]["damage"]
    damaged = [frame for _, first, last in runs for frame in range(first, last + 1)]
    assert damaged and len(damaged) == len(set(damaged)) < COUNT
    notes = json.loads(sidecar_path(out).read_text())["notes"]
    assert [number for number, note in enumerate(notes) if "damage" in note] == damaged
    assert len(decoded(out)) == COUNT and times(out) == times(clip)
    warnings = [record.message for record in caplog.records if "--strict" in record.message]
    assert len(warnings) == 1 and f"{len(damaged)} frame" in warnings[0]
    with excerpt(broken, out, None, None, damaged=True) as copy:
        assert len(decoded(copy)) == COUNT


def test_strict_ends_at_damage(broken, settings, tmp_path):
    with pytest.raises(MediaError, match="damaged"):
        restore_video(broken, tmp_path / "out.mp4", settings.replace(strict=True))
    assert not (tmp_path / "out.mp4").exists()


def test_frames_missing_from_the_table_of_times_are_named(settings, tmp_path, caplog):
    path = clips.make_film(tmp_path / "film.mp4", 30)
    data = bytearray(path.read_bytes())
    at = data.index(b"stts") + 12  # the first entry's number of frames
    data[at : at + 4] = (20).to_bytes(4, "big")
    path.write_bytes(data)
    restore_video(path, tmp_path / "out.mp4", settings)
    (warning,) = [each.message for each in caplog.records if "table of times" in each.message]
    assert "10 frames missing" in warning


def test_what_the_output_will_not_hold_is_one_warning(settings, tmp_path, caplog):
    path = clips.make_film(
        tmp_path / "film.mkv", 2, (65, 48), codec="libvpx-vp9", tags={"MOOD": "calm"}
    )
    restore_video(path, tmp_path / "out.mp4", settings)
    (warning,) = [each.message for each in caplog.records if "will not hold" in each.message]
    assert "65 x 48 pixels" in warning and "the tags MOOD" in warning


def test_names_that_fit_nowhere_are_refused_before_the_work(clip, settings, tmp_path):
    with pytest.raises(MediaError, match="no valid name"):
        restore_video(clip, tmp_path / f"{'n' * 250}.mp4", settings)
    (tmp_path / "out.mp4.json").mkdir()
    with pytest.raises(MediaError, match="out.mp4.json: is a folder"):
        restore_video(clip, tmp_path / "out.mp4", settings)
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(MediaError, match="folder.mp4: is a folder"):
        restore_video(clip, tmp_path / "folder.mp4", settings)
    assert not list(tmp_path.glob(".*"))


def test_a_file_that_is_not_ours_is_not_replaced(clip, settings, tmp_path):
    (tmp_path / "out.mp4").write_text("mine")
    with pytest.raises(ConfigError, match="out.mp4.*--overwrite"):
        restore_video(clip, tmp_path / "out.mp4", settings, end=0.1)
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    assert (tmp_path / "out.mp4").read_text() == "mine"
    restore_video(clip, tmp_path / "out.mp4", settings.replace(overwrite=True), end=0.1)
    assert restore_video(clip, tmp_path / "out.mp4", settings, end=0.1).resumed == 3


class Recognizer:
    """In place of SFace: tells people by the brightness of the whole image."""

    weight_name, limit = "sface", 0

    def __init__(self, download):
        assert not download

    def embed(self, image_bgr, face):
        return np.array((1, 0) if image_bgr.mean() > self.limit else (0, 1), np.float32)


def test_a_photo_of_the_person(clip, small, settings, whole, tmp_path, made, caplog, monkeypatch):
    """Everybody on the photo is restored; another photo under the same name starts over."""
    monkeypatch.setattr(model_loader, "SFace", Recognizer)
    photo, out = tmp_path / "photo.png", tmp_path / "out.mp4"
    cv2.imwrite(str(photo), small[0])
    chosen = settings.replace(face=str(photo))
    result = restore_video(clip, out, chosen)
    assert out.read_bytes() == whole[0] and result.stats["totals"]["left"] == {}
    text = sidecar_path(out).read_text()
    assert str(tmp_path) not in text and {"face", "face_recognizer"} <= set(
        result.stats["job"]["helpers_sha256"]
    )
    made.clear()
    assert restore_video(clip, out, chosen).resumed == COUNT and not made
    cv2.imwrite(str(photo), small[5])
    restore_video(clip, out, chosen)
    assert made == [0, 1, 2] and "with other settings or from another video" in caplog.text


def test_nobody_on_the_photo(clip, small, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(model_loader, "SFace", Recognizer)
    monkeypatch.setattr(Recognizer, "limit", small[0].mean() / 2)
    photo, out = tmp_path / "photo.png", tmp_path / "out.mp4"
    cv2.imwrite(str(photo), small[0] // 4)
    totals = restore_video(clip, out, settings.replace(face=(str(photo),))).stats["totals"]
    assert totals["left"] == {"not selected": COUNT} and totals["restored"] == 0
    assert totals["passed_through"] == {"no face": 0, "not selected": COUNT}


def test_a_photo_that_shows_nobody_is_an_error(clip, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(model_loader, "SFace", Recognizer)
    photo = tmp_path / "photo.png"
    cv2.imwrite(str(photo), np.full((64, 64, 3), 90, np.uint8))
    with pytest.raises(ConfigError, match="photo with one face.*finds 0"):
        restore_video(clip, tmp_path / "out.mp4", settings.replace(face=str(photo)))
    with pytest.raises(MediaError, match="nowhere.png"):
        restore_video(
            clip, tmp_path / "out.mp4", settings.replace(face=str(tmp_path / "nowhere.png"))
        )
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


def test_without_the_recognizer_the_command_is_named(clip, small, settings, tmp_path):
    photo = tmp_path / "photo.png"
    cv2.imwrite(str(photo), small[0])
    with pytest.raises(MissingWeightError, match="musetalk-enhance weights fetch sface"):
        restore_video(clip, tmp_path / "out.mp4", settings.replace(face=str(photo)))


def test_a_point_outside_the_frame_is_an_error(clip, settings, tmp_path):
    with pytest.raises(ConfigError, match=f"at: .*frame of {SIDE}x{SIDE} pixels"):
        restore_video(clip, tmp_path / "out.mp4", settings.replace(at=(SIDE + 1, 0)))
    assert not list(tmp_path.iterdir())
