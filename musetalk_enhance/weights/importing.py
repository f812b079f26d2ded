"""Take a hand-copied weight into the cache, recognised by its hash."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from uuid import uuid4

from ..errors import CheckpointError, CorruptWeightError, MissingWeightError, WeightError, suggest
from . import cache, table
from .table import WeightEntry


def import_file(path: str | Path, *, copy: bool = True) -> Path:
    """Put a file that is on this machine already into the cache, under the name the library looks for.

    Which weight it is is told by its sha256, never by its name.

    Args:
        path: the file, under any name.
        copy: True leaves it where it is, False moves it.

    Returns:
        Its path in the cache.

    Raises:
        MissingWeightError: there is no file at `path`.
        CheckpointError: its hash is none of the published ones; lists what is known.
        CorruptWeightError: so, and by its name it should be a published weight; or it cannot be read.
        CacheError: the cache folder cannot be written.
    """
    source = Path(path).expanduser()
    if source.is_dir():
        raise CheckpointError(source, "a folder", "a weight file")
    if not source.is_file():
        raise MissingWeightError.at_path(source)
    digest = cache.sha256_of(source)
    entry = table.by_sha256(digest)
    if entry is None:
        raise _unknown(source, digest)
    target = cache.path_of(entry)
    cache.make_cache_dir()
    if target.exists() and source.samefile(target):
        return target
    _put(source, target, entry)
    if not copy:
        try:
            source.unlink()
        except OSError as error:
            raise cache.cache_error(source, "remove the file after it was imported", error) from error
    return target


def _put(source: Path, target: Path, entry: WeightEntry) -> None:
    """Copy beside the target, check the copy, rename: nobody ever sees half a file."""
    part = target.with_name(f".{target.name}.{uuid4().hex}.import")  # threads share a process id
    try:
        try:
            shutil.copyfile(source, part)
            if cache.sha256_of(part, remember=False) != entry.sha256:
                raise CorruptWeightError(source, "changed while it was copied", " Import it again.")
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise cache.cache_error(target, "copy the file into the cache", error) from error


def suggested(path: Path) -> WeightEntry | None:
    """The entry that a file's name points to; also for ``GFPGANv1.4 (1).pth`` or ``gfpgan-1.4.pth``."""
    name = re.sub(r"(\s*\(\d+\)|\.part|\.crdownload)+(?=\.\w+$|$)", "", path.name)
    for word in (name, Path(name).stem):
        if word in table.WEIGHTS:
            return table.WEIGHTS.get(word)
    return None


def _unknown(path: Path, digest: str) -> WeightError:
    size = path.stat().st_size
    entry = suggested(path)
    if entry is not None:
        return CorruptWeightError(
            path,
            f"by its name this is {entry.name} ({entry.size} bytes, sha256 {entry.sha256}), but it has "
            f"{size} bytes and sha256 {digest}",
            f" Fetch it anew with `musetalk-enhance weights fetch {entry.name}`.",
        )
    known = "; ".join(f"{known.name} (sha256 {known.sha256})" for known in table.WEIGHTS)
    return CheckpointError(
        path,
        f"{size} bytes with sha256 {digest}, which is no published weight",
        f"one of {known}",
        suggest(path.stem, table.WEIGHTS.names()) + " A file of your own is used by its path, not imported.",
    )
