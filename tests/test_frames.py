"""The contract at the border: containers, types, ranges, orders, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from musetalk_enhance.errors import EnhanceError, FrameError
from musetalk_enhance.frames.batch import FrameBatch

CPU = torch.device("cpu")


def round_trip(source, color="bgr", value_range="auto"):
    batch = FrameBatch.open(source, value_range)
    assert not batch.problems
    out = {}
    for group in batch.groups():
        done = batch.from_network(batch.to_network(group, CPU, color), group, color)
        out.update(zip(group, done, strict=True))
    return batch.close([out[i] for i in range(len(batch))])


@pytest.mark.parametrize("color", ["bgr", "rgb"])
def test_uint8_comes_back_bit_for_bit(faces, color):
    assert np.array_equal(round_trip(faces, color), faces)


def test_negative_stride_view_is_taken_and_left_alone(faces):
    view = faces[..., ::-1]
    before = view.copy()
    out = round_trip(view)
    assert out.flags.c_contiguous
    assert np.array_equal(out, before) and np.array_equal(view, before)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 255), (-1, 1)])
def test_float_ranges_are_told_and_kept(rng, dtype, low, high):
    frames = (rng.random((3, 32, 40, 3)) * (high - low) + low).astype(dtype)
    out = round_trip(frames)
    assert out.dtype == dtype
    tolerance = 1e-3 if dtype == np.float16 else 1e-6  # half has 11 bits
    assert np.abs(out.astype(np.float64) - frames).max() <= tolerance * (high - low)


def test_inside_is_rgb_0_to_1():
    frame = np.zeros((1, 16, 16, 3), np.uint8)
    frame[..., 0] = 255  # blue, for a BGR host
    inside = FrameBatch.open(frame).to_network([0], CPU, "bgr")
    assert inside.shape == (1, 3, 16, 16) and inside.dtype == torch.float32
    assert inside[0, :, 0, 0].tolist() == [0, 0, 1]


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_tensors_keep_layout_and_type(rng, layout):
    source = torch.from_numpy(rng.random((2, 3, 32, 48), np.float32) * 2 - 1)
    source = source if layout == "nchw" else source.permute(0, 2, 3, 1)
    out = round_trip(source, "rgb")
    assert out.shape == source.shape and out.dtype == source.dtype and out.is_contiguous()
    assert torch.allclose(out, source, atol=1e-6)


def test_lists_may_mix_sizes(rng):
    frames = [rng.integers(0, 256, (side, side, 3), np.uint8) for side in (64, 32, 64)]
    batch = FrameBatch.open(frames)
    assert batch.groups() == [[0, 2], [1]]
    out = round_trip(frames)
    assert isinstance(out, list)
    assert all(np.array_equal(a, b) for a, b in zip(out, frames, strict=True))
    assert isinstance(round_trip(tuple(frames)), tuple)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (np.zeros((64, 64), np.uint8), "channels"),
        (np.zeros((64, 64, 1), np.uint8), "channels"),
        (np.zeros((64, 64, 4), np.uint8), "channels"),
        (np.zeros((64, 64, 3), np.int32), "dtype"),
        (np.zeros((64, 64, 3), bool), "dtype"),
        (np.zeros((8, 64, 3), np.uint8), "size"),
        (np.zeros((0, 64, 3), np.uint8), "size"),
        (np.zeros((2, 64, 64, 3), np.uint8), "shape"),
        (np.full((64, 64, 3), np.nan, np.float32), "nonfinite"),
        (np.full((64, 64, 3), np.inf, np.float32), "nonfinite"),
        (np.full((64, 64, 3), 1000.0, np.float32), "range"),
        (np.full((64, 64, 3), -7.0, np.float32), "range"),
        (np.full((64, 64, 3), 3.0, np.float32), "range"),  # neither 0..1 nor plainly 0..255
        (None, "type"),
        ("face.png", "type"),
    ],
)
def test_bad_frame_is_named_at_its_index(frame, reason):
    good = np.zeros((64, 64, 3), np.uint8)
    batch = FrameBatch.open([good, frame, good])
    assert list(batch.problems) == [1]
    error = batch.problems[1]
    assert error.reason == reason and error.index == 1
    assert "frame 1: got " in str(error) and "; expected " in str(error)
    assert batch.groups() == [[0, 2]]


def test_one_wild_frame_does_not_change_the_range_of_the_others(rng):
    frames = rng.random((4, 32, 32, 3), np.float32)
    frames[2] *= 200
    batch = FrameBatch.open(frames)
    assert batch.value_range == (0, 1) and list(batch.problems) == [2]


def test_declared_range_wins_over_guessing():
    dark = np.full((1, 32, 32, 3), 0.5, np.float32)
    assert FrameBatch.open(dark, "0..255").value_range == (0, 255)
    assert FrameBatch.open(dark * 100, "0..1").problems[0].reason == "range"
    assert FrameBatch.open(dark, "auto", previous=(0, 255)).value_range == (0, 255)


@pytest.mark.parametrize("source", [None, "frames", 3, {"a": 1}, iter([])])
def test_no_container_is_an_error_in_any_mode(source):
    with pytest.raises(FrameError, match="container|array, tensor, list or tuple") as caught:
        FrameBatch.open(source)
    assert isinstance(caught.value, EnhanceError) and isinstance(caught.value, ValueError)


def test_one_frame_without_a_batch_axis_is_a_batch_of_one():
    frame = np.zeros((64, 64, 3), np.uint8)
    batch = FrameBatch.open(frame)
    assert len(batch) == 1 and batch.close([frame]).shape == (64, 64, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_tensors_are_looked_at_on_every_torch(rng, dtype):
    frames = torch.from_numpy(rng.random((2, 3, 32, 32), np.float32)).to(dtype)
    frames[1, 0, 0, 0] = float("nan")
    batch = FrameBatch.open(frames)
    assert batch.value_range == (0, 1) and {i: p.reason for i, p in batch.problems.items()} == {
        1: "nonfinite"
    }


def test_values_that_cannot_be_looked_at_are_a_problem_of_that_frame(monkeypatch):
    def broken(tensor):
        if tensor[0, 0, 0] == 1:
            raise RuntimeError("not implemented")
        return tensor

    monkeypatch.setattr("musetalk_enhance.frames.batch._wide", broken)
    batch = FrameBatch.open(torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)]))
    assert {i: p.reason for i, p in batch.problems.items()} == {
        1: "unreadable"
    } and batch.groups() == [[0]]


@pytest.mark.parametrize("odd", ["meta", "sparse"])
def test_tensors_without_plain_values_are_refused(odd):
    good = torch.zeros(3, 32, 32)
    frame = good.to("meta") if odd == "meta" else good.to_sparse()
    batch = FrameBatch.open([good, frame])
    assert {i: p.reason for i, p in batch.problems.items()} == {1: "storage"}
    assert type(batch.passthrough(1, None)) is torch.Tensor
    with pytest.raises(FrameError) as caught:
        FrameBatch.open(
            torch.zeros(2, 3, 32, 32, device="meta") if odd == "meta" else torch.stack([frame] * 2)
        )
    assert caught.value.reason == "storage"


def test_a_slight_undershoot_is_still_0_to_1(rng):
    frames = rng.random((3, 32, 32, 3), np.float32)
    frames[1, 0, 0, 0] = -0.003
    assert FrameBatch.open(frames).value_range == (0, 1)
    frames[2, 0, 0, 0] = -0.5
    assert FrameBatch.open(frames).value_range == (0, 1), "one pixel says nothing"
    frames[2, 0, 0, 0] = 0.5
    frames[2, :16] -= 0.9
    assert FrameBatch.open(frames).value_range == (-1, 1)


def test_a_range_that_was_shown_stays_for_odd_pixels_and_changes_with_most_frames(rng):
    frames = rng.random((3, 32, 32, 3), np.float32)
    odd = frames.copy()
    odd[:, 0, 0] = (-0.4, 1.3, 0)
    batch = FrameBatch.open(odd, previous=(0.0, 1.0))
    assert batch.value_range == (0, 1) and not batch.problems
    warnings = []
    changed = FrameBatch.open(frames * 255, previous=(0.0, 1.0))
    changed.warn(lambda key, text, *values: warnings.append(text % values))
    assert changed.value_range == (0, 255) and "0..1 and are now in 0..255" in warnings[0]


def test_black_frames_show_no_range():
    assert not FrameBatch.open(np.zeros((2, 32, 32, 3), np.float32)).range_shown


def test_the_order_of_the_bytes_stays(rng):
    frames = rng.random((2, 32, 32, 3)).astype(">f4")
    for source in (frames, list(frames)):
        out = round_trip(source)
        assert out[0].dtype == ">f4" and np.allclose(out, frames, atol=1e-6)
    assert FrameBatch.open(frames).passthrough(0, (48, 48)).dtype == ">f4"
    batch = FrameBatch.open(list(frames))
    lower = batch.to_network([0, 1], CPU, "bgr")[:, :, 16:]
    for touched in (None, torch.ones(1, 1, 16, 32, dtype=torch.bool)):
        out = batch.from_network(lower, [0, 1], "bgr", touched, first_row=16)
        assert out.dtype == ">f4" and np.allclose(out, frames, atol=1e-6)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_floats_of_8_bits_in_any_range(rng, name):
    """torch cannot compare them, and no exception may cost the batch."""
    if not hasattr(torch, name):
        pytest.skip(f"this torch has no {name}")
    values = torch.from_numpy(rng.random((2, 3, 32, 32)).astype(np.float32) * 2)
    batch = FrameBatch.open(values.to(getattr(torch, name)))
    assert [problem.reason for problem in batch.problems.values()] == ["range", "range"]


def test_what_is_passed_through_needs_no_gradient(rng):
    frames = torch.from_numpy(rng.random((2, 3, 32, 32)).astype(np.float32)).requires_grad_()
    batch = FrameBatch.open(frames)
    copies = [batch.passthrough(0, None), batch.passthrough(0, (48, 48)), batch.copy()]
    assert not any(copy.requires_grad for copy in copies) and frames.requires_grad


def test_floats_that_torch_does_not_know_are_refused():
    batch = FrameBatch.open(np.zeros((1, 32, 32, 3), np.longdouble))
    if np.longdouble(0).itemsize > 8:
        assert batch.problems[0].reason == "dtype" and not batch.has_size(0)


@pytest.mark.parametrize("frame", [np.ones((32, 32, 3), np.uint8), torch.ones(3, 32, 32)])
def test_a_frame_handed_back_is_a_copy(frame):
    for size in (None, (32, 32)):
        out = FrameBatch.open([frame]).passthrough(0, size)
        out[:] = 7
        assert frame.max() == 1
