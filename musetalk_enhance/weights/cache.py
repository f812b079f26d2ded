"""The one folder that weights live in: where it is, what is in it, whether that is whole."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import CacheError, CorruptWeightError, MissingWeightError
from . import table
from .table import WeightEntry

CACHE_ENV = "MUSETALK_ENHANCE_CACHE"
OFFLINE_ENV = "MUSETALK_ENHANCE_OFFLINE"

_BLOCK = 2**20
_known_hashes: dict[tuple[str, int, int, int, int], str] = {}


@dataclass(frozen=True)
class VerifyResult:
    """What `verify` found for one weight.

    Attributes:
        name: its name in the table.
        path: where it is, or would be.
        status: ``"ok"`` (its hash is the published one), ``"missing"`` or ``"corrupt"``.
        detail: one line in words; what to do next where it is not ok.
    """

    name: str
    path: Path
    status: Literal["ok", "missing", "corrupt"]
    detail: str


def cache_dir() -> Path:
    """The folder of the weights; asking does not create it.

    ``MUSETALK_ENHANCE_CACHE`` if set, else ``musetalk_enhance/weights`` in the user's cache folder
    (``XDG_CACHE_HOME`` or ``~/.cache``; on Windows ``LOCALAPPDATA``; on a Mac ``~/Library/Caches``).

    Raises:
        CacheError: the user has no home folder, and none of the variables is set.
    """
    try:
        if own := os.environ.get(CACHE_ENV):
            return Path(own).expanduser().absolute()
        return _user_cache_dir() / "musetalk_enhance" / "weights"
    except RuntimeError as error:  # what pathlib raises where there is no home
        raise CacheError(Path("~"), f"cannot tell the user's cache folder ({error})") from error


def _user_cache_dir() -> Path:
    system = platform.system()
    if system == "Windows":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local) if local else Path.home() / "AppData" / "Local"
    if system == "Darwin":
        return Path.home() / "Library" / "Caches"
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    return Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache"  # XDG: a relative one is ignored


def is_offline(offline: bool | None = None) -> bool:
    """`offline`, or where that is None whether ``MUSETALK_ENHANCE_OFFLINE`` says 1, true, yes or on."""
    if offline is not None:
        return offline
    return os.environ.get(OFFLINE_ENV, "").strip().lower() in ("1", "true", "yes", "on")


def path_of(entry: WeightEntry) -> Path:
    """Where the file of `entry` is, or would be."""
    return cache_dir() / entry.file


def find(name: str) -> Path | None:
    """The file of the weight `name` if it is in the cache and has the right size; its hash is not looked at.

    Raises:
        ConfigError: the table has no such name.
    """
    entry = table.WEIGHTS.get(name)
    path = path_of(entry)
    return path if _size(path) == entry.size else None


def _size(path: Path) -> int | None:
    """Bytes of a file, None if there is none that can be looked at."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def sha256_of(path: Path, *, remember: bool = True) -> str:
    """The sha256 of a file, 64 lower-case hex digits.

    With `remember`, it is not read again in this process while its size and times of change stay as they are.

    Raises:
        CorruptWeightError: the file cannot be read.
    """
    try:
        stat = path.stat()
        key = (str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
        if remember and key in _known_hashes:
            return _known_hashes[key]
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise CorruptWeightError(path, f"cannot be read ({error.strerror or error})") from error
    if remember:
        _known_hashes[key] = digest.hexdigest()
    return digest.hexdigest()


def check(path: Path, entry: WeightEntry) -> None:
    """Compare a file with what was published: its size, then its hash.

    Raises:
        MissingWeightError: there is no file.
        CorruptWeightError: it is not the published file; says what came and how to fetch it anew.
    """
    size = _size(path)
    if size is None:
        raise missing(entry)
    hint = f" Fetch it anew with `musetalk-enhance weights fetch {entry.name}`."
    if size != entry.size:
        cut = "truncated: " if size < entry.size else ""
        what = f"{cut}has {size} bytes, the published {entry.name} {entry.size}"
        raise CorruptWeightError(path, what, hint)
    found = sha256_of(path)
    if found != entry.sha256:
        raise CorruptWeightError(path, f"has sha256 {found}, the published {entry.name} {entry.sha256}", hint)


def is_good(path: Path, entry: WeightEntry) -> bool:
    """Whether the file is there and is the published one, hash and all."""
    try:
        check(path, entry)
    except (MissingWeightError, CorruptWeightError):
        return False
    return True


def missing(entry: WeightEntry, note: str = "") -> MissingWeightError:
    """The error for a weight that is not in the cache."""
    return MissingWeightError(entry.name, entry.file, entry.sha256, cache_dir(), note)


def verify(names: Iterable[str] | None = None) -> list[VerifyResult]:
    """Hash what is in the cache. `names`: which weights, None for every one in the table.

    Raises:
        ConfigError: the table has no such name.
    """
    entries = list(table.WEIGHTS) if names is None else [table.WEIGHTS.get(name) for name in names]
    return [_verify(entry) for entry in entries]


def _verify(entry: WeightEntry) -> VerifyResult:
    path = path_of(entry)
    try:
        check(path, entry)
    except MissingWeightError as error:
        return VerifyResult(entry.name, path, "missing", f"not there; fetch it with `{error.command}`")
    except CorruptWeightError as error:
        return VerifyResult(entry.name, path, "corrupt", str(error).removeprefix(f"{path}: "))
    return VerifyResult(entry.name, path, "ok", f"{entry.size} bytes, sha256 {entry.sha256}")


def make_cache_dir() -> Path:
    """The cache folder, created if need be.

    Raises:
        CacheError: it cannot be created.
    """
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cache_error(folder, "create the cache folder", error) from error
    return folder


def cache_error(path: Path, doing: str, error: OSError) -> CacheError:
    """Translate what the operating system said while we were `doing` something to `path`."""
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        why = "the disk is full"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        why = "it may not be written to"
    elif error.errno in (errno.ENOTDIR, errno.EEXIST):
        why = "a file stands where a folder is needed"
    else:
        why = "the system says no"
    return CacheError(path, f"cannot {doing}: {why} ({error.strerror or error})")
