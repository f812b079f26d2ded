"""POST /generate with a tiny, randomly initialised Stable Diffusion pipeline."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from tests.diffusion import stable_diffusion
from tests.serve.conftest import decoded

BODY = {"prompt": "a face", "width": 64, "height": 64, "num_inference_steps": 2, "seed": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline of the published layout with random weights, saved as diffusers saves it."""
    path = tmp_path_factory.mktemp("sd")
    pipeline = stable_diffusion(path)
    pipeline.save_pretrained(path / "pipeline")
    return path / "pipeline"


def test_without_a_model_it_is_501_with_the_reason(serve):
    with serve() as client:
        answer = client.post("/generate", json=BODY)
        assert (
            answer.status_code == 501 and "--diffusers-model" in answer.json()["error"]["message"]
        )
        assert client.post("/generate", json={**BODY, "width": 65}).status_code == 422
        assert client.post("/generate", json={**BODY, "prompt": ""}).status_code == 422


@pytest.mark.filterwarnings("ignore")  # of diffusers and transformers about themselves
def test_an_image_from_text_twice_the_same_and_larger_with_hires_fix(serve, folder):
    with serve(diffusers_model=str(folder), time_limit=120) as client:
        client.timeout = 120
        first, second, other, large = (
            client.post("/generate", json={**BODY, **change}).json()
            for change in ({}, {}, {"seed": 4}, {"hires_fix": True, "use_face_restoration": False})
        )
    assert first["size_wh"] == [64, 64] and large["size_wh"] == [96, 96]
    assert first["image"] == second["image"] != other["image"]
    image = decoded(base64.b64decode(first["image"]))
    assert image.shape == (64, 64, 3) and np.ptp(image) > 10
    assert first["restoration"]["model"] == "lite" and first["timings_ms"]["generate"] > 0
    assert not large["restoration"]["face_restoration_applied"]


def test_a_folder_without_a_model_is_501_and_shows_no_path(serve, tmp_path):
    pytest.importorskip("diffusers")
    with serve(diffusers_model=str(tmp_path / "nothing")) as client:
        answer = client.post("/generate", json=BODY)
    assert answer.status_code == 501 and str(tmp_path) not in answer.text
