"""The restored detail held still over time, as far as the host's own picture is still.

A restorer decides anew in every frame what to add, so its detail flickers where the host's picture hardly changes.
Here the detail of the frame before is moved with the face and mixed into this frame's, just so much that what is
added changes no more than a share of what the host's picture itself changes. Where lips move the picture changes
much, and nothing is held; on still skin it hardly changes, and nearly everything is. The idea of judging a video
by what is left after motion compensation is Lai et al., "Learning Blind Video Temporal Consistency", ECCV 2018.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..imaging import pooled, resize

if TYPE_CHECKING:
    import numpy as np
    import torch

    from .motion import Motion

TARGET = 1.015
"""What the restored video may change from frame to frame, moved with the face, as a multiple of what the host's
does. The share below is steered to it."""
FIRST_SHARE, LOWEST_SHARE, HIGHEST_SHARE = 0.12, 0.02, 1.5
STEERING, MEMORY = 3.0, 0.8
"""How strongly the share follows the ratio that was measured, and how slowly that ratio forgets."""
MOST = 0.93
"""Most of the detail before that is kept: what is wrong fades within a second, however still the picture."""
QUIET = 0.2 / 255
"""A change of the host's picture that is always allowed for: the rounding to 8 bits."""
REVIVED = 1.05
"""Mixing blurs; detail is given back the strength that the restorer gave it, by at most this factor."""
_CELL = 4
_FLOOR = 1e-6  # of energies, so that nothing is divided by nothing


@dataclass(frozen=True)
class Held:
    """What a stream remembers.

    Attributes:
        residual: what was added to the frame before, float32 (1, 3, S, S).
        share: scalar, what the detail may change, as a share of the picture's own change.
        changes: (2,), forgetful sums of how much the restored and the host's video changed.
    """

    residual: torch.Tensor
    share: torch.Tensor
    changes: torch.Tensor

    @classmethod
    def first(cls, residual: torch.Tensor) -> Held:
        """What is remembered of a first frame."""
        return cls(residual, residual.new_tensor(FIRST_SHARE), residual.new_zeros(2))

    def to(self, device: torch.device) -> Held:
        """The same on `device`: a network may have moved to the CPU in mid-stream."""
        if self.residual.device == device:
            return self
        return Held(self.residual.to(device), self.share.to(device), self.changes.to(device))


def hold(
    residual: torch.Tensor, motion: Motion | None, held: Held | None, amount: float, support: torch.Tensor | None
) -> tuple[torch.Tensor, Held]:
    """What is added to one frame, held still; and what to remember for the next.

    Args:
        residual: what the restorer would add to this frame, float32 (1, 3, S, S).
        motion: from this frame to the one before; None where there is none.
        held: what was remembered of the frame before; None where there is nothing.
        amount: 0..1, how much of the holding is done.
        support: (1, 1, S, S), not 0 where the face may change; None for everywhere.

    Returns:
        The residual to add, (1, 3, S, S), and what is remembered.
    """
    if held is None or held.residual.shape != residual.shape:
        return residual, Held.first(residual)
    held = held.to(residual.device)
    if motion is None or motion.cut:
        return residual, replace(held, residual=residual)
    import torch

    size = (residual.shape[2], residual.shape[3])
    before = moved(held.residual, motion.flow)
    error = torch.from_numpy(motion.error).to(residual.device).permute(2, 0, 1)[None].contiguous()
    coarse = (max(1, error.shape[2] // _CELL), max(1, error.shape[3] // _CELL))
    allowed = held.share * (_energy(error, coarse).sqrt() + QUIET)
    apart = before - residual
    differs = _energy(apart, coarse).sqrt() + 1e-6
    rigid = resize(torch.from_numpy(motion.rigid).to(residual.device)[None, None], coarse)
    kept = (1 - allowed / differs).clamp(0, MOST) * rigid * amount
    result = torch.addcmul(residual, resize(kept, size, enlarge="bilinear"), apart)
    result.mul_(_revival(residual, result, coarse, size))
    return result, replace(_steered(held, error, result - before, support), residual=result)


def _energy(values: torch.Tensor, coarse: tuple[int, int]) -> torch.Tensor:
    """Mean square over the channels, on a coarse grid, over about twelve pixels of 256; (1, 1, *coarse)."""
    from torch.nn.functional import avg_pool2d

    cells = pooled(values.square().mean(1, keepdim=True), coarse)
    return avg_pool2d(cells, 3, 1, 1, count_include_pad=False)


def _revival(
    wanted: torch.Tensor, mixed: torch.Tensor, coarse: tuple[int, int], size: tuple[int, int]
) -> torch.Tensor:
    factor = ((_energy(wanted, coarse) + _FLOOR) / (_energy(mixed, coarse) + _FLOOR)).sqrt().clamp(1, REVIVED)
    return resize(factor, size, enlarge="bilinear")


def _steered(held: Held, error: torch.Tensor, change: torch.Tensor, support: torch.Tensor | None) -> Held:
    """`held` with a share that brings the restored video's change nearer to `TARGET` times the host's."""
    import torch

    small = (error.shape[2], error.shape[3])
    both = torch.stack([(error + resize(change, small)).abs().sum(1), error.abs().sum(1)])
    if support is not None:
        both *= resize((support > 0).float(), small)[:, 0]
    changes = MEMORY * held.changes + both.mean((1, 2, 3)) / error.shape[1]
    ratio = ((changes[0] + _FLOOR) / (changes[1] + _FLOOR)).clamp(max=2)
    share = (held.share * (STEERING * (TARGET - ratio)).exp()).clamp(LOWEST_SHARE, HIGHEST_SHARE)
    return replace(held, share=share, changes=changes)


def moved(picture: torch.Tensor, flow: np.ndarray) -> torch.Tensor:
    """A picture (1, 3, S, S) moved by a flow (h, w, 2) that may be smaller; cubic, its border repeated.

    ``moved(before, flow)[..., y, x] = before[..., y + flow_y, x + flow_x]``, the flow in its own pixels.
    """
    return _moved_here(picture, flow) if picture.device.type == "cpu" else _moved_there(picture, flow)


def _moved_there(picture: torch.Tensor, flow: np.ndarray) -> torch.Tensor:
    """`moved` on a GPU."""
    import torch
    from torch.nn.functional import grid_sample

    height, width = picture.shape[2:]
    steps = torch.from_numpy(flow).to(picture.device).permute(2, 0, 1)[None]
    scale = steps.new_tensor([2 / flow.shape[1], 2 / flow.shape[0]]).view(1, 2, 1, 1)
    steps = resize(steps * scale, (height, width), enlarge="bilinear").permute(0, 2, 3, 1)
    x = (torch.arange(width, device=picture.device, dtype=picture.dtype) + 0.5) * (2 / width) - 1
    y = (torch.arange(height, device=picture.device, dtype=picture.dtype) + 0.5) * (2 / height) - 1
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]
    return grid_sample(picture, places + steps, mode="bicubic", padding_mode="border", align_corners=False)


def _moved_here(picture: torch.Tensor, flow: np.ndarray) -> torch.Tensor:
    """`moved` on the CPU, three times as fast: OpenCV's places are rounded to 1/32 pixel."""
    import cv2
    import numpy as np
    import torch

    from .motion import pixels

    height, width = int(picture.shape[2]), int(picture.shape[3])
    if flow.shape[:2] != (height, width):
        flow = cv2.resize(flow, (width, height)) * np.array(
            [width / flow.shape[1], height / flow.shape[0]], np.float32
        )
    columns, rows = pixels(height, width)
    places = columns + flow[..., 0], rows + flow[..., 1]
    here = picture[0].permute(1, 2, 0).contiguous().numpy()
    found = cv2.remap(here, *places, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return torch.from_numpy(found).permute(2, 0, 1)[None].contiguous()
