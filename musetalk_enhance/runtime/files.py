"""Files on disk: only regular ones are read, and a file is written completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO
from uuid import uuid4

from ..errors import MediaError

PathLike = str | Path


def open_regular(path: PathLike) -> BinaryIO:
    """Open a regular file for reading. Pipes and devices, which may never end, are refused.

    Raises:
        OSError: it is not a regular file, or cannot be opened.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return open(path, "rb")


def read_json(path: PathLike) -> Any:
    """Content of a JSON file; None if it is missing, damaged, too deep or not a regular file."""
    try:
        with open_regular(path) as file:
            return json.loads(file.read().decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def real_path(path: PathLike) -> Path:
    """The absolute path without links.

    Where links lead to one another it ends at them; `Path.resolve` raises there, before Python
    3.13.

    Raises:
        MediaError: no file can have such a name.
    """
    try:
        return Path(os.path.realpath(path))
    except ValueError as error:  # a null character
        raise MediaError(path, f"is no path ({error})") from error


def temporary_path(target: Path, *, keep_extension: bool = False) -> Path:
    """A path beside `target` that nobody else uses, however long the target's name is.

    Args:
        target: the path of the finished file.
        keep_extension: False gives ``.<32 hex digits>.part``; True adds the target's extension,
            for programs that take the format from it.
    """
    unique = uuid4().hex  # not the process id: threads share it
    return target.with_name(f".{unique}.part{target.suffix if keep_extension else ''}")


class AtomicFile:
    """A file that gets its name only when it is complete.

    As a context manager it gives the temporary path to write to. The file is moved to `target`
    when the block ends normally; after an exception the temporary file is removed and an existing
    `target` is unchanged.

    >>> with AtomicFile(Path("settings.json")) as path:  # doctest: +SKIP
    ...     path.write_text("{}")

    Args:
        target: the path of the finished file.
        keep_extension: see `temporary_path`.

    Attributes:
        target: the path of the finished file.
        path: the temporary path, in the same folder.

    Raises:
        OSError: on leaving the block, `target` cannot be replaced.
    """

    def __init__(self, target: Path, *, keep_extension: bool = False) -> None:
        self.target = target
        self.path = temporary_path(target, keep_extension=keep_extension)

    def commit(self) -> None:
        """Move the temporary file to `target`.

        Raises:
            OSError: `target` cannot be replaced; the temporary file is still there.
        """
        os.replace(self.path, self.target)

    def discard(self) -> None:
        """Remove the temporary file if it exists; after `commit` there is none."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.commit()
        finally:
            self.discard()


def write_bytes(path: PathLike, data: bytes) -> None:
    """Write a file completely or not at all, through an `AtomicFile`.

    Raises:
        MediaError: it cannot be written; an existing file is unchanged.
    """
    try:
        with AtomicFile(Path(path)) as part, open(part, "xb") as stream:
            stream.write(data)
            stream.flush()
    except OSError as error:
        raise MediaError(path, f"cannot be written ({error.strerror or error})") from error
