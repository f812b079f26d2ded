"""`--engine ray`: images are restored by replicas on Ray Serve, behind the same HTTP front.

The front keeps the limits, the token, the live streams and the video jobs. A request whose replica
dies is sent to another one: restoring an image twice gives the same image.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..errors import ConfigError, MissingDependencyError, ServiceError
from ..media.arrays import Image
from ..media.image import StillImage
from .images import ImageResult, ImageService, Timer
from .networks import NetworkPool
from .runner import Ticket
from .schemas import RestoreAnswer, RestoreFields
from .settings import ServeSettings

logger = logging.getLogger("musetalk_enhance")

NAME = "musetalk_enhance"
ATTEMPTS, PAUSE_S = 20, 0.5
"""How often a request is sent again after its replica died, and how long it waits before that."""
_DEFAULTS: dict[str, Any] = {"num_replicas": 2, "max_ongoing_requests": 32}


class ImageReplica:
    """One replica: networks, a batcher, and threads.

    Args:
        settings: of the service.
        threads: requests at the same time.
    """

    def __init__(self, settings: ServeSettings, threads: int) -> None:
        self._images = ImageService(settings, NetworkPool(settings))
        self._threads = ThreadPoolExecutor(threads)

    async def restore(self, data: bytes, fields: RestoreFields) -> ImageResult:
        """See `ImageService.restore`."""
        result: ImageResult = await self._run(self._images.restore, data, fields, Ticket())
        return result

    async def process(
        self, image: StillImage, fields: RestoreFields
    ) -> tuple[Image, RestoreAnswer, Timer]:
        """See `ImageService.process`."""
        timer = Timer()
        return *(await self._run(self._images.process, image, fields, Ticket(), timer)), timer

    async def process_id(self) -> int:
        """The replica's process."""
        import os

        return os.getpid()

    async def _run(self, function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)


class RayImageService(ImageService):
    """Restores images on replicas.

    Args:
        settings: of the service.
        pool: the models of the front.

    Raises:
        ConfigError: an invalid file, or there is no such cluster.
        MissingDependencyError: Ray Serve is not installed.
    """

    def __init__(self, settings: ServeSettings, pool: NetworkPool) -> None:
        super().__init__(settings, pool)
        try:
            from ray import serve
        except ImportError as error:
            raise MissingDependencyError(
                "ray[serve]", "ray-serve", "the service's engine ray", str(error)
            ) from error
        from ..jobs.ray_engine import RayEngine

        config = _config(settings.ray_config)
        options = {**_DEFAULTS, **config.get("deployment", {})}
        if "autoscaling_config" in options:
            options.pop("num_replicas", None)
        replicas = options.get("num_replicas")
        self._engine = RayEngine(config.get("address"), replicas)
        self._ray, self._serve = self._engine.start(), serve
        serve.start(proxy_location="Disabled")
        replica = serve.deployment(ImageReplica).options(**options)
        threads = options["max_ongoing_requests"]
        self.handle = serve.run(
            replica.bind(settings.replace(token=None, host="127.0.0.1"), threads),
            name=NAME,
            route_prefix=None,
        )

    def restore(self, data: bytes, fields: RestoreFields, ticket: Ticket) -> ImageResult:
        """See `ImageService.restore`."""
        result: ImageResult = self._call("restore", ticket, data, fields)
        return result

    def process(
        self, image: StillImage, fields: RestoreFields, ticket: Ticket, timer: Timer
    ) -> tuple[Image, RestoreAnswer]:
        """See `ImageService.process`."""
        pixels, answer, remote = self._call("process", ticket, image, fields)
        timer.add(remote)
        return pixels, answer

    def close(self) -> None:
        """Stop the replicas; the cluster, too, if it was started here."""
        self._serve.delete(NAME)
        self._serve.shutdown()
        self._engine.close()

    def _call(self, method: str, ticket: Ticket, *args: Any) -> Any:
        """The result of a replica; another one is asked if it dies.

        Raises:
            ServiceError: no replica is left.
            EnhanceError: as the method raises it.
        """
        errors = self._ray.exceptions
        for attempt in range(ATTEMPTS):
            ticket.check()
            try:
                return getattr(self.handle, method).remote(*args).result()
            except errors.RayTaskError as error:
                raise error.cause from None
            except errors.RayActorError as error:
                logger.warning("a replica is gone, attempt %d: %s", attempt + 1, type(error))
                time.sleep(PAUSE_S)
        raise ServiceError(503, "replicas", "no replica of the service is alive", 10)


def _config(path: str | None) -> dict[str, Any]:
    """The file of the option `ray_config`."""
    from ..config.loader import plain

    config = {} if path is None else plain(Path(path).expanduser())
    if not set(config) <= {"address", "deployment"}:
        raise ConfigError("ray_config", path, "a mapping with address and deployment")
    return config
