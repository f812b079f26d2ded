"""The loaded network of an engine: loaded, moved to the CPU, unloaded and loaded again."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from ..errors import RestorerError
from ..runtime import memory
from ..runtime.devices import pick_device, torch_device

if TYPE_CHECKING:
    import torch

    from ..config.settings import EnhancerSettings
    from ..restorers.base import ModelInfo, Restorer

logger = logging.getLogger("musetalk_enhance")


class ModelHandle:
    """One restorer and where it is.

    Args:
        settings: the options that name it.
        restorer: one of the caller's own in its place. It cannot be loaded again, so `unload` moves
            it to the CPU instead.

    Attributes:
        owned: whether the restorer is this library's, not the caller's.
        info: of the restorer.

    Raises:
        WeightError: the weight is missing, damaged, not to be trusted, or another network.
        MissingDependencyError: an optional package is needed.
    """

    def __init__(self, settings: EnhancerSettings, restorer: Restorer | None = None) -> None:
        self._settings = settings
        self.owned = restorer is None
        self._restorer: Restorer | None = restorer or self._load(settings)
        self._parked_from: torch.device | None = None
        self._cpu_failed = False
        self.info: ModelInfo = self._restorer.request.info
        self._device = self._restorer.device

    def _load(self, settings: EnhancerSettings) -> Restorer:
        """Load the restorer of `settings`; on the CPU if memory runs out and that is allowed."""
        from ..restorers.catalog import choose

        choice, device = choose(settings), pick_device(settings.device, settings.allow_cpu)
        try:
            return choice.load(device)
        except Exception as error:
            if device.type == "cpu" or not self.may_leave_gpu or not memory.is_out_of_memory(error):
                raise
            memory.forget_locals(error)
        logger.warning(
            "out of memory while loading the model on %s: falling back to the CPU", device
        )
        memory.release(device)
        return choice.load(torch_device("cpu"))

    @property
    def may_leave_gpu(self) -> bool:
        """Whether running out of memory on a GPU may end on the CPU."""
        return self._settings.mode == "memory" and self._settings.cpu_fallback

    @property
    def loaded(self) -> bool:
        """Whether the network is in memory, ready to run."""
        return self._restorer is not None and self._parked_from is None

    @property
    def restorer(self) -> Restorer:
        """The restorer; `wake` first."""
        assert self._restorer is not None
        return self._restorer

    @property
    def device(self) -> torch.device:
        """Where the network runs; after `unload`, where it ran last."""
        return self._restorer.device if self._restorer is not None and self.loaded else self._device

    @property
    def backend(self) -> tuple[str, str] | None:
        """Name and dtype of what executes the network; None where there is no such thing."""
        from ..restorers.base import NetworkRestorer

        if not self.loaded or not isinstance(self._restorer, NetworkRestorer):
            return None
        return self._restorer.backend.name, self._restorer.backend.dtype

    def unload(self) -> bool:
        """Free the network's memory until `wake`; False if only the caller can do that.

        Raises:
            RestorerError: a restorer of the caller's own cannot be moved; it stays where it is.
        """
        device = self._device = self.device
        if self.owned:
            self.restorer.close()
            self._restorer = None
        elif device.type != "cpu":
            self._park(device)
        else:
            logger.warning(
                "unload: the restorer was passed in and runs on the CPU; only its owner can free "
                "its memory"
            )
            return False
        memory.release(device)
        return True

    def _park(self, device: torch.device) -> None:
        restorer = self.restorer
        try:
            restorer.to(torch_device("cpu"))
        except Exception as error:
            with suppress(Exception):
                restorer.to(device)
            raise RestorerError(
                f"unload: {self.info.name} cannot be moved to the CPU: {error}"
            ) from error
        self._parked_from = device

    def wake(self) -> bool:
        """Load the network again after `unload`; False where nothing had to be done."""
        if self.loaded:
            return False
        if self._parked_from is not None:
            self.restorer.to(self._parked_from)
            self._parked_from = None
        else:
            settings = self._settings
            if settings.model == "auto" and not settings.model_path:
                # "auto" could choose another model by now: a stream keeps the one it began with
                settings = settings.replace(model=self.info.name)
            self._restorer = self._load(settings)
        self._cpu_failed = False
        return True

    def move_to_cpu(self) -> bool:
        """Continue on the CPU after running out of memory, if that is allowed and works."""
        restorer, device, cpu = self._restorer, self.device, torch_device("cpu")
        if device.type == "cpu" or not self.may_leave_gpu or self._cpu_failed or restorer is None:
            return False
        logger.warning("out of memory with one face on %s: falling back to the CPU", device)
        try:
            restorer.to(cpu)
            if restorer.device.type != "cpu":
                raise RestorerError(f"{self.info.name} stayed on {restorer.device}")
        except Exception as error:
            logger.warning("%s cannot run on the CPU: %s", self.info.name, error)
            self._cpu_failed = True
            with suppress(Exception):
                restorer.to(device)
            return False
        return True

    def close(self) -> None:
        """Free the network for good."""
        device, restorer = self.device, self._restorer
        self._device = device
        self._restorer = None
        if restorer is not None:
            restorer.close()
            del restorer
            memory.release(device)
