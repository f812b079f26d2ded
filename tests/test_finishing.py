"""Through `GFPGANEnhancer`: what may not change does not, in any form of frames, and every option
does something."""

from __future__ import annotations

import argparse
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d, interpolate

from musetalk_enhance.config.flags import add_gfpgan_arguments, given_flags
from musetalk_enhance.config.loader import merge, section_of
from musetalk_enhance.config.settings import EnhancerSettings
from musetalk_enhance.enhancer import GFPGANEnhancer
from musetalk_enhance.errors import (
    CorruptWeightError,
    FrameError,
    MissingWeightError,
    RestorerError,
)
from musetalk_enhance.faces import regions
from musetalk_enhance.faces.detect import Face
from musetalk_enhance.faces.meter import FaceMeter
from musetalk_enhance.faces.regions import TYPICAL
from musetalk_enhance.pipeline import engine
from musetalk_enhance.pipeline.compose import Compositor
from musetalk_enhance.pipeline.outcome import Cause, Outcome, Status, passed_through
from musetalk_enhance.pipeline.stability import color, sharpness
from musetalk_enhance.restorers.base import LoadRequest
from tests.conftest import PLAIN, RECORD, FakeRestorer
from tests.pictures import to_faces, to_frames

SMALL = replace(RECORD, output_size=256)
ALL = {
    "region": "mouth",
    "align": "ffhq",
    "stability": 1,
    "color_match": True,
    "guard": True,
    "sharpness_gate": True,
}
FORMS = ["uint8", "float32", "signed", "half", "list", "view", "chw"]


def invert(batch: torch.Tensor) -> torch.Tensor:
    return 1 - batch


def sharpen(batch: torch.Tensor) -> torch.Tensor:
    return batch + 0.4 * (batch - avg_pool2d(batch, 9, 1, 4, count_include_pad=False))


@pytest.fixture(scope="module")
def given(soft) -> np.ndarray:
    """40 frames of the talking head, uint8 (40, 256, 256, 3), BGR."""
    return to_frames(soft)


def in_form(form: str, frames: np.ndarray):
    """Frames as a host may hold them; the floats overshoot their range a little."""
    floats = frames.astype(np.float32) / 255 * 1.02 - 0.01
    return {
        "uint8": lambda: frames,
        "float32": lambda: floats,
        "signed": lambda: torch.from_numpy(floats * 2 - 1).permute(0, 3, 1, 2),
        "half": lambda: floats.astype(np.float16),
        "list": lambda: [
            torch.from_numpy(each).half() if i % 2 else frames[i] for i, each in enumerate(floats)
        ],
        "view": lambda: frames[:, ::-1, :, ::-1],
        "chw": lambda: torch.from_numpy(frames).permute(0, 3, 1, 2),
    }[form]()


def hwc(frames) -> list[np.ndarray]:
    """Single frames as (H, W, 3) arrays, their values as they are."""
    arrays = [each.numpy() if isinstance(each, torch.Tensor) else each for each in frames]
    return [each.transpose(1, 2, 0) if each.shape[0] == 3 else each for each in arrays]


def resized(frames: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    return np.stack(
        [cv2.resize(each, size_hw[::-1], interpolation=cv2.INTER_AREA) for each in frames]
    )


def outside(region: str, size_hw: tuple[int, int]) -> np.ndarray:
    """Where surely nothing may change."""
    y, x = np.mgrid[: size_hw[0], : size_hw[1]]
    above = y < size_hw[0] * 7 // 16
    return (
        above
        if region == "lower"
        else above | (x < size_hw[1] // 16) | (x >= size_hw[1] - size_hw[1] // 16)
    )


def check_bits(out, frames, where, form="") -> None:
    """Bit for bit the host's where `where` is true, and something changed elsewhere; same kind and
    type."""
    assert type(out) is type(frames) and len(out) == len(frames)
    for after, before in zip(hwc(out), hwc(frames), strict=True):
        assert after.dtype == before.dtype and after.shape == before.shape
        assert after[where].tobytes() == np.ascontiguousarray(before)[where].tobytes(), form
        assert (after[~where] != before[~where]).mean() > 0.1


@pytest.mark.parametrize("color", ["bgr", "rgb"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("region", ["mouth", "lower"])
def test_outside_the_region_every_bit_is_the_hosts(make_enhancer, given, region, form, color):
    frames = in_form(form, given[:3])
    out = make_enhancer(invert, SMALL, region=region, color=color)(frames)
    if form == "view":  # upside down: no usual face, but the same promise
        check_bits(out, frames, outside("lower", (256, 256)))
    else:
        check_bits(out, frames, outside(region, (256, 256)))


@pytest.mark.parametrize("size_hw", [(97, 131), (200, 300), (512, 512), (33, 31)])
@pytest.mark.parametrize("region", ["mouth", "lower"])
def test_of_frames_of_any_size(make_enhancer, given, region, size_hw):
    frames = resized(given[:2], size_hw)
    check_bits(make_enhancer(invert, region=region)(frames), frames, outside(region, size_hw))


@pytest.mark.parametrize(
    ("output_size", "size_hw"),
    [("same", (200, 300)), ("native", (512, 512)), ("upscale", (96, 80)), (256, (256, 256))],
)
def test_of_every_output_size_that_keeps_the_frame(make_enhancer, given, output_size, size_hw):
    frames = resized(given[:2], size_hw)
    out = make_enhancer(invert, region="mouth", output_size=output_size, upscale=1)(frames)
    check_bits(out, frames, outside("mouth", size_hw))


@pytest.mark.parametrize(
    ("output_size", "side"),
    [("native", 512), ("upscale", 384), (100, 100), (300, 300), ("same", 256)],
)
def test_in_another_size_the_outside_is_the_enlarged_frame(make_enhancer, given, output_size, side):
    options = {"output_size": output_size, "upscale": 1.5}
    out = make_enhancer(invert, region="lower", **options)(given[:2])
    plain = make_enhancer(invert, strength=0, **options)(given[:2])
    assert out.shape == (2, side, side, 3)
    assert np.array_equal(out[:, : side * 7 // 16], plain[:, : side * 7 // 16])
    assert (out[:, side // 2 :] != plain[:, side // 2 :]).mean() > 0.9


@pytest.mark.parametrize("form", FORMS)
def test_strength_0_changes_no_bit(make_enhancer, given, form):
    frames = in_form(form, given[:2])
    enhancer = make_enhancer(invert, SMALL, strength=0)
    out = enhancer(frames)
    assert enhancer.stats.restored == 0 and enhancer.stats.left_alone == {"strength 0": 2}
    assert all(
        a.tobytes() == np.ascontiguousarray(b).tobytes()
        for a, b in zip(hwc(out), hwc(frames), strict=True)
    )


@pytest.mark.parametrize("form", [form for form in FORMS if form != "view"])
def test_where_the_guard_leaves_nothing_no_bit_changes(make_enhancer, given, form):
    frames = in_form(form, given[:2])
    notes = []
    enhancer = make_enhancer(lambda batch: batch.flip(3), SMALL, guard=True)
    enhancer.observe(lambda before, after, note: notes.append(note))
    out = enhancer(frames)
    assert [note.strength for note in notes] == [0, 0] and enhancer.stats.guarded.total() == 2
    assert all(
        a.tobytes() == np.ascontiguousarray(b).tobytes()
        for a, b in zip(hwc(out), hwc(frames), strict=True)
    )


def test_a_frame_that_is_kept_beside_one_that_is_not(make_enhancer, given, monkeypatch):
    """One frame of a batch is sharp already; the bits of that one alone are the host's."""
    monkeypatch.setattr(sharpness, "needed", lambda values: (values < 0.5).float())
    monkeypatch.setattr(
        sharpness.SharpnessMeter,
        "measure",
        lambda meter, faces: (faces.mean((1, 2, 3)) > 0.9).float(),
    )
    frames = [given[0], np.full_like(given[0], 250)]
    for order in (frames, frames[::-1]):
        for each in order:
            enhancer = make_enhancer(invert, sharpness_gate=True)
            (out,) = enhancer([each])
            assert np.array_equal(out, each) is (each is frames[1]) and enhancer.stats.sharp == (
                each is frames[1]
            )


MASK = np.zeros((256, 256), bool)
MASK[150:230, 60:110] = True


@pytest.mark.parametrize("options", [{}, {"align": "ffhq"}, {"region": "mouth"}, ALL], ids=str)
@pytest.mark.parametrize("kind", [bool, np.uint8, np.float32, "tensor", "view"])
def test_what_is_covered_is_never_painted_over(make_enhancer, given, kind, options):
    masks = {"tensor": torch.from_numpy(MASK), "view": MASK[::-1].copy()[::-1]}
    mask = masks[kind] if isinstance(kind, str) else MASK.astype(kind)
    enhancer = make_enhancer(sharpen if options is ALL else invert, SMALL, **options)
    out = enhancer(given[:4], occlusion=[None, mask, None, mask])
    assert enhancer.stats.restored == 4
    for index in (1, 3):
        assert np.array_equal(out[index][MASK], given[index][MASK])
        assert (out[index] != given[index]).mean() > 0.02, "the rest is restored"
    assert (out[0][MASK] != given[0][MASK]).mean() > 0.05


@pytest.mark.parametrize("form", FORMS)
def test_covered_bits_in_every_form(make_enhancer, given, form):
    frames = in_form(form, given[:2])
    out = make_enhancer(invert, SMALL)(frames, occlusion=np.stack([MASK, MASK]))
    check_bits(out, frames, MASK)


@pytest.mark.parametrize("side", [100, 128, 300, 512])
def test_what_is_covered_in_part_in_another_size_is_kept(make_enhancer, given, side):
    out = make_enhancer(invert, output_size=side)(given[:1], occlusion=[MASK])[0]
    plain = make_enhancer(strength=0, output_size=side)(given[:1])[0]
    share = interpolate(
        torch.from_numpy(MASK).float()[None, None], size=(4 * side, 4 * side), mode="nearest-exact"
    )
    part = torch.nn.functional.max_pool2d(share, 4)[0, 0].numpy() > 0
    assert np.array_equal(out[part], plain[part]) and (out != plain).mean() > 0.5


def test_a_frame_that_repeats_under_another_cover_is_no_repetition(make_enhancer, given):
    still = np.repeat(given[:1], 4, 0)
    enhancer = make_enhancer(invert, batch_size=2)
    out = enhancer(still, occlusion=[None, MASK, MASK.copy(), None])
    assert np.array_equal(out[1][MASK], still[1][MASK]) and np.array_equal(out[2], out[1])
    assert np.array_equal(out[3], out[0]) and enhancer.stats.repeated == 1
    changing = MASK.copy()
    first = enhancer(still[:1], occlusion=[changing])
    changing[:] = True
    assert not np.array_equal(enhancer(still[:1], occlusion=[changing]), first), (
        "the host may change its own mask"
    )


@pytest.mark.parametrize(
    "bad", [np.zeros((5, 5), bool), np.zeros((256, 256), int), np.full((256, 256), 7.0), "x"]
)
def test_a_bad_mask_costs_its_own_frame_alone(make_enhancer, given, bad):
    enhancer = make_enhancer(invert)
    out = enhancer(given[:3], occlusion=[None, bad, None])
    assert np.array_equal(out[1], given[1]) and np.array_equal(out[[0, 2]], 255 - given[[0, 2]])
    assert enhancer.stats.passed_through == {"occlusion": 1} and enhancer.stats.failed == 0
    with pytest.raises(FrameError, match="mask"):
        make_enhancer(invert, on_error="raise")(given[:3], occlusion=[None, bad, None])


@pytest.fixture
def dark_is_covered(tmp_path):
    """An occluder's graph that takes what is dark for something before the face."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    make, info, float_ = (
        onnx.helper.make_node,
        onnx.helper.make_tensor_value_info,
        onnx.TensorProto.FLOAT,
    )
    nodes = [
        make("ReduceMean", ["in"], ["grey"], axes=[3], keepdims=1),
        make("Greater", ["grey", "limit"], ["seen"]),
        make("Cast", ["seen"], ["out"], to=float_),
    ]
    constants = [onnx.numpy_helper.from_array(np.float32(0.1), "limit")]
    shapes = [info("in", float_, ["n", 256, 256, 3])], [info("out", float_, ["n", 256, 256, 1])]
    graph = onnx.helper.make_graph(nodes, "occluder", *shapes, constants)
    path = tmp_path / "occluder.onnx"
    onnx.save(
        onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
        ),
        path,
    )
    return path


def test_an_occluder_finds_what_is_not_painted_over(make_enhancer, given, dark_is_covered):
    frames = np.maximum(given[:3], 60)
    frames[1:, 100:200, 80:120] = 0  # a microphone
    for options, top in (({}, 100), ({"region": "lower"}, 120)):
        out = make_enhancer(invert, occluder=str(dark_is_covered), **options)(frames)
        assert (out[1:, top:200, 80:120] == 0).all()
        assert np.array_equal(out[:, 210:], make_enhancer(invert, **options)(frames)[:, 210:])
    both = make_enhancer(invert, occluder=str(dark_is_covered))(frames, occlusion=[MASK] * 3)
    assert np.array_equal(both[:, MASK], frames[:, MASK]) and (both[1:, 100:200, 80:120] == 0).all()


def test_a_wrong_occluder_is_known_when_the_enhancer_is_made(make_enhancer, tmp_path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(MissingWeightError, match=r"none\.onnx"):
        make_enhancer(occluder=str(tmp_path / "none.onnx"))
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(CorruptWeightError, match=r"bad\.onnx"):
        make_enhancer(occluder=str(tmp_path / "bad.onnx"))


def test_a_missing_detector_is_known_when_the_enhancer_is_made(make_enhancer):
    with pytest.raises(MissingWeightError, match="YuNet"):
        make_enhancer(align="ffhq", landmarks="yunet")


SAME = replace(RECORD, input_size=512, output_size=512)


@pytest.mark.parametrize("record", [SAME, SMALL], ids=["512", "256"])
@pytest.mark.parametrize("output_size", ["same", 384])
def test_aligned_a_network_that_changes_nothing_changes_nothing(
    make_enhancer, given, record, output_size
):
    enhancer = make_enhancer(record=record, align="ffhq", output_size=output_size)
    out = enhancer(given[:4]).astype(int)
    plain = make_enhancer(strength=0, output_size=output_size)(given[:4])
    assert enhancer.stats.unaligned == 0 and np.abs(out - plain).max() <= 1


def test_the_network_sees_the_template(make_enhancer, given, soft):
    """Eyes and mouth of what the network is given lie where FFHQ has them."""
    from musetalk_enhance.faces.detect import FFHQ_512

    seen = []
    make_enhancer(lambda batch: seen.append(batch) or batch, record=SAME, align="ffhq")(given[:2])
    found, crop = (FaceMeter().measure(each).landmarks.numpy() for each in (seen[0], soft[:2]))
    assert np.abs(found - FFHQ_512).max() < 40 < np.abs(2 * crop - FFHQ_512).max()


def test_aligned_what_the_network_adds_lands_where_it_saw_it(make_enhancer, given):
    """A pixel-by-pixel change is the same one on the template as on the crop, but for the
    resampling."""
    inner = np.s_[:, 80:200, 60:190]
    found = make_enhancer(invert, record=SAME, align="ffhq")(given[:2])[inner].astype(int)
    wanted = 255 - given[:2][inner].astype(int)
    shifted = [
        np.abs(np.roll(found, step, axis) - wanted).mean() for step in (-2, 2) for axis in (1, 2)
    ]
    assert np.abs(found - wanted).mean() < 1 and min(shifted) > 2


@pytest.mark.parametrize(
    "points", [np.zeros((5, 2)), np.full((5, 2), 900.0), np.random.default_rng(0).random((5, 2))]
)
def test_bad_landmarks_are_restored_unaligned_and_counted(make_enhancer, given, points):
    notes = []
    enhancer = make_enhancer(sharpen, align="ffhq")
    enhancer.observe(lambda before, after, note: notes.append(note.aligned))
    out = enhancer(given[:3], landmarks=[None, points, None])
    assert enhancer.stats.unaligned == 1 and notes == [True, False, True]
    assert np.array_equal(out[1], make_enhancer(sharpen)(given[1:2])[0])
    assert not np.array_equal(out[0], make_enhancer(sharpen)(given[:1])[0])


def test_no_face_is_restored_unaligned(make_enhancer, faces):
    enhancer = make_enhancer(invert, align="ffhq")
    assert np.array_equal(enhancer(faces), 255 - faces)
    assert enhancer.stats.unaligned == 5 and enhancer.stats.as_dict()["unaligned"] == 5


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("x")])
def test_a_finder_of_landmarks_that_fails_stops_nothing(make_enhancer, given, monkeypatch, error):
    def fail(self, faces):
        raise error

    monkeypatch.setattr(FaceMeter, "measure", fail)
    enhancer = make_enhancer(sharpen, align="ffhq")
    assert (
        np.array_equal(enhancer(given[:2]), make_enhancer(sharpen)(given[:2]))
        and enhancer.stats.unaligned == 2
    )
    with pytest.raises(RestorerError, match="landmark detection failed"):
        make_enhancer(sharpen, align="ffhq", on_error="raise")(given[:2])


def test_the_observer_sees_every_frame_in_order(make_enhancer, given):
    def fussy(batch):
        if (batch.flatten(1).mean(1) > 0.95).any():
            raise RuntimeError
        return invert(batch)

    frames = [
        given[0],
        given[1][..., :1],
        given[2],
        np.full_like(given[0], 255),
        given[4][:128],
        None,
        given[5],
    ]
    seen = []
    enhancer = make_enhancer(fussy, batch_size=4)
    enhancer.observe(lambda *each: seen.append(each))
    out = enhancer(frames)
    assert [each[0] is frame for each, frame in zip(seen, frames, strict=True)] == [True] * 7
    assert [each[1] is frame for each, frame in zip(seen, out, strict=True)] == [True] * 7
    reasons = [outcome.reason for _, _, outcome in seen]
    assert reasons == [None, "channels", None, "restorer: RuntimeError", None, "type", None]
    enhancer(given[:3])
    assert len(seen) == 10 and all(outcome == Outcome() for _, _, outcome in seen[7:])


def test_sizes_that_take_turns_keep_order_and_time(make_enhancer, given):
    """Each run of one size is restored as one that begins anew; nothing of another size is held on
    to."""
    small = resized(given, (192, 200))
    frames = [*given[:3], *small[3:6], *given[6:8], small[8]]
    seen = []
    enhancer = make_enhancer(sharpen, stability=1, batch_size=8)
    enhancer.observe(lambda before, after, note: seen.append(before))
    out = enhancer(frames)
    assert [each.shape for each in out] == [each.shape for each in frames]
    assert all(one is other for one, other in zip(seen, frames, strict=True))
    for part in (slice(0, 3), slice(3, 6), slice(6, 8), slice(8, 9)):
        fresh = make_enhancer(sharpen, stability=1)(frames[part])
        near = [np.abs(a.astype(int) - b).max() for a, b in zip(out[part], fresh, strict=True)]
        assert max(near) <= 1, part


@pytest.mark.parametrize("mode", ["batch", "memory"])
@pytest.mark.parametrize("fails", ["network", "finish"])
def test_memory_that_runs_out_once_leaves_the_stream_as_it_was(
    make_enhancer, given, monkeypatch, mode, fails
):
    expected = make_enhancer(sharpen, SMALL, batch_size=4, **ALL)(given[:12])
    calls, real = [], Compositor.compose

    def out_of_memory(at: int) -> None:
        calls.append(1)
        if len(calls) == at:
            raise MemoryError

    def finish(self, work, stream):
        done = real(self, work, stream)
        if fails == "finish":
            out_of_memory(2)
        return done

    def network(batch):
        if fails == "network":
            out_of_memory(2)
        return sharpen(batch)

    monkeypatch.setattr(Compositor, "compose", finish)
    enhancer = make_enhancer(network, SMALL, batch_size=4, mode=mode, **ALL)
    out = enhancer(given[:12])
    assert (
        enhancer.stats.backoffs == 1
        and enhancer.stats.restored == 12
        and enhancer.stats.failed == 0
    )
    assert np.abs(out.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("fails_at", range(1, 5))
def test_memory_that_runs_out_as_results_are_stored_counts_no_frame_twice(
    make_enhancer, given, monkeypatch, fails_at
):
    frames = given[[0, 0, 0, 1, 1]]
    expected, calls, copy = make_enhancer(sharpen, batch_size=8)(frames), [], engine._copy

    def out_of_memory(frame):
        calls.append(1)
        if len(calls) == fails_at:
            raise MemoryError
        return copy(frame)

    monkeypatch.setattr(engine, "_copy", out_of_memory)
    enhancer = make_enhancer(sharpen, batch_size=8)
    assert np.array_equal(enhancer(frames), expected)
    stats = enhancer.stats
    assert len(calls) > fails_at and stats.backoffs == 1
    assert (stats.frames, stats.restored, stats.repeated, stats.failed) == (5, 5, 3, 0)


def test_a_frame_whose_result_cannot_be_stored_is_passed_through(make_enhancer, given, monkeypatch):
    def out_of_memory(frame):
        raise MemoryError

    monkeypatch.setattr(engine, "_copy", out_of_memory)
    enhancer = make_enhancer(sharpen, batch_size=1)
    assert np.array_equal(enhancer(given[:2]), given[:2])
    assert enhancer.stats.passed_through == {"out of memory": 2} and not enhancer.stats.restored


@pytest.fixture(scope="module")
def hand() -> np.ndarray:
    """A cover that passes over the face, (40, 256, 256)."""
    masks = np.zeros((40, 256, 256), np.uint8)
    for index in range(10, 30):
        masks[index, 180:, 8 * (index - 10) : 8 * (index - 10) + 50] = 1
    return masks


def test_everything_at_once_in_batches_of_any_size(make_enhancer, given, hand):
    outs = []
    for size in (1, 3, 8):
        enhancer = make_enhancer(sharpen, SMALL, batch_size=size, **ALL)
        parts = [
            enhancer(
                given[at : at + size],
                occlusion=hand[at : at + size],
                keys=range(at, min(at + size, 40)),
            )
            for at in range(0, 40, size)
        ]
        outs.append(np.concatenate(parts))
        assert enhancer.stats.restored == 40 and not enhancer.stats.passed_through
        covered = hand.astype(bool)
        assert np.array_equal(outs[-1][covered], given[covered])
    assert all(np.abs(out.astype(int) - outs[0]).max() <= 1 for out in outs[1:])
    assert (outs[0] != given).any(axis=(1, 2, 3)).all()


def test_memory_mode_unload_and_on_again(make_enhancer, given):
    expected = make_enhancer(sharpen, SMALL, batch_size=4, **ALL)(given[:16])
    enhancer = make_enhancer(sharpen, SMALL, batch_size=4, mode="memory", **ALL)
    first = enhancer(given[:8])
    enhancer.unload()
    out = np.concatenate([first, enhancer(given[8:16])])
    assert np.abs(out.astype(int) - expected).max() <= 1 and enhancer.stats.restored == 16


def test_the_methods_of_the_usual_integration(make_enhancer, given):
    """They go through the same finishing, at `upscale` times the size."""
    options = {"region": "lower", "color_match": True, "upscale": 1}
    stream = make_enhancer(sharpen, **options)(given[:3])
    check_bits(stream, given[:3], outside("lower", (256, 256)))
    assert np.array_equal(make_enhancer(sharpen, **options).enhance_face(given[0]), stream[0])
    assert np.array_equal(make_enhancer(sharpen, **options).enhance_batch(given[:3]), stream)
    assert np.array_equal(
        make_enhancer(sharpen, **options).enhance_batch_optimized(given[:3], 2), stream
    )


def test_the_official_engine_is_left_as_it_comes():
    official, native = EnhancerSettings(engine="official"), EnhancerSettings()
    assert (official.stability_amount, native.stability_amount) == (0, 1)
    for name in ("color_match_on", "guard_on"):
        assert getattr(official, name) is False and getattr(native, name) is True, name
    assert not native.sharpness_gate_on and not official.sharpness_gate_on, (
        "a host's decoder has made the face"
    )
    asked = official.replace(stability=0.5, color_match=True, guard=True, sharpness_gate=True)
    assert (
        asked.stability_amount == 0.5
        and asked.color_match_on
        and asked.guard_on
        and asked.sharpness_gate_on
    )
    denied = native.replace(stability=0, color_match=False, guard=False, sharpness_gate=False)
    assert not (
        denied.stability_amount
        or denied.color_match_on
        or denied.guard_on
        or denied.sharpness_gate_on
    )


@pytest.mark.parametrize(
    ("name", "word", "value"),
    [
        ("region", "mouth", "mouth"),
        ("region", "LOWER", "lower"),
        ("align", "ffhq", "ffhq"),
        ("stability", "0.5", 0.5),
        ("stability", "auto", "auto"),
        ("color_match", "false", False),
        ("guard", "false", False),
        ("guard", "on", True),
        ("sharpness_gate", "no", False),
        ("sharpness_gate", "auto", "auto"),
        ("occluder", "models/dfl_xseg.onnx", "models/dfl_xseg.onnx"),
        ("strength", "0.25", 0.25),
    ],
)
def test_options_come_from_flags_and_from_yaml(tmp_path, name, word, value):
    flags = given_flags(
        add_gfpgan_arguments(argparse.ArgumentParser()).parse_args([f"--gfpgan_{name}", word])
    )
    assert getattr(merge(None, flags), name) == value
    path = tmp_path / "task.yaml"
    path.write_text(f"gfpgan:\n  {name}: {word}\n")
    assert getattr(merge(section_of(path)), name) == value
    others = ("full", "none", "embedded", 0.75, True, False, "x")
    other = next(each for each in others if each != value and _fits(name, each))
    assert getattr(merge({name: other}, flags), name) == value, "flags win"


def test_a_finder_of_landmarks_comes_with_what_needs_them():
    words = ["--gfpgan_landmarks", "yunet", "--gfpgan_align", "ffhq"]
    flags = given_flags(add_gfpgan_arguments(argparse.ArgumentParser()).parse_args(words))
    assert (
        merge(None, flags).landmarks
        == merge({"landmarks": "yunet", "region": "mouth"}).landmarks
        == "yunet"
    )


def _fits(name: str, value: object) -> bool:
    try:
        merge({name: value})
    except ValueError:
        return False
    return True


class Told:
    """A detector that sees the face a little to the side of where it is."""

    def detect(self, picture_bgr):
        points = FaceMeter().measure(to_faces(picture_bgr[None])).landmarks[0].numpy() + (12, 0)
        return [Face(np.array((0, 0, 256, 256.0)), points.astype(np.float32), 0.9)]


@pytest.mark.parametrize(
    ("option", "function", "rest"),
    [
        ({"region": "mouth"}, sharpen, {}),
        ({"region": "lower"}, sharpen, {}),
        ({"align": "ffhq"}, sharpen, {}),
        ({"landmarks": "yunet"}, sharpen, {"align": "ffhq"}),
        ({"landmarks": "yunet"}, invert, {"region": "mouth"}),
        ({"stability": 0.5}, "grain", {}),
        ({"color_match": True}, lambda batch: batch + 0.1, {}),
        ({"guard": True}, lambda batch: batch.flip(3), {}),
        ({"sharpness_gate": True}, sharpen, {"sharp": True}),
        ({"strength": 0.5}, sharpen, {}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_every_option_changes_something(
    make_enhancer, given, take, monkeypatch, option, function, rest
):
    monkeypatch.setattr("musetalk_enhance.faces.detect.make_detector", lambda name: Told())
    rest = dict(rest)
    frames = given[:6]
    if rest.pop("sharp", False):
        monkeypatch.setattr(sharpness, "needed", torch.zeros_like)

    def run(**options):
        grain = torch.Generator().manual_seed(1)
        noisy = lambda batch: sharpen(batch) + 0.03 * torch.randn(batch.shape, generator=grain)  # noqa: E731
        return make_enhancer(noisy if function == "grain" else function, **rest, **options)(frames)

    off, again, on = run(), run(), run(**option)
    assert np.array_equal(off, again)
    assert np.abs(on.astype(int) - off).max() > 3 and (on != off).mean() > 0.005


def test_the_host_s_autocast_and_default_dtype_mean_nothing(make_enhancer, given):
    expected = make_enhancer(sharpen, **ALL)(given[:4])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert np.array_equal(make_enhancer(sharpen, **ALL)(given[:4]), expected)
    torch.set_default_dtype(torch.float64)
    try:
        enhancer = make_enhancer(sharpen, **ALL)
        assert np.array_equal(enhancer(given[:4]), expected) and not enhancer.stats.passed_through
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_batch_of_the_wrong_form_is_an_error_whatever_is_said_of_it(make_enhancer, given):
    enhancer = make_enhancer(invert, region="mouth")
    with pytest.raises(FrameError, match="3 axes, shape"):
        enhancer(given[:3, ..., 0], landmarks=np.zeros((3, 5, 2)), keys=[1, 2, 3])
    assert enhancer.stats.frames == 0


def test_hints_are_checked_before_anything_is_done(make_enhancer, given):
    enhancer = make_enhancer(invert)
    with pytest.raises(FrameError, match="2 entries"):
        enhancer(given[:3], landmarks=np.zeros((2, 5, 2)))
    with pytest.raises(FrameError, match="hashable"):
        enhancer(given[:3], keys=[[], [], []])
    assert enhancer.stats.frames == 0 and enhancer.engine.model.restorer.backend.shapes == []


@pytest.mark.parametrize(("align", "least"), [("none", 0), ("ffhq", 1)])
def test_a_told_cut_makes_a_frame_independent_of_those_before(make_enhancer, soft, align, least):
    """Everything on: alone, in any order and in any batch, the same bits; with landmarks looked for
    in another batch, which come out a rounding apart, within 1/255."""
    frames = to_frames(soft[[0, 7, 7, 14, 21]])
    options = {
        "stability": 1,
        "guard": True,
        "sharpness_gate": True,
        "color_match": True,
        "align": align,
    }
    enhancer = make_enhancer(sharpen, SMALL, batch_size=2, **options)
    alone = []
    for frame in frames:
        enhancer.reset()
        alone.append(enhancer(frame[None])[0])
    enhancer.reset()
    assert np.abs(enhancer(frames, cuts=[True] * 5) - np.array(alone, int)).max() <= least
    assert (
        np.abs(enhancer(frames[::-1], cuts=[True] * 5)[::-1] - np.array(alone, int)).max() <= least
    )
    enhancer.reset()
    assert np.abs(enhancer(frames) - np.array(alone, int)).max() > 2


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (
            Outcome(strength=0.1, cause=Cause.MOUTH, guard=Cause.MOUTH, sharp=True),
            "held back: mouth",
        ),
        (Outcome(Status.LEFT_ALONE, 0.0, Cause.SHARP, sharp=True), "sharp already"),
        (Outcome(Status.LEFT_ALONE, 0.0, Cause.EYES, guard=Cause.EYES), "held back: eyes"),
        (Outcome(Status.LEFT_ALONE, 0.0, Cause.STRENGTH), "strength 0"),
        (Outcome(Status.LEFT_ALONE, 1.0, Cause.UNCHANGED), "unchanged"),
        (Outcome(), None),
        (passed_through(Cause.INPUT, "channels"), "channels"),
        (passed_through(Cause.RESTORER, "ValueError"), "restorer: ValueError"),
        (passed_through(Cause.OUT_OF_MEMORY), "out of memory"),
    ],
)
def test_outcomes_in_words(outcome, reason):
    assert outcome.reason == reason
    words = outcome.as_dict()
    if outcome.status is Status.PASSED_THROUGH:
        assert words == {"passthrough": reason}
    else:
        assert words["left alone"] == (None if outcome.restored else reason)


@pytest.mark.parametrize(
    "options", [{"region": "lower"}, {"region": "mouth"}, {"region": "full", "align": "ffhq"}]
)
def test_a_host_s_default_device_changes_nothing(make_enhancer, faces, options):
    options |= {"stability": 1.0, "color_match": True, "guard": True}
    landmarks = np.array([TYPICAL] * len(faces), np.float32) * 256
    expected = make_enhancer(lambda batch: batch * 0.9, **options)(faces, landmarks=landmarks)
    clear_caches()
    torch.set_default_device("meta")
    try:
        enhancer = make_enhancer(lambda batch: batch * 0.9, **options)
        restored = enhancer(faces, landmarks=landmarks)
    finally:
        torch.set_default_device(None)
        clear_caches()
    assert enhancer.stats.restored == len(faces) and np.array_equal(restored, expected)


def clear_caches() -> None:
    """Of tensors that live as long as the process, and may have been created by another test."""
    for cached in (regions._lower, color._taps):
        cached.cache_clear()
    regions._mouths = regions.MouthMasks(regions.CACHE_BYTES)


class SameSize(FakeRestorer):
    """Returns what a function of the faces returns, which may be the faces, changed."""

    def restore(self, faces_rgb: torch.Tensor) -> torch.Tensor:
        return self.backend.run(faces_rgb)


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("size", [(256, 256), (97, 131)])
def test_a_restorer_may_change_its_input_in_place(faces, strength, size):
    frames = np.ascontiguousarray(faces[:, : size[0], : size[1]])
    settings = EnhancerSettings(enabled=True, **PLAIN, strength=strength, region="full")
    request = LoadRequest(SMALL, settings, torch.device("cpu"))
    plain, in_place = (
        GFPGANEnhancer.from_settings(settings, SameSize(request, function))(frames)
        for function in (lambda batch: batch * 0.5, lambda batch: batch.mul_(0.5))
    )
    assert np.array_equal(plain, in_place) and (plain != frames).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_restorer_may_return_another_precision(make_enhancer, faces, dtype):
    """A sum over a face is beyond the range of float16."""
    expected = make_enhancer(lambda batch: batch * 0.5)(faces)
    enhancer = make_enhancer(lambda batch: (batch * 0.5).to(dtype))
    difference = np.abs(enhancer(faces).astype(int) - expected)
    assert enhancer.stats.restored == len(faces) and difference.max() <= 1
