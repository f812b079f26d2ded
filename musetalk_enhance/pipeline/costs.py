"""What a batch of faces costs in memory: measured on the first runs of a stream, not believed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime import memory

if TYPE_CHECKING:
    import torch

HEADROOM = 1.1
"""Factor on the fitted line for the size of a batch that was not measured."""
SPREAD = 1.1
"""Factor between two runs of one batch: the C library keeps freed blocks in varying amounts."""
STEP = 4
"""How many times larger than the largest measured batch the next one may be."""
SAMPLING_S = 0.002
"""Seconds between two samples of resident memory, where the kernel's peak cannot be reset."""


@dataclass
class Peak:
    """What one run needed, in bytes over what was in use when it began.

    Attributes:
        highest: at its highest point.
        kept: still in use when it ended (results, and whatever a backend keeps in an arena of its
            own); below 0 where something that was there before was freed meanwhile.
        exact: whether `highest` is the system's own peak, not the highest of samples.
    """

    highest: int = 0
    kept: int = 0
    exact: bool = True


class CostModel:
    """Peak memory of a batch by its number of faces: a line through the measured batches.

    Attributes:
        guess: bytes per face to go by before anything was measured.
        measured: faces to bytes over the loaded state.
    """

    def __init__(self, guess: int) -> None:
        """Start from `guess` bytes per face."""
        self.guess = guess
        self.measured: dict[int, int] = {}
        self._sure: set[int] = set()
        self._kept = 0

    @property
    def largest(self) -> int:
        """Faces of the largest batch that was measured, 0 before the first."""
        return max(self.measured, default=0)

    @property
    def next_step(self) -> int:
        """Limit of faces in the next batch: 1, then 2, then `STEP` times the largest measured."""
        return self.largest * STEP if self.largest > 1 else self.largest + 1

    def add(self, faces: int, peak: Peak) -> None:
        """A batch of `faces` needed `peak`.

        What earlier runs have kept is counted to every later one: it was not there in the loaded
        state. What was freed meanwhile may have hidden as much. Of two measurements of a batch the
        lower counts, since a first run pays for what is paid once, and others may take memory
        meanwhile. A figure that is not exact may be too low already, so it is not measured again.
        """
        need = max(1, self._kept + peak.highest + max(0, -peak.kept))
        if faces in self.measured or not peak.exact:
            self.believe(faces)
        self.measured[faces] = min(need, self.measured.get(faces, need))
        self._kept += max(0, peak.kept)

    def believe(self, faces: int) -> None:
        """Do not measure batches of `faces` again."""
        self._sure.add(faces)

    def sure(self, faces: int) -> bool:
        """Whether a batch of `faces` needs no further measurement."""
        return faces in self._sure

    def line(self) -> tuple[int, int]:
        """(bytes fixed, bytes per face) beyond the largest measured batch."""
        points = self._points()
        if not points:
            return 0, self.guess
        faces, need = points[-1]
        per_face = need // faces
        if len(points) > 1:
            smaller, need_before = points[-2]
            per_face = (need - need_before) // (faces - smaller) or per_face
        return max(0, need - per_face * faces), per_face

    def bytes_for(self, faces: int) -> int:
        """Bytes that a batch needs beside the loaded network; extrapolated with headroom."""
        points = self._points()
        if not points:
            return self.guess * faces
        lower = max((point for point in points if point[0] <= faces), default=(0, 0))
        upper = min((point for point in points if point[0] >= faces), default=None)
        if upper is None:
            return lower[1] + int((faces - lower[0]) * self.line()[1] * HEADROOM)
        if upper == lower:
            return upper[1]
        return lower[1] + (upper[1] - lower[1]) * (faces - lower[0]) // (upper[0] - lower[0])

    def fitting(self, budget: int, limit: int) -> int:
        """Faces, up to `limit`, that always stay within `budget` bytes; 0 if one does not."""
        return next(n for n in count() if n == limit or self.bytes_for(n + 1) * SPREAD > budget)

    def _points(self) -> list[tuple[int, int]]:
        """The measured batches by size; costs never fall as the size grows."""
        highest, points = 0, []
        for faces in sorted(self.measured):
            highest = max(highest, self.measured[faces])
            points.append((faces, highest))
        return points


def measurable(device: torch.device) -> bool:
    """Whether `watch` can tell what a run on `device` needs."""
    return device.type in ("cpu", "cuda")


@contextmanager
def watch(device: torch.device) -> Iterator[Peak]:
    """Measure what happens inside; the figures are there when it ended without an error.

    On CUDA these are the figures of torch's allocator, whose peak statistic of `device` is
    reset, and what others took of the GPU meanwhile. On the CPU it is the resident memory of the
    whole process, so that whatever other threads allocate at the same time is counted as well;
    Linux' own peak (``VmHWM``) is reset.
    """
    with _watch_cuda(device) if device.type == "cuda" else _watch_resident() as peak:
        yield peak


@contextmanager
def _watch_cuda(device: torch.device) -> Iterator[Peak]:
    import torch

    # in use on the GPU, but not by torch's allocator: another runtime's arena
    def elsewhere() -> int:
        free, total = memory.on_gpu(device)
        return int(total - free - torch.cuda.memory_reserved(device))

    peak = Peak()
    torch.cuda.reset_peak_memory_stats(device)
    start, start_elsewhere = torch.cuda.memory_allocated(device), elsewhere()
    yield peak
    others = max(0, elsewhere() - start_elsewhere)
    peak.highest = torch.cuda.max_memory_allocated(device) - start + others
    peak.kept = torch.cuda.memory_allocated(device) - start + others


@contextmanager
def _watch_resident() -> Iterator[Peak]:
    peak = Peak()
    memory.trim()  # what the C library holds back would hide the next run's need
    start, start_own = memory.resident_bytes(), memory.own_bytes()
    with _highest_resident() as highest:
        yield peak
    memory.trim()
    peak.highest = max(0, highest.bytes - start)
    peak.kept = memory.own_bytes() - start_own
    peak.exact = highest.exact


@dataclass
class _Highest:
    """Peak resident memory in bytes, and whether it is exact or sampled."""

    bytes: int
    exact: bool = True


@contextmanager
def _highest_resident() -> Iterator[_Highest]:
    """What is yielded is filled in when the block ends."""
    highest = _Highest(memory.resident_bytes())
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        highest.exact = False
        with _sampling(highest):
            yield highest
        return
    yield highest
    status = Path("/proc/self/status").read_text().split()
    highest.bytes = int(status[status.index("VmHWM:") + 1]) * 1024


@contextmanager
def _sampling(highest: _Highest) -> Iterator[None]:
    stop = threading.Event()

    def look() -> None:
        highest.bytes = max(highest.bytes, memory.resident_bytes())

    def look_often() -> None:
        while not stop.wait(SAMPLING_S):
            look()

    thread = threading.Thread(target=look_often, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        look()
