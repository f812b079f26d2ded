"""Losses of the lite sharpener: fidelity first, then what brings back detail that is truly lost.

Differences and images are float (N,3,H,W), RGB, 0..1, H and W multiples of 8.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from musetalk_enhance.restorers.lite_network import LUMA, detail_band, in_cells, to_cells

LEAST_SHARE, MOST_SHARE = 0.8, 1.0
"""Of the energy of the target's detail, in a cell and a direction."""
FLAT = 0.1
"""Added to the mean strength of a target's detail, about 0.3 for a crisp face: a flat one must not
count a hundred times."""


def luma(x: Tensor) -> Tensor:
    """Rec. 601 luma ``(N,1,H,W)``, never in bf16, which has a step of a gray level."""
    with torch.autocast("cpu", enabled=False):
        return (x.new_tensor([[LUMA]]) @ x.flatten(2)).unflatten(2, x.shape[2:])


def robust(difference: Tensor, beta: float = 2e-3) -> Tensor:
    """Mean of ``|d|``, quadratic under half a gray level; half the time of a Charbonnier loss."""
    return F.smooth_l1_loss(difference, difference.new_zeros(()).expand_as(difference), beta=beta)


def scales_loss(difference: Tensor) -> tuple[Tensor, Tensor]:
    """`robust` at 1/2, 1/4 and 1/8 of the size, and drift: L1 between 16 px means."""
    total = difference.new_zeros(())
    for weight in (1.0, 0.7, 0.5):
        difference = F.avg_pool2d(difference, 2)
        total = total + weight * robust(difference)
    return total, F.avg_pool2d(difference, 2).abs().mean()


def spectrum_loss(difference: Tensor) -> Tensor:
    """Mean magnitude of the FFT of the luma under a Hann window: amount and place of detail."""
    window = torch.hann_window(difference.shape[-1], periodic=False)
    windowed = luma(difference) * torch.outer(window, window)
    spectrum: Tensor = torch.fft.rfft2(windowed, norm="ortho")
    return spectrum.abs().mean()


def subbands(x: Tensor) -> Tensor:
    """High-frequency subbands ``(N,6,H,W)`` of the luma: two levels of a stationary Haar transform.

    Scaled so that faces have about unit variance in them.
    """
    low, bands = luma(x), []
    for level in (1, 2):
        for dimension in (2, 3):
            padding = (0, 0, 0, level) if dimension == 2 else (0, level, 0, 0)
            size = low.shape[dimension]
            padded = F.pad(low, padding, mode="replicate")
            moved = padded.narrow(dimension, level, size)
            if dimension == 2:
                mean_rows, rows = (low + moved) / 2, (low - moved) / 2
                low = mean_rows
            else:
                padded = F.pad(rows, padding, mode="replicate")
                moved_rows = padded.narrow(dimension, level, size)
                bands += [(low - moved) / 2, (rows + moved_rows) / 2, (rows - moved_rows) / 2]
                low = (low + moved) / 2
    scale = low.new_tensor([40.0, 40.0, 100.0, 20.0, 20.0, 50.0]).view(1, 6, 1, 1)
    return torch.cat(bands, 1) * scale


class Critic(nn.Module):
    """Tells restored from original by high-frequency subbands alone (arXiv 2402.19215).

    It also sees the subbands of the bicubic enlargement, so that it judges what was added to them.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        shapes = (
            (48, width, 1),
            (width, 2 * width, 2),
            (2 * width, 2 * width, 1),
            (2 * width, 1, 1),
        )
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv2d(inputs, outputs, 3, stride, 1))
            for inputs, outputs, stride in shapes
        )

    def forward(self, image: Tensor, bicubic: Tensor) -> Tensor:
        """float (N, 3, H, W) twice, to scores (N, 1, H/4, W/4): higher for originals."""
        x = F.pixel_unshuffle(torch.cat([subbands(image), subbands(bicubic)], 1), 2)
        for index, layer in enumerate(self.layers):
            x = layer(x if index == 0 else F.leaky_relu(x, 0.2))
        return 3 * x.float()


def critic_loss(original: Tensor, restored: Tensor) -> Tensor:
    """Relativistic: the original's score above that of what was restored of it, place by place."""
    return F.softplus(restored - original).mean()


def artifact_map(out: Tensor, smooth: Tensor, target: Tensor, size: int = 7) -> Tensor:
    """Weights ``(N,1,H,W)`` of pixels that look like artifacts (LDL, arXiv 2203.09195).

    Local variance of the residual, where the averaged network (``smooth``) is nearer to the target.
    """
    residual = (target - out).abs().sum(1, keepdim=True)
    steady = (target - smooth).abs().sum(1, keepdim=True)
    mean = F.avg_pool2d(residual, size, 1, size // 2, count_include_pad=False)
    square = F.avg_pool2d(residual * residual, size, 1, size // 2, count_include_pad=False)
    local = (square - mean * mean).clamp_min(0)
    overall = residual.var((1, 2, 3), keepdim=True).clamp_min(1e-12) ** 0.2
    return torch.where(residual < steady, torch.zeros_like(local), overall * local)


def fine_detail(x: Tensor) -> Tensor:
    """Negative Laplacian of the luma after a Gaussian of 0.8 px, float (N,1,H,W): waves of 4 px.

    ``x`` is continued by its outermost pixels; its sides are multiples of 4.
    """
    padded = F.pad(luma(x), (4,) * 4, mode="replicate")
    detail = F.conv2d(to_cells(padded), in_cells(detail_band()))  # a tenth of the time of 9x9
    return F.pixel_shuffle(F.pixel_shuffle(detail, 2), 2)


def local_energy(x: Tensor, cell: int = 8) -> Tensor:
    """Mean square of each of the `subbands` in cells of ``cell`` px: (N,6,H/cell,W/cell)."""
    return F.avg_pool2d(subbands(x).square(), cell)


def sharpness_loss(out: Tensor, target: Tensor) -> Tensor:
    """How far the strength of detail is from its limits, by place and direction.

    Where detail cannot be predicted, a softer face has the smaller error. But one that is softer
    than the original is what users complain about. Strength is the root of `local_energy`. Energy
    over a whole patch, in its place, is had for less by dots, or by combs across the edges, that no
    original has.
    """
    ours, theirs = ((local_energy(x) + 1e-4).sqrt() for x in (out, target.detach()))
    beyond = F.relu(LEAST_SHARE**0.5 * theirs - ours) + F.relu(ours - MOST_SHARE**0.5 * theirs)
    return (beyond.mean((1, 2, 3)) / (theirs.mean((1, 2, 3)) + FLAT)).mean()


def false_detail(out: Tensor, target: Tensor) -> Tensor:
    """Share of a result's `local_energy` that is beyond the original's, (N,): 0 to 1.

    Energy of fine detail alone is fooled by combs and dots along edges, and so are PSNR and
    HaarPSI. Both of a pair are 8-bit pictures, float 0..1.
    """
    ours, theirs = local_energy(out), local_energy(target)
    beyond = F.relu(ours - theirs).sum((1, 2, 3))
    return beyond / ours.sum((1, 2, 3)).clamp_min(1e-9)


def flicker_loss(difference: Tensor) -> Tensor:
    """How much the error changes between frames; the second half of the batch follows the first."""
    first, second = difference.chunk(2)
    return robust(second - first)


def grid_loss(out: Tensor, target: Tensor) -> Tensor:
    """How much more than the target's the magnitude of detail hangs on the place in cells of 4 px.

    What `lite_data.grid` measures: dots along edges are energy, too, and look like it.
    """
    return F.relu(_places(out) - _places(target).detach() - 0.01).mean()


def _places(x: Tensor) -> Tensor:
    """Deviation over mean of the magnitude of the Laplacian between the places in a cell, (N,)."""
    y = luma(x)
    inner, rows, columns = y[..., 1:-1, 1:-1], y[..., 1:-1], y[..., 1:-1, :]
    sides = rows[..., :-2, :] + rows[..., 2:, :] + columns[..., :-2] + columns[..., 2:]
    laplacian = (4 * inner - sides).abs()[..., 3:, 3:]
    height, width = (side // 4 * 4 for side in laplacian.shape[2:])
    cells = laplacian[..., :height, :width].unflatten(3, (-1, 4)).unflatten(2, (-1, 4))
    means = cells.mean((1, 2, 4)).flatten(1)
    return means.std(1, correction=0) / (means.mean(1) + 1e-4)
