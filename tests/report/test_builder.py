"""`ReportBuilder`: what goes in, what is refused, and what the report holds."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest

from musetalk_enhance.errors import ConfigError, FrameError, MediaError, MissingDependencyError
from musetalk_enhance.pipeline.stats import EnhancerStats
from musetalk_enhance.report import Limits, Report, ReportBuilder, Verdict
from musetalk_enhance.report.sections import PLAIN
from tests.report.conftest import plain_meter


def build_report(rings, meter, count=12, restore=lambda face, index: face, **more) -> Report:
    builder = ReportBuilder(25, meter=meter, title="<rings>", **more)
    for index in range(count):
        face = np.clip(rings.astype(int) + 3 * (index % 4), 0, 255).astype(np.uint8)
        builder.add(
            face,
            restore(face, index),
            notes={"strength": 0.8, "guard": "mouth" if index == 5 else None},
        )
    return builder.finish(
        EnhancerStats(frames=count, restored=count - 1, passed_through={"NaN": 1}).as_dict()
    )


def test_nothing_changed_is_all_well(rings, meter):
    report = build_report(rings, meter)
    assert not report.failed and report.frames == 12
    assert report.verdict("warping").value == 1 and report.verdict("drift").value == 0
    assert report.verdict("structure").value == 1 and report.verdict("sharpness").value == 1
    with pytest.raises(KeyError):
        report.verdict("nothing")


def test_the_numbers_are_json(rings, meter):
    content = json.loads(json.dumps(build_report(rings, meter).as_dict(), allow_nan=False))
    assert (
        content["frames"] == 12
        and content["fps"] == 25
        and content["schema"] == 1
        and content["passed"] is True
    )
    assert set(map(len, content["series"].values())) == {12}
    assert (
        content["series"]["warping_in"][0] is None
        and content["series"]["note_strength"] == [0.8] * 12
    )
    assert content["events"] == {"guard": {"frames": {"mouth": 1}, "runs": [[5, 5, "mouth"]]}}
    assert content["totals"]["restored"] == 11 and content["cuts"] == []
    assert {"key", "label", "value", "limit", "allowed", "state", "text", "hint"} == content[
        "verdicts"
    ][0].keys()


def test_the_report_counts_frames_that_changed(rings, meter, tmp_path):
    """Of twelve frames eight changed, three came back as they were, one was handed back."""
    notes = [{"strength": 0.5, "change": 2.0, "left alone": None}] * 8
    notes += [{"strength": 1.0, "change": 0.0, "left alone": "unchanged"}] * 3 + [
        {"passthrough": "NaN"}
    ]
    builder = ReportBuilder(25, meter=meter)
    for index, note in enumerate(notes):
        builder.add(rings, np.maximum(rings, 40 * (index < 8)).astype(np.uint8), notes=note)
    report = builder.finish(
        {"restored": 8, "processed": 11, "mean_change": None, "ms": {"network": 22.0}}
    )
    verdict = report.verdict("restored")
    assert verdict.value == pytest.approx(8 / 12, abs=1e-3) and verdict.state == "info"
    assert verdict.text == (
        "8 of 12 frames, at strength 0.50 and by 2.00 of 255 in the mean; "
        "left alone: 3 unchanged; handed back: 1 NaN"
    )
    assert "over the 8 of 12 frames" in report.verdict("sharpness").text and not report.notes
    page = report.html()
    assert (
        "left alone, frames" in page
        and "unchanged: 3 (frames 8–10)" in page
        and "2.0 ms per face" in page
    )


def test_a_report_on_faces_that_were_left_alone_begins_with_that(rings, meter):
    builder = ReportBuilder(25, meter=meter)
    for index in range(4):
        left = "sharp already" if index else None
        builder.add(
            rings,
            rings,
            notes={"strength": 0.0 if left else 1.0, "change": 1.0, "left alone": left},
        )
    (note,) = builder.finish().notes
    assert note == (
        "Most of the restoration is not in the result: 3 of 4 faces left alone (3 sharp already)"
        "; to restore more, set sharpness_gate: false."
    )


def test_a_report_on_frames_without_time_names_the_limit(rings, meter):
    builder = ReportBuilder(25, meter=meter)
    for _ in range(3):
        builder.add(rings, rings, notes={"strength": 0.0, "change": 0.0, "left alone": "no time"})
    totals = EnhancerStats(("budget_ms",), frames=3).as_dict()
    assert builder.finish(totals).notes[0].endswith("; to restore more, set budget_ms: 0.")


def test_the_page_stands_alone(rings, meter, tmp_path):
    report = build_report(
        rings,
        meter,
        restore=lambda face, index: np.clip(face.astype(int) + 6, 0, 255).astype(np.uint8),
    )
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
    assert {
        "sharpness",
        "flicker",
        "mouth",
        "eyes",
        "colour",
        "seam",
        "structure",
        "movement",
        "enhancer",
    } <= ids


@pytest.mark.parametrize("change", [0, 6])
def test_the_page_begins_with_faces_and_plain_words(rings, meter, change):
    """Also where all checks pass: a face before and after, and the frame that changed most."""

    def brighter(face, index):
        return np.clip(face.astype(int) + change * (1 + (index == 5)), 0, 255).astype(np.uint8)

    report = build_report(rings, meter, restore=brighter)
    assert bool(report.failed) == bool(change)
    assert report.typical.index == 8 and [c for c, _ in report.typical.panels] == [
        "before",
        "after",
    ]
    sections = report.html().split("<section")[1:]
    assert 'id="faces"' in sections[0] and "<h2>Checks</h2>" in sections[1]
    assert "A face: frame 8, 0.32 s" in sections[0] and sections[0].count("<img") >= 2
    if change:
        assert "The worst frame (Flicker): frame 5, 0.20 s" in sections[0]
        assert "after: beyond motion, ×4" in sections[0]
    assert "Shift of the mean color, in levels of 255." in sections[1]
    assert "Not measured: hardly moves in the input" in sections[1]


def test_a_report_where_nothing_is_worse_shows_a_face_alone(rings, meter):
    report = build_report(rings, meter)
    assert report.worst_frame() is None
    assert report.html().partition("<h2>Checks</h2>")[0].count("<img") == 2


def test_the_worst_frame_is_of_the_check_that_fails(rings, meter):
    report = build_report(rings, meter, restore=lambda face, index: face[::-1].copy())
    kind, frame = report.worst_frame()
    failed = [verdict.kind for verdict in report.failed if report.worst.of(verdict.kind)]
    assert kind == failed[0] != "structure" and frame is report.worst.of(kind)[0]


def test_every_verdict_has_plain_words(rings):
    builder = ReportBuilder(25, meter=plain_meter)
    builder.verdicts.append(Verdict("frames", "", 0, 0, True, "pass", "", "other"))
    for index in range(40):
        face = np.clip(rings.astype(int) + 60 * (index % 5 - 2), 0, 255).astype(np.uint8)
        builder.add(face, face, rings, notes={"strength": 1.0})
    keys = {verdict.key for verdict in builder.finish().verdicts}
    assert keys == set(PLAIN)


@pytest.mark.parametrize(
    ("value", "limit", "figures"),
    [
        (1.1284, 1.05, ("1.13", "1.05")),
        (0.027341, 0.05, ("0.0273", "0.05")),
        (0.000662, 0.05, ("0.0007", "0.05")),
        (303.61, None, ("304", "")),
        (12345.6, 1.0, ("12346", "1")),
        (1.1004, 1.1, ("1.1004", "1.1")),
        (1.1, 1.1, ("1.1", "1.1")),
        (0, 0, ("0", "0")),
        (None, 0.98, ("–", "0.98")),
    ],
)
def test_figures_have_the_digits_that_tell_them_apart(value, limit, figures):
    assert Verdict("k", "", value, limit, True, "info", "", "other").figures == figures


def test_the_same_frames_give_the_same_page(rings, meter):
    assert build_report(rings, meter).html() == build_report(rings, meter).html()


def test_sizes_may_differ_and_nothing_is_modified(rings, meter):
    builder = ReportBuilder(25, meter=meter)
    large = np.repeat(np.repeat(rings, 2, 0), 2, 1)
    for face in (rings, rings, rings[:50, 3:]):
        original = face.copy()
        builder.add(face, large, rings[::-1][::-1])
        assert (face == original).all()
    report = builder.finish()
    assert report.verdict("psnr").value > 20 and builder.frames == 3


def test_a_cut_starts_a_new_scene(rings, meter):
    builder = ReportBuilder(25, meter=meter)
    for index in range(6):
        builder.add(rings, rings, notes={"cut": index == 3})
    builder.add(np.random.default_rng(0).integers(0, 256, rings.shape, np.uint8), rings)
    report = builder.finish()
    assert report.cuts == [3, 6]
    assert np.isnan(report.series["warping_in"][[0, 3, 6]]).all()


def test_frames_that_are_no_crops(rings, meter):
    builder = ReportBuilder(25, meter=meter)
    for bad in (rings[..., 0], rings.astype(np.float32), rings[:10], None):
        with pytest.raises(FrameError, match="out"):
            builder.add(rings, bad)
    with pytest.raises(FrameError, match="no frame"):
        builder.finish()
    with pytest.raises(ConfigError, match="fps"):
        ReportBuilder(0)


@pytest.mark.parametrize(
    ("module", "package"),
    [("jinja2", "jinja2"), ("matplotlib.figure", "matplotlib"), ("skimage.metrics", "scikit-im")],
)
def test_a_missing_package_is_known_at_once(monkeypatch, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=rf"{package}.*musetalk_enhance\[report\]"):
        ReportBuilder(25)


def test_one_frame_is_a_report_too(rings, meter, tmp_path):
    report = build_report(rings, meter, count=1)
    assert report.verdict("warping").state == report.verdict("flicker").state == "unmeasured"
    assert report.write(tmp_path)


def test_crops_without_a_face_are_said_to_be_so(rings, meter):
    def blind(faces):
        measurement = meter(faces)
        measurement.confidence = measurement.confidence * 0
        return measurement

    report = build_report(rings, blind)
    assert report.verdict("mouth_opening").state == "unmeasured"
    assert "too few" in report.verdict("mouth_opening").text and not report.failed


def test_gauge_is_the_deprecated_name_of_meter(rings, meter):
    with pytest.warns(DeprecationWarning, match="meter"):
        report = build_report(rings, None, gauge=meter)
    assert report.as_dict() == build_report(rings, meter).as_dict()


def test_limits_can_be_set(rings, meter):
    assert [
        one.key for one in build_report(rings, meter, limits=Limits(sharpness_ratio=1.2)).failed
    ] == ["sharpness"]


def test_a_folder_that_cannot_be_made(rings, meter, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(MediaError, match="cannot be written"):
        build_report(rings, meter, count=2).write(tmp_path / "file" / "folder")


def test_memory_does_not_grow_with_the_pictures(rings, meter):
    import tracemalloc

    builder = ReportBuilder(25, meter=meter)

    def feed(count):
        for _ in range(count):
            builder.add(rings, rings)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        first, later = feed(40), feed(120)
    finally:
        tracemalloc.stop()
    assert (
        later - first < 120 * 1500
    )  # a frame is 12288 bytes; some thirty numbers and their lists' slack


def test_odd_values_of_a_caller_do_not_break_a_report(rings, tmp_path):
    """Numbers of numpy's, NaN and markup, in notes, totals and names."""
    builder = ReportBuilder(25.0, title="<script>$x$</script>", meter=plain_meter)
    for index in range(9):
        notes = {
            "strength": np.float32(0.5),
            "sharp": np.bool_(index > 6),
            "<i>$\\x": 1.0,
            "late": float("nan"),
        }
        builder.add(rings, rings, notes=notes)
    totals = {
        "ms": {"network": None, "finish": 3.0},
        "restored": None,
        "n": np.int64(3),
        "<u>": {"<s>": float("inf")},
    }
    report = builder.finish(totals)
    content = json.loads((report.write(tmp_path)[0]).read_text())
    assert content["totals"]["n"] == 3 and content["totals"]["<u>"] == {"<s>": None}
    assert content["series"]["note_strength"] == [0.5] * 9 and content["events"]["sharp"][
        "runs"
    ] == [[7, 8, "yes"]]
    assert not re.search("<(script|i|u|s)>", (tmp_path / "report.html").read_text())


def test_a_strip_is_measured_too(rings):
    builder = ReportBuilder(25.0, meter=plain_meter)
    strip = np.ascontiguousarray(np.tile(rings, (4, 1, 1))[:, :16])
    for _ in range(2):
        builder.add(strip, strip)
    assert builder.finish().verdict("structure").value == 1
