"""The network of the second lite: 256 px in, 512 px out, at a quarter of the input's resolution.

`LiteNet` is what is trained. `FusedLite` says the same in terms of `musetalk_enhance.backends.ops`,
for a restorer to run on every backend, with the rows that are needed only.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musetalk_enhance.backends.ops import SLOPE, TORCH, Conv, Modulated, Ops

MARGIN = 24
"""Rows above the first one needed that `FusedLite` reads. The network reaches 68 px in theory, but
what lies beyond this margin changes no pixel by more than 0.03 of 255."""
_GRID = 8
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


class Look(nn.Module):
    """How a whole face is soft, as a vector: means of features at an eighth of its resolution.

    One kind of softness lies over all of a face, and a patch of smooth skin does not show it.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        half = features // 2
        layers = [
            Layer(48, half, leaky=True, gain=2.0),
            Layer(4 * half, features, 1, leaky=True),
            Layer(features, features, leaky=True),
            Layer(features, features, 1, leaky=True),
        ]
        self.layers: Any = nn.ModuleList(layers)
        with torch.no_grad():  # mid gray at zero
            layers[0].bias.copy_(-0.5 * layers[0].weight.sum((1, 2, 3)))

    def forward(self, faces_rgb: Tensor) -> Tensor:
        """float (N, 3, 256, 256), RGB, 0..1, to (N, features)."""
        x = self.layers[0](F.pixel_unshuffle(F.pixel_unshuffle(faces_rgb, 2), 2))
        x = self.layers[2](self.layers[1](F.pixel_unshuffle(x, 2)))
        return self.layers[3](x.mean((2, 3), keepdim=True)).flatten(1)


class LiteNet(nn.Module):
    """Residual over a bicubic enlargement.

    A body at a quarter of the input's resolution (two unshuffles) with one branch at an eighth; a
    skip and two layers at half. A look at the whole face scales the channels inside each block: a
    decoder's softness wants another answer than that of a resize.

    Args:
        width: channels of the body, a multiple of 4.
        blocks: residual blocks of two 3x3 convolutions.
        wide: channels at an eighth of the resolution; 0 leaves the branch out.
        look: numbers that say how a face is soft.
    """

    def __init__(self, width: int = 96, blocks: int = 4, wide: int = 96, look: int = 64) -> None:
        super().__init__()
        half = width // 4
        self.shape = {"width": width, "blocks": blocks, "wide": wide, "look": look}
        self.look = Look(look)
        self.styles: Any = nn.ModuleList(nn.Linear(look, width) for _ in range(blocks))
        for style in self.styles:
            nn.init.zeros_(style.weight)
            nn.init.ones_(style.bias)
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

    def forward(
        self, faces_rgb: Tensor, whole: Tensor | None = None, owner: Tensor | None = None
    ) -> Tensor:
        """float (N, 3, H, W), RGB, 0..1, to (N, 3, 2H, 2W), not clamped; H and W multiples of 8.

        Args:
            faces_rgb: faces, or patches of them.
            whole: the faces that the patches are of, (M, 3, 256, 256); None: they are whole.
            owner: which of them each patch is of, integers (N,).
        """
        look = self.look(faces_rgb if whole is None else whole)
        if owner is not None:
            look = look[owner]
        half = F.pixel_unshuffle(F.pad(faces_rgb, (PADDING,) * 4, mode="replicate"), 2)
        half = half.contiguous(memory_format=torch.channels_last)
        x = self.head(F.pixel_unshuffle(half, 2))
        for index, (first, second) in enumerate(zip(self.first, self.second, strict=True)):
            scale = self.styles[index](look)[:, :, None, None]
            x = x + second(first(x) * scale)
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
            if isinstance(layer, Layer) and not name.startswith("look."):
                shrink = 2 if name in ("skip", "mix", "tail") else 8 if "context" in name else 4
                total += layer.weight.numel() * (padded // shrink) ** 2
        for layer, shrink in zip(self.look.layers, (4, 8, 8, side), strict=True):
            total += layer.weight.numel() * (side // shrink) ** 2
        return total


class FusedLite(nn.Module):
    """What is exported of a `LiteNet`, as a restorer will run it on every backend.

    Args:
        state: fused weights and biases by name, as ``train_lite.py`` exports them.
        keep: first row of the 256 that is needed; rows above it are copies of it. 0 computes the
            whole face.

    Attributes:
        width: channels of the body.
        blocks: residual blocks in it.
        first: first row of the input that is read.

    Raises:
        KeyError: a weight is missing.
    """

    def __init__(self, state: dict[str, torch.Tensor], keep: int = 0) -> None:
        super().__init__()
        self.blocks = sum(name.startswith("first.") for name in state) // 2
        numbers = range(self.blocks)
        self.head = _conv(state, "head", leaky=True)
        self.first_convs: Any = nn.ModuleList(_conv(state, f"first.{n}", True) for n in numbers)
        self.second_convs: Any = nn.ModuleList(_styled(state, n) for n in numbers)
        self.look: Any = nn.ModuleList(_conv(state, f"look.layers.{n}", True) for n in range(4))
        context = range(4 if "context.0.weight" in state else 0)
        self.context: Any = nn.ModuleList(
            _conv(state, f"context.{n}", leaky=n in (1, 2)) for n in context
        )
        self.skip = _conv(state, "skip", leaky=True)
        self.mix = _conv(state, "mix", leaky=True)
        self.tail = _conv(state, "tail")
        self.width = int(self.head.weight.shape[0])
        self.keep = keep
        # what is read, with the padding below it, is a multiple of 8 rows
        self.first = max(0, (keep - MARGIN - PADDING) // _GRID * _GRID + PADDING) if keep else 0
        self.eval().requires_grad_(False)

    def forward(self, faces_rgb: torch.Tensor) -> torch.Tensor:
        """Sharpen float (N, 3, 256, 256), RGB, 0..1, to (N, 3, 512, 512), not clamped."""
        sharp: torch.Tensor = self.compute(TORCH, faces_rgb)
        return sharp

    def compute(self, ops: Ops, faces_rgb: Any) -> Any:
        """The whole network, in terms of `ops`."""
        look = self._looked(ops, faces_rgb)
        faces = ops.crop(faces_rgb, self.first)
        top = 0 if self.first else PADDING
        half = ops.unshuffle2(ops.pad_edge(faces, top, PADDING, PADDING, PADDING))
        x = ops.conv(ops.unshuffle2(half), self.head)
        for number, (first, second) in enumerate(
            zip(self.first_convs, self.second_convs, strict=True)
        ):
            x = ops.add(x, ops.modulated(ops.conv(x, first), look, second))
            if number == 0 and len(self.context):
                wide = ops.unshuffle2(x)
                for layer in self.context:
                    wide = ops.conv(wide, layer)
                x = ops.add(x, ops.shuffle2(wide))
        x = ops.add(ops.shuffle2(x), ops.conv(half, self.skip))
        x = ops.conv(ops.conv(x, self.mix), self.tail)
        rim = 2 * PADDING
        detail = ops.cut(ops.shuffle2(ops.shuffle2(x)), 2 * top, rim, rim, rim)
        sharp = ops.add(ops.bicubic2(faces), detail)
        return ops.rows_below(sharp, 2 * self.first, 2 * self.keep)

    def _looked(self, ops: Ops, faces_rgb: Any) -> Any:
        x = ops.conv(ops.unshuffle2(ops.unshuffle2(faces_rgb)), self.look[0])
        x = ops.conv(ops.conv(ops.unshuffle2(x), self.look[1]), self.look[2])
        for _ in range(5):  # the mean of 32x32
            x = ops.down2(x)
        return ops.flatten(ops.conv(x, self.look[3]))


def _styled(state: dict[str, torch.Tensor], number: int) -> Modulated:
    style, second = f"styles.{number}", f"second.{number}"
    return Modulated(
        state[f"{second}.weight"],
        state[f"{style}.weight"],
        state[f"{style}.bias"],
        state[f"{second}.bias"],
    )


def _conv(state: dict[str, torch.Tensor], name: str, leaky: bool = False) -> Conv:
    return Conv(state[f"{name}.weight"], state[f"{name}.bias"], leaky)
