"""`wrap`: what a host's function returns comes back in the host's own form, with nothing lost."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from musetalk_enhance import GFPGANEnhancer, wrap
from musetalk_enhance.errors import ConfigError, FrameError


def darken(batch: torch.Tensor) -> torch.Tensor:
    """Half of everything, in the range 0..1; red (the first channel, RGB) becomes 0."""
    return batch * torch.tensor([0.0, 0.5, 0.5])[:, None, None]


@pytest.fixture
def enhancer(make_enhancer):
    return make_enhancer(darken)


def uint8_frames(number=3, side=96):
    return np.full((number, side, side, 3), 200, np.uint8)


RED = {"bgr": 2, "rgb": 0}


@pytest.mark.parametrize("color", ["bgr", "rgb"])
@pytest.mark.parametrize("container", ["array", "tensor", "list"])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize(
    ("value_range", "dtype"),
    [("0..255", "uint8"), ("0..255", "float32"), ("0..1", "float32"), ("-1..1", "float16")],
)
def test_every_form_comes_back_as_it_was(enhancer, color, container, layout, value_range, dtype):
    low, high = (float(part) for part in value_range.split(".."))
    frames = np.full((3, 96, 96, 3), low + 0.8 * (high - low)).astype(dtype)
    frames = np.moveaxis(frames, -1, 1) if layout == "NCHW" else frames
    given = torch.from_numpy(frames.copy()) if container == "tensor" else frames
    given = list(frames) if container == "list" else given
    decode = wrap(
        lambda latents: given, enhancer, color=color, value_range=value_range, layout=layout
    )
    restored = decode(None)
    assert type(restored) is type(given) and len(restored) == 3
    plain = np.stack([np.asarray(frame) for frame in restored])
    assert plain.dtype == dtype and plain.shape == frames.shape
    if container == "array":
        assert restored.flags.c_contiguous
    plain = np.moveaxis(plain, 1, -1) if layout == "NCHW" else plain
    unit = (plain.astype(np.float64) - low) / (high - low)
    assert np.allclose(unit[..., RED[color]], 0, atol=0.01)
    assert np.allclose(unit[..., 1], 0.4, atol=0.01)
    assert decode.attached and np.asarray(frames).min() > low, "the host's own stay"


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_one_frame(enhancer, layout):
    frame = np.full((96, 96, 3) if layout == "NHWC" else (3, 96, 96), 200, np.uint8)
    restored = wrap(lambda: frame, enhancer, layout=layout)()
    assert restored.shape == frame.shape and restored.min() == 0 and restored.max() == 100


@pytest.mark.parametrize(("output_size", "side"), [("same", 96), (None, 512), (128, 128)])
def test_the_size_is_the_hosts_the_enhancers_or_another(make_enhancer, output_size, side):
    enhancer = make_enhancer(output_size="native")
    frames = np.full((2, 3, 96, 96), 0.5, np.float32)
    restored = wrap(lambda: frames, enhancer, layout="NCHW", output_size=output_size)()
    assert restored.shape == (2, 3, side, side)


class Pipeline:
    """A host with a method, and one that others can see through `wrap`."""

    def decode(self, latents, scale=1):
        """Decode."""
        return uint8_frames(latents) * scale


def test_a_method_of_a_class_and_of_an_object(enhancer, monkeypatch):
    monkeypatch.setattr(Pipeline, "decode", wrap(Pipeline.decode, enhancer))
    assert Pipeline().decode(2, scale=1).max() == 100
    assert Pipeline.decode.__doc__ == "Decode."
    monkeypatch.undo()
    pipeline = Pipeline()
    with wrap(pipeline.decode, enhancer) as decode:
        assert decode(2).max() == 100
    assert decode(2).max() == 200, "detached"
    decode.detach()
    assert not decode.attached


def test_a_network_as_a_function(enhancer):
    network = torch.nn.Identity()
    decode = wrap(network, enhancer, value_range="0..1", color="rgb")
    assert decode(torch.full((1, 3, 96, 96), 0.8)).max() == pytest.approx(0.4, abs=0.01)
    assert not hasattr(decode, "training"), "nothing of the network's own is copied"


def test_each_user_has_a_stream_and_warm_up_has_none(enhancer):
    streams = {name: enhancer.stream() for name in ("ann", "bob")}
    decode = wrap(lambda user: uint8_frames(2), enhancer, stream=lambda user: streams.get(user))
    for user in ("ann", "bob", "ann"):
        assert decode(user).max() == 100
    assert decode("warm-up").max() == 200
    assert [streams[user].stats.frames for user in ("ann", "bob")] == [4, 2]


def test_without_a_stream_all_calls_are_one_stream(enhancer):
    stream = enhancer.stream()
    for given in (stream, None):
        decode = wrap(lambda: uint8_frames(2), enhancer, stream=given)
        decode(), decode()
    assert stream.stats.frames == 4 and stream.stats.repeated == 3
    assert enhancer.stats.frames == 0


def test_hints_come_from_the_arguments(enhancer):
    stream = enhancer.stream()
    wrap(lambda cut: uint8_frames(2), enhancer, stream=stream, hints=lambda cut: {"cuts": cut})(
        [True, True]
    )
    assert stream.stats.cuts == 2


@pytest.mark.parametrize("result", [None, 7, "text", {"frames": 1}, np.zeros((2, 2))])
def test_what_is_no_frame_stays_and_is_counted(enhancer, result, caplog):
    stream = enhancer.stream()
    decode = wrap(lambda: result, enhancer, stream=stream)
    with caplog.at_level(logging.WARNING, "musetalk_enhance"):
        assert decode() is result and decode() is result
    assert stream.stats.frames == 2 and stream.stats.failed == 2
    assert stream.stats.passed_through == {"restorer: FrameError": 2}
    assert len(caplog.records) == 1 and "its result stays as it is" in caplog.text


@pytest.mark.parametrize(
    "wrong",
    [
        lambda frames: None,
        lambda frames: frames[1:],
        lambda frames: frames.astype(np.float32),
        lambda frames: list(frames),
        lambda frames: 1 / 0,
    ],
)
def test_a_wrong_result_of_ours_never_reaches_the_host(enhancer, wrong):
    stream = enhancer.stream()

    def restore(frames):
        return wrong(frames)

    restore.stats, restore.settings = stream.stats, stream.settings
    frames = uint8_frames(4)
    assert wrap(lambda: frames, enhancer, stream=restore)() is frames
    assert stream.stats.passed_through.total() == 4


def test_an_error_reaches_the_host_only_on_demand(make_enhancer):
    enhancer = make_enhancer(on_error="raise")
    with pytest.raises(FrameError):
        wrap(lambda: None, enhancer)()


def test_the_hosts_own_errors_are_its_own(enhancer):
    def fail():
        raise KeyError("the host's")

    with pytest.raises(KeyError):
        wrap(fail, enhancer)()


def test_a_closed_or_disabled_enhancer_changes_nothing(make_enhancer):
    enhancer = make_enhancer(darken)
    decode = wrap(uint8_frames, enhancer)
    enhancer.close()
    assert decode().min() == 200
    disabled = GFPGANEnhancer.from_config({"enabled": False})
    assert wrap(uint8_frames, disabled, color="rgb")().min() == 200


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layout": "HWC"}, "NHWC | NCHW"),
        ({"color": "grb"}, "color"),
        ({"value_range": "0..2"}, "value_range"),
        ({"output_size": "big"}, "output_size"),
    ],
)
def test_wrong_options_are_refused_at_once(enhancer, options, words):
    with pytest.raises(ConfigError, match=words.replace("|", r"\|")):
        wrap(uint8_frames, enhancer, **options)


def test_options_of_a_stream_beside_a_stream_are_refused(enhancer):
    with pytest.raises(ConfigError, match="nothing beside stream"):
        wrap(uint8_frames, enhancer, stream=enhancer.stream(), color="rgb")
