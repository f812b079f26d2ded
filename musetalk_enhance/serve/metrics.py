"""Counters of the service in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

_PREFIX = "musetalk_enhance_"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_FACES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The counters of one application."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            f"{_PREFIX}requests",
            "Answers by route and status.",
            ("route", "status"),
            registry=registry,
        )
        self._seconds = Histogram(
            f"{_PREFIX}request_seconds",
            "Duration of requests.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._batches = Histogram(
            f"{_PREFIX}batch_faces",
            "Faces of a batch for the network.",
            buckets=_FACES,
            registry=registry,
        )
        self._frames = Counter(
            f"{_PREFIX}stream_frames", "Frames of live streams.", ("outcome",), registry=registry
        )
        self.streams = Gauge(f"{_PREFIX}streams", "Live streams in progress.", registry=registry)
        self._active = Gauge(
            f"{_PREFIX}requests_in_progress", "Requests in progress.", registry=registry
        )

    def watch(self, active: Callable[[], int]) -> None:
        """Ask `active` for the number of requests in progress."""
        self._active.set_function(active)

    def count_request(self, route: str, status: int, elapsed_s: float) -> None:
        """Count an answer."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(elapsed_s)

    def count_batch(self, faces: int) -> None:
        """Count a batch."""
        self._batches.observe(faces)

    def count_frame(self, outcome: str) -> None:
        """Count a frame of a live stream."""
        self._frames.labels(outcome).inc()

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)
