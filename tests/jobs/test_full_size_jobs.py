"""Whole jobs with full-size random GFPGAN and RestoreFormer: what is written is what the published
network says."""

from __future__ import annotations

import shutil

import cv2
import numpy as np
import pytest
import torch

from musetalk_enhance.faces.detect import YuNet
from musetalk_enhance.faces.paste import Paste, crop_face, paste_faces
from musetalk_enhance.jobs import ImageSettings, VideoSettings, restore_images, restore_video
from musetalk_enhance.media import read_frames
from scripts.benchmarks.checkpoints import architecture
from tests.restorers.conftest import checkpoint  # noqa: F401 - a fixture

from .conftest import read

YUNET = "face_detection_yunet_2023mar.onnx"
OPTIONS = {"color_match": False, "guard": False, "sharpness_gate": False, "trust_unpinned": True}
OPTIONS |= {"backend": "torch", "dtype": "fp32", "device": "cpu"}


def published(arch: str, path, face_bgr: np.ndarray) -> np.ndarray:
    """BGR uint8 (512, 512, 3) through the official network, its noise that of the checkpoint."""
    network = architecture(arch).eval()
    network.load_state_dict(torch.load(path, weights_only=True)["params_ema"], assign=True)
    inputs = torch.from_numpy(face_bgr[..., ::-1].copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    options = {} if arch == "RestoreFormer" else {"return_rgb": False, "randomize_noise": False}
    with torch.no_grad():
        made = network(inputs, **options)[0][0]
    rgb = ((made.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    return rgb[..., ::-1].copy()


@pytest.mark.long
@pytest.mark.shared
@pytest.mark.parametrize("arch", ["clean", "RestoreFormer"])
def test_a_portrait_gets_the_face_that_the_published_network_makes(
    shared,
    checkpoint,  # noqa: F811
    tmp_path,
    arch,
):
    path, source = checkpoint(arch), tmp_path / "in"
    source.mkdir()
    shutil.copy(shared / "data" / "portraits" / "s5.jpg", source)
    yunet = shared / "weights" / YUNET
    settings = ImageSettings(
        model_path=str(path),
        arch=arch,
        detector_path=str(yunet),
        face_mask="feathered",
        format="png",
        **OPTIONS,
    )
    result = restore_images(source, tmp_path / "out", settings)
    assert result.stats["faces"]["restored"] == 1 and result.errors == 0
    expected = cv2.imread(str(source / "s5.jpg"))
    (face,) = YuNet(yunet, max_side=1280, least_face=settings.min_face).detect(expected)
    cut = crop_face(expected, face.landmarks)
    paste_faces(expected, [Paste(cut, published(arch, path, cut.aligned))])
    found = read(tmp_path / "out" / "restored" / "s5.png")
    off = np.abs(found.astype(int) - expected)
    print(f"{arch}: {off.max()}/255 at most, {off.mean():.5f} on average")
    assert off.max() <= 2 and off.mean() < 0.05


@pytest.mark.long
@pytest.mark.shared
def test_a_film_with_full_size_gfpgan(shared, checkpoint, tmp_path):  # noqa: F811
    clip, out = shared / "data" / "clips" / "d9.mp4", tmp_path / "out.mp4"
    settings = VideoSettings(
        model_path=str(checkpoint("clean")),
        detector_path=str(shared / "weights" / YUNET),
        stability=0,
        **OPTIONS,
    )
    made = restore_video(clip, out, settings, end=0.2)
    assert (
        made.stats["totals"]["faces_restored"] == made.stats["totals"]["frames"] >= 5
        and made.errors == 0
    )
    for before, after in zip(read_frames(clip), read_frames(out), strict=False):
        change = np.abs(before.astype(int) - after).mean(axis=2)
        assert change[200:300, 200:300].mean() > 10 * change[:, :8].mean()
