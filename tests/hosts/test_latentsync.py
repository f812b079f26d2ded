"""LatentSync in miniature: structure, shapes and value ranges are its own."""

from __future__ import annotations

import runpy
import sys
import threading

import pytest
import torch

from musetalk_enhance.errors import ConfigError, HostError
from musetalk_enhance.hosts.latentsync import attach
from tests.conftest import ROOT
from tests.hosts.host_folder import host_folder, run_host

PIPELINE = """
import torch

class LipsyncPipeline:
    device = torch.device("cpu")

    @staticmethod
    def paste_surrounding_pixels_back(decoded, pixel_values, masks, device, weight_dtype):
        pixel_values = pixel_values.to(device=device, dtype=weight_dtype)
        masks = masks.to(device=device, dtype=weight_dtype)
        return decoded * masks + pixel_values * (1 - masks)

    @torch.no_grad()
    def __call__(self, frames, height, weight_dtype, num_frames=16):
        masks = torch.ones(1, 1, height, height, dtype=torch.float64)
        masks[:, :, height // 2 :] = 0
        result = []
        for start in range(0, frames, num_frames):
            count = min(num_frames, frames - start)
            noise = torch.Generator().manual_seed(start)
            decoded = torch.full((count, 3, height, height), -0.5)
            decoded[:, 0] = 0.5  # red
            decoded[:, :, ::8] *= 0.5
            decoded += torch.linspace(-0.3, 0.3, height)
            originals = decoded + 0.2 * torch.rand(decoded.shape, generator=noise) - 0.1
            result.append(self.paste_surrounding_pixels_back(
                decoded.to(weight_dtype), originals, 1 - masks.repeat(count, 1, 1, 1),
                self.device, weight_dtype,
            ))
        return torch.cat(result)
"""

INFERENCE = """
import argparse, json, pathlib, torch
from omegaconf import OmegaConf
from latentsync.pipelines.lipsync_pipeline import LipsyncPipeline
parser = argparse.ArgumentParser()
parser.add_argument("--unet_config_path", required=True)
args = parser.parse_args()
config = OmegaConf.load(args.unet_config_path)
assert list(config) == ["data"]
pipeline = LipsyncPipeline()
rows = []
for dtype in (torch.float32, torch.float16):
    faces = pipeline(20, config.data.resolution, dtype)
    rows.append([list(faces.shape), str(faces.dtype), faces[:, :, 200:].mean((0, 2, 3)).tolist(),
                 faces[:, :, 200:].diff(dim=2).abs().mean().item()])
pathlib.Path("result.json").write_text(json.dumps(rows))
"""

FLAGS = ("--enable_gfpgan", "--gfpgan_model", "lite", "--gfpgan_backend", "torch")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    files = {
        "latentsync/pipelines/lipsync_pipeline.py": PIPELINE,
        "vendored/pipeline.py": PIPELINE,
        "scripts/inference.py": INFERENCE,
        "gradio_app.py": "from scripts.inference import main",
        "unet.yaml": "data: {resolution: 256}",
        "ours.yaml": "data: {resolution: 256}\ngfpgan: {enabled: true, model: lite}",
    }
    with host_folder(tmp_path, files, monkeypatch) as folder:
        monkeypatch.syspath_prepend(str(tmp_path))
        yield folder


@pytest.fixture
def enhancer(make_enhancer):
    return make_enhancer(lambda batch: batch * 0.5)


def pipeline_class():
    from latentsync.pipelines.lipsync_pipeline import LipsyncPipeline

    return LipsyncPipeline


def test_the_script_gets_its_faces_back_in_its_form(folder, capsys):
    words = ["scripts/inference.py", "--unet_config_path", "unet.yaml"]
    code, plain = run_host(*words)
    assert code == 0 and "nothing was restored" in capsys.readouterr().err
    code, rows = run_host(*words, *FLAGS)
    assert code == 0 and "40 of 40 faces restored" in capsys.readouterr().err
    assert [row[:2] for row in rows] == [
        [[20, 3, 256, 256], "torch.float32"],
        [[20, 3, 256, 256], "torch.float16"],
    ]
    for (_, _, colors, edges), (_, _, plain_colors, plain_edges) in zip(rows, plain, strict=True):
        assert colors == pytest.approx(plain_colors, abs=0.05), "red stays the first channel"
        assert edges != plain_edges


def test_options_come_from_the_hosts_yaml(folder, capsys):
    assert run_host("scripts/inference.py", "--unet_config_path", "ours.yaml")[0] == 0
    assert "40 of 40 faces restored" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("height", [256, 512])
def test_only_generated_pixels_change(folder, enhancer, dtype, height):
    plain = pipeline_class()()(3, height, dtype)
    with attach(enhancer):
        faces = pipeline_class()()(3, height, dtype)
    half = height // 2
    assert faces.dtype == dtype and torch.equal(faces[:, :, :half], plain[:, :, :half])
    assert not torch.equal(faces[:, :, half:], plain[:, :, half:])
    assert enhancer.stats.frames == enhancer.stats.restored == 3
    assert torch.equal(pipeline_class()()(3, height, dtype), plain), "detached"


def test_the_videos_own_crops_are_the_sources(folder, make_enhancer):
    faces = []
    for match in ("none", "source"):
        with attach(make_enhancer(lambda batch: batch * 0.5, match=match)):
            faces.append(pipeline_class()()(3, 256, torch.float16))
    assert torch.equal(faces[0][:, :, :128], faces[1][:, :, :128])
    assert not torch.equal(faces[0][:, :, 128:], faces[1][:, :, 128:])


def test_each_call_is_a_stream_of_its_own(folder, enhancer):
    opened = []
    open_stream = enhancer.stream
    enhancer.stream = lambda **options: opened.append(open_stream(**options)) or opened[-1]
    with attach(enhancer):
        first, second = (pipeline_class()()(40, 256, torch.float32) for _ in range(2))
        assert torch.equal(first, second), "nothing is left of the call before"
        results = []
        threads = [
            threading.Thread(
                target=lambda: results.append(pipeline_class()()(20, 256, torch.float32))
            )
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert torch.equal(results[0], results[1])
    assert [stream.stats.frames for stream in opened] == [40, 40, 20, 20]
    assert all(stream.closed for stream in opened) and enhancer.stats.frames == 120


def test_a_failed_call_ends_its_stream(folder, enhancer):
    with attach(enhancer) as patches:
        with pytest.raises(TypeError):
            pipeline_class()()(3, 256, torch.float32, num_frames=None)
        faces = pipeline_class().paste_surrounding_pixels_back(
            *(torch.full((1, each, 64, 64), 0.5) for each in (3, 3, 1)), "cpu", torch.float32
        )
        assert float(faces.max()) == 0.5, "outside of a call nothing is restored"
        patches.close()
    assert enhancer.stats.frames == 0


def test_a_pipeline_under_another_name(folder, enhancer):
    from vendored.pipeline import LipsyncPipeline

    for pipeline in (LipsyncPipeline, LipsyncPipeline()):
        with attach(enhancer, pipeline=pipeline):
            LipsyncPipeline()(2, 256, torch.float32)
    assert enhancer.stats.frames == 4


def test_the_network_is_loaded_by_the_options(folder):
    with attach(model="lite"):
        assert pipeline_class()()(1, 256, torch.float32).shape == (1, 3, 256, 256)
    with pytest.raises(ConfigError, match="nothing beside an enhancer"):
        attach(object(), model="lite")


def test_another_version_is_an_error(folder, enhancer):
    with pytest.raises(HostError, match="has no paste_surrounding_pixels_back"):
        attach(enhancer, pipeline=object())
    (folder / "latentsync/pipelines/lipsync_pipeline.py").write_text("")
    with attach(enhancer), pytest.raises(HostError, match="has no LipsyncPipeline"):
        pipeline_class()


def test_recognized(folder):
    from musetalk_enhance.hosts.registry import recognize

    assert recognize("gradio_app.py").name == recognize("scripts/inference.py").name == "latentsync"


def test_the_example_runs_the_hosts_script(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run_latentsync.py", "--unet_config_path", "unet.yaml"])
    monkeypatch.setattr(sys, "path", ["examples", *sys.path])
    runpy.run_path(str(ROOT / "examples" / "run_latentsync.py"), run_name="__main__")
    assert "40 of 40 faces restored" in capsys.readouterr().out
