"""Hand-copied files: recognised by hash, checked, copied whole or not at all."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from weights_server import DATA, OTHER

from musetalk_enhance.errors import (
    CacheError,
    CheckpointError,
    CorruptWeightError,
    MissingWeightError,
)
from musetalk_enhance.weights import WeightEntry, cache, import_file, require
from musetalk_enhance.weights.importer import entry_by_file_name

Add = Callable[..., WeightEntry]


def test_a_file_is_known_by_its_bytes_under_any_name(
    add: Add, tmp_path: Path, cache_folder: Path
) -> None:
    add()
    source = tmp_path / "holiday.zip"
    source.write_bytes(DATA)
    assert import_file(source) == cache_folder / "tiny.pth"
    assert source.exists()
    assert require("tiny").path.read_bytes() == DATA
    assert [path.name for path in cache_folder.iterdir()] == ["tiny.pth"]


def test_moving(add: Add, tmp_path: Path) -> None:
    add()
    source = tmp_path / "tiny.pth"
    source.write_bytes(DATA)
    assert import_file(str(source), copy=False).read_bytes() == DATA
    assert not source.exists()


@pytest.mark.parametrize("copy", [True, False])
def test_a_file_that_lies_in_the_cache_stays(copy: bool, add: Add, cache_folder: Path) -> None:
    add()
    cache_folder.mkdir()
    path = cache_folder / "tiny.pth"
    path.write_bytes(DATA)
    assert import_file(path, copy=copy) == path
    assert path.read_bytes() == DATA


def test_a_broken_file_in_the_cache_is_replaced(
    add: Add, tmp_path: Path, cache_folder: Path
) -> None:
    add()
    cache_folder.mkdir()
    (cache_folder / "tiny.pth").write_bytes(OTHER)
    (tmp_path / "good").write_bytes(DATA)
    assert import_file(tmp_path / "good").read_bytes() == DATA


def test_an_unknown_file_is_told_what_is_known(
    add: Add, tmp_path: Path, cache_folder: Path
) -> None:
    entry = add()
    path = tmp_path / "mine.pth"
    path.write_bytes(OTHER)
    words = (
        rf"102400 bytes with sha256 (?!{entry.sha256}).*not a published weight.*"
        rf"one of Tiny \(sha256 {entry.sha256}\)"
    )
    with pytest.raises(CheckpointError, match=words):
        import_file(path)
    assert not cache_folder.exists()


@pytest.mark.parametrize("name", ["tiny.pth", "tiny (2).pth", "TINY.pth", "tiny.pth.part"])
def test_a_bad_copy_is_told_what_its_name_promises(name: str, add: Add, tmp_path: Path) -> None:
    add()
    (tmp_path / name).write_bytes(DATA[:-1])
    words = (
        r"by its name this is Tiny \(102400 bytes, sha256 .*but it has 102399 bytes.*"
        r"weights fetch Tiny"
    )
    with pytest.raises(CorruptWeightError, match=words):
        import_file(tmp_path / name)


def test_names_that_users_have() -> None:
    for name in (
        "GFPGANv1.4.pth",
        "GFPGANv1.4 (1).pth",
        "gfpgan-1.4.pth",
        "GFPGANv1.4.pth.crdownload",
    ):
        entry = entry_by_file_name(Path(name))
        assert entry is not None and entry.name == "GFPGANv1.4"
    assert entry_by_file_name(Path("mine.pth")) is None


def test_a_near_name_is_suggested(tmp_path: Path) -> None:
    path = tmp_path / "GFPGANv14.pth"
    path.write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"Did you mean 'GFPGANv1.\d'"):
        import_file(path)


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(MissingWeightError, match="no such file"):
        import_file(tmp_path / "gone.pth")
    with pytest.raises(CheckpointError, match="holds a folder"):
        import_file(tmp_path)


def test_a_cache_that_cannot_be_written(
    add: Add, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add()
    source = tmp_path / "file"
    source.write_bytes(DATA)
    monkeypatch.setenv(cache.CACHE_ENV, str(source / "below"))
    with pytest.raises(CacheError, match="cannot create the cache folder"):
        import_file(source)


def test_a_copy_that_fails_leaves_nothing(
    add: Add, tmp_path: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add()
    source = tmp_path / "tiny.pth"
    source.write_bytes(DATA)

    def half(source: Path, target: Path) -> None:
        target.write_bytes(DATA[:100])
        raise OSError(28, "No space left on device")

    def altered(source: Path, target: Path) -> None:
        target.write_bytes(OTHER)

    monkeypatch.setattr(shutil, "copyfile", half)
    with pytest.raises(CacheError, match="cannot copy the file into the cache: the disk is full"):
        import_file(source, copy=False)
    monkeypatch.setattr(shutil, "copyfile", altered)
    with pytest.raises(CorruptWeightError, match="changed while it was copied"):
        import_file(source, copy=False)
    assert list(cache_folder.iterdir()) == []
    assert source.read_bytes() == DATA


def test_threads_may_import_the_same_file(
    add: Add, tmp_path: Path, cache_folder: Path, monkeypatch
) -> None:
    add()
    source = tmp_path / "x.pth"
    source.write_bytes(DATA)
    copied = threading.Barrier(2, timeout=10)
    copyfile = shutil.copyfile

    def together(*paths: Path) -> None:
        copyfile(*paths)
        copied.wait()  # both copies are there before either gets its name

    monkeypatch.setattr(shutil, "copyfile", together)
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(import_file, [source, source]))
    assert done == [cache_folder / "tiny.pth"] * 2 and done[0].read_bytes() == DATA
    assert [path.name for path in cache_folder.iterdir()] == ["tiny.pth"]
