"""This library as a candidate: one for each set of options."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from musetalk_enhance.backends.torch_backend import is_emulated
from musetalk_enhance.config.settings import EnhancerSettings
from musetalk_enhance.enhancer import GFPGANEnhancer
from musetalk_enhance.errors import OutOfMemoryError, RestorerError

from .runner import Candidate, Runner, Value
from .subject import Subject, pictures

if TYPE_CHECKING:
    import numpy as np


class EnhancerRunner(Runner):
    """`GFPGANEnhancer` on MuseTalk's kind of frames: uint8, 256 px, BGR.

    Args:
        enhancer: closed by `close`.
        faces: how many, in one call.
        frames: uint8 (faces, H, W, 3); None takes different ones of 256 px.
    """

    def __init__(
        self, enhancer: GFPGANEnhancer, faces: int, frames: np.ndarray | None = None
    ) -> None:
        self.enhancer, self.faces = enhancer, faces
        self._frames = pictures(faces) if frames is None else frames

    def run(self) -> np.ndarray:
        """One call with all faces; see `Runner.run`."""
        backoffs = self.enhancer.stats.backoffs
        frames: np.ndarray = self.enhancer(self._frames)
        if self.enhancer.stats.backoffs > backoffs:  # it ran with a smaller batch than its row says
            raise OutOfMemoryError("out of memory with this batch")
        return frames

    def start(self) -> None:
        """Clear the statistics."""
        self.enhancer.stats.clear()

    def stages(self) -> dict[str, float]:
        """The enhancer's own stages; see `Runner.stages`."""
        stats = self.enhancer.stats
        if not stats.processed:
            return {}
        return {stage: ms / stats.processed for stage, ms in stats.ms.items()}

    def runs_as(self) -> str:
        """Backend and dtype that ran, after ``auto`` and the precision check."""
        return " ".join(self.enhancer.backend or ())

    def close(self) -> None:
        """Close the enhancer."""
        self.enhancer.close()


NETWORK_ALONE: dict[str, Value] = {
    "stability": 0,
    "color_match": False,
    "guard": False,
    "sharpness_gate": False,
}
"""The network alone: with random weights the guard would undo every face, and differences between
backends would be smoothed over. `musetalk-enhance bench` measures with the defaults on."""


def ours(subject: Subject, device: str, faces: int, **values: Value) -> Candidate:
    """This library with one set of options.

    Args:
        subject: the model.
        device: as the option `device`.
        faces: in one run; rounded up to whole batches.
        values: ``backend``, ``dtype``, ``batch``, ``region``, as the schema of options calls them
            (`batch` is its `batch_size`). They are checked when the candidate is built: an invalid
            value is a row.
    """
    batch = int(values["batch"])
    whole = -(-faces // batch) * batch

    def build() -> Runner:
        if device == "cpu" and values["backend"] == "torch" and is_emulated(str(values["dtype"])):
            reason = f"this CPU has no {values['dtype']} instructions: a face takes torch minutes"
            raise RestorerError(reason)
        options = {
            ("batch_size" if key == "batch" else key): value for key, value in values.items()
        }
        settings: dict[str, Any] = {
            **NETWORK_ALONE,
            **subject.options,
            **options,
            "device": device,
            "on_error": "raise",
        }
        return EnhancerRunner(
            GFPGANEnhancer.from_settings(EnhancerSettings(enabled=True, **settings)), whole
        )

    name = "{backend} {dtype} batch {batch}".format(**values)
    if values["region"] != "full":
        name += f" {values['region']}"
    return Candidate(name, build, {"path": "ours", **values})


def every(
    subject: Subject,
    device: str,
    faces: int,
    backends: Iterable[str],
    dtypes: Iterable[str],
    regions: Iterable[str],
    batches: Iterable[int],
) -> list[Candidate]:
    """One candidate for each combination, batches varying fastest."""
    return [
        ours(subject, device, faces, backend=backend, dtype=dtype, region=region, batch=batch)
        for backend, dtype, region, batch in itertools.product(backends, dtypes, regions, batches)
    ]
