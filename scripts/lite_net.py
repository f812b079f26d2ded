"""The network of the second lite: 256 px in, 512 px out, at a quarter of the input's resolution.

`LiteNet` is what is trained. `compute` says the same in terms of `musetalk_enhance.backends.ops`,
for a restorer to run on every backend.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musetalk_enhance.backends.ops import SLOPE, Conv, Ops

PADDING = 4
"""Copies of the outermost pixels around the input; 256 px stay a multiple of 8."""


SCALE = 1 / 16
"""Of the last layer: what is added to bicubic is a few gray levels."""


class Layer(nn.Module):
    """Convolution, 3x3 or 1x1, and a leaky ReLU where ``leaky`` asks for it.

    Slopes are fixed: with a PReLU in its place a step of training takes a third longer on a CPU.
    In training the weight is the sum of a 3x3 kernel, a 1x1 kernel and a scaled identity, which is
    one kernel again in inference (`kernel`). ``scale`` multiplies all of it: what a step of Adam
    changes is small beside the weights of a layer only if these are not small themselves.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int = 3,
        leaky: bool = False,
        gain: float = 1.0,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(outputs, inputs, size, size))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.kaiming_normal_(self.weight, a=SLOPE if leaky else 1.0)
        with torch.no_grad():
            self.weight.mul_(gain)
        self.point = nn.Parameter(torch.zeros(outputs, inputs, 1, 1)) if size == 3 else None
        self.leaky = leaky

    def kernel(self) -> Tensor:
        """The kernel of all branches together."""
        if self.point is None:
            return self.weight
        return self.weight + F.pad(self.point, (1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """float (N, C, h, w) to (N, outputs, h, w)."""
        kernel, bias = self.scale * self.kernel(), self.scale * self.bias
        out = F.conv2d(x, kernel, bias, padding=self.weight.shape[-1] // 2)
        return F.leaky_relu(out, SLOPE) if self.leaky else out

    def fused(self) -> Conv:
        """For inference."""
        kernel, bias = self.scale * self.kernel(), self.scale * self.bias
        return Conv(kernel.detach().clone(), bias.detach().clone(), self.leaky)


class LiteNet(nn.Module):
    """Residual over a bicubic enlargement.

    A body at a quarter of the input's resolution (two unshuffles) with one branch at an eighth,
    whose reach tells a decoder's softness from that of a resize; a skip and two layers at half.

    Args:
        width: channels of the body, a multiple of 4.
        blocks: residual blocks of two 3x3 convolutions.
        wide: channels at an eighth of the resolution; 0 leaves the branch out.
    """

    def __init__(self, width: int = 96, blocks: int = 4, wide: int = 96) -> None:
        super().__init__()
        half = width // 4
        self.shape = {"width": width, "blocks": blocks, "wide": wide}
        self.head = Layer(48, width, leaky=True, gain=2.0)
        self.first: Any = nn.ModuleList(Layer(width, width, leaky=True) for _ in range(blocks))
        self.second: Any = nn.ModuleList(Layer(width, width, gain=0.2) for _ in range(blocks))
        self.context: Any = nn.ModuleList()
        if wide:
            self.context.append(Layer(4 * width, wide, 1))
            self.context.extend(Layer(wide, wide, leaky=True) for _ in range(2))
            self.context.append(Layer(wide, 4 * width, 1, gain=0.2))
        self.skip = Layer(12, half, leaky=True)
        self.mix = Layer(half, half, leaky=True)
        self.tail = Layer(half, 48, gain=0.0, scale=SCALE)
        with torch.no_grad():  # mid gray at zero
            self.head.bias.copy_(-0.5 * self.head.weight.sum((1, 2, 3)))

    def forward(self, faces_rgb: Tensor) -> Tensor:
        """float (N, 3, H, W), RGB, 0..1, to (N, 3, 2H, 2W), not clamped; H and W multiples of 8."""
        half = F.pixel_unshuffle(F.pad(faces_rgb, (PADDING,) * 4, mode="replicate"), 2)
        half = half.contiguous(memory_format=torch.channels_last)
        x = self.head(F.pixel_unshuffle(half, 2))
        for index, (first, second) in enumerate(zip(self.first, self.second, strict=True)):
            x = x + second(first(x))
            if index == 0 and len(self.context):
                wide = F.pixel_unshuffle(x, 2)
                for layer in self.context:
                    wide = layer(wide)
                x = x + F.pixel_shuffle(wide, 2)
        x = self.tail(self.mix(F.pixel_shuffle(x, 2) + self.skip(half)))
        rim = slice(2 * PADDING, -2 * PADDING)
        detail = F.pixel_shuffle(F.pixel_shuffle(x, 2), 2)[..., rim, rim].float()
        return (
            F.interpolate(faces_rgb, scale_factor=2.0, mode="bicubic", align_corners=False) + detail
        )

    def reach(self) -> int:
        """Pixels of the input that an output pixel sees on each side, at most."""
        body = 4 * (1 + 2 * len(self.first)) + 4
        return body + 4 + (8 * 2 + 8 if len(self.context) else 0)

    def macs(self, side: int = 256) -> int:
        """Multiplications for one face, padding included."""
        total, padded = 0, side + 2 * PADDING
        for name, layer in self.named_modules():
            if isinstance(layer, Layer):
                shrink = 2 if name in ("skip", "mix", "tail") else 8 if "context" in name else 4
                total += layer.weight.numel() * (padded // shrink) ** 2
        return total


def compute(net: LiteNet, ops: Ops, faces_rgb: Any) -> Any:
    """`LiteNet` as `Ops` run it: what a restorer's network will be."""
    half = ops.unshuffle2(ops.pad_edge(faces_rgb, PADDING, PADDING, PADDING, PADDING))
    x = ops.conv(ops.unshuffle2(half), net.head.fused())
    for index, (first, second) in enumerate(zip(net.first, net.second, strict=True)):
        x = ops.add(x, ops.conv(ops.conv(x, first.fused()), second.fused()))
        if index == 0 and len(net.context):
            wide = ops.unshuffle2(x)
            for layer in net.context:
                wide = ops.conv(wide, layer.fused())
            x = ops.add(x, ops.shuffle2(wide))
    x = ops.add(ops.shuffle2(x), ops.conv(half, net.skip.fused()))
    x = ops.conv(ops.conv(x, net.mix.fused()), net.tail.fused())
    rim = 2 * PADDING
    detail = ops.cut(ops.shuffle2(ops.shuffle2(x)), rim, rim, rim, rim)
    return ops.add(ops.bicubic2(faces_rgb), detail)
