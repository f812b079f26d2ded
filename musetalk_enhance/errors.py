"""Every error this library raises on purpose, in one tree.

    EnhanceError
    ├── ConfigError             an option has an unknown name or bad value  (ValueError)
    │   └── LicenseError        the license of a weight forbids the requested use
    ├── FrameError              a frame or a batch violates the contract         (ValueError)
    ├── AnalysisError           the JSON of a face analyser cannot be read       (ValueError)
    ├── MissingDependencyError  an optional package is not installed             (ImportError)
    ├── WeightError             anything about a weight file
    │   ├── MissingWeightError  it is not on this machine                        (FileNotFoundError)
    │   ├── CorruptWeightError  truncated, or its hash is not the published one  (ValueError)
    │   ├── UntrustedWeightError  a pickle that the user has not trusted         (PermissionError)
    │   ├── CheckpointError     readable, but another network                    (ValueError)
    │   ├── DownloadError       the network or the server failed                 (ConnectionError)
    │   └── CacheError          the cache folder cannot be written               (OSError)
    ├── RestorerError           a network or a plug-in failed while running      (RuntimeError)
    │   ├── NoFaceError         the detector found no face                       (LookupError)
    │   └── OutOfMemoryError    not even one face fits                           (MemoryError)
    ├── HostError               the host pipeline cannot be hooked into          (RuntimeError)
    ├── ServiceError            the service cannot answer a request              (RuntimeError)
    └── MediaError              a video or an image cannot be read or written    (OSError)

In brackets: the built-in that each one is as well. Each message states the actual value, what is
expected and what to do next; the data stays on the object.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])


def suggest(word: str, candidates: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the candidate closest to `word`, or an empty string."""
    folded = {name.lower(): name for name in candidates}
    matches = get_close_matches(str(word).lower(), list(folded), n=1, cutoff=0.6)
    return f" Did you mean {folded[matches[0]]!r}?" if matches else ""


class EnhanceError(Exception):
    """Base of every error that musetalk_enhance raises on purpose; it can be pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__.copy())


def _rebuild(kind: type[EnhanceError], args: tuple[Any, ...], data: dict[str, Any]) -> EnhanceError:
    """Rebuild an error from its message: its ``__init__``, which takes the parts, is skipped."""
    error = kind.__new__(kind, *args)
    builtin: Any = next(base for base in kind.__mro__ if base.__module__ == "builtins")
    builtin.__init__(error, *args)
    error.args = args
    error.__dict__.update(data)
    return error


class ConfigError(EnhanceError, ValueError):
    """An option has an unknown name or an invalid value.

    Attributes:
        key: the option, as the user wrote it.
        value: its value.
        allowed: the valid values, in words.
    """

    def __init__(self, key: str, value: object, allowed: str, hint: str = "") -> None:
        self.key, self.value, self.allowed = key, value, allowed
        super().__init__(f"{key}: invalid value {value!r}; expected {allowed}.{hint}")

    @classmethod
    def unknown(
        cls, key: str, value: object, options: Iterable[str], where: str = ""
    ) -> ConfigError:
        """The error for an option that does not exist: its value, its place, all options."""
        names = sorted(options)
        error = cls(key, value, ", ".join(names))
        error.args = (
            f"unknown option {key!r} (value {value!r}){where}; known options: {error.allowed}."
            f"{suggest(key.rsplit('.', 1)[-1], names)}",
        )
        return error


class LicenseError(ConfigError):
    """The license of a weight forbids the requested use. `license` names it."""

    def __init__(self, key: str, value: object, license: str) -> None:
        self.license = license
        allowed = f"a model for commercial use (commercial: true), not one under {license}"
        super().__init__(key, value, allowed)

    @property
    def licence(self) -> str:
        """Deprecated spelling of `license`."""
        warn_renamed("LicenseError.licence", "LicenseError.license")
        return self.license


class FrameError(EnhanceError, ValueError):
    """A frame or a batch violates the contract.

    Attributes:
        index: position of the frame in the batch, None for the batch as a whole.
        actual: what was passed.
        expected: what is required.
        reason: a short stable word for counting, e.g. ``"channels"``.
    """

    def __init__(self, reason: str, actual: str, expected: str, index: int | None = None) -> None:
        self.reason, self.actual, self.expected, self.index = reason, actual, expected, index
        where = "frames" if index is None else f"frame {index}"
        super().__init__(f"{where}: got {actual}; expected {expected}")


class AnalysisError(EnhanceError, ValueError):
    """The JSON of a face analyser cannot be read. `actual` says what was passed."""

    def __init__(self, actual: str) -> None:
        self.actual = actual
        super().__init__(
            f"face analysis: got {actual}; expected JSON, a list of faces or an object with the "
            "list 'faces'"
        )


class MissingDependencyError(EnhanceError, ImportError):
    """An optional package is not installed.

    Attributes:
        package: the missing package.
        extra: the extra of this library that installs it.
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
        sha256: its published hash, empty if there is none.
        folder: the folder that was searched, and where a copy belongs.
        command: the command that helps.
    """

    def __init__(self, name: str, file: str, sha256: str, folder: Path, note: str = "") -> None:
        self.name, self.file, self.sha256, self.folder = name, file, sha256, folder
        self.command = f"musetalk-enhance weights fetch {name}"
        digest = f" (sha256 {sha256})" if sha256 else ""
        super().__init__(
            f"the weight {name} is not on this machine: no file {file}{digest} in "
            f"{folder}. Fetch it with `{self.command}`, or copy it by hand: "
            f"`musetalk-enhance weights import FILE` checks a file and copies it there.{note}"
        )

    @classmethod
    def at_path(cls, path: Path) -> MissingWeightError:
        """The error for a user's own path without a file; `name` and `sha256` are empty."""
        error = cls("", path.name, "", path.parent)
        error.command = "musetalk-enhance weights list"
        error.args = (
            f"{path}: no such file. Give the path of a .safetensors, .pth or .onnx file, or the "
            f"name of a published weight (`{error.command}` lists them).",
        )
        return error


class CorruptWeightError(WeightError, ValueError):
    """A weight file is truncated, or its hash is not the published one. `path` names it."""

    def __init__(self, path: Path, what: str, hint: str = "") -> None:
        self.path = path
        super().__init__(f"{path}: {what}.{hint}")


class UntrustedWeightError(WeightError, PermissionError):
    """A pickle of unknown hash that the user has not trusted. `path` names it."""

    def __init__(self, path: Path, sha256: str) -> None:
        self.path, self.sha256 = path, sha256
        super().__init__(
            f"{path} (sha256 {sha256}) is not one of the published weights, and a .pth file is a "
            "pickle, which can carry code. If you trust its source, set trust_unpinned: true "
            "(flag --gfpgan_trust_unpinned, or --trust-unpinned for images and videos); it is then "
            "read by a restricted unpickler. A .safetensors file does not need this."
        )


class CheckpointError(WeightError, ValueError):
    """A weight file is readable, but holds an unexpected network. `path` names it."""

    def __init__(self, path: Path | None, actual: str, expected: str, hint: str = "") -> None:
        self.path, self.actual, self.expected = path, actual, expected
        super().__init__(f"{path or 'checkpoint'}: holds {actual}; expected {expected}.{hint}")


class DownloadError(WeightError, ConnectionError):
    """The network or the server failed. `url` names the address."""

    def __init__(self, url: str, what: str) -> None:
        self.url = url
        super().__init__(f"{url}: {what}")


class CacheError(WeightError, OSError):
    """The cache folder cannot be written. `path` names it."""

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        super().__init__(
            f"{path}: {what}. Choose another folder with the environment variable "
            "MUSETALK_ENHANCE_CACHE"
        )


class RestorerError(EnhanceError, RuntimeError):
    """A network or a plug-in failed while it was loaded or run."""


class NoFaceError(RestorerError, LookupError):
    """The detector found no face in a frame."""


class OutOfMemoryError(RestorerError, MemoryError):
    """Not even one face fits into memory."""


class HostError(EnhanceError, RuntimeError):
    """The host pipeline cannot be hooked into."""


class ServiceError(EnhanceError, RuntimeError):
    """The HTTP service cannot answer a request.

    Attributes:
        status: HTTP status of the answer.
        code: a short stable word for programs, e.g. ``"busy"``.
        retry_after: seconds after which the request may be sent again; None if that is no use.
    """

    def __init__(
        self, status: int, code: str, message: str, retry_after: int | None = None
    ) -> None:
        self.status, self.code, self.retry_after = status, code, retry_after
        super().__init__(message)


class MediaError(EnhanceError, OSError):
    """A video or an image cannot be read or written. `path` names it."""

    def __init__(self, path: str | Path, what: str) -> None:
        self.path = Path(path)
        super().__init__(f"{path}: {what}")


def warn_renamed(name: str, replacement: str, stacklevel: int = 3) -> None:
    """Warn that `name` is deprecated; it works for one more release.

    Args:
        name: the deprecated name.
        replacement: the current one.
        stacklevel: as of `warnings.warn`; 3 is the caller of the deprecated function.
    """
    message = f"{name} is deprecated and will be removed in the next release; use {replacement}"
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel)


def renamed_arguments(**names: str) -> Callable[[Function], Function]:
    """Decorator: arguments that are given by their old name get the current one, with a warning.

    Args:
        names: old name to current name.
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            for old in names.keys() & kwargs.keys():
                warn_renamed(f"{function.__qualname__}({old}=...)", f"{names[old]}=...")
                kwargs[names[old]] = kwargs.pop(old)
            return function(*args, **kwargs)

        return cast(Function, wrapper)

    return decorate


def __getattr__(name: str) -> Any:
    if name == "LicenceError":
        warn_renamed("errors.LicenceError", "errors.LicenseError")
        return LicenseError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
