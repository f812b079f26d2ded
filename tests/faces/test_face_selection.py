"""Which tracks are restored: the nearest to a point, and people on photos."""

from __future__ import annotations

import numpy as np
import pytest

from musetalk_enhance.faces.identity import SAME_PERSON
from musetalk_enhance.faces.selection import (
    BEST,
    HYSTERESIS,
    INTERVAL,
    LOOK_AHEAD,
    RECENT,
    IdentitySelection,
    PositionSelection,
)
from tests.faces.test_tracks import face

IMAGE = np.zeros((8, 8, 3), np.uint8)
A, B = (0, 0), (1, 0)


@pytest.mark.parametrize(
    ("point", "selected"),
    [((100, 180), A), ((130, 200), A), ((400, 180), B), ((300, 20), B), ((200, 180), A)],
)
def test_the_face_that_covers_a_point_or_is_nearest(point, selected):
    selection = PositionSelection(point)
    selection.observe(IMAGE, {A: face(100), B: face(400)})
    assert selection.is_selected(selected) and not selection.is_selected(A if selected == B else B)


def test_of_two_faces_that_cover_a_point_the_center_decides():
    selection = PositionSelection((130, 180))
    selection.observe(IMAGE, {A: face(100), B: face(140)})
    assert [selection.is_selected(key) for key in (A, B)] == [False, True]


def test_the_position_counts_where_a_track_begins():
    selection = PositionSelection((100, 180))
    for at in range(60):
        selection.observe(IMAGE, {A: face(100 + 5 * at), B: face(400 - 5 * at)})
        assert [selection.is_selected(key) for key in (A, B)] == [True, False]


def test_a_track_that_has_lost_stays_out():
    selection = PositionSelection((100, 180))
    selection.observe(IMAGE, {A: face(100), B: face(400)})
    assert not selection.is_selected(B)
    for _ in range(LOOK_AHEAD + 5):
        selection.observe(IMAGE, {B: face(400)})
    assert not selection.is_selected(B)


def test_a_nearer_track_takes_over():
    selection = PositionSelection((100, 180))
    selection.observe(IMAGE, {B: face(400)})
    assert selection.is_selected(B)
    selection.observe(IMAGE, {A: face(120), B: face(400)})
    assert [selection.is_selected(key) for key in (A, B)] == [True, False]


def test_each_scene_is_decided_by_itself():
    selection = PositionSelection((100, 180))
    selection.observe(IMAGE, {A: face(100)})
    selection.observe(IMAGE, {(1, 1): face(400)})
    assert selection.is_selected(A) and selection.is_selected((1, 1))


class Likeness:
    """In place of the photos' faces: hands out similarities in turn."""

    def __init__(self, *values: float) -> None:
        self.values, self.count = list(values), 0

    def similarity(self, image_bgr, face) -> float:
        self.count += 1
        return self.values.pop(0) if self.values else 0.0


def decisions(reference, count: int) -> list[bool]:
    """After each of `count` frames of one track."""
    selection, results = IdentitySelection(reference), []
    for _ in range(count):
        selection.observe(IMAGE, {A: face(100)})
        results.append(selection.is_selected(A))
    return results


def test_the_best_few_frames_decide():
    high, low = SAME_PERSON + 0.2, SAME_PERSON - 0.5
    assert decisions(Likeness(low, low, high, low, high, high), 6) == [False] * 5 + [True]
    assert decisions(Likeness(low, low, high, low), 4) == [False] * 4, "one frame may be wrong"
    assert decisions(Likeness(*[SAME_PERSON + 0.01] * 2), 2) == [True] * 2


def test_a_selected_track_does_not_flip():
    """Its likeness goes about the threshold, within the hysteresis."""
    values = [SAME_PERSON + 0.05 * (-1) ** at for at in range(9)] + [SAME_PERSON - 0.05] * 60
    assert all(decisions(Likeness(*values), 200)[:40])
    values = [SAME_PERSON - 0.05] * 69
    assert not any(decisions(Likeness(*values), 200)), "too little to be selected at first"


def test_another_person_on_the_same_track_is_dropped_in_the_end():
    same, other = SAME_PERSON + 0.3, SAME_PERSON - HYSTERESIS - 0.1
    results = decisions(Likeness(*[same] * 9, *[other] * 99), 9 + INTERVAL * RECENT)
    assert results[9] and not results[-1]
    assert sorted(results, reverse=True) == results, "once, not frame by frame"


def test_an_old_track_is_measured_seldom():
    reference = Likeness()
    decisions(reference, 100)
    assert reference.count == 9 + len(range(12, 100, INTERVAL)) and BEST < 9
