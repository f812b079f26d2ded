"""Enhancing beside a host's loop: order, errors, and the stand-ins."""

from __future__ import annotations

import contextlib
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from musetalk_enhance.bench import host_loop, overlapped

from .conftest import CPU


def test_results_come_in_order_from_one_other_thread():
    threads = set()

    def enhance(batch):
        threads.add(threading.get_ident())
        return batch * 2

    assert list(overlapped(enhance, iter(range(7)))) == [0, 2, 4, 6, 8, 10, 12]
    assert len(threads) == 1 and threading.get_ident() not in threads
    assert list(overlapped(enhance, [])) == []


@pytest.mark.parametrize("depth", [1, 3])
def test_the_host_is_never_more_than_depth_ahead(depth):
    made = []

    def batches():
        for number in range(6):
            made.append(number)
            yield number

    ahead = [len(made) - 1 - done for done in overlapped(lambda batch: batch, batches(), depth)]
    assert ahead[0] == depth and max(ahead) == depth and ahead[-1] == 0


def test_the_next_batch_is_generated_while_one_is_enhanced():
    """The enhancer waits for the host's second batch: in turn this would never end."""
    second = threading.Event()

    def batches():
        yield 1
        second.set()
        yield 2

    assert list(overlapped(lambda batch: second.wait(10), batches())) == [True, True]


def test_an_error_comes_out():
    def fail(batch):
        raise ValueError(batch)

    with pytest.raises(ValueError, match="1"):
        list(overlapped(fail, [1, 2]))


def test_frames_are_musetalk_s(monkeypatch):
    monkeypatch.setattr(host_loop, "_SMALL", 2)
    host = host_loop.convolution_host(CPU, 2, (1, 1))
    frames = host.generate()
    assert frames.shape == (2, 256, 256, 3) and frames.dtype == np.uint8
    assert frames.strides[-1] < 0  # a view turned round, as MuseTalk hands out
    assert "16 px instead of 256" in host.name


def test_added_time_is_by_way():
    host = host_loop.Host("a test", lambda: np.zeros((2, 4, 4, 3), np.uint8), 2)
    calls = []
    seen = host_loop.added(host, calls.append, rounds=2, batches=3)
    assert len(calls) == 3 * 3 * 2  # two ways that enhance, one round more to warm up
    assert set(seen["ms_per_face"]) == {"alone", "in turn", "overlapped"}
    assert set(seen["added"]) == {"in turn", "overlapped"}


def test_without_diffusers_convolutions_stand_in(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.setattr(host_loop, "convolution_host", lambda device, batch: "stand-in")
    said: list[str] = []
    assert host_loop.open_host(CPU, 1, None, said.append) == "stand-in"
    assert "no diffusers" in said[0]


def test_musetalk_without_its_weights_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(host_loop, "diffusers_host", lambda device, batch: "stand-in")
    said: list[str] = []
    assert host_loop.open_host(CPU, 1, tmp_path, said.append) == "stand-in"
    assert "musetalk.json" in said[0] and "stand-in" in said[0]


def test_musetalk_s_own_classes_are_called_as_its_scripts_do(monkeypatch, tmp_path):
    import torch

    models = tmp_path / "models"
    (models / "musetalkV15").mkdir(parents=True)
    (models / "sd-vae").mkdir()
    for name in ("musetalk.json", "unet.pth"):
        (models / "musetalkV15" / name).touch()
    package = tmp_path / "musetalk" / "models"
    package.mkdir(parents=True)
    (package / "unet.py").write_text(
        "import torch, types\n"
        "class Model(torch.nn.Linear):\n"
        "    def __init__(self): super().__init__(1, 1)\n"
        "    def forward(self, x, step, encoder_hidden_states): return types.SimpleNamespace(sample=x[:, :4])\n"
        "class UNet:\n"
        "    def __init__(self, unet_config, model_path, use_float16, device): self.model = Model()\n"
    )
    (package / "vae.py").write_text(
        "import numpy\n"
        "class VAE:\n"
        "    def __init__(self, model_path, use_float16): pass\n"
        "    def decode_latents(self, latents):\n"
        "        assert latents.shape == (3, 4, 32, 32)\n"
        "        return numpy.zeros((len(latents), 256, 256, 3), numpy.uint8)\n"
    )
    for name in ("musetalk", "musetalk.models", "musetalk.models.unet", "musetalk.models.vae"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    path = list(sys.path)
    host = host_loop.open_host(torch.device("cpu"), 3, tmp_path)
    assert host.name.startswith("MuseTalk") and host.generate().shape == (3, 256, 256, 3)
    assert sys.path == path
    for name in ("musetalk", "musetalk.models", "musetalk.models.unet", "musetalk.models.vae"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_diffusers_networks_of_musetalk_s_form(monkeypatch):
    pytest.importorskip("diffusers")
    monkeypatch.setattr(host_loop, "_SMALL", 8)
    small = {"block_out_channels": (32, 64, 64, 64)}
    host = host_loop.diffusers_host(CPU, 1, unet=small, vae={"block_out_channels": (32, 32, 32, 32)})
    assert host.generate().shape == (1, 256, 256, 3)


class OnGpu(torch.Tensor):
    """A tensor that says it lies on a second GPU and notes which streams it is kept for."""

    is_cuda = True
    device = torch.device("cuda:1")

    def record_stream(self, stream):
        kept.append((float(self.flatten()[0]), stream))


kept: list = []


@pytest.fixture
def second_gpu(monkeypatch):
    """torch.cuda whose current device is 1 in this thread and, as ever, 0 in any other."""
    notes = SimpleNamespace(waits=[], streams=[], synchronised=0)
    main = threading.get_ident()

    class Side:
        def __init__(self, index):
            notes.streams.append(index)

        def wait_event(self, event):
            notes.waits.append(event)

        def synchronize(self):
            notes.synchronised += 1

    fakes = {
        "is_available": lambda: True,
        "current_device": lambda: int(threading.get_ident() == main),
        "Stream": Side,
        "stream": lambda _: contextlib.nullcontext(),
        "current_stream": lambda device: SimpleNamespace(
            record_event=lambda: f"ready {device}", host=threading.get_ident() == main
        ),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr("musetalk_enhance.bench.overlap._STREAMS", {})
    kept.clear()
    return notes


def on_gpu(value):
    return torch.full((1, 3, 2, 2), float(value)).as_subclass(OnGpu)


@pytest.mark.parametrize("wrap", [lambda tensor: tensor, lambda tensor: [tensor, tensor], lambda tensor: (tensor,)])
def test_tensors_wait_for_the_host_s_stream_and_the_host_s_for_ours(second_gpu, wrap):
    (done,) = overlapped(lambda batch: wrap(on_gpu(5)), [wrap(on_gpu(2))])
    assert type(done) is type(wrap(on_gpu(0)))
    assert second_gpu.streams == [1] and second_gpu.waits == ["ready cuda:1"] and second_gpu.synchronised == 1
    count = len(wrap(0)) if isinstance(wrap(0), (list, tuple)) else 1
    assert [value for value, _ in kept] == [2.0] * count + [5.0] * count
    assert all(stream.host for _, stream in kept[count:])


def test_arrays_are_enhanced_on_the_gpu_that_is_current_for_the_host(second_gpu):
    assert list(overlapped(lambda batch: batch, [np.zeros(1)])) == [0]
    assert second_gpu.streams == [1] and not second_gpu.waits and not kept
