"""A modulated convolution is the published one; what needs fp32 stays fp32."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from musetalk_enhance.backends.ops import TORCH, Modulated
from musetalk_enhance.backends.torch_backend import cast


def layer(squares: bool = True, size: int = 3) -> Modulated:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    weight = draw(6, 4, size, size)
    return Modulated(
        weight,
        draw(4, 5),
        draw(4),
        bias=draw(6),
        squares=weight.square().sum((2, 3)) if squares else None,
        epsilon=1e-8,
        noise=draw(1, 1, 8, 8) if squares else None,
        leaky=squares,
    )


def by_the_book(x, latent, part, enlarge):
    """Face by face, weights first, as in StyleGAN2's paper."""
    out = []
    for face, code in zip(x, latent, strict=True):
        weight = part.weight * (part.style_weight @ code + part.style_bias)[None, :, None, None]
        if part.squares is not None:
            weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + part.epsilon).sqrt()
        face = face[None]
        if enlarge:
            face = functional.interpolate(
                face, scale_factor=2, mode="bilinear", align_corners=False
            )
        value = functional.conv2d(face, weight, padding=part.padding)
        if part.noise is not None:
            value = value + part.noise
        value = value + part.bias[:, None, None]
        out.append(functional.leaky_relu(value, 0.2) if part.leaky else value)
    return torch.cat(out)


@pytest.mark.parametrize("enlarge", [False, True])
@pytest.mark.parametrize("part", [layer(), layer(squares=False, size=1)], ids=["style", "rgb"])
def test_it_is_the_published_number(enlarge, part):
    side = 4 if enlarge else 8
    x, latent = torch.randn(3, 4, side, side), torch.randn(3, 5)
    assert torch.allclose(
        TORCH.modulated(x, latent, part, enlarge), by_the_book(x, latent, part, enlarge), atol=1e-5
    )


def test_styles_too_large_and_too_small_for_half_precision_survive_it():
    part = layer()
    latent = torch.randn(2, 5)
    x = torch.randn(2, 4, 8, 8)
    for size in (1e-6, 1e6):
        part.style_bias.mul_(0)
        expected = TORCH.modulated(x, latent * size, part)
        half = cast(layer(), torch.bfloat16)
        half.style_bias.mul_(0)
        got = TORCH.modulated(x.bfloat16(), latent * size, half)
        assert torch.isfinite(got).all()
        assert float((got.float() - expected).norm() / expected.norm()) < 0.03  # 8 bits of mantissa


def test_casting_keeps_what_a_module_wants_in_fp32():
    part = cast(layer(), torch.float16)
    assert part.weight.dtype == part.bias.dtype == torch.float16
    assert part.style_weight.dtype == part.squares.dtype == torch.float32
