"""A network of GPEN's published layout with random weights, for its cost and its interface.

Yang et al., "GAN Prior Embedded Network for Blind Face Restoration in the Wild", CVPR 2021: an
encoder whose features at every size are the noise of a StyleGAN2, joined to it as channels.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import conv2d, conv_transpose2d, interpolate, leaky_relu, linear

STYLE = 512


def channels(size: int) -> int:
    """Feature maps at a size, of the file for 256 px (half the width of the one for 512)."""
    return {4: 256, 8: 256, 16: 256, 32: 256, 64: 128, 128: 64, 256: 32}[size]


def random(*shape: int) -> nn.Parameter:
    """Weights that keep the variance."""
    return nn.Parameter(torch.randn(shape) / math.sqrt(math.prod(shape[1:])), False)


class StyledConv(nn.Module):
    """A modulated convolution of one face, with the encoder's features beside its result."""

    def __init__(self, inputs: int, outputs: int, side: int = 3, *, up: bool = False) -> None:
        super().__init__()
        self.weight, self.style = random(outputs, inputs, side, side), random(inputs, STYLE)
        self.up, self.is_rgb = up, side == 1

    def forward(self, x: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        weight = self.weight * (linear(style, self.style) + 1).reshape(1, -1, 1, 1)
        if self.is_rgb:
            return conv2d(x, weight)
        weight = weight * torch.rsqrt(weight.square().sum((1, 2, 3), keepdim=True) + 1e-8)
        if self.up:
            x = conv_transpose2d(x, weight.transpose(0, 1), stride=2)[..., :-1, :-1]
        else:
            x = conv2d(x, weight, padding=1)
        return leaky_relu(x, 0.2) * math.sqrt(2)


class Gpen(nn.Module):
    """float32 (1, 3, 256, 256), RGB, -1..1, to the same; 18.9 million weights."""

    def __init__(self, size: int = 256) -> None:
        super().__init__()
        self.sizes = [4 * 2**step for step in range(size.bit_length() - 2)]
        first, *rest = reversed(self.sizes)
        self.first = random(channels(first), 3, 1, 1)
        self.encoder = nn.ParameterList(
            random(channels(side), channels(2 * side), 3, 3) for side in rest
        )
        self.latent = random(STYLE, 16 * channels(4))
        self.mapping = nn.ParameterList(random(STYLE, STYLE) for _ in range(8))
        self.constant = nn.Parameter(torch.randn(1, channels(4), 4, 4), False)
        self.start = StyledConv(channels(4), channels(4))
        self.rgb = nn.ModuleList(StyledConv(2 * channels(side), 3, 1) for side in self.sizes)
        self.up, self.same = nn.ModuleList(), nn.ModuleList()
        for side in self.sizes[1:]:
            self.up.append(StyledConv(2 * channels(side // 2), channels(side), up=True))
            self.same.append(StyledConv(2 * channels(side), channels(side)))

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        x = leaky_relu(conv2d(faces, self.first), 0.2)
        noise = [x]
        for weight in self.encoder:
            x = leaky_relu(conv2d(x, weight, stride=2, padding=1), 0.2)
            noise.insert(0, x)
        style = linear(x.flatten(1), self.latent)
        for weight in self.mapping:
            style = leaky_relu(linear(style, weight), 0.2)
        x = torch.cat((self.start(self.constant, style), noise[0]), 1)
        image = self.rgb[0](x, style)
        layers = zip(self.up, self.same, self.rgb[1:], noise[1:], strict=True)
        for up, same, rgb, beside in layers:
            x = torch.cat((up(x, style), beside), 1)
            x = torch.cat((same(x, style), beside), 1)
            image = rgb(x, style) + interpolate(image, scale_factor=2.0, mode="bilinear")
        return torch.tanh(image)


def save_gpen(path: Path, seed: int = 0) -> Gpen:
    """Write the file for 256 px with the published names and a batch fixed at 1."""
    import warnings

    torch.manual_seed(seed)
    network = Gpen().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        torch.onnx.export(
            network,
            (torch.zeros(1, 3, 256, 256),),
            str(path),
            input_names=["input"],
            output_names=["output"],
            opset_version=11,
            dynamo=False,
        )
    return network
