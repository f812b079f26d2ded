"""The sections of the page: one for each kind of problem, with its plots."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .measurements import CAPTIONS
from .plots import Curve, Plot
from .verdicts import Verdict

if TYPE_CHECKING:
    from .document import Report

_CLIPS = tuple((clip, CAPTIONS[clip]) for clip in ("ref", "in", "out"))
_WORDS = {
    "sharpness": ("Sharpness", "How much fine detail there is."),
    "flicker": (
        "Flicker",
        "Changes between frames that motion does not explain. "
        "The motion of the input is used for every version.",
    ),
    "mouth": (
        "Mouth",
        "How far the lips are open, as a share of the distance between eyes and mouth.",
    ),
    "eyes": ("Eyes", "How far the lids are open, as a share of the eye's width; dips are blinks."),
    "colour": ("Color", "Whether the skin tone changes, over the whole face or locally."),
    "seam": ("Seam", "Whether the restored region stands out from its surroundings."),
    "structure": ("Features", "Whether the face is the same at low frequencies (1 is identical)."),
    "movement": ("Movement", "Whether features move relative to the input."),
    "likeness": (
        "Against the reference",
        "How similar input and output are to the unsoftened original.",
    ),
    "other": ("Clip", ""),
}

PLAIN = {
    "frames": ("As many frames", "Frames that are missing, or too many."),
    "restored": ("Frames that changed", "Share of the frames in which a face was restored."),
    "sharpness": ("Sharper", "Fine detail in the face, as a multiple of before."),
    "warping": (
        "Steady in motion",
        "What changes between frames beyond motion, as a multiple of before. Moving detail and "
        "fine grain are allowed for.",
    ),
    "flicker": (
        "Steady where it is still",
        "Flicker in gray levels squared; an eye sees it from about 1.",
    ),
    "mouth_correlation": ("Mouth moves as before", "1: lips open and close exactly as before."),
    "mouth_lag": ("Mouth in time", "Frames by which the lips are late or early."),
    "mouth_opening": (
        "Mouth as open as before",
        "Difference, as a share of the distance between eyes and mouth.",
    ),
    "eyes_correlation": ("Eyes move as before", "1: lids open and close exactly as before."),
    "eyes_lag": ("Eyes in time", "Frames by which the lids are late or early."),
    "eyes_opening": ("Eyes as open as before", "Difference, as a share of an eye's width."),
    "drift": ("Same color on the whole", "Shift of the mean color, in levels of 255."),
    "colour": ("Same color everywhere", "Local change; 1 is what an eye just tells apart."),
    "seam": ("No visible edge", "Step of brightness around the restored part, levels of 255."),
    "structure": ("Same face", "Likeness of coarse features to before; 1 is identical."),
    "movement": ("Features in place", "How far eyes, mouth or face moved, in 1/256 of the crop."),
    "psnr": ("Like the reference, PSNR", "In dB; higher is more alike."),
    "ssim": ("Like the reference, SSIM", "1 is identical."),
}
"""Label and meaning of each verdict's value, by key, for the table at the top of the page."""


@dataclass(frozen=True)
class Section:
    """A kind of problem: heading, lead sentence, verdicts and plots."""

    kind: str
    title: str
    lead: str
    verdicts: list[Verdict]
    plots: list[Plot] = field(default_factory=list)


def sections(report: Report) -> list[Section]:
    """Every section that has a verdict, in the order of the verdicts."""
    plots = _plots(report)
    kinds = dict.fromkeys(verdict.kind for verdict in report.verdicts)
    return [
        Section(
            kind,
            *_WORDS.get(kind, (kind.capitalize(), "")),
            [verdict for verdict in report.verdicts if verdict.kind == kind],
            plots.get(kind, []),
        )
        for kind in kinds
    ]


def _plots(report: Report) -> dict[str, list[Plot]]:
    limit = {verdict.key: verdict.limit for verdict in report.verdicts}
    change = Plot("color change, CIEDE2000", [_curve(report, "colour", "after − before", "out")])
    seam = [_curve(report, "seam", "after − before", "out")]
    return {
        "sharpness": [_by_clip(report, "sharpness", "Energy of fine detail")],
        "flicker": [_by_clip(report, "warping", "warping error, gray levels²"), *_windows(report)],
        "mouth": [_by_clip(report, "mouth", "opening of the mouth")],
        "eyes": [_by_clip(report, "eyes", "opening of the eyes")],
        "colour": [_drifts(report), change],
        "seam": [Plot("step at the seam, gray levels", seam, _levels(limit["seam"]))],
        "structure": [
            _by_part(report, "structure", "structural similarity at 64 px", limit["structure"])
        ],
        "movement": [_by_part(report, "moved", "moved, 1/256 of the crop", limit["movement"])],
        "likeness": [_by_clip(report, "psnr", "PSNR, dB"), _by_clip(report, "ssim", "SSIM")],
    }


def _levels(limit: float | None) -> tuple[float, ...]:
    return () if limit is None else (limit,)


def _curve(report: Report, name: str, label: str, color: str) -> Curve:
    return Curve(label, color, report.series[name])


def _by_clip(report: Report, name: str, title: str) -> Plot:
    curves = [
        _curve(report, f"{name}_{clip}", label, clip)
        for clip, label in _CLIPS
        if f"{name}_{clip}" in report.series
    ]
    return Plot(title, curves)


def _by_part(report: Report, name: str, title: str, limit: float | None) -> Plot:
    parts = (("whole", "face", "ref"), ("eyes", "eyes", "in"), ("mouth", "mouth", "out"))
    curves = [_curve(report, f"{name}_{part}", label, color) for part, label, color in parts]
    return Plot(title, curves, _levels(limit))


def _drifts(report: Report) -> Plot:
    channels = (("b", "blue"), ("g", "green"), ("r", "red"))
    curves = [_curve(report, f"drift_{name}", color, color) for name, color in channels]
    return Plot("drift of the mean, gray levels", curves)


def _windows(report: Report) -> list[Plot]:
    if not report.flicker.windows:
        return []
    curves = []
    for clip, label in _CLIPS:
        if clip in report.flicker.maps:
            curves.append(Curve(label, clip, _window_curve(report, clip)))
    return [Plot("energy over 5 Hz in still regions, gray levels²", curves)]


def _window_curve(report: Report, clip: str) -> NDArray[np.float64]:
    """Each window's energy up to the start of the next window; NaN outside all windows."""
    values = np.full(report.frames, np.nan)
    for window in report.flicker.windows:
        values[window.first : window.last + 1] = window.energy.get(clip, np.nan)
    return values


def enhancer_plots(report: Report) -> list[Plot]:
    """The enhancer's own curves (strength, stability), with the frames it acted on shaded."""
    names = [name for name in report.series.names() if name.startswith("note_")]
    spans = [
        (first, last)
        for event in ("guard", "passthrough")
        for first, last, _ in report.events.runs(event)[:200]
    ]
    return [
        Plot(
            name.removeprefix("note_").replace("_", " "),
            [_curve(report, name, name.removeprefix("note_"), "out")],
            (),
            spans,
        )
        for name in names
    ]
