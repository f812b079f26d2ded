"""GFPGANEnhancer's contract, around a restorer without weights."""

from __future__ import annotations

import inspect
import logging
import re
import threading
import time

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from musetalk_enhance import FaceEnhancer, GFPGANEnhancer, monitor_gpu_memory
from musetalk_enhance.config.settings import EnhancerSettings, options
from musetalk_enhance.enhancer import _warn_that_the_budget_is_unused
from musetalk_enhance.errors import (
    ConfigError,
    EnhanceError,
    FrameError,
    MissingWeightError,
    NoFaceError,
    OutOfMemoryError,
    RestorerError,
    WeightError,
)
from tests.conftest import PLAIN, RECORD


def test_plan_names_are_there():
    parameters = list(inspect.signature(GFPGANEnhancer).parameters.values())
    plan = ["model_path", "upscale", "arch", "channel_multiplier", "bg_upsampler", "device"]
    assert [p.name for p in parameters[:6]] == plan
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters[6:])
    assert [p.default for p in parameters[1:6]] == [2, "clean", 2, None, None]
    for name in (
        "enhance_face",
        "enhance_batch",
        "enhance_batch_optimized",
        "resize_to_original",
        "reset",
    ):
        assert callable(getattr(GFPGANEnhancer, name))


def test_the_constructor_takes_every_option_with_its_default():
    parameters = dict(inspect.signature(GFPGANEnhancer).parameters)
    defaults = {option.name: option.default for option in options() if option.name != "enabled"}
    assert parameters.pop("device").default is None and defaults.pop("device") == "auto"
    assert {name: parameter.default for name, parameter in parameters.items()} == defaults
    assert EnhancerSettings(device=None) == EnhancerSettings(), "None is auto, as in GFPGANer"
    arguments = GFPGANEnhancer.__doc__.split("Args:")[1].split("Raises:")[0]
    described = re.findall(r"^ {8}(\w+):", arguments, flags=re.M)
    assert set(described) == {*defaults, "device"} and len(described) == len(defaults) + 1


def test_the_constructor_takes_the_types_of_the_schema():
    types = {name: kind for name, kind in GFPGANEnhancer.__init__.__annotations__.items()}
    for option in options():
        if option.name not in ("enabled", "device"):
            assert types[option.name] == option.type, option.name


def test_same_frames_back(make_enhancer, faces):
    enhancer = make_enhancer()
    view = faces[..., ::-1]
    kept = view.copy()
    out = enhancer(view)
    assert out.shape == view.shape and out.dtype == np.uint8 and out.flags.c_contiguous
    assert np.array_equal(out, kept), "pixel repetition and area average cancel out"
    assert np.array_equal(view, kept) and not np.shares_memory(out, view)
    counts = enhancer.stats.as_dict()
    assert (
        counts["restored"] == 0
        and counts["left_alone"] == {"unchanged": 5}
        and counts["frames"] == 5
    )


@pytest.mark.parametrize(("color", "channel"), [("bgr", 2), ("rgb", 0)])
def test_the_network_sees_rgb(make_enhancer, color, channel):
    def redden(batch):
        batch = batch.clone()
        batch[:, 0] = 1
        return batch

    out = make_enhancer(redden, color=color)(np.zeros((1, 256, 256, 3), np.uint8))
    assert out[0, 0, 0, channel] == 255 and out[0, 0, 0].sum() == 255


@pytest.mark.parametrize(
    ("output_size", "side"),
    [("same", 256), ("native", 512), ("upscale", 384), (300, 300), ("128", 128)],
)
def test_output_size(make_enhancer, faces, output_size, side):
    enhancer = make_enhancer(output_size=output_size, upscale=1.5)
    out = enhancer(faces[:2])
    assert out.shape == (2, side, side, 3)
    assert abs(out.mean() - faces[:2].mean()) < 0.5, "brightness stays"


def test_passthrough_frames_take_the_size_of_the_others(make_enhancer, faces):
    frames = faces.astype(np.float32)
    frames[1, 5, 5] = np.nan
    out = make_enhancer(output_size="native")(frames)
    assert out.shape == (5, 512, 512, 3)
    assert np.isnan(out[1]).any() and np.isfinite(out[[0, 2, 3, 4]]).all()


def test_larger_frames_keep_their_own_detail(make_enhancer, rng):
    frames = rng.integers(0, 256, (1, 512, 512, 3), np.uint8)
    smooth = lambda batch: interpolate(batch[..., ::2, ::2], scale_factor=2, mode="bicubic")  # noqa: E731
    out = make_enhancer(smooth)(frames)
    assert np.abs(out.astype(int) - frames).max() <= 1, (
        "an identity network loses nothing of a 512 px frame"
    )


def test_frames_that_are_not_square(make_enhancer, rng):
    ramp = np.linspace(0, 255, 96 * 120 * 3).reshape(1, 96, 120, 3).astype(np.uint8)
    assert make_enhancer()(ramp).shape == ramp.shape


@pytest.mark.parametrize("container", [list, tuple])
def test_containers(make_enhancer, faces, container):
    out = make_enhancer()(container(faces))
    assert type(out) is container and all(
        np.array_equal(a, b) for a, b in zip(out, faces, strict=True)
    )


def test_tensor_in_tensor_out(make_enhancer, rng):
    source = torch.from_numpy(rng.random((2, 3, 256, 256), np.float32) * 2 - 1)
    out = make_enhancer(color="rgb")(source)
    assert isinstance(out, torch.Tensor) and out.shape == source.shape
    assert torch.allclose(out, source, atol=1e-5)


def test_what_comes_back_may_be_changed_in_place(make_enhancer, rng):
    frames = [torch.from_numpy(rng.random((3, 256, 256), np.float32)) for _ in range(2)]
    for out in make_enhancer(color="rgb")(frames):
        out.add_(1)


def test_read_only_frames(make_enhancer, faces):
    faces.flags.writeable = False
    assert np.array_equal(make_enhancer()(faces), faces)
    grey = np.broadcast_to(np.uint8(7), (2, 256, 256, 3))
    assert np.array_equal(make_enhancer()(grey), grey)


def test_strength_blends(make_enhancer, faces):
    white = lambda batch: torch.ones_like(batch)  # noqa: E731
    assert np.array_equal(make_enhancer(white, strength=0)(faces), faces)
    half = make_enhancer(white, strength=0.5)(faces)
    assert np.abs(half.astype(float) - (faces.astype(float) + 255) / 2).max() <= 1
    assert (make_enhancer(white, strength=1)(faces) == 255).all()


def test_one_broken_frame_is_handed_back_and_counted(make_enhancer, faces, caplog):
    frames = list(faces)
    frames[2] = frames[2][..., :1]
    enhancer = make_enhancer(lambda batch: 1 - batch)
    with caplog.at_level(logging.WARNING):
        first, second = enhancer(frames), enhancer(frames)
    for out in (first, second):
        assert len(out) == 5 and np.array_equal(out[2], frames[2])
        assert all(np.array_equal(out[i], 255 - faces[i]) for i in (0, 1, 3, 4))
    assert enhancer.stats.passed_through == {"channels": 2} and enhancer.stats.restored == 8
    assert len(caplog.records) == 1, "said once, then only counted"


def test_raise_mode(make_enhancer, faces):
    enhancer = make_enhancer(on_error="raise")
    with pytest.raises(FrameError, match="frame 1: got an image with alpha"):
        enhancer([faces[0], np.zeros((64, 64, 4), np.uint8)])
    with pytest.raises(FrameError, match="empty batch"):
        enhancer([])
    with pytest.raises(FrameError, match="a batch of shape"):
        enhancer(faces[0, :, :, 0])


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((0, 256, 256, 3), np.uint8),
        np.zeros((2, 64, 64, 4), np.uint8),
        np.full((2, 64, 64, 3), np.nan, np.float32),
        np.full((2, 64, 64, 3), 999, np.float32),
        np.zeros((2, 64, 64, 3), np.int64),
        torch.zeros(2, 5, 64, 64),
        torch.zeros(0, 3, 64, 64),
    ],
)
def test_whole_batches_of_bad_input_come_back_unchanged(make_enhancer, frames):
    enhancer = make_enhancer()
    out = enhancer(frames)
    assert type(out) is type(frames) and out.shape == frames.shape and out.dtype == frames.dtype
    assert np.array_equal(
        np.asarray(out), np.asarray(frames), equal_nan=frames.dtype in (np.float32,)
    )
    assert enhancer.stats.restored == 0
    assert sum(enhancer.stats.passed_through.values()) == enhancer.stats.frames
    with pytest.raises(FrameError):
        make_enhancer(on_error="raise")(frames)


def test_none_is_never_a_batch(make_enhancer):
    with pytest.raises(FrameError, match="NoneType"):
        make_enhancer()(None)


def test_a_failing_frame_does_not_take_the_batch_with_it(make_enhancer, faces):
    def fussy(batch):
        if (batch.flatten(1).mean(1) > 0.9).any():
            raise RuntimeError("too bright")
        return 1 - batch

    faces[3] = 255
    enhancer = make_enhancer(fussy)
    out = enhancer(faces)
    assert (out[3] == 255).all() and np.array_equal(out[:3], 255 - faces[:3])
    assert enhancer.stats.failed == 1 and enhancer.stats.passed_through == {
        "restorer: RuntimeError": 1
    }
    with pytest.raises(RestorerError, match="frame 3.*too bright"):
        make_enhancer(fussy, on_error="raise")(faces)


def test_a_network_that_returns_nan(make_enhancer, faces):
    def broken(batch):
        batch = batch.clone()
        batch[batch.flatten(1).mean(1) > 0.9] = float("nan")
        return batch

    faces[0] = 255
    enhancer = make_enhancer(broken)
    assert np.array_equal(enhancer(faces), faces)
    assert enhancer.stats.passed_through == {"restorer: RestorerError": 1}


def test_no_face_is_no_failure(make_enhancer, faces):
    def blind(batch):
        raise NoFaceError("no face in the frame")

    enhancer = make_enhancer(blind)
    assert np.array_equal(enhancer(faces), faces)
    assert enhancer.stats.passed_through == {"no face": 5} and enhancer.stats.failed == 0


def test_batch_size_is_kept(make_enhancer, faces):
    enhancer = make_enhancer(batch_size=2)
    enhancer(faces)
    assert [shape[0] for shape in enhancer.engine.model.restorer.backend.shapes] == [2, 2, 1]
    enhancer.enhance_batch_optimized(faces, batch_size=3)
    assert [shape[0] for shape in enhancer.engine.model.restorer.backend.shapes][3:] == [3, 2]
    with pytest.raises(ConfigError, match="batch_size"):
        enhancer.enhance_batch_optimized(faces, batch_size=0)


def test_plan_methods(make_enhancer, faces):
    enhancer = make_enhancer(upscale=2)
    large = enhancer.enhance_face(faces[0])
    assert large.shape == (512, 512, 3)
    assert np.array_equal(GFPGANEnhancer.resize_to_original(large, (256, 256)), faces[0])
    assert enhancer.resize_to_original(large, (200, 100)).shape == (100, 200, 3)
    assert [face.shape[0] for face in enhancer.enhance_batch(list(faces))] == [512] * 5
    assert enhancer.enhance_batch(faces).shape == (5, 512, 512, 3)
    with pytest.raises(FrameError, match="NoneType"):
        enhancer.enhance_face(None)
    with pytest.raises(FrameError):
        enhancer.resize_to_original(large, (0, 10))
    with pytest.raises(FrameError):
        enhancer.resize_to_original(None, (10, 10))


def test_disabled_hands_the_very_same_object_back(faces):
    for enhancer in (
        GFPGANEnhancer.from_config({"enabled": False}),
        GFPGANEnhancer.from_config({"gfpgan": {}}),
    ):
        assert not enhancer.enabled and enhancer(faces) is faces
        assert enhancer.model_name == "none"


def test_closed_enhancer_says_so(make_enhancer, faces):
    with make_enhancer() as enhancer:
        backend = enhancer.engine.model.restorer.backend
    assert backend.closed
    with pytest.raises(RestorerError, match="closed"):
        enhancer(faces)


def test_range_is_remembered_within_a_stream_and_forgotten_between(make_enhancer, rng):
    enhancer = make_enhancer(lambda batch: batch * 0 + 0.5)
    bright = rng.random((1, 256, 256, 3), np.float32) * 255
    dark = np.zeros((1, 256, 256, 3), np.float32)
    enhancer(bright)
    assert enhancer(dark).max() == pytest.approx(127.5)
    enhancer.reset()
    assert enhancer(dark).max() == pytest.approx(0.5)


def test_two_threads_lose_nothing(make_enhancer, faces):
    enhancer = make_enhancer(lambda batch: 1 - batch)
    outs = {}
    threads = [
        threading.Thread(target=lambda i=i: outs.update({i: enhancer(faces[i : i + 1])}))
        for i in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(outs[i][0], 255 - faces[i]) for i in range(5))
    assert enhancer.stats.restored == 5


def test_device_that_is_not_there():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match="cuda:0.*expected auto, cpu"):
        GFPGANEnhancer(model="lite", device="cuda:0", **PLAIN)


def test_every_error_is_an_enhance_error():
    for kind in (ConfigError, FrameError, RestorerError, NoFaceError, OutOfMemoryError):
        assert issubclass(kind, EnhanceError)


def test_region_lower_changes_the_lower_part_only(make_enhancer, faces):
    whole = make_enhancer(lambda batch: 1 - batch)(faces)
    lower = make_enhancer(lambda batch: 1 - batch, region="lower")(faces)
    assert np.array_equal(lower[:, :112], faces[:, :112])
    assert np.array_equal(lower[:, 120:], whole[:, 120:])
    assert not np.array_equal(lower[:, 112:120], whole[:, 112:120])


def test_a_precision_that_was_given_up_is_counted(make_enhancer, faces, monkeypatch):
    enhancer = make_enhancer()
    monkeypatch.setattr(type(enhancer.engine.model.restorer), "fallbacks", property(lambda _: 1))
    enhancer(faces)
    assert enhancer.stats.fallbacks == 1 and enhancer.stats.as_dict()["fallbacks"] == 1


@pytest.mark.parametrize("kind", ["float16", "longdouble"])
def test_odd_frames_come_back_and_are_counted(make_enhancer, kind):
    frames = {
        "float16": torch.full((2, 3, 64, 64), float("nan"), dtype=torch.float16),
        "longdouble": np.zeros((2, 64, 64, 3), np.longdouble),
    }[kind]
    enhancer = make_enhancer(output_size="same")
    out = enhancer(frames)
    assert type(out) is type(frames) and out.dtype == frames.dtype and out.shape == frames.shape
    if kind != "longdouble" or np.longdouble(0).itemsize > 8:
        assert (
            enhancer.stats.restored == 0
            and sum(enhancer.stats.passed_through.values()) == enhancer.stats.frames
        )


@pytest.mark.parametrize(
    "wrong", [lambda b: b[:1], lambda b: b[:, :1], lambda b: b[0], lambda b: b.numpy()]
)
def test_a_restorer_that_returns_another_form(make_enhancer, faces, wrong):
    enhancer = make_enhancer(lambda batch: wrong(1 - batch))
    enhancer.engine.model.restorer.restore = lambda batch: wrong(1 - batch)  # also past the backend
    out = enhancer(faces)
    single = wrong(torch.zeros(1, 3, 4, 4))
    # right for one face alone
    if isinstance(single, torch.Tensor) and single.shape == (1, 3, 4, 4):
        assert all(np.abs(out[i].astype(int) - (255 - faces[i])).max() <= 1 for i in range(5))
    else:
        assert (
            np.array_equal(out, faces)
            and enhancer.stats.failed == 5
            and enhancer.stats.restored == 0
        )
        with pytest.raises(RestorerError, match="returned"):
            make_enhancer(lambda batch: wrong(1 - batch), on_error="raise")(faces)


def test_autocast_of_the_host_means_nothing_here(faces):
    with GFPGANEnhancer(model="lite", backend="torch", dtype="fp32", **PLAIN) as enhancer:
        expected = enhancer(faces[:1])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert np.array_equal(enhancer(faces[:1]), expected)
            run = enhancer.engine.model.restorer.restore(torch.zeros(1, 3, 256, 256))
            assert (
                torch.is_autocast_cpu_enabled()
                if torch.__version__ < "2.4"
                else torch.is_autocast_enabled("cpu")
            )
        assert torch.equal(run, enhancer.engine.model.restorer.restore(torch.zeros(1, 3, 256, 256)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_default_dtype_of_the_host_means_nothing_here(faces, dtype):
    with GFPGANEnhancer(model="lite", backend="torch", **PLAIN) as enhancer:
        expected = enhancer(faces[:1])
    torch.set_default_dtype(dtype)
    try:
        with GFPGANEnhancer(model="lite", backend="torch", **PLAIN) as enhancer:
            assert np.array_equal(enhancer(faces[:1]), expected)
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_random_numbers_of_the_host_go_on(faces):
    before = torch.random.get_rng_state()
    with GFPGANEnhancer(model="lite", **PLAIN) as enhancer:
        enhancer(faces[:1])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_disabled_with_a_restorer_is_whole(make_enhancer, faces):
    restorer = make_enhancer().engine.model.restorer
    with GFPGANEnhancer.from_settings(EnhancerSettings(), restorer=restorer) as enhancer:
        assert enhancer(faces) is faces and enhancer.enhance_face(faces[0]) is not None
        assert (enhancer.model_name, enhancer.loaded, str(enhancer.device)) == (
            "none",
            False,
            "cpu",
        )
        enhancer.unload()
        enhancer.reset()
        with pytest.raises(RestorerError, match="disabled"):
            enhancer.memory_plan()


def test_calls_take_turns(make_enhancer, faces):
    inside, most = [], []

    def slow(batch):
        inside.append(1)
        time.sleep(0.02)
        most.append(len(inside))
        inside.pop()
        return batch

    enhancer = make_enhancer(slow)
    threads = [threading.Thread(target=enhancer, args=(faces[i : i + 1],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 4, "one call at a time: a network keeps state"


def test_the_batch_is_planned_with_the_first_frames(make_enhancer, faces, monkeypatch):
    enhancer = make_enhancer()
    monkeypatch.setattr(
        "musetalk_enhance.runtime.memory.free_bytes", lambda device: 2 * 3 * RECORD.bytes_per_face
    )
    enhancer(faces)
    assert [shape[0] for shape in enhancer.engine.model.restorer.backend.shapes] == [3, 2]


def test_a_budget_without_memory_mode_is_said_once(make_enhancer, caplog):
    _warn_that_the_budget_is_unused.cache_clear()
    with caplog.at_level(logging.WARNING):
        make_enhancer(memory_budget=0.5)
        make_enhancer(memory_budget=0.5)
        make_enhancer(memory_budget=0.5, mode="memory")
    assert len(caplog.records) == 1 and "mode: memory" in caplog.text


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("size_wh", [(20, 10), (48, 64), (32, 32)])
def test_resize_to_original_keeps_the_type(dtype, size_wh):
    face = np.full((32, 32, 3), 1, dtype)
    out = GFPGANEnhancer.resize_to_original(face, size_wh)
    assert (
        out.shape == (*size_wh[::-1], 3)
        and out.dtype == face.dtype
        and np.allclose(out.astype(float), 1)
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32])
def test_resize_to_original_takes_tensors(dtype):
    face = torch.arange(3)[:, None, None].expand(3, 32, 32).to(dtype)
    out = GFPGANEnhancer.resize_to_original(face, (20, 10))
    assert out.shape == (3, 10, 20) and out.dtype == dtype and out[:, 5, 5].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "face",
    [
        np.zeros((4, 4, 3), np.int64),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 5), np.uint8),
        torch.zeros(4, 4),
    ],
)
def test_resize_to_original_refuses_the_rest(face):
    with pytest.raises(FrameError):
        GFPGANEnhancer.resize_to_original(face, (8, 8))


def test_a_hosts_tree_without_our_section_is_told_from_options():
    with pytest.raises(ConfigError, match="a section gfpgan:"):
        GFPGANEnhancer.from_config({"task_0": {"video_path": "a.mp4"}})


def test_one_restored_face_is_not_laid_over_all_frames(make_enhancer, faces):
    out = make_enhancer(lambda batch: (1 - batch)[:1], strength=0.5)(faces)
    assert np.abs(out.astype(int) - 127).max() <= 1, "tried again singly, each face is its own"
    enhancer = make_enhancer(lambda batch: batch[:, :1], strength=0.5)
    assert np.array_equal(enhancer(faces), faces) and enhancer.stats.failed == 5


def test_autocast_of_the_host_does_not_reach_a_restorer_of_somebody_elses(make_enhancer, faces):
    seen = []
    enhancer = make_enhancer(lambda batch: seen.append((batch @ batch).dtype) or batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert np.array_equal(enhancer(faces), faces)
    assert seen == [torch.float32]


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_one_mask_serves_all_frames(make_enhancer, faces, kind):
    enhancer = make_enhancer(lambda batch: 1 - batch)
    covered = np.zeros((256, 256), np.uint8)
    covered[100:] = 255
    mask = covered if kind == "array" else torch.from_numpy(covered)
    out = enhancer(faces, occlusion=mask)
    assert np.array_equal(out[:, 100:], faces[:, 100:])
    assert (out[:, :60] != faces[:, :60]).any(axis=(1, 2, 3)).all()
    assert enhancer.stats.restored == 5
    each = np.stack([covered] * 5)
    assert np.array_equal(out, make_enhancer(lambda batch: 1 - batch)(faces, occlusion=each))


def test_a_models_name_may_stand_first(tmp_path, monkeypatch):
    with FaceEnhancer("lite", device="cpu", backend="torch") as enhancer:
        assert enhancer.model_name == "lite"
        assert repr(enhancer) == "<FaceEnhancer lite on cpu, 0 frames>"
        numbers = enhancer.monitor_gpu_memory()
        assert numbers["ram_total_bytes"] == monitor_gpu_memory()["ram_total_bytes"]
    assert "none on cpu" in repr(enhancer)
    assert "disabled" in repr(FaceEnhancer.from_settings(EnhancerSettings(enabled=False)))
    with pytest.raises(ConfigError, match="Did you mean 'lite'"):
        FaceEnhancer("lit")
    with pytest.raises(MissingWeightError, match="weights fetch GFPGANv1.3"):
        FaceEnhancer("GFPGANv1.3")
    for path in ("lite.pth", "models/lite"):
        with pytest.raises(MissingWeightError, match="no such file"):
            FaceEnhancer(path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lite").write_bytes(b"a file of that name")
    with pytest.raises(WeightError):
        FaceEnhancer("lite")


def test_a_mask_that_comes_with_the_same_frame_again_is_kept(make_enhancer, faces):
    """The frame is the same bits as the one before, and yet not to be answered from memory."""
    enhancer = make_enhancer(lambda batch: 1 - batch)
    assert not np.array_equal(enhancer(faces[:1]), faces[:1])
    covered = np.zeros((1, 256, 256), np.uint8)
    covered[:, 100:] = 1
    for _ in range(2):
        assert np.array_equal(enhancer(faces[:1], occlusion=covered)[:, 100:], faces[:1, 100:])
    assert enhancer.stats.repeated == 1
    covered[:] = 0  # the host's own array, used again
    assert not np.array_equal(enhancer(faces[:1], occlusion=covered)[:, 100:], faces[:1, 100:])


@pytest.mark.parametrize("together", [True, False])
def test_values_beyond_all_measure_do_not_stay_in_the_stream(make_enhancer, rng, together):
    """Finite, and so no failure; but squared they are not."""
    faces = rng.integers(80, 160, (6, 64, 64, 3), np.uint8)
    calls = 0

    def mad(batch):
        nonlocal calls
        made = batch.repeat_interleave(2, 2).repeat_interleave(2, 3)
        for index in range(len(batch)):
            calls += 1
            if calls == 3:
                made[index, :, 10:20, 10:20] = 1e30
        return made

    enhancer = make_enhancer(mad, stability=1, batch_size=4)
    out = (
        enhancer(faces)
        if together
        else np.concatenate([enhancer(faces[i : i + 1]) for i in range(6)])
    )
    for index in (0, 1, 3, 4, 5):
        assert np.abs(out[index].astype(int) - faces[index]).mean() < 15, index


def test_landmarks_that_cannot_be_looked_for_are_no_reason_to_lose_a_frame(
    make_enhancer, faces, caplog
):
    enhancer = make_enhancer(lambda batch: 1 - batch, align="ffhq")
    enhancer.engine._landmarks.fill = lambda *_: (_ for _ in ()).throw(RuntimeError("out of order"))
    assert enhancer(faces).shape == faces.shape and enhancer(faces).shape == faces.shape
    assert enhancer.stats.restored == 10 and enhancer.stats.unaligned == 10
    assert caplog.text.count("out of order") == 1
    strict = make_enhancer(align="ffhq", on_error="raise")
    strict.engine._landmarks.fill = enhancer.engine._landmarks.fill
    with pytest.raises(RestorerError, match="out of order"):
        strict(faces)


@pytest.mark.parametrize("on_error", ["passthrough", "raise"])
@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((64, 64), np.uint8),
        np.zeros((2, 1, 64, 64, 3), np.uint8),
        torch.zeros(2, 3, 64, 64).to_sparse(),
    ],
    ids=["two axes", "five axes", "sparse"],
)
def test_what_can_restore_nothing_is_an_error_in_every_mode(make_enhancer, frames, on_error):
    with pytest.raises(FrameError, match="a batch of shape|a dense tensor"):
        make_enhancer(on_error=on_error)(frames)


def test_a_single_frame_comes_back_as_one(make_enhancer, faces):
    batch = make_enhancer(lambda batch: 1 - batch)(faces[:1])
    single = make_enhancer(lambda batch: 1 - batch)(faces[0])
    assert single.shape == faces[0].shape and np.array_equal(single, batch[0])


def test_pil_images_come_back_as_pil_images_in_their_own_color_order(make_enhancer, faces):
    from PIL import Image

    images = [Image.fromarray(face) for face in faces[:2]]
    enhancer = make_enhancer(
        lambda batch: batch * batch.new_tensor([1, 0, 0]).view(1, 3, 1, 1), color="bgr"
    )
    out = enhancer(tuple(images))
    assert type(out) is tuple and all(isinstance(each, Image.Image) for each in out)
    assert np.array_equal(np.asarray(out[0])[..., 0], faces[0][..., 0]), (
        "red stays where PIL has it"
    )
    assert not np.asarray(out[0])[..., 1:].any()
    alone = make_enhancer(lambda batch: 1 - batch)(images[1])
    assert np.array_equal(np.asarray(alone), 255 - faces[1])
    gray = make_enhancer()(images[1].convert("L"))
    assert gray.mode == "L", "handed back and counted"


def test_a_video_tensor_keeps_its_five_axes(make_enhancer, faces):
    video = torch.from_numpy(faces[:4]).permute(0, 3, 1, 2).reshape(2, 2, 3, 256, 256).contiguous()
    out = make_enhancer(lambda batch: 1 - batch)(video)
    assert torch.equal(out, 255 - video)


def test_a_whole_video_frame_gets_one_warning(make_enhancer, caplog):
    enhancer = make_enhancer()
    for _ in range(2):
        enhancer(np.random.default_rng(0).integers(0, 256, (1, 720, 1280, 3), np.uint8))
    assert caplog.text.count("look like whole video frames") == 1


def test_hints_that_are_not_one_for_each_frame_are_named(make_enhancer, faces):
    with pytest.raises(FrameError, match="4 entries in occlusion"):
        make_enhancer()(faces, occlusion=[None] * 4)


def test_an_observer_that_fails_loses_no_frame(make_enhancer, faces, caplog):
    seen = []
    enhancer = make_enhancer()
    enhancer.observe(lambda *_: (_ for _ in ()).throw(ValueError("full disk")))
    enhancer.observe(lambda *told: seen.append(told))
    assert enhancer(faces).shape == faces.shape and enhancer(faces).shape == faces.shape
    assert len(seen) == 10 and caplog.text.count("an observer failed") == 1


def test_a_stream_goes_with_the_network_to_another_device():
    from musetalk_enhance.pipeline.stability.temporal import TemporalState
    from musetalk_enhance.pipeline.stream import StreamState

    state = StreamState(
        temporal=TemporalState(np.zeros((8, 8, 3), np.float32)), sharpness=0.5, guard=0.5
    )
    assert state.to(torch.device("cpu")).temporal is state.temporal
    assert StreamState().to(torch.device("meta")) == StreamState()
    moved = state.to(torch.device("meta"))
    tensors = [moved.temporal.residual, moved.temporal.share, moved.temporal.changes]
    assert [tensor.device.type for tensor in tensors] == ["meta"] * 3
    assert tuple(moved.temporal.residual.shape) == (1, 3, 8, 8) and (
        moved.guard,
        moved.sharpness,
    ) == (0.5, 0.5)


def test_close_gives_the_stream_back_too(make_enhancer, faces):
    enhancer = make_enhancer(stability=1, guard=True, align="ffhq")
    enhancer(faces)
    enhancer.close()
    assert (enhancer._stream.state.temporal, enhancer._stream.last) == (None, None)
    assert (enhancer._engine._compositor._guard, enhancer._engine._landmarks) == (None, None)
    enhancer.reset()


def test_motion_sees_no_wrapped_values(make_enhancer):
    """A bicubic overshoots beside hard edges, and 8 bits have no room for that."""
    board = np.kron(np.indices((30, 30)).sum(0) % 2, np.ones((10, 10)))
    faces = torch.from_numpy(np.repeat(board[None, None], 3, 1)).float()
    picture = make_enhancer(stability=1).engine._preparer._motion_images(faces)[0]
    x = ((np.arange(256) + 0.5) * 300 / 256 / 10).astype(int)
    middle = np.abs((np.arange(256) + 0.5) * 300 / 2560 % 1 - 0.5) < 0.2
    inner = np.ix_(middle, middle)
    assert np.abs(picture[..., 0].astype(int) - 255 * ((x[:, None] + x) % 2))[inner].max() < 40


def test_a_new_scene_is_not_held_back_for_the_one_before(make_enhancer):
    from musetalk_enhance.pipeline.stability.guard import Guard

    faces, nothing = torch.full((3, 3, 64, 64), 0.5), torch.zeros(3, 3, 64, 64)
    guard = Guard(torch.device("cpu"))
    assert guard.check(faces, nothing, weight=0.0).weights == [0.1, 0.2, 0.3]
    assert guard.check(faces, nothing, weight=0.0, cuts=[False, True, False]).weights == [
        0.1,
        1.0,
        1.0,
    ]
