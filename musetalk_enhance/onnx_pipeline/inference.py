"""The second service: the networks, in ONNX Runtime."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, RestorerError
from ..faces.occlusion import Occluder
from ..media.arrays import Image, resize_image
from ..runtime.onnx_session import PROVIDERS, open_session
from .models import OUTPUTS, find_model, recognize

logger = logging.getLogger("musetalk_enhance")


@dataclass(frozen=True, eq=False)
class Inferred:
    """What `Inference` returns.

    Attributes:
        restored: float32 (n, 3, T, T), in the model's colors and value range, not clamped.
        visibility: float32 (n, h, w), 0..1, 1 where the face is visible; None without an occluder.
        runs: how often the restorer ran.
        elapsed_ms: milliseconds.
    """

    restored: NDArray[np.float32]
    visibility: NDArray[np.float32] | None
    runs: int
    elapsed_ms: float


class Inference:
    """Runs a restorer, and an occluder if there is one.

    Args:
        model: see `find_model`.
        input_size: see `recognize`, as are `value_range` and `template`.
        value_range: the lowest and the highest value.
        template: a key of `templates.TEMPLATES`.
        fidelity: 0..1, for a model that has it.
        occluder: an .onnx file, see `Occluder`.
        provider: a key of `PROVIDERS`, of both networks.
        allow_cpu: run on the CPU, with a warning, where the provider cannot run.
        threads: of the CPU; 0 leaves the number to onnxruntime.
        batch_size: faces in one run, where the batch axis is not fixed.

    Attributes:
        model: the facts of the restorer.
        path: its file.
        sha256: its hash.
        provider: the provider that runs.

    Raises:
        ConfigError: an invalid name.
        WeightError: a file is missing, or another network's.
        MissingDependencyError: onnxruntime is not installed.
        RestorerError: the provider cannot run.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        input_size: int | None = None,
        value_range: tuple[float, float] | None = None,
        template: str | None = None,
        fidelity: float = 0.7,
        occluder: str | Path | None = None,
        provider: str = "cpu",
        allow_cpu: bool = False,
        threads: int = 0,
        batch_size: int = 4,
    ) -> None:
        weight = find_model(model)
        if weight.path.suffix.lower() != ".onnx":
            raise CheckpointError(weight.path, f"a {weight.path.suffix} file", "an .onnx file")
        self.path, self.sha256 = weight.path, weight.sha256
        execution: Any = {"provider": provider, "allow_cpu": allow_cpu, "threads": threads}
        self._session = open_session(self.path, **execution)
        running = self._session.get_providers()[0]
        self.provider = next(word for word, name in PROVIDERS.items() if name == running)
        inputs = self._session.get_inputs()
        facts = self._session.get_modelmeta().custom_metadata_map
        options: Any = {"input_size": input_size, "value_range": value_range, "template": template}
        self.model, self._input, self._fidelity = recognize(self.path, inputs, facts, **options)
        image = next(one for one in inputs if one.name == self._input)
        self._dtype = np.float16 if "16" in image.type else np.float32
        self._fixed = image.shape[0] if isinstance(image.shape[0], int) else None
        self._batch_size, self._feeds = self._fixed or batch_size, {}
        for one in inputs:
            if one.name == self._fidelity:
                shape = [side if isinstance(side, int) else 1 for side in one.shape]
                dtype = {"tensor(double)": np.float64, "tensor(float16)": np.float16}
                self._feeds[one.name] = np.full(shape, fidelity, dtype.get(one.type, np.float32))
        self._output = self._image_output()
        self.occluder: Occluder | None = None
        if occluder is not None:
            self.occluder = Occluder(occluder, **execution)

    def run(self, batch: NDArray[np.float32], crops_bgr: list[Image] | None = None) -> Inferred:
        """Restore a batch of faces.

        Args:
            batch: float32 (n, 3, side, side), as `Preprocess` makes it.
            crops_bgr: the same faces, BGR uint8 (side, side, 3), for the occluder.

        Raises:
            RestorerError: a network failed, or returned another shape.
        """
        start, size = perf_counter(), self._batch_size
        parts = [self._restore(batch[at : at + size]) for at in range(0, len(batch), size)]
        side = self.model.input_size
        restored = np.concatenate(parts) if parts else np.empty((0, 3, side, side), np.float32)
        visibility = None
        if self.occluder is not None and crops_bgr:
            size_wh = self.occluder.size_hw[::-1]
            faces = np.stack([resize_image(crop, size_wh) for crop in crops_bgr])
            masks = self.occluder.masks(faces.astype(np.float32) / 255)
            visibility = masks[:, 0].clip(0, 1)
        elapsed_ms = 1000 * (perf_counter() - start)
        logger.debug("inference: %d faces in %d runs", len(batch), len(parts))
        return Inferred(restored, visibility, len(parts), elapsed_ms)

    def close(self) -> None:
        """Free the networks; the service cannot be used afterwards."""
        self._session = None
        if self.occluder is not None:
            self.occluder.close()

    def _restore(self, faces: NDArray[np.float32]) -> NDArray[np.float32]:
        count = len(faces)
        if self._fixed and count < self._fixed:
            faces = np.concatenate((faces, faces[-1:].repeat(self._fixed - count, axis=0)))
        try:
            feeds = {self._input: faces.astype(self._dtype), **self._feeds}
            (restored,) = self._session.run([self._output], feeds)
        except Exception as error:  # of any class
            text = f"{self.model.name} failed: {type(error).__name__}: {error}"
            raise RestorerError(text) from error
        shape, side = np.shape(restored), self.model.input_size
        if (
            len(shape) != 4
            or shape[:2] != (len(faces), 3)
            or shape[2] != shape[3]
            or (shape[2] < side)
        ):
            expected = f"({len(faces)}, 3, T, T), T {side} or more"
            raise RestorerError(f"{self.model.name} returned {shape}; expected {expected}")
        return np.asarray(restored[:count], np.float32)

    def _image_output(self) -> str:
        outputs = self._session.get_outputs()
        images = [one for one in outputs if len(one.shape) == 4 and one.shape[1] in (3, None)]
        images += [one for one in outputs if len(one.shape) == 4 and isinstance(one.shape[1], str)]
        images.sort(key=lambda one: one.name not in OUTPUTS)
        if not images:
            shapes = ", ".join(f"{one.name} {list(one.shape)}" for one in outputs)
            raise CheckpointError(
                self.path, f"a graph with the outputs {shapes}", "an image (N, 3, side, side)"
            )
        return str(images[0].name)
