"""The report as a picture: faces per second, one bar for each row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from musetalk_enhance.errors import MissingDependencyError

_COLORS = {"plan": "#b4532a", "aligned": "#d9a441", "ours": "#2f6f8f"}


def save_plot(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Write a PNG with the rows that were measured.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "bench", "the plot", str(error)) from error
    measured = [row for row in rows if row["reason"] is None]
    figure = Figure(figsize=(9, 1.2 + 0.32 * len(measured)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    positions = range(len(measured))
    rates = [row["faces_per_second"] for row in measured]
    bars = axes.barh(positions, rates, color=[_COLORS[row["path"]] for row in measured])
    axes.bar_label(bars, labels=[f"{rate:.3g}" for rate in rates], padding=3)
    axes.set_yticks(positions, [row["name"] for row in measured])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("faces per second, median of interleaved rounds")
    axes.set_title(title, loc="left", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
