"""Which device a network runs on."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("musetalk_enhance")


def torch_device(name: str) -> torch.device:
    """A `torch.device`, importing torch only now."""
    import torch

    return torch.device(name)


def pick_device(device: str, allow_cpu: bool = False) -> torch.device:
    """The device that the option `device` names.

    Args:
        device: as the option of that name.
        allow_cpu: fall back to the CPU, with a warning, where it is unavailable.

    Raises:
        ConfigError: it is unavailable on this machine.
    """
    import torch

    mps = getattr(torch.backends, "mps", None)
    has_mps = bool(mps and mps.is_available())
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = device.partition(":")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    allowed = None
    if kind == "cuda" and int(number or 0) >= count:
        allowed = f"auto, cpu{''.join(f', cuda:{i}' for i in range(count))} on this machine"
    elif kind == "mps" and not has_mps:
        allowed = "auto or cpu on this machine (no Metal)"
    if allowed is None:
        return torch.device(device)
    if not allow_cpu:
        raise ConfigError("device", device, allowed)
    logger.warning("device %s is not available on this machine: falling back to the CPU", device)
    return torch.device("cpu")
