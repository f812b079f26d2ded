"""The hosts that ``musetalk-enhance run`` knows, and whose a script is."""

from __future__ import annotations

import ast
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import ConfigError, HostError, suggest
from .base import Host
from .latentsync import LATENTSYNC
from .livetalking import LIVETALKING
from .musetalk import MUSETALK
from .openavatarchat import OPENAVATARCHAT
from .sadtalker import LINLY_TALKER, SADTALKER
from .wav2lip import WAV2LIP, WAV2LIP_ONNX_HQ

HOSTS: tuple[Host, ...] = (
    LIVETALKING,
    OPENAVATARCHAT,
    LINLY_TALKER,
    SADTALKER,
    LATENTSYNC,
    WAV2LIP_ONNX_HQ,
    WAV2LIP,
    MUSETALK,
)
"""Those that hold parts of others come first: the first that fits a script is its host."""

MAX_DEPTH = 4
"""Levels of modules read: the script, the modules of its folder that it imports, theirs, ..."""
MAX_FILES = 300
"""Files read to recognize a script."""


def host_names() -> list[str]:
    """The names that `host_named` takes."""
    return [host.name for host in HOSTS]


def host_named(name: str) -> Host:
    """The host of this name.

    Raises:
        ConfigError: there is none.
    """
    for host in HOSTS:
        if host.name == name:
            return host
    names = host_names()
    raise ConfigError("--host", name, " | ".join(names), suggest(name, names))


def recognize(script: str) -> Host:
    """The host of a script, by what it imports, itself or through the modules of its folder.

    A host that the script itself imports goes before one that its modules import.

    Args:
        script: path of a Python file; modules are searched beside it and in the working directory.

    Raises:
        HostError: it is no script of these hosts.
    """
    folders = [Path(script).resolve().parent, Path.cwd()]
    paths, read = [Path(script)], set[Path]()
    for _ in range(MAX_DEPTH):
        names: set[str] = set()
        for path in paths:
            read.add(path.resolve())
            names |= imported_names(path)
        for host in HOSTS:
            if any(_is_within(name, host.imports) for name in names):
                return host
        unread = [path for path in _files_of(names, folders) if path.resolve() not in read]
        paths = unread[: MAX_FILES - len(read)]
    known = "; ".join(f"{host.title} (--host {host.name}: {host.scripts})" for host in HOSTS)
    raise HostError(
        f"{script} is not recognized as a script of a host that musetalk_enhance can run: {known}. "
        "Set --host NAME before SCRIPT if it is one of these; in a host of your own, "
        "musetalk_enhance.wrap(function, enhancer, ...) restores what a function returns"
    )


def imported_names(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports, and of the names from them; late ones, too.

    A file that cannot be read or parsed imports nothing.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd escapes in a host's strings are the host's own
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, path)
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return names - {""}


def _absolute(node: ast.ImportFrom, path: Path) -> str:
    """The module of an import; a relative one is below the folder of the file."""
    if not node.level:
        return node.module or ""
    folder = path.resolve().parents[node.level - 1]
    try:
        parts = folder.relative_to(Path.cwd().resolve()).parts
    except ValueError:
        return ""
    return ".".join((*parts, *(node.module or "").split("."))).strip(".")


def _is_within(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _files_of(names: Iterable[str], folders: Iterable[Path]) -> Iterator[Path]:
    """The files of modules below some folders."""
    for name in sorted(names):
        for folder in folders:
            stem = os.path.join(folder, *name.split("."))
            for path in (Path(f"{stem}.py"), Path(stem, "__init__.py")):
                if path.is_file():
                    yield path


__all__ = ["HOSTS", "host_named", "host_names", "imported_names", "recognize"]
