"""Which face is which: numbers, held faces, cuts, and nothing that depends on a detector's
order."""

from __future__ import annotations

import numpy as np
import pytest

from musetalk_enhance.errors import ConfigError
from musetalk_enhance.faces.detect import FFHQ_512, Face
from musetalk_enhance.faces.tracks import MAX_MISSED, SIZE_HYSTERESIS, FaceTracker

SIZE = (640, 360)


def face(x: float, y: float = 180, side: float = 80, turn: float = 0.0) -> Face:
    """A face whose box has its middle at (x, y); `turn` moves the nose and the mouth, in sides."""
    points = (FFHQ_512 / 512 - 0.5) * side + (x, y)
    points[2:, 0] += turn * side
    half = side / 2
    return Face(np.array((x - half, y - half, x + half, y + half)), points.astype(np.float32), 0.9)


def followed(frames, **options) -> list[dict[int, float]]:
    """For each frame: number to the middle of the landmarks, from left to right."""
    tracks = FaceTracker(25.0, **options)
    return [
        {seen.track: seen.landmarks[:, 0].mean() for seen in tracks.update(each, SIZE)}
        for each in frames
    ]


def test_a_face_keeps_its_number_and_is_new_once():
    tracks = FaceTracker(25.0)
    seen = [tracks.update([face(100 + 4 * at)], SIZE)[0] for at in range(20)]
    assert {each.track for each in seen} == {0}
    assert [each.first for each in seen] == [True] + [False] * 19
    assert not any(each.missed for each in seen)
    for at, each in enumerate(seen):
        assert np.array_equal(each.box_xyxy, face(100 + 4 * at).box_xyxy)
        assert np.abs(each.landmarks - face(100 + 4 * at).landmarks).max() < 4, (
            "smoothed, not left behind"
        )


def test_landmarks_of_a_face_at_rest_shake_less():
    noise = np.random.default_rng(3).normal(0, 1.0, (60, 2))
    tracks = FaceTracker(25.0)
    steady = [
        tracks.update([face(300 + x, 180 + y)], SIZE)[0].landmarks.mean(axis=0) for x, y in noise
    ]
    assert np.diff(steady[5:], axis=0).std() < 0.4 * np.diff(noise[5:], axis=0).std()


@pytest.mark.parametrize("speed", [2, 7, 12, 20, 31])
@pytest.mark.parametrize("side", [60, 90])
def test_two_faces_that_cross_keep_their_numbers(speed, side):
    middle = 320 + speed / 3
    places = [(middle + speed * at, middle - speed * at) for at in range(-9, 10)]
    found = followed(
        [[face(right, side=side), face(left, 185, side=side)] for right, left in places]
    )
    assert all(set(each) == {0, 1} for each in found)
    one = found[0][0] < 320  # number 0 goes to the right?
    assert (found[-1][0] > 320) is one and (found[-1][1] > 320) is not one


def test_crossing_while_one_hides_the_other():
    places = [(320 + 12 * at, 320 - 12 * at) for at in range(-9, 10)]
    frames = [
        [face(right)] + ([face(left, 185)] if abs(right - left) > 30 else [])
        for right, left in places
    ]
    assert [len(each) for each in frames].count(1) == 3
    found = followed(frames)
    assert all(set(each) == {0, 1} for each in found)
    goes_right = 0 if found[0][0] < 320 else 1
    assert found[-1][goes_right] > 400 and found[-1][1 - goes_right] < 240


@pytest.mark.parametrize("missed", [1, 2, MAX_MISSED])
def test_a_missed_face_is_held_where_it_was(missed):
    tracks = FaceTracker(25.0)
    before = [tracks.update([face(200)], SIZE)[0] for _ in range(5)][-1]
    held = [tracks.update([], SIZE) for _ in range(missed)]
    assert all(
        len(each) == 1 and each[0].missed and each[0].track == 0 and not each[0].first
        for each in held
    )
    assert all(np.array_equal(each[0].landmarks, before.landmarks) for each in held)
    assert all(np.array_equal(each[0].box_xyxy, before.box_xyxy) for each in held)
    again = tracks.update([face(203)], SIZE)
    assert [(each.track, each.missed, each.first) for each in again] == [(0, False, False)]


def test_a_face_that_is_missed_for_longer_is_gone_and_comes_back_as_another():
    tracks = FaceTracker(25.0)
    tracks.update([face(200)], SIZE)
    assert [len(tracks.update([], SIZE)) for _ in range(MAX_MISSED + 3)] == [1] * MAX_MISSED + [
        0
    ] * 3
    again = tracks.update([face(200)], SIZE)
    assert [(each.track, each.first) for each in again] == [(1, True)]


def test_one_leaves_and_comes_back_while_another_stays():
    frames = [[face(150), face(450)]] * 5 + [[face(150)]] * 10 + [[face(450), face(150)]] * 5
    found = followed(frames)
    stays = next(number for number, x in found[0].items() if x < 300)
    assert all(stays in each and each[stays] < 300 for each in found)
    others = [{1 - stays}] * (5 + MAX_MISSED) + [set()] * (10 - MAX_MISSED) + [{2}] * 5
    assert [set(each) - {stays} for each in found] == others


def test_numbers_are_never_used_twice():
    rng, tracks, seen_first, alive = np.random.default_rng(0), FaceTracker(25.0), [], set()
    for _ in range(300):
        some = [
            face(*rng.uniform((40, 40), (600, 320)), side=rng.uniform(20, 120))
            for _ in range(rng.integers(0, 4))
        ]
        seen = tracks.update(some, SIZE)
        numbers = [each.track for each in seen]
        assert len(set(numbers)) == len(numbers)
        seen_first += [each.track for each in seen if each.first]
        assert {each.track for each in seen if not each.first} <= alive
        alive = set(numbers)
    assert seen_first == list(range(len(seen_first))) and len(seen_first) > 50


def test_another_person_at_the_same_place_does_not_get_the_landmarks_of_the_last():
    tracks = FaceTracker(25.0)
    for _ in range(10):
        tracks.update([face(300, side=80)], SIZE)
    other = face(318, 196, side=110, turn=0.1)
    seen = tracks.update([other], SIZE)
    assert len(seen) == 1 and np.allclose(seen[0].landmarks, other.landmarks, atol=1e-4)


def test_a_cut_to_another_place_is_another_face():
    tracks = FaceTracker(25.0)
    for _ in range(5):
        tracks.update([face(100)], SIZE)
    seen = {each.track: each for each in tracks.update([face(500)], SIZE)}
    assert seen[1].first and not seen[1].missed and seen[0].missed


def test_only_center_keeps_to_one_face():
    """The other one comes nearer to the middle, but the first stays."""
    frames = [[face(300 - 4 * at), face(600 - 7 * at)] for at in range(40)]
    found = followed(frames, only_center=True)
    assert all(set(each) == {0} for each in found) and found[-1][0] < 160


def test_only_center_goes_to_the_next_one_when_the_first_is_gone():
    both, other = [face(300), face(520)], [face(520)]
    found = followed([both] * 3 + [other] * (MAX_MISSED + 2) + [both] * 5, only_center=True)
    assert [list(each) for each in found] == [[0]] * (3 + MAX_MISSED) + [[1]] * 7
    assert all(abs(each[1] - 520) < 20 for each in found[-7:])


def test_a_face_is_taken_up_large_and_kept_until_it_is_clearly_smaller():
    def numbers(sides):
        return [
            list(each) for each in followed([[face(300, side=side)] for side in sides], min_face=80)
        ]

    assert numbers([79.9, 79, 70]) == [[], [], []]
    sides = [81, 79, 81, 78, 79, 80 * SIZE_HYSTERESIS + 0.5]
    assert numbers(sides) == [[0]] * 6, "no coming and going about the limit"
    assert numbers([81, 80 * SIZE_HYSTERESIS - 1, 79, 81]) == [[0], [], [], [1]]


def test_a_wide_face_is_as_large_as_its_longer_side():
    wide = Face(np.array((100.0, 100, 190, 140)), face(145, 120, 60).landmarks, 0.9)
    assert len(FaceTracker(25.0, min_face=80).update([wide], SIZE)) == 1
    assert len(FaceTracker(25.0, min_face=91).update([wide], SIZE)) == 0


def test_no_faces_at_all():
    tracks = FaceTracker(25.0)
    assert [tracks.update([], SIZE) for _ in range(10)] == [[]] * 10


def test_the_order_of_faces_does_not_matter():
    rng = np.random.default_rng(1)
    frames = [
        [face(100 + 5 * at), face(400 - 5 * at, 185), face(320, 90, 60), face(500, 300, 60)]
        for at in range(30)
    ]
    frames[10:12] = [frames[10][1:], frames[11][2:]]
    shuffled = [[each[index] for index in rng.permutation(len(each))] for each in frames]
    shuffled[0] = frames[0][::-1]
    tracks, others = FaceTracker(25.0), FaceTracker(25.0)
    for some, mixed in zip(frames, shuffled, strict=True):
        one, other = tracks.update(some, SIZE), others.update(mixed, SIZE)
        assert [each.track for each in one] == [each.track for each in other]
        for a, b in zip(one, other, strict=True):
            assert np.array_equal(a.landmarks, b.landmarks) and np.array_equal(
                a.box_xyxy, b.box_xyxy
            )
            assert (a.first, a.missed) == (b.first, b.missed)


def test_the_same_frames_give_the_same_tracks():
    frames = [[face(100 + 3 * at), face(400)] for at in range(10)]
    assert followed(frames) == followed(frames)


def test_impossible_values():
    with pytest.raises(ConfigError, match="min_face: invalid value -1"):
        FaceTracker(25.0, min_face=-1)
    with pytest.raises(ConfigError, match="fps"):
        FaceTracker(0.0).update([face(100)], SIZE)
