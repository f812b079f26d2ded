"""``musetalk-enhance report``: exit codes, files, what is printed."""

from __future__ import annotations

import json
import os
import sys
from fractions import Fraction

import cv2
import numpy as np
import pytest

from musetalk_enhance.cli import main
from musetalk_enhance.media import VideoWriter
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A talking head with a soft face, and the original; a tinted one beside them."""
    sys.path.insert(0, str(ROOT / "examples"))
    from talking_head import talking_head

    folder = tmp_path_factory.mktemp("clips")
    names = ("in.mp4", "out.mp4", "tinted.mp4")
    writers = [VideoWriter(folder / name, Fraction(25), (224, 224), crf=12) for name in names]
    for frame, (left, top, right, bottom) in talking_head(16, 224):
        soft, tinted = frame.copy(), frame.copy()
        face = frame[top:bottom, left:right]
        small = cv2.resize(face, (36, 48), interpolation=cv2.INTER_AREA)
        soft[top:bottom, left:right] = cv2.resize(
            small, face.shape[1::-1], interpolation=cv2.INTER_CUBIC
        )
        tinted[top:bottom, left:right] = np.clip(face.astype(int) + (0, 0, 6), 0, 255)
        for writer, image in zip(writers, (soft, frame, tinted), strict=True):
            writer.write(image)
    for writer in writers:
        writer.close()
    return folder


def test_a_report_is_written(clips, tmp_path, capsys):
    words = [
        "report",
        str(clips / "in.mp4"),
        str(clips / "out.mp4"),
        "--reference",
        str(clips / "out.mp4"),
    ]
    assert main([*words, "--out", str(tmp_path / "made"), "--title", "My clip"]) == 0
    printed = capsys.readouterr()
    assert "Warping error, after/before" in printed.out and "Mouth: " in printed.out
    assert "where the clips differ" in printed.err and "report.html" in printed.err
    assert "32/32" in printed.err  # the bar: 16 frames, read twice
    numbers = json.loads((tmp_path / "made" / "report.json").read_text())
    assert numbers["title"] == "My clip" and numbers["frames"] == 16
    assert "<h1>My clip</h1>" in (tmp_path / "made" / "report.html").read_text(encoding="utf-8")


def test_strict_is_exit_code_1_where_a_line_fails(clips, tmp_path, capsys):
    words = [
        "report",
        str(clips / "in.mp4"),
        str(clips / "tinted.mp4"),
        "--out",
        str(tmp_path),
        "--json",
    ]
    assert main([*words, "--quiet"]) == 0
    assert "32/32" not in (printed := capsys.readouterr()).err
    lines = {line["key"]: line for line in json.loads(printed.out)}
    assert lines["drift"]["state"] == "fail" and lines["drift"]["value"] > 3
    assert main([*words, "--strict"]) == 1


def test_the_sidecar_of_the_enhancer(clips, tmp_path, capsys):
    sidecar = clips / "out.mp4.json"
    notes = [{"passthrough": "NaN"}, {"strength": 0.5}]
    sidecar.write_text(
        json.dumps({"notes": notes, "totals": {"restored": 15, "ms": {"network": 300.0}}})
    )
    words = [
        "report",
        str(clips / "in.mp4"),
        str(clips / "out.mp4"),
        "--out",
        str(tmp_path),
        "--box",
        "60,5,170,180",
    ]
    try:
        assert main(words) == 0
    finally:
        sidecar.unlink()
    numbers = json.loads((tmp_path / "report.json").read_text())
    assert numbers["events"] == {"passthrough": {"frames": {"NaN": 1}, "runs": [[0, 0, "NaN"]]}}
    assert "300 ms, 20.0 ms per face" in (tmp_path / "report.html").read_text(encoding="utf-8")
    bad = tmp_path / "bad.json"
    for text in ("[1]", "no JSON", '{"notes": 3}', "[" * 100_000):
        bad.write_text(text)
        assert main([*words, "--sidecar", str(bad)]) == 2
        assert "--sidecar" in capsys.readouterr().err
    for path in (str(tmp_path / "none.json"), os.devnull, str(tmp_path)):
        assert main([*words, "--sidecar", path]) == 2
        assert f"--sidecar: invalid value '{path}'" in capsys.readouterr().err


@pytest.mark.parametrize("box", ["1,2,3", "a,b,c,d", "5,5,5,9", "-1,0,5,5"])
def test_boxes_that_are_none(box, capsys):
    assert main(["report", "in.mp4", "out.mp4", f"--box={box}"]) == 2
    assert "--box" in capsys.readouterr().err


def test_typed_errors(clips, tmp_path, capsys, monkeypatch):
    pair = ["report", str(clips / "in.mp4"), str(clips / "out.mp4")]
    assert main([*pair[:2], str(tmp_path / "none.mp4")]) == 2
    assert main([*pair, "--box", "0,0,500,500"]) == 2
    error = capsys.readouterr().err
    assert "does not exist" in error and "224x224" in error
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(pair) == 2
    assert "pip install 'musetalk_enhance[report]'" in capsys.readouterr().err
