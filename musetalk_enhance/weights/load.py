"""From a name or a path to a weight that has been checked and may be opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError, CorruptWeightError, MissingWeightError, UntrustedWeightError
from . import cache, table
from .checkpoint import PICKLE_SUFFIXES, PLAIN_SUFFIXES, look, read_state_dict
from .download import fetch
from .importing import suggested
from .table import WeightEntry

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Weight:
    """A weight file on this machine, its hash known, allowed to be opened.

    Attributes:
        path: the file.
        sha256: its hash, 64 lower-case hex digits.
        entry: which published weight it is; None for a file of the user's own.
    """

    path: Path
    sha256: str
    entry: WeightEntry | None

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Its named tensors on the CPU, read without executing a pickle; see `read_state_dict`.

        Raises:
            CorruptWeightError: truncated, no checkpoint, or not the file any more that was checked.
            CheckpointError: it holds no tensors, or more than tensors; an ONNX graph; TorchScript.
        """
        found = cache.sha256_of(self.path)
        if found != self.sha256:
            what = f"changed since it was checked (sha256 {self.sha256} then, {found} now)"
            raise CorruptWeightError(self.path, what)
        return read_state_dict(self.path)


def require(name: str, *, download: bool = False, offline: bool | None = None) -> Weight:
    """The published weight `name` from the cache, its hash checked.

    Args:
        name: a name or alias of the table.
        download: whether a missing or broken one may be fetched.
        offline: True never connects; None asks ``MUSETALK_ENHANCE_OFFLINE``.

    Raises:
        ConfigError: the table has no such name.
        MissingWeightError: it is not there; names the file, its sha256, the command and the folder.
        CorruptWeightError: it is there, but is not the published file.
        DownloadError, CacheError: as `fetch` raises them.
    """
    entry = table.WEIGHTS.get(name)
    path = cache.path_of(entry)
    if download and not cache.is_offline(offline):
        path = fetch(name, offline=offline)
    elif download and not path.is_file():
        note = f" It was not fetched: offline ({cache.OFFLINE_ENV}=1, or --offline)."
        raise cache.missing(entry, note)
    cache.check(path, entry)
    return Weight(path, entry.sha256, entry)


def own_or_published(
    path: str | Path | None, name: str, *, download: bool = False, trust_unpinned: bool = False
) -> Weight:
    """The user's own file where there is one (see `open_file`), else the published weight `name` (see `require`)."""
    return require(name, download=download) if path is None else open_file(path, trust_unpinned=trust_unpinned)


def open_file(path: str | Path, *, trust_unpinned: bool = False) -> Weight:
    """A file of the user's own as a `Weight`.

    A .safetensors or .onnx file is always taken; a .pth, .pt or .ckpt file, which is a pickle, if its sha256
    stands in the table or the user trusts it. Even then it is not executed.

    Args:
        path: the file.
        trust_unpinned: the user's word that a pickle of unknown hash may be opened.

    Raises:
        MissingWeightError: there is no file at `path`.
        CheckpointError: it is a folder, or its suffix is none of the five.
        CorruptWeightError: it is empty, a web page or a git-lfs pointer, a broken copy of a published weight,
            or cannot be read.
        UntrustedWeightError: a pickle of unknown hash, and `trust_unpinned` is False.
    """
    path = Path(path).expanduser()
    wanted = f"a weight file ({', '.join((*PLAIN_SUFFIXES, *PICKLE_SUFFIXES))})"
    if path.is_dir():
        raise CheckpointError(path, "a folder", wanted)
    if not path.is_file():
        raise MissingWeightError.at_path(path)
    suffix = path.suffix.lower()
    if suffix not in (*PLAIN_SUFFIXES, *PICKLE_SUFFIXES):
        raise CheckpointError(path, f"a {suffix or 'nameless'} file", wanted)
    look(path)
    digest = cache.sha256_of(path)
    entry = table.by_sha256(digest)
    if entry is None and suffix in PICKLE_SUFFIXES and not trust_unpinned:
        _refuse_truncated(path)
        raise UntrustedWeightError(path, digest)
    return Weight(path, digest, entry)


def _refuse_truncated(path: Path) -> None:
    """A published name on a shorter file is a broken download, not somebody's own network."""
    entry = suggested(path)
    size = path.stat().st_size
    if entry is not None and size < entry.size:
        raise CorruptWeightError(
            path,
            f"truncated: has {size} bytes, the published {entry.name} {entry.size}",
            f" Fetch it with `musetalk-enhance weights fetch {entry.name}`; if it is a network of your own, "
            "say trust_unpinned: true.",
        )
