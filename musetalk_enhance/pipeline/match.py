"""``match: source``: a mouth as sharp, as grainy and of the same color as the face around it.

The host's original crop of the same frame is the reference. What the restorer adds is taken apart
into octaves, and each octave is scaled so that the mouth gets the energy that it has in the source:
more where the restorer adds too little, less where it adds too much. An octave that is too fine
for the size of the source gets the gain of the next one. Color and light are the source's where the
two show the same, carried on into the mouth from around it.

The octaves are those of the stationary wavelet transform with a cubic spline ("à trous"; Starck,
Murtagh and Bijaoui, Image Processing and Data Analysis, 1998).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log2
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..faces.regions import region_mask
from ..frames.resize import pooled, resize
from ..runtime.threads import for_each
from .stability.color import low_frequencies

if TYPE_CHECKING:
    import torch

COARSEST = 32
"""Octaves are scaled down to this many pixels of their grid across a face, 3 of them of 256 px and
4 of 512; what is coarser is the restorer's."""
GREATEST_GAIN, GUESSES = 2.5, (0.5, 1.5)
"""Of a band: more would make noise of what a restorer has guessed. The second pair are the bounds
where only the face around the mouth tells its energy: of 28 people the ratio of energies between
mouth and upper face, over the same ratio in the next coarser octave, is 0.6 to 1.5 at the median of
an octave, and varies by a factor of 1.3 (coarse) to 2 (finest)."""
FORGETTING = 0.8
"""Share of gains, tint and grain that comes from the frames before."""
SAME_TINT = 12 / 255
"""Low frequencies of source and result that differ by more than this show different things."""
PRIOR = 0.1
"""Support at which a cell gets its own tint and the mean tint in equal parts."""
LEAST_CORRELATION = 0.8
"""Of the light of source and frame around the mouth; below it the source shows another pose."""
GRAIN_CELL, GRAIN_RANK = 8, 0.1
"""Noise is what the flattest tenth of the cells of this side, in pixels, holds."""
STRONGEST_GRAIN = 4 / 255
_TAPS = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
_LUMA = (0.299, 0.587, 0.114)
_UPPER = (0.12, 0.50, 0.17, 0.83)  # rows and columns of the face above the mouth, as shares
_FLOOR = 1e-9


@dataclass(frozen=True)
class Source:
    """The host's original of a frame.

    Attributes:
        picture: float32 (3, h, w), RGB, 0..1, any size.
        is_frame: it is the very frame that is restored, so that only the face around the mouth
            tells how sharp the mouth should be.
    """

    picture: torch.Tensor
    is_frame: bool = False


@dataclass(frozen=True)
class MatchState:
    """What a stream remembers of its matching.

    Attributes:
        gains: of the octaves, finest first.
        grain: energy of the noise that was added in each octave.
        tint: what was added at low frequencies, (3, rows, columns), a grid over the rows that may
            change.
        frame: number of the frame, which seeds its grain.
        size_hw: height and width of the result; one of another size begins anew.
    """

    gains: tuple[float, ...]
    grain: tuple[float, ...]
    tint: torch.Tensor | None = None
    frame: int = 0
    size_hw: tuple[int, int] | None = None

    @classmethod
    def neutral(cls, octaves: int) -> MatchState:
        """That changes nothing."""
        return cls((1.0,) * octaves, (0.0,) * octaves)

    def to(self, device: torch.device) -> MatchState:
        """The same on another device."""
        return self if self.tint is None else replace(self, tint=self.tint.to(device))


def match(
    base: torch.Tensor,
    residual: torch.Tensor,
    sources: Sequence[Source | None],
    landmarks: Sequence[NDArray[np.floating[Any]] | None],
    cuts: Sequence[bool],
    first_row: int,
    state: MatchState | None,
) -> tuple[torch.Tensor, torch.Tensor, MatchState]:
    """Scale what a restorer adds to the sources' sharpness.

    Args:
        base: the host's frames at the output's size, float32 (N, 3, H, W), RGB, 0..1.
        residual: what is added to them, from `first_row` down, (N, 3, R, W); changed in place.
        sources: of each frame; None where there is none, or it does not fit: the gains then return
            to 1, over a few frames.
        landmarks: of each frame, (5, 2), as shares of its width and height; None where unknown.
        cuts: whether a scene begins with a frame.
        first_row: of the rows that may change.
        state: of the frame before the first; None at the beginning of a stream.

    Returns:
        The residual; what colors and grain add to it, in the same form; and the new state. The
        latter is to be added after everything that judges the restored detail.
    """
    import torch

    rows = base[:, :, first_row:]
    added = torch.zeros_like(residual)
    count = max(1, round(log2(min(base.shape[2:]) / COARSEST)))
    if state is not None:  # the network may have moved since
        state = state.to(base.device) if state.size_hw == _size(base) else None
    for index, source in enumerate(sources):
        frame = 0 if state is None else state.frame
        picture, detail = base[index : index + 1], residual[index : index + 1]
        bands = octaves(detail, count)
        target = MatchState.neutral(count)
        if source is not None:
            reference = resize(source.picture[None].to(base.device), _size(base))
            points = landmarks[index]
            mouth = region_mask("mouth", _size(base), [points], base.device)
            assert mouth is not None
            if _fits(picture, reference, 1 - mouth):
                unknown = _too_fine(source.picture, base)
                target = _target(
                    picture, detail, bands, reference, mouth, first_row, source.is_frame, unknown
                )
        mixed = target if state is None or cuts[index] else _mixed(state, target)
        state = replace(mixed, frame=frame + 1, size_hw=_size(base))
        for band, gain in zip(bands, state.gains, strict=True):
            if gain != 1:
                detail.add_(band, alpha=gain - 1)
        if state.tint is not None:
            size = (int(detail.shape[2]), int(detail.shape[3]))
            added[index : index + 1] += resize(state.tint[None], size, enlarge="bilinear")
        if max(state.grain) > 0:
            added[index : index + 1] += _grain(rows[index : index + 1], state)
    assert state is not None
    return residual, added, state


def octaves(values: torch.Tensor, count: int) -> list[torch.Tensor]:
    """The finest octaves of float32 (N, C, H, W), each in that form; their sum and what is coarser
    give `values`."""
    bands: list[torch.Tensor] = []
    for octave in range(count):
        smooth = _smoothed(values, 2**octave)
        bands.append(values - smooth)
        values = smooth
    return bands


def _smoothed(values: torch.Tensor, step: int) -> torch.Tensor:
    """Convolved with the spline's taps, `step` pixels apart, mirrored at the edge."""
    import torch
    from torch.nn.functional import conv2d, pad

    number, channels, height, width = values.shape
    taps = np.zeros(4 * step + 1, np.float32)
    taps[::step] = _TAPS
    reach = 2 * step
    if values.device.type == "cpu":
        import cv2

        result = torch.empty_like(values)

        def smooth(source: NDArray[np.float32], target: NDArray[np.float32]) -> None:
            cv2.sepFilter2D(source, -1, taps, taps, dst=target, borderType=cv2.BORDER_REFLECT_101)

        planes = values.contiguous().numpy().reshape(-1, height, width)
        for_each(smooth, planes, result.numpy().reshape(-1, height, width))
        return result
    kernel = torch.from_numpy(taps).to(values.device)
    flat = values.reshape(number * channels, 1, height, width)
    flat = conv2d(pad(flat, (reach, reach, 0, 0), mode="reflect"), kernel.view(1, 1, 1, -1))
    flat = conv2d(pad(flat, (0, 0, reach, reach), mode="reflect"), kernel.view(1, 1, -1, 1))
    return flat.view(values.shape)


def _target(
    picture: torch.Tensor,
    detail: torch.Tensor,
    bands: list[torch.Tensor],
    reference: torch.Tensor,
    mouth: torch.Tensor,
    first_row: int,
    is_frame: bool,
    unknown: int,
) -> MatchState:
    """What one frame by itself needs.

    All are (1, ., H, W), but for `detail` and its `bands`, which begin at `first_row`; of `unknown`
    octaves the source shows nothing.
    """
    count = len(bands)
    given = [band[:, :, first_row:] for band in octaves(_luma(picture), count)]
    *whole, coarse = octaves(_luma(reference), count + 1)
    added = [_luma(band) for band in bands]
    weights = mouth[:, :, first_row:]
    share = float(weights.sum()) + _FLOOR

    def at_mouth(band: torch.Tensor) -> float:
        return float((band[:, :, first_row:].square() * weights).sum()) / share

    # an octave that softness leaves alone tells how the contrast of mouth and upper face compare
    contrast = at_mouth(coarse) / (_at_eyes(coarse) + _FLOOR)
    floors = [0.0 if is_frame else _noise(band[:, :, first_row:]) for band in whole]
    if unknown + 1 < count and floors[unknown] <= floors[unknown + 1]:
        floors = [0.0] * count  # noise is strongest at its finest: this is structure
    gains, grain = [], []
    for ours, extra, theirs, floor in zip(given, added, whole, floors, strict=True):
        aim = contrast * _at_eyes(theirs) if is_frame else at_mouth(theirs)
        energies = [
            float((one * other * weights).sum()) / share
            for one, other in ((ours, ours), (ours, extra), (extra, extra))
        ]
        gain = _gain(energies[0], energies[1], energies[2], max(0.0, aim - floor))
        low, high = GUESSES if is_frame else (0.0, GREATEST_GAIN)
        gain = min(max(gain, low), high)
        gains.append(gain)
        left = floor - _noise(ours + gain * extra) if floor else 0.0
        grain.append(min(max(0.0, left), STRONGEST_GRAIN**2))
    tint = None
    if not is_frame:
        # octaves that are scaled have no low frequencies: of what is added, the rest matters
        restored = picture[:, :, first_row:] + detail
        tint = _tint(restored, reference[:, :, first_row:], 1 - weights)
    if unknown < count:
        gains[:unknown] = [gains[unknown]] * unknown
        grain[:unknown] = [0.0] * unknown
    else:
        gains, grain = [1.0] * count, [0.0] * count
    return MatchState(tuple(gains), tuple(grain), tint)


def _gain(ours: float, common: float, extra: float, aim: float) -> float:
    """How much of a band brings its energy to `aim`: ours + 2 gain common + gain^2 extra = aim.

    The smallest gain that does, or the one that comes nearest; 0 where nothing need be added.
    """
    if extra <= _FLOOR * max(ours, _FLOOR):
        return 1.0
    excess = ours - aim
    root = max(0.0, common * common - extra * excess) ** 0.5
    if excess > 0:
        gain = (-common - root) / extra if common < 0 else 0.0
    else:
        gain = (-common + root) / extra
    return max(gain, 0.0)


def _tint(restored: torch.Tensor, reference: torch.Tensor, around: torch.Tensor) -> torch.Tensor:
    """Low frequencies that the source has more than the result, (3, rows, columns), from around."""
    difference = reference - restored
    coarse = low_frequencies(difference)
    agree = (1 - coarse.abs().amax(1, keepdim=True) / SAME_TINT).clamp_(0, 1)
    support = around * resize(agree, _size(around), enlarge="bilinear")
    mean = (difference * support).sum((2, 3), keepdim=True) / support.sum().clamp(min=1)
    local = low_frequencies(difference - mean, support, PRIOR)
    return (mean + local)[0].clamp_(-SAME_TINT, SAME_TINT)


def _too_fine(source: torch.Tensor, base: torch.Tensor) -> int:
    """How many of the finest octaves a source of that size cannot show."""
    scale = max(base.shape[2] / source.shape[1], base.shape[3] / source.shape[2])
    return max(0, round(log2(scale)))


def _fits(picture: torch.Tensor, reference: torch.Tensor, around: torch.Tensor) -> bool:
    """Whether both show the same face in the same place, but for its mouth."""
    cells = (16, 16)
    weights = pooled(around, cells)
    lights = [pooled(_luma(each), cells) for each in (picture, reference)]
    centered = [each - (each * weights).sum() / weights.sum() for each in lights]
    one, both, other = (
        float((weights * first * second).sum())
        for first, second in (
            (centered[0], centered[0]),
            (centered[0], centered[1]),
            (centered[1], centered[1]),
        )
    )
    return bool(both > max(_FLOOR, LEAST_CORRELATION * (one * other) ** 0.5))


def _mixed(before: MatchState, target: MatchState) -> MatchState:
    """What a frame gets: what it needs by itself, steadied by the frames before."""
    share = 1 - FORGETTING
    gains, grain = (
        tuple(FORGETTING * old + share * new for old, new in zip(*pair, strict=True))
        for pair in ((before.gains, target.gains), (before.grain, target.grain))
    )
    tints = [
        weight * state.tint
        for weight, state in ((FORGETTING, before), (share, target))
        if state.tint is not None
    ]
    return MatchState(gains, grain, sum(tints[1:], tints[0]) if tints else None)


def _grain(rows: torch.Tensor, state: MatchState) -> torch.Tensor:
    """Noise with the energies of `state.grain` in its octaves, gray, (1, 1, R, W)."""
    import torch

    generator = torch.Generator().manual_seed(state.frame)
    noise = torch.randn((1, 1, *rows.shape[2:]), generator=generator, device="cpu")
    total = torch.zeros_like(noise)
    for band, energy in zip(octaves(noise, len(state.grain)), state.grain, strict=True):
        total.add_(band, alpha=(energy / (float(band.square().mean()) + _FLOOR)) ** 0.5)
    return total.to(rows.device)


def _noise(band: torch.Tensor) -> float:
    """Energy of a band where the picture is flat."""
    height, width = (max(1, side // GRAIN_CELL) for side in band.shape[2:])
    cells = pooled(band.square(), (height, width)).flatten()
    return float(cells.kthvalue(max(1, round(GRAIN_RANK * len(cells)))).values)


def _at_eyes(band: torch.Tensor) -> float:
    """Energy of a whole frame's band at the eyes and the forehead."""
    height, width = band.shape[2:]
    top, bottom, left, right = _UPPER
    rows = slice(round(top * height), round(bottom * height))
    return float(band[:, :, rows, round(left * width) : round(right * width)].square().mean())


def _luma(picture: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) to (N, 1, H, W), by Rec. 601."""
    red, green, blue = _LUMA
    return red * picture[:, 0:1] + green * picture[:, 1:2] + blue * picture[:, 2:3]


def _size(values: torch.Tensor) -> tuple[int, int]:
    return int(values.shape[2]), int(values.shape[3])
