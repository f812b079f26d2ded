"""`ReportBuilder`: takes the faces of a clip one by one, and makes the report. It knows nothing of files."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import metrics
from ..errors import ConfigError, FrameError, MissingDependencyError
from ..pipeline.stats import mostly_left_alone
from .document import Report
from .events import Events
from .flicker import FlickerWindows
from .measuring import (
    LEAST_SEEN,
    ChangedRegion,
    Moment,
    Sizes,
    check_crop,
    moving_figures,
    still_figures,
)
from .openings import Gauge, Gauger
from .series import Series
from .verdicts import Limits, Verdict, judge, restoration
from .worst import Panels, WorstFrames, difference

Image = NDArray[np.uint8]


class ReportBuilder:
    """Measures face crops before and after restoring, frame by frame, in memory that does not grow with pictures.

    Kept of each frame are some thirty numbers; besides that, under a second of small luminance pictures and the
    few worst frames as JPEG.

    >>> builder = ReportBuilder(25.0, title="my clip")  # doctest: +SKIP
    >>> for face_in, face_out in faces:  # doctest: +SKIP
    ...     builder.add(face_in, face_out)
    >>> builder.finish(enhancer.stats.as_dict()).write("out/report")  # doctest: +SKIP

    Args:
        fps: frames per second.
        title: what the report is headed.
        gauge: measures openings, see `openings.Gauge`; None takes the embedded one, when it is first needed.
        limits: what is asked of each figure.

    Raises:
        ConfigError: `fps` is not over 0.
        MissingDependencyError: matplotlib or scikit-image is not installed (extra ``report``).
    """

    def __init__(
        self, fps: float, *, title: str = "", gauge: Gauge | None = None, limits: Limits | None = None
    ) -> None:
        if not (fps > 0 and np.isfinite(fps)):
            raise ConfigError("fps", fps, "a number over 0")
        require_packages()
        self.fps, self.title, self.limits = float(fps), title, limits or Limits()
        self.notes: list[str] = []
        """Sentences that stand at the top of the report."""
        self.verdicts: list[Verdict] = []
        """Lines of the caller's own, before those that are measured here."""
        self._gauger, self._series, self._events = Gauger(gauge), Series(), Events()
        self._flicker, self._changed = FlickerWindows(self.fps), ChangedRegion()
        self._worst = WorstFrames(apart=max(1, round(self.fps / 2)))
        self._sizes: Sizes | None = None
        self._before: Moment | None = None
        self._motion: metrics.Motion | None = None
        self._cuts: list[int] = []

    @property
    def frames(self) -> int:
        """Frames added so far."""
        return self._series.frames

    def add(
        self,
        face_in_bgr: Image,
        face_out_bgr: Image,
        face_reference_bgr: Image | None = None,
        *,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        """One frame's face crop, before and after; none of them is modified or kept.

        Crops may differ in size from frame to frame; all are measured at the sizes of the first one.

        Args:
            face_in_bgr: what the host made, BGR uint8 ``(H, W, 3)``, 16 px at least on each side.
            face_out_bgr: the same crop restored, of that size or another (usually larger).
            face_reference_bgr: the same crop of the unsoftened original, where there is one.
            notes: what the enhancer knows of the frame. Numbers (``strength``, ``change``) become curves,
                words (``guard``, ``left alone``, ``passthrough``) and flags are counted; ``cut: True`` starts a
                new scene. A ``change`` of 0 means that no pixel changed.

        Raises:
            FrameError: another dtype or shape.
        """
        crops = {"in": face_in_bgr, "out": face_out_bgr}
        if face_reference_bgr is not None:
            crops["ref"] = face_reference_bgr
        for name, crop in crops.items():
            check_crop(crop, name)
        self._sizes = self._sizes or Sizes.of(face_out_bgr.shape)
        moment = Moment.of(crops, self._sizes)
        moment.openings = dict(zip(crops, self._gauger.measure(list(moment.work.values())), strict=True))
        values = still_figures(moment) | self._changed.figures(moment) | self._moving(moment, notes or {})
        values |= self._events.add(self.frames, notes or {})
        self._offer(moment, values)
        self._series.add(values)
        self._before = moment

    def _moving(self, moment: Moment, notes: Mapping[str, Any]) -> dict[str, float]:
        """Figures that need the frame before; a cut starts anew."""
        before, speed, self._motion = self._before, None, None
        values: dict[str, float] = {}
        if before is not None and not notes.get("cut"):
            motion = metrics.Motion.between(before.work["in"], moment.work["in"])
            if motion.seen.mean() >= LEAST_SEEN:
                self._motion = motion
                values = moving_figures(before, moment, motion)
                shape = moment.luminance["in"].shape
                speed = fit_floats(motion.speed, shape) * (max(shape) / max(motion.speed.shape))
        if before is not None and speed is None:
            self._cuts.append(self.frames)
        self._flicker.add(self.frames, moment.luminance, speed)
        return values

    def _offer(self, moment: Moment, values: dict[str, float]) -> None:
        """Hand the frame to the keepers of the worst ones, by kind of trouble."""
        for kind, score in _scores(values).items():
            make = self._flicker_panels if kind == "flicker" else _panels
            self._worst.offer(kind, self.frames, score, lambda make=make: make(moment))  # type: ignore[misc]

    def _flicker_panels(self, moment: Moment) -> Panels:
        """Both clips, and what is left of their change from the frame before when motion is taken out."""
        assert self._before is not None and self._motion is not None
        shown = [(name, moment.detail[name]) for name in ("in", "out")]
        for name in ("in", "out"):
            expected, seen = self._before.work[name], self._motion.seen[..., None]
            found = np.where(seen, self._motion.warp(moment.work[name]), expected)
            shown.append((f"change of {name} beyond motion, ×4", difference(expected, found)))
        return shown

    def finish(self, totals: Mapping[str, Any] | None = None) -> Report:
        """Judge what was added.

        Args:
            totals: what the enhancer counted over the clip, as `EnhancerStats.as_dict` gives it.

        Raises:
            FrameError: no frame was added.
        """
        if not self.frames:
            raise FrameError("empty", "no frame", "one frame at least")
        self._flicker.close()
        alone: dict[str, int] = self._events.counts.get("left alone", {})
        warning = mostly_left_alone(self.frames, alone, {}, None, lambda name, value: f"{name}: {value}")
        return Report(
            title=self.title,
            fps=self.fps,
            notes=[*self.notes, *([f"{warning[0].upper()}{warning[1:]}."] if warning else [])],
            series=self._series,
            flicker=self._flicker,
            events=self._events,
            cuts=list(self._cuts),
            worst=self._worst,
            totals=dict(totals or {}),
            verdicts=[
                *self.verdicts,
                *restoration(self._series, self._events),
                *judge(self._series, self._flicker, self.limits),
            ],
        )


def _panels(moment: Moment) -> Panels:
    before, after = moment.detail["in"], moment.detail["out"]
    shown = [("in", before), ("out", after), ("out − in, ×4", difference(before, after))]
    return [*shown, ("reference", moment.detail["ref"])] if "ref" in moment.detail else shown


def _scores(values: Mapping[str, float]) -> dict[str, float]:
    """How bad a frame is, by kind of trouble; NaN or 0 where it is not."""
    nan, parts = float("nan"), ("whole", "eyes", "mouth")
    yardstick = max(values.get("warping_in", nan), values.get("warping_ref", 0.0))
    psnr = values.get("psnr_out", nan)
    return {
        "flicker": values.get("warping_out", nan) - yardstick,
        "mouth": abs(values["mouth_out"] - values["mouth_in"]),
        "eyes": abs(values["eyes_out"] - values["eyes_in"]),
        "colour": max(abs(values[f"drift_{channel}"]) for channel in "bgr"),
        "seam": values["seam"],
        "structure": 1 - min(values[f"structure_{part}"] for part in parts),
        "movement": max(values[f"moved_{part}"] for part in parts),
        "likeness": 100 - psnr if np.isfinite(psnr) else nan,
    }


def fit_floats(values: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """An array ``(H, W)`` averaged to another shape."""
    import cv2

    return np.asarray(cv2.resize(values, (shape[1], shape[0]), interpolation=cv2.INTER_AREA), np.float32)


def require_packages() -> None:
    """Raises:
    MissingDependencyError: a package of the extra ``report`` is not installed.
    """
    for package, module in (("matplotlib", "matplotlib.figure"), ("scikit-image", "skimage.metrics")):
        try:
            import_module(module)
        except ImportError as error:
            raise MissingDependencyError(package, "report", "the report", str(error)) from error
