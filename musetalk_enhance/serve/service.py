"""What the routes share: settings, metrics, models, requests in progress."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from .generator import Generator
from .images import ImageService
from .metrics import Metrics
from .networks import NetworkPool
from .runner import Runner
from .settings import ServeSettings
from .video_queue import VideoQueue

logger = logging.getLogger("musetalk_enhance")

MAX_THREADS = 32
"""Most requests that are decoded, detected and encoded at the same time."""


class Service:
    """What the routes share.

    Attributes:
        settings: of the service.
        metrics: its counters.
        is_ready: whether requests are accepted.
        streams: live streams in progress.
        is_stopping: whether the server has begun to stop; long answers end then.
        runner: requests in progress.
        images: restores images.
        videos: restores videos.
        generator: makes images from text.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.is_ready, self.streams = False, 0
        self.is_stopping: Callable[[], bool] = lambda: False
        self._pool: NetworkPool | None = None

    def load(self) -> None:
        """Load the default model and detector, unless they are.

        Raises:
            EnhanceError: they cannot be loaded.
        """
        if self._pool is None:
            self._pool = NetworkPool(self.settings, self.metrics.count_batch)

    def _image_service(self) -> ImageService:
        if self.settings.engine == "ray":
            from .ray_images import RayImageService

            return RayImageService(self.settings, self.pool)
        return ImageService(self.settings, self.pool)

    @property
    def pool(self) -> NetworkPool:
        """The models; `load` loads them."""
        assert self._pool is not None
        return self._pool

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Load the default model; in the end, finish what was begun."""
        async with AsyncExitStack() as stack:
            await asyncio.to_thread(self.load)
            stack.push_async_callback(asyncio.to_thread, self.pool.close)
            threads = min(MAX_THREADS, 2 * self.pool.batch_size + 2)
            self.runner = Runner(self.settings.max_queue, self.settings.time_limit, threads)
            stack.push_async_callback(asyncio.to_thread, self.runner.close)
            self.metrics.watch(lambda: self.runner.active)
            self.images = await asyncio.to_thread(self._image_service)
            stack.push_async_callback(asyncio.to_thread, self.images.close)
            self.generator = Generator(self.settings)
            self.videos = await asyncio.to_thread(VideoQueue, self.settings)
            stack.push_async_callback(asyncio.to_thread, self.videos.close)
            self.is_ready = True
            logger.info("ready: %s", self.pool.default.name)
            try:
                yield
            finally:
                self.is_ready = False
                self.runner.stopping = True


def service_of(request: Any) -> Service:
    """The service that a request, or a connection, is for."""
    service: Service = request.app.state.service
    return service
