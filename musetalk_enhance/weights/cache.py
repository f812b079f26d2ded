"""The cache folder of the weights: where it is, what it holds, whether its files are intact."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import CacheError, CorruptWeightError, MissingWeightError, WeightError
from . import table
from .onnx_graph import read_graph
from .table import WeightEntry

CACHE_ENV = "MUSETALK_ENHANCE_CACHE"
OFFLINE_ENV = "MUSETALK_ENHANCE_OFFLINE"
OFFLINE_NOTE = f" Offline mode ({OFFLINE_ENV}=1 or --offline): it was not downloaded."

_BLOCK = 2**20
_known_hashes: dict[tuple[str, int, int, int, int], str] = {}


@dataclass(frozen=True)
class VerifyResult:
    """The result of `verify` for one weight.

    Attributes:
        name: its name in the table.
        path: its path in the cache, whether it exists or not.
        status: ``"ok"`` (its hash is the published one), ``"unpinned"`` (a readable graph, and no
            hash is published), ``"missing"`` or ``"corrupt"``.
        detail: one line in words, with what to do next if there is something to do.
    """

    name: str
    path: Path
    status: Literal["ok", "unpinned", "missing", "corrupt"]
    detail: str


def cache_dir() -> Path:
    """The folder of the weights; it is not created.

    ``MUSETALK_ENHANCE_CACHE`` if set, else ``musetalk_enhance/weights`` in the user's cache folder
    (``XDG_CACHE_HOME`` or ``~/.cache``; on Windows ``LOCALAPPDATA``; on a Mac
    ``~/Library/Caches``).

    Raises:
        CacheError: the user has no home folder, and none of the variables is set.
    """
    try:
        if folder := os.environ.get(CACHE_ENV):
            return Path(folder).expanduser().absolute()
        return _user_cache_dir() / "musetalk_enhance" / "weights"
    except RuntimeError as error:  # pathlib's error where there is no home
        raise CacheError(Path("~"), f"cannot find the user's cache folder ({error})") from error


def _user_cache_dir() -> Path:
    system = platform.system()
    if system == "Windows":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local) if local else Path.home() / "AppData" / "Local"
    if system == "Darwin":
        return Path.home() / "Library" / "Caches"
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification: a relative path is ignored.
    return Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache"


def is_offline(offline: bool | None = None) -> bool:
    """`offline`; if None, whether ``MUSETALK_ENHANCE_OFFLINE`` is 1, true, yes or on."""
    if offline is not None:
        return offline
    return os.environ.get(OFFLINE_ENV, "").strip().lower() in ("1", "true", "yes", "on")


def path_of(entry: WeightEntry) -> Path:
    """The path of `entry` in the cache, whether it exists or not."""
    return cache_dir() / entry.file


def find(name: str) -> Path | None:
    """The file of the weight `name` if it is in the cache and has the right size.

    Its hash is not checked.

    Raises:
        ConfigError: the table has no such name.
    """
    entry = table.WEIGHTS.get(name)
    path = path_of(entry)
    size = _size(path)
    is_right = bool(size) if entry.size is None else size == entry.size
    return path if is_right else None


def _size(path: Path) -> int | None:
    """Size of a file in bytes, None if there is no accessible regular file."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def sha256_of(path: Path, *, remember: bool = True) -> str:
    """The sha256 of a file, 64 lower-case hex digits.

    With `remember`, the file is read only once in this process while its size, inode and times stay
    the same.

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
    """Compare a file with the published one: its size, then its hash.

    An unpinned one is only read.

    Raises:
        MissingWeightError: there is no file.
        CheckpointError: an unpinned graph that is refused, see `read_graph`.
        CorruptWeightError: it is not the published file; the message has the actual size or hash
            and the command that fetches it again.
    """
    size = _size(path)
    if size is None:
        raise missing(entry)
    hint = f" Fetch it again with `musetalk-enhance weights fetch {entry.name}`."
    if entry.sha256 is None:
        read_graph(path)
        return
    if entry.size is not None and size != entry.size:
        label = "truncated: " if size < entry.size else ""
        what = f"{label}has {size} bytes, the published {entry.name} has {entry.size}"
        raise CorruptWeightError(path, what, hint)
    digest = sha256_of(path)
    if digest != entry.sha256:
        what = f"has sha256 {digest}, the published {entry.name} has {entry.sha256}"
        raise CorruptWeightError(path, what, hint)


def is_intact(path: Path, entry: WeightEntry) -> bool:
    """Whether the file exists and is the published one, by size and hash."""
    try:
        check(path, entry)
    except WeightError:
        return False
    return True


def missing(entry: WeightEntry, note: str = "") -> MissingWeightError:
    """The error for a weight that is not in the cache."""
    return MissingWeightError(entry.name, entry.file, entry.sha256 or "", cache_dir(), note)


def verify(names: Iterable[str] | None = None) -> list[VerifyResult]:
    """Check the files in the cache, hashes included.

    Args:
        names: the weights to check, None for all weights in the table.

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
        detail = f"missing; fetch it with `{error.command}`"
        return VerifyResult(entry.name, path, "missing", detail)
    except WeightError as error:
        return VerifyResult(entry.name, path, "corrupt", str(error).removeprefix(f"{path}: "))
    if entry.sha256 is None:
        detail = f"{entry.stated}; this file has {sha256_of(path)}"
        return VerifyResult(entry.name, path, "unpinned", detail)
    return VerifyResult(entry.name, path, "ok", entry.stated)


def make_cache_dir() -> Path:
    """The cache folder, created if it does not exist.

    Raises:
        CacheError: it cannot be created.
    """
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cache_error(folder, "create the cache folder", error) from error
    return folder


def cache_error(path: Path, action: str, error: OSError) -> CacheError:
    """The `CacheError` for an operating system error during `action` on `path`."""
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        why = "the disk is full"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        why = "permission denied"
    elif error.errno in (errno.ENOTDIR, errno.EEXIST):
        why = "a file is in the place of a folder"
    else:
        why = "the operating system refused"
    return CacheError(path, f"cannot {action}: {why} ({error.strerror or error})")
