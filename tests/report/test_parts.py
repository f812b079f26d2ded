"""The small parts: curves, runs of words, worst frames, windows of flicker, places in a face."""

from __future__ import annotations

import json
import math

import cv2
import numpy as np
import pytest
import torch

from musetalk_enhance.media.arrays import resize_image
from musetalk_enhance.report.events import Events
from musetalk_enhance.report.flicker import FlickerWindows, stillness
from musetalk_enhance.report.measurements import ChangedRegion, FrameCrops, Sizes
from musetalk_enhance.report.openings import OpeningMeter, Openings, parts_of
from musetalk_enhance.report.plots import Curve, Plot, decimate, svg
from musetalk_enhance.report.series import Series
from musetalk_enhance.report.worst import WorstFrames, difference, jpeg


def test_series_are_equally_long_and_json():
    series = Series()
    series.add({"a": 1})
    series.add({"b": 2.0000001, "a": float("inf")})
    series.add({})
    assert list(map(len, (series["a"], series["b"], series["c"]))) == [3, 3, 3]
    assert series.as_dict() == {"a": [1, None, None], "b": [None, 2, None]}
    json.dumps(series.as_dict(), allow_nan=False)
    assert series.mean("b") == pytest.approx(2) and math.isnan(series.mean("c"))
    assert series.percentile("b", 95) == pytest.approx(2) and math.isnan(series.percentile("c", 5))
    assert "a" in series and "c" not in series


def test_events_are_runs_and_numbers_are_curves():
    events = Events()
    numbers = [
        events.add(
            index,
            {
                "guard": "mouth" if index < 3 else "",
                "strength": 0.5,
                "cut": index == 4,
                "why": None,
            },
        )
        for index in range(6)
    ]
    assert numbers == [{"note_strength": 0.5}] * 6
    assert events.runs("guard") == [(0, 2, "mouth")] and events.runs("cut") == [(4, 4, "yes")]
    assert events.as_dict() == {
        "guard": {"frames": {"mouth": 3}, "runs": [[0, 2, "mouth"]]},
        "cut": {"frames": {"yes": 1}, "runs": [[4, 4, "yes"]]},
    }


def test_the_worst_frames_are_apart_and_only_they_are_packed(rings):
    worst, packed = WorstFrames(min_distance=5), []

    def panels(index):
        packed.append(index)
        return [("in", rings)]

    for index, score in enumerate([1, 2, 3, 0, 0, 0, 0, 9, 8, 0, 0, 0, 0, 2, 5, float("nan")]):
        worst.offer("mouth", index, score, lambda index=index: panels(index))
    assert [(frame.index, frame.score) for frame in worst.of("mouth")] == [(7, 9), (14, 5)]
    assert packed == [0, 1, 2, 7, 14] and worst.kinds() == ["mouth"] and worst.of("eyes") == []
    assert worst.of("mouth")[0].panels[0][1][:2] == b"\xff\xd8"


def test_differences_are_seen():
    a = np.full((8, 8, 3), 100, np.uint8)
    assert (difference(a, a) == 128).all()
    assert (difference(a, a + 5) == 148).all() and (difference(a + 100, a) == 0).all()
    assert cv2.imdecode(
        np.frombuffer(jpeg(np.zeros((400, 700, 3), np.uint8)), np.uint8), 1
    ).shape == (183, 320, 3)


def feed(
    windows: FlickerWindows, count: int, hertz: float, cut: int | None = None, speed: float = 0.0
) -> None:
    for index in range(count):
        level = 100 + 4 * math.sin(2 * math.pi * hertz * index / windows.fps)
        picture = np.full((20, 20), level, np.float32)
        moves = None if index in (0, cut) else np.full((20, 20), speed, np.float32)
        windows.add(index, {"in": picture * 0, "out": picture}, moves)
    windows.close()


def test_a_planted_flicker_has_its_energy_in_every_window():
    windows = FlickerWindows(25)
    feed(windows, 40, 8.0)
    assert [(window.first, window.last) for window in windows.windows] == [
        (0, 15),
        (8, 23),
        (16, 31),
        (24, 39),
    ]
    assert windows.mean("out") == pytest.approx(8, rel=0.03) and windows.mean("in") == 0
    assert windows.maps["out"].shape == (20, 20)


def test_slow_changes_and_moving_pixels_do_not_count():
    slow, moving = FlickerWindows(25), FlickerWindows(25)
    feed(slow, 32, 1.0)
    assert slow.mean("out") < 0.01
    feed(moving, 32, 8.0, speed=stillness(25) + 0.01)
    assert moving.windows == [] and math.isnan(moving.mean("out"))


def test_a_window_never_spans_a_cut_and_short_scenes_count():
    windows = FlickerWindows(25)
    feed(windows, 24, 8.0, cut=10)
    assert [(window.first, window.last) for window in windows.windows] == [(0, 9), (10, 23)]
    assert FlickerWindows(10).reason and not FlickerWindows(10.1).reason


def test_places_of_a_face():
    face = Openings(
        np.float32([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.4, 0.8], [0.6, 0.8]]), 0.1, 0.3, True
    )
    parts = parts_of(face, (100, 100))
    assert parts["whole"] == (slice(None), slice(None))
    assert parts["eyes"] == (slice(26, 52), slice(14, 86)) and parts["mouth"] == (
        slice(68, 96),
        slice(36, 64),
    )
    unknown = parts_of(
        Openings(np.full((5, 2), np.nan, np.float32), math.nan, math.nan, False), (64, 64)
    )
    assert unknown["eyes"][0].start < 32 < unknown["mouth"][0].start
    outside = Openings(face.landmarks + 3, 0.1, 0.3, True)
    rows, columns = parts_of(outside, (50, 50))["mouth"]
    assert rows.stop - rows.start >= 4 and columns.stop <= 50 + 4


def test_the_meter_gets_rgb_and_low_confidence_is_no_face(meter):
    batches = []

    def doubtful(faces: torch.Tensor):
        batches.append(faces)
        measurement = meter(faces)
        measurement.confidence = torch.tensor([0.9, 0.1])
        return measurement

    red = np.zeros((40, 50, 3), np.uint8)
    red[..., 2] = 255
    face, no_face = OpeningMeter(doubtful).measure([red, red])
    assert (
        batches[0].shape == (2, 3, 40, 50)
        and batches[0][0, 0].min() == 1
        and batches[0][0, 1:].max() == 0
    )
    assert (
        face.is_face
        and face.mouth == pytest.approx(1 / 3)
        and face.landmarks[0] == pytest.approx([0.3, 0.35])
    )
    assert not no_face.is_face and math.isnan(no_face.mouth) and math.isnan(no_face.eyes)


def test_sizes_are_those_of_the_first_output(rings):
    assert Sizes.of((512, 512, 3)) == Sizes((512, 512), (256, 256))
    assert Sizes.of((1024, 512, 3)) == Sizes((256, 512), (128, 256))
    crops = FrameCrops.of(
        {"in": rings, "out": cv2.resize(rings, (128, 128))}, Sizes.of((128, 128, 3))
    )
    assert crops.detail["in"].shape == crops.work["out"].shape == (128, 128, 3)
    assert crops.luminance["in"].dtype == np.float32
    assert resize_image(rings, (64, 64)) is rings


def test_the_changed_region_is_found_over_time(rings):
    brighter = rings.copy()
    brighter[32:] = np.clip(brighter[32:].astype(int) + 8, 0, 255)
    changed = ChangedRegion()
    crops = FrameCrops.of({"in": rings, "out": brighter}, Sizes.of(rings.shape))
    values = [changed.update(crops) for _ in range(3)][-1]
    assert values["changed"] == pytest.approx(0.5, abs=0.06) and values["seam"] == pytest.approx(
        8, abs=1
    )
    same = FrameCrops.of({"in": rings, "out": rings}, Sizes.of(rings.shape))
    assert ChangedRegion().update(same) == {"changed": 0, "seam": 0}


def test_plots_are_themed_and_repeatable():
    pytest.importorskip("matplotlib")
    plot = Plot(
        "a < b",
        [Curve("in", "in", np.arange(5.0)), Curve("out", "out", np.ones(5))],
        (2.0,),
        ((1, 2),),
    )
    drawn = svg(plot, 25, (3,))
    assert drawn == svg(plot, 25, (3,))
    assert "var(--c-in)" in drawn and "var(--c-ink)" in drawn and "#0101" not in drawn
    assert (
        drawn.startswith('<svg role="img" aria-label="a &lt; b"')
        and "width=" not in drawn.split(">")[0]
    )
    assert "http://www.w3.org" in drawn and "<metadata" not in drawn


def test_long_curves_keep_their_extremes():
    values = np.zeros(5000)
    values[1234], values[4000:4030] = 9, np.nan
    frames, extremes = decimate(values, 300)
    assert len(frames) == len(extremes) == 600
    assert extremes[np.isfinite(extremes)].max() == 9 and np.isnan(extremes).any()
