"""``musetalk-enhance video``: exit codes, what is printed, the report, the range."""

from __future__ import annotations

import argparse
import json
from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch

from musetalk_enhance.cli import main, video
from musetalk_enhance.jobs import model_loader
from musetalk_enhance.jobs.models import LoadedModel
from musetalk_enhance.jobs.video_processor import VideoProcessor
from musetalk_enhance.media import VideoWriter, index_video, read_frames
from musetalk_enhance.pipeline import engine
from musetalk_enhance.restorers.base import LoadRequest
from musetalk_enhance.restorers.catalog import Choice, Model
from tests.conftest import RECORD, FakeRestorer
from tests.media.clips import make_film

PLAIN = [
    "--model",
    "lite",
    "--stability",
    "0",
    "--guard",
    "false",
    "--sharpness-gate",
    "false",
    "--segment",
    "16",
    "--preset",
    "ultrafast",
]


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    """A network that is none, small faces and one thread."""

    def load(settings, *, pinned=None):
        enhancer = settings.enhancer()
        restorer = FakeRestorer(
            LoadRequest(RECORD, enhancer, torch.device("cpu")), lambda faces: faces * 0.9
        )
        return LoadedModel(
            restorer, Choice(Model(RECORD, lambda: FakeRestorer), enhancer), None, []
        )

    monkeypatch.setattr(model_loader, "load", load)
    monkeypatch.setattr(engine, "crop_size", lambda _: 128)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def clip(shared, tmp_path_factory):
    """16 frames of a real clip, 256 px wide."""
    path = tmp_path_factory.mktemp("clip") / "in.mp4"
    with VideoWriter(path, Fraction(30), (256, 256), crf=12) as writer:
        for at, frame in enumerate(read_frames(shared / "data/clips/d18.mp4")):
            if at == 16:
                break
            writer.write(cv2.resize(frame, (256, 256), interpolation=cv2.INTER_AREA))
    return path


@pytest.fixture
def words(clip, shared, tmp_path):
    """A call that works."""
    detector = shared / "weights/face_detection_yunet_2023mar.onnx"
    return ["video", str(clip), str(tmp_path / "out.mp4"), "--detector-path", str(detector), *PLAIN]


def test_one_line_for_a_person_and_none_when_it_is_done(words, tmp_path, capsys, monkeypatch):
    assert main(words) == 0
    printed = capsys.readouterr()
    assert f"{tmp_path / 'out.mp4'}: 16 faces in 16 of 16 frames restored by fake" in printed.out
    assert " of 255 at strength " in printed.out
    assert "16/16" in printed.err and "frame/s" in printed.err, "a bar with rate"
    monkeypatch.setattr(VideoProcessor, "process", None)
    assert main([*words, "--quiet"]) == 0
    printed = capsys.readouterr()
    assert "16 frames restored by an earlier run" in printed.out and "already done" in printed.err
    assert "frame/s" not in printed.err


def test_faces_that_are_left_alone_are_not_counted_as_restored(words, tmp_path, capsys):
    assert main([*words, "--strength", "0"]) == 0
    printed = capsys.readouterr()
    assert "0 faces in 0 of 16 frames restored by fake; left alone: 16 strength 0;" in printed.out
    assert (
        "16 of 16 faces left alone (16 strength 0); to restore more, set --strength 1"
        in printed.err
    )
    totals = json.loads((tmp_path / "out.mp4.json").read_text())["totals"]
    assert totals["faces"] == 16 and totals["faces_restored"] == 0 and totals["mean_change"] is None


def test_faces_are_selected_by_flags(words, capsys):
    assert main([*words, "--at", "128,128", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["job"]["settings"]["at"] == [128, 128]
    assert main([*words, "--at", "128"]) == 2
    assert "--at: invalid value '128'; expected X,Y in pixels" in capsys.readouterr().err
    assert main([*words, "--face", "no.jpg", "--face", "b.jpg"]) == 2
    assert "no.jpg: cannot be read" in capsys.readouterr().err


def test_json_is_all_there_is_on_stdout(words, tmp_path, capsys):
    assert main([*words, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    beside = json.loads((tmp_path / "out.mp4.json").read_text())
    assert summary["output"] == str(tmp_path / "out.mp4") and summary["seconds"] > 0
    assert (
        summary["totals"] == beside["totals"]
        and summary["job"] == beside["job"]
        and "notes" not in summary
    )


def test_quiet_says_nothing_on_stderr(words, capsys):
    assert main([*words, "--quiet"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("clip_range", [(), ("--start", "0:00.2", "--end", "0:00:00.5")])
def test_a_report(words, tmp_path, capsys, clip_range):
    pytest.importorskip("skimage")
    pytest.importorskip("matplotlib")
    assert (
        main([*words, "--quiet", "--json", "--report", str(tmp_path / "report"), *clip_range]) == 0
    )
    printed = capsys.readouterr()
    numbers = json.loads((tmp_path / "report/report.json").read_text())
    count = 9 if clip_range else 16
    assert json.loads(printed.out)["totals"]["frames"] == numbers["frames"] == count
    assert numbers["title"] == "in.mp4 → out.mp4" and "report.html" in printed.err
    assert (tmp_path / "report/report.html").stat().st_size > 10_000
    beside = {path.name for path in tmp_path.iterdir()} - {"weight-cache"}
    assert beside == {"out.mp4", "out.mp4.json", "report"}, "the excerpt is gone"


def test_a_report_of_a_film_of_odd_size(words, tmp_path, capsys):
    pytest.importorskip("skimage")
    pytest.importorskip("matplotlib")
    odd = make_film(tmp_path / "odd.mp4", 8, (95, 63), pix_fmt="yuv444p")
    words[1] = str(odd)
    assert main([*words, "--report", str(tmp_path / "report")]) == 0
    assert (index_video(tmp_path / "out.mp4").width, index_video(tmp_path / "out.mp4").height) == (
        95,
        63,
    )


def test_3_where_the_film_cannot_be_read(words, tmp_path, capsys):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no film")
    for source in (broken, tmp_path / "missing.mp4", cut_off(tmp_path)):
        words[1] = str(source)
        assert main(words) == 3
        printed = capsys.readouterr()
        assert str(source) in printed.err and not printed.out
    assert {path.suffix for path in tmp_path.iterdir() if "out" in path.name} == set()


def cut_off(folder):
    path = make_film(folder / "whole.mp4", 40)
    short = folder / "short.mp4"
    short.write_bytes(path.read_bytes()[:-600])
    return short


def test_a_damaged_frame_in_the_middle_ends_only_a_strict_run(words, clip, tmp_path, capsys):
    """The packets are all there, so it is seen only when it is decoded."""
    index, data = index_video(clip), bytearray(clip.read_bytes())
    at = data.index(b"mdat") + 4
    data[at + 3000 : at + 6000] = bytes(np.random.default_rng(0).integers(0, 256, 3000, np.uint8))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(data)
    assert len(index_video(broken)) == len(index)
    words[1] = str(broken)
    assert main([*words, "--strict"]) == 3 and "broken.mp4" in capsys.readouterr().err
    assert not (tmp_path / "out.mp4").exists()
    assert main(words) == 0 and "damaged" in capsys.readouterr().err
    assert len(index_video(tmp_path / "out.mp4")) == len(index)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--crf", "99"], "--crf"),
        (["--face-detector", "none"], "--face-detector"),
        (["--no-such-thing"], "--no-such-thing"),
        (["--start", "-1"], "--start"),
        (["--start", "0.4", "--end", "0.2"], "end"),
        (["--workers", "2"], "--workers"),
        (["--upscale", "2"], "--upscale"),
    ],
)
def test_2_where_the_call_is_wrong(words, tmp_path, capsys, more, message):
    assert main([*words, *more]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out.mp4").exists()


def test_2_where_the_output_is_impossible(words, clip, tmp_path, capsys):
    for output, message in (
        (clip, "another file than IN"),
        (tmp_path / "out.gif", "not a supported container"),
        (tmp_path / "a/b.mp4", "folder"),
    ):
        words[2] = str(output)
        assert main(words) == 2 and message in capsys.readouterr().err


def test_help_names_the_options(capsys):
    assert main(["video", "--help"]) == 0
    printed = capsys.readouterr().out
    for name in (
        "--start",
        "--end",
        "--report",
        "--crf",
        "--segment",
        "--quiet",
        "--json",
        "--only-center-face",
    ):
        assert name in printed


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("83.5", 83.5),
        ("0", 0.0),
        ("1:23.5", 83.5),
        ("0:01:23.5", 83.5),
        ("2:0:0", 7200.0),
        (".5", 0.5),
        ("1:8.2", 68.2),
    ],
)
def test_times(text, seconds):
    assert video._seconds(text) == seconds


def test_decimals_of_times_are_those_that_were_written():
    for hundredths in range(0, 6000, 7):
        seconds = (6000 + hundredths) / 100
        assert str(video._seconds(f"1:{hundredths / 100}")) == str(seconds), "not 68.03999999999999"


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "1:60", "1:2:3:4", "1.5:00", "nan", "inf", "1::2", "1e3", "+1", "1_0"]
)
def test_what_is_no_time(text):
    with pytest.raises(argparse.ArgumentTypeError, match="invalid time"):
        video._seconds(text)
