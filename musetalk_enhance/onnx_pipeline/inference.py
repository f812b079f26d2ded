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
from ..runtime.onnx_session import open_session, provider_of
from ..weights import find_onnx
from ..weights.onnx_graph import read_graph
from ..weights.onnx_models import recognize

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
        model: see `find_onnx`.
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
        weight = find_onnx(model)
        if weight.path.suffix.lower() != ".onnx":
            raise CheckpointError(weight.path, f"a {weight.path.suffix} file", "an .onnx file")
        self.path, self.sha256 = weight.path, weight.sha256
        options: Any = {"input_size": input_size, "value_range": value_range, "template": template}
        published = weight.entry.file if weight.entry else None
        file = recognize(read_graph(self.path), published, **options)
        self.model, self._graph = file.model, file.graph_file(fidelity)
        execution: Any = {"provider": provider, "allow_cpu": allow_cpu, "threads": threads}
        self._session = open_session(self.path, **execution)
        self.provider, self._batch_size = provider_of(self._session), batch_size
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
        start, runs = perf_counter(), -(-len(batch) // (self._graph.batch or self._batch_size))
        restored = np.empty((0, 3, *[self.model.input_size] * 2), np.float32)
        if len(batch):
            restored = self._graph.run(batch, self._restore, self._batch_size)
        visibility = None
        if self.occluder is not None and crops_bgr:
            size_wh = self.occluder.size_hw[::-1]
            faces = np.stack([resize_image(crop, size_wh) for crop in crops_bgr])
            masks = self.occluder.masks(faces.astype(np.float32) / 255)
            visibility = masks[:, 0].clip(0, 1)
        elapsed_ms = 1000 * (perf_counter() - start)
        logger.debug("inference: %d faces in %d runs", len(batch), runs)
        return Inferred(restored, visibility, runs, elapsed_ms)

    def close(self) -> None:
        """Free the networks; the service cannot be used afterwards."""
        self._session = None
        if self.occluder is not None:
            self.occluder.close()

    def _restore(self, inputs: dict[str, NDArray[Any]]) -> NDArray[Any]:
        try:
            (restored,) = self._session.run([self._graph.output], inputs)
        except Exception as error:  # of any class
            text = f"{self.model.name} failed: {type(error).__name__}: {error}"
            raise RestorerError(text) from error
        shape, side = np.shape(restored), self.model.input_size
        count = len(inputs[self._graph.image])
        is_image = len(shape) == 4 and shape[:2] == (count, 3) and shape[2] == shape[3]
        if not is_image or shape[2] < side:
            expected = f"({count}, 3, T, T), T {side} or more"
            raise RestorerError(f"{self.model.name} returned {shape}; expected {expected}")
        return np.asarray(restored)
