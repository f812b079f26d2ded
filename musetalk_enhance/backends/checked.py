"""Less than fp32, but only where it comes to the same picture."""

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

MOST_ERROR = 0.03
"""Largest relative error, ``|a - b| / |b|`` over all values, at which a reduced precision is kept."""
FLAT = 0.1
"""A face whose spread falls below this share of the right one's has lost its picture."""


def verdict(restored: torch.Tensor, expected: torch.Tensor) -> str | None:
    """What is wrong with `restored`; None when it may be used.

    Args:
        restored: (N, C, H, W) in reduced precision.
        expected: the same in fp32.
    """
    import torch

    if not bool(torch.isfinite(restored).all()):
        return "NaN or infinite values"
    if float(restored.std()) < FLAT * float(expected.std()):
        return "a flat colour"
    error = float((restored - expected).norm() / expected.norm().clamp_min(1e-12))
    return f"a relative error of {error:.1%}" if error > MOST_ERROR else None


class CheckedBackend(Backend):
    """Compares the first face with fp32 and falls back, way by way, to one that agrees.

    Args:
        spec: the network; its module gives the right answer.
        openers: makes the wanted backend, then the safer ones; the last must be fp32.
        device: where the right answer is computed.

    Attributes:
        fallbacks: times a way was given up.
    """

    def __init__(self, spec: NetworkSpec, openers: Sequence[Callable[[], Backend]], device: torch.device) -> None:
        self._spec: NetworkSpec | None = spec
        self._openers, self._device = list(openers), device
        self._opened_on = device
        self._given_up = False  # the backend in use is closed, the next one is not open yet
        self.fallbacks = 0
        self._backend = self._openers.pop(0)()

    @property
    def name(self) -> str:  # type: ignore[override]
        """Name of the backend in use."""
        return self._backend.name

    @property
    def dtype(self) -> str:  # type: ignore[override]
        """Arithmetic in use."""
        return self._backend.dtype

    @property
    def forms(self) -> tuple[str, ...]:
        """See `Backend.forms`."""
        return self._backend.forms

    def run(self, batch: torch.Tensor) -> torch.Tensor:
        """See `Backend.run`."""
        if self._spec is not None and len(batch):
            self._check(self._spec, batch[:1])
            self._forget()
        return self._backend.run(batch)

    def _forget(self) -> None:
        """Let go of the network itself, which the other ways hold as well."""
        self._spec = None
        self._openers.clear()

    def _check(self, spec: NetworkSpec, face: torch.Tensor) -> None:
        expected: torch.Tensor | None = None
        while self._given_up or self._backend.dtype != "fp32":
            if self._given_up:
                self._next()
                continue
            if expected is None:
                reference = TorchBackend(spec, self._device, graphs=False)
                expected = reference.run(face.to(self._device))
            problem = self._problem(face, expected)
            if problem is None or not self._openers:
                return
            logger.warning("%s gives %s on the first face: it is not used", self._backend, problem)
            self.fallbacks += 1
            self._backend.close()
            self._given_up = True

    def _next(self) -> None:
        """Open the next way. Where that fails, as memory is short perhaps, it stays the next one."""
        backend = self._openers[0]()
        if self._device != self._opened_on:
            backend.to(self._device)
        del self._openers[0]
        self._backend, self._given_up = backend, False

    def _problem(self, face: torch.Tensor, expected: torch.Tensor) -> str | None:
        try:
            restored = self._backend.run(face)
        except RuntimeError as error:  # an operation that this torch, say, does not have in this type
            if is_out_of_memory(error):
                raise
            return f"an error ({error})"
        return verdict(restored.to(expected.device), expected)

    def to(self, device: torch.device) -> None:
        """See `Backend.to`."""
        self._backend.to(device)
        self._device = device

    def close(self) -> None:
        """See `Backend.close`."""
        self._backend.close()
        self._forget()
