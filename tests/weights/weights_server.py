"""A real web server on 127.0.0.1 that can be told to misbehave, and the bytes it serves."""

from __future__ import annotations

import http.server
import threading
from dataclasses import dataclass, field

DATA = bytes(range(256)) * 400  # 102,400 bytes
OTHER = DATA[::-1]


@dataclass
class Resource:
    """How one path of the server behaves."""

    data: bytes
    ranges: bool = True
    status: int = 200
    kind: str = "application/octet-stream"
    headers: dict[str, str] = field(default_factory=dict)
    say_length: bool = True
    die_after: list[int] = field(default_factory=list)  # bytes of the body, one number per request
    hold_after: int | None = None  # send so many bytes, then wait for `go`
    go: threading.Event = field(default_factory=threading.Event)


@dataclass
class Request:
    """What a client asked for and what it got."""

    path: str
    range: str | None
    sent: int = 0


class Server:
    """A web server on 127.0.0.1; `base` is its address, `log` what it was asked."""

    def __init__(self) -> None:
        self.resources: dict[str, Resource] = {}
        self.log: list[Request] = []
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.base = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()

    def add(self, path: str, resource: Resource | bytes) -> str:
        """Serve `resource` at `path`; returns its address."""
        self.resources[path] = resource if isinstance(resource, Resource) else Resource(resource)
        return self.base + path

    @property
    def sent(self) -> int:
        """Bytes of all bodies so far."""
        return sum(request.sent for request in self.log)

    def close(self) -> None:
        for resource in self.resources.values():
            resource.go.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


class _Handler(http.server.BaseHTTPRequestHandler):
    owner: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        request = Request(self.path, self.headers.get("Range"))
        self.owner.log.append(request)
        resource = self.owner.resources.get(self.path)
        if resource is None:
            self.send_error(404)
            return
        start, status = 0, resource.status
        if request.range and resource.ranges and status == 200:
            start, status = int(request.range.removeprefix("bytes=").rstrip("-")), 206
            if start >= len(resource.data):
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        body = resource.data[start:]
        self.send_response(status)
        self.send_header("Content-Type", resource.kind)
        if resource.say_length:
            self.send_header("Content-Length", str(len(body)))
        if status == 206:
            total = len(resource.data)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        for key, value in resource.headers.items():
            self.send_header(key, value)
        self.end_headers()
        limit = resource.die_after.pop(0) if resource.die_after else len(body)
        if resource.hold_after is not None:
            self._send(request, body[: resource.hold_after])
            resource.go.wait(20)
            body, limit = body[resource.hold_after :], len(body)
        self._send(request, body[:limit])
        self.close_connection = True

    def _send(self, request: Request, body: bytes) -> None:
        try:
            for at in range(0, len(body), 10_000):
                piece = body[at : at + 10_000]
                self.wfile.write(piece)
                self.wfile.flush()
                request.sent += len(piece)
        except OSError:  # the client went away
            pass
