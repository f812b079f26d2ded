"""An enhancer that is loaded when a host's flags and YAML have been read."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ..config.loader import merge
from ..config.settings import EnhancerSettings
from ..enhancer import FaceEnhancer
from ..errors import ConfigError

logger = logging.getLogger("musetalk_enhance")


class LazyEnhancer:
    """Stands in for the enhancer until flags and YAML are read, which is before the first frame.

    Args:
        flags: options by name; they win over the YAML section.
        on_load: called with each enhancer that is loaded.
        defaults: options of the host, which the YAML section and the flags win over.
        fixed_size: name of a host that needs faces of the size that it made.
    """

    def __init__(
        self,
        flags: dict[str, Any],
        on_load: Callable[[FaceEnhancer], None] | None = None,
        defaults: Mapping[str, Any] | None = None,
        fixed_size: str | None = None,
    ) -> None:
        self.flags, self._defaults, self._on_load = flags, dict(defaults or {}), on_load
        self._fixed_size = fixed_size
        self.settings = self._merged(None)
        self.enhancer: FaceEnhancer | None = None
        self.calls = 0
        self._device: str | None = None
        self._lock = threading.RLock()

    def _merged(self, section: Mapping[str, Any] | None) -> EnhancerSettings:
        settings = merge({**self._defaults, **(section or {})}, self.flags)
        if self._fixed_size is not None and settings.output_size != "same":
            allowed = f"same: {self._fixed_size} takes faces only in the size that it made"
            raise ConfigError("output_size", settings.output_size, allowed)
        return settings

    def check(self) -> None:
        """Raise if the flags name a missing model, without loading it; a YAML may add options."""
        if {"model", "model_path"} & set(self.flags):
            self._check()

    def _check(self) -> None:
        from ..restorers.catalog import choose

        if self.settings.enabled:
            choose(self.settings)

    def configure(self, section: dict[str, Any] | None) -> None:
        """Take the options of a YAML section; an enhancer that was loaded with others is replaced.

        It is loaded at once, so that what is missing is reported before the host loads gigabytes;
        where a GPU could be chosen, only when the host's VAE tells which one it uses.
        """
        self.settings = self._merged(section)
        if self.enhancer is not None:
            if self.enhancer.settings == self._on_device(self.settings):
                return
            self.enhancer.close()
            self.enhancer = None
        if (
            self.settings.enabled
            and self.settings.device == "auto"
            and self._device is None
            and has_gpu()
        ):
            self._check()
        else:
            self._load()

    def _load(self) -> FaceEnhancer:
        enhancer = self.enhancer = FaceEnhancer.from_settings(self._on_device(self.settings))
        if self._on_load is not None:
            self._on_load(enhancer)
        if enhancer.enabled:
            logger.info("faces are restored with %s on %s", enhancer.model_name, enhancer.device)
        return enhancer

    def _on_device(self, settings: EnhancerSettings) -> EnhancerSettings:
        if settings.device != "auto" or self._device is None:
            return settings
        return settings.replace(device=self._device)

    def use_device_of(self, vae: Any) -> None:
        """Run on the device of the host's VAE where the options leave the device open."""
        if self.enhancer is None and self._device is None:
            self._device = _device_of(vae)

    def ready(self) -> FaceEnhancer:
        """The enhancer, loaded from the flags alone where no YAML was read."""
        with self._lock:
            return self._load() if self.enhancer is None else self.enhancer

    def reset(self) -> None:
        """Begin a new stream of frames."""
        if self.enhancer is not None:
            self.enhancer.reset()

    def close(self) -> None:
        """Free what the enhancer holds."""
        if self.enhancer is not None:
            self.enhancer.close()

    @property
    def stats(self) -> Any:
        """Counters of the enhancer's own stream."""
        return self.ready().stats

    def __call__(self, frames: Any, **hints: Any) -> Any:
        self.calls += 1
        return self.ready()(frames, **hints)


def has_gpu() -> bool:
    """Whether torch has a CUDA device."""
    import torch

    return torch.cuda.is_available()


def _device_of(vae: Any) -> str | None:
    """The device of a host's VAE; None where it is not one that an enhancer can use."""
    device = getattr(vae, "device", None) or getattr(getattr(vae, "vae", None), "device", None)
    name = str(device) if device is not None else ""
    return name if name == "cpu" or name.startswith("cuda") else None
