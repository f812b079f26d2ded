"""`images` and `video` without a detector: one question in a terminal, none elsewhere."""

from __future__ import annotations

import io
import sys

import pytest

from musetalk_enhance import weights
from musetalk_enhance.cli import main
from tests.jobs.conftest import put

QUESTION = "YuNet, 0.2 MB, MIT: fetch now? [Y/n] "


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def fetched(monkeypatch) -> list[str]:
    """Names of the weights that were fetched, from nowhere."""
    names: list[str] = []
    monkeypatch.setattr(weights, "fetch", names.append)
    return names


def call(monkeypatch, tmp_path, command: str, answer: str, *words: str) -> str:
    """What is printed on stderr, a terminal, at which `answer` is typed."""
    put(tmp_path / "in", "a.png")
    paths = {
        "images": [str(tmp_path / "in"), "--output-dir", str(tmp_path / "out")],
        "video": [str(tmp_path / "in/a.mp4"), str(tmp_path / "out.mp4")],
    }
    (tmp_path / "in/a.mp4").write_bytes(b"")
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert main([command, *paths[command], "--model", "lite", *words]) in (2, 3)
    return sys.stderr.getvalue()


@pytest.mark.parametrize("command", ["images", "video"])
@pytest.mark.parametrize(
    ("answer", "names"),
    [("\n", ["YuNet"]), ("Yes\n", ["YuNet"]), ("n\n", []), ("what\n", []), ("", [])],
)
def test_one_question_in_a_terminal(command, answer, names, fetched, monkeypatch, tmp_path):
    assert call(monkeypatch, tmp_path, command, answer).count(QUESTION) == 1
    assert fetched == names


def test_a_refusal_ends_with_the_command(fetched, monkeypatch, tmp_path):
    printed = call(monkeypatch, tmp_path, "images", "n\n")
    assert "musetalk-enhance weights fetch YuNet" in printed.partition(QUESTION)[2]


@pytest.mark.parametrize("stream", ["stdin", "stderr"])
def test_no_question_outside_a_terminal(stream, fetched, monkeypatch, tmp_path):
    monkeypatch.setattr(Terminal, "isatty", lambda self: self is not getattr(sys, stream))
    printed = call(monkeypatch, tmp_path, "images", "\n")
    assert QUESTION not in printed and not fetched
    assert "musetalk-enhance weights fetch YuNet" in printed


@pytest.mark.parametrize(
    ("words", "code"),
    [(["--face-detector", "none"], 0), (["--detector-path", "mine.onnx"], 2)],
    ids=["none", "path"],
)
def test_no_question_where_nothing_is_missing(words, code, fetched, monkeypatch, tmp_path):
    put(tmp_path / "in", "a.png")
    monkeypatch.setattr(sys, "stdin", Terminal("\n"))
    monkeypatch.setattr(sys, "stderr", Terminal())
    out = ["images", str(tmp_path / "in"), "--output-dir", str(tmp_path / "out"), "--model", "lite"]
    assert main([*out, *words]) == code
    assert "[Y/n]" not in sys.stderr.getvalue() and not fetched


def test_another_detector_is_named(fetched, monkeypatch, tmp_path):
    printed = call(monkeypatch, tmp_path, "images", "y\n", "--face-detector", "retinaface")
    assert "RetinaFace-R50, 109.5 MB, MIT: fetch now?" in printed and fetched == ["RetinaFace-R50"]
