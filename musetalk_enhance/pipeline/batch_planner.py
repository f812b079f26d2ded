"""How many faces go through the network at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..runtime import memory
from . import costs

if TYPE_CHECKING:
    import torch

    from ..config.settings import EnhancerSettings
    from ..restorers.base import ModelInfo

MOST_ON_CPU, MOST_ON_GPU = 8, 32
"""Faces beyond which a larger batch brings nothing."""
QUIET_BATCHES = 32
"""Batches without trouble after which a halved batch may grow again."""


@dataclass
class WatchedBatch:
    """A batch that is watched.

    Attributes:
        faces: that went through the network.
    """

    faces: int


class BatchPlanner:
    """Plans the size of the next batch from measured memory and out-of-memory errors.

    With ``mode="memory"`` the first batch is one face and the second two; both are measured, and
    from then on the plan is the most faces whose measured cost stays within the budget. A batch
    larger than every one before is measured as well, and is at most four times the largest before.
    Where the largest is why no more are planned, it runs and is measured once more, also when it
    took more than the budget: by all that was known, it fitted. With ``mode="batch"`` nothing is
    measured.

    Attributes:
        size: faces in a batch for now.
        planned: what `size` grows to.
        budget: bytes that a batch may take over the loaded state; None with ``mode="batch"``.
        costs: what batches take.
    """

    def __init__(
        self,
        settings: EnhancerSettings,
        record: ModelInfo,
        device: torch.device,
        learned: BatchPlanner | None = None,
    ) -> None:
        """Plan for `record` on `device` with the settings' mode, batch size and budget.

        Args:
            settings: all options.
            record: the model; its ``bytes_per_face`` counts until something was measured.
            device: where it runs.
            learned: a planner for the same network and device with other settings.
        """
        self._settings, self._record = settings, record
        self.start(device, learned)

    def start(self, device: torch.device, learned: BatchPlanner | None = None) -> None:
        """Start planning on `device`, from the costs that `learned` has measured."""
        settings, record = self._settings, self._record
        self._device = device
        self.costs: costs.CostModel = (
            learned.costs if learned else costs.CostModel(record.bytes_per_face)
        )
        limit = MOST_ON_GPU if device.type == "cuda" else MOST_ON_CPU
        if settings.mode == "memory":
            self.budget: int | None = budget_bytes(settings.memory_budget, device)
        else:
            self.budget = None
            limit = max(1, min(limit, memory.free_bytes(device) // 2 // record.bytes_per_face))
        requested = settings.batch_size if isinstance(settings.batch_size, int) else limit
        self._most = min(requested, record.batch_limit or requested)
        self._ceiling: int | None = learned._ceiling if learned else None
        self._quiet = 0
        self._plan()

    def _plan(self) -> None:
        self.planned = self.size = self._most
        if self.budget is not None:
            self.planned = self.size = max(1, self.costs.fitting(self.budget, self._most))
            if costs.measurable(self._device):
                self.size = min(self.size, self.costs.next_step)
        if self._ceiling is not None:
            self.size = min(self.size, self._ceiling)

    def next(self, left: int) -> int:
        """Faces of the next batch, of `left` that wait."""
        largest = self.costs.largest
        if self._doubtful and largest <= left and self._ceiling is None:
            return largest
        return min(left, self.size)

    @contextmanager
    def watched(self, faces: int) -> Iterator[WatchedBatch]:
        """Run a batch of `faces` inside; it is measured if that adds information.

        Yields:
            The watched batch: `faces`, unless the caller sets fewer.
        """
        batch = WatchedBatch(faces)
        if not self._says_more(faces):
            yield batch
            return
        with costs.watch(self._device) as peak:
            yield batch
        if batch.faces:
            self.costs.add(batch.faces, peak)
            self._plan()

    def _says_more(self, faces: int) -> bool:
        """Whether measuring a batch of `faces` adds information."""
        if self.budget is None or not costs.measurable(self._device):
            return False
        return faces > self.costs.largest or (faces == self.costs.largest and self._doubtful)

    @property
    def _doubtful(self) -> bool:
        """Whether the largest batch limits the plan but was measured only once."""
        largest = self.costs.largest
        limits = self.planned <= largest <= self._most and self.planned < self._most
        return limits and not self.costs.sure(largest)

    def over_budget(self, faces: int) -> bool:
        """Whether a batch of `faces` takes more than the budget, by all that is known."""
        measured = self.costs.largest > 0
        return self.budget is not None and measured and self.costs.bytes_for(faces) > self.budget

    def succeeded(self) -> None:
        """A batch went through; after a quiet while a halved size doubles, up to the plan."""
        if self._ceiling is not None:
            self._quiet += 1
            if self._quiet >= QUIET_BATCHES:
                self._quiet = 0
                self._ceiling *= 2
                if self._ceiling >= self.planned:
                    self._ceiling = None
        self._plan()  # a planner that shares the costs may have learnt something

    def ran_out(self, tried: int) -> bool:
        """Halve the size after `tried` faces ran out of memory; False if it was one face."""
        self._quiet = 0
        self.costs.believe(tried)
        if tried <= 1:
            return False
        self._ceiling = tried // 2
        self._plan()
        return True


def budget_bytes(budget: str | int | float, device: torch.device) -> int:
    """``memory_budget`` in bytes: ``"auto"`` is half of what is free, a float a share of it."""
    if isinstance(budget, int):
        return budget
    share = 0.5 if isinstance(budget, str) else budget
    return int(memory.free_bytes(device) * share)
