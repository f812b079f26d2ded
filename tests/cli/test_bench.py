"""``musetalk-enhance bench``: what a user can choose, with the defaults on."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest

from musetalk_enhance.backends import torch_backend, tuning
from musetalk_enhance.cli import bench, main
from musetalk_enhance.enhancer import GFPGANEnhancer
from tests.conftest import enhancer_around

SHORT = ["bench", "--model", "lite", "--device", "cpu", "--quick", "--batches", "1"]


@pytest.fixture
def settings(monkeypatch) -> list:
    """Enhancers without a network; what they were asked for."""
    asked, real = [], GFPGANEnhancer.from_settings

    def from_settings(settings, restorer=None):
        if restorer is not None:
            return real(settings, restorer)
        asked.append(settings)
        return enhancer_around(None, batch_size=settings.batch_size, on_error=settings.on_error)

    monkeypatch.setattr(GFPGANEnhancer, "from_settings", from_settings)
    return asked


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(words)


def test_the_table_comes_last_and_the_report_is_written(tmp_path, capsys):
    words = [*SHORT, "--backends", "torch,abacus", "--dtypes", "fp32,fp4", "--regions", "lower"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert out.rstrip().splitlines()[-1].startswith("torch fp32 batch 1 lower")
    assert "'fp4'" in out and "'abacus'" in out and "lite on cpu" in out
    report = json.loads((tmp_path / "out" / bench.JSON_FILE).read_text(encoding="utf-8"))
    assert (report["schema"], report["model"], report["device"]) == (2, "lite", "cpu")
    first, *others = report["rows"]
    assert first["reason"] is None and len(others) == 3 and all(row["reason"] for row in others)
    assert {"prepare", "network", "finish", "motion"} <= first["stages_ms"].keys()
    assert first["faces"] == 2 and first["memory_bytes"] > 0 and first["runs_as"] == "torch fp32"
    assert first["faces_per_second"] == pytest.approx(1e3 / first["ms_per_face"], rel=0.01)


def test_defaults_are_on_and_every_combination_is_measured(settings, capsys):
    words = [
        "--backends",
        "torch",
        "--dtypes",
        "fp32",
        "--batches",
        "1,4",
        "--faces",
        "5",
        "--json",
    ]
    assert main(["bench", "--model", "lite", "--device", "cpu", "--rounds", "2", *words]) == 0
    report = json.loads(capsys.readouterr().out)
    names = [
        "torch fp32 batch 1",
        "torch fp32 batch 4",
        "torch fp32 batch 1 lower",
        "torch fp32 batch 4 lower",
    ]
    assert [row["name"] for row in report["rows"]] == names
    assert [row["faces"] for row in report["rows"]] == [5, 8, 5, 8]
    assert all(len(row["ms_per_face_rounds"]) == 2 for row in report["rows"])
    assert all(one.guard_on and one.stability_amount and one.color_match_on for one in settings)


def test_what_may_not_fit_is_not_run(settings, capsys, monkeypatch):
    """The kernel would end the process: from what a batch of 1 took, 4 may need four times that."""
    from musetalk_enhance.runtime import memory

    monkeypatch.setattr(memory, "free_bytes", lambda _: 2**30)
    real = bench._timed

    def timed(options, *rest):
        row = real(options, *rest)
        return row | {"memory_bytes": 2**28 * options["batch_size"] + 1}

    monkeypatch.setattr(bench, "_timed", timed)
    words = ["--backends", "torch", "--dtypes", "fp32", "--regions", "full", "--json"]
    words += ["--model", "lite", "--device", "cpu", "--quick", "--batches", "1,2,4"]
    assert main(["bench", *words]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["reason"] for row in rows[:2]] == [None, None]
    assert rows[2]["reason"] == "may need 1.0 GiB, and 1.0 GiB are free"
    assert [asked.batch_size for asked in settings] == [1, 2]


def test_a_batch_that_was_halved_is_not_shown_as_a_whole_one(settings, capsys, monkeypatch):
    calls = []

    def full(batch):
        calls.append(len(batch))
        if len(batch) > 1:
            raise RuntimeError("out of memory")
        return batch

    settings_to_enhancer = GFPGANEnhancer.from_settings

    def from_settings(settings, restorer=None):
        if restorer is not None:
            return settings_to_enhancer(settings, restorer)
        return enhancer_around(full, batch_size=settings.batch_size)

    monkeypatch.setattr(GFPGANEnhancer, "from_settings", from_settings)
    words = ["--backends", "torch", "--dtypes", "fp32", "--regions", "full", "--json"]
    assert main(["bench", *words, *SHORT[1:5], "--batches", "2"]) == 1
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["reason"] == "out of memory with this batch" and max(calls) == 2


def test_nothing_measured_is_exit_code_1(capsys):
    assert main([*SHORT, "--backends", "abacus", "--dtypes", "fp32"]) == 1
    assert capsys.readouterr().out.rstrip().endswith("no combination could be measured")


def test_combinations_with_one_reason_are_one_line():
    rows = [{"name": name, "reason": "no"} for name in "ab"]
    assert bench.table({"rows": rows})[0] == "not measured: a, b: no"


def test_the_frames_move_little_and_never_repeat():
    frames = bench.moving_frames(8)
    assert frames.shape == (8, 256, 256, 3) and frames.dtype == np.uint8
    steps = [np.abs(frames[index].astype(int) - frames[index - 1]).mean() for index in range(8)]
    assert (
        0 < min(steps)
        and max(steps) < 0.3 * np.abs(frames[0].astype(int) - frames[0].mean()).mean()
    )
    assert np.array_equal(frames, bench.moving_frames(8))
    assert not np.array_equal(*bench.moving_frames(2)) and len(bench.moving_frames(1)) == 1


def test_no_frame_is_left_alone(monkeypatch):
    """Otherwise the figures would be those of frames that skip the network."""
    enhancer = enhancer_around(
        lambda batch: 1.2 * batch - 0.1,
        stability=1,
        guard=True,
        sharpness_gate="auto",
        color_match=True,
    )
    frames = bench.moving_frames(4)
    for _ in range(2):
        enhancer(frames)
    stats = enhancer.stats
    assert (stats.restored, stats.sharp, stats.repeated, stats.cuts) == (
        8,
        0,
        0,
        0,
    ) and not stats.passed_through


def test_emulated_arithmetic_is_not_measured(monkeypatch, capsys):
    monkeypatch.setattr(torch_backend, "is_emulated", lambda dtype: dtype == "bf16")
    assert main([*SHORT, "--backends", "torch", "--dtypes", "bf16"]) == 1
    assert "no bf16 instructions" in capsys.readouterr().out


def test_fp32_is_not_emulated():
    assert not torch_backend.is_emulated("fp32", side=16) and not torch_backend.is_emulated(
        "fp4", side=16
    )
    torch_backend.is_emulated("bf16", side=16)


@pytest.mark.parametrize(
    "words", [["--batches", "0"], ["--batches", "1,x"], ["--rounds", "-1"], ["--backends", ","]]
)
def test_invalid_words_are_exit_code_2(words, capsys):
    assert main(["bench", *words]) == 2
    assert words[0] in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--host-loop"], ["--frame", "640x360"], ["--random"]])
def test_moved_flags_name_the_rig(words, capsys):
    assert main(["bench", *words]) == 2
    error = capsys.readouterr().err
    assert words[0] in error and "python -m scripts.benchmarks" in error


def test_an_unknown_model_is_exit_code_2(capsys):
    assert main(["bench", "--model", "gfpgan-9"]) == 2
    assert "Did you mean" in capsys.readouterr().err


def test_tune_measures_anew_and_remembers(capsys):
    words = ["--tune", "--model", "lite", "--device", "cpu", "--regions", "lower"]
    assert bench.run(parsed(*words)) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {"torch", "ncnn"} <= {row[2] for row in rows} and all(
        row[:2] == ["lite", "lower"] for row in rows
    )
    assert [float(row[4]) for row in rows] == sorted(float(row[4]) for row in rows)
    assert tuning.path().exists()
