"""POST /generate with a tiny, randomly initialised Stable Diffusion pipeline."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
import torch

from tests.serve.conftest import decoded

BODY = {"prompt": "a face", "width": 64, "height": 64, "num_inference_steps": 2, "seed": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline of the published layout with random weights, saved as diffusers saves it."""
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("sd")
    torch.manual_seed(0)
    words = ["<|startoftext|>", "<|endoftext|>", "a</w>", "face</w>", "f", "a", "c", "e</w>"]
    vocabulary, merges = path / "vocab.json", path / "merges.txt"
    vocabulary.write_text(json.dumps({word: index for index, word in enumerate(words)}))
    merges.write_text("#version: 0.2\n")
    text_config = transformers.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        projection_dim=16,
    )
    pipeline = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(
            block_out_channels=(8, 8),
            norm_num_groups=4,
            latent_channels=4,
            layers_per_block=1,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        ),
        text_encoder=transformers.CLIPTextModel(text_config),
        tokenizer=transformers.CLIPTokenizer(str(vocabulary), str(merges), model_max_length=77),
        unet=diffusers.UNet2DConditionModel(
            block_out_channels=(8, 8),
            norm_num_groups=4,
            layers_per_block=1,
            sample_size=32,
            in_channels=4,
            out_channels=4,
            cross_attention_dim=16,
            attention_head_dim=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ),
        scheduler=diffusers.DDIMScheduler(num_train_timesteps=50),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
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
