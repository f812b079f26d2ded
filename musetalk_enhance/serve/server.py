"""Runs the application in uvicorn, from the first connection to the last."""

from __future__ import annotations

import logging
import socket

import uvicorn
from fastapi import FastAPI

from ..errors import ConfigError
from .app import create_app
from .settings import ServeSettings

logger = logging.getLogger("musetalk_enhance")

CONNECTIONS_BESIDE = 64
"""Connections for probes, progress and refusals, beside requests and live streams."""
_GRACE_S = 5


def make_server(app: FastAPI) -> uvicorn.Server:
    """A server for an application of `create_app`, without a socket yet."""
    settings: ServeSettings = app.state.service.settings
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=settings.max_queue + settings.max_streams + CONNECTIONS_BESIDE,
        timeout_graceful_shutdown=round(settings.time_limit) + _GRACE_S,
        ws_max_size=settings.max_body,
        ws_max_queue=4,
        lifespan="on",
    )
    server = uvicorn.Server(config)
    app.state.service.is_stopping = lambda: server.should_exit
    return server


def run(settings: ServeSettings) -> None:
    """Serve until a signal ends it; requests that were begun are finished.

    Raises:
        ConfigError: the address cannot be used.
        EnhanceError: the default model or detector cannot be loaded.
    """
    with listen(settings.host, settings.port) as listener:
        app = create_app(settings)
        app.state.service.load()
        port = listener.getsockname()[1]
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        logger.info("serving on http://%s:%d", host, port)
        make_server(app).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        allowed = f"an address and a port that are free ({error.strerror or error})"
        raise ConfigError("host and port", f"{host}:{port}", allowed) from error
