"""Keeps a host's own settings of torch from affecting our networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@contextmanager
def without_autocast(device: torch.device) -> Iterator[None]:
    """Disable a host's ``torch.autocast`` region, on the CPU and on `device`."""
    import torch

    with ExitStack() as stack:
        for kind in sorted({"cpu", device.type}):
            if _has_autocast(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def _has_autocast(kind: str) -> bool:
    import torch

    asked = getattr(torch.amp, "is_autocast_available", None)  # since torch 2.4
    return bool(asked(kind)) if asked else kind in ("cpu", "cuda")


@contextmanager
def as_if_alone() -> Iterator[None]:
    """Let torch build float32 networks on the CPU, without advancing the host's random numbers."""
    import torch

    default = torch.get_default_dtype()
    cpu = torch.device("cpu")
    # a trace would record what autocast does
    with torch.random.fork_rng(devices=[]), cpu, without_autocast(cpu):
        try:
            if default != torch.float32:
                torch.set_default_dtype(torch.float32)
            yield
        finally:
            if default != torch.float32:
                torch.set_default_dtype(default)
