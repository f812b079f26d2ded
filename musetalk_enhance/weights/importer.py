"""Copying a weight file into the cache, identified by its hash."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from ..errors import (
    CheckpointError,
    CorruptWeightError,
    MissingWeightError,
    WeightError,
    suggest,
)
from ..runtime.files import AtomicFile
from . import cache, table
from .onnx_graph import read_graph
from .onnx_models import MODELS, recognize
from .table import WeightEntry


def import_file(path: str | Path, *, copy: bool = True) -> Path:
    """Put a weight file into the cache under its published name.

    The weight is identified by its sha256. Only an unpinned ONNX file, whose hash nobody publishes,
    is identified by its name, and its inputs must be that model's.

    Args:
        path: the file, under any name.
        copy: True copies it, False moves it.

    Returns:
        Its path in the cache.

    Raises:
        MissingWeightError: there is no file at `path`.
        CheckpointError: its hash is not one of the published ones, which the message lists.
        CorruptWeightError: as above, but the file has the name of a published weight; or it cannot
            be read.
        CacheError: the cache folder cannot be written.
    """
    source = Path(path).expanduser()
    if source.is_dir():
        raise CheckpointError(source, "a folder", "a weight file")
    if not source.is_file():
        raise MissingWeightError.at_path(source)
    digest = cache.sha256_of(source)
    entry = table.by_sha256(digest) or _unpinned(source)
    if entry is None:
        raise _unknown(source, digest)
    target = cache.path_of(entry)
    cache.make_cache_dir()
    if target.exists() and source.samefile(target):
        return target
    _copy(source, target, digest)
    if not copy:
        try:
            source.unlink()
        except OSError as error:
            action = "remove the file after it was imported"
            raise cache.cache_error(source, action, error) from error
    return target


def _copy(source: Path, target: Path, sha256: str) -> None:
    """Copy, check the copy, rename: no other process ever sees half a file."""
    try:
        with AtomicFile(target) as part:
            shutil.copyfile(source, part)
            if cache.sha256_of(part, remember=False) != sha256:
                raise CorruptWeightError(source, "changed while it was copied", " Import it again.")
    except OSError as error:
        raise cache.cache_error(target, "copy the file into the cache", error) from error


def _unpinned(path: Path) -> WeightEntry | None:
    """The unpinned entry with this file name, if the file is that model by its inputs.

    Raises:
        CorruptWeightError: it is not an ONNX graph.
        CheckpointError: it is refused, or another network.
    """
    entry = entry_by_file_name(path)
    if entry is None or entry.sha256 is not None:
        return None
    model, actual = MODELS.get(entry.file), recognize(read_graph(path)).model
    if (model.input_size, model.fidelity) != (actual.input_size, actual.fidelity):
        text = f"a network with an input of {actual.input_size} px, fidelity {actual.fidelity}"
        expected = f"{model.input_size} px, fidelity {model.fidelity}, as {entry.name} has"
        raise CheckpointError(path, text, expected)
    return entry


def entry_by_file_name(path: Path) -> WeightEntry | None:
    """The published weight with this file name, ``GFPGANv1.4 (1).pth`` and aliases included."""
    name = re.sub(r"(\s*\(\d+\)|\.part|\.crdownload)+(?=\.\w+$|$)", "", path.name)
    for word in (name, Path(name).stem):
        if word in table.WEIGHTS:
            return table.WEIGHTS.get(word)
    return None


def _unknown(path: Path, digest: str) -> WeightError:
    size = path.stat().st_size
    entry = entry_by_file_name(path)
    if entry is not None:
        return CorruptWeightError(
            path,
            f"by its name this is {entry.name} ({entry.stated}), but "
            f"it has {size} bytes and sha256 {digest}",
            f" Fetch it again with `musetalk-enhance weights fetch {entry.name}`.",
        )
    pinned = (entry for entry in table.WEIGHTS if entry.sha256 is not None)
    published = "; ".join(f"{entry.name} (sha256 {entry.sha256})" for entry in pinned)
    return CheckpointError(
        path,
        f"{size} bytes with sha256 {digest}, which is not a published weight",
        f"one of {published}",
        suggest(path.stem, table.WEIGHTS.names())
        + " A file of your own is used by its path, without importing it.",
    )
