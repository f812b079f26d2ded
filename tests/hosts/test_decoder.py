"""attach() on the decoder's own device: the same bytes as through the host's numpy, without leaving
it.

The device is the CPU here; ``on_device=True`` takes the way that ``"auto"`` takes on a GPU.
"""

from __future__ import annotations

import gc
import logging
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from musetalk_enhance import attach
from musetalk_enhance.errors import ConfigError
from musetalk_enhance.hosts import decoder
from musetalk_enhance.hosts.decoder import Decoder, host_frames, to_array
from musetalk_enhance.hosts.musetalk import LazyEnhancer


class AutoencoderKL(torch.nn.Module):
    """diffusers' in miniature: 8 times larger, three channels, a little over -1..1."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = torch.nn.Conv2d(4, 3, 3, padding=1).to(dtype)
        self.dtype = dtype
        self.decoded = 0

    def decode(self, latents):
        self.decoded += 1
        image = (
            torch.nn.functional.interpolate(self.net(latents), scale_factor=8, mode="bilinear") * 2
        )
        return SimpleNamespace(sample=image)


class VAE:
    """MuseTalk's, as far as decoding goes."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.vae = AutoencoderKL(dtype)
        self.scaling_factor = 0.18215
        self.own_way = 0

    def decode_latents(self, latents):
        self.own_way += 1
        latents = (1 / self.scaling_factor) * latents
        image = self.vae.decode(latents.to(self.vae.dtype)).sample
        image = (image / 2 + 0.5).clamp(0, 1)
        image = image.detach().cpu().permute(0, 2, 3, 1).float().numpy()
        image = (image * 255).round().astype("uint8")
        return image[..., ::-1]


@pytest.fixture
def latents() -> list[torch.Tensor]:
    """Three batches of latents for 64 px frames, the last with an odd tail."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(n, 4, 8, 8, generator=generator) * 0.18215 for n in (4, 4, 3)]


def seen_by(enhancer):
    """The type of everything that `enhancer` is given from now on, in order."""
    seen, real = [], enhancer._run

    def run(frames, *rest, **hints):
        seen.append(type(frames))
        return real(frames, *rest, **hints)

    enhancer._run = run
    return seen


def darken(batch: torch.Tensor) -> torch.Tensor:
    """Another result for each channel, so that swapped ones show."""
    return batch * torch.tensor([0.9, 0.6, 0.3]).view(1, 3, 1, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("output_size", ["same", "native"])
def test_the_same_as_through_numpy(make_enhancer, latents, dtype, output_size):
    vae, plain = VAE(dtype), VAE(dtype)
    enhancer, other = (make_enhancer(darken, output_size=output_size) for _ in range(2))
    seen = seen_by(enhancer)
    with attach(vae, enhancer, on_device=True), torch.no_grad():
        for batch in latents:
            out = vae.decode_latents(batch)
            expected = other(plain.decode_latents(batch))
            assert out.dtype == np.uint8 and out.shape == expected.shape and out.flags.c_contiguous
            assert type(out) is np.ndarray and np.abs(out.astype(int) - expected).max() <= 1
    assert seen == [np.ndarray, torch.Tensor, torch.Tensor] and vae.own_way == 1
    assert vae.vae.decoded == 3, "the first batch was not decoded twice"
    assert "decode" not in vars(vae.vae)


def test_frames_handed_through_are_the_hosts_bytes(make_enhancer, latents):
    def fails(batch):
        raise RuntimeError("no luck today")

    vae, plain = VAE(), VAE()
    enhancer = make_enhancer(fails)
    seen = seen_by(enhancer)
    with attach(vae, enhancer, on_device=True):
        for batch in latents:
            assert np.array_equal(vae.decode_latents(batch), plain.decode_latents(batch))
    assert seen[-1] is torch.Tensor and enhancer.stats.passed_through.total() == 11


def test_a_disabled_enhancer_changes_nothing_at_all(latents):
    from musetalk_enhance import GFPGANEnhancer

    vae = VAE()
    with attach(vae, GFPGANEnhancer.from_config({"enabled": False}), on_device=True):
        outs = [vae.decode_latents(batch) for batch in latents]
    assert vae.own_way == 3 and all(out.strides[-1] < 0 for out in outs)


@pytest.mark.parametrize("on_device", ["auto", False])
def test_on_the_cpu_there_is_nothing_to_gain(make_enhancer, latents, on_device):
    vae, enhancer = VAE(), make_enhancer()
    seen = seen_by(enhancer)
    with attach(vae, enhancer, on_device=on_device):
        for batch in latents:
            vae.decode_latents(batch)
    assert set(seen) == {np.ndarray} and vae.own_way == 3


def test_auto_takes_the_tensor_of_a_gpu(make_enhancer, latents, monkeypatch):
    real = Decoder.verify
    monkeypatch.setattr(Decoder, "verify", lambda self, *args: (real(self, *args)[0], "cuda"))
    vae, enhancer = VAE(), make_enhancer()
    seen = seen_by(enhancer)
    with attach(vae, enhancer):
        for batch in latents:
            vae.decode_latents(batch)
    assert seen == [np.ndarray, torch.Tensor, torch.Tensor]


class Brighter(VAE):
    def decode_latents(self, latents):
        return np.minimum(super().decode_latents(latents), 254) + 1


class Unscaled(VAE):
    def decode_latents(self, latents):
        return super().decode_latents(latents * self.scaling_factor)


class Twice(VAE):
    def decode_latents(self, latents):
        super().decode_latents(latents)
        return super().decode_latents(latents)


class Listed(VAE):
    def decode_latents(self, latents):
        return list(super().decode_latents(latents))[:2]


@pytest.mark.parametrize("kind", [Brighter, Unscaled, Twice, Listed])
def test_a_host_that_does_it_otherwise_keeps_its_own_way(make_enhancer, latents, kind, caplog):
    vae, plain = kind(), kind()
    enhancer = make_enhancer(strength=0)  # changes nothing
    seen = seen_by(enhancer)
    with caplog.at_level(logging.WARNING), attach(vae, enhancer, on_device=True):
        for batch in latents:
            assert np.array_equal(vae.decode_latents(batch), plain.decode_latents(batch))
    assert torch.Tensor not in seen
    assert caplog.text.count("not MuseTalk's own") == 1
    count = enhancer.stats.frames
    assert f"{count} of {count} faces left alone ({count} strength 0); to restore" in caplog.text


def test_every_vae_of_a_class_is_looked_at_by_itself(make_enhancer, latents):
    enhancer = make_enhancer()
    seen = seen_by(enhancer)
    with attach(VAE, enhancer, on_device=True) as attachment:
        first, second = VAE(), Brighter()
        for batch in latents:
            for vae in (first, second):
                VAE.decode_latents(vae, batch)
        assert seen.count(torch.Tensor) == 4, (
            "both compute as MuseTalk does when asked through the class"
        )
        gone = weakref.ref(first)
        del first, vae
        gc.collect()
        assert gone() is None and len(attachment._verdicts) == 1
    assert VAE().own_way == 0


def test_the_enhancer_of_a_run_takes_tensors_too(latents):
    late = LazyEnhancer({"enabled": True, "model": "lite"})
    plain, vae = VAE(), VAE()
    with attach(vae, late, on_device=True):
        outs = [vae.decode_latents(batch) for batch in latents]
    assert vae.own_way == 1 and late.calls == 3
    expected = [late.enhancer(plain.decode_latents(batch)) for batch in latents]
    for out, wanted in zip(outs, expected, strict=True):
        assert np.abs(out.astype(int) - wanted).max() <= 1
    late.enhancer.close()


def test_any_other_callable_is_given_arrays(latents):
    vae, given = VAE(), []
    with attach(vae, lambda frames: given.append(type(frames)) or frames, on_device=True):
        for batch in latents:
            vae.decode_latents(batch)
    assert given == [np.ndarray] * 3


def test_an_error_of_the_decoder_is_the_hosts_own(make_enhancer, latents):
    vae = VAE()
    with attach(vae, make_enhancer(), on_device=True):
        with pytest.raises(RuntimeError, match="channels"):
            vae.decode_latents(torch.zeros(1, 5, 8, 8))
        assert "decode" not in vars(vae.vae), "nothing is left behind"
        vae.decode_latents(latents[0])
        vae.decode_latents(latents[1])
    assert vae.own_way == 2, "the failed batch has decided nothing"


def test_no_memory_left_on_the_device_for_the_bytes(monkeypatch):
    image = torch.rand(2, 3, 16, 16) * 2 - 1
    expected = to_array(host_frames(image))
    asked = []
    real = decoder._quantised

    class OnGpu:
        device = SimpleNamespace(type="cuda")

        def cpu(self):
            return image

    def quantised(given):
        asked.append(given)
        if isinstance(given, OnGpu):
            raise torch.cuda.OutOfMemoryError
        return real(given)

    monkeypatch.setattr(decoder, "_quantised", quantised)
    assert np.array_equal(to_array(host_frames(OnGpu())), expected) and len(asked) == 2


def test_a_value_that_on_device_cannot_have(make_enhancer):
    with pytest.raises(ConfigError, match="on_device: invalid value 'gpu'.*auto"):
        attach(VAE(), make_enhancer(), on_device="gpu")
