"""Curves over time as SVG that stands inside a page and takes its colours from the page's style."""

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

COLOURS = {
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
"""Names of the page's colours (CSS variables ``--c-NAME``) and what stands for them while a plot is drawn."""

MOST_POINTS = 300
"""Above it, a curve is drawn by the smallest and largest value of each of so many stretches."""


@dataclass(frozen=True)
class Curve:
    """A line of a plot: its label, one of `COLOURS`, and a value for each frame (NaN leaves a gap)."""

    label: str
    colour: str
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Plot:
    """Curves over time.

    Attributes:
        title: what is drawn, with its unit.
        curves: in order of drawing.
        limits: levels to draw across.
        spans: (first, last) frames to shade.
    """

    title: str
    curves: Sequence[Curve]
    limits: Sequence[float] = field(default_factory=tuple)
    spans: Sequence[tuple[int, int]] = field(default_factory=tuple)


def svg(plot: Plot, fps: float, cuts: Sequence[int] = ()) -> str:
    """One plot as an ``<svg>`` element without colours or fonts of its own.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "report", "the report's plots", str(error)) from error
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": plot.title, "font.family": "sans-serif", "font.size": 9}
    with rc_context(style):
        figure = Figure(figsize=(5.2, 2.3), layout="constrained", facecolor="none")
        FigureCanvasSVG(figure)
        _draw(figure.add_subplot(), plot, fps, cuts)
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return themed(text.getvalue(), plot.title)


def _draw(axes: Any, plot: Plot, fps: float, cuts: Sequence[int]) -> None:
    ink, grid = COLOURS["ink"], COLOURS["grid"]
    for curve in plot.curves:
        at, values = thinned(curve.values)
        axes.plot(at / fps, values, color=COLOURS[curve.colour], linewidth=1.4, label=curve.label)
    for level in plot.limits:
        axes.axhline(level, color=COLOURS["bad"], linewidth=0.8, linestyle="--")
    for first, last in plot.spans:
        axes.axvspan(first / fps, (last + 1) / fps, color=COLOURS["bad"], alpha=0.15, linewidth=0)
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


def thinned(values: NDArray[np.float64], most: int = MOST_POINTS) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Frames and values to draw: all of a short curve; the extremes of each stretch of a long one."""
    frames = np.arange(len(values), dtype=np.float64)
    if len(values) <= 2 * most:
        return frames, values
    at, kept = [], []
    for stretch in np.array_split(frames, most):
        part = values[stretch.astype(int)]
        known = part[~np.isnan(part)]
        at += [float(stretch[0]), float(stretch[-1])]
        kept += [float(known.min()), float(known.max())] if known.size else [np.nan, np.nan]
    return np.array(at), np.array(kept)


def themed(text: str, label: str) -> str:
    """A whole SVG file as an element of a page: colours by name, as wide as its place, described by `label`."""
    start = text.index("<svg")
    body = re.sub(r"<metadata>.*?</metadata>", "", text[start:], flags=re.DOTALL)
    for name, colour in COLOURS.items():
        body = body.replace(colour, f"var(--c-{name})")
    body = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", body, count=1)
    body = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", body, count=1)
    body = body.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
    return re.sub(r"\n\s*", "\n", body).strip()
