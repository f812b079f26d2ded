"""A small table of weights and a cache folder of the test's own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from weights_server import DATA, Server

from musetalk_enhance.runtime.registry import Registry
from musetalk_enhance.weights import WeightEntry, cache, download, table


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own cache folder, no leftovers of the environment, and no waiting before a retry."""
    folder = tmp_path / "cache"
    monkeypatch.setenv(cache.CACHE_ENV, str(folder))
    for name in (cache.OFFLINE_ENV, download.MIRROR_ENV, "http_proxy", "https_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE_S", 0.0)
    return folder


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Callable[..., WeightEntry]:
    """Add an entry to a table of the test's own, which takes the place of the real one."""
    monkeypatch.setattr(table, "WEIGHTS", Registry[WeightEntry]("weight"))

    def add(
        *urls: str, name: str = "Tiny", file: str = "tiny.pth", data: bytes = DATA
    ) -> WeightEntry:
        digest = hashlib.sha256(data).hexdigest()
        entry = WeightEntry(name, file, urls, len(data), digest, "MIT", ("here", "there"), "a test")
        table.WEIGHTS.add(name, entry, aliases=(file,))
        return entry

    return add
