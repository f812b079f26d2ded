"""The host's loop and its stand-ins."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from scripts.benchmarks import host_loop

from .conftest import CPU


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
    assert "diffusers is not available" in said[0]


def test_musetalk_without_its_weights_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(host_loop, "diffusers_host", lambda device, batch: "stand-in")
    said: list[str] = []
    assert host_loop.open_host(CPU, 1, tmp_path, said.append) == "stand-in"
    assert "musetalk.json" in said[0] and "stand-in" in said[0]


def test_musetalk_s_own_classes_are_called_as_its_scripts_do(monkeypatch, tmp_path):

    models = tmp_path / "models"
    (models / "musetalkV15").mkdir(parents=True)
    (models / "sd-vae").mkdir()
    for name in ("musetalk.json", "unet.pth"):
        (models / "musetalkV15" / name).touch()
    package = tmp_path / "musetalk" / "models"
    package.mkdir(parents=True)
    (package / "unet.py").write_text(
        "import torch, types\nclass Model(torch.nn.Linear):\n    def __init__(self): "
        "super().__init__(1, 1)\n    def forward(self, x, step, encoder_hidden_states): return "
        "types.SimpleNamespace(sample=x[:, :4])\nclass UNet:\n    def __init__(self, "
        "unet_config, model_path, use_float16, device): self.model = Model()\n"
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
    host = host_loop.diffusers_host(
        CPU, 1, unet=small, vae={"block_out_channels": (32, 32, 32, 32)}
    )
    assert host.generate().shape == (1, 256, 256, 3)
