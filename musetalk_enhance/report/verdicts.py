"""One verdict per line: what was found, what is allowed, and whether it is."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, log10
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..pipeline.stats import by_reason
from .events import Events
from .flicker import FlickerWindows
from .metrics import correlation, opening_lag
from .series import Series, mean, plain

PASS, FAIL, INFO, UNMEASURED = "pass", "fail", "info", "unmeasured"


_OFTEN = "guard: true, or a lower strength"
HINTS = {
    "sharpness": "another model, or a higher strength",
    "flicker": "stability on, or a lower strength",
    "mouth": _OFTEN,
    "eyes": _OFTEN,
    "structure": _OFTEN,
    "movement": _OFTEN,
    "colour": "color_match: true",
    "seam": "color_match: true, or another region",
}
"""Kind of trouble to what may help."""


@dataclass(frozen=True)
class Limits:
    """What is asked of a clip.

    Attributes:
        sharpness_ratio: least mean energy of fine detail, out / in (`metrics.fine_detail_energy`).
        warping_ratio: most warping error, as a multiple of the yardstick (see `judge`).
        warping_grain: warping error over the input's that is allowed in any case, gray levels
            squared:
            twice the variance of grain with a deviation of one level, which nobody sees flicker.
        flicker: energy over 5 Hz in still regions that is allowed in any case, gray levels squared;
            a sine of this energy has an amplitude of 1.4 gray levels, about the threshold of seeing
            flicker.
        flicker_ratio: most of it, as a multiple of the input's or the reference's, whichever is
            larger.
        mouth_correlation: least correlation of the mouth's opening, out and in.
        eyes_correlation: the same of the eyes, whose blinks are short.
        opening_difference: most difference of an opening, 95th percentile of the frames, as a share
            of the way from the eyes to the mouth, or of an eye's width.
        least_opening_change: standard deviation of an opening from which on its correlation is
            asked for; five times the meter's own noise, under which 0.98 is meaningless. The
            difference is judged in any case.
        drift: most drift of a channel's mean over the clip, gray levels (1/255).
        colour: most change of low-frequency color, CIEDE2000, mean over the face and the clip.
        seam: most step of brightness at the edge of the restored region, median of the frames, gray
            levels.
        structure: least structural similarity to the input at 64 px, of the face, the eyes and the
            mouth, in all but 5 % of the frames.
        movement: most distance that the eyes, the mouth or the face have moved, in all but 5 % of
            the frames, in 1/256 of the crop.
    """

    sharpness_ratio: float = 1.0
    warping_ratio: float = 1.05
    warping_grain: float = 2.0
    flicker: float = 1.0
    flicker_ratio: float = 1.05
    mouth_correlation: float = 0.98
    eyes_correlation: float = 0.95
    opening_difference: float = 0.05
    least_opening_change: float = 0.02
    drift: float = 1.0
    colour: float = 1.0
    seam: float = 1.5
    structure: float = 0.97
    movement: float = 1.0


@dataclass(frozen=True)
class Verdict:
    """One line of the report.

    Attributes:
        key: short name, e.g. ``"mouth_lag"``.
        label: the same for a person.
        value: what was found; None where nothing could be.
        limit: what is allowed; None where nothing is asked.
        at_most: whether the limit is an upper one.
        state: ``"pass"``, ``"fail"``, ``"info"`` (nothing is asked) or ``"unmeasured"``.
        text: what it means, or why it could not be measured.
        kind: the images that show it, see `WorstFrames`.
    """

    key: str
    label: str
    value: float | None
    limit: float | None
    at_most: bool
    state: str
    text: str
    kind: str

    @property
    def hint(self) -> str:
        """What may help; empty for a line that does not fail."""
        return HINTS.get(self.kind, "") if self.state == FAIL else ""

    @property
    def figures(self) -> tuple[str, str]:
        """Value and limit as text: three digits of the larger one, more to tell them apart."""
        larger = max(abs(figure or 0) for figure in (self.value, self.limit)) or 1
        decimals = max(0, 2 - floor(log10(larger)))
        for places in range(decimals, decimals + 4):
            value, limit = (_rounded(figure, places) for figure in (self.value, self.limit))
            if value != limit or self.value == self.limit:
                break
        return value or "–", limit

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "key": self.key,
            "label": self.label,
            "value": self.value,
            "limit": self.limit,
            "allowed": None if self.limit is None else ("at most" if self.at_most else "at least"),
            "state": self.state,
            "text": self.text,
            "hint": self.hint,
        }


def _rounded(value: float | None, places: int) -> str:
    """The value without trailing zeros; empty for None."""
    text = "" if value is None else f"{value:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def line(
    key: str,
    label: str,
    kind: str,
    value: float,
    limit: float | None,
    text: str,
    *,
    at_most: bool = True,
) -> Verdict:
    """Judge one figure; NaN was not measured, for the reason in `text`."""
    if np.isnan(value):
        return Verdict(key, label, None, limit, at_most, UNMEASURED, text, kind)
    state = INFO
    if limit is not None:
        state = PASS if (value <= limit if at_most else value >= limit) else FAIL
    return Verdict(
        key,
        label,
        plain(value, 4),
        None if limit is None else plain(limit, 4),
        at_most,
        state,
        text,
        kind,
    )


def judge(series: Series, flicker: FlickerWindows, limits: Limits) -> list[Verdict]:
    """Every line, in the order of the page.

    Warping error is held against the input's. Detail that moves costs some even in the sharp
    original, so where there is a reference its own error is allowed; where there is none, the
    input's times the ratio of gradient energies (see `metrics.gradient_energy`)
    stands in for it. `Limits.warping_grain` is allowed in any case.
    """
    return [
        _sharpness(series, limits),
        _warping(series, limits),
        _flicker(flicker, limits),
        *_openings(series, "mouth", limits.mouth_correlation, limits),
        *_openings(series, "eyes", limits.eyes_correlation, limits),
        *_colors(series, limits),
        *_identity(series, limits),
        *_likeness(series),
    ]


_ROUNDING = 0.05  # gray levels squared: what rounding to 8 bits leaves of a warping error by itself


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else (1.0 if a == b else float("inf"))


def restored_frames(series: Series) -> NDArray[np.bool_]:
    """Frames of which the enhancer changed pixels, by its own notes, bool ``(frames,)``."""
    return np.asarray((series["note_strength"] > 0) & (series["note_change"] != 0), bool)


def restoration(series: Series, events: Events) -> list[Verdict]:
    """How many frames changed and by how much, from the enhancer's notes; empty without notes."""
    if "note_strength" not in series:
        return []
    restored = restored_frames(series)
    number = int(restored.sum())
    text = f"{number} of {series.frames} frames"
    if number:
        text += f", at strength {mean(series['note_strength'][restored]):.2f}"
        change = mean(series["note_change"][restored])
        text += " in the mean" if np.isnan(change) else f" and by {change:.2f} of 255 in the mean"
    for name, words in (("left alone", "left alone"), ("passthrough", "handed back")):
        if events.counts.get(name):
            text += f"; {words}: {by_reason(events.counts[name])}"
    share = number / series.frames
    return [line("restored", "Share of frames that changed", "sharpness", share, None, text)]


def _sharpness(series: Series, limits: Limits) -> Verdict:
    """Over the restored frames only: the others change through the encoder."""
    label, strength = "Sharper than before", series["note_strength"]
    has_notes = not np.isnan(strength).all()
    restored = restored_frames(series) if has_notes else np.ones(series.frames, bool)
    if not restored.any():
        why = "no frame changed: sharp already, held back, or the same pixels"
        return line(
            "sharpness",
            label,
            "sharpness",
            float("nan"),
            limits.sharpness_ratio,
            why,
            at_most=False,
        )
    energy_in, energy_out, energy_ref = (
        mean(series[f"sharpness_{name}"][restored]) for name in ("in", "out", "ref")
    )
    text = f"energy of fine detail {energy_in:.3g} → {energy_out:.3g}"
    if "sharpness_ref" in series:
        text += f"; the reference has {energy_ref:.3g}"
    if not restored.all():
        text += f"; over the {restored.sum()} of {series.frames} frames that were restored"
    ratio = _ratio(energy_out, energy_in)
    return line("sharpness", label, "sharpness", ratio, limits.sharpness_ratio, text, at_most=False)


def _warping(series: Series, limits: Limits) -> Verdict:
    label = "Warping error, after/before"
    error_in, error_out = series.mean("warping_in"), series.mean("warping_out")
    if np.isnan(error_in):
        why = "no two frames of one scene"
        return line("warping", label, "flicker", float("nan"), limits.warping_ratio, why)
    base = max(error_in, _ROUNDING)
    text = f"gray levels squared, {error_in:.3g} → {error_out:.3g}"
    if "warping_ref" in series:
        error_ref = series.mean("warping_ref")
        allowed, why = error_ref / base, f"the sharp reference's own is {error_ref:.3g}"
    else:
        detail = _ratio(series.mean("gradient_out"), series.mean("gradient_in"))
        allowed = limits.warping_ratio * detail
        why = f"without a reference, moving detail {detail:.3g} times as strong is allowed for"
    allowed = max(allowed, (base + limits.warping_grain) / base)
    why += ", and so is fine grain"
    limit = max(limits.warping_ratio, allowed)
    return line(
        "warping", label, "flicker", max(error_out, _ROUNDING) / base, limit, f"{text}; {why}"
    )


def _flicker(flicker: FlickerWindows, limits: Limits) -> Verdict:
    label, energy_in, energy_out = "Flicker over 5 Hz", flicker.mean("in"), flicker.mean("out")
    if np.isnan(energy_in):
        why = (
            flicker.reason or "no part of the face is still for long enough; see the warping error"
        )
        return line("flicker", label, "flicker", float("nan"), limits.flicker, why)
    yardstick = energy_in
    text = f"energy in still regions, gray levels squared; the input has {energy_in:.3g}"
    if "ref" in flicker.maps:
        energy_ref = flicker.mean("ref")
        yardstick = max(energy_in, energy_ref)
        text += f", the reference {energy_ref:.3g}"
    limit = max(limits.flicker, limits.flicker_ratio * yardstick)
    return line("flicker", label, "flicker", energy_out, limit, text)


def _openings(series: Series, part: str, min_correlation: float, limits: Limits) -> list[Verdict]:
    opening_in, opening_out = series[f"{part}_in"], series[f"{part}_out"]
    owner, nan = part.capitalize(), float("nan")
    measured = ~np.isnan(opening_in + opening_out)
    if measured.mean() < 0.5:
        why = "the meter takes too few of the crops for faces"
        return [
            line(
                f"{part}_opening",
                f"{owner}: opening kept",
                part,
                nan,
                limits.opening_difference,
                why,
            )
        ]
    change = (opening_out - opening_in)[measured]
    difference = float(np.percentile(np.abs(change), 95))
    text = "difference of the opening, all but 5 % of the frames; mean " + f"{np.mean(change):+.3f}"
    lines = [
        line(
            f"{part}_opening",
            f"{owner}: opening kept",
            part,
            difference,
            limits.opening_difference,
            text,
        )
    ]
    if np.std(opening_in[measured]) < limits.least_opening_change:
        why = f"hardly moves in the input (standard deviation {np.std(opening_in[measured]):.3g})"
        moves = line(
            f"{part}_correlation",
            f"{owner}: moves as before",
            part,
            nan,
            min_correlation,
            why,
            at_most=False,
        )
        return [moves, *lines]
    lag, best = opening_lag(opening_in, opening_out)
    text = f"correlation of the opening, after and before, at no lag; {best:.3f} at best"
    if f"{part}_ref" in series:
        text += f"; with the reference {correlation(series[f'{part}_ref'], opening_out):.3f}"
    same = correlation(opening_in, opening_out)
    moves = line(
        f"{part}_correlation",
        f"{owner}: moves as before",
        part,
        same,
        min_correlation,
        text,
        at_most=False,
    )
    late = line(f"{part}_lag", f"{owner}: in time", part, abs(lag), 0, _lag_text(lag))
    return [moves, late, *lines]


def _lag_text(lag: int) -> str:
    if lag == 0:
        return "frames; fits best without a delay"
    return f"frames; the output fits best when {abs(lag)} {'late' if lag > 0 else 'early'}"


def _colors(series: Series, limits: Limits) -> list[Verdict]:
    drifts = {
        channel: series.mean(f"drift_{name}")
        for name, channel in zip("bgr", ("blue", "green", "red"), strict=True)
    }
    worst = max(drifts, key=lambda channel: abs(drifts[channel]))
    text = f"levels of 255, mean over face and clip; most in {worst}, {drifts[worst]:+.3f}"
    change = "CIEDE2000 of the low frequencies; 1 is what an eye just tells apart"
    seam = "levels of 255 at the edge of the restored region, median"
    return [
        line("drift", "Color kept, mean", "colour", abs(drifts[worst]), limits.drift, text),
        line(
            "colour", "Color kept, locally", "colour", series.mean("colour"), limits.colour, change
        ),
        line(
            "seam", "No step at the seam", "seam", series.percentile("seam", 50), limits.seam, seam
        ),
    ]


_PARTS = {"whole": "the face", "eyes": "the eyes", "mouth": "the mouth"}


def _identity(series: Series, limits: Limits) -> list[Verdict]:
    likes = {part: series.percentile(f"structure_{part}", 5) for part in _PARTS}
    moves = {part: series.percentile(f"moved_{part}", 95) for part in _PARTS}
    changed = min(likes, key=lambda part: likes[part])
    moving = max(moves, key=lambda part: moves[part])
    like = f"structural similarity at 64 px, all but 5 % of the frames; lowest in {_PARTS[changed]}"
    moved = f"in 1/256 of the crop, all but 5 % of the frames; most in {_PARTS[moving]}"
    return [
        line(
            "structure",
            "Same features",
            "structure",
            likes[changed],
            limits.structure,
            like,
            at_most=False,
        ),
        line("movement", "Features in place", "movement", moves[moving], limits.movement, moved),
    ]


def _likeness(series: Series) -> list[Verdict]:
    if "psnr_out" not in series:
        return []
    verdicts = []
    for key, label, unit in (
        ("psnr", "PSNR against the reference", " dB"),
        ("ssim", "SSIM against the reference", ""),
    ):
        value = series.mean(f"{key}_out")
        if np.isinf(value):
            verdicts.append(
                line(
                    key, label, "likeness", float("nan"), None, "infinite: equal to the reference"
                )
            )
            continue
        text = f"{series.mean(f'{key}_in'):.3g} → {value:.3g}{unit}"
        verdicts.append(line(key, label, "likeness", value, None, text))
    return verdicts
