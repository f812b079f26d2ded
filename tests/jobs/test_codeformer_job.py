"""A whole job with a full-size random CodeFormer: what is written is what the published network
says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from musetalk_enhance.jobs import ImageSettings, restore_images
from musetalk_enhance.media.image import StillImage, encode_image

pytest.importorskip("spandrel_extra_arches")

from tests.restorers.conftest import pictures, to_bgr  # noqa: E402
from tests.restorers.test_codeformer import random_codeformer  # noqa: E402

from .conftest import read  # noqa: E402

OPTIONS = {"arch": "CodeFormer", "face_detector": "none", "color_match": False}
OPTIONS |= {"backend": "torch", "dtype": "fp32", "device": "cpu"}


@pytest.fixture
def remembered(monkeypatch):
    """The same face with the same fidelity is not computed twice: a run of this network takes many
    seconds."""
    from musetalk_enhance.restorers.codeformer import CodeFormerRestorer

    known, restore = {}, CodeFormerRestorer.restore

    def once(restorer, faces_rgb):
        key = restorer.request.settings.fidelity, faces_rgb.numpy().tobytes()
        if key not in known:
            known[key] = restore(restorer, faces_rgb)
        return known[key].clone()

    monkeypatch.setattr(CodeFormerRestorer, "restore", once)


@pytest.mark.slow
def test_fidelity_and_strength_change_pixels_as_the_published_network_says(tmp_path, remembered):
    from musetalk_enhance.restorers import codeformer

    state = random_codeformer()
    save_file(
        {key: tensor.contiguous() for key, tensor in state.items()},
        tmp_path / "codeformer.safetensors",
    )
    network = codeformer.import_network()().eval()
    network.load_state_dict(state)
    face = pictures(1)
    source = tmp_path / "in"
    source.mkdir()
    (source / "a.png").write_bytes(encode_image(StillImage(to_bgr(face[0])), ".png"))

    def made(**options) -> np.ndarray:
        output = tmp_path / "-".join(map(str, options.values()))
        settings = ImageSettings(
            model_path=str(tmp_path / "codeformer.safetensors"), **OPTIONS, **options
        )
        result = restore_images(source, output, settings)
        assert (
            result.stats["model_that_ran"]["fidelity"] == options["fidelity"] and result.errors == 0
        )
        assert result.stats["faces"]["restored"] == 1
        return read(output / "restored" / "a.png").astype(float)

    def published(fidelity: float) -> np.ndarray:
        with torch.no_grad():
            out = network(face * 2 - 1, weight=fidelity)[0][0]
        return ((out + 1) / 2).permute(1, 2, 0).numpy()[..., ::-1] * 255

    expected = {fidelity: published(fidelity) for fidelity in (0.3, 0.9)}
    found = {fidelity: made(fidelity=fidelity) for fidelity in (0.3, 0.9)}
    for fidelity, picture in expected.items():
        off = np.abs(found[fidelity] - picture.clip(0, 255).round()).max()
        print(f"fidelity {fidelity}: {off:g}/255 at most")
        assert off <= 1
    given = to_bgr(face[0]).astype(float)
    assert np.abs(found[0.3] - found[0.9]).mean() > 2 and np.abs(found[0.3] - given).mean() > 10
    half = made(fidelity=0.9, strength=0.5)
    blend = given + (expected[0.9] - given).clip(-255, 255) / 2
    assert np.abs(half - blend.clip(0, 255).round()).max() <= 1
