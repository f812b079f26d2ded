"""Fetch a published weight: mirrors first, resumed, checked, renamed into place."""

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
from uuid import uuid4

from ..errors import CacheError, ConfigError, DownloadError, EnhanceError
from . import cache, table
from .table import WeightEntry
from .transport import Broken, Refused, stream

MIRROR_ENV = "MUSETALK_ENHANCE_MIRROR"
RETRIES = 4
"""How often one address is asked again after a broken connection that brought less than `PROGRESS` bytes."""
PROGRESS = 2**20
PAUSE_S = 0.5
"""Seconds before the first retry; doubled for each further one."""

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
    """The published weight `name` in the cache folder, downloaded unless it is there already.

    The file grows as ``<file>.part``, which is kept when the run is stopped and gone on with in the next
    one; it gets its name only after its sha256 has been checked. Two processes that fetch the same file take
    turns, and the second finds it done.

    Args:
        name: a name or alias of the table.
        offline: True never connects; None asks ``MUSETALK_ENHANCE_OFFLINE``.
        mirrors: base addresses (http or https); ``<base>/<file>`` is tried before the published ones, and
            before those of ``MUSETALK_ENHANCE_MIRROR`` (separated by commas).
        progress: whether to draw a bar on stderr.
        force: download even if the file is there and good, and from its first byte.

    Raises:
        ConfigError: the table has no such name, or a mirror is no http(s) address.
        MissingWeightError: it is not there, and we are offline.
        DownloadError: no address gave the file; names each and says why.
        CacheError: the cache folder cannot be written, or the disk is full.
    """
    entry = table.WEIGHTS.get(name)
    urls = (*_mirrored(entry, mirrors), *entry.urls)
    target = cache.path_of(entry)
    if not force and cache.is_good(target, entry):
        return target
    if cache.is_offline(offline):
        raise cache.missing(entry, f" It was not fetched: offline ({cache.OFFLINE_ENV}=1, or --offline).")
    cache.make_cache_dir()
    with _exclusive(target) as part:
        if not force and cache.is_good(target, entry):  # another process brought it while we waited
            return target
        try:
            if force:
                part.unlink(missing_ok=True)
            _check_room(part, entry)
            _from_any(urls, entry, part, progress)
            os.replace(part, target)
        except OSError as error:
            if isinstance(error, EnhanceError):
                raise
            raise cache.cache_error(target, "put the download into the cache", error) from error
    return target


def _mirrored(entry: WeightEntry, mirrors: Iterable[str]) -> list[str]:
    """Addresses of the file on the given mirrors, then on those of the environment.

    Raises:
        ConfigError: a mirror is no http(s) address.
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
            raise ConfigError("mirror", base, "the http:// or https:// address of a folder with the files")
        urls.append(f"{base.rstrip('/')}/{quote(entry.file)}")
    return urls


@contextmanager
def _exclusive(target: Path) -> Iterator[Path]:
    """The path to download to, ours alone: other processes and threads wait until we are done.

    Where the file system knows no locks, the path is this call's own, and nothing is resumed.
    """
    from filelock import FileLock, Timeout  # in every environment that has torch 2

    part = target.with_name(f"{target.name}.part")
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _log.warning("another process is fetching %s; waiting for it", target.name)
            lock.acquire()
    except NotImplementedError:
        part = target.with_name(f"{target.name}.{uuid4().hex}.part")
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


def _check_room(part: Path, entry: WeightEntry) -> None:
    needed = entry.size - _length(part)
    free = shutil.disk_usage(part.parent).free
    if free < needed:
        raise CacheError(
            part.parent,
            f"the disk is full: {entry.file} needs {needed / 1e6:.1f} MB more, {free / 1e6:.1f} MB are free",
        )


def _from_any(urls: Iterable[str], entry: WeightEntry, part: Path, progress: bool) -> None:
    """Bring `part` to the published bytes from the first address that has them.

    Raises:
        DownloadError: none has.
    """
    tried: list[tuple[str, str]] = []
    with _bar(entry, progress) as report:
        for url in urls:
            try:
                return _from_one(url, entry, part, report)
            except (Refused, Broken) as error:
                tried.append((url, str(error)))
                _log.info("%s: %s", url, error)
    listed = "".join(f"\n  {url}: {why}" for url, why in tried)
    raise DownloadError(
        tried[0][0] if tried else entry.name,
        f"no address gave {entry.file} ({entry.size} bytes, sha256 {entry.sha256}). Tried:{listed}\n"
        f"Run the command again to go on where it stopped, name a mirror (--mirror URL, {MIRROR_ENV}), or "
        f"copy the file here and run `musetalk-enhance weights import FILE`.",
    )


def _from_one(url: str, entry: WeightEntry, part: Path, report: Report) -> None:
    """Complete `part` from one address and check it.

    Bytes left by an earlier run or another address may be at fault when the hash is wrong; the address is
    then asked for the whole file before it is blamed.
    """
    mixed = _length(part) > 0
    while True:
        _complete(url, entry, part, report)
        found = cache.sha256_of(part, remember=False)
        if found == entry.sha256:
            return
        part.unlink()
        if not mixed:
            raise Refused(f"has a file with sha256 {found}, the published one has {entry.sha256}")
        mixed = False


def _complete(url: str, entry: WeightEntry, part: Path, report: Report) -> None:
    """Bring `part` to its full length, connecting again when the connection breaks."""
    retries = 0
    while (before := _length(part)) != entry.size:
        if before > entry.size:
            part.unlink()
            continue
        try:
            stream(url, part, entry.size, report)
        except Broken:
            retries = 0 if _length(part) - before >= PROGRESS else retries + 1
            if retries > RETRIES:
                raise
            time.sleep(PAUSE_S * 2**retries)


def _length(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


@contextmanager
def _bar(entry: WeightEntry, progress: bool) -> Iterator[Report]:
    """A bar on stderr; yields what to call with the bytes that are there. Seldom redrawn in a log file."""
    from tqdm import tqdm

    progress = progress and sys.stderr is not None  # there is none under pythonw or in some services
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
        yield lambda got: bar.update(got - bar.n)
