"""How many faces go through the network at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import memory

if TYPE_CHECKING:
    import torch

    from .restorers.base import RestorerRecord
    from .settings import EnhancerSettings

MOST_ON_CPU, MOST_ON_GPU = 8, 32
"""Faces beyond which a larger batch brings nothing."""
QUIET_BATCHES = 32
"""Batches without trouble after which a halved batch may grow again."""


class BatchPlanner:
    """Says how large the next batch may be, and learns from memory that ran out.

    Attributes:
        size: faces in the next batch.
        planned: what `size` grows back to.
    """

    def __init__(self, settings: EnhancerSettings, record: RestorerRecord, device: torch.device) -> None:
        """Plan for `record` on `device` with ``settings.mode``, ``batch_size`` and ``memory_budget``."""
        most = MOST_ON_GPU if device.type == "cuda" else MOST_ON_CPU
        wanted = settings.batch_size if isinstance(settings.batch_size, int) else None
        if settings.mode == "memory":
            fitting = max(1, budget_bytes(settings.memory_budget, device) // record.bytes_per_face)
            planned = min(wanted or most, fitting)
        else:
            fitting = max(1, memory.free_bytes(device) // 2 // record.bytes_per_face)
            planned = wanted or min(most, fitting)
        self.planned = min(planned, record.batch_limit or planned)
        self.size = self.planned
        self._quiet = 0

    def succeeded(self) -> None:
        """A batch went through; after a quiet while the size doubles, up to the plan."""
        self._quiet += 1
        if self.size < self.planned and self._quiet >= QUIET_BATCHES:
            self.size = min(self.planned, self.size * 2)
            self._quiet = 0

    def ran_out(self, tried: int) -> bool:
        """Memory ran out with `tried` faces. Halves the size; False when it was one face already."""
        self._quiet = 0
        if tried <= 1:
            return False
        self.size = max(1, tried // 2)
        return True


def budget_bytes(budget: str | int | float, device: torch.device) -> int:
    """``memory_budget`` in bytes: ``"auto"`` is half of what is free, a float a share of it."""
    if isinstance(budget, int):
        return budget
    share = 0.5 if isinstance(budget, str) else budget
    return int(memory.free_bytes(device) * share)
