"""Tiny diffusers pipelines with random weights, built as diffusers' own tests build theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch


def stable_diffusion(folder: Path) -> Any:
    """A text-to-image pipeline; `folder` is for the tokenizer's files."""
    diffusers = pytest.importorskip("diffusers")
    return diffusers.StableDiffusionPipeline(
        unet=_unet(diffusers),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **_parts(diffusers, folder),
    )


def animate_diff(folder: Path) -> Any:
    """A text-to-video pipeline."""
    diffusers = pytest.importorskip("diffusers")
    parts = _parts(diffusers, folder)
    adapter = diffusers.MotionAdapter(
        block_out_channels=(8, 8),
        motion_layers_per_block=1,
        motion_norm_num_groups=2,
        motion_num_attention_heads=2,
    )
    return diffusers.AnimateDiffPipeline(unet=_unet(diffusers), motion_adapter=adapter, **parts)


def _unet(diffusers: Any) -> Any:
    return diffusers.UNet2DConditionModel(
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
    )


def _parts(diffusers: Any, folder: Path) -> dict[str, Any]:
    """Autoencoder, text encoder, tokenizer and scheduler."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    words = ["<|startoftext|>", "<|endoftext|>", "a</w>", "face</w>", "f", "a", "c", "e</w>"]
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
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
    return {
        "vae": diffusers.AutoencoderKL(
            block_out_channels=(8, 8),
            norm_num_groups=4,
            latent_channels=4,
            layers_per_block=1,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        ),
        "text_encoder": transformers.CLIPTextModel(text_config),
        "tokenizer": transformers.CLIPTokenizer(str(vocabulary), str(merges), model_max_length=77),
        "scheduler": diffusers.DDIMScheduler(num_train_timesteps=50),
    }
