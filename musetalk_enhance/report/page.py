"""The report as one HTML document without scripts or external files, readable on a phone."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .measurements import CAPTIONS, CLIPS
from .plots import svg
from .sections import PLAIN, enhancer_plots, sections
from .series import jsonable
from .verdicts import FAIL, PASS, UNMEASURED
from .worst import heat_maps, inline

if TYPE_CHECKING:
    from .document import Report

_CHIPS = {PASS: "pass", FAIL: "fail", UNMEASURED: "n/a"}


def render(report: Report) -> str:
    """The page as text."""
    count = len(report.cuts)
    cuts = f", {count} cut{'s' * (count > 1)}" if count else ""
    seconds, rate = report.frames / report.fps, f"{report.fps:.5g} frames per second"
    text: str = _template().render(
        report=report,
        heading=report.title or "Face restoration report",
        facts=f"{report.frames} frames, {seconds:.1f} s at {rate}{cuts}",
        judged=sum(verdict.state in (PASS, FAIL) for verdict in report.verdicts),
        clips={clip: CAPTIONS[clip] for clip in CLIPS if f"sharpness_{clip}" in report.series},
        chips=_CHIPS,
        sections=sections(report),
        kinds={section.kind: section.title for section in sections(report)},
        plain=lambda verdict: PLAIN.get(verdict.key, (verdict.label, verdict.text)),
        worst=report.worst_frame(),
        rows=[*_event_rows(report), *_total_rows(jsonable(report.totals))],
        enhancer_plots=list(enhancer_plots(report)),
        heat_maps=lambda: heat_maps(report.flicker),
        svg=lambda plot: svg(plot, report.fps, report.cuts),
        inline=inline,
    )
    return text


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("assets")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html.j2")


def _event_rows(report: Report) -> Iterable[tuple[str, str]]:
    for name, counts in report.events.counts.items():
        words = ", ".join(
            f"{word}: {count}" if word != "yes" else str(count) for word, count in counts.items()
        )
        runs = report.events.runs(name)
        where = ", ".join(
            f"{first}" if first == last else f"{first}–{last}" for first, last, _ in runs[:8]
        )
        yield f"{name}, frames", f"{words} (frames {where}{', …' if len(runs) > 8 else ''})"


def _total_rows(totals: dict[str, Any]) -> Iterable[tuple[str, str]]:
    for name, value in totals.items():
        if name == "ms" and isinstance(value, dict):
            counts = (_number(totals.get(key)) for key in ("processed", "restored", "frames"))
            faces = next(filter(None, counts), 0.0)
            for stage, elapsed_ms in value.items():
                per_face = f", {_number(elapsed_ms) / faces:.1f} ms per face" if faces else ""
                yield f"{stage}", f"{_number(elapsed_ms):.0f} ms{per_face}"
        elif isinstance(value, dict):
            yield (
                name.replace("_", " "),
                ", ".join(f"{word}: {count}" for word, count in value.items()) or "0",
            )
        else:
            yield name.replace("_", " "), "–" if value is None else str(value)


def _number(value: Any) -> float:
    """A value of a sidecar as a number; 0 if it is none."""
    return float(value) if isinstance(value, (int, float)) and isfinite(value) else 0.0
