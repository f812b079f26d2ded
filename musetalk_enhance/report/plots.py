"""Curves over time as inline SVG that takes its colors from the page's style."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from io import StringIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingDependencyError

COLORS = {
    "in": "#010101",
    "out": "#010102",
    "ref": "#010103",
    "ink": "#010104",
    "grid": "#010105",
    "bad": "#010106",
    "red": "#010107",
    "green": "#010108",
    "blue": "#010109",
}
"""The page's color names (CSS variables ``--c-NAME``) and their placeholders while drawing."""

MAX_INTERVALS = 300
"""A curve of over twice as many frames is drawn by the extremes of this many intervals."""


@dataclass(frozen=True)
class Curve:
    """A line of a plot: label, name in `COLORS`, and one value per frame (NaN leaves a gap)."""

    label: str
    color: str
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Plot:
    """Curves over time.

    Attributes:
        title: the quantity, with its unit.
        curves: in order of drawing.
        limits: levels to draw across.
        spans: (first, last) frames to shade.
    """

    title: str
    curves: Sequence[Curve]
    limits: Sequence[float] = field(default_factory=tuple)
    spans: Sequence[tuple[int, int]] = field(default_factory=tuple)


def svg(plot: Plot, fps: float, cuts: Sequence[int] = ()) -> str:
    """One plot as an ``<svg>`` element without its own colors or fonts.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "matplotlib", "report", "the report's plots", str(error)
        ) from error
    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": plot.title,
        "font.family": "sans-serif",
        "font.size": 9,
    }
    with rc_context(style):
        figure = Figure(figsize=(5.2, 2.3), layout="constrained", facecolor="none")
        FigureCanvasSVG(figure)
        _draw(figure.add_subplot(), plot, fps, cuts)
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return apply_theme(text.getvalue(), plot.title)


def _draw(axes: Any, plot: Plot, fps: float, cuts: Sequence[int]) -> None:
    ink, grid = COLORS["ink"], COLORS["grid"]
    for curve in plot.curves:
        frames, values = decimate(curve.values)
        axes.plot(frames / fps, values, color=COLORS[curve.color], linewidth=1.4, label=curve.label)
    for level in plot.limits:
        axes.axhline(level, color=COLORS["bad"], linewidth=0.8, linestyle="--")
    for first, last in plot.spans:
        axes.axvspan(first / fps, (last + 1) / fps, color=COLORS["bad"], alpha=0.15, linewidth=0)
    for cut in cuts:
        axes.axvline(cut / fps, color=ink, linewidth=0.6, linestyle=":")
    axes.set_facecolor("none")
    axes.set_title(plot.title.replace("$", r"\$"), loc="left", fontsize=9, color=ink)
    axes.set_xlabel("seconds", color=ink, fontsize=8)
    axes.tick_params(colors=ink, labelsize=8, length=2)
    axes.grid(color=grid, linewidth=0.5)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(grid)
    if len(plot.curves) > 1:
        axes.legend(
            frameon=False, fontsize=8, labelcolor=ink, ncols=len(plot.curves), loc="lower right",
            bbox_to_anchor=(1.0, 0.98), borderaxespad=0, handlelength=1.2, columnspacing=1.0,
        )  # fmt: skip


def decimate(
    values: NDArray[np.float64], intervals: int = MAX_INTERVALS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Frames and values to draw: all of a short curve, the extremes per interval of a long one."""
    frames = np.arange(len(values), dtype=np.float64)
    if len(values) <= 2 * intervals:
        return frames, values
    positions, extremes = [], []
    for interval in np.array_split(frames, intervals):
        part = values[interval.astype(int)]
        finite = part[~np.isnan(part)]
        positions += [float(interval[0]), float(interval[-1])]
        extremes += [float(finite.min()), float(finite.max())] if finite.size else [np.nan, np.nan]
    return np.array(positions), np.array(extremes)


def apply_theme(text: str, label: str) -> str:
    """An SVG file as an element of a page: colors by name, full width, described by `label`."""
    start = text.index("<svg")
    body = re.sub(r"<metadata>.*?</metadata>", "", text[start:], flags=re.DOTALL)
    for name, color in COLORS.items():
        body = body.replace(color, f"var(--c-{name})")
    body = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", body, count=1)
    body = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", body, count=1)
    body = body.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
    return re.sub(r"\n\s*", "\n", body).strip()
