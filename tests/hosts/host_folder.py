"""A folder with the modules of a host in miniature, as working directory, and runs in it."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from musetalk_enhance.cli import main


@contextmanager
def host_folder(
    folder: Path, files: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Write `files` below `folder` and go there; their modules are forgotten before and after."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    roots = {name.split("/")[0].removesuffix(".py") for name in files}
    monkeypatch.chdir(folder)
    importlib.invalidate_caches()

    def forget() -> None:
        for name in [name for name in sys.modules if name.split(".")[0] in roots]:
            del sys.modules[name]

    forget()
    yield folder
    forget()


def run_host(*words: str) -> tuple[int, dict]:
    """Exit code of ``musetalk-enhance run``, and what the script wrote to result.json."""
    Path("result.json").unlink(missing_ok=True)
    code = main(["run", *words])
    path = Path("result.json")
    return code, json.loads(path.read_text()) if path.exists() else {}
