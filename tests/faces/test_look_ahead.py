"""Tracks that are looked at some frames ahead: gaps between two detections, and their ends."""

from __future__ import annotations

import numpy as np
import pytest

from musetalk_enhance.errors import ConfigError
from musetalk_enhance.faces.look_ahead import LookAheadTracker
from musetalk_enhance.faces.selection import LOOK_AHEAD, FaceSelection
from musetalk_enhance.faces.tracks import MAX_MISSED, FaceTracker
from tests.faces.test_tracks import SIZE, face

IMAGE = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)


def followed(frames, cuts=(), **options):
    """The tracked faces of every frame."""
    tracker, results = LookAheadTracker(25.0, **options), []
    for at, faces in enumerate(frames):
        image = np.full_like(IMAGE, at)
        results.append(tracker.update(image, faces, cut=at in cuts))
    assert [result is None for result in results] == [at < LOOK_AHEAD for at in range(len(frames))]
    return [result for result in results if result is not None] + list(tracker.flush())


def moving(count, blind=()):
    return [[] if at in blind else [face(100 + 4 * at)] for at in range(count)]


def test_without_a_gap_it_tracks_as_frame_by_frame():
    frames = [[face(100 + 5 * at), face(400, 190)][: 1 + (at > 3)] for at in range(20)]
    tracker = FaceTracker(25.0)
    for one, other in zip(
        followed(frames), [tracker.update(faces, SIZE) for faces in frames], strict=True
    ):
        for a, b in zip(one, other, strict=True):
            assert (a.track, a.first, a.missed) == (b.track, b.first, b.missed)
            assert np.array_equal(a.landmarks, b.landmarks)
            assert np.array_equal(a.box_xyxy, b.box_xyxy)


@pytest.mark.parametrize("gap", [1, 4, LOOK_AHEAD])
def test_a_gap_is_interpolated(gap):
    blind = range(15, 15 + gap)
    tracked = followed(moving(40, blind))
    detected = followed(moving(40))
    for at, ((one,), (other,)) in enumerate(zip(tracked, detected, strict=True)):
        assert one.track == 0 and one.missed == (at in blind) and one.first == (at == 0)
        assert np.allclose(one.landmarks, other.landmarks, atol=1e-3)
        assert np.allclose(one.box_xyxy, other.box_xyxy)
        if at in blind:
            assert one.next_image[0, 0, 0] == 15 + gap
            assert np.allclose(one.next_landmarks, face(100 + 4 * (15 + gap)).landmarks)
        else:
            assert one.next_image is None and one.next_landmarks is None


def test_a_longer_gap_ends_the_track():
    blind = range(15, 16 + LOOK_AHEAD)
    tracked = followed(moving(40, blind))
    assert [len(faces) for faces in tracked] == [
        0 if 15 + MAX_MISSED <= at <= 15 + LOOK_AHEAD else 1 for at in range(40)
    ]
    assert tracked[15][0].missed and tracked[15][0].next_image is None
    assert {faces[0].track for faces in tracked[24:]} == {1}


@pytest.mark.parametrize("cut", [15, 17, 19])
def test_a_gap_with_a_cut_is_not_filled(cut):
    """The face is missed in frames 15 to 18; a scene begins within, or where it is back."""
    tracked = followed([[face(100)]] * 15 + [[]] * 4 + [[face(100)]] * 10, cuts=[cut])
    assert [len(faces) for faces in tracked[15:19]] == [
        int(at < min(cut, 15 + MAX_MISSED)) for at in range(15, 19)
    ]
    assert {faces[0].track for faces in tracked[19:]} == {1}


def test_a_cut_alone_keeps_a_track():
    """It is the stream's own matter what a cut between two detections means."""
    tracked = followed([[face(100)]] * 20, cuts=[10])
    assert {faces[0].track for faces in tracked} == {0}


def test_a_gap_at_the_end_stays_open():
    tracked = followed(moving(20, range(17, 20)))
    assert all(faces[0].missed and faces[0].next_image is None for faces in tracked[17:])


def test_tracking_goes_on_after_a_flush():
    tracker = LookAheadTracker(25.0)
    for faces in moving(6, [4, 5]):
        assert tracker.update(IMAGE, faces) is None
    assert [len(faces) for faces in tracker.flush()] == [1] * 6 and not list(tracker.flush())
    tracker.update(IMAGE, [face(124)])
    assert [each.track for each in next(tracker.flush())] == [0]


class Scripted(FaceSelection):
    """Selects tracks from the frame on in which they have been seen nine times."""

    def __init__(self):
        self.counts, self.keys = {}, []

    def observe(self, image_bgr, faces):
        for key in faces:
            self.counts[key] = self.counts.get(key, 0) + 1
        self.keys.append(sorted(faces))

    def is_selected(self, key):
        return self.counts[key] > LOOK_AHEAD


def test_the_first_frame_waits_for_what_the_selection_sees_later():
    selection = Scripted()
    frames = [[face(100), face(400)][: 2 if at < 5 else 1] for at in range(20)]
    tracked = followed(frames, cuts=[12], selection=selection)
    assert all(one.selected for faces in tracked[:12] for one in faces if one.track == 0)
    assert not any(one.selected for faces in tracked for one in faces if one.track == 1)
    assert selection.keys[0] == [(0, 0), (1, 0)] and selection.keys[12] == [(0, 1)]
    assert not any(faces[0].selected for faces in tracked[12:]), "another scene, seen 8 times"


def test_options_are_checked():
    with pytest.raises(ConfigError, match="min_face: invalid value -1"):
        LookAheadTracker(25.0, min_face=-1)
