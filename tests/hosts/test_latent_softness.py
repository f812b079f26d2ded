"""Faces that a real latent decoder makes are restored in full in a host, with the defaults."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from musetalk_enhance import GFPGANEnhancer, attach
from musetalk_enhance.cli import main
from musetalk_enhance.hosts import script as runner
from musetalk_enhance.media import read_frames, read_image
from musetalk_enhance.pipeline.stats import EnhancerStats, counted
from tests.pictures import to_faces, to_frames

pytestmark = [pytest.mark.shared, pytest.mark.slow]

PEOPLE = ("d3.mp4", "d9.mp4", "vr3.mp4", "s42.jpg")
LEAST_STRENGTH = 0.95
COUNT = 4

VAE = """
import numpy as np
class VAE:
    def decode_latents(self, latents):
        return np.load("soft.npy")[..., ::-1][..., ::-1]
"""
SCRIPT = "from musetalk.models.vae import VAE\nVAE().decode_latents(None)\n"


def frames_of(shared: Path, name: str) -> list[np.ndarray]:
    """Frames of a clip a second apart, or a still picture."""
    if name.endswith(".jpg"):
        return [read_image(shared / "data" / "portraits" / name)]
    return list(islice(read_frames(shared / "data" / "clips" / name), 0, 25 * COUNT, 25))[:COUNT]


def face_crop(frame: np.ndarray, detector: cv2.FaceDetectorYN) -> np.ndarray:
    """The face as MuseTalk crops it, BGR uint8 (256, 256, 3)."""
    detector.setInputSize(frame.shape[1::-1])
    x, y, width, height = detector.detect(frame)[1][0][:4]
    rows = slice(max(0, round(y + 0.08 * height)), round(y + height))
    columns = slice(max(0, round(x)), round(x + width))
    return cv2.resize(frame[rows, columns], (256, 256), interpolation=cv2.INTER_AREA)


@pytest.fixture(scope="module", params=PEOPLE)
def sharp(request, shared) -> np.ndarray:
    """Face crops of one person, BGR uint8 (N, 256, 256, 3)."""
    weight = shared / "weights" / "face_detection_yunet_2023mar.onnx"
    detector = cv2.FaceDetectorYN.create(str(weight), "", (320, 320), 0.6)
    return np.stack([face_crop(frame, detector) for frame in frames_of(shared, request.param)])


@pytest.fixture(scope="module", params=[(0.35, 0.1), (0.5, 0.0)], ids=["0.35,0.1", "0.5,0"])
def soft(request, sharp, latent_decoder) -> np.ndarray:
    """The same crops as a latent decoder hands them out."""
    generator = torch.Generator().manual_seed(0)
    return to_frames(latent_decoder(to_faces(sharp), *request.param, generator=generator))


def check(stats: EnhancerStats, count: int) -> None:
    assert stats.restored == stats.frames == count, stats.summary()
    assert stats.mean_strength >= LEAST_STRENGTH, stats.summary()
    assert stats.warning() is None


def test_a_plain_call(soft, sharp):
    with GFPGANEnhancer(model="lite", device="cpu", backend="torch") as enhancer:
        out = enhancer(soft)
        check(enhancer.stats, len(soft))
    assert all((after != before).any() for after, before in zip(out, soft, strict=True))


def test_attach(soft):
    class Decoder:
        def decode_latents(self, latents: np.ndarray) -> np.ndarray:
            return latents

    decoder = Decoder()
    with GFPGANEnhancer(model="lite", device="cpu", backend="torch") as enhancer:
        with attach(decoder, enhancer):
            decoder.decode_latents(soft)
        check(enhancer.stats, len(soft))


def test_run(soft, tmp_path, monkeypatch, capsys):
    """`musetalk-enhance run` on a host in miniature, and its closing line."""
    for name, text in {"musetalk/models/vae.py": VAE, "scripts/inference.py": SCRIPT}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    np.save(tmp_path / "soft.npy", soft)
    monkeypatch.chdir(tmp_path)
    ran: list[GFPGANEnhancer] = []
    run_script = runner.run_script

    def keep(*words, **options) -> GFPGANEnhancer:
        ran.append(run_script(*words, **options))
        return ran[0]

    monkeypatch.setattr(runner, "run_script", keep)
    for name in [name for name in sys.modules if name.split(".")[0] == "musetalk"]:
        monkeypatch.delitem(sys.modules, name)
    words = ["--gfpgan_model", "lite", "--gfpgan_backend", "torch"]
    code = main(["run", "scripts/inference.py", "--enable_gfpgan", *words])
    for name in [name for name in sys.modules if name.split(".")[0] == "musetalk"]:
        del sys.modules[name]
    assert code == 0
    check(ran[0].stats, len(soft))
    count = len(soft)
    assert f"{count} of {counted(count, 'face')} restored, by " in capsys.readouterr().err
