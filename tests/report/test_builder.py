"""`ReportBuilder`: what goes in, what is refused, and what the report holds."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest

from musetalk_enhance.errors import ConfigError, FrameError, MediaError, MissingDependencyError
from musetalk_enhance.pipeline.stats import EnhancerStats
from musetalk_enhance.report import Limits, Report, ReportBuilder
from tests.report.conftest import plain_gauge


def made(rings, gauge, count=12, after=lambda face, index: face, **more) -> Report:
    builder = ReportBuilder(25, gauge=gauge, title="<rings>", **more)
    for index in range(count):
        face = np.clip(rings.astype(int) + 3 * (index % 4), 0, 255).astype(np.uint8)
        builder.add(face, after(face, index), notes={"strength": 0.8, "guard": "mouth" if index == 5 else None})
    return builder.finish(EnhancerStats(frames=count, restored=count - 1, passed_through={"NaN": 1}).as_dict())


def test_nothing_changed_is_all_well(rings, gauge):
    report = made(rings, gauge)
    assert not report.failed and report.frames == 12
    assert report.verdict("warping").value == 1 and report.verdict("drift").value == 0
    assert report.verdict("structure").value == 1 and report.verdict("sharpness").value == 1
    with pytest.raises(KeyError):
        report.verdict("nothing")


def test_the_numbers_are_json(rings, gauge):
    found = json.loads(json.dumps(made(rings, gauge).as_dict(), allow_nan=False))
    assert found["frames"] == 12 and found["fps"] == 25 and found["schema"] == 1 and found["passed"] is True
    assert set(map(len, found["series"].values())) == {12}
    assert found["series"]["warping_in"][0] is None and found["series"]["note_strength"] == [0.8] * 12
    assert found["events"] == {"guard": {"frames": {"mouth": 1}, "runs": [[5, 5, "mouth"]]}}
    assert found["totals"]["restored"] == 11 and found["cuts"] == []
    assert {"key", "label", "value", "limit", "allowed", "state", "text", "hint"} == found["verdicts"][0].keys()


def test_the_report_counts_frames_that_changed(rings, gauge, tmp_path):
    """Of twelve frames eight changed, three came back as they were, one was handed back."""
    notes = [{"strength": 0.5, "change": 2.0, "left alone": None}] * 8
    notes += [{"strength": 1.0, "change": 0.0, "left alone": "unchanged"}] * 3 + [{"passthrough": "NaN"}]
    builder = ReportBuilder(25, gauge=gauge)
    for index, note in enumerate(notes):
        builder.add(rings, np.maximum(rings, 40 * (index < 8)).astype(np.uint8), notes=note)
    report = builder.finish({"restored": 8, "processed": 11, "mean_change": None, "ms": {"network": 22.0}})
    found = report.verdict("restored")
    assert found.value == pytest.approx(8 / 12, abs=1e-3) and found.state == "info"
    assert found.text == (
        "8 of 12 frames, at strength 0.50 and by 2.00 of 255 in the mean; left alone: 3 unchanged; handed back: 1 NaN"
    )
    assert "over the 8 of 12 frames" in report.verdict("sharpness").text and not report.notes
    page = report.html()
    assert "left alone, frames" in page and "unchanged: 3 (frames 8–10)" in page and "2.0 ms a face" in page


def test_a_report_on_faces_that_were_left_alone_begins_with_that(rings, gauge):
    builder = ReportBuilder(25, gauge=gauge)
    for index in range(4):
        left = "sharp already" if index else None
        builder.add(rings, rings, notes={"strength": 0.0 if left else 1.0, "change": 1.0, "left alone": left})
    (note,) = builder.finish().notes
    assert note == (
        "Most of the restoration is not in the result: 3 of 4 faces left alone (3 sharp already)"
        "; to restore more, set sharpness_gate: false."
    )


def test_the_page_stands_alone(rings, gauge, tmp_path):
    report = made(rings, gauge, after=lambda face, index: np.clip(face.astype(int) + 6, 0, 255).astype(np.uint8))
    paths = report.write(tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["report.json", "report.html"]
    page = paths[1].read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and "&lt;rings&gt;" in page and "<rings>" not in page
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert addresses and all(one.startswith(("#", "data:image/jpeg;base64,")) for one in addresses)
    assert "What may help: color_match: true" in page and "Where it flickers" in page
    assert "<script" not in page and "url(http" not in page and "@import" not in page
    assert 'name="viewport"' in page and "prefers-color-scheme: dark" in page
    assert "What the enhancer did" in page and "NaN: 1" in page and "mouth: 1 (frames 5)" in page
    assert '<section id="colour" class="fail">' in page and "<details open>" in page
    ids = set(re.findall(r'<section id="(\w+)"', page))
    assert {"sharpness", "flicker", "mouth", "eyes", "colour", "seam", "structure", "movement", "enhancer"} <= ids


def test_the_same_frames_give_the_same_page(rings, gauge):
    assert made(rings, gauge).html() == made(rings, gauge).html()


def test_sizes_may_differ_and_nothing_is_modified(rings, gauge):
    builder = ReportBuilder(25, gauge=gauge)
    large = np.repeat(np.repeat(rings, 2, 0), 2, 1)
    for face in (rings, rings, rings[:50, 3:]):
        kept = face.copy()
        builder.add(face, large, rings[::-1][::-1])
        assert (face == kept).all()
    report = builder.finish()
    assert report.verdict("psnr").value > 20 and builder.frames == 3


def test_a_cut_starts_anew(rings, gauge):
    builder = ReportBuilder(25, gauge=gauge)
    for index in range(6):
        builder.add(rings, rings, notes={"cut": index == 3})
    builder.add(np.random.default_rng(0).integers(0, 256, rings.shape, np.uint8), rings)
    report = builder.finish()
    assert report.cuts == [3, 6]
    assert np.isnan(report.series["warping_in"][[0, 3, 6]]).all()


def test_frames_that_are_no_crops(rings, gauge):
    builder = ReportBuilder(25, gauge=gauge)
    for bad in (rings[..., 0], rings.astype(np.float32), rings[:10], None):
        with pytest.raises(FrameError, match="out"):
            builder.add(rings, bad)
    with pytest.raises(FrameError, match="no frame"):
        builder.finish()
    with pytest.raises(ConfigError, match="fps"):
        ReportBuilder(0)


@pytest.mark.parametrize(
    ("module", "package"), [("matplotlib.figure", "matplotlib"), ("skimage.metrics", "scikit-im")]
)
def test_a_missing_package_is_known_at_once(monkeypatch, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=rf"{package}.*musetalk_enhance\[report\]"):
        ReportBuilder(25)


def test_one_frame_is_a_report_too(rings, gauge, tmp_path):
    report = made(rings, gauge, count=1)
    assert report.verdict("warping").state == report.verdict("flicker").state == "unmeasured"
    assert report.write(tmp_path)


def test_crops_without_a_face_are_said_to_be_so(rings, gauge):
    def blind(faces):
        found = gauge(faces)
        found.confidence = found.confidence * 0
        return found

    report = made(rings, blind)
    assert report.verdict("mouth_opening").state == "unmeasured"
    assert "too few" in report.verdict("mouth_opening").text and not report.failed


def test_limits_can_be_set(rings, gauge):
    assert [one.key for one in made(rings, gauge, limits=Limits(sharpness_ratio=1.2)).failed] == ["sharpness"]


def test_a_folder_that_cannot_be_made(rings, gauge, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(MediaError, match="cannot be written"):
        made(rings, gauge, count=2).write(tmp_path / "file" / "folder")


def test_memory_does_not_grow_with_the_pictures(rings, gauge):
    import tracemalloc

    builder = ReportBuilder(25, gauge=gauge)

    def feed(count):
        for _ in range(count):
            builder.add(rings, rings)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        first, later = feed(40), feed(120)
    finally:
        tracemalloc.stop()
    assert later - first < 120 * 1500  # a frame is 12288 bytes; some thirty numbers and their lists' slack


def test_what_a_caller_says_is_never_the_end_of_a_report(rings, tmp_path):
    """Numbers of numpy's, NaN and markup, in notes, totals and names."""
    builder = ReportBuilder(25.0, title="<script>$x$</script>", gauge=plain_gauge)
    for index in range(9):
        notes = {"strength": np.float32(0.5), "sharp": np.bool_(index > 6), "<i>$\\x": 1.0, "late": float("nan")}
        builder.add(rings, rings, notes=notes)
    totals = {
        "ms": {"network": None, "finish": 3.0},
        "restored": None,
        "n": np.int64(3),
        "<u>": {"<s>": float("inf")},
    }
    report = builder.finish(totals)
    found = json.loads((report.write(tmp_path)[0]).read_text())
    assert found["totals"]["n"] == 3 and found["totals"]["<u>"] == {"<s>": None}
    assert found["series"]["note_strength"] == [0.5] * 9 and found["events"]["sharp"]["runs"] == [[7, 8, "yes"]]
    assert not re.search("<(script|i|u|s)>", (tmp_path / "report.html").read_text())


def test_a_strip_is_measured_too(rings):
    builder = ReportBuilder(25.0, gauge=plain_gauge)
    strip = np.ascontiguousarray(np.tile(rings, (4, 1, 1))[:, :16])
    for _ in range(2):
        builder.add(strip, strip)
    assert builder.finish().verdict("structure").value == 1
