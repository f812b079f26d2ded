"""``musetalk-enhance images``: exit codes, what is printed where, and real detectors."""

from __future__ import annotations

import dataclasses
import json
import shutil

import cv2
import numpy as np
import pytest

from musetalk_enhance.cli import main
from musetalk_enhance.cli.job import flag
from musetalk_enhance.jobs import ImageSettings
from musetalk_enhance.jobs.images import STATS
from musetalk_enhance.pipeline.stats import counted
from musetalk_enhance.restorers.catalog import AUTO_ORDER
from tests.jobs.conftest import ADDED, files, network, put, read  # noqa: F401 - a fixture

YUNET, SMALL = "face_detection_yunet_2023mar.onnx", "detection_mobilenet0.25_Final.pth"
LITE = ["--model", "lite", "--backend", "torch"]


@pytest.fixture
def folders(tmp_path):
    put(tmp_path / "in", "a.png", "sub/b.jpg")
    return tmp_path / "in", tmp_path / "out"


def call(folders, *words: str) -> int:
    return main(["images", str(folders[0]), "--output-dir", str(folders[1]), *words])


def whole(folders, *words: str) -> int:
    """With each picture as one face crop."""
    return call(folders, "--face-detector", "none", *words)


def test_help_lists_every_option(capsys):
    assert main(["images", "--help"]) == 0
    printed = capsys.readouterr().out
    words = [flag(option.name) for option in dataclasses.fields(ImageSettings)]
    words += [
        "--output-dir",
        "--num-samples",
        "--sweep",
        "--engine",
        "--json",
        "--quiet",
        "INPUT_DIR",
    ]
    assert [word for word in words if word not in printed] == []
    assert all(
        word in printed for word in ("retinaface", "yunet", "realesrgan", "codeformer", "parsed")
    )


def test_a_folder_is_restored_and_summarized(network, folders, capsys):  # noqa: F811
    assert whole(folders) == 0
    printed = capsys.readouterr()
    assert "2 faces in 2 images restored by fake" in printed.out
    assert (
        "of 255 at strength 1.00 in the mean" in printed.out
        and "left alone" not in printed.out + printed.err
    )
    assert set(files(folders[1])) == {STATS, "restored/a.png", "restored/sub/b.jpg"}
    assert "2/2" in printed.err  # the bar
    assert whole(folders) == 0
    assert "2 images restored by an earlier run" in capsys.readouterr().out


def test_faces_left_alone_are_not_counted_as_restored(network, folders, capsys):  # noqa: F811
    assert whole(folders, "--strength", "0") == 0
    printed = capsys.readouterr()
    assert "0 faces in 2 images restored by fake; left alone: 2 strength 0;" in printed.out
    assert (
        "2 of 2 faces left alone (2 strength 0); to restore more, set --strength 1" in printed.err
    )
    assert (folders[1] / "restored/a.png").read_bytes() == (folders[0] / "a.png").read_bytes()
    stats = json.loads((folders[1] / STATS).read_text())
    assert stats["faces"]["restored"] == 0 and stats["faces"]["left"] == {"strength 0": 2}
    assert stats["faces"]["mean_strength"] is stats["faces"]["mean_change"] is None


def test_json_alone_is_on_stdout(network, folders, capsys):  # noqa: F811
    (folders[0] / "bad.png").write_bytes(b"no picture")
    assert whole(folders, "--json") == 3
    printed = capsys.readouterr()
    stats = json.loads(printed.out)
    assert (
        stats["output"] == str(folders[1])
        and stats["seconds"] > 0
        and stats["pictures"]["unreadable"] == 1
    )
    assert (
        "bad.png" in printed.err
        and json.loads((folders[1] / STATS).read_text())["items"] == stats["items"]
    )
    for words, count in ((["--num-samples", "3"], 1), (["--sweep", "strength=0,1"], 2)):
        whole(folders, "--json", *words)
        rows = json.loads(capsys.readouterr().out)
        assert len(rows) == count and all(row["items"] for row in rows)


def test_quiet_shows_no_bar(network, folders, capsys):  # noqa: F811
    assert whole(folders, "--quiet") == 0
    assert "%" not in capsys.readouterr().err


def test_unreadable_pictures_are_exit_code_3(network, folders, capsys):  # noqa: F811
    cv2.imwrite(str(folders[0] / "deep.png"), np.full((64, 64, 3), 3000, np.uint16))
    for _ in range(2):  # also when there is nothing left to do
        assert whole(folders, "--quiet") == 3
        printed = capsys.readouterr()
        assert (
            "deep.png: has 16 bits per channel" in printed.err
            and "1 could not be read, restored or written" in printed.out
        )
    assert "restored/a.png" in files(folders[1]) and "restored/deep.png" not in files(folders[1])
    assert whole(folders, "--quiet", "--num-samples", "5") == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--upscale", "3"], "1 | 2 | 4"),
        (["--fidelity", "2"], "--fidelity"),
        (["--face-detector", "haar"], "yunet | retinaface"),
        (["--model", "gfpgan-9"], "gfpgan-1.4"),
        (["--model", "lite", "--fidelity", "0.5"], "only codeformer has it"),
        (["--num-samples", "0"], "--num-samples"),
        (["--sweep", "strength"], "OPTION=VALUE"),
        (["--min-face", "100"], "face_detector: none"),
        (["--only-center-face"], "face_detector: none"),
        (["--bg-upsampler", "realesrgan"], "face_detector: none"),
        (["--workers", "2"], "--engine ray"),
        (["--strenght", "1"], "unrecognized arguments"),
        (["--device", "tpu"], "--device"),
    ],
)
def test_wrong_calls_are_exit_code_2(folders, words, message, capsys):
    assert whole(folders, *words) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and files(folders[1]) == {}


@pytest.mark.parametrize("what", ["empty", "missing", "itself"])
def test_nothing_to_do_is_exit_code_2(folders, what, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    source = {"empty": tmp_path / "empty", "missing": tmp_path / "no", "itself": folders[0]}[what]
    output = folders[0] if what == "itself" else folders[1]
    assert whole((source, output), *LITE) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (output / STATS).exists()


def test_a_missing_detector_says_what_to_fetch(folders, capsys):
    assert call(folders) == 2
    assert "weights fetch YuNet" in capsys.readouterr().err
    assert call(folders, "--face-detector", "retinaface") == 2
    assert "weights fetch RetinaFace-R50" in capsys.readouterr().err


def test_a_missing_model_says_what_to_fetch(folders, capsys):
    assert whole(folders, "--model", AUTO_ORDER[0]) == 2
    assert "weights fetch GFPGANv1.4" in capsys.readouterr().err


PIXELS = {
    "--strength": "0.5",
    "--upscale": "2",
    "--format": "png",
    "--quality": "40",
    "--save-comparison": "true",
}


@pytest.mark.parametrize("option", PIXELS)
def test_options_change_what_is_written(network, folders, option, tmp_path):  # noqa: F811
    put(folders[0], "c.jpg", size_hw=(80, 80))
    assert whole(folders, "--quiet") == 0
    assert whole((folders[0], tmp_path / "other"), "--quiet", option, PIXELS[option]) == 0
    first, second = files(folders[1]), files(tmp_path / "other")
    assert {k: v for k, v in first.items() if k != STATS} != {
        k: v for k, v in second.items() if k != STATS
    }


def test_options_that_choose_faces_change_what_is_written(network, folders, tmp_path):  # noqa: F811
    put(folders[0], "a.png", "sub/b.jpg", size_hw=(100, 100))
    assert call(folders, "--quiet", "--min-face", "30") == 0
    assert call((folders[0], tmp_path / "none"), "--quiet", "--min-face", "60") == 0
    stats = json.loads((tmp_path / "none" / STATS).read_text())
    assert stats["faces"]["left"] == {"too small": 2} and stats["faces"]["restored"] == 0
    assert (tmp_path / "none/restored/sub/b.jpg").read_bytes() == (
        folders[0] / "sub/b.jpg"
    ).read_bytes()
    restored, original = read(folders[1] / "restored/a.png").astype(int), read(folders[0] / "a.png")
    assert restored[50, 50, 0] - original[50, 50, 0] == pytest.approx(ADDED, abs=1)


@pytest.fixture
def three(shared, tmp_path):
    """Three portraits, and where their results go."""
    (tmp_path / "portraits").mkdir()
    for name in ("s0.jpg", "s6.jpg", "s22.jpg"):
        shutil.copyfile(shared / "data" / "portraits" / name, tmp_path / "portraits" / name)
    return tmp_path / "portraits", tmp_path / "out"


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize(("detector", "file"), [("yunet", YUNET), ("retinaface-mobile", SMALL)])
def test_real_detectors_on_real_portraits(shared, three, detector, file, capsys):
    if detector != "yunet":
        pytest.importorskip("facexlib")
    words = [
        *LITE,
        "--face-detector",
        detector,
        "--detector-path",
        str(shared / "weights" / file),
        "--json",
    ]
    if detector != "yunet":
        assert call(three, *words) == 2
        assert "trust" in capsys.readouterr().err
        words += ["--trust-unpinned"]
    assert call(three, *words) == 0
    stats = json.loads(capsys.readouterr().out)
    assert stats["faces"]["restored"] >= 3 and stats["pictures"]["with_restored_faces"] == 3
    assert len(stats["helpers_sha256"]["face_detector"]) == 64
    for name in ("s0.jpg", "s6.jpg", "s22.jpg"):
        original = read(three[0] / name).astype(int)
        restored = read(three[1] / "restored" / name).astype(int)
        x1, y1, x2, y2 = (
            round(side)
            for side in next(i for i in stats["items"] if i["name"] == name)["faces"][0]["box_xyxy"]
        )
        face = np.abs(restored - original)[max(0, y1) : y2, max(0, x1) : x2].mean()
        # sharp portraits: little to restore, but more than JPEG changes elsewhere
        assert face > 0.2 and np.abs(restored - original)[:20].mean() < face / 2


def test_one_thing_is_one():
    assert [counted(number, "face") for number in (0, 1, 2)] == ["0 faces", "1 face", "2 faces"]
