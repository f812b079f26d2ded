"""How a face moved between two frames of a stream, measured on the host's own frames.

OpenCV's DIS optical flow (Kroeger et al., "Fast Optical Flow using Dense Inverse Search", ECCV
2016) does the work, on the CPU: a GPU that is busy with the network is not asked, and need not be
waited for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]

LONGEST, SHORTEST = 256, 64
"""Range of the side at which motion is measured, in pixels; other faces are resized."""
LIPS_FROM, LIPS_FULL = 2.0, 6.5
"""Pixels of 256 in a frame by which something moves relative to the head's affine motion: below the
first its detail is held in full, above the second not at all, in between in proportion. Lips exceed
the first in quick speech and the second seldom; a head that turns is no plane, and may exceed it by
a little."""
_GRID, _CELL = 16, 4
_ROUNDS = 4
# what is narrower than one to sixteen is squeezed to that: no face is
_STRIP = LONGEST**2 // SHORTEST


@dataclass(frozen=True)
class Motion:
    """From one frame to the one before it.

    Attributes:
        flow: float32 (h, w, 2), x and y: what is at a pixel now was at that pixel plus this, in
            pixels.
        error: float32 (h, w, 3), RGB, 0..1: this frame minus the one before, moved: what the flow
            cannot explain.
        rigid: float32 (h / 4, w / 4), 0..1: 1 where the face moves as the head does, 0 where it
            deviates by `LIPS_FULL` and more.
    """

    flow: Floats
    error: Floats
    rigid: Floats


def working_size(height: int, width: int) -> tuple[int, int]:
    """Height and width at which the motion of a (height, width) face is measured."""
    scale = min(1.0, LONGEST / max(height, width))
    scale = max(scale, SHORTEST / min(height, width))
    return min(_STRIP, round(height * scale)), min(_STRIP, round(width * scale))


class MotionEstimator:
    """Estimates motion between frames; not thread-safe, because OpenCV's flow keeps buffers."""

    def __init__(self) -> None:
        """DIS between its presets "fast" and "medium": half resolution, one refinement.

        On soft crops of talking heads a second refinement costs a quarter of the time, and explains
        no more of them. With patches 6 pixels apart, not 4, it takes three fifths of the time, and
        the warping error of restored clips is 0.002 higher at most.
        """
        self._flow: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self._flow.setFinestScale(1)
        self._flow.setPatchStride(6)
        self._flow.setGradientDescentIterations(12)
        self._flow.setVariationalRefinementIterations(1)

    def between(self, previous: Image, current: Image) -> Motion:
        """Motion from `previous` to `current`: uint8 (h, w, 3), RGB, one size, at least 64 px."""
        grays = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (current, previous)]
        flow = np.asarray(self._flow.calc(*grays, None), np.float32)
        columns, rows = pixels(*flow.shape[:2])
        places = columns + flow[..., 0], rows + flow[..., 1]
        moved = cv2.remap(
            previous.astype(np.float32), *places, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        error = current - moved
        error *= np.float32(1 / 255)
        return Motion(flow, error, _rigid(flow))


@lru_cache(maxsize=8)
def pixels(height: int, width: int) -> tuple[Floats, Floats]:
    """Column and row of every pixel, each float32 (height, width); read-only, cached."""
    columns, rows = np.meshgrid(
        np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    )
    columns.flags.writeable = rows.flags.writeable = False
    return columns, rows


def _rigid(flow: Floats) -> Floats:
    """Where the flow follows the one affine motion that most of the picture agrees on, 0..1.

    The fit is by least squares, reweighted: Holland and Welsch, "Robust regression using
    iteratively reweighted least-squares", 1977, with Cauchy's weights.
    """
    height, width = flow.shape[0] // _CELL, flow.shape[1] // _CELL
    unit = np.float32(256 / max(flow.shape))
    small = cv2.resize(flow, (width, height), interpolation=cv2.INTER_AREA) * unit
    coarse = cv2.resize(small, (_GRID, _GRID), interpolation=cv2.INTER_AREA).reshape(-1, 2)
    places = _places()
    weights = np.ones((len(places), 1))
    for _ in range(_ROUNDS):
        affine = _weighted_fit(places, coarse.astype(np.float64), weights)
        residual = coarse - (places[:, :1] * affine[0] + places[:, 1:2] * affine[1] + affine[2])
        weights = 1 / (1 + np.square(residual).sum(1, keepdims=True) / 0.09)
    difference = small - _affine_flow(affine, height, width)
    # not cv2.magnitude: with OpenCV 5 its last bit depends on where the array lies in memory
    deviation = np.sqrt(np.square(difference[..., 0]) + np.square(difference[..., 1]))
    deviation = cv2.GaussianBlur(deviation, (0, 0), max(0.5, 4 / _CELL / float(unit)))
    return np.asarray(
        1 - np.clip((deviation - LIPS_FROM) / (LIPS_FULL - LIPS_FROM), 0, 1), np.float32
    )


def _weighted_fit(places: Any, values: Any, weights: Any) -> Any:
    """The affine map (3, 2) of places (n, 3) to values (n, 2) by weighted least squares.

    In plain sums over rows: what BLAS returns depends on threads and on where arrays lie in memory,
    and the same frames must give the same bytes.
    """
    weighted = places * np.square(weights)
    normal = (weighted[:, :, None] * places[:, None, :]).sum(0)
    right = (weighted[:, :, None] * values[:, None, :]).sum(0)
    return np.linalg.solve(normal, right)


@lru_cache(maxsize=1)
def _places() -> Any:
    """The middles of the coarse grid's cells, (256, 3): x and y from -1 to 1, and 1."""
    steps = (np.arange(_GRID, dtype=np.float32) + 0.5) * (2 / _GRID) - 1
    x, y = np.meshgrid(steps, steps)
    return np.stack([x.ravel(), y.ravel(), np.ones(_GRID * _GRID)], axis=1).astype(np.float64)


def _affine_flow(affine: Any, height: int, width: int) -> Floats:
    x = ((np.arange(width, dtype=np.float32) + 0.5) * (2 / width) - 1)[None, :, None]
    y = ((np.arange(height, dtype=np.float32) + 0.5) * (2 / height) - 1)[:, None, None]
    field = x * affine[0] + y * affine[1] + affine[2]
    return np.asarray(field, np.float32)
