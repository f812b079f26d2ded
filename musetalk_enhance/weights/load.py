"""Weights by name or path: checked, and refused where they are not trusted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError, CorruptWeightError, MissingWeightError, UntrustedWeightError
from . import cache, table
from .checkpoint import (
    PICKLE_SUFFIXES,
    PLAIN_SUFFIXES,
    check_header,
    describe_extension,
    read_state_dict,
)
from .download import fetch
from .importer import entry_by_file_name
from .onnx_graph import read_graph
from .onnx_models import MODELS
from .table import WeightEntry

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Weight:
    """A weight file on this machine that has been hashed and is trusted.

    Attributes:
        path: the file.
        sha256: its hash, 64 lower-case hex digits.
        entry: the published weight that it is; None for a user's own file.
    """

    path: Path
    sha256: str
    entry: WeightEntry | None

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Its named tensors on the CPU, read without executing a pickle; see `read_state_dict`.

        Raises:
            CorruptWeightError: it is truncated, not a checkpoint, or has changed since it was
                checked.
            CheckpointError: it holds no tensors, or more than tensors; an ONNX graph; TorchScript.
        """
        digest = cache.sha256_of(self.path)
        if digest != self.sha256:
            what = f"changed since it was checked (sha256 {self.sha256} then, {digest} now)"
            raise CorruptWeightError(self.path, what)
        return read_state_dict(self.path)


def require(name: str, *, download: bool = False, offline: bool | None = None) -> Weight:
    """The published weight `name` from the cache, its hash checked.

    Args:
        name: a name or alias in the table.
        download: whether a missing or corrupt file may be fetched.
        offline: True never connects; None uses ``MUSETALK_ENHANCE_OFFLINE``.

    Raises:
        ConfigError: the table has no such name.
        MissingWeightError: it is missing; the message has the file, its sha256, the command that
            fetches it and the folder.
        CorruptWeightError: it is not the published file.
        DownloadError: see `fetch`.
        CacheError: see `fetch`.
    """
    entry = table.WEIGHTS.get(name)
    path = cache.path_of(entry)
    if download and not cache.is_offline(offline):
        path = fetch(name, offline=offline)
    elif download and not path.is_file():
        raise cache.missing(entry, cache.OFFLINE_NOTE)
    cache.check(path, entry)
    return Weight(path, entry.sha256 or cache.sha256_of(path), entry)


def resolve(
    path: str | Path | None, name: str, *, download: bool = False, trust_unpinned: bool = False
) -> Weight:
    """The file at `path` (see `open_file`); without one, the published weight `name`.

    Args:
        path: the user's own file, or None.
        name: a name or alias in the table; see `require`.
        download: whether a missing published weight may be fetched.
        trust_unpinned: whether a pickle of unknown hash may be opened.

    Raises:
        WeightError: see `open_file` and `require`.
    """
    if path is None:
        return require(name, download=download)
    return open_file(path, trust_unpinned=trust_unpinned)


def open_file(path: str | Path, *, trust_unpinned: bool = False) -> Weight:
    """A user's own file as a `Weight`.

    A .safetensors or .onnx file is always accepted; a .pth, .pt or .ckpt file, which is a pickle,
    only if its sha256 is in the table or the user trusts it. Even then it is not executed.

    Args:
        path: the file.
        trust_unpinned: whether a pickle of unknown hash may be opened.

    Raises:
        MissingWeightError: there is no file at `path`.
        CheckpointError: it is a folder, has none of the five extensions, or is an ONNX graph that
            is refused, see `read_graph`.
        CorruptWeightError: it is empty, a web page, a git-lfs pointer or a broken copy of a
            published weight, or cannot be read.
        UntrustedWeightError: a pickle of unknown hash, and `trust_unpinned` is False.
    """
    path = Path(path).expanduser()
    expected = f"a weight file ({', '.join((*PLAIN_SUFFIXES, *PICKLE_SUFFIXES))})"
    if path.is_dir():
        raise CheckpointError(path, "a folder", expected)
    if not path.is_file():
        raise MissingWeightError.at_path(path)
    suffix = path.suffix.lower()
    if suffix not in (*PLAIN_SUFFIXES, *PICKLE_SUFFIXES):
        raise CheckpointError(path, describe_extension(path), expected)
    check_header(path)
    if suffix == ".onnx":
        read_graph(path)
    digest = cache.sha256_of(path)
    entry = table.by_sha256(digest)
    if entry is None and suffix in PICKLE_SUFFIXES and not trust_unpinned:
        _refuse_truncated(path)
        raise UntrustedWeightError(path, digest)
    return Weight(path, digest, entry)


def find_onnx(model: str | Path, *, download: bool = False) -> Weight:
    """The ONNX file of a restorer.

    Args:
        model: a path; a name or file name of `onnx_models.MODELS`, in the cache folder; or
            ``"auto"``, the first of `MODELS` that is there.
        download: whether a missing file of a name may be fetched; a pinned one if there is one.

    Raises:
        ConfigError: neither a file nor a name of the table.
        WeightError: the file is missing, broken or refused; see `open_file` and `fetch`.
    """
    path, name = Path(model).expanduser(), str(model)
    if path.is_file() or (path.suffix.lower() == ".onnx" and name not in MODELS):
        return open_file(path)
    candidates = list(MODELS) if name.lower() == "auto" else [MODELS.get(name)]
    files = [file for candidate in candidates for file in candidate.files]
    if name.lower() in (file.lower() for file in files):  # one file, not any of its model
        files = [file for file in files if file.lower() == name.lower()]
    stored = [cache.cache_dir() / file for file in files if (cache.cache_dir() / file).is_file()]
    if stored:
        return open_file(stored[0])
    entries = [table.WEIGHTS.get(file) for file in files if file in table.WEIGHTS]
    entries.sort(key=lambda entry: (entry.sha256 is None, not entry.urls))
    if download and entries and name.lower() != "auto":
        return require(entries[0].name, download=True)
    if len(candidates) == 1 and entries:
        others = ", ".join(file for file in files if file != entries[0].file)
        raise cache.missing(entries[0], f" Also used: {others}." if others else "")
    raise MissingWeightError.at_path(cache.cache_dir() / " or ".join(files[:3]))


def _refuse_truncated(path: Path) -> None:
    """A shorter file under a published name is a broken download, not a network of the user's."""
    entry = entry_by_file_name(path)
    size = path.stat().st_size
    if entry is not None and entry.size is not None and size < entry.size:
        raise CorruptWeightError(
            path,
            f"truncated: has {size} bytes, the published {entry.name} has {entry.size}",
            f" Fetch it with `musetalk-enhance weights fetch {entry.name}`; if it is a network of "
            "your own, set trust_unpinned: true.",
        )
