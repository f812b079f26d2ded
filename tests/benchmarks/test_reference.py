"""The paths without this library: every stage is called, and what cannot be built says why."""

from __future__ import annotations

import numpy as np
import pytest

from musetalk_enhance.errors import RestorerError
from scripts.benchmarks import reference
from scripts.benchmarks.measure import measure
from scripts.benchmarks.reference import ALIGNED, PLAN, STOCK, AlignedRunner, PlanRunner, references
from scripts.benchmarks.subject import Subject

from .conftest import CPU


@pytest.mark.parametrize("frame_wh", [(256, 256), (640, 360), (100, 80)])
def test_the_plan_detects_and_gets_one_face_in_the_middle(gfpganer, frame_wh):
    runner = PlanRunner(gfpganer, 2, frame_wh)
    width, height = frame_wh
    assert runner.run().shape == (2, height, width, 3)
    assert gfpganer.detected == [(height, width, 3)] * 2
    assert all(call["center"] and call["paste"] and not call["aligned"] for call in gfpganer.calls)
    (answer,) = gfpganer.answers[0]
    left, top, right, bottom = answer[:4]
    assert (left + right, top + bottom) == (width, height) and right - left == min(
        256, width, height
    )
    points = answer[5:].reshape(5, 2)
    assert np.all(points > (left, top)) and np.all(points < (right, bottom))
    assert answer[4] > 0.97


def test_a_face_that_was_not_restored_is_an_error(gfpganer):
    runner = PlanRunner(gfpganer, 1)
    gfpganer.face_helper.face_det.detect_faces = lambda *_: np.zeros((0, 15), np.float32)
    with pytest.raises(RestorerError, match="0 faces of one"):
        runner.run()


def test_aligned_crops_are_512(gfpganer):
    assert AlignedRunner(gfpganer, 3).run().shape == (3, 512, 512, 3)
    assert {call["shape"] for call in gfpganer.calls} == {(512, 512, 3)}
    assert all(call["aligned"] for call in gfpganer.calls) and gfpganer.detected == []


def test_both_paths_share_one_gfpganer(gfpganer, monkeypatch, tmp_path, rounds):
    built = []
    monkeypatch.setattr(reference, "_gfpganer", lambda *_: built.append(1) or gfpganer)
    monkeypatch.setattr(reference, "_has_gfpgan", lambda: True)
    seen = measure([], rounds, references(Subject("x", {}, "clean"), CPU, 1, (256, 256), tmp_path))
    assert [one.candidate.name for one in seen] == [PLAN, ALIGNED] and built == [1]
    assert all(one.reason is None for one in seen)


def test_another_model_has_no_reference(tmp_path, rounds):
    seen = measure([], rounds, references(Subject("lite"), CPU, 1, (256, 256), tmp_path))
    assert all(one.reason for one in seen)


def test_without_gfpgan_the_network_itself_stands_in_and_says_so(monkeypatch, tmp_path, rounds):
    monkeypatch.setitem(__import__("sys").modules, "gfpgan.utils", None)
    listed = references(Subject("lite"), CPU, 1, (256, 256), tmp_path)
    assert [one.name for one in listed] == [PLAN, ALIGNED, STOCK]
    seen = measure([], rounds, listed)
    assert "pip install 'musetalk_enhance[gfpgan]'" in seen[0].reason
    assert "arch clean, not with lite" in seen[2].reason
