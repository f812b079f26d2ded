"""``match: source``: a mouth as sharp, as grainy and of the same color as the face around it.

The host's original crop of the same frame is the reference. It may show another mouth, so most is
measured around the mouth, where both show the same:

- Contrast: what the host's decoder takes off the octaves that are coarser than the finest is given
  back.
- Detail: each octave of what the restorer adds is scaled so that the face gets the energy that it
  has in the source: more where the restorer adds too little, less where it adds too much. Mouth and
  what is around it count the same.
- Color and light, at low frequencies, are carried on into the mouth.
- Skin: around the mouth the source's own pixels are taken where they show the same.

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
from ..frames.resize import empty, pooled, resize
from ..runtime.threads import for_each
from .stability.color import CELLS, low_frequencies

if TYPE_CHECKING:
    import torch

    Floats = NDArray[np.float64]

COARSEST = 32
"""Octaves are scaled down to this many pixels of their grid across a face, 3 of them of 256 px and
4 of 512; what is coarser is the restorer's."""
GREATEST_CONTRAST, LEAST_LIKENESS = 1.6, (0.9, 0.97)
"""Of an octave; and the correlation of frame and source in it around the mouth from which contrast
is given back, and from which all of it is. After a latent decoder (blend 0.35, noise 0.1) what the
octaves from the second on lack around the mouth is 1.05 to 1.32, at a correlation of 0.95 to 0.99,
and at the mouth 1.05 to 1.36; in the finest, at 0.6 to 0.9, nothing can be told."""
LEAST_GAIN, RAISE, GREATEST_GAIN, GUESSES = 0.1, 5.0, 4.0, (0.5, 1.5)
"""Of a band: the least gain; how much more than 1 it may be at most, times the square of its
correlation with the frame, as what is not like the frame is a guess, of which more would be noise;
and the greatest. The last pair are the bounds where only the face around the mouth tells its
energy: of 28 people the ratio of energies between mouth and upper face, over the same ratio in the
next coarser octave, is 0.6 to 1.5 at the median of an octave, and varies by a factor of 1.3
(coarse) to 2 (finest)."""
LEAST_SHARPNESS = 0.8
"""Share of the source's fine detail that a mouth gets even if it takes more of a guess."""
INERTIA, ROUNDS = 0.07, 8
"""Of solving for the gains, see `_gains`: with 0 they alternate between their bounds, and with 0.1
a mouth of 119 px stays at 0.78 of its sharpness in place of 0.81."""
FORGETTING, FORGOTTEN = 0.8, 24
"""Share of what is matched that comes from the frames before; and the frames without a source after
which nothing of it stays."""
SAME_TINT = 12 / 255
"""Low frequencies of source and result that differ by more than this show different things."""
PRIOR = 0.1
"""Support at which a cell gets its own tint and the mean tint in equal parts."""
SAME_SKIN, SKIN_NOISE, RISE = (0.3, 0.5), 2 / 255, 0.1
"""Difference of source and result in units of the source's contrast: below the first they show the
same skin, above the second they do not. It is 0.13 to 0.28 (resized to 96 px) and 0.22 to 0.54
(decoder) around the mouth before color is matched, 0.4 to 0.8 where the source is shifted by 2
pixels of 512, and 0.7 to 1.4 by 4. Contrast below `SKIN_NOISE` counts as that. The share of the
source's skin rises by at most `RISE` a frame."""
LEAST_CORRELATION = 0.8
"""Of the light of source and frame around the mouth; below it the source shows another pose."""
GRAIN_CELL, GRAIN_RANK = 8, 0.1
"""Noise is what the flattest tenth of the cells of this side, in pixels, holds."""
STRONGEST_GRAIN = 4 / 255
_TAPS = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
_LUMA = (0.299, 0.587, 0.114)
# rows and columns of the face above the mouth, and of its lower half, as shares
_UPPER, _LOWER = ((0.12, 0.50), (0.17, 0.83)), ((0.50, 1.00), (0.17, 0.83))
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
        contrast: factor of the frame's octaves but for its finest, finest first.
        gains: of the octaves of what is added, finest first.
        grain: energy of the noise that was added in each octave.
        tint: what was added at low frequencies, (3, rows, columns), a grid over the frame.
        skin: share of the source's own pixels, (1, 1, rows, columns), a grid over the frame.
        frame: number of the frame, which seeds its grain.
        absent: frames since the last one with a source that fits.
        size_hw: height and width of the result; one of another size begins anew.
    """

    contrast: tuple[float, ...]
    gains: tuple[float, ...]
    grain: tuple[float, ...]
    tint: torch.Tensor | None = None
    skin: torch.Tensor | None = None
    frame: int = 0
    absent: int = 0
    size_hw: tuple[int, int] | None = None

    @classmethod
    def neutral(cls, octaves: int) -> MatchState:
        """That changes nothing."""
        return cls((1.0,) * octaves, (1.0,) * octaves, (0.0,) * octaves)

    def to(self, device: torch.device) -> MatchState:
        """The same on another device."""
        tint, skin = (None if each is None else each.to(device) for each in (self.tint, self.skin))
        return replace(self, tint=tint, skin=skin)

    def then(self, target: MatchState) -> MatchState:
        """What a frame gets that by itself needs `target`, steadied by this one before it."""
        contrast, gains, grain = (
            tuple(FORGETTING * a + (1 - FORGETTING) * b for a, b in zip(old, new, strict=True))
            for old, new in (
                (self.contrast, target.contrast),
                (self.gains, target.gains),
                (self.grain, target.grain),
            )
        )
        tints = [
            share * each.tint
            for share, each in ((FORGETTING, self), (1 - FORGETTING, target))
            if each.tint is not None
        ]
        tint = sum(tints[1:], tints[0]) if tints else None
        return replace(target, contrast=contrast, gains=gains, grain=grain, tint=tint)


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
        sources: of each frame; None where there is none, or it does not fit: what is matched then
            fades, over a few frames.
        landmarks: of each frame, (5, 2), as shares of its width and height; None where unknown.
        cuts: whether a scene begins with a frame.
        first_row: of the rows that may change.
        state: of the frame before the first; None at the beginning of a stream.

    Returns:
        The residual; what colors and grain add to it, in the same form; and the new state. The
        latter is to be added after everything that judges the restored detail.
    """
    import torch

    size = _size(base)
    count = max(1, round(log2(min(size) / COARSEST)))
    if state is not None:  # the network may have moved since
        state = state.to(base.device) if state.size_hw == size else None
    # Each frame by itself, so that a stream is the same in any batches; and all are measured before
    # anything is read, as each reading of a GPU waits for it.
    pairs = [
        None
        if source is None
        else _Pair.of(base[index, None], residual[index, None], source, points, count)
        for index, (source, points) in enumerate(zip(sources, landmarks, strict=True))
    ]
    likenesses = _read([None if pair is None else pair.likeness() for pair in pairs])
    contrasts = [
        None if pair is None or values is None else _contrast(pair, values)
        for pair, values in zip(pairs, likenesses, strict=True)
    ]
    pairs = [
        None if pair is None or contrast is None else pair.with_contrast(contrast)
        for pair, contrast in zip(pairs, contrasts, strict=True)
    ]
    energies = _read([None if pair is None else pair.energies() for pair in pairs])
    added = torch.zeros_like(residual)
    for index, (pair, contrast, values) in enumerate(zip(pairs, contrasts, energies, strict=True)):
        target, absent = MatchState.neutral(count), 0 if state is None else state.absent + 1
        if pair is not None and contrast is not None and values is not None:
            target, absent = _target(pair, contrast, values), 0
        frame = 0 if state is None else state.frame
        before = None if cuts[index] or absent == FORGOTTEN else state
        target = target if before is None else before.then(target)
        state = replace(target, frame=frame + 1, absent=absent, size_hw=size)
        place = slice(index, index + 1)
        coarse = None if pair is None else pair.coarse
        _apply(state, base[place], residual[place], added[place], coarse)
        if pair is not None and not pair.is_frame:
            restored = _restored(base[place], residual[place] + added[place])
            reference = resize(pair.reference, size)
            skin = pair.skin(restored, reference)
            if before is not None:  # it falls at once, so that nothing flickers
                earlier = torch.zeros_like(skin) if before.skin is None else before.skin
                skin = torch.minimum(skin, earlier + RISE)
            state = replace(state, skin=skin)
            share = resize(skin, size, enlarge="bilinear")
            added[place] += (share * (reference - restored))[:, :, first_row:]
    assert state is not None
    return residual, added, state


def _apply(
    state: MatchState,
    picture: torch.Tensor,
    detail: torch.Tensor,
    added: torch.Tensor,
    coarse: list[torch.Tensor] | None,
) -> None:
    """Change what one frame gets, `detail` and what is `added` to it, (1, 3, R, W), in place."""
    count, first_row = len(state.gains), int(picture.shape[2] - detail.shape[2])
    regained = None
    if max(state.contrast) > 1:
        coarse = coarse or _coarse_octaves(_restored(picture, detail), count)
        regained = _regained(coarse, state.contrast, _size(picture))[:, :, first_row:]
    if any(gain != 1 for gain in state.gains):
        for band, gain in zip(octaves(detail, count), state.gains, strict=True):
            detail.add_(band, alpha=gain - 1)
    if regained is not None:
        detail.add_(regained)
    if state.tint is not None:
        tint = resize(state.tint[None], _size(picture), enlarge="bilinear")
        added.add_(tint[:, :, first_row:])
    if max(state.grain) > 0:
        added.add_(_grain(state, _size(detail)).to(added.device))


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

        result = empty(tuple(values.shape), values.device)

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


@dataclass(frozen=True)
class _Pair:
    """A frame and its source.

    Attributes:
        picture: the frame, (1, 3, H, W).
        detail: what is added to its lower rows, (1, 3, R, W).
        restored: both together, (1, 3, H, W).
        reference: the source, (1, 3, h, w), on the same device.
        points: landmarks; or None.
        is_frame: see `Source`.
        size: at which sharpness is compared: the source's, as that is mostly the face's in the
            video, or the frame's where that is smaller.
        count: octaves of the frame.
        finer: how many of them are finer than the source shows.
        coarse: octaves of the restored frame at half its size.
    """

    picture: torch.Tensor
    detail: torch.Tensor
    restored: torch.Tensor
    reference: torch.Tensor
    points: NDArray[np.floating[Any]] | None
    is_frame: bool
    size: tuple[int, int]
    count: int
    finer: int
    coarse: list[torch.Tensor]

    @classmethod
    def of(
        cls,
        picture: torch.Tensor,
        detail: torch.Tensor,
        source: Source,
        points: NDArray[np.floating[Any]] | None,
        count: int,
    ) -> _Pair:
        """Of a frame and the source that the host passes."""
        reference = source.picture[None].to(picture.device)
        (height, width), (rows, columns) = _size(picture), _size(reference)
        size = (min(height, rows), min(width, columns))
        finer = min(count, round(log2(max(height / size[0], width / size[1]))))
        restored = _restored(picture, detail)
        coarse = _coarse_octaves(restored, count)
        is_frame = source.is_frame
        return cls(
            picture, detail, restored, reference, points, is_frame, size, count, finer, coarse
        )

    def with_contrast(self, contrast: tuple[float, ...]) -> _Pair:
        """The same, with a contrast given back to the restored frame."""
        if max(contrast) <= 1:
            return self
        regained = _regained(self.coarse, contrast, _size(self.restored))
        return replace(self, restored=self.restored + regained)

    def mouth(self, size_hw: tuple[int, int]) -> torch.Tensor:
        """Where the mouth is, (1, 1, *size_hw), 0..1."""
        mask = region_mask("mouth", size_hw, [self.points], self.picture.device)
        assert mask is not None
        return mask

    def around(self, size_hw: tuple[int, int]) -> torch.Tensor:
        """Where the face around the mouth is, in the lower half, (1, 1, *size_hw), 0..1."""
        weights = 1 - self.mouth(size_hw)
        rows, columns = _slices(_LOWER, size_hw)
        inside = weights.new_zeros(weights.shape)
        inside[:, :, rows, columns] = weights[:, :, rows, columns]
        return inside

    def likeness(self) -> torch.Tensor:
        """How alike both are but for the mouth: their products, and those of each coarse octave.

        Returns:
            (3 + 3 * count,): of the frame with itself, of both, of the source with itself.
        """
        import torch

        cells = (16, 16)
        weights = 1 - self.mouth(cells)
        lights = [resize(_luma(each), cells) for each in (self.picture, self.reference)]
        one, other = (each - (each * weights).sum() / weights.sum() for each in lights)
        products = [_products(one, other, weights)]
        size = _size(self.coarse[0])
        weights = self.around(size)
        theirs = octaves(resize(_luma(self.reference), size), self.count)
        for mine, other in zip(self.coarse, theirs, strict=True):
            products.append(_products(_luma(mine), other, weights))
        return torch.cat(products)

    def energies(self) -> torch.Tensor:
        """What `_target` needs to know of the sharpness of both, in one row.

        Of each octave that the source shows the noise of both, and at the mouth and around it (only
        at it, where the source is the frame) the products of the parts of the frame, what stays and
        each band; then, of each and the next coarser one, the energy of the source at the eyes, and
        at those places; and, unless the source is the frame, the products of the parts' fine detail
        at the mouth, and its energy in the source.
        """
        import torch
        from torch.nn.functional import interpolate, pad

        whole, shown = _size(self.picture), self.count - self.finer
        if not shown:
            return self.picture.new_zeros(0)
        above = (0, 0, whole[0] - int(self.detail.shape[2]), 0)
        light = _luma(self.restored)
        bands = octaves(_luma(self.detail), self.count)
        # octaves that the source cannot show are scaled with the finest that it can
        bands = [torch.cat(bands[: self.finer + 1]).sum(0, keepdim=True), *bands[self.finer + 1 :]]
        parts = pad(torch.cat(bands), above)
        planes = torch.cat([light - parts.sum(0, keepdim=True), parts])
        if self.size != whole:  # sampled as hosts do
            planes = interpolate(planes, size=self.size, mode="bilinear", align_corners=False)
        ours = octaves(planes, shown)
        theirs = octaves(resize(_luma(self.reference), self.size), shown + 1)
        places = [self.mouth(self.size)] + ([] if self.is_frame else [self.around(self.size)])
        weights = [(place / place.sum().clamp(min=1)).flatten() for place in places]
        values = []
        for mine, other in zip(ours, theirs[:-1], strict=True):
            values += [_noise(mine.sum(0, keepdim=True)), _noise(other)]
            flat = mine.flatten(1)
            values += [((flat * weight) @ flat.T).flatten() for weight in weights]
        for other in theirs:
            values += [_at_eyes(other)]
            values += [(other.flatten().square() * weight).sum().view(1) for weight in weights]
        if not self.is_frame:
            flat = _fine(planes).flatten(1)
            values += [((flat * weights[0]) @ flat.T).flatten()]
            other = _fine(resize(_luma(self.reference), self.size))
            values += [(other.flatten().square() * weights[0]).sum().view(1)]
        return torch.cat(values)

    def skin(self, restored: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Where both, (1, 3, H, W), show the same around the mouth, (1, 1, rows, columns), 0..1."""
        one, other = _luma(restored), _luma(reference)
        variance = low_frequencies(other.square()) - low_frequencies(other).square()
        error = low_frequencies((other - one).square())
        unlike = (error / (variance.clamp(min=0) + SKIN_NOISE**2)).sqrt()
        low, high = SAME_SKIN
        return ((high - unlike) / (high - low)).clamp(0, 1) * self.around(_size(unlike))

    def tint(self) -> torch.Tensor:
        """Low frequencies that the source has more, (3, rows, columns), from around the mouth."""
        cells = (CELLS, CELLS)
        difference = resize(self.reference, cells) - resize(self.restored, cells)
        agree = 1 - low_frequencies(difference).abs().amax(1, keepdim=True) / SAME_TINT
        support = (1 - self.mouth(cells)) * agree.clamp_(0, 1)
        mean = (difference * support).sum((2, 3), keepdim=True) / support.sum().clamp(min=1)
        local = low_frequencies(difference - mean, support, PRIOR)
        return (mean + local)[0].clamp_(-SAME_TINT, SAME_TINT)


def _contrast(pair: _Pair, values: Floats) -> tuple[float, ...] | None:
    """Factors that the octaves of a frame's half lack; None where the source shows something else.

    A factor is the regression of source on frame, as the energy of noise must not lower it.
    """
    (one, both, other), *rows = values.reshape(-1, 3)
    if not both > max(_FLOOR, LEAST_CORRELATION * (one * other) ** 0.5):  # nor where it is NaN
        return None
    factors = []
    for octave, (one, both, other) in enumerate(rows):
        likeness = both / ((one * other) ** 0.5 + _FLOOR)
        low, high = LEAST_LIKENESS
        trust = min(max((likeness - low) / (high - low), 0.0), 1.0)
        if pair.is_frame or octave < pair.finer:
            trust = 0.0
        slope = both / (one + _FLOOR)
        factors.append(1 + trust * (min(max(slope, 1.0), GREATEST_CONTRAST) - 1))
    return tuple(factors)


def _target(pair: _Pair, contrast: tuple[float, ...], values: Floats) -> MatchState:
    """What a frame by itself needs."""
    target = MatchState.neutral(pair.count)
    target = replace(target, contrast=contrast, tint=None if pair.is_frame else pair.tint())
    shown = pair.count - pair.finer
    if not shown:
        return target
    side, places = shown + 1, 1 if pair.is_frame else 2
    values, fine = np.split(values, [len(values) - (0 if pair.is_frame else side**2 + 1)])
    rows, rest = np.split(values, [-side * (1 + places)])
    ours, theirs, *_ = rows.reshape(shown, -1).T
    grams = rows.reshape(shown, -1)[:, 2:].reshape(shown, places, side, side)
    at_eyes, *energies = rest.reshape(side, 1 + places).T
    floors = np.zeros(shown)
    if pair.is_frame:
        # an octave that softness leaves alone tells the contrast of mouth to upper face
        mouth = energies[0]
        aims = [mouth[-1] / (at_eyes[-1] + _FLOOR) * at_eyes[:-1]]
        bounds = [GUESSES] * shown
    else:
        if shown > 1 and theirs[0] > theirs[1]:  # noise is strongest at its finest
            floors = theirs
        aims = [np.maximum(energy[:-1] - floors, 0) for energy in energies]
        bounds = _bounds(grams[:, 1])
    products, wanted = grams.swapaxes(0, 1).reshape(-1, side, side), np.concatenate(aims)
    gains = _gains(products, wanted, bounds)
    if not pair.is_frame:
        aim = fine[-1] * aims[0][0] / (energies[0][0] + _FLOOR)  # without the source's noise
        lacks = (products @ [1.0, *gains] @ [1.0, *gains] < wanted).reshape(places, -1).all(0)
        gains = _raised(gains, fine[:-1].reshape(side, side), aim, lacks)
    grain = np.clip(np.where(floors > 0, floors - ours, 0), 0, STRONGEST_GRAIN**2)
    return replace(
        target,
        gains=(gains[0],) * pair.finer + tuple(gains),
        grain=(0.0,) * pair.finer + tuple(grain.tolist()),
    )


def _bounds(grams: Floats) -> list[tuple[float, float]]:
    """The least and greatest gain of each band."""
    bounds = []
    for band, gram in enumerate(grams, 1):
        likeness = gram[0, band] / ((gram[0, 0] * gram[band, band]) ** 0.5 + _FLOOR)
        raised = 1 + RAISE * max(0.0, likeness) ** 2
        bounds.append((LEAST_GAIN, min(raised, GREATEST_GAIN)))
    return bounds


def _raised(gains: list[float], gram: Floats, aim: float, lacks: NDArray[np.bool_]) -> list[float]:
    """Gains of bands, with those that lack energy raised by one factor where a mouth has less than
    `LEAST_SHARPNESS` of its fine detail.

    Args:
        gains: of each band.
        gram: of the fine detail at the mouth, the products of its parts, as in `_gains`.
        aim: the energy that it has in the source.
        lacks: whether the octave of each band has too little energy.
    """
    raised = np.array([0.0, *np.where(lacks, gains, 0)])
    rest = np.array([1.0, *gains]) - raised
    square, cross = raised @ gram @ raised, rest @ gram @ raised
    short = LEAST_SHARPNESS * aim - rest @ gram @ rest
    if not square > _FLOOR or square + 2 * cross >= short:
        return gains
    factor = ((cross**2 + square * short) ** 0.5 - cross) / square
    higher = np.minimum(factor * np.array(gains), GREATEST_GAIN)
    return [float(gain) for gain in np.where(lacks, np.maximum(gains, higher), gains)]


def _gains(grams: Floats, aims: Floats, bounds: Sequence[tuple[float, float]]) -> list[float]:
    """Of each band, so that the octaves of the whole come near the energies `aims`.

    An octave has something of the bands beside it, too: least squares of logarithms, by Gauss and
    Newton's method, where a gain's distance from 1 costs `INERTIA` times that of an amplitude.

    Args:
        grams: of each octave, and at each place, the products of its parts: of what stays, and of
            each band.
        aims: of each.
        bounds: least and greatest gain of each band.
    """
    limits = np.log(bounds).T
    logs = np.zeros(len(bounds))
    damping = INERTIA**2 * np.eye(len(bounds))
    for _ in range(ROUNDS):
        parts = np.exp(np.concatenate([[0], logs]))
        products = grams @ parts
        energies = np.maximum(products @ parts, 0) + _FLOOR
        errors = np.log((aims + _FLOOR) / energies) / 2
        slopes = (products * parts)[:, 1:] / energies[:, None]
        step = np.linalg.solve(slopes.T @ slopes + damping, slopes.T @ errors - damping @ logs)
        logs = np.clip(logs + step, *limits)
    return [float(gain) for gain in np.exp(logs)]


def _restored(picture: torch.Tensor, detail: torch.Tensor) -> torch.Tensor:
    """A frame with what is added to its lower rows; a copy."""
    restored = picture.clone()
    restored[:, :, picture.shape[2] - detail.shape[2] :] += detail
    return restored


def _coarse_octaves(restored: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Octaves of a frame at half its size: those of the frame but for its finest."""
    height, width = _size(restored)
    return octaves(resize(restored, ((height + 1) // 2, (width + 1) // 2)), count)


def _regained(
    coarse: Sequence[torch.Tensor], contrast: Sequence[float], size_hw: tuple[int, int]
) -> torch.Tensor:
    """What brings the octaves of a frame's half to their `contrast`, at the frame's size."""
    lacking = coarse[0] * (contrast[0] - 1)
    for band, factor in zip(coarse[1:], contrast[1:], strict=True):
        lacking.add_(band, alpha=factor - 1)
    return resize(lacking, size_hw, enlarge="bilinear")


def _products(one: torch.Tensor, other: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Of the first with itself, of both, of the second with itself, (3,)."""
    import torch

    return torch.stack(
        [(weights * a * b).sum() for a, b in ((one, one), (one, other), (other, other))]
    )


def _read(rows: Sequence[torch.Tensor | None]) -> list[Floats | None]:
    """Tensors of one dimension, fetched at once."""
    import torch

    given = [row for row in rows if row is not None]
    if not given:
        return [None] * len(rows)
    values = torch.cat(given).cpu().numpy().astype(np.float64)
    parts = iter(np.split(values, np.cumsum([len(row) for row in given])[:-1]))
    return [None if row is None else next(parts) for row in rows]


def _grain(state: MatchState, size_hw: tuple[int, int]) -> torch.Tensor:
    """Noise with the energies of `state.grain` in its octaves, gray, (1, 1, *size_hw)."""
    import torch

    generator = torch.Generator().manual_seed(state.frame)
    noise = torch.randn((1, 1, *size_hw), generator=generator, device="cpu")
    total = torch.zeros_like(noise)
    for band, energy in zip(octaves(noise, len(state.grain)), state.grain, strict=True):
        total.add_(band, alpha=(energy / (float(band.square().mean()) + _FLOOR)) ** 0.5)
    return total


def _fine(planes: torch.Tensor) -> torch.Tensor:
    """Fine detail of planes, (N, 1, H, W): the Laplacian after a Gaussian of 0.8 pixels, as in
    `fine_detail_energy`."""
    import cv2
    import torch
    from torch.nn.functional import conv2d, pad

    taps = cv2.getGaussianKernel(7, 0.8)
    kernel = cv2.Laplacian(np.pad(taps @ taps.T, 1), cv2.CV_64F)
    weights = torch.as_tensor(kernel, dtype=planes.dtype, device=planes.device)[None, None]
    return conv2d(pad(planes, (4,) * 4, mode="reflect"), weights)


def _noise(band: torch.Tensor) -> torch.Tensor:
    """Energy of a band, (1, 1, H, W), where the picture is flat; (1,)."""
    height, width = (max(1, side // GRAIN_CELL) for side in band.shape[2:])
    cells = pooled(band.square(), (height, width)).flatten()
    return cells.kthvalue(max(1, round(GRAIN_RANK * len(cells)))).values.view(1)


def _at_eyes(band: torch.Tensor) -> torch.Tensor:
    """Energy of a whole frame's band at the eyes and the forehead; (1,)."""
    rows, columns = _slices(_UPPER, _size(band))
    return band[:, :, rows, columns].square().mean().view(1)


def _slices(shares: Sequence[tuple[float, float]], size_hw: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns from their shares."""
    rows, columns = (
        slice(round(low * side), round(high * side))
        for (low, high), side in zip(shares, size_hw, strict=True)
    )
    return rows, columns


def _luma(picture: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) to (N, 1, H, W), by Rec. 601."""
    red, green, blue = _LUMA
    return red * picture[:, 0:1] + green * picture[:, 1:2] + blue * picture[:, 2:3]


def _size(values: torch.Tensor) -> tuple[int, int]:
    return int(values.shape[2]), int(values.shape[3])
