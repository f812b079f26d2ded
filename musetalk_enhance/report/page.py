"""The report as one HTML document without scripts or external files, readable on a phone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from math import isfinite
from typing import TYPE_CHECKING, Any

from .plots import svg
from .sections import Section, enhancer_plots, sections
from .series import jsonable
from .style import STYLE
from .verdicts import FAIL, PASS, UNMEASURED, Verdict
from .worst import WorstFrame, heat_maps, inline

if TYPE_CHECKING:
    from .document import Report

_CHIPS = {PASS: "pass", FAIL: "fail", UNMEASURED: "n/a"}


def render(report: Report) -> str:
    """The page as text."""
    heading = escape(report.title or "Face restoration report")
    body = [
        f"<header><h1>{heading}</h1>{_facts(report)}</header>",
        *(f'<p class="note">{escape(note)}</p>' for note in report.notes),
        _summary(report),
        *(_section(report, section) for section in sections(report)),
        _enhancer(report),
        f"<footer>{escape(str(report.as_dict()['made_by']))}</footer>",
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    )
    title = f"<title>{heading}</title>"
    page = "\n".join(part for part in body if part)
    head += f"{title}<style>{STYLE}</style>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{page}</body></html>\n'


def _facts(report: Report) -> str:
    seconds = report.frames / report.fps
    cuts = f", {len(report.cuts)} cut{'s' * (len(report.cuts) > 1)}" if report.cuts else ""
    rate = f"{report.fps:.5g} frames per second"
    return f"<p>{report.frames} frames, {seconds:.1f} s at {rate}{cuts}</p>"


def _summary(report: Report) -> str:
    judged = [verdict for verdict in report.verdicts if verdict.state in (PASS, FAIL)]
    good = len(judged) - len(report.failed)
    word = (
        "All checks pass"
        if not report.failed
        else f"{len(report.failed)} of {len(judged)} checks fail"
    )
    state = PASS if not report.failed else FAIL
    words = {"in": "in: before restoration", "out": "out: after it", "ref": "reference"}
    if "sharpness_ref" not in report.series:
        del words["ref"]
    keys = "".join(f'<span class="key {clip}"></span>{text} ' for clip, text in words.items())
    rows = "".join(_row(verdict) for verdict in report.verdicts)
    count = f"<small>{good} of {len(judged)} within their limits</small>"
    lead = f'<p class="overall {state}">{word}{count}</p>'
    return (
        f'<section>{lead}<div class="verdicts">{rows}</div><p class="legend">{keys}</p></section>'
    )


def _row(verdict: Verdict) -> str:
    chip = _CHIPS.get(verdict.state, "info")
    return (
        f'<a class="row {verdict.state}" href="#{verdict.kind}"><b class="chip">{chip}</b>'
        f'<span class="label">{escape(verdict.label)}</span>'
        f'<span class="value">{_value(verdict)}</span>'
        f'<span class="limit">{_limit(verdict)}</span><span class="text">'
        f"{escape(verdict.text)}{_hint(verdict)}</span></a>"
    )


def _section(report: Report, section: Section) -> str:
    frames = report.worst.of(section.kind)
    heat = (
        _panels(heat_maps(report.flicker), "where it flickers") if section.kind == "flicker" else ""
    )
    failed = any(verdict.state == FAIL for verdict in section.verdicts)
    plots = "".join(
        f"<figure>{svg(plot, report.fps, report.cuts)}</figure>"
        for plot in section.plots
        if plot.curves
    )
    if not plots and not frames:
        return ""
    images = heat + "".join(_worst_frame(report, frame) for frame in frames)
    if images:
        expanded = " open" if failed else ""
        images = f"<details{expanded}><summary>Worst frames</summary>{images}</details>"
    mark = '<b class="chip">fail</b>' if failed else ""
    state = FAIL if failed else PASS
    return (
        f'<section id="{section.kind}" class="{state}"><h2>{escape(section.title)}{mark}</h2>'
        f'<p>{escape(section.lead)}</p><div class="plots">{plots}{_side(section)}</div>'
        f"{images}</section>"
    )


def _side(section: Section) -> str:
    """The section's verdicts beside its plots."""
    lines = "".join(
        f'<li class="{verdict.state}"><b class="chip">{_CHIPS.get(verdict.state, "info")}</b> '
        f"{escape(verdict.label)}: <b>{_value(verdict)}</b> <span>{_limit(verdict)}</span>"
        f"<small>{escape(verdict.text)}{_hint(verdict)}</small></li>"
        for verdict in section.verdicts
    )
    return f"<ul>{lines}</ul>"


def _hint(verdict: Verdict) -> str:
    return f"<em>What may help: {escape(verdict.hint)}</em>" if verdict.hint else ""


def _value(verdict: Verdict) -> str:
    return "–" if verdict.value is None else f"{verdict.value:.4g}"


def _limit(verdict: Verdict) -> str:
    return "" if verdict.limit is None else f"{'≤' if verdict.at_most else '≥'} {verdict.limit:.4g}"


def _worst_frame(report: Report, frame: WorstFrame) -> str:
    return _panels(frame.panels, f"frame {frame.index}, {frame.index / report.fps:.2f} s")


def _panels(panels: Sequence[tuple[str, bytes]], title: str) -> str:
    """Images side by side under a title; an empty string without images."""
    if not panels:
        return ""
    figures = "".join(
        f'<figure><img src="{inline(image)}" alt="{escape(caption)}, {title}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, image in panels
    )
    return f'<h3>{title[0].upper()}{title[1:]}</h3><div class="panels">{figures}</div>'


def _enhancer(report: Report) -> str:
    """The enhancer's own counters: guard actions, passthroughs, milliseconds per stage."""
    rows = [*_event_rows(report), *_total_rows(jsonable(report.totals))]
    plots = "".join(
        f"<figure>{svg(plot, report.fps, report.cuts)}</figure>" for plot in enhancer_plots(report)
    )
    if not rows and not plots:
        return ""
    cells = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows
    )
    table = f"<table>{cells}</table>" if cells else ""
    return (
        f'<section id="enhancer"><h2>What the enhancer did</h2>{table}'
        f'<div class="plots">{plots}</div></section>'
    )


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
