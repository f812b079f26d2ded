"""The cache folder: where it is, what `find`, `require` and `verify` say about what lies in it."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path

import pytest
from weights_server import DATA

from musetalk_enhance.errors import CacheError, ConfigError, CorruptWeightError, MissingWeightError
from musetalk_enhance.weights import WeightEntry, cache, cache_dir, fetch, find, require, verify


def test_the_environment_names_the_folder_and_asking_creates_nothing(cache_folder: Path) -> None:
    assert cache_dir() == cache_folder
    assert not cache_folder.exists()


@pytest.mark.parametrize(
    ("system", "environment", "expected"),
    [
        ("Linux", {"XDG_CACHE_HOME": "{home}/xdg"}, "{home}/xdg/musetalk_enhance/weights"),
        ("Linux", {"XDG_CACHE_HOME": "relative"}, "{home}/.cache/musetalk_enhance/weights"),
        ("Linux", {}, "{home}/.cache/musetalk_enhance/weights"),
        ("Darwin", {}, "{home}/Library/Caches/musetalk_enhance/weights"),
        ("Windows", {"LOCALAPPDATA": "{home}/local"}, "{home}/local/musetalk_enhance/weights"),
        ("Windows", {}, "{home}/AppData/Local/musetalk_enhance/weights"),
    ],
)
def test_platforms(
    system: str,
    environment: dict[str, str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (cache.CACHE_ENV, "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(home=tmp_path))
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_dir() == Path(expected.format(home=tmp_path))


def test_an_empty_variable_is_none_and_a_tilde_is_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(cache.CACHE_ENV, "~/here")
    assert cache_dir() == tmp_path / "here"
    monkeypatch.setenv(cache.CACHE_ENV, "")
    assert cache_dir().name == "weights"


def test_no_home_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv(cache.CACHE_ENV)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(CacheError, match="MUSETALK_ENHANCE_CACHE"):
        cache_dir()


@pytest.mark.parametrize(
    ("text", "offline"), [("1", True), ("True", True), ("0", False), ("", False)]
)
def test_offline_by_environment(text: str, offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.OFFLINE_ENV, text)
    assert cache.is_offline() is offline
    assert cache.is_offline(not offline) is not offline


def put(folder: Path, data: bytes, name: str = "tiny.pth") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)
    return folder / name


def test_find_looks_at_the_size_alone(add: Callable[..., WeightEntry], cache_folder: Path) -> None:
    add()
    assert find("tiny") is None
    path = put(cache_folder, DATA[::-1])
    assert find("TINY.pth") == path
    put(cache_folder, DATA[:-1])
    assert find("tiny") is None


def test_require_hands_out_a_checked_weight(
    add: Callable[..., WeightEntry], cache_folder: Path
) -> None:
    entry = add()
    path = put(cache_folder, DATA)
    weight = require("tiny")
    assert (weight.path, weight.sha256, weight.entry) == (path, entry.sha256, entry)


def test_a_missing_weight_names_file_hash_command_and_folder(
    add: Callable[..., WeightEntry], cache_folder: Path
) -> None:
    entry = add("http://127.0.0.1:9/never-asked")
    with pytest.raises(MissingWeightError) as caught:
        require("tiny")
    for word in (
        "tiny.pth",
        entry.sha256,
        "musetalk-enhance weights fetch Tiny",
        str(cache_folder),
    ):
        assert word in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)
    assert caught.value.folder == cache_folder
    assert not cache_folder.exists(), "nothing is created by asking"


def test_offline_wins_over_download(
    add: Callable[..., WeightEntry], monkeypatch: pytest.MonkeyPatch, cache_folder: Path
) -> None:
    add("http://127.0.0.1:9/never-asked")
    monkeypatch.setenv(cache.OFFLINE_ENV, "1")
    with pytest.raises(MissingWeightError, match="offline"):
        require("tiny", download=True)
    with pytest.raises(MissingWeightError, match="offline"):
        fetch("tiny")
    path = put(cache_folder, DATA)
    assert require("tiny", download=True).path == path
    assert fetch("tiny") == path


def test_a_truncated_weight(add: Callable[..., WeightEntry], cache_folder: Path) -> None:
    add()
    put(cache_folder, DATA[:1000])
    with pytest.raises(
        CorruptWeightError, match=r"truncated: has 1000 bytes.*102400.*weights fetch Tiny"
    ):
        require("tiny")


def test_a_weight_of_the_right_size_with_another_hash(
    add: Callable[..., WeightEntry], cache_folder: Path
) -> None:
    entry = add()
    put(cache_folder, DATA[::-1])
    with pytest.raises(CorruptWeightError, match=f"has sha256 (?!{entry.sha256}).*{entry.sha256}"):
        require("tiny")


def test_a_file_that_changes_is_hashed_again(
    add: Callable[..., WeightEntry], cache_folder: Path
) -> None:
    add()
    path = put(cache_folder, DATA)
    require("tiny")
    stat = path.stat()
    path.write_bytes(DATA[::-1])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    with pytest.raises(CorruptWeightError):
        require("tiny")


def test_a_file_that_stays_is_hashed_once(
    add: Callable[..., WeightEntry], cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add()
    put(cache_folder, DATA)
    require("tiny")
    monkeypatch.setattr("hashlib.sha256", None)
    require("tiny")


def test_verify(add: Callable[..., WeightEntry], cache_folder: Path) -> None:
    add(name="Good", file="good.pth")
    add(name="Bad", file="bad.pth", data=DATA + b"1")
    add(name="Gone", file="gone.pth", data=DATA + b"2")
    put(cache_folder, DATA, "good.pth")
    put(cache_folder, DATA, "bad.pth")
    found = {result.name: result for result in verify()}
    assert {name: result.status for name, result in found.items()} == {
        "Good": "ok",
        "Bad": "corrupt",
        "Gone": "missing",
    }
    assert found["Bad"].detail.startswith("truncated: has 102400 bytes")
    assert "weights fetch Gone" in found["Gone"].detail
    assert found["Good"].path == cache_folder / "good.pth"
    assert [result.name for result in verify(["gone.pth"])] == ["Gone"]
    with pytest.raises(ConfigError):
        verify(["nobody"])


def test_a_folder_in_the_place_of_a_weight_is_no_weight(
    add: Callable[..., WeightEntry], cache_folder: Path
) -> None:
    add()
    (cache_folder / "tiny.pth").mkdir(parents=True)
    assert find("tiny") is None
    with pytest.raises(MissingWeightError):
        require("tiny")


@pytest.mark.parametrize("below", ["", "deep/er"])
def test_a_cache_path_that_is_a_file_or_below_one(
    below: str, add: Callable[..., WeightEntry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("http://127.0.0.1:9/never-asked")
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv(cache.CACHE_ENV, str(blocked / below))
    assert find("tiny") is None
    with pytest.raises(MissingWeightError):
        require("tiny")
    with pytest.raises(
        CacheError, match=r"cannot create the cache folder.*MUSETALK_ENHANCE_CACHE"
    ) as caught:
        fetch("tiny")
    assert isinstance(caught.value, OSError)
    assert "a file is in the place of a folder" in str(caught.value)


def test_a_file_changed_behind_its_time_is_read_again(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"one")
    stat, first = path.stat(), cache.sha256_of(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert cache.sha256_of(path) != first
