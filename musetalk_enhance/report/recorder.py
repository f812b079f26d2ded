"""Reports on a running enhancer, without decoding a video or detecting a face again."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ..enhancer import GFPGANEnhancer
from ..frames.batch import FrameBatch
from ..media.arrays import Image
from ..pipeline.outcome import Outcome
from .builder import ReportBuilder

logger = logging.getLogger("musetalk_enhance")

MIN_SIDE = 16


class Recorder:
    """Observes an enhancer and builds a report on the face crops that it restores.

    >>> recorder = Recorder(25.0)  # doctest: +SKIP
    >>> recorder.watch(enhancer)  # doctest: +SKIP
    >>> run_the_host()  # doctest: +SKIP
    >>> recorder.write("out/report")  # doctest: +SKIP
    """

    def __init__(self, fps: float, title: str = "") -> None:
        """Prepare an empty report.

        Args:
            fps: frames per second of the stream.
            title: heading of the report.

        Raises:
            ConfigError: `fps` is not above 0.
            MissingDependencyError: a package of the extra ``report`` is not installed.
        """
        self.builder = ReportBuilder(fps, title=title)
        self._enhancer: GFPGANEnhancer | None = None
        self._failed = ""

    def watch(self, enhancer: GFPGANEnhancer) -> None:
        """Record every frame that `enhancer` processes from now on."""
        self._enhancer = enhancer
        enhancer.observe(self._frame)

    def write(self, folder: str | Path) -> list[Path]:
        """Write report.json and report.html.

        Returns:
            Their paths; an empty list if no frame was recorded.
        """
        if self._failed:
            logger.warning("the report is incomplete: %s", self._failed)
        if not self.builder.frames:
            logger.warning("no report is written: no frame was recorded")
            return []
        totals = self._enhancer.stats.as_dict() if self._enhancer is not None else None
        report = self.builder.finish(totals)
        for verdict in report.lines():
            logger.info("%s", verdict)
        return [Path(path) for path in report.write(folder)]

    def _frame(self, frame: Any, result: Any, outcome: Outcome) -> None:
        """Record one frame; an error here never reaches the host."""
        if self._failed:
            return
        try:
            face_in, face_out = self._image(frame), self._image(result)
            if face_in is not None and face_out is not None:
                self.builder.add(face_in, face_out, notes=outcome.as_dict())
        except Exception as error:
            self._failed = f"{type(error).__name__}: {error}"

    def _image(self, frame: Any) -> Image | None:
        """A frame as BGR uint8 (H, W, 3); None if it is not an image."""
        import torch

        assert self._enhancer is not None
        settings = self._enhancer.settings
        batch = FrameBatch.open([frame], settings.value_range, self._enhancer.known_range)
        if batch.problems:
            return None
        face = batch.to_network([0], torch.device("cpu"), settings.color)[0]
        image = face.flip(0).mul(255).round().byte().permute(1, 2, 0).contiguous().numpy()
        return image if min(image.shape[:2]) >= MIN_SIDE else None
