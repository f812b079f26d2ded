"""The few operations that face networks are made of, as torch runs them and as other runtimes record them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from . import polyphase

SLOPE = 0.2
"""Negative slope of every leaky ReLU of StyleGAN2 and of GFPGAN's U-Net."""

FORMS = ("scale", "grouped", "folded")
"""Ways of computing a modulated convolution: the same number, at different speed (see `TorchOps`)."""


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
        """From a `torch.nn.Conv2d`, whose tensors are taken over."""
        return cls(layer.weight.detach(), None if layer.bias is None else layer.bias.detach(), leaky)

    @property
    def padding(self) -> int:
        """Zeros around the picture: 1 for 3x3, 0 for 1x1."""
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
        """From a `torch.nn.Linear`, whose tensors are taken over."""
        return cls(layer.weight.detach(), layer.bias.detach())


class Modulated(Conv):
    """Weights of a modulated convolution and of what follows it.

    With style ``s = style_weight @ latent + style_bias`` and, where there are `squares`,
    ``d = rsqrt(squares @ s**2 + epsilon)``, it computes ``d * conv(s * x, weight) + noise + bias``, then a leaky
    ReLU where `leaky` says so.

    Attributes:
        style_weight, style_bias: (in, features), (in,).
        squares: (out, in), None without demodulation.
        noise: (1, 1, h, w), None without.
        form: the one of `FORMS` that torch uses.
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
        self.form = FORMS[0]
        for name, tensor in (
            ("style_weight", style_weight),
            ("style_bias", style_bias),
            ("squares", squares),
            ("noise", noise),
        ):
            self.register_buffer(name, tensor)

    def factors(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scales of the input (N, in) and of the output (N, out) for latents (N, features), in fp32.

        With demodulation only the direction of the style matters; its largest entry is brought to 1, so that
        half precision neither overflows nor loses the small ones.
        """
        style = functional.linear(latent.float(), self.style_weight, self.style_bias)
        if self.squares is None:
            return style, None
        peak = style.abs().amax(1, keepdim=True).clamp_min(1e-12)
        style = style / peak
        demodulation = functional.linear(style.square(), self.squares)
        return style, (demodulation + self.epsilon / peak.square()).rsqrt()


class Ops(ABC):
    """What a network may use; x is (N, C, h, w) throughout, whatever the runtime calls it."""

    @abstractmethod
    def conv(self, x: Any, layer: Conv) -> Any:
        """Convolution, bias, and the leaky ReLU or PReLU that `layer` has."""

    @abstractmethod
    def modulated(self, x: Any, latent: Any, layer: Modulated, enlarge: bool = False) -> Any:
        """Modulated convolution of x, or of x enlarged twofold (bilinear)."""

    @abstractmethod
    def linear(self, x: Any, layer: Linear) -> Any:
        """(N, in) to (N, out)."""

    @abstractmethod
    def flatten(self, x: Any) -> Any:
        """(N, C, h, w) to (N, C * h * w)."""

    @abstractmethod
    def split(self, x: Any, size: int) -> list[Any]:
        """(N, n * size) to n times (N, size)."""

    @abstractmethod
    def constant(self, value: torch.Tensor, like: Any) -> Any:
        """(1, C, h, w) for each face of `like`."""

    @abstractmethod
    def up2(self, x: Any) -> Any:
        """Twice the size, bilinear, pixel centres at half."""

    @abstractmethod
    def down2(self, x: Any) -> Any:
        """Half the size, bilinear, pixel centres at half: the mean of 2x2."""

    @abstractmethod
    def add(self, a: Any, b: Any) -> Any:
        """Sum of two tensors of one shape."""

    @abstractmethod
    def half_affine(self, x: Any, scale: Any, shift: Any) -> Any:
        """``x * scale + shift`` for the second half of the channels; the first half stays."""

    @abstractmethod
    def crop(self, x: Any, rows: int) -> Any:
        """x without its first `rows` rows."""

    @abstractmethod
    def pad_edge(self, x: Any, top: int, bottom: int, left: int, right: int) -> Any:
        """x continued by copies of its outermost pixels."""

    @abstractmethod
    def cut(self, x: Any, top: int, bottom: int, left: int, right: int) -> Any:
        """x without its outermost rows and columns."""

    @abstractmethod
    def unshuffle2(self, x: Any) -> Any:
        """(N, C, 2h, 2w) to (N, 4C, h, w), as `torch.nn.functional.pixel_unshuffle`."""

    @abstractmethod
    def shuffle2(self, x: Any) -> Any:
        """(N, 4C, h, w) to (N, C, 2h, 2w), as `torch.nn.functional.pixel_shuffle`."""

    @abstractmethod
    def bicubic2(self, x: Any) -> Any:
        """Twice the size, bicubic (A = -0.75), pixel centres at half."""

    @abstractmethod
    def rows_below(self, x: Any, first: int, keep: int) -> Any:
        """x, whose first row is row `first`, as a whole picture: copies of row `keep` above that.

        A resize reaches across the edge: what it finds there shall be like what it misses.
        """


class TorchOps(Ops):
    """Eager torch, in the type of ``layer.weight``.

    A modulated convolution has three forms. ``scale`` multiplies the input and the output. ``grouped`` makes
    each face's own weights and runs them as one grouped convolution, as the published code does. ``folded``
    makes them too and runs face by face. ``Modulated.form`` says which.
    """

    def conv(self, x: torch.Tensor, layer: Conv) -> torch.Tensor:
        """See `Ops.conv`."""
        out = functional.conv2d(x, layer.weight, layer.bias, padding=layer.padding)
        if layer.slopes is not None:
            return functional.prelu(out, layer.slopes)
        return functional.leaky_relu_(out, SLOPE) if layer.leaky else out

    def modulated(
        self, x: torch.Tensor, latent: torch.Tensor, layer: Modulated, enlarge: bool = False
    ) -> torch.Tensor:
        """See `Ops.modulated`."""
        style, demodulation = layer.factors(latent)
        assert layer.bias is not None
        if layer.form == "scale":
            x = x * style.to(x.dtype)[:, :, None, None]
            out = functional.conv2d(self.up2(x) if enlarge else x, layer.weight, padding=layer.padding)
            if demodulation is not None:
                out = out * demodulation.to(out.dtype)[:, :, None, None]
        else:
            out = self._own_weights(self.up2(x) if enlarge else x, style, demodulation, layer)
        if layer.noise is not None:
            out = out + layer.noise
        out = out + layer.bias[:, None, None]
        return functional.leaky_relu_(out, SLOPE) if layer.leaky else out

    def _own_weights(
        self, x: torch.Tensor, style: torch.Tensor, demodulation: torch.Tensor | None, layer: Modulated
    ) -> torch.Tensor:
        weights = layer.weight.float() * style[:, None, :, None, None]
        if demodulation is not None:
            weights = weights * demodulation[:, :, None, None, None]
        weights = weights.to(x.dtype)
        count, channels, height, width = x.shape
        if layer.form == "folded":
            each = [functional.conv2d(x[i : i + 1], weights[i], padding=layer.padding) for i in range(count)]
            return torch.cat(each) if count > 1 else each[0]
        flat = x.reshape(1, count * channels, height, width)
        out = functional.conv2d(flat, weights.flatten(0, 1), padding=layer.padding, groups=count)
        return out.reshape(count, -1, *out.shape[2:])

    def linear(self, x: torch.Tensor, layer: Linear) -> torch.Tensor:
        """See `Ops.linear`."""
        return functional.linear(x, layer.weight, layer.bias)

    def flatten(self, x: torch.Tensor) -> torch.Tensor:
        """See `Ops.flatten`."""
        return x.flatten(1)

    def split(self, x: torch.Tensor, size: int) -> list[torch.Tensor]:
        """See `Ops.split`."""
        return list(torch.split(x, size, 1))

    def constant(self, value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """See `Ops.constant`."""
        return value.expand(like.shape[0], -1, -1, -1)

    def up2(self, x: torch.Tensor) -> torch.Tensor:
        """See `Ops.up2`."""
        return functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)

    def down2(self, x: torch.Tensor) -> torch.Tensor:
        """See `Ops.down2`."""
        return functional.avg_pool2d(x, 2)

    def add(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """See `Ops.add`."""
        return a + b

    def half_affine(self, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """See `Ops.half_affine`."""
        same, changed = torch.split(x, x.shape[1] // 2, 1)
        return torch.cat([same, changed * scale + shift], 1)

    def crop(self, x: torch.Tensor, rows: int) -> torch.Tensor:
        """See `Ops.crop`."""
        return x[:, :, rows:] if rows else x

    def pad_edge(self, x: torch.Tensor, top: int, bottom: int, left: int, right: int) -> torch.Tensor:
        """See `Ops.pad_edge`."""
        return functional.pad(x, (left, right, top, bottom), mode="replicate")

    def cut(self, x: torch.Tensor, top: int, bottom: int, left: int, right: int) -> torch.Tensor:
        """See `Ops.cut`."""
        return x[:, :, top : -bottom or None, left : -right or None]

    def unshuffle2(self, x: torch.Tensor) -> torch.Tensor:
        """See `Ops.unshuffle2`."""
        return functional.pixel_unshuffle(x, 2)

    def shuffle2(self, x: torch.Tensor) -> torch.Tensor:
        """See `Ops.shuffle2`."""
        return functional.pixel_shuffle(x, 2)

    def bicubic2(self, x: torch.Tensor) -> torch.Tensor:
        """See `Ops.bicubic2`."""
        if torch.onnx.is_in_onnx_export():  # other runtimes are quicker that way
            return polyphase.bicubic2(x)
        return functional.interpolate(x, scale_factor=2.0, mode="bicubic", align_corners=False)

    def rows_below(self, x: torch.Tensor, first: int, keep: int) -> torch.Tensor:
        """See `Ops.rows_below`."""
        if not first and not keep:
            return x
        kept = x[:, :, keep - first :]
        return torch.cat([kept[:, :, :1].expand(-1, -1, keep, -1), kept], 2)


TORCH = TorchOps()
"""The one that networks use in their ``forward``; it holds nothing."""
