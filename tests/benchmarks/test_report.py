"""From measurements to JSON, table and picture."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from musetalk_enhance.errors import MissingDependencyError, RestorerError
from scripts.benchmarks import machine, plot, report, roofline
from scripts.benchmarks.measure import Measurement, measure
from scripts.benchmarks.reference import ALIGNED, PLAN
from scripts.benchmarks.rows import best, difference, dtype_of, roof, rows_of

from .conftest import CPU


@pytest.fixture
def measured(fake, rounds):
    """Two references at 4000 and 2000 ms, probes, two of ours at 1000 and 500 ms, one refused."""
    base = [*roofline.probes(CPU, 16, 2**12), fake(PLAN, "plan"), fake(ALIGNED, "aligned")]
    mine = [
        fake("torch fp32 batch 1"),
        fake("onnx fp32 batch 8 lower", region="lower"),
        fake("x", error=RestorerError("no\nx")),
    ]
    seen = measure(mine, rounds, base)
    times = {PLAN: 4000.0, ALIGNED: 2000.0, mine[0].name: 1000.0, mine[1].name: 500.0}
    for one in seen:
        if one.candidate.name in times:
            one.ms = [times[one.candidate.name]] * 3
            one.against = (
                {PLAN: 4000.0, ALIGNED: 2000.0, "matrix product fp32": 1.0} if one.against else {}
            )
    return seen


@pytest.fixture
def made(measured):
    truth = np.zeros((1, 4, 4, 3), np.uint8)
    rows = rows_of(measured, truth)
    work = roofline.WorkloadCost(10**6, 10**5, 10**4)
    return {
        "schema": report.SCHEMA,
        "machine": machine.facts("cpu"),
        "model": "gfpgan, random weights",
        "rows": rows,
        "roofline": roof(work, measured, rows),
        "host_loop": None,
        "notes": ["random weights"],
    }


def test_rows_say_all_there_is(made):
    rows = {row["name"]: row for row in made["rows"]}
    assert list(rows)[:2] == [PLAN, ALIGNED] and len(rows) == 5
    one = rows["torch fp32 batch 1"]
    assert one["times_faster"] == {"plan": 4.0, "aligned": 2.0}
    assert one["faces_per_second"] == 1.0 and one["ms_per_face_rounds"] == [1000.0] * 3
    assert one["stages_ms"] == {"network": 1.5} and one["runs_as"] == "torch fp32"
    assert {"loaded_bytes", "working_bytes", "peak_bytes", "faces", "difference"} <= one.keys()
    assert (
        rows[PLAN]["times_faster"] == {"plan": 1.0, "aligned": 0.5}
        and rows[PLAN]["difference"] is None
    )
    assert rows["x"]["reason"] == "no x" and "ms_per_face" not in rows["x"]


def test_it_is_json_without_anybody_s_name(made, monkeypatch):
    text = json.dumps(made, allow_nan=False)
    assert json.loads(text) == made
    assert {"cpu", "threads", "isa", "versions", "device"} <= made["machine"].keys()
    assert "torch" in made["machine"]["versions"]
    import platform

    assert platform.node() not in text


def test_folders_of_the_user_are_taken_out(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.chdir(tmp_path)
    assert machine.anonymous("/home/somebody/x.pth:\n  missing") == "~/x.pth: missing"
    assert machine.anonymous(str(tmp_path / "x")).endswith("/x") and str(
        tmp_path
    ) not in machine.anonymous(str(tmp_path))


def test_the_table_is_last_and_refusals_are_named(made):
    text = report.text(made)
    lines = text.splitlines()
    assert lines[0] == "note: random weights"
    assert (
        lines[-1].startswith("onnx fp32 batch 8 lower")
        and "8.00" in lines[-1]
        and "4.00" in lines[-1]
    )
    assert "not measured: x: no x" in lines
    assert "arithmetic limit (direct convolution)" in text and "measured best, region lower" in text
    assert max(len(line) for line in report.table(made["rows"])) < 140


def test_refusals_with_one_reason_are_one_line():
    rows = [{"name": name, "reason": "no"} for name in "ab"]
    assert report.refusals(rows) == ["not measured: a, b: no"]
    assert report.table([]) == ["nothing was measured"]


def test_the_quickest_is_found_by_dtype_and_region(made):
    rows = made["rows"]
    assert best(rows)["name"] == "onnx fp32 batch 8 lower"
    assert best(rows, region="full")["name"] == "torch fp32 batch 1"
    assert best(rows, dtype="bf16") is None
    assert dtype_of({"runs_as": "torch bf16", "dtype": "auto"}) == "bf16"
    assert dtype_of({"runs_as": "something", "dtype": "fp16"}) == "fp16"


def test_the_share_of_the_limit(made):
    limit = next(one for one in made["roofline"]["limits"] if one["dtype"] == "fp32")
    best_full = limit["best"]["full"]
    assert best_full["share"] == pytest.approx(limit["arithmetic_ms"] / 1000, abs=1e-4)
    assert made["roofline"]["convolution"] == "direct"


def test_no_limit_without_a_count(measured, made):
    assert roof(None, measured, []) is None
    assert "no limit: the arithmetic" in report.text({**made, "roofline": None})


@pytest.mark.parametrize(("region", "largest"), [("full", 40), ("lower", 8)])
def test_a_part_of_the_face_is_compared_below_the_centre(fake, region, largest):
    output = np.zeros((2, 8, 8, 3), np.uint8)
    output[0, 1, 1, 1], output[0, 4, 1, 1] = 40, 8
    seen = Measurement(
        fake("x", region=region).__class__("x", lambda: None, {"region": region}), output=output
    )
    truth = np.zeros((1, 8, 8, 3), np.uint8)
    found = difference(seen, truth)
    assert found["max"] == largest and 0 < found["mean"] < 1
    assert difference(seen, None) is None and difference(seen, truth[:, :4]) is None


def test_the_host_s_loop_is_told(made):
    times = {"alone": 10.0, "in turn": 15.0, "overlapped": 10.5}
    host = {
        "host": "a stand-in",
        "enhancer": "torch",
        "batch": 8,
        "batches": 4,
        "rounds": 3,
        "ms_per_face": times,
    }
    host["added"] = {"in turn": 0.5, "overlapped": 0.05}
    text = report.text({**made, "host_loop": host})
    assert "+5.0%" in text and "a stand-in" in text and text.index("+5.0%") < text.index("ms/face")
    assert "not measured: no" in report.text({**made, "host_loop": {"reason": "no"}})


def test_the_picture(made, tmp_path):
    pytest.importorskip("matplotlib")
    plot.save_plot(made["rows"], "title", tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes()[:4] == b"\x89PNG"


def test_no_picture_without_matplotlib(made, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"musetalk_enhance\[bench\]"):
        plot.save_plot(made["rows"], "title", tmp_path / "bench.png")
