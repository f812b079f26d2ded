"""Fetching, against a real server that dies, lies, stalls and knows no Range."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from weights_server import DATA, OTHER, Resource, Server

from musetalk_enhance.errors import CacheError, ConfigError, DownloadError, EnhanceError
from musetalk_enhance.weights import WeightEntry, download, fetch, require, transport

Add = Callable[..., WeightEntry]


def quiet(name: str = "tiny", **options: Any) -> Path:
    return fetch(name, progress=False, **options)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def test_fetch_checks_renames_and_asks_once(server: Server, add: Add, cache_folder: Path) -> None:
    add(server.add("/tiny.pth", DATA))
    path = quiet()
    assert path == cache_folder / "tiny.pth"
    assert path.read_bytes() == DATA
    assert files(cache_folder) == {"tiny.pth"}
    assert quiet() == path
    assert len(server.log) == 1


def test_require_downloads_only_when_told(server: Server, add: Add) -> None:
    add(server.add("/tiny.pth", DATA))
    with pytest.raises(FileNotFoundError):
        require("tiny")
    assert server.log == []
    assert require("tiny", download=True).path.read_bytes() == DATA


def test_a_broken_file_in_the_cache_is_replaced(
    server: Server, add: Add, cache_folder: Path
) -> None:
    add(server.add("/tiny.pth", DATA))
    cache_folder.mkdir()
    (cache_folder / "tiny.pth").write_bytes(OTHER)
    assert require("tiny", download=True).path.read_bytes() == DATA


def test_force_downloads_again_from_the_first_byte(
    server: Server, add: Add, cache_folder: Path
) -> None:
    add(server.add("/tiny.pth", DATA))
    quiet()
    (cache_folder / "tiny.pth.part").write_bytes(DATA[:500])
    quiet(force=True)
    assert [request.range for request in server.log] == [None, None]
    assert server.sent == 2 * len(DATA)


def test_force_without_a_connection_says_that_the_file_is_there(
    server: Server, add: Add, cache_folder: Path
) -> None:
    add(server.add("/tiny.pth", DATA))
    path = quiet()
    with pytest.raises(ConfigError, match="offline mode: the weight is in the cache"):
        quiet(force=True, offline=True)
    assert path.read_bytes() == DATA and len(server.log) == 1


def test_a_part_is_gone_on_with(server: Server, add: Add, cache_folder: Path) -> None:
    add(server.add("/tiny.pth", DATA))
    cache_folder.mkdir()
    (cache_folder / "tiny.pth.part").write_bytes(DATA[:60_000])
    assert quiet().read_bytes() == DATA
    assert [request.range for request in server.log] == ["bytes=60000-"]
    assert server.sent == len(DATA) - 60_000


def test_a_server_that_dies_is_asked_for_the_rest(server: Server, add: Add) -> None:
    add(server.add("/tiny.pth", Resource(DATA, die_after=[30_000, 20_000])))
    assert quiet().read_bytes() == DATA
    assert [request.range for request in server.log] == [None, "bytes=30000-", "bytes=50000-"]
    assert server.sent == len(DATA)


def test_a_server_that_dies_for_good_leaves_the_part_for_the_next_address(
    server: Server, add: Add
) -> None:
    dying = Resource(DATA, die_after=[50_000] + [0] * 20)
    add(server.add("/dying.pth", dying), server.add("/tiny.pth", DATA))
    assert quiet().read_bytes() == DATA
    assert [request.path for request in server.log] == ["/dying.pth"] * (download.RETRIES + 1) + [
        "/tiny.pth"
    ]
    assert server.log[-1].range == "bytes=50000-"
    assert server.sent == len(DATA)


def test_what_came_is_kept_for_the_next_run(server: Server, add: Add, cache_folder: Path) -> None:
    resource = Resource(DATA, die_after=[50_000] + [0] * 20)
    add(server.add("/tiny.pth", resource))
    with pytest.raises(DownloadError, match="ended after 50000 of 102400 bytes"):
        quiet()
    assert (cache_folder / "tiny.pth.part").stat().st_size == 50_000
    resource.die_after.clear()
    assert quiet().read_bytes() == DATA
    assert server.sent == len(DATA)


def test_a_server_without_range_starts_anew(server: Server, add: Add, cache_folder: Path) -> None:
    add(server.add("/tiny.pth", Resource(DATA, ranges=False)))
    cache_folder.mkdir()
    (cache_folder / "tiny.pth.part").write_bytes(b"x" * 60_000)
    assert quiet().read_bytes() == DATA
    assert [request.range for request in server.log] == ["bytes=60000-"]
    assert server.sent == len(DATA)


def test_a_server_without_length(server: Server, add: Add) -> None:
    add(server.add("/tiny.pth", Resource(DATA, say_length=False)))
    assert quiet().read_bytes() == DATA


def test_a_part_longer_than_the_file_is_thrown_away(
    server: Server, add: Add, cache_folder: Path
) -> None:
    add(server.add("/tiny.pth", DATA))
    cache_folder.mkdir()
    (cache_folder / "tiny.pth.part").write_bytes(DATA + b"more")
    assert quiet().read_bytes() == DATA
    assert [request.range for request in server.log] == [None]


def test_a_whole_part_needs_no_connection(server: Server, add: Add, cache_folder: Path) -> None:
    add(server.add("/tiny.pth", DATA))
    cache_folder.mkdir()
    (cache_folder / "tiny.pth.part").write_bytes(DATA)
    assert quiet().read_bytes() == DATA
    assert server.log == []


def test_a_part_with_wrong_bytes_is_found_out_and_the_server_not_blamed(
    server: Server, add: Add, cache_folder: Path
) -> None:
    add(server.add("/tiny.pth", DATA))
    cache_folder.mkdir()
    (cache_folder / "tiny.pth.part").write_bytes(OTHER[:60_000])
    assert quiet().read_bytes() == DATA
    assert [request.range for request in server.log] == ["bytes=60000-", None]


def test_a_mirror_with_another_file_is_left_and_named(
    server: Server, add: Add, cache_folder: Path
) -> None:
    add(server.add("/real/tiny.pth", DATA))
    server.add("/bad/tiny.pth", OTHER)
    assert quiet(mirrors=[f"{server.base}/bad/"]).read_bytes() == DATA
    assert [(request.path, request.range) for request in server.log] == [
        ("/bad/tiny.pth", None),
        ("/real/tiny.pth", None),
    ]
    assert files(cache_folder) == {"tiny.pth"}


def test_when_nobody_has_it_every_address_is_named_with_its_reason(
    server: Server, add: Add, cache_folder: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}/tiny.pth"
    urls = [
        server.add("/wrong.pth", OTHER),
        server.base + "/gone.pth",
        server.add("/page", Resource(b"<html>Sign in</html>", kind="text/html")),
        server.add(
            "/chunked-page", Resource(b"<html>!</html>", kind="text/html", say_length=False)
        ),
        server.add("/short.pth", DATA[:100]),
        server.add("/long.pth", Resource(DATA + b"!", say_length=False)),
        server.add("/busy.pth", Resource(b"", status=503)),
        server.add("/zipped.pth", Resource(DATA, headers={"Content-Encoding": "gzip"})),
        server.add(
            "/ftp.pth", Resource(b"", status=302, headers={"Location": "ftp://127.0.0.1/tiny.pth"})
        ),
        closed,
    ]
    entry = add(*urls)
    with pytest.raises(DownloadError) as caught:
        quiet()
    text = str(caught.value)
    reasons = [line.strip() for line in text.splitlines() if line.startswith("  ")]
    assert [line.split(": ")[0] for line in reasons] == urls
    for line, word in zip(
        reasons,
        [
            "sha256",
            "HTTP 404",
            "HTML page",
            "HTML page",
            "has a file of 100 bytes, the published one has 102400",
            "sends more than the 102400 bytes",
            "HTTP 503",
            "gzip",
            "ftp",
            "cannot be reached",
        ],
        strict=True,
    ):
        assert word in line
    for word in (entry.sha256, "weights import FILE", "MUSETALK_ENHANCE_MIRROR"):
        assert word in text
    assert isinstance(caught.value, ConnectionError)
    assert caught.value.url == urls[0]
    assert "tiny.pth" not in files(cache_folder)


def test_a_wrong_hash_leaves_no_part(server: Server, add: Add, cache_folder: Path) -> None:
    add(server.add("/tiny.pth", OTHER))
    with pytest.raises(DownloadError):
        quiet()
    assert files(cache_folder) == set()
    assert len(server.log) == 1, "not asked twice for bytes that were all its own"


def test_an_error_page_does_not_cost_the_part(server: Server, add: Add, cache_folder: Path) -> None:
    add(server.add("/tiny.pth", Resource(b"<html>502</html>", kind="text/html", ranges=False)))
    cache_folder.mkdir()
    (cache_folder / "tiny.pth.part").write_bytes(DATA[:60_000])
    with pytest.raises(DownloadError, match="HTML page"):
        quiet()
    assert (cache_folder / "tiny.pth.part").read_bytes() == DATA[:60_000]


def test_a_shorter_file_on_the_server_does_not_cost_the_part(
    server: Server, add: Add, cache_folder: Path
) -> None:
    add(server.add("/short.pth", DATA[:100]), server.add("/tiny.pth", DATA))
    cache_folder.mkdir()
    (cache_folder / "tiny.pth.part").write_bytes(DATA[:60_000])
    assert quiet().read_bytes() == DATA
    assert [(request.path, request.range) for request in server.log] == [
        ("/short.pth", "bytes=60000-"),  # 416
        ("/short.pth", None),
        ("/tiny.pth", "bytes=60000-"),
    ]


def test_a_busy_server_is_asked_again(
    server: Server, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = Resource(DATA, status=503)
    add(server.add("/tiny.pth", resource))
    pauses: list[float] = []

    def recover(seconds: float) -> None:
        pauses.append(seconds)
        resource.status = 200

    monkeypatch.setattr(download, "PAUSE_S", 0.5)
    monkeypatch.setattr(time, "sleep", recover)
    assert quiet().read_bytes() == DATA
    assert pauses == [1.0]


def test_a_server_that_stalls_times_out(
    server: Server, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "TIMEOUT_S", 0.2)
    stalled = Resource(DATA, hold_after=40_000)
    add(server.add("/stalled.pth", stalled), server.add("/tiny.pth", DATA))
    monkeypatch.setattr(download, "RETRIES", 0)
    assert quiet().read_bytes() == DATA
    assert server.log[-1].range == "bytes=40000-"


def test_a_redirect_keeps_the_range(server: Server, add: Add, cache_folder: Path) -> None:
    server.add("/cdn/tiny.pth", DATA)
    moved = Resource(b"", status=302, headers={"Location": f"{server.base}/cdn/tiny.pth"})
    add(server.add("/tiny.pth", moved))
    cache_folder.mkdir()
    (cache_folder / "tiny.pth.part").write_bytes(DATA[:60_000])
    assert quiet().read_bytes() == DATA
    assert server.log[-1].range == "bytes=60000-"


def test_mirrors_of_argument_and_environment_in_order(
    server: Server, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(server.add("/real.pth", DATA))
    monkeypatch.setenv(download.MIRROR_ENV, f" {server.base}/b/ ,{server.base}/c,")
    quiet(mirrors=[f"{server.base}/a"])
    assert [request.path for request in server.log] == [
        "/a/tiny.pth",
        "/b/tiny.pth",
        "/c/tiny.pth",
        "/real.pth",
    ]


@pytest.mark.parametrize(
    "mirror", ["file:///tmp", "ftp://host/x", "host/x", "http://", "http://[::1"]
)
def test_a_mirror_that_is_no_web_address(mirror: str, server: Server, add: Add) -> None:
    add(server.add("/tiny.pth", DATA))
    with pytest.raises(
        ConfigError, match=r"mirror: invalid value .* expected the http:// or https://"
    ):
        quiet(mirrors=[mirror])
    assert server.log == []


def test_a_file_url_is_never_opened(add: Add, tmp_path: Path) -> None:
    (tmp_path / "tiny.pth").write_bytes(DATA)
    add((tmp_path / "tiny.pth").as_uri())
    with pytest.raises(DownloadError, match="unknown url type: file"):
        quiet()


def test_an_address_nobody_can_parse(add: Add) -> None:
    add("http://127.0.0.1:port/tiny.pth", "http://a b/tiny.pth")
    with pytest.raises(DownloadError, match=r"(?s)port.*cannot be reached.*a b.*cannot be reached"):
        quiet()


def test_no_addresses_at_all(add: Add) -> None:
    add()
    with pytest.raises(DownloadError, match="no address provides tiny.pth"):
        quiet()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk(server: Server, add: Add, cache_folder: Path) -> None:
    add(server.add("/tiny.pth", DATA))
    cache_folder.mkdir()
    (cache_folder / "tiny.pth.part").symlink_to("/dev/full")
    with pytest.raises(CacheError, match=r"the disk is full.*MUSETALK_ENHANCE_CACHE"):
        quiet()
    assert "tiny.pth" not in files(cache_folder)


def test_too_little_room_is_said_before_the_download(
    server: Server, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(server.add("/tiny.pth", DATA))
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(
        CacheError, match=r"the disk is full: tiny.pth needs 0.1 MB more, 0.0 MB are free"
    ):
        quiet()
    assert server.log == []


def test_a_folder_in_the_place_of_the_part_or_the_file(
    server: Server, add: Add, cache_folder: Path
) -> None:
    add(server.add("/tiny.pth", DATA))
    (cache_folder / "tiny.pth").mkdir(parents=True)
    with pytest.raises(CacheError, match="cannot put the download into the cache"):
        quiet()
    (cache_folder / "tiny.pth.part").unlink()
    (cache_folder / "tiny.pth.part").mkdir()
    with pytest.raises(EnhanceError):
        quiet()


def test_without_file_locks_the_part_is_our_own(
    server: Server, add: Add, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import filelock

    def no_locks(self: object, timeout: float | None = None) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(filelock.FileLock, "acquire", no_locks)
    add(server.add("/tiny.pth", DATA))
    cache_folder.mkdir()
    (cache_folder / "tiny.pth.part").write_bytes(OTHER[:50])
    assert quiet().read_bytes() == DATA
    assert files(cache_folder) == {"tiny.pth", "tiny.pth.part"}


def test_the_bar_is_drawn_on_stderr_only_when_asked(
    server: Server, add: Add, capsys: pytest.CaptureFixture[str]
) -> None:
    add(server.add("/tiny.pth", DATA))
    quiet()
    assert capsys.readouterr() == ("", "")
    fetch("tiny", force=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "tiny.pth" in err and "100%" in err


def test_no_bar_where_there_is_no_stderr(server, add, monkeypatch) -> None:
    add(server.add("/tiny.pth", DATA))
    monkeypatch.setattr("sys.stderr", None)
    assert download.fetch("tiny").read_bytes() == DATA
