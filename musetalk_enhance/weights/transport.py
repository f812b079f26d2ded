"""One connection: the rest of a file from one http(s) address, appended to what is there already.

The standard library on purpose. pooch, the well-kept library for pinned downloads, cannot resume and brings
requests and platformdirs into the host's environment; huggingface_hub resumes, but only from its own server;
torch.hub checks a hash, but starts anew after every break and knows no mirrors.
"""

from __future__ import annotations

import http.client
import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Protocol

from .._version import __version__
from .cache import cache_error

TIMEOUT_S = 30.0
"""Seconds without a byte after which a connection counts as broken."""

_CHUNK = 2**18
_BUSY = (408, 425, 429, 500, 502, 503, 504)  # worth asking again
_RANGE_REFUSED = 416


class Refused(Exception):
    """This address will not give the file, however often it is asked; the text says why."""


class Broken(Exception):
    """The connection failed or ended early; what came so far is kept. Asking again may help."""


class _Reply(Protocol):
    """What `http.client.HTTPResponse` and `urllib.error.HTTPError` have in common, as far as used here."""

    status: int
    headers: http.client.HTTPMessage

    def read1(self, n: int) -> bytes: ...
    def close(self) -> None: ...


def stream(url: str, part: Path, size: int, report: Callable[[int], object]) -> None:
    """Bring `part` up to `size` bytes over one connection to `url`.

    What is in `part` is kept if the server can go on from there, and is written over if it cannot.

    Args:
        url: http or https.
        part: the unfinished file, shorter than `size`; may be absent.
        size: bytes of the whole file.
        report: called with the bytes that `part` holds, after each piece.

    Raises:
        Refused: the server has no such file, or another one.
        Broken: the connection failed or ended early.
        CacheError: `part` cannot be written.
    """
    offset = part.stat().st_size if part.exists() else 0
    with _reply(url, offset, size) as (reply, start):
        try:
            file = part.open("ab" if start else "wb", buffering=0)
        except OSError as error:
            raise cache_error(part, "write the download", error) from error
        with file:
            _copy(reply, file, part, start, size, report)


def _copy(reply: _Reply, file: FileIO, part: Path, got: int, size: int, report: Callable[[int], object]) -> None:
    report(got)
    while chunk := _read(reply):
        if got + len(chunk) > size:
            raise Refused(f"sends more than the {size} bytes of the published file")
        try:
            rest = memoryview(chunk)
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            raise cache_error(part, "write the download", error) from error
        got += len(chunk)
        report(got)
    if got < size:
        raise Broken(f"the connection ended after {got} of {size} bytes")
    os.fsync(file.fileno())  # the name must not outlive a power cut that the bytes did not


def _read(reply: _Reply) -> bytes:
    try:
        return reply.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise Broken(f"the connection broke ({_say(error)})") from error


@contextmanager
def _reply(url: str, offset: int, size: int) -> Iterator[tuple[_Reply, int]]:
    """The server's answer and the byte it starts at: `offset`, or 0 where it cannot go on from there."""
    reply = _request(url, offset)
    try:
        start = _start(reply)
        if start not in (0, offset):  # 416, or a range nobody asked for: ask for the whole
            reply.close()
            reply = _request(url, 0)
            start = _start(reply)
            if start != 0:
                raise Refused(f"answers a request for the whole file with HTTP {reply.status}")
        _check_headers(reply, size)
        yield reply, start
    finally:
        reply.close()


def _start(reply: _Reply) -> int | None:
    """The byte an answer starts at; None for no usable answer."""
    if reply.status == 200:
        return 0
    found = re.match(r"bytes (\d+)-", reply.headers.get("Content-Range", ""))
    return int(found[1]) if reply.status == 206 and found else None


def _check_headers(reply: _Reply, size: int) -> None:
    """Tell another file (an error page, a login page) by its headers, before a byte of ours is lost."""
    encoding = reply.headers.get("Content-Encoding", "identity")
    if encoding not in ("", "identity"):
        raise Refused(f"sends the file as {encoding}, which was not asked for")
    if reply.status == 206:
        length = reply.headers.get("Content-Range", "").rpartition("/")[2]
    else:
        length = reply.headers.get("Content-Length", "")
    if length.isdecimal() and int(length) == size:
        return
    if reply.headers.get_content_type() == "text/html":
        raise Refused("answers with an HTML page, not with the file")
    if length.isdecimal():
        raise Refused(f"has a file of {length} bytes, the published one has {size}")


def _request(url: str, offset: int) -> _Reply:
    headers = {"User-Agent": f"musetalk_enhance/{__version__}", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        request = urllib.request.Request(url, headers=headers)
        reply: _Reply = _opener().open(request, timeout=TIMEOUT_S)
        return reply
    except urllib.error.HTTPError as error:
        if error.code == _RANGE_REFUSED and offset:
            return error  # type: ignore[return-value]  # an answer too, see _Reply
        error.close()
        text = f"HTTP {error.code} {error.reason}"
        raise (Broken if error.code in _BUSY else Refused)(text) from error
    except urllib.error.URLError as error:
        raise _unreachable(error.reason) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _unreachable(error) from error


def _unreachable(reason: object) -> Refused | Broken:
    """A timeout or a connection cut short may pass; no name, no listener, no valid certificate will not."""
    passing = (TimeoutError, ConnectionError, http.client.HTTPException, ssl.SSLError)
    lasting = (ConnectionRefusedError, http.client.InvalidURL, ssl.SSLCertVerificationError)
    broken = isinstance(reason, passing) and not isinstance(reason, lasting)
    return (Broken if broken else Refused)(f"cannot be reached ({_say(reason)})")


def _say(error: object) -> str:
    return str(error) or type(error).__name__


def _opener() -> urllib.request.OpenerDirector:
    """An opener for http and https alone, also after a redirect; proxies of the environment are honoured."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener
