"""`ReportBuilder`: measures the face crops of a clip one by one and builds the report."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, FrameError, MissingDependencyError, renamed_arguments
from ..media.arrays import Image
from ..pipeline.stats import mostly_left_alone
from . import metrics
from .document import Report
from .events import Events
from .flicker import FlickerWindows
from .measurements import (
    CAPTIONS,
    MIN_TRACKED_SHARE,
    PARTS,
    ChangedRegion,
    FrameCrops,
    Sizes,
    check_crop,
    frame_metrics,
    motion_metrics,
)
from .openings import Meter, OpeningMeter
from .series import Series
from .verdicts import Limits, Verdict, judge, restoration
from .worst import FrameImages, Panels, WorstFrames, difference

FACE_SIDE = 512
"""Longer edge of the images of a typical frame, in pixels."""


class ReportBuilder:
    """Measures face crops before and after restoration, frame by frame.

    Stores about thirty numbers per frame, under a second of small luminance images, and the few
    worst frames as JPEG.

    >>> builder = ReportBuilder(25.0, title="my clip")  # doctest: +SKIP
    >>> for face_in, face_out in faces:  # doctest: +SKIP
    ...     builder.add(face_in, face_out)
    >>> builder.finish(enhancer.stats.as_dict()).write("out/report")  # doctest: +SKIP

    Args:
        fps: frames per second.
        title: heading of the report.
        meter: measures openings, see `openings.Meter`; None loads the embedded one on first use.
        limits: the limit of each check.

    Raises:
        ConfigError: `fps` is not above 0.
        MissingDependencyError: matplotlib or scikit-image is not installed (extra ``report``).
    """

    @renamed_arguments(gauge="meter")
    def __init__(
        self,
        fps: float,
        *,
        title: str = "",
        meter: Meter | None = None,
        limits: Limits | None = None,
    ) -> None:
        if not (fps > 0 and np.isfinite(fps)):
            raise ConfigError("fps", fps, "a number above 0")
        require_packages()
        self.fps, self.title, self.limits = float(fps), title, limits or Limits()
        self.notes: list[str] = []
        """Sentences at the top of the report."""
        self.verdicts: list[Verdict] = []
        """The caller's own verdicts; they come first in the report."""
        self._meter, self._series, self._events = OpeningMeter(meter), Series(), Events()
        self._flicker, self._changed = FlickerWindows(self.fps), ChangedRegion()
        self._worst = WorstFrames(min_distance=max(1, round(self.fps / 2)))
        self._typical: FrameImages | None = None
        self._sizes: Sizes | None = None
        self._previous: FrameCrops | None = None
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
        """Measure the face crops of one frame; they are neither modified nor stored.

        Crops may differ in size between frames; all are resized to the sizes of the first ones.

        Args:
            face_in_bgr: the host's crop, BGR uint8 ``(H, W, 3)``, at least 16 px on each side.
            face_out_bgr: the restored crop, of the same or another (usually larger) size.
            face_reference_bgr: the same crop of the unsoftened original, if available.
            notes: the enhancer's notes on the frame. Numbers (``strength``, ``change``) become
                curves, words (``guard``, ``left alone``, ``passthrough``) and flags are counted;
                ``cut: True`` starts a new scene. A ``change`` of 0 means that no pixel changed.

        Raises:
            FrameError: a crop has another dtype or shape.
        """
        images = {"in": face_in_bgr, "out": face_out_bgr}
        if face_reference_bgr is not None:
            images["ref"] = face_reference_bgr
        for name, image in images.items():
            check_crop(image, name)
        self._sizes = self._sizes or Sizes.of(face_out_bgr.shape)
        crops = FrameCrops.of(images, self._sizes)
        openings = self._meter.measure(list(crops.work.values()))
        crops.openings = dict(zip(images, openings, strict=True))
        values = frame_metrics(crops) | self._changed.update(crops)
        values |= self._motion_metrics(crops, notes or {})
        values |= self._events.add(self.frames, notes or {})
        self._offer(crops, values)
        if self.frames & (self.frames - 1) == 0:  # 0, or a power of two: of the clip's second half
            faces = [panel for panel in _panels(crops) if "×" not in panel[0]]
            self._typical = FrameImages.of(self.frames, 0.0, faces, FACE_SIDE)
        self._series.add(values)
        self._previous = crops

    def _motion_metrics(self, crops: FrameCrops, notes: Mapping[str, Any]) -> dict[str, float]:
        """Metrics that need the previous frame; empty after a cut."""
        previous, speed, self._motion = self._previous, None, None
        values: dict[str, float] = {}
        if previous is not None and not notes.get("cut"):
            motion = metrics.Motion.between(previous.work["in"], crops.work["in"])
            if motion.visible.mean() >= MIN_TRACKED_SHARE:
                self._motion = motion
                values = motion_metrics(previous, crops, motion)
                shape = crops.luminance["in"].shape
                speed = resize_floats(motion.speed, shape) * (max(shape) / max(motion.speed.shape))
        if previous is not None and speed is None:
            self._cuts.append(self.frames)
        self._flicker.add(self.frames, crops.luminance, speed)
        return values

    def _offer(self, crops: FrameCrops, values: dict[str, float]) -> None:
        """Offer the frame as one of the worst of each kind of problem."""
        for kind, score in _scores(values).items():
            build = self._flicker_panels if kind == "flicker" else _panels
            self._worst.offer(kind, self.frames, score, partial(build, crops))

    def _flicker_panels(self, crops: FrameCrops) -> Panels:
        """Both clips, and their change since the previous frame after motion compensation."""
        assert self._previous is not None and self._motion is not None
        panels = [(CAPTIONS[name], crops.detail[name]) for name in ("in", "out")]
        for name in ("in", "out"):
            previous, visible = self._previous.work[name], self._motion.visible[..., None]
            compensated = np.where(visible, self._motion.warp(crops.work[name]), previous)
            panels.append(
                (f"{CAPTIONS[name]}: beyond motion, ×4", difference(previous, compensated))
            )
        return panels

    def finish(self, totals: Mapping[str, Any] | None = None) -> Report:
        """Build the report on the frames added so far.

        Args:
            totals: the enhancer's counters over the clip, as `EnhancerStats.as_dict` returns them.

        Raises:
            FrameError: no frame was added.
        """
        if not self.frames:
            raise FrameError("empty", "no frame", "at least one frame")
        self._flicker.close()
        left_alone: dict[str, int] = self._events.counts.get("left alone", {})
        limits = ((totals or {}).get("limits") or "").split(", ")
        warning = mostly_left_alone(
            *(self.frames, left_alone, {}, None),
            lambda name, value: f"{name}: {value}",
            [name for name in limits if name],
        )
        return Report(
            title=self.title,
            fps=self.fps,
            notes=[*self.notes, *([f"{warning[0].upper()}{warning[1:]}."] if warning else [])],
            series=self._series,
            flicker=self._flicker,
            events=self._events,
            cuts=list(self._cuts),
            worst=self._worst,
            typical=self._typical,
            totals=dict(totals or {}),
            verdicts=[
                *self.verdicts,
                *restoration(self._series, self._events),
                *judge(self._series, self._flicker, self.limits),
            ],
        )


def _panels(crops: FrameCrops) -> Panels:
    face_in, face_out = crops.detail["in"], crops.detail["out"]
    change = ("after − before, ×4", difference(face_in, face_out))
    panels = [(CAPTIONS["in"], face_in), (CAPTIONS["out"], face_out), change]
    return [*panels, (CAPTIONS["ref"], crops.detail["ref"])] if "ref" in crops.detail else panels


def _scores(values: Mapping[str, float]) -> dict[str, float]:
    """The score of a frame by kind of problem, higher is worse; NaN or 0 without one."""
    nan = float("nan")
    baseline = max(values.get("warping_in", nan), values.get("warping_ref", 0.0))
    psnr = values.get("psnr_out", nan)
    return {
        "flicker": values.get("warping_out", nan) - baseline,
        "mouth": abs(values["mouth_out"] - values["mouth_in"]),
        "eyes": abs(values["eyes_out"] - values["eyes_in"]),
        "colour": max(abs(values[f"drift_{channel}"]) for channel in "bgr"),
        "seam": values["seam"],
        "structure": 1 - min(values[f"structure_{part}"] for part in PARTS),
        "movement": max(values[f"moved_{part}"] for part in PARTS),
        "likeness": 100 - psnr if np.isfinite(psnr) else nan,
    }


def resize_floats(values: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """An array ``(H, W)`` resized to another shape by area average."""
    import cv2

    resized = cv2.resize(values, (shape[1], shape[0]), interpolation=cv2.INTER_AREA)
    return np.asarray(resized, np.float32)


def require_packages() -> None:
    """Check that the packages of the extra ``report`` are installed.

    Raises:
        MissingDependencyError: one of them is not.
    """
    modules = (
        ("jinja2", "jinja2"),
        ("matplotlib", "matplotlib.figure"),
        ("scikit-image", "skimage.metrics"),
    )
    for package, module in modules:
        try:
            import_module(module)
        except ImportError as error:
            raise MissingDependencyError(package, "report", "the report", str(error)) from error
