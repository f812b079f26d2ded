"""A host's own settings of torch, kept away from our arithmetic and from building our networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@contextmanager
def without_autocast(device: torch.device) -> Iterator[None]:
    """While inside, a host's ``torch.autocast`` region means nothing, on the CPU and on `device`."""
    import torch

    with ExitStack() as stack:
        for kind in sorted({"cpu", device.type}):
            if _knows_autocast(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def _knows_autocast(kind: str) -> bool:
    import torch

    asked = getattr(torch.amp, "is_autocast_available", None)  # since torch 2.4
    return bool(asked(kind)) if asked else kind in ("cpu", "cuda")


@contextmanager
def as_if_alone() -> Iterator[None]:
    """While inside, torch builds float32 networks on the CPU; random numbers that takes are none of the host's."""
    import torch

    default = torch.get_default_dtype()
    cpu = torch.device("cpu")
    with torch.random.fork_rng(devices=[]), cpu, without_autocast(cpu):  # a trace would note what autocast does
        try:
            if default != torch.float32:
                torch.set_default_dtype(torch.float32)
            yield
        finally:
            if default != torch.float32:
                torch.set_default_dtype(default)
