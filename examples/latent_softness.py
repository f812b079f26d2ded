"""Softness like a latent decoder's, without its weights.

What a latent decoder does to a face is no resize: edges stay, teeth and pores smear, contrast in
the middle frequencies drops, and a fine texture comes in at the grid of the latents, one for 8
pixels. Here the coefficients of a lapped cosine transform with the same grid stand in for the
latents: each is mixed with its neighbors on the grid and weakened, except where it is large (an
edge), the finest are dropped, and noise and a pattern that repeats with the grid are added.

On 13 faces (portraits, frames of clips, this demo's own) this was set against a real latent
autoencoder (8 pixels a latent, 32 channels; latents blurred by 0.35, noise 0.1); means, of the
sharpness (variance of the Laplacian) the median:

| | PSNR, source | PSNR, autoencoder | sharpness, share of the source's |
|---|---|---|---|
| autoencoder | 30.9 dB | | 0.63 |
| `soften` | 33.6 dB | 33.4 dB | 0.57 |
| average to 96 px, and enlarge | 35.4 dB | 31.2 dB | 0.15 |
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]

GRID, WINDOW = 8, 16
"""Pixels between latents; side of the overlapping windows that are transformed."""
BLEND, GAIN = 0.35, 0.7
"""Share of the neighbors in a coefficient, and what is left of one that is no edge."""
EDGE = 160.0
"""Size of a coefficient of frequency 1 that half counts as an edge, grey levels; it falls with
frequency."""
NOISE, PATTERN = 1.0, 1.0
"""Deviations of the noise and of the repeated pattern of a coefficient, grey levels."""

_STEPS = np.arange(WINDOW)
_COSINES = np.sqrt(2 / WINDOW) * np.cos(
    np.pi * (2 * _STEPS[None] + 1) * _STEPS[:, None] / (2 * WINDOW)
)
_COSINES[0] /= np.sqrt(2)
_COSINES = _COSINES.astype(np.float32)
_FADE = np.outer(*[np.sin(np.pi * (_STEPS + 0.5) / WINDOW)] * 2).astype(np.float32)
_FREQUENCY = np.hypot(_STEPS[:, None], _STEPS[None]).astype(np.float32)


def soften(face_bgr: Image, seed: int = 0) -> Image:
    """Soften a face as a latent decoder does.

    Args:
        face_bgr: BGR uint8 (H, W, 3), sides that are multiples of 8.
        seed: of noise and pattern; with the same seed they stay where they are from frame to frame.

    Returns:
        BGR uint8 of the same size.
    """
    rng = np.random.default_rng(seed)
    planes = cv2.cvtColor(face_bgr, cv2.COLOR_BGR2YCrCb).astype(np.float32)
    for channel in range(3):
        plane = planes[..., channel]
        base = cv2.GaussianBlur(plane, (0, 0), 2 * GRID)
        latents = _decoded(_transform(plane - base), rng, is_color=channel > 0)
        planes[..., channel] = base + _inverse(latents)
    rounded = np.clip(np.rint(planes), 0, 255).astype(np.uint8)
    return np.asarray(cv2.cvtColor(rounded, cv2.COLOR_YCrCb2BGR), np.uint8)


def _decoded(latents: Floats, rng: np.random.Generator, is_color: bool) -> Floats:
    """What a decoder makes of the coefficients of a plane, (rows, columns, 16, 16)."""
    padded = np.pad(latents, ((1, 1), (1, 1), (0, 0), (0, 0)), mode="edge")
    across = padded[:, :-2] / 4 + padded[:, 1:-1] / 2 + padded[:, 2:] / 4
    neighbors = across[:-2] / 4 + across[1:-1] / 2 + across[2:] / 4
    weak = GAIN * ((1 - BLEND) * latents + BLEND * neighbors)
    size = np.abs(latents)
    limit = EDGE / np.maximum(_FREQUENCY, 1) ** 1.2
    kept = weak + size**2 / (size**2 + limit**2) * (latents - weak)
    noise = NOISE * (_FREQUENCY < 14) * (0.15 if is_color else 1.0)
    if is_color:
        kept = kept + noise * rng.standard_normal(latents.shape, np.float32)
        return np.asarray(kept / (1 + (_FREQUENCY / 4) ** 4))
    noise = noise + 0.15 * np.minimum(size, 20)
    kept = kept + noise * rng.standard_normal(latents.shape, np.float32)
    pattern = PATTERN * (_FREQUENCY > 4) * rng.standard_normal((WINDOW, WINDOW), np.float32)
    return np.asarray((kept + pattern) / (1 + (_FREQUENCY / 14) ** 8))


def _transform(plane: Floats) -> Floats:
    """Coefficients of the windows around every point of the grid: (H / 8 + 1, W / 8 + 1, 16,
    16)."""
    padded = np.pad(plane, GRID, mode="symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (WINDOW, WINDOW))[::GRID, ::GRID]
    return np.asarray(_COSINES @ (windows * _FADE) @ _COSINES.T)


def _inverse(latents: Floats) -> Floats:
    """The plane of such coefficients; windows overlap by half, and their fades add up to 1."""
    windows = (_COSINES.T @ latents @ _COSINES) * _FADE
    rows, columns = latents.shape[:2]
    plane = np.zeros((GRID * (rows + 1), GRID * (columns + 1)), np.float32)
    for top in (0, 1):
        for left in (0, 1):
            tiles = windows[top::2, left::2].transpose(0, 2, 1, 3)
            height, width = tiles.shape[0] * WINDOW, tiles.shape[2] * WINDOW
            y, x = top * GRID, left * GRID
            plane[y : y + height, x : x + width] += tiles.reshape(height, width)
    return plane[GRID:-GRID, GRID:-GRID]
