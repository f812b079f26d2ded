"""`match: source`: sharpness, color and grain of the host's original crop."""

from __future__ import annotations

import logging

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from musetalk_enhance.errors import ConfigError, FrameError
from musetalk_enhance.pipeline import match
from musetalk_enhance.pipeline.match import MatchState, Source, _smoothed, octaves
from musetalk_enhance.report.metrics import fine_detail_energy
from musetalk_enhance.restorers.base import ModelInfo
from tests.pictures import to_faces, to_frames

SAME = ModelInfo("oracle", "no network", 256, 256, (0.0, 1.0), "none", bytes_per_face=2**20)
MOUTH = (slice(160, 236), slice(72, 184))


@pytest.fixture
def sharp(take: torch.Tensor) -> np.ndarray:
    return to_frames(take[:8])


@pytest.fixture
def blurred(soft: torch.Tensor) -> np.ndarray:
    return to_frames(soft[:8])


@pytest.fixture
def restore(make_enhancer):
    """restore(frames, answers, sources, **options): frames as a network that answers so gives
    them."""

    def run(frames, answers, sources=None, step=8, **options):
        place = [0]

        def answer(faces):
            place[0] += len(faces)
            return to_faces(answers)[place[0] - len(faces) : place[0]]

        enhancer = make_enhancer(answer, SAME, **({"match": "source", "batch_size": 4} | options))
        parts = []
        for start in range(0, len(frames), step):
            stop = start + step
            part = None if sources is None else sources[start:stop]
            parts.append(enhancer(frames[start:stop], sources=part))
        return np.concatenate(parts)

    return run


def detail(frames: np.ndarray) -> np.ndarray:
    values = frames.astype(np.float32)
    return values - np.stack([cv2.GaussianBlur(value, (0, 0), 2) for value in values])


def with_detail(frames: np.ndarray, share: float) -> np.ndarray:
    """Frames with their detail times 1 + share."""
    return np.clip(np.rint(frames + share * detail(frames)), 0, 255).astype(np.uint8)


def energy(frames: np.ndarray) -> float:
    """Of detail at the mouth."""
    return float(np.square(detail(frames)[:, MOUTH[0], MOUTH[1]]).mean())


def fine(frames: np.ndarray) -> float:
    """Energy of the finest detail at the mouth."""
    return float(np.mean([fine_detail_energy(frame[MOUTH]) for frame in frames]))


def low(frames: np.ndarray) -> np.ndarray:
    return np.stack([cv2.GaussianBlur(frame.astype(np.float32), (0, 0), 12) for frame in frames])


def weak(frames: np.ndarray, sharp: np.ndarray) -> np.ndarray:
    """Frames with half of what they lack."""
    return np.asarray((frames.astype(int) + sharp + 1) // 2, np.uint8)


@pytest.mark.parametrize("excess", [1.0, 0.5])
def test_excess_detail_is_lowered_to_the_source(restore, sharp, blurred, excess):
    answers = with_detail(sharp, excess)
    assert energy(restore(blurred, answers)) / energy(sharp) > 1.3
    assert 0.95 < energy(restore(blurred, answers, sharp)) / energy(sharp) < 1.05


def test_weak_detail_is_raised(restore, sharp, blurred):
    """As far as it is like the frame: not all the way."""
    answers = weak(blurred, sharp)
    before = energy(restore(blurred, answers)) / energy(sharp)
    after = energy(restore(blurred, answers, sharp)) / energy(sharp)
    assert before < 0.7
    assert before + 0.1 < after < 1.05


def test_a_guess_is_raised_to_a_part(restore, sharp, monkeypatch):
    """Fine detail that is unlike the source's: to a part of its energy, not further."""
    smooth = np.stack([cv2.GaussianBlur(frame, (0, 0), 3) for frame in sharp])
    guess = 0.3 * np.roll(detail(sharp), 40, 2)
    answers = np.clip(np.rint(smooth + guess), 0, 255).astype(np.uint8)
    shares = []
    for least in (0.0, match.LEAST_SHARPNESS):
        monkeypatch.setattr(match, "LEAST_SHARPNESS", least)
        shares.append(fine(restore(smooth, answers, sharp)) / fine(sharp))
    assert shares[0] < 0.2
    assert 0.35 < shares[1] < 0.8


def test_without_the_option_sources_change_nothing(restore, sharp, blurred):
    answers = with_detail(sharp, 0.5)
    plain = restore(blurred, answers, match="none")
    assert np.array_equal(restore(blurred, answers, sharp, match="none"), plain)


def test_without_sources_the_option_changes_nothing(restore, sharp, blurred):
    answers = with_detail(sharp, 0.5)
    plain = restore(blurred, answers, match="none")
    assert np.array_equal(restore(blurred, answers), plain)
    assert np.array_equal(restore(blurred, answers, [None] * 8), plain)


def test_another_face_or_pose_counts_as_no_source(restore, sharp, blurred, rng):
    answers = with_detail(sharp, 0.5)
    plain = restore(blurred, answers)
    for other in (sharp[:, ::-1], np.roll(sharp, 60, 2), rng.integers(0, 256, sharp.shape)):
        other = np.ascontiguousarray(other, np.uint8)
        assert np.array_equal(restore(blurred, answers, other), plain)


def test_color_is_that_of_the_source_around_the_mouth(restore, sharp, blurred):
    shift = np.array([6, -4, 3])
    tinted = np.clip(blurred.astype(int) + shift, 0, 255).astype(np.uint8)
    answers = np.clip(sharp.astype(int) + shift, 0, 255).astype(np.uint8)
    inside = np.s_[:, 130:245, 20:236]
    before = np.abs(low(restore(tinted, answers)) - low(sharp))[inside].mean()
    after = np.abs(low(restore(tinted, answers, sharp)) - low(sharp))[inside].mean()
    assert before > 3
    assert after < 0.6


def test_an_open_mouth_keeps_its_color(restore, sharp, blurred):
    """The source's mouth is another one: nothing of its color comes into the result."""
    closed = sharp.copy()
    closed[:, 185:205, 100:156] = (40, 40, 200)
    result = restore(blurred, sharp, closed)
    plain = restore(blurred, sharp)
    inside = np.s_[:, 180:210, 100:156]
    assert np.abs(low(result) - low(plain))[inside].mean() < 2


def test_a_lost_source_fades_out(restore, sharp, blurred):
    """Gains return to 1 over several frames, and come back so."""
    still = {"frames": np.repeat(blurred[:1], 24, 0), "answers": with_detail(sharp[:1], 1.0)}
    answers = np.repeat(still["answers"], 24, 0)
    frames = still["frames"].copy()
    frames[:, 0, 0, 0] = np.arange(24)  # no frame repeats the one before bit for bit
    sources = [sharp[0]] * 8 + [None] * 8 + [sharp[0]] * 8
    result = restore(frames, answers, sources, stability=1, step=24)
    levels = [energy(frame[None]) for frame in result]
    steps = np.abs(np.diff(levels)) / abs(levels[15] - levels[7])
    assert levels[15] > 1.4 * levels[7]
    assert levels[23] < 0.8 * levels[15]
    assert steps.max() < 0.35


def flat(frames: np.ndarray) -> np.ndarray:
    """Frames whose contrast a decoder has lowered."""
    coarse = low(frames)
    return np.rint(coarse + 0.7 * (frames - coarse)).astype(np.uint8)


def test_contrast_is_given_back(restore, sharp):
    frames = flat(sharp)
    result = restore(frames, frames, sharp)  # the restorer adds nothing
    errors = [
        np.abs(each.astype(int) - sharp)[:, MOUTH[0], MOUTH[1]].mean() for each in (frames, result)
    ]
    assert errors[1] < 0.5 * errors[0]


def test_a_smooth_mouth_in_the_source_takes_half_of_the_detail_at_most(restore, sharp, blurred):
    """The source's mouth is another one: what is around it counts as much."""
    other = sharp.copy()
    other[:, MOUTH[0], MOUTH[1]] = low(sharp)[:, MOUTH[0], MOUTH[1]].astype(np.uint8)
    answers = with_detail(sharp, 0.5)
    expected = energy(restore(blurred, answers, sharp))
    assert 0.5 < energy(restore(blurred, answers, other)) / expected < 1


CHEEKS = np.s_[:, 150:200, 48:62]


def test_around_the_mouth_the_source_s_skin_is_taken(restore, sharp):
    frames = flat(sharp)
    errors = [
        np.abs(restore(frames, frames, sources).astype(int) - sharp)[CHEEKS].mean()
        for sources in (None, sharp)
    ]
    assert errors[1] < 0.3 * errors[0]


def test_skin_in_another_place_is_not_taken(restore, sharp, blurred):
    moved = np.roll(sharp, 6, 2)
    result = restore(blurred, sharp, moved).astype(int)
    assert np.abs(result - sharp)[CHEEKS].mean() < 0.5 * np.abs(result - moved)[CHEEKS].mean()


def test_skin_returns_slowly(restore, sharp):
    """After frames without a source, so that nothing flickers."""
    still = flat(np.repeat(sharp[:1], 24, 0))
    still[:, 0, 0, 0] = np.arange(24)  # no frame repeats the one before bit for bit
    sources = [sharp[0]] * 4 + [None] * 4 + [sharp[0]] * 16
    result = restore(still, still, sources, stability=1, step=24)
    errors = np.abs(result.astype(int) - sharp[:1])[CHEEKS].mean((1, 2, 3))
    assert errors[8] > 2 * errors[3]
    assert errors[23] < 1.2 * errors[3] + 0.1


def test_a_gpu_is_read_twice_a_batch(monkeypatch, sharp, blurred):
    frames, sources = to_faces(blurred), [Source(each) for each in to_faces(sharp)]

    def call() -> None:
        match.match(frames, (to_faces(sharp) - frames), sources, [None] * 8, [False] * 8, 0, None)

    call()  # what depends on the size alone is remembered
    reads = []
    read = match._read
    monkeypatch.setattr(match, "_read", lambda rows: reads.append(len(rows)) or read(rows))
    for name in ("__float__", "__int__", "__bool__", "item", "tolist"):

        def refuse(self, name=name):
            raise AssertionError(f"{name} reads a value")

        monkeypatch.setattr(torch.Tensor, name, refuse)
    call()
    assert reads == [8, 8]


def test_frames_without_a_source_cost_nothing(monkeypatch, sharp, blurred):
    frames = to_faces(blurred)
    monkeypatch.setattr(match, "octaves", None)
    residual = to_faces(sharp) - frames
    result, added, _ = match.match(
        frames, residual.clone(), [None] * 8, [None] * 8, [False] * 8, 0, None
    )
    assert torch.equal(result, residual)
    assert not added.any()


@pytest.mark.parametrize("side", [5, 24, 40])
def test_sources_of_any_size(restore, sharp, blurred, side):
    small = np.stack([cv2.resize(each, (side, side + 3)) for each in sharp])
    answers = with_detail(sharp, 0.5)
    assert restore(blurred, answers, small).shape == blurred.shape


@pytest.mark.parametrize("region", ["lower", "mouth"])
def test_matching_stays_in_the_region(restore, sharp, region):
    frames = flat(sharp)
    result = restore(frames, frames, sharp, region=region)
    assert np.array_equal(result[:, :112], frames[:, :112])
    assert np.array_equal(result[:, 150:, :20], frames[:, 150:, :20]) == (region == "mouth")


@pytest.mark.parametrize("size", [256, 512])
def test_a_stream_is_the_same_in_any_batches(restore, sharp, blurred, size):
    answers = with_detail(sharp, 0.7)
    options = {"stability": 1, "output_size": size}
    whole = restore(blurred, answers, sharp, step=8, **options)
    assert np.array_equal(restore(blurred, answers, sharp, step=3, **options), whole)


def test_a_small_source_says_nothing_about_finer_octaves(restore, sharp, blurred):
    """The result stays sharper than the source itself could be."""
    small = np.stack([cv2.resize(each, (128, 128), interpolation=cv2.INTER_AREA) for each in sharp])
    result = restore(blurred, sharp, small)
    enlarged = np.stack([cv2.resize(each, (256, 256)) for each in small])
    assert energy(result) > 1.4 * energy(enlarged)


def test_where_the_source_is_the_frame_the_face_around_counts(restore, sharp, blurred):
    share = np.clip((np.arange(256) - 120) / 20, 0, 1)[None, :, None, None]
    half = np.rint(share * blurred + (1 - share) * sharp).astype(np.uint8)
    answers = weak(half, sharp)
    closed = [0, 1, 2, 6, 7]  # the drawn teeth have more contrast than the eyes
    raised, plain = (restore(half, answers, sources)[closed] for sources in (half, None))
    assert fine(raised) > 1.04 * fine(plain)
    lowered, plain = (restore(blurred, sharp, sources) for sources in (blurred, None))
    assert fine(lowered) < 0.7 * fine(plain)


def test_grain_of_the_source(restore, sharp, blurred, rng):
    noise = rng.normal(0, 3, (*sharp.shape[:3], 1))
    grainy = np.clip(np.rint(sharp + noise), 0, 255).astype(np.uint8)
    result = restore(blurred, sharp, grainy)
    again = restore(blurred, sharp, grainy)
    plain = restore(blurred, sharp, sharp)
    added = result.astype(np.float32) - plain
    flat = added[:, 140:160, 60:100].mean(-1)
    assert np.array_equal(result, again)
    assert 1 < flat.std() < 4
    assert abs(np.corrcoef(flat[0].ravel(), flat[1].ravel())[0, 1]) < 0.3


def test_outside_the_region_the_hosts_pixels_stay(restore, sharp, blurred):
    tinted = np.clip(blurred.astype(int) + 5, 0, 255).astype(np.uint8)
    result = restore(tinted, sharp, sharp, region="lower")
    assert np.array_equal(result[:, :112], tinted[:, :112])
    assert not np.array_equal(result[:, 130:], tinted[:, 130:])


def test_tensors_and_rgb(make_enhancer, sharp, blurred):
    """A source has the container's layout and color order, whatever they are."""
    answers = with_detail(sharp, 1.0)
    bgr = make_enhancer(lambda x: to_faces(answers)[: len(x)], SAME, match="source", batch_size=8)
    rgb = make_enhancer(
        lambda x: to_faces(answers)[: len(x)], SAME, match="source", batch_size=8, color="rgb"
    )
    expected = bgr(blurred, sources=sharp)
    tensors = [
        torch.from_numpy(np.ascontiguousarray(each[..., ::-1])).permute(0, 3, 1, 2)
        for each in (blurred, sharp)
    ]
    result = rgb(tensors[0], sources=tensors[1])
    assert np.array_equal(result.permute(0, 2, 3, 1).numpy()[..., ::-1], expected)


def test_a_bad_source_is_none_and_is_told_once(restore, sharp, blurred, caplog):
    answers = with_detail(sharp, 0.5)
    bad = [np.zeros((4, 4, 3), np.uint8), "source.png", np.full((64, 64), 7, np.uint8)] * 2
    with caplog.at_level(logging.WARNING):
        result = restore(blurred[:6], answers, bad)
    assert np.array_equal(result, restore(blurred[:6], answers))
    assert caplog.text.count("a source cannot be used") == 1


def test_a_source_without_any_content_is_none(restore, sharp, blurred):
    """A host's buffer that it has not filled."""
    answers = with_detail(sharp, 0.5)
    for level in (0, 99):
        empty = np.full_like(sharp, level)
        assert np.array_equal(restore(blurred, answers, empty), restore(blurred, answers))


def test_values_that_are_no_numbers_are_no_source(sharp, blurred):
    frames = to_faces(blurred[:1])
    residual = to_faces(sharp[:1]) - frames
    for value in (float("nan"), float("inf")):
        source = Source(torch.full((3, 64, 64), value))
        arguments = ([source], [None], [False], 0, None)
        result, added, _ = match.match(frames, residual.clone(), *arguments)
        assert torch.equal(result, residual)
        assert not added.any()


def test_results_of_another_size_begin_anew(make_enhancer, sharp, blurred):
    enhancer = make_enhancer(None, SAME, match="source", upscale=2, stability=1)
    enhancer(blurred[:4], sources=sharp[:4])
    assert enhancer.enhance_batch(blurred[4:6]).shape == (2, 512, 512, 3)
    enhancer(blurred[6:], sources=sharp[6:])
    assert not enhancer.stats.failed


def test_what_is_remembered_moves_with_the_network(restore, sharp, blurred, monkeypatch):
    """After `unload`, and where memory of a GPU ran out."""
    devices = []
    monkeypatch.setattr(MatchState, "to", lambda self, to: devices.append(to) or self)
    restore(blurred, sharp, sharp, step=4)
    assert devices == [torch.device("cpu")]


def test_pil_images_may_be_their_own_sources(make_enhancer, sharp, blurred):
    def result(frames, **options):
        def answer(faces):
            return to_faces(with_detail(blurred, 2.0))[: len(faces)]

        return make_enhancer(answer, SAME, match="source", batch_size=8, **options)(
            frames, sources=frames
        )

    images = [Image.fromarray(each[..., ::-1].copy()) for each in blurred]
    expected = result(blurred)[..., ::-1]
    assert np.array_equal(np.stack([np.asarray(each) for each in result(images)]), expected)


def test_a_host_s_default_device_changes_nothing(restore, sharp, blurred, rng):
    grainy = np.clip(np.rint(sharp + rng.normal(0, 3, sharp.shape)), 0, 255).astype(np.uint8)
    expected = restore(blurred, sharp, grainy)
    torch.set_default_device("meta")
    try:
        result = restore(blurred, sharp, grainy)
    finally:
        torch.set_default_device(None)
    assert np.array_equal(result, expected)


def test_a_host_that_passes_no_sources_is_told_once(restore, sharp, blurred, caplog):
    with caplog.at_level(logging.WARNING):
        restore(blurred, sharp, step=2)
    assert caplog.text.count("match: source has no effect") == 1
    caplog.clear()
    restore(blurred, sharp, [None] * 8)
    restore(blurred, sharp, match="none")
    assert not caplog.text


def test_another_number_of_sources_is_an_error(make_enhancer, sharp, blurred):
    enhancer = make_enhancer(None, SAME, match="source")
    with pytest.raises(FrameError, match="sources"):
        enhancer(blurred, sources=sharp[:3])


def test_an_unknown_value_is_an_error(make_enhancer):
    with pytest.raises(ConfigError, match="match"):
        make_enhancer(match="original")


def test_octaves_are_parts_of_the_whole(rng):
    values = torch.from_numpy(rng.random((2, 3, 40, 56), np.float32))
    smooth = values
    for octave in range(3):
        smooth = _smoothed(smooth, 2**octave)
    total = smooth + torch.stack(octaves(values, 3)).sum(0)
    assert torch.allclose(total, values, atol=1e-6)


def test_both_ways_of_smoothing_agree(rng):
    """OpenCV's on the CPU, and torch's elsewhere."""
    values = torch.from_numpy(rng.random((1, 2, 40, 56), np.float32))
    taps = torch.tensor([1, 4, 6, 4, 1], dtype=torch.float32) / 16
    padded = torch.nn.functional.pad(values, (4, 4, 4, 4), mode="reflect").reshape(2, 1, 48, 64)
    kernel = torch.outer(taps, taps)[None, None]
    expected = torch.nn.functional.conv2d(padded, kernel, dilation=2).reshape(1, 2, 40, 56)
    assert torch.allclose(_smoothed(values, 2), expected, atol=1e-6)


def test_octaves_of_channels_last(rng):
    """As a host's frames are."""
    values = torch.from_numpy(rng.random((1, 40, 56, 3), np.float32)).permute(0, 3, 1, 2)
    expected = octaves(values.contiguous(), 2)
    assert all(torch.equal(a, b) for a, b in zip(octaves(values, 2), expected, strict=True))
