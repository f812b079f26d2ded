"""A reduced precision that comes to another picture is not used, and somebody hears of it."""

from __future__ import annotations

import gc
import logging
import weakref
from functools import partial

import pytest
import torch

from musetalk_enhance.backends import FakeBackend, TorchBackend
from musetalk_enhance.backends.checked import CheckedBackend, verdict
from tests.backends.conftest import CPU, TinyNetwork, spec_of


def opened(spec, dtype, device):
    return TorchBackend(spec, device, dtype)


def broken(function):
    backend = FakeBackend(function)
    backend.dtype = "bf16"
    return backend


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda picture: picture * float("nan"), "NaN"),
        (lambda picture: picture / 0, "infinite"),
        (lambda picture: picture * 0 + 0.3, "flat"),
        (lambda picture: picture * 1.05, "relative error of 5.0%"),
        (lambda picture: picture * 1.01, None),
        (lambda picture: picture, None),
    ],
)
def test_verdict(spoil, problem):
    picture = torch.randn(1, 3, 8, 8)
    said = verdict(spoil(picture), picture)
    assert said is None if problem is None else problem in said


@pytest.mark.parametrize("spoil", [float("nan"), 0.0, 2.0])
def test_it_falls_back_with_a_warning_and_a_count(tiny, batch, caplog, spoil):
    bad = broken(lambda faces: tiny.module(faces) * spoil)
    backend = CheckedBackend(tiny, [lambda _: bad, partial(opened, tiny, "fp32")], CPU)
    assert str(backend) == "fake bf16"
    with caplog.at_level(logging.WARNING):
        restored = backend.run(batch)
    assert torch.allclose(restored, tiny.module(batch), atol=1e-6)
    assert str(backend) == "torch fp32" and backend.fallbacks == 1 and bad.closed
    assert "fake bf16" in caplog.text and "not used" in caplog.text


def test_a_good_one_is_checked_once_and_kept(tiny, batch):
    good = broken(lambda faces: tiny.module(faces) * 1.001)
    backend = CheckedBackend(tiny, [lambda _: good, partial(opened, tiny, "fp32")], CPU)
    backend.run(batch)
    backend.run(batch)
    assert [shape[0] for shape in good.shapes] == [1, 3, 3] and backend.fallbacks == 0


def test_it_goes_down_step_by_step(tiny, batch):
    worse, bad = (
        broken(lambda faces: faces * float("nan")),
        broken(lambda faces: tiny.module(faces) * 0),
    )
    backend = CheckedBackend(
        tiny, [lambda _: worse, lambda _: bad, partial(opened, tiny, "fp32")], CPU
    )
    backend.run(batch)
    assert backend.fallbacks == 2 and backend.dtype == "fp32"


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_torch_in_reduced_precision_passes_on_a_sound_network(tiny, batch, dtype):
    openers = [partial(opened, tiny, dtype), partial(opened, tiny, "fp32")]
    backend = CheckedBackend(tiny, openers, CPU)
    restored = backend.run(batch)
    if dtype == "fp16" and backend.fallbacks:
        pytest.skip("this torch has no fp16 convolution on the CPU")
    assert backend.dtype == dtype and restored.dtype == torch.float32
    assert (
        tiny.module(batch).dtype == torch.float32
    )  # the right answer's own weights stayed as they were


def test_an_operation_that_is_missing_in_this_type_is_a_fallback(tiny, batch):
    def missing(_):
        raise RuntimeError("slow_conv2d_cpu not implemented for 'Half'")

    backend = CheckedBackend(tiny, [lambda _: broken(missing), partial(opened, tiny, "fp32")], CPU)
    backend.run(batch)
    assert backend.fallbacks == 1


def test_running_out_of_memory_is_nobodys_precision(tiny, batch):
    def full(_):
        raise RuntimeError("CUDA out of memory")

    backend = CheckedBackend(tiny, [lambda _: broken(full), partial(opened, tiny, "fp32")], CPU)
    with pytest.raises(RuntimeError, match="memory"):
        backend.run(batch)
    assert backend.fallbacks == 0


def test_it_does_not_keep_the_network_that_it_was_checked_with(batch):
    """GFPGAN in fp32 is 350 MB, beside the copy that runs."""
    spec = spec_of(TinyNetwork())
    kept = weakref.ref(spec.module)
    backend = CheckedBackend(
        spec, [partial(opened, spec, "bf16"), partial(opened, spec, "fp32")], CPU
    )
    del spec
    assert kept() is not None
    backend.run(batch)
    gc.collect()
    assert kept() is None and str(backend) == "torch bf16"


def test_a_safer_way_that_finds_no_memory_is_tried_again(tiny, batch):
    full = [True]

    def safe(_):
        if full.pop() if full else False:
            raise RuntimeError("CUDA out of memory")
        return TorchBackend(tiny, CPU)

    bad = broken(lambda faces: faces * float("nan"))
    backend = CheckedBackend(tiny, [lambda _: bad, safe], CPU)
    with pytest.raises(RuntimeError, match="out of memory"):
        backend.run(batch)
    assert torch.allclose(backend.run(batch), tiny.module(batch), atol=1e-6)
    assert backend.fallbacks == 1 and str(backend) == "torch fp32"


def test_after_a_move_the_check_and_the_safer_backends_are_there_too(tiny, batch, monkeypatch):
    from musetalk_enhance.backends import checked

    checks, opened_on, elsewhere = [], [], torch.device("meta")

    class Noted(TorchBackend):
        def __init__(self, spec, device, *rest, **more):
            checks.append(device)
            super().__init__(spec, device, *rest, **more)

    def safe(device):
        opened_on.append(device)
        return FakeBackend(tiny.module)

    monkeypatch.setattr(checked, "TorchBackend", Noted)
    nan = broken(lambda faces: faces * float("nan"))
    backend = CheckedBackend(tiny, [lambda _: nan, safe], elsewhere)
    backend.to(CPU)
    backend.run(batch)
    assert checks == [CPU] and opened_on == [CPU]


def test_a_rejected_precision_and_then_the_cpu(tiny, batch):
    """fp16 is rejected on the GPU, bf16 finds no memory there, and fp32 opens on the CPU."""
    gpu, opened_on = torch.device("meta"), []

    def full(device):
        opened_on.append(device)
        raise RuntimeError("CUDA out of memory")

    nan = broken(lambda faces: faces * float("nan"))
    backend = CheckedBackend(tiny, [lambda _: nan, full, partial(opened, tiny, "fp32")], CPU)
    backend._device = gpu
    backend._rejected = True  # the reference cannot run on a device without values
    with pytest.raises(RuntimeError, match="out of memory"):
        backend.run(batch)
    backend.to(CPU)
    assert torch.allclose(backend.run(batch), tiny.module(batch), atol=1e-6)
    assert opened_on == [gpu] and str(backend) == "torch fp32"
