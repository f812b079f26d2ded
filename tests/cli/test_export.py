"""``musetalk-enhance export``: a file that runs, and what is said about it."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from musetalk_enhance.backends import onnx_export
from musetalk_enhance.cli import main
from musetalk_enhance.config.settings import EnhancerSettings
from musetalk_enhance.restorers.base import LoadRequest
from musetalk_enhance.restorers.lite import ASSET, LiteRestorer


def lite(**options) -> torch.nn.Module:
    request = LoadRequest(LiteRestorer.info, EnhancerSettings(**options), torch.device("cpu"))
    return LiteRestorer.network(request).module


@pytest.mark.parametrize("region", ["full", "lower"])
def test_lite(tmp_path, capsys, region):
    path = tmp_path / "lite.onnx"
    assert main(["export", "lite", str(path), "--region", region]) == 0
    printed = capsys.readouterr().out
    for words in (
        f"{path}: lite, ",
        "license: Apache-2.0",
        "float32 (batch, 3, 256, 256), RGB, 0..1",
    ):
        assert words in printed
    assert float(printed.split("largest difference from torch: ")[1].split()[0]) < 1e-5
    session = onnxruntime.InferenceSession(str(path))
    faces = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(2))
    (restored,) = session.run(["restored"], {"faces": faces.numpy()})
    assert np.abs(restored - lite(region=region)(faces).numpy()).max() < 1e-5
    assert session.get_modelmeta().custom_metadata_map["licence"] == "Apache-2.0"


def test_a_path(tmp_path, capsys):
    checkpoint = tmp_path / "mine.safetensors"
    checkpoint.write_bytes(ASSET.read_bytes())
    assert main(["export", str(checkpoint), str(tmp_path / "mine.onnx")]) == 0
    assert "mine.onnx: mine, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lite", "out.pth"], "ends in .onnx"),
        (["gfpgan-1.4", "out.onnx"], "weights fetch GFPGANv1.4"),
        (["lyte", "out.onnx"], "model: invalid value 'lyte'"),
        (["lite", "out.onnx", "--region", "nose"], "region: invalid value 'nose'"),
        (["lite", "out.onnx", "--fidelity", "0.9"], "only codeformer has it"),
        (["gone.pth", "out.onnx", "--arch", "CodeFormer"], "no such file"),
    ],
)
def test_what_is_refused(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_a_file_that_differs_is_exit_code_2_and_not_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(onnx_export, "difference", lambda spec, graph: 0.5)
    assert main(["export", "lite", str(tmp_path / "lite.onnx")]) == 2
    assert "differs from torch by 5.0e-01" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.onnx"))
