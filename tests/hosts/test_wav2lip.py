"""Wav2Lip and wav2lip-onnx-HQ in miniature: structure, shapes and value ranges are theirs."""

from __future__ import annotations

import numpy as np
import pytest

from tests.hosts.host_folder import host_folder, run_host

NETWORK = """
import torch
class Wav2Lip(torch.nn.Module):
    def forward(self, audio, face):
        ramp = torch.linspace(0, 1, 96).expand(len(face), 3, 96, 96).clone()
        ramp[:, :, ::8] *= 0.5
        ramp[:, 2] = 0.2  # red in BGR order
        return ramp
"""

INFERENCE = """
import argparse, json, pathlib
import cv2, numpy as np, torch
from models import Wav2Lip
parser = argparse.ArgumentParser()
parser.add_argument("--fps", type=float, default=25.0)
args = parser.parse_args()
model = Wav2Lip().eval()
rows = []
for number in (4, 2):
    with torch.no_grad():
        pred = model(torch.zeros(number, 1, 80, 16), torch.zeros(number, 6, 96, 96))
    pred = pred.cpu().numpy().transpose(0, 2, 3, 1) * 255.
    pasted = [cv2.resize(p.astype(np.uint8), (180, 200)) for p in pred]
    rows.append([list(pred.shape), str(pred.dtype), float(pasted[0][50, 50, 2]),
                 float(np.abs(np.diff(pred[0, :, 80, 0])).mean())])
pathlib.Path("result.json").write_text(json.dumps(rows))
"""

ONNX_SCRIPT = """
import argparse, json, pathlib
import numpy as np
parser = argparse.ArgumentParser()
parser.add_argument("--enhancer", default="none", choices=["none", "gpen", "gfpgan"])
args = parser.parse_args()
device = "cpu"
if args.enhancer == "gfpgan":
    from enhancers.GFPGAN.GFPGAN import GFPGAN
    gfpgan = GFPGAN(model_path="enhancers/GFPGAN/GFPGANv1.4.onnx", device=device)
ramp = np.linspace(0, 255, 256).astype(np.uint8)
face = np.broadcast_to(ramp[:, None, None], (256, 256, 3)).copy()
face[::8] //= 2
shapes = []
for _ in range(3):
    enhanced = gfpgan.enhance(face) if args.enhancer == "gfpgan" else face
    shapes.append([list(enhanced.shape), str(enhanced.dtype), bool((enhanced == face).all())])
result = {"enhancer": args.enhancer, "faces": shapes}
pathlib.Path("result.json").write_text(json.dumps(result))
"""

ONNX_GFPGAN = """
class GFPGAN:
    def __init__(self, model_path="GFPGANv1.4.onnx", device="cpu"):
        raise FileNotFoundError(model_path)
"""

FLAGS = (
    *("--enable_gfpgan", "--gfpgan_model", "lite", "--gfpgan_backend", "torch"),
    *("--gfpgan_sharpness_gate", "false"),
)


@pytest.fixture
def wav2lip(tmp_path, monkeypatch):
    files = {
        "models/__init__.py": "from .wav2lip import Wav2Lip",
        "models/wav2lip.py": NETWORK,
        "inference.py": INFERENCE,
    }
    with host_folder(tmp_path, files, monkeypatch) as folder:
        yield folder


@pytest.fixture
def onnx_hq(tmp_path, monkeypatch):
    files = {"enhancers/GFPGAN/GFPGAN.py": ONNX_GFPGAN, "inference_onnxModel.py": ONNX_SCRIPT}
    with host_folder(tmp_path, files, monkeypatch) as folder:
        yield folder


def test_wav2lip_gets_its_faces_back_in_its_form(wav2lip, capsys):
    code, plain = run_host("inference.py")
    assert code == 0 and "nothing was restored" in capsys.readouterr().err
    code, rows = run_host("inference.py", *FLAGS)
    assert code == 0
    sizes = [[[4, 512, 512, 3], "float32"], [[2, 512, 512, 3], "float32"]]
    assert [row[:2] for row in rows] == sizes, "the host resizes, so that nothing is lost"
    for (_, _, red, edges), (_, _, plain_red, plain_edges) in zip(rows, plain, strict=True):
        assert abs(red - plain_red) <= 10, "the channels keep their places"
        assert edges != plain_edges
    assert "6 of 6 faces restored" in capsys.readouterr().err


@pytest.mark.parametrize(("size", "side"), [("same", 96), ("256", 256)])
def test_the_size_of_wav2lips_faces_can_be_set(wav2lip, size, side):
    _, rows = run_host("inference.py", *FLAGS, "--gfpgan_output_size", size)
    assert [row[0] for row in rows] == [[4, side, side, 3], [2, side, side, 3]]


def test_another_version_of_wav2lip_is_an_error_at_once(wav2lip, capsys):
    (wav2lip / "models/wav2lip.py").write_text(NETWORK.replace("Wav2Lip", "Generator"))
    assert run_host("inference.py", *FLAGS)[0] == 2
    assert "models.wav2lip has no Wav2Lip.forward" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--enhancer", "gfpgan"], ["--enhancer=gfpgan"]])
def test_onnx_hq_needs_no_weight_of_its_own_enhancer(onnx_hq, words, capsys):
    code, result = run_host("inference_onnxModel.py", *words, *FLAGS)
    assert code == 0 and result["enhancer"] == "gfpgan"
    assert result["faces"] == [[[256, 256, 3], "uint8", False]] * 3
    assert "3 of 3 faces restored" in capsys.readouterr().err


def test_onnx_hq_with_another_enhancer_is_refused(onnx_hq, capsys):
    assert run_host("inference_onnxModel.py", "--enhancer", "gpen", *FLAGS)[0] == 2
    assert "leave it out, or set --enhancer gfpgan" in capsys.readouterr().err


def test_onnx_hq_stays_as_it_is_without_our_flag(onnx_hq):
    code, result = run_host("inference_onnxModel.py")
    assert code == 0 and result["enhancer"] == "none"
    with pytest.raises(FileNotFoundError):
        run_host("inference_onnxModel.py", "--enhancer", "gfpgan")


def test_the_hosts_classes_are_put_back(wav2lip):
    run_host("inference.py", *FLAGS)
    import models.wav2lip as module
    import torch

    pred = module.Wav2Lip()(None, torch.zeros(1, 6, 96, 96))
    assert pred.shape == (1, 3, 96, 96) and np.isclose(pred[0, 2, 0, 0], 0.2)


@pytest.mark.parametrize("match", ["none", "source"])
def test_wav2lips_original_faces_are_sources(wav2lip, monkeypatch, match):
    from musetalk_enhance.hosts.lazy import LazyEnhancer

    sources, call = [], LazyEnhancer.__call__

    def noting(enhancer, frames, **hints):
        sources.append(hints.get("sources"))
        return call(enhancer, frames, **hints)

    monkeypatch.setattr(LazyEnhancer, "__call__", noting)
    assert run_host("inference.py", *FLAGS, "--gfpgan_match", match)[0] == 0
    shapes = [None if each is None else tuple(each.shape) for each in sources]
    assert shapes == ([None] * 2 if match == "none" else [(4, 3, 96, 96), (2, 3, 96, 96)])


def test_onnx_hq_with_match(onnx_hq, capsys):
    assert run_host("inference_onnxModel.py", *FLAGS, "--gfpgan_match", "source")[0] == 0
    assert "; 0 passed through" in capsys.readouterr().err
