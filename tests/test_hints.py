"""What a host says of its frames is checked at the border: one entry a frame, five points, hashable
keys."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from musetalk_enhance.errors import FrameError
from musetalk_enhance.frames.hints import Hints

POINTS = np.arange(30, dtype=np.float64).reshape(3, 5, 2)


def test_nothing_said_is_none_for_every_frame():
    hints = Hints.of(3)
    assert (hints.landmarks, hints.occlusion, hints.keys) == ([None] * 3, [None] * 3, [None] * 3)
    assert Hints.of(0).landmarks == []


@pytest.mark.parametrize(
    "landmarks",
    [
        POINTS,
        POINTS.astype(np.float32),
        POINTS.tolist(),
        tuple(POINTS),
        torch.from_numpy(POINTS),
        torch.from_numpy(POINTS).half().requires_grad_(),
        torch.from_numpy(POINTS).bfloat16(),
        [torch.from_numpy(each) for each in POINTS],
        POINTS.astype(int),
    ],
    ids=["float64", "float32", "list", "tuple", "tensor", "half", "bfloat16", "tensors", "int"],
)
def test_landmarks_of_any_kind_become_float32(landmarks):
    found = Hints.of(3, landmarks).landmarks
    assert all(each.dtype == np.float32 and each.shape == (5, 2) for each in found)
    assert np.array_equal(found, POINTS)


def test_landmarks_may_be_missing_for_some():
    found = Hints.of(3, [None, POINTS[1], None]).landmarks
    assert found[0] is None and found[2] is None and np.array_equal(found[1], POINTS[1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_landmarks_that_are_not_finite_are_none(bad):
    points = POINTS.copy()
    points[1, 2, 0] = bad
    found = Hints.of(3, points).landmarks
    assert found[1] is None and found[0] is not None and found[2] is not None


@pytest.mark.parametrize(
    ("landmarks", "words"),
    [
        (POINTS[:2], "2 entries.*3 frames"),
        (POINTS[0], "5 entries"),
        (np.zeros((3, 68, 2)), r"frame 0: got shape \(68, 2\).*\(5, 2\)"),
        ([None, POINTS[0], np.zeros((5, 3))], r"frame 2: got shape \(5, 3\)"),
        ([None, "face", None], "frame 1: got str"),
        ([None, [[1, 2], [3]], None], "frame 1: got list"),
        (7, "int.*3 frames"),
        ("abc", "3 entries"),
        ({0: POINTS[0]}, "dict"),
        (iter(POINTS), "iterator"),
        (np.array(3.0), "ndarray"),
        (torch.tensor(3.0), "Tensor"),
    ],
)
def test_bad_landmarks(landmarks, words):
    with pytest.raises(FrameError, match=words) as caught:
        Hints.of(3, landmarks)
    assert caught.value.reason == "landmarks"


def test_an_error_names_the_frame():
    with pytest.raises(FrameError) as caught:
        Hints.of(3, [POINTS[0], POINTS[0][:4], None])
    assert caught.value.index == 1


@pytest.mark.parametrize("name", ["occlusion", "keys"])
@pytest.mark.parametrize("values", [[None, None], np.zeros(4), 5, "abc"])
def test_masks_and_keys_are_counted_too(name, values):
    with pytest.raises(FrameError) as caught:
        Hints.of(3, **{name: values})
    assert caught.value.reason == name


def test_masks_are_handed_on_as_they_are():
    masks = [None, np.ones((4, 4), bool), torch.zeros(4, 4)]
    found = Hints.of(3, occlusion=masks).occlusion
    assert all(one is other for one, other in zip(found, masks, strict=True)) and found is not masks
    assert [each.shape for each in Hints.of(2, occlusion=np.zeros((2, 4, 6))).occlusion] == [
        (4, 6)
    ] * 2


@pytest.mark.parametrize(
    "keys", [[3, 1, 3], (3, 1, 3), np.array([3, 1, 3]), torch.tensor([3, 1, 3])]
)
def test_keys_of_one_value_are_one_key(keys):
    assert Hints.of(3, keys=keys).keys == [3, 1, 3]
    assert all(type(key) is int for key in Hints.of(3, keys=keys).keys)


def test_keys_may_be_anything_that_is_hashable():
    keys = [("loop", 3), None, "name"]
    assert Hints.of(3, keys=keys).keys == keys


@pytest.mark.parametrize(
    "keys", [[1, [2], 3], [1, np.zeros(2), 3], [1, ([],), 3], np.zeros((3, 2)), torch.zeros(3, 2)]
)
def test_keys_that_cannot_be_hashed(keys):
    with pytest.raises(FrameError, match="hashable") as caught:
        Hints.of(3, keys=keys)
    assert caught.value.reason == "keys" and caught.value.index in (0, 1)


def test_those_of_some_frames():
    hints = Hints.of(3, POINTS, [None, 1, 2], "a b c".split()).at([2, 0])
    assert np.array_equal(hints.landmarks, POINTS[[2, 0]])
    assert (hints.occlusion, hints.keys) == ([2, None], ["c", "a"])


def test_cuts_are_false_where_nothing_is_said():
    assert Hints.of(2).cuts == [False, False]
    assert Hints.of(3, cuts=np.array([1, 0, 1])).cuts == [True, False, True]
    hints = Hints.of(3, cuts=[True, None, torch.tensor(True)])
    assert hints.cuts == [True, False, True]
    assert hints.at([1, 2]).cuts == [False, True] and hints.own(0).cuts == [True]
    with pytest.raises(FrameError, match="2 entries in cuts"):
        Hints.of(3, cuts=[True, False])
