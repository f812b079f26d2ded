"""Downloading a published weight: mirrors first, resumed, checked, moved into place."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

from ..errors import CacheError, ConfigError, DownloadError, EnhanceError, WeightError
from ..runtime.files import temporary_path
from . import cache, table
from .onnx_graph import read_graph
from .table import WeightEntry
from .transport import PermanentError, TransientError, continue_download

MIRROR_ENV = "MUSETALK_ENHANCE_MIRROR"
RETRIES = 4
"""Retries of one address after a connection that transferred less than `PROGRESS` bytes."""
PROGRESS = 2**20
PAUSE_S = 0.5
"""Seconds before a retry after progress; doubled for each retry without."""

_log = logging.getLogger(__name__)

Report = Callable[[int], object]


def fetch(
    name: str,
    *,
    offline: bool | None = None,
    mirrors: Iterable[str] = (),
    progress: bool = True,
    force: bool = False,
) -> Path:
    """The published weight `name` in the cache folder, downloaded unless it is already there.

    The download is written to ``<file>.part``, which stays after an interruption and is resumed by
    the next run; it is moved to its name only after its sha256 has been checked. Processes that
    fetch the same file take turns, and only the first one downloads it.

    Args:
        name: a name or alias in the table.
        offline: True never connects; None uses ``MUSETALK_ENHANCE_OFFLINE``.
        mirrors: base addresses (http or https); ``<base>/<file>`` is tried before those of
            ``MUSETALK_ENHANCE_MIRROR`` (separated by commas) and before the published addresses.
        progress: whether to show a progress bar on stderr.
        force: download even if the cache has an intact file, and from the first byte.

    Raises:
        ConfigError: the table has no such name, or a mirror is not an http(s) address.
        MissingWeightError: the file is missing in offline mode.
        DownloadError: no address provided the file; the message lists each with its reason.
        CacheError: the cache folder cannot be written, or the disk is full.
    """
    entry = table.WEIGHTS.get(name)
    urls = (*_mirror_urls(entry, mirrors), *entry.urls)
    target = cache.path_of(entry)
    if not force and cache.is_intact(target, entry):
        return target
    if cache.is_offline(offline):
        if force and cache.is_intact(target, entry):
            raise ConfigError("force", True, "false in offline mode: the weight is in the cache")
        raise cache.missing(entry, cache.OFFLINE_NOTE)
    cache.make_cache_dir()
    with _lock(target) as part:
        if not force and cache.is_intact(target, entry):  # fetched by another process meanwhile
            return target
        try:
            if force:
                part.unlink(missing_ok=True)
            _check_disk_space(part, entry)
            _download_from_any(urls, entry, part, progress)
            os.replace(part, target)
        except OSError as error:
            if isinstance(error, EnhanceError):
                raise
            raise cache.cache_error(target, "put the download into the cache", error) from error
    return target


def _mirror_urls(entry: WeightEntry, mirrors: Iterable[str]) -> list[str]:
    """Addresses of the file on `mirrors`, then on those of the environment.

    Raises:
        ConfigError: a mirror is not an http(s) address.
    """
    bases = [*mirrors, *os.environ.get(MIRROR_ENV, "").split(",")]
    urls = []
    for base in filter(None, (base.strip() for base in bases)):
        try:
            parts = urlsplit(base)
            usable = parts.scheme.lower() in ("http", "https") and bool(parts.hostname)
        except ValueError:
            usable = False
        if not usable:
            allowed = "the http:// or https:// address of a folder with the files"
            raise ConfigError("mirror", base, allowed)
        urls.append(f"{base.rstrip('/')}/{quote(entry.file)}")
    return urls


@contextmanager
def _lock(target: Path) -> Iterator[Path]:
    """The path to download to, locked: other processes and threads wait until the block ends.

    On a file system without locks the path is unique to this call, and nothing is resumed.
    """
    from filelock import FileLock, Timeout  # in every environment that has torch 2

    part = target.with_name(f"{target.name}.part")
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _log.warning("waiting for another process that is fetching %s", target.name)
            lock.acquire()
    except NotImplementedError:
        part = temporary_path(target)
        try:
            yield part
        finally:
            part.unlink(missing_ok=True)
        return
    except OSError as error:
        raise cache.cache_error(target.parent, "write to the cache folder", error) from error
    try:
        yield part
    finally:
        lock.release()


def _check_disk_space(part: Path, entry: WeightEntry) -> None:
    needed = (entry.size or 0) - _size(part)
    free = shutil.disk_usage(part.parent).free
    if free < needed:
        what = f"{entry.file} needs {needed / 1e6:.1f} MB more, {free / 1e6:.1f} MB are free"
        raise CacheError(part.parent, f"the disk is full: {what}")


def _download_from_any(urls: Iterable[str], entry: WeightEntry, part: Path, progress: bool) -> None:
    """Complete `part` from the first address that has the published file.

    Raises:
        DownloadError: none of them has it.
    """
    failures: list[tuple[str, str]] = []
    with _progress_bar(entry, progress) as report:
        for url in urls:
            try:
                return _download_from(url, entry, part, report)
            except (PermanentError, TransientError) as error:
                failures.append((url, str(error)))
                _log.info("%s: %s", url, error)
    listing = "".join(f"\n  {url}: {reason}" for url, reason in failures)
    raise DownloadError(
        failures[0][0] if failures else entry.name,
        f"no address provides {entry.file} ({entry.stated}). "
        f"Tried:{listing}\n"
        f"Run the command again to resume, give a mirror (--mirror URL, {MIRROR_ENV}), or copy the "
        "file to this machine and run `musetalk-enhance weights import FILE`.",
    )


def _download_from(url: str, entry: WeightEntry, part: Path, report: Report) -> None:
    """Complete `part` from one address and check its hash; an unpinned graph is read instead.

    A wrong hash may be the fault of bytes from an earlier run or another address; then the whole
    file is requested before the address is rejected.
    """
    if entry.sha256 is None:  # nothing would tell bytes of another file
        part.unlink(missing_ok=True)
        _complete(url, entry, part, report)
        try:
            read_graph(part)
        except WeightError as error:
            raise PermanentError(str(error)) from error
        return
    resumed = _size(part) > 0
    while True:
        _complete(url, entry, part, report)
        digest = cache.sha256_of(part, remember=False)
        if digest == entry.sha256:
            return
        part.unlink()
        if not resumed:
            what = f"has a file with sha256 {digest}, the published one has {entry.sha256}"
            raise PermanentError(what)
        resumed = False


def _complete(url: str, entry: WeightEntry, part: Path, report: Report) -> None:
    """Bring `part` to its full size, with a new connection where one breaks."""
    total, retries = entry.size, 0
    while (size := _size(part)) != total:
        if total is not None and size > total:
            part.unlink()
            continue
        try:
            total = continue_download(url, part, total, report)
        except TransientError:
            retries = 0 if _size(part) - size >= PROGRESS else retries + 1
            if retries > RETRIES:
                raise
            time.sleep(PAUSE_S * 2**retries)


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


@contextmanager
def _progress_bar(entry: WeightEntry, progress: bool) -> Iterator[Report]:
    """A bar on stderr, rarely updated in a log file; yields a callable for the bytes so far."""
    from tqdm import tqdm

    progress = progress and sys.stderr is not None  # None under pythonw and in some services
    interval = 0.1 if progress and sys.stderr.isatty() else 10.0
    with tqdm(
        total=entry.size,
        desc=entry.file,
        unit="B",
        unit_scale=True,
        file=sys.stderr,
        disable=not progress,
        mininterval=interval,
    ) as bar:
        yield lambda size: bar.update(size - bar.n)
