"""Restored detail kept steady over time, as far as the host's own frames are steady.

A restorer adds different detail to every frame, so it flickers where the host's frames
hardly change. Here the detail of the previous frame is moved with the face and mixed into this
frame's, just so much that what is added changes no more than a share of what the host's frames
themselves change. What lips uncover changes much, and little of it is kept; of still skin nearly
everything is. The idea of judging a video by what is left after motion compensation is Lai et al.,
"Learning Blind Video Temporal Consistency", ECCV 2018.

On the CPU the work is done with OpenCV and numpy, frame by frame in few passes; on a GPU with
torch, without waiting for it. Both compute the same (`tests/stability/test_temporal.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...frames.resize import pooled, resize

if TYPE_CHECKING:
    import torch

    from .motion import Motion

Floats = NDArray[np.float32]

TARGET = 1.02
"""What the restored video may change from frame to frame, motion-compensated, as a multiple of what
the host's does. The share below is steered to it."""
FIRST_SHARE, LOWEST_SHARE, HIGHEST_SHARE = 0.12, 0.02, 1.5
"""What the detail may change as a share of what the host's frames change: at the start of a stream,
and its limits. A lower start costs restorers that are steady by themselves up to 10 dB of 57."""
STEERING, MEMORY = 8.0, 0.8
"""How strongly the share follows the measured ratio, and how slowly that ratio forgets."""
MOST = 0.93
"""Largest share of the previous detail: an error fades within a second, however still the face."""
QUIET = 0.2 / 255
"""A change of the host's frames that is always allowed for: the rounding to 8 bits."""
REVIVED = 1.03
"""Largest factor, per frame, that restores detail's strength after mixing, which blurs. It acts
again on what it amplified in the frame before: with 1.05 the error of a restorer whose detail is
new in every frame (``tests/stability/test_temporal.py``) is 7 % larger."""
_CELL = 4
_THIRDS, _ONES = np.full(3, 1 / 3, np.float32), np.ones((1, 3), np.float32)
_FLOOR = 1e-6  # of energies, so that nothing is divided by nothing


@dataclass(frozen=True)
class TemporalState:
    """What a stream remembers of its restored detail.

    Attributes:
        residual: what was added to the previous frame, in the rows that may change: float32 (R, S,
            3) array on the CPU, (1, 3, R, S) tensor on a GPU.
        share: what the detail may change, as a share of the frames' own change; a float, or a
            scalar tensor.
        changes: forgetful sums of how much the restored and the host's video changed, (2,).
    """

    residual: Any
    share: Any = FIRST_SHARE
    changes: Any = (0.0, 0.0)

    def to(self, device: torch.device) -> TemporalState:
        """The same on `device`: a network may have moved to the CPU in mid-stream."""
        import torch

        tensor = isinstance(self.residual, torch.Tensor)
        if device.type == "cpu":
            if not tensor:
                return self
            rows = self.residual[0].permute(1, 2, 0).cpu().contiguous().numpy()
            return TemporalState(
                rows, float(self.share), tuple(float(value) for value in self.changes)
            )
        if tensor and self.residual.device == device:
            return self
        rows = self.residual if tensor else torch.from_numpy(self.residual).permute(2, 0, 1)[None]
        share = torch.as_tensor(self.share, dtype=torch.float32, device=device)
        changes = torch.as_tensor(self.changes, dtype=torch.float32, device=device)
        return TemporalState(rows.to(device), share, changes)


def steady(
    residual: torch.Tensor,
    motions: Sequence[Motion | None],
    state: TemporalState | None,
    amount: float,
    first_row: int,
    height: int,
    support: torch.Tensor | None = None,
) -> tuple[torch.Tensor, TemporalState]:
    """Steady residuals of consecutive frames, and the state for the next ones.

    Args:
        residual: what the restorer would add to each frame, in the rows that may change: float32
            (N, 3, R, S).
        motions: from each frame to the one before it; None where nothing of that may be used.
        state: what was remembered of the frame before the first; None where there is nothing.
        amount: 0..1, how much of the keeping is done.
        first_row: of the rows that may change.
        height: of the whole face, in the same pixels.
        support: (1 or N, 1, R, S), not 0 where the face may change; None for everywhere.

    Returns:
        The residual to add, (N, 3, R, S), and the new state.
    """
    device = residual.device
    if state is not None:
        state = state.to(device)
    rows = (first_row / height, 1.0)
    if device.type == "cpu":
        return _steady_on_cpu(residual, motions, state, amount, rows, support)
    return _steady_on_gpu(residual, motions, state, amount, rows, support)


def _kept_rows(values: Floats, rows: tuple[float, float]) -> Floats:
    """The rows of a motion's field that belong to the rows that may change."""
    return values[round(rows[0] * len(values)) :]


def _steady_on_cpu(
    residual: torch.Tensor,
    motions: Sequence[Motion | None],
    state: TemporalState | None,
    amount: float,
    rows: tuple[float, float],
    support: torch.Tensor | None,
) -> tuple[torch.Tensor, TemporalState]:
    import cv2
    import torch

    planes = residual.contiguous().numpy()
    results = np.empty_like(planes)
    masks = None if support is None else (support[:, 0] > 0).numpy().astype(np.uint8)
    for index, motion in enumerate(motions):
        current = cv2.merge(list(planes[index]))
        if state is None or state.residual.shape != current.shape:
            state, motion = TemporalState(current), None
        if motion is None:
            results[index] = planes[index]
            state = replace(state, residual=current)
            continue
        error, rigid = _kept_rows(motion.error, rows), _kept_rows(motion.rigid, rows)
        coarse_wh = (max(1, error.shape[1] // _CELL), max(1, error.shape[0] // _CELL))
        moved = _moved(state.residual, motion.flow, rows)
        difference = moved - current
        allowed = state.share * (np.sqrt(_energy(error, coarse_wh)) + np.float32(QUIET))
        differs = np.sqrt(_energy(difference, coarse_wh)) + np.float32(1e-6)
        share_kept = (
            np.clip(1 - allowed / differs, 0, MOST)
            * cv2.resize(rigid, coarse_wh)
            * np.float32(amount)
        )
        result = current + _scaled(difference, share_kept.astype(np.float32))
        strength = (_energy(current, coarse_wh) + _FLOOR) / (_energy(result, coarse_wh) + _FLOOR)
        revival = np.clip(np.sqrt(strength), 1, REVIVED).astype(np.float32)
        result = _scaled(result, revival)
        # single pixels, not means: detail finer than the motion's pixels changes too
        error_wh = (error.shape[1], error.shape[0])
        pixels_now, pixels_before = (
            cv2.resize(each, error_wh, interpolation=cv2.INTER_NEAREST) for each in (result, moved)
        )
        small = pixels_now - pixels_before
        mask = None
        if masks is not None:
            mask = cv2.resize(masks[index % len(masks)], error_wh, interpolation=cv2.INTER_NEAREST)
        sums = [cv2.norm(each, cv2.NORM_L1, mask) / error.size for each in (error + small, error)]
        changes = tuple(MEMORY * old + new for old, new in zip(state.changes, sums, strict=True))
        ratio = min(2.0, (changes[0] + _FLOOR) / (changes[1] + _FLOOR))
        share = state.share * exp(STEERING * (TARGET - ratio))
        for channel in range(3):
            cv2.extractChannel(result, channel, dst=results[index, channel])
        state = TemporalState(result, min(HIGHEST_SHARE, max(LOWEST_SHARE, share)), changes)
    assert state is not None
    return torch.from_numpy(results), state


def _scaled(values: Floats, weights: Floats) -> Floats:
    """values (R, S, 3) by weights on a coarser grid."""
    import cv2

    enlarged = cv2.resize(weights, (values.shape[1], values.shape[0]))
    return np.asarray(cv2.multiply(values, cv2.merge([enlarged] * 3)), np.float32)


def _energy(values: Floats, coarse_wh: tuple[int, int]) -> Floats:
    """Mean square over the channels, on a coarse grid, over about twelve pixels of 256; (h, w)."""
    import cv2

    squares: Any = cv2.transform(cv2.multiply(values, values), _ONES)
    cells = cv2.resize(squares, coarse_wh, interpolation=cv2.INTER_AREA)
    # not cv2.blur: its running sums may end below 0
    return np.asarray(
        cv2.sepFilter2D(cells, -1, _THIRDS, _THIRDS, borderType=cv2.BORDER_REFLECT_101) / 3,
        np.float32,
    )


def _moved(residual: Floats, flow: Floats, rows: tuple[float, float]) -> Floats:
    """The previous residual (R, S, 3) warped by a flow (h, w, 2) of the whole face; cubic."""
    import cv2

    from .motion import pixels

    height, width = residual.shape[:2]
    field: Any = _kept_rows(flow, rows)
    scale = width / field.shape[1], height / field.shape[0]
    if field.shape[:2] != (height, width):
        field = cv2.resize(field, (width, height))
    places: Any = cv2.split(field)
    for place, grid, factor in zip(places, pixels(height, width), scale, strict=True):
        place *= np.float32(factor)
        place += grid
    x, y = places
    moved = cv2.remap(residual, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, np.float32)


def _steady_on_gpu(
    residual: torch.Tensor,
    motions: Sequence[Motion | None],
    state: TemporalState | None,
    amount: float,
    rows: tuple[float, float],
    support: torch.Tensor | None,
) -> tuple[torch.Tensor, TemporalState]:
    import torch

    size = (residual.shape[2], residual.shape[3])
    uploads = _uploaded(motions, rows, residual.device)
    results: list[torch.Tensor] = []
    for index, fields in enumerate(uploads):
        current = residual[index : index + 1]
        if state is None or state.residual.shape != current.shape:
            share = torch.tensor(FIRST_SHARE, device=residual.device)
            state = TemporalState(current, share, torch.zeros(2, device=residual.device))
        elif fields is None:
            state = replace(state, residual=current)
        else:
            flow, error, rigid = fields
            coarse = (max(1, error.shape[2] // _CELL), max(1, error.shape[3] // _CELL))
            moved = _sampled(state.residual, flow)
            difference = moved - current
            allowed = state.share * (_mean_square(error, coarse).sqrt() + QUIET)
            differs = _mean_square(difference, coarse).sqrt() + 1e-6
            share_kept = (
                (1 - allowed / differs).clamp(0, MOST)
                * resize(rigid, coarse, enlarge="bilinear")
                * amount
            )
            result = torch.addcmul(
                current, resize(share_kept, size, enlarge="bilinear"), difference
            )
            strength = (_mean_square(current, coarse) + _FLOOR) / (
                _mean_square(result, coarse) + _FLOOR
            )
            result = result * resize(strength.sqrt().clamp(1, REVIVED), size, enlarge="bilinear")
            mask = None if support is None else support[index % len(support)][None]
            share, changes = _steered(state, error, result - moved, mask)
            state = TemporalState(result, share, changes)
        results.append(state.residual)
    assert state is not None
    return torch.cat(results), state


def _uploaded(
    motions: Sequence[Motion | None], rows: tuple[float, float], device: torch.device
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None]:
    """Flow, error and rigidity of each motion on `device`, all of them in three transfers."""
    import torch

    indices = [index for index, motion in enumerate(motions) if motion is not None]
    uploads: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None] = [None] * len(motions)
    if not indices:
        return uploads
    fields = []
    for name in ("flow", "error", "rigid"):
        stacked = np.stack([_kept_rows(getattr(motions[index], name), rows) for index in indices])
        tensor = torch.from_numpy(stacked if stacked.ndim == 4 else stacked[..., None])
        tensor = tensor.pin_memory() if device.type == "cuda" else tensor
        fields.append(tensor.to(device, non_blocking=True).permute(0, 3, 1, 2))
    for place, index in enumerate(indices):
        flow, error, rigid = (field[place : place + 1].contiguous() for field in fields)
        uploads[index] = (flow, error, rigid)
    return uploads


def _mean_square(values: torch.Tensor, coarse: tuple[int, int]) -> torch.Tensor:
    from torch.nn.functional import avg_pool2d, pad

    cells = pooled(values.square().mean(1, keepdim=True), coarse)
    return avg_pool2d(pad(cells, (1, 1, 1, 1), mode="reflect"), 3, 1)


def _steered(
    state: TemporalState, error: torch.Tensor, change: torch.Tensor, support: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A share that steers the restored video's change to `TARGET` times the host's; new sums."""
    import torch
    from torch.nn.functional import interpolate

    small = (error.shape[2], error.shape[3])
    picked = interpolate(change, size=small, mode="nearest")
    both = torch.cat([(error + picked).abs().sum(1), error.abs().sum(1)])
    if support is not None:
        both = both * interpolate((support > 0).float(), size=small, mode="nearest")[:, 0]
    changes = MEMORY * state.changes + both.mean((1, 2)) / 3
    ratio = ((changes[0] + _FLOOR) / (changes[1] + _FLOOR)).clamp(max=2)
    share = (state.share * (STEERING * (TARGET - ratio)).exp()).clamp(LOWEST_SHARE, HIGHEST_SHARE)
    return share, changes


def _sampled(residual: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """`residual` (1, 3, R, S) moved by a flow (1, 2, h, w) of the same rows."""
    import torch
    from torch.nn.functional import grid_sample

    height, width = residual.shape[2:]
    scale = flow.new_tensor([2 / flow.shape[3], 2 / flow.shape[2]]).view(1, 2, 1, 1)
    steps = resize(flow * scale, (height, width), enlarge="bilinear").permute(0, 2, 3, 1)
    x = (torch.arange(width, device=residual.device, dtype=residual.dtype) + 0.5) * (2 / width) - 1
    y = (torch.arange(height, device=residual.device, dtype=residual.dtype) + 0.5) * (
        2 / height
    ) - 1
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]
    return grid_sample(
        residual, places + steps, mode="bicubic", padding_mode="border", align_corners=False
    )
