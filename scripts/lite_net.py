"""The network of the second lite: 256 px in, 512 px out, at a quarter of the input's resolution.

`LiteNet` is what is trained; `musetalk_enhance.restorers.lite_network.LiteNetwork` is the same for
inference.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lite_losses import fine_detail
from torch import Tensor, nn

from musetalk_enhance.backends.ops import SLOPE, Conv
from musetalk_enhance.restorers.lite_network import FLOOR, GAIN_LIMITS, LUMA, PADDING

SCALE = 1 / 16
"""Of the last layer: what is added to bicubic is a few gray levels."""
GAIN_WIDTH = 32
"""Numbers between the two layers of the gain."""


def enlarged(x: Tensor) -> Tensor:
    """Bicubic, twice the size: what the network adds detail to."""
    return F.interpolate(x, scale_factor=2.0, mode="bicubic", align_corners=False)


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


DROPOUT = 0.2
"""Share of a look's means that a step of training leaves out: they must not tell people apart."""


def band_filters() -> Tensor:
    """The 15 waves of a 4x4 DCT but the constant, on luma, for a face unshuffled twice.

    float (15, 48, 1, 1), by a factor that lets the mean magnitude over a face be about 1.
    """
    place = torch.arange(4)
    cosines = torch.cos(torch.pi * (2 * place[None] + 1) * place[:, None] / 8) / 2**0.5
    cosines[0] = 0.5
    waves = torch.einsum("ai,bj->abij", cosines, cosines).flatten(0, 1)[1:]
    weights = torch.tensor(LUMA).view(3, 1, 1) * waves[:, None]
    return 200 * F.pixel_unshuffle(F.pixel_unshuffle(weights, 2), 2)


class Look(nn.Module):
    """How a whole face is soft, as a vector: means of features at an eighth of its resolution.

    One kind of softness lies over all of a face, and a patch of smooth skin does not show it. The
    logarithms of the energies of bands tell softness from low contrast.
    """

    filters: Tensor

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
        self.register_buffer("filters", band_filters(), persistent=False)
        self.bands = Layer(15, features, 1, gain=0.0)
        with torch.no_grad():  # mid gray at zero
            layers[0].bias.copy_(-0.5 * layers[0].weight.sum((1, 2, 3)))

    def forward(self, faces_rgb: Tensor) -> Tensor:
        """float (N, 3, 256, 256), RGB, 0..1, to (N, features)."""
        blocks = F.pixel_unshuffle(F.pixel_unshuffle(faces_rgb, 2), 2)
        x = self.layers[2](self.layers[1](F.pixel_unshuffle(self.layers[0](blocks), 2)))
        means = F.dropout(x.mean((2, 3), keepdim=True), DROPOUT, self.training)
        with torch.autocast("cpu", enabled=False):  # a fine band is less than bf16 keeps
            energies = self.bands(self.energies(faces_rgb))
        return self.layers[3](means + energies).flatten(1)

    def energies(self, faces_rgb: Tensor) -> Tensor:
        """Logarithms of the mean magnitudes of 15 bands: (N, 3, 256, 256) to (N, 15, 1, 1)."""
        blocks = F.pixel_unshuffle(F.pixel_unshuffle(faces_rgb, 2), 2)
        magnitudes = F.conv2d(blocks, self.filters).abs().mean((2, 3), keepdim=True)
        return (magnitudes + FLOOR).log()


class LiteNet(nn.Module):
    """Residual over a bicubic enlargement.

    A body at a quarter of the input's resolution (two unshuffles) with one branch at an eighth; a
    skip and two layers at half. A look at the whole face scales the channels inside each block: a
    decoder's softness wants another answer than that of a resize. The fine detail of the result's
    luma is added to it, times a gain that two layers compute from the energies that the look takes:
    one number for a face.

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
        gain = nn.Linear(GAIN_WIDTH, 1)
        self.gain: Any = nn.ModuleList([Layer(15, GAIN_WIDTH, 1, leaky=True), gain])
        nn.init.zeros_(gain.weight)
        nn.init.zeros_(gain.bias)
        with torch.no_grad():  # mid gray at zero
            self.head.bias.copy_(-0.5 * self.head.weight.sum((1, 2, 3)))

    def forward(self, faces_rgb: Tensor) -> Tensor:
        """Faces, float (N, 3, 256, 256), RGB, 0..1, to (N, 3, 512, 512), not clamped."""
        restored = self.restore(faces_rgb, self.look(faces_rgb))
        gains = self.gains(self.look.energies(faces_rgb))
        return restored + gains[:, None, None, None] * fine_detail(restored)

    def gains(self, energies: Tensor) -> Tensor:
        """How often fine detail is added to faces of these energies, (N, 15, 1, 1), to (N,)."""
        gains: Tensor = self.gain[1](self.gain[0](energies).flatten(1))
        return gains[:, 0].clamp(*GAIN_LIMITS)

    def restore(self, faces_rgb: Tensor, look: Tensor) -> Tensor:
        """Before fine detail is added: `enlarged` and `residual`."""
        return enlarged(faces_rgb) + self.residual(faces_rgb, look)

    def residual(self, faces_rgb: Tensor, look: Tensor) -> Tensor:
        """What is added to the bicubic enlargement: what is trained.

        Args:
            faces_rgb: faces or patches of them, float (N, 3, H, W), RGB, 0..1; H and W multiples
                of 8.
            look: at the face that each of them is of, float (N, features).

        Returns:
            float (N, 3, 2H, 2W).
        """
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
        rim = slice(2 * PADDING, -2 * PADDING)
        x = self.tail(self.mix(F.pixel_shuffle(x, 2) + self.skip(half)))
        return F.pixel_shuffle(F.pixel_shuffle(x, 2), 2)[..., rim, rim].float()

    def reach(self) -> int:
        """Pixels of the input that an output pixel sees on each side, at most."""
        body = 4 * (1 + 2 * len(self.first)) + 4
        return body + 4 + (8 * 2 + 8 if len(self.context) else 0)

    def macs(self, side: int = 256) -> int:
        """Multiplications for one face, padding included."""
        total, padded = 0, side + 2 * PADDING
        for name, layer in self.named_modules():
            if isinstance(layer, Layer) and not name.startswith(("look.", "gain.")):
                shrink = 2 if name in ("skip", "mix", "tail") else 8 if "context" in name else 4
                total += layer.weight.numel() * (padded // shrink) ** 2
        for layer, shrink in zip(self.look.layers, (4, 8, 8, side), strict=True):
            total += layer.weight.numel() * (side // shrink) ** 2
        cells = (side // 2 + 2) ** 2  # of 4x4 pixels of the result, with those around them
        total += 6 * (2 * side) ** 2 + 9 * 16 * 16 * cells
        total += self.look.filters.numel() * (side // 4) ** 2 + self.look.bands.weight.numel()
        return total
