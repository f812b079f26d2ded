"""``musetalk-enhance weights``: what it prints and which exit code it gives."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from weights_server import DATA, OTHER, Server

from musetalk_enhance.cli import weights as cli
from musetalk_enhance.errors import (
    CacheError,
    CheckpointError,
    ConfigError,
    DownloadError,
    MissingWeightError,
)
from musetalk_enhance.weights import WeightEntry, cache

Add = Callable[..., WeightEntry]


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return cli.run(parser.parse_args(words))


def put(folder: Path, data: bytes, name: str = "tiny.pth") -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(data)


def test_list_shows_the_real_table(capsys: pytest.CaptureFixture[str], cache_folder: Path) -> None:
    assert run("list") == 0
    out = capsys.readouterr().out
    for word in ("GFPGANv1.4", "348.6 MB", "missing", "S-Lab License 1.0", str(cache_folder)):
        assert word in out


def test_list_knows_what_is_there(
    add: Add, capsys: pytest.CaptureFixture[str], cache_folder: Path
) -> None:
    for name in ("Good", "Short", "Gone"):
        add(name=name, file=f"{name}.pth", data=DATA + name.encode())
    put(cache_folder, DATA + b"Good", "Good.pth")
    put(cache_folder, DATA, "Short.pth")
    assert run("list", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["state"]) for row in rows] == [
        ("Good", "present"),
        ("Short", "wrong size"),
        ("Gone", "missing"),
    ]
    assert rows[0]["sources"] == ["here", "there"]
    assert rows[0]["path"] == str(cache_folder / "Good.pth")


def test_path(add: Add, capsys: pytest.CaptureFixture[str], cache_folder: Path) -> None:
    add()
    assert run("path") == 0
    assert capsys.readouterr().out.strip() == str(cache_folder)
    assert run("path", "tiny") == 1
    out, err = capsys.readouterr()
    assert out.strip() == str(cache_folder / "tiny.pth")
    assert "missing; fetch it with `musetalk-enhance weights fetch Tiny`" in err
    put(cache_folder, DATA)
    assert run("path", "tiny.pth") == 0
    assert capsys.readouterr().err == ""


def test_fetch(
    server: Server, add: Add, capsys: pytest.CaptureFixture[str], cache_folder: Path
) -> None:
    add(server.add("/tiny.pth", DATA))
    assert run("fetch", "tiny", "--quiet") == 0
    out, err = capsys.readouterr()
    assert out == f"Tiny: {cache_folder / 'tiny.pth'} (license: MIT)\n"
    assert err == ""
    assert run("fetch", "tiny") == 0
    assert len(server.log) == 1
    assert run("fetch", "tiny", "--force", "--quiet") == 0
    assert len(server.log) == 2


def test_fetch_from_a_mirror(server: Server, add: Add) -> None:
    add()
    server.add("/m/tiny.pth", DATA)
    assert (
        run(
            "fetch",
            "tiny",
            "--quiet",
            "--mirror",
            f"{server.base}/none",
            "--mirror",
            f"{server.base}/m",
        )
        == 0
    )


def test_fetch_offline(server: Server, add: Add) -> None:
    add(server.add("/tiny.pth", DATA))
    with pytest.raises(MissingWeightError, match="offline"):
        run("fetch", "tiny", "--offline")
    assert server.log == []


def test_fetch_all_goes_on_after_a_failure(
    server: Server, add: Add, capsys: pytest.CaptureFixture[str]
) -> None:
    add(server.add("/a.pth", OTHER), name="A", file="a.pth")
    add(server.add("/b.pth", DATA), name="B", file="b.pth")
    add(server.base + "/c.pth", name="C", file="c.pth", data=DATA + b"c")
    with pytest.raises(DownloadError, match=r"c\.pth"):
        run("fetch", "all", "--quiet")
    out, err = capsys.readouterr()
    assert out.startswith("B: ")
    assert err.startswith("error: ") and "/a.pth" in err


def test_fetch_stops_at_a_cache_that_cannot_be_written(
    server: Server, add: Add, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(server.add("/tiny.pth", DATA))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(cache.CACHE_ENV, str(tmp_path / "file"))
    with pytest.raises(CacheError):
        run("fetch", "tiny", "--quiet")


def test_unknown_names_are_refused_before_anything_is_fetched(server: Server, add: Add) -> None:
    add(server.add("/tiny.pth", DATA))
    for words in (("fetch", "tiny", "tinny"), ("path", "tinny"), ("verify", "tinny")):
        with pytest.raises(
            ConfigError, match=r"invalid value 'tinny'; expected one of Tiny.*Did you mean 'tiny'"
        ):
            run(*words)
    assert server.log == []


def test_verify(add: Add, capsys: pytest.CaptureFixture[str], cache_folder: Path) -> None:
    add()
    add(name="Second", file="second.pth", data=DATA + b"2")
    assert run("verify") == 1, "nothing there at all"
    put(cache_folder, DATA)
    assert run("verify") == 0, "what was never fetched is no failure"
    assert run("verify", "tiny", "second") == 1, "what was asked for by name is"
    assert run("verify", "tiny") == 0
    put(cache_folder, OTHER, "second.pth")
    capsys.readouterr()
    assert run("verify") == 1
    assert "corrupt" in capsys.readouterr().out
    assert run("verify", "--json") == 1
    rows = json.loads(capsys.readouterr().out)
    assert [row["status"] for row in rows] == ["ok", "corrupt"]


def test_import(
    add: Add, tmp_path: Path, capsys: pytest.CaptureFixture[str], cache_folder: Path
) -> None:
    add()
    (tmp_path / "x.pth").write_bytes(DATA)
    assert run("import", str(tmp_path / "x.pth")) == 0
    assert str(cache_folder / "tiny.pth") in capsys.readouterr().out
    with pytest.raises(CheckpointError):
        (tmp_path / "y.pth").write_bytes(OTHER)
        run("import", str(tmp_path / "y.pth"))


def test_a_command_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("--help")
    printed = " ".join(capsys.readouterr().out.split())
    assert "fails if one is corrupt or, without NAME, if there is none" in printed, (
        "as test_verify has it"
    )
    with pytest.raises(SystemExit):
        run()
    assert "COMMAND" in capsys.readouterr().err
    assert cli.HELP and "\n" not in cli.HELP
