"""Every error this library raises on purpose, in one tree.

    EnhanceError
    ├── ConfigError             an option has an unknown name or an impossible value    (also ValueError)
    │   └── LicenceError        a weight may not be used for what was said
    ├── FrameError              a frame or a batch is not what the contract asks for     (also ValueError)
    ├── MissingDependencyError  an optional package is not installed                     (also ImportError)
    ├── WeightError             anything about a weight file
    │   ├── MissingWeightError  it is not on this machine                                (also FileNotFoundError)
    │   ├── CorruptWeightError  truncated, or its hash is not the published one          (also ValueError)
    │   ├── UntrustedWeightError  an unpinned pickle, and nobody said it may be opened   (also PermissionError)
    │   ├── CheckpointError     it opens, but holds another network                      (also ValueError)
    │   ├── DownloadError       the network or the server said no                        (also ConnectionError)
    │   └── CacheError          the cache folder cannot be written                       (also OSError)
    ├── RestorerError           a network or a plug-in failed while it ran               (also RuntimeError)
    │   ├── NoFaceError         the engine looked for a face and found none              (also LookupError)
    │   └── OutOfMemoryError    not even one face fits                                   (also MemoryError)
    ├── HostError               the host pipeline is not what we can hook into           (also RuntimeError)
    └── MediaError              a video or picture cannot be read or written             (also OSError)

Each text says what came, what is allowed and what to do next; the data stays on the object.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the known word nearest to `word`, or an empty string."""
    folded = {name.lower(): name for name in known}
    near = get_close_matches(str(word).lower(), list(folded), n=1, cutoff=0.6)
    return f" Did you mean {folded[near[0]]!r}?" if near else ""


class EnhanceError(Exception):
    """Base of every error that musetalk_enhance raises on purpose. It can be sent to another process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.args, self.__dict__.copy())


def _again(kind: type[EnhanceError], args: tuple[Any, ...], data: dict[str, Any]) -> EnhanceError:
    """An error as it was: its text is made already, so its own ``__init__``, which takes the parts, is left out."""
    error = kind.__new__(kind, *args)
    builtin: Any = next(base for base in kind.__mro__ if base.__module__ == "builtins")
    builtin.__init__(error, *args)
    error.args = args
    error.__dict__.update(data)
    return error


class ConfigError(EnhanceError, ValueError):
    """An option has an unknown name or an impossible value.

    Attributes:
        key: the option, as the user wrote it.
        value: what was given.
        allowed: what may be given, in words.
    """

    def __init__(self, key: str, value: object, allowed: str, hint: str = "") -> None:
        self.key, self.value, self.allowed = key, value, allowed
        super().__init__(f"{key}: {value!r} is not possible; allowed: {allowed}.{hint}")

    @classmethod
    def unknown(cls, key: str, value: object, known: Iterable[str], where: str = "") -> ConfigError:
        """An option that does not exist: names it, its value, where it stood and what there is."""
        names = sorted(known)
        error = cls(key, value, ", ".join(names))
        error.args = (
            f"unknown option {key!r} (value {value!r}){where}; known options: {error.allowed}."
            f"{suggest(key.rsplit('.', 1)[-1], names)}",
        )
        return error


class LicenceError(ConfigError):
    """A weight may not be used for what was said. `licence` names what forbids it."""

    def __init__(self, key: str, value: object, licence: str) -> None:
        self.licence = licence
        super().__init__(key, value, f"a model for commercial use with commercial: true, not one under {licence}")


class FrameError(EnhanceError, ValueError):
    """A frame or a batch is not what the contract asks for.

    Attributes:
        index: position of the frame in the batch, None when the batch as a whole is meant.
        actual: what came.
        expected: what is needed.
        reason: a short stable word for counting, e.g. ``"channels"``.
    """

    def __init__(self, reason: str, actual: str, expected: str, index: int | None = None) -> None:
        self.reason, self.actual, self.expected, self.index = reason, actual, expected, index
        where = "frames" if index is None else f"frame {index}"
        super().__init__(f"{where}: got {actual}; needed: {expected}")


class MissingDependencyError(EnhanceError, ImportError):
    """An optional package is not installed.

    Attributes:
        package: what is missing.
        extra: the extra of this library that brings it.
    """

    def __init__(self, package: str, extra: str, purpose: str, cause: str = "") -> None:
        self.package, self.extra = package, extra
        because = f" ({cause})" if cause else ""
        super().__init__(
            f"{purpose} needs the package {package!r}, which cannot be imported{because}. "
            f"Install it with: pip install 'musetalk_enhance[{extra}]'"
        )


class WeightError(EnhanceError):
    """Anything about a weight file."""


class MissingWeightError(WeightError, FileNotFoundError):
    """A weight file is not on this machine.

    Attributes:
        name: its name in the table.
        file: the file's name.
        sha256: its published hash.
        folder: where a hand-copied file is looked for.
    """

    def __init__(self, name: str, file: str, sha256: str, folder: Path, note: str = "") -> None:
        self.name, self.file, self.sha256, self.folder = name, file, sha256, folder
        self.command = f"musetalk-enhance weights fetch {name}"
        super().__init__(
            f"the weight {name} is not on this machine: no file {file} (sha256 {sha256}) in {folder}. "
            f"Fetch it with `{self.command}`, or copy the file there by hand "
            f"(`musetalk-enhance weights import FILE` checks it on the way).{note}"
        )

    @classmethod
    def at_path(cls, path: Path) -> MissingWeightError:
        """A path of the user's own at which there is no file; `name` and `sha256` are empty."""
        error = cls("", path.name, "", path.parent)
        error.command = "musetalk-enhance weights list"
        error.args = (
            f"{path}: there is no such file. Give the path of a .safetensors, .pth or .onnx file, "
            f"or the name of a published weight (`{error.command}` shows them).",
        )
        return error


class CorruptWeightError(WeightError, ValueError):
    """A weight file is truncated, or its hash is not the published one. `path` names it."""

    def __init__(self, path: Path, what: str, hint: str = "") -> None:
        self.path = path
        super().__init__(f"{path}: {what}.{hint}")


class UntrustedWeightError(WeightError, PermissionError):
    """A pickle whose hash is not in the table, and nobody said that it may be opened. `path` names it."""

    def __init__(self, path: Path, sha256: str) -> None:
        self.path, self.sha256 = path, sha256
        super().__init__(
            f"{path} (sha256 {sha256}) is no published weight that this library knows, and a .pth file is a "
            "pickle. If you trust where it came from, say trust_unpinned: true "
            "(flag --gfpgan_trust_unpinned, or --trust-unpinned for folders and films); it is then read by a "
            "restricted unpickler. A .safetensors file needs no such word."
        )


class CheckpointError(WeightError, ValueError):
    """A weight file opens, but holds another network than the one asked for. `path` names it."""

    def __init__(self, path: Path | None, actual: str, expected: str, hint: str = "") -> None:
        self.path, self.actual, self.expected = path, actual, expected
        super().__init__(f"{path or 'checkpoint'}: holds {actual}; needed: {expected}.{hint}")


class DownloadError(WeightError, ConnectionError):
    """The network or the server said no. `url` names the address."""

    def __init__(self, url: str, what: str) -> None:
        self.url = url
        super().__init__(f"{url}: {what}")


class CacheError(WeightError, OSError):
    """The cache folder cannot be written. `path` names it."""

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        super().__init__(
            f"{path}: {what}. Choose another folder with the environment variable MUSETALK_ENHANCE_CACHE"
        )


class RestorerError(EnhanceError, RuntimeError):
    """A network or a plug-in failed while it was loaded or run."""


class NoFaceError(RestorerError, LookupError):
    """The engine looked for a face in a frame and found none."""


class OutOfMemoryError(RestorerError, MemoryError):
    """Not even one face fits into memory."""


class HostError(EnhanceError, RuntimeError):
    """The host pipeline is not what we can hook into."""


class MediaError(EnhanceError, OSError):
    """A video or a picture cannot be read or written. `path` names it."""

    def __init__(self, path: str | Path, what: str) -> None:
        self.path = Path(path)
        super().__init__(f"{path}: {what}")
