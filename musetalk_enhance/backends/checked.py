"""A reduced precision that is used only where its result agrees with fp32."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..runtime.memory import is_out_of_memory
from .base import Backend, NetworkSpec
from .torch_backend import TorchBackend

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("musetalk_enhance")

MAX_ERROR = 0.03
"""Largest accepted relative error of a reduced precision, ``|a - b| / |b|`` over all values."""
FLAT = 0.1
"""A result whose standard deviation is below this share of the expected one has no detail left."""

Opener = Callable[["torch.device"], Backend]


def verdict(restored: torch.Tensor, expected: torch.Tensor) -> str | None:
    """What is wrong with `restored`; None if nothing is.

    Args:
        restored: (N, C, H, W) in reduced precision.
        expected: the same in fp32.
    """
    import torch

    if not bool(torch.isfinite(restored).all()):
        return "NaN or infinite values"
    if float(restored.std()) < FLAT * float(expected.std()):
        return "a flat color"
    error = float((restored - expected).norm() / expected.norm().clamp_min(1e-12))
    return f"a relative error of {error:.1%}" if error > MAX_ERROR else None


class CheckedBackend(Backend):
    """Compares the first face with fp32 and falls back, step by step, to a backend that agrees.

    Args:
        spec: the network; its module gives the expected result, or, without one, the last opener.
        openers: open the requested backend on a device, then the safer ones; the last is fp32.
        device: where it runs.

    Attributes:
        fallbacks: how often a backend was given up.
    """

    def __init__(self, spec: NetworkSpec, openers: Sequence[Opener], device: torch.device) -> None:
        self._spec: NetworkSpec | None = spec
        self._openers, self._device = list(openers), device
        self._rejected = False  # the backend is closed, and the next one is not open yet
        self.fallbacks = 0
        self._backend = self._openers.pop(0)(device)

    @property
    def name(self) -> str:  # type: ignore[override]
        """Name of the backend in use."""
        return self._backend.name

    @property
    def dtype(self) -> str:  # type: ignore[override]
        """Arithmetic in use."""
        return self._backend.dtype

    def run(self, batch: torch.Tensor) -> torch.Tensor:
        """See `Backend.run`."""
        if self._spec is not None and len(batch):
            self._check(self._spec, batch[:1])
            self._drop_network()
        return self._backend.run(batch)

    def _drop_network(self) -> None:
        """Release the network itself, which the other openers refer to as well."""
        self._spec = None
        self._openers.clear()

    def _check(self, spec: NetworkSpec, face: torch.Tensor) -> None:
        expected: torch.Tensor | None = None
        while self._rejected or self._backend.dtype != "fp32":
            if self._rejected:
                self._open_next()
                continue
            if expected is None:
                expected = self._reference(spec, face)
            problem = self._problem(face, expected)
            if problem is None or not self._openers:
                return
            logger.warning("%s returns %s for the first face: not used", self._backend, problem)
            self.fallbacks += 1
            self._backend.close()
            self._rejected = True

    def _reference(self, spec: NetworkSpec, face: torch.Tensor) -> torch.Tensor:
        if spec.module is not None:
            return TorchBackend(spec, self._device, graphs=False).run(face.to(self._device))
        backend = self._openers[-1](self._device)  # a graph in a file: its own runtime in fp32
        try:
            return backend.run(face)
        finally:
            backend.close()

    def _open_next(self) -> None:
        """Open the next backend; if that fails, for lack of memory perhaps, it stays the next."""
        self._backend = self._openers[0](self._device)
        del self._openers[0]
        self._rejected = False

    def _problem(self, face: torch.Tensor, expected: torch.Tensor) -> str | None:
        try:
            restored = self._backend.run(face)
        except RuntimeError as error:  # such as an operation that this torch lacks in this dtype
            if is_out_of_memory(error):
                raise
            return f"an error ({error})"
        return verdict(restored.to(expected.device), expected)

    def to(self, device: torch.device) -> None:
        """See `Backend.to`; a backend that was given up is not moved, the next one opens there."""
        if not self._rejected:
            self._backend.to(device)
        elif device.type == "cpu":  # as `TorchBackend.to`: less than fp32 may take minutes there
            self._openers = self._openers[-1:]
        self._device = device

    def close(self) -> None:
        """See `Backend.close`."""
        self._backend.close()
        self._drop_network()
