"""What every request goes through: host, origin, token, size of the body, headers, metrics."""

from __future__ import annotations

import hmac
import json
import logging
import time
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import ServiceError
from .metrics import Metrics
from .settings import LOOPBACK, ServeSettings

logger = logging.getLogger("musetalk_enhance")

OPEN_PATHS = ("/", "/health", "/ready", "/example.jpg", "/favicon.ico")
"""Paths without a token, beside ``/assets/``: the page and the probes of a load balancer."""
VIDEO_PATH = "/restore/video"
MULTIPART_ALLOWANCE = 2**20
"""Bytes of a multipart body beside the file."""
_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "SAMEORIGIN",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; frame-src blob:; style-src 'self' 'unsafe-inline'; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'self'",
    "cache-control": "no-store",
}


class Guard:
    """ASGI middleware that refuses what must not reach the application.

    Without a token only pages of this machine may use the service: the headers ``Host`` (against
    DNS rebinding) and ``Origin`` (against forms of other pages) are checked.

    Args:
        app: the application.
        settings: of the service.
        metrics: counts the answers.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self._token = settings.token.encode() if settings.token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value for key, value in scope["headers"]}
        exchange = _Exchange(self, scope, receive, send)
        try:
            self._check(scope["path"], scope.get("method", "GET"), headers)
            exchange.limit_body(headers.get("content-length"))
        except ServiceError as error:
            await exchange.refuse(error)
            return
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except Exception:
            if exchange.is_answered or scope["type"] != "http":
                raise
            logger.exception("%s failed", scope["path"])
            text = "internal error; see the server's log"
            await exchange.refuse(ServiceError(500, "internal", text))
        else:
            exchange.count()

    def _check(self, path: str, method: str, headers: dict[str, bytes]) -> None:
        origin = headers.get("origin", b"").decode("latin-1")
        host = headers.get("host", b"").decode("latin-1")
        allowed = self.settings.origins
        if self._token is None and _host_name(host) not in LOOPBACK:
            raise ServiceError(403, "host", "without a token only this machine's own names work")
        if origin and origin not in allowed and urlsplit(origin).netloc != host:
            raise ServiceError(403, "origin", "pages of other origins are not allowed")
        is_open = path in OPEN_PATHS or path.startswith("/assets/") or method == "OPTIONS"
        if self._token is not None and not is_open:
            scheme, _, secret = headers.get("authorization", b"").partition(b" ")
            is_right = hmac.compare_digest(secret.strip(), self._token)
            if not (is_right and scheme.lower() == b"bearer"):
                raise ServiceError(401, "token", "expected the header Authorization: Bearer TOKEN")


class _Exchange:
    """One request and its answer."""

    def __init__(self, guard: Guard, scope: Scope, receive: Receive, send: Send) -> None:
        self._guard, self._scope, self._receive, self._send = guard, scope, receive, send
        settings = guard.settings
        is_video = scope["path"] == VIDEO_PATH
        self._limit = settings.max_video + MULTIPART_ALLOWANCE if is_video else settings.max_body
        self._size = 0
        self._begin = time.perf_counter()
        self._status, self.is_answered = 500, False
        self._is_http = scope["type"] == "http"

    def limit_body(self, length: bytes | None) -> None:
        """Raises:
        ServiceError: the body is announced to be too large.
        """
        if length is not None and length.isdigit() and int(length) > self._limit:
            raise self._too_large()

    async def receive(self) -> Message:
        """The next message of the client; the parts of a body are counted."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._size += len(message.get("body", b""))
            if self._size > self._limit:
                raise self._too_large()
        return message

    async def send(self, message: Message) -> None:
        """A message to the client, with the headers of every answer."""
        if message["type"] == "http.response.start":
            self._status, self.is_answered = message["status"], True
            present = {key.lower() for key, _ in message["headers"]}
            message["headers"] = [
                *message["headers"],
                *(
                    (name.encode(), value.encode())
                    for name, value in _HEADERS.items()
                    if name.encode() not in present
                ),
            ]
        await self._send(message)

    async def refuse(self, error: ServiceError) -> None:
        """Answer without the application."""
        if not self._is_http:
            await self._receive()
            await self._send({"type": "websocket.close", "code": 1008, "reason": error.code})
            return
        body = error_body(error.code, str(error)).encode()
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        if error.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})
        self.count()

    def count(self) -> None:
        """Add the answer to the metrics, under its route: paths of clients are not labels."""
        if self._is_http:
            route = getattr(self._scope.get("route"), "path", "other")
            elapsed_s = time.perf_counter() - self._begin
            self._guard.metrics.count_request(route, self._status, elapsed_s)

    def _too_large(self) -> ServiceError:
        return ServiceError(413, "too_large", f"the body is larger than {self._limit} bytes")


def error_body(code: str, message: str) -> str:
    """The JSON of every error; see `ErrorAnswer`."""
    return json.dumps({"error": {"code": code, "message": message}})


def _host_name(host: str) -> str | None:
    """The name in a header ``Host``, without its port."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
