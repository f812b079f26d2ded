"""One connection: the rest of a file from one http(s) address, appended to a partial download.

With the standard library on purpose. pooch, the well-kept library for pinned downloads, cannot
resume and brings requests and platformdirs into the host's environment; huggingface_hub resumes,
but only from its own server; torch.hub checks a hash, but starts over after every interruption and
has no mirrors.
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
"""Seconds without data after which a connection counts as broken."""

_CHUNK = 2**18
_BUSY = (408, 425, 429, 500, 502, 503, 504)  # worth a retry
_RANGE_REFUSED = 416


class PermanentError(Exception):
    """The address does not provide the file and a retry cannot help; the message says why."""


class TransientError(Exception):
    """The connection failed or ended early; the bytes so far stay. A retry may help."""


class _Response(Protocol):
    """The common part of `http.client.HTTPResponse` and `urllib.error.HTTPError`."""

    status: int
    headers: http.client.HTTPMessage

    def read1(self, n: int) -> bytes: ...
    def close(self) -> None: ...


def continue_download(
    url: str, part: Path, size: int | None, report: Callable[[int], object]
) -> int:
    """Extend `part` to the complete file over one connection to `url`.

    The content of `part` is kept if the server can resume from there, and is overwritten if not.

    Args:
        url: http or https.
        part: the unfinished file, shorter than `size`; may be missing.
        size: bytes of the complete file; None as the server states it.
        report: called with the size of `part` after each chunk.

    Returns:
        Bytes of the complete file.

    Raises:
        PermanentError: the server has no such file, or another one.
        TransientError: the connection failed or ended early.
        CacheError: `part` cannot be written.
    """
    offset = part.stat().st_size if part.exists() else 0
    with _response(url, offset, size) as (response, start, total):
        try:
            file = part.open("ab" if start else "wb", buffering=0)
        except OSError as error:
            raise cache_error(part, "write the download", error) from error
        with file:
            _copy(response, file, part, start, total, report)
    return total


def _copy(
    response: _Response,
    file: FileIO,
    part: Path,
    position: int,
    size: int,
    report: Callable[[int], object],
) -> None:
    report(position)
    while chunk := _read(response):
        if position + len(chunk) > size:
            raise PermanentError(f"sends more than the {size} bytes of the published file")
        try:
            rest = memoryview(chunk)
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            raise cache_error(part, "write the download", error) from error
        position += len(chunk)
        report(position)
    if position < size:
        raise TransientError(f"the connection ended after {position} of {size} bytes")
    os.fsync(file.fileno())  # else a power failure could leave the file's name without its bytes


def _read(response: _Response) -> bytes:
    try:
        return response.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise TransientError(f"the connection broke ({_reason(error)})") from error


@contextmanager
def _response(url: str, offset: int, size: int | None) -> Iterator[tuple[_Response, int, int]]:
    """The server's response, its first byte (`offset`, or 0 where it cannot resume), all bytes."""
    response = _request(url, offset)
    try:
        start = _first_byte(response)
        if start not in (0, offset):  # 416, or a range that was not requested: request the whole
            response.close()
            response = _request(url, 0)
            start = _first_byte(response)
            if start != 0:
                what = f"answers a request for the whole file with HTTP {response.status}"
                raise PermanentError(what)
        yield response, start, _checked_size(response, size)
    finally:
        response.close()


def _first_byte(response: _Response) -> int | None:
    """The position of a response's first byte in the file; None if it is not usable."""
    if response.status == 200:
        return 0
    content_range = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(content_range[1]) if response.status == 206 and content_range else None


def _checked_size(response: _Response, size: int | None) -> int:
    """Bytes of the file; another one (an error page, a login page) does not overwrite `part`."""
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding not in ("", "identity"):
        raise PermanentError(f"sends the encoding {encoding}, which was not requested")
    if response.status == 206:
        length = response.headers.get("Content-Range", "").rpartition("/")[2]
    else:
        length = response.headers.get("Content-Length", "")
    if length.isdecimal() and int(length) == size:
        return size
    if response.headers.get_content_type() == "text/html":
        raise PermanentError("answers with an HTML page instead of the file")
    if size is None and not length.isdecimal():
        raise PermanentError("does not state the size of its file")
    if size is not None and length.isdecimal():
        raise PermanentError(f"has a file of {length} bytes, the published one has {size}")
    return int(length) if size is None else size


def _request(url: str, offset: int) -> _Response:
    headers = {"User-Agent": f"musetalk_enhance/{__version__}", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        request = urllib.request.Request(url, headers=headers)
        response: _Response = _opener().open(request, timeout=TIMEOUT_S)
        return response
    except urllib.error.HTTPError as error:
        if error.code == _RANGE_REFUSED and offset:
            return error  # type: ignore[return-value]  # a response too
        error.close()
        kind = TransientError if error.code in _BUSY else PermanentError
        raise kind(f"HTTP {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise _unreachable(error.reason) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _unreachable(error) from error


def _unreachable(reason: object) -> PermanentError | TransientError:
    """Timeouts and broken connections are transient; unknown hosts and bad certificates are not."""
    transient = (TimeoutError, ConnectionError, http.client.HTTPException, ssl.SSLError)
    permanent = (ConnectionRefusedError, http.client.InvalidURL, ssl.SSLCertVerificationError)
    retry = isinstance(reason, transient) and not isinstance(reason, permanent)
    kind = TransientError if retry else PermanentError
    return kind(f"cannot be reached ({_reason(reason)})")


def _reason(error: object) -> str:
    return str(error) or type(error).__name__


def _opener() -> urllib.request.OpenerDirector:
    """An opener for only http and https, redirects included; it uses the environment's proxies."""
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
