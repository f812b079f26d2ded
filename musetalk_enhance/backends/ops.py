"""The few operations that face networks consist of, in torch; other runtimes record them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..frames.resize import resize
from . import polyphase

SLOPE = 0.2
"""Negative slope of every leaky ReLU of StyleGAN2 and of GFPGAN's U-Net."""


class Conv(nn.Module):
    """Weights of a convolution, 3x3 with padding 1 or 1x1, stride 1.

    Attributes:
        weight: (out, in, k, k).
        bias: (out,) or None.
        leaky: whether a leaky ReLU follows.
        slopes: (out,), negative slopes of a PReLU that follows, or None.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    slopes: torch.Tensor | None

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        leaky: bool = False,
        slopes: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.leaky = leaky
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.register_buffer("slopes", slopes)

    @classmethod
    def of(cls, layer: Any, leaky: bool = False) -> Conv:
        """From a `torch.nn.Conv2d`, sharing its tensors."""
        bias = None if layer.bias is None else layer.bias.detach()
        return cls(layer.weight.detach(), bias, leaky)

    @property
    def padding(self) -> int:
        """Zeros around the image: 1 for 3x3, 0 for 1x1."""
        return int(self.weight.shape[-1]) // 2


class Linear(nn.Module):
    """Weights of a fully connected layer: weight (out, in), bias (out,)."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    @classmethod
    def of(cls, layer: Any) -> Linear:
        """From a `torch.nn.Linear`, sharing its tensors."""
        return cls(layer.weight.detach(), layer.bias.detach())


class Modulated(Conv):
    """Weights of a modulated convolution and of what follows it.

    With style ``s = style_weight @ latent + style_bias`` and, with `squares`,
    ``d = rsqrt(squares @ s**2 + epsilon)``, it computes ``d * conv(s * x, weight) + noise + bias``,
    then a leaky ReLU if `leaky`. Scaling input and output gives the same number as scaling the
    weights (Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020,
    section 2.2) with one set of weights for the whole batch. Weights of each face's own, as one
    grouped convolution or face by face, were within 10 % of its speed on the CPUs measured.

    Attributes:
        style_weight, style_bias: (in, features), (in,).
        squares: (out, in), None without demodulation.
        noise: (1, 1, h, w), None without.
    """

    full_precision = ("style_weight", "style_bias", "squares")
    style_weight: torch.Tensor
    style_bias: torch.Tensor
    squares: torch.Tensor | None
    noise: torch.Tensor | None

    def __init__(
        self,
        weight: torch.Tensor,
        style_weight: torch.Tensor,
        style_bias: torch.Tensor,
        bias: torch.Tensor,
        squares: torch.Tensor | None = None,
        epsilon: float = 0.0,
        noise: torch.Tensor | None = None,
        leaky: bool = False,
    ) -> None:
        super().__init__(weight, bias, leaky)
        self.epsilon = epsilon
        for name, tensor in (
            ("style_weight", style_weight),
            ("style_bias", style_bias),
            ("squares", squares),
            ("noise", noise),
        ):
            self.register_buffer(name, tensor)

    def factors(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scales of the input (N, in) and the output (N, out) for latents (N, features), in fp32.

        With demodulation only the direction of the style matters; its largest entry is scaled to 1,
        so that half precision neither overflows nor loses the small ones.
        """
        style = functional.linear(latent.float(), self.style_weight, self.style_bias)
        if self.squares is None:
            return style, None
        peak = style.abs().amax(1, keepdim=True).clamp_min(1e-12)
        style = style / peak
        demodulation = functional.linear(style.square(), self.squares)
        return style, (demodulation + self.epsilon / peak.square()).rsqrt()


class Ops:
    """What a network may use, in eager torch and in the dtype of ``layer.weight``.

    A recorder for another runtime overrides every method. x is (N, C, h, w) throughout, whatever
    the runtime calls it.
    """

    def conv(self, x: Any, layer: Conv) -> Any:
        """Convolution, bias, and the leaky ReLU or PReLU of `layer`."""
        out = functional.conv2d(x, layer.weight, layer.bias, padding=layer.padding)
        if layer.slopes is not None:
            return functional.prelu(out, layer.slopes)
        return functional.leaky_relu_(out, SLOPE) if layer.leaky else out

    def modulated(self, x: Any, latent: Any, layer: Modulated, enlarge: bool = False) -> Any:
        """Modulated convolution of x, or of x enlarged twofold (bilinear)."""
        style, demodulation = layer.factors(latent)
        assert layer.bias is not None
        x = x * style.to(x.dtype)[:, :, None, None]
        out = functional.conv2d(self.up2(x) if enlarge else x, layer.weight, padding=layer.padding)
        if demodulation is not None:
            out = out * demodulation.to(out.dtype)[:, :, None, None]
        if layer.noise is not None:
            out = out + layer.noise
        out = out + layer.bias[:, None, None]
        return functional.leaky_relu_(out, SLOPE) if layer.leaky else out

    def linear(self, x: Any, layer: Linear) -> Any:
        """(N, in) to (N, out)."""
        return functional.linear(x, layer.weight, layer.bias)

    def flatten(self, x: Any) -> Any:
        """(N, C, h, w) to (N, C * h * w)."""
        return x.flatten(1)

    def split(self, x: Any, size: int) -> list[Any]:
        """(N, n * size) to n times (N, size)."""
        return list(torch.split(x, size, 1))

    def constant(self, value: torch.Tensor, like: Any) -> Any:
        """(1, C, h, w) for each face of `like`."""
        return value.expand(like.shape[0], -1, -1, -1)

    def up2(self, x: Any) -> Any:
        """Twice the size, bilinear, pixel centers at half."""
        return functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)

    def down2(self, x: Any) -> Any:
        """Half the size, bilinear, pixel centers at half: the mean of 2x2."""
        return functional.avg_pool2d(x, 2)

    def log(self, x: Any, floor: float) -> Any:
        """Natural logarithm of ``x + floor``."""
        return (x + floor).log()

    def add(self, a: Any, b: Any) -> Any:
        """Sum of two tensors of one shape."""
        return a + b

    def half_affine(self, x: Any, scale: Any, shift: Any) -> Any:
        """``x * scale + shift`` for the second half of the channels; the first half stays."""
        same, changed = torch.split(x, x.shape[1] // 2, 1)
        return torch.cat([same, changed * scale + shift], 1)

    def crop(self, x: Any, rows: int) -> Any:
        """x without its first `rows` rows."""
        return x[:, :, rows:] if rows else x

    def pad_edge(self, x: Any, top: int, bottom: int, left: int, right: int) -> Any:
        """x continued by copies of its outermost pixels."""
        return functional.pad(x, (left, right, top, bottom), mode="replicate")

    def cut(self, x: Any, top: int, bottom: int, left: int, right: int) -> Any:
        """x without its outermost rows and columns."""
        return x[:, :, top : -bottom or None, left : -right or None]

    def unshuffle2(self, x: Any) -> Any:
        """(N, C, 2h, 2w) to (N, 4C, h, w), as `torch.nn.functional.pixel_unshuffle`."""
        return functional.pixel_unshuffle(x, 2)

    def shuffle2(self, x: Any) -> Any:
        """(N, 4C, h, w) to (N, C, 2h, 2w), as `torch.nn.functional.pixel_shuffle`."""
        return functional.pixel_shuffle(x, 2)

    def bicubic2(self, x: Any) -> Any:
        """Twice the size, bicubic (A = -0.75), pixel centers at half."""
        if torch.onnx.is_in_onnx_export():  # other runtimes are faster that way
            return polyphase.bicubic2(x)
        if type(x) is torch.Tensor and not torch._C._get_tracing_state():
            return resize(x, (2 * int(x.shape[2]), 2 * int(x.shape[3])))
        return functional.interpolate(x, scale_factor=2.0, mode="bicubic", align_corners=False)

    def rows_below(self, x: Any, first: int, keep: int) -> Any:
        """x, whose first row is row `first`, as a whole image: copies of row `keep` above that.

        A resize reads across that edge: what it finds there must be like what is missing.
        """
        if not first and not keep:
            return x
        rest = x[:, :, keep - first :]
        return torch.cat([rest[:, :, :1].expand(-1, -1, keep, -1), rest], 2)


TORCH = Ops()
"""What networks use in their ``forward``; it has no state."""
