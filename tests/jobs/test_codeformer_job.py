"""A whole job with a full-size random CodeFormer: what is written is what the published network says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from musetalk_enhance.jobs import ImageSettings, restore_images
from musetalk_enhance.pictures import Picture, encode_picture

pytest.importorskip("spandrel_extra_arches")

from tests.restorers.conftest import pictures, to_bgr  # noqa: E402
from tests.restorers.test_codeformer import random_codeformer  # noqa: E402

from .conftest import read  # noqa: E402

OPTIONS = {"arch": "CodeFormer", "face_detector": "none", "color_match": False, "trust_unpinned": True}
OPTIONS |= {"backend": "torch", "dtype": "fp32", "device": "cpu"}


@pytest.mark.slow
def test_fidelity_and_strength_change_pixels_as_the_published_network_says(tmp_path):
    from musetalk_enhance.restorers import codeformer

    state = random_codeformer()
    torch.save({"params_ema": state}, tmp_path / "codeformer.pth")
    network = codeformer.imported()().eval()
    network.load_state_dict(state)
    faces = pictures(2)
    source = tmp_path / "in"
    source.mkdir()
    for index, face in enumerate(faces):
        (source / f"{index}.png").write_bytes(encode_picture(Picture(to_bgr(face)), ".png"))

    def made(**options) -> np.ndarray:
        output = tmp_path / "-".join(map(str, options.values()))
        settings = ImageSettings(model_path=str(tmp_path / "codeformer.pth"), **OPTIONS, **options)
        result = restore_images(source, output, settings)
        assert result.stats["model_that_ran"]["fidelity"] == options["fidelity"] and result.errors == 0
        assert result.stats["faces"]["restored"] == 2
        return np.stack([read(output / "restored" / f"{index}.png").astype(float) for index in range(2)])

    def published(fidelity: float) -> np.ndarray:
        with torch.no_grad():
            out = torch.cat([network(face[None] * 2 - 1, weight=fidelity)[0] for face in faces])
        values = ((out + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).numpy()[..., ::-1] * 255
        return values

    expected = {fidelity: published(fidelity) for fidelity in (0.3, 0.9)}
    found = {fidelity: made(fidelity=fidelity) for fidelity in (0.3, 0.9)}
    for fidelity, picture in expected.items():
        off = np.abs(found[fidelity] - picture.round()).max()
        print(f"fidelity {fidelity}: {off:g}/255 at most")
        assert off <= 1
    given = np.stack([to_bgr(face).astype(float) for face in faces])
    assert np.abs(found[0.3] - found[0.9]).mean() > 2 and np.abs(found[0.3] - given).mean() > 10
    half = made(fidelity=0.9, strength=0.5)
    assert np.abs(half - ((expected[0.9] + given) / 2).round()).max() <= 1
