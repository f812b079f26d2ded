"""Files are written completely or not at all, and only regular ones are read."""

from __future__ import annotations

import os
import re

import pytest

from musetalk_enhance.errors import MediaError
from musetalk_enhance.runtime.files import AtomicFile, open_regular, temporary_path, write_bytes


def content(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_file_gets_its_name_at_the_end_of_the_block(tmp_path):
    target = tmp_path / "a.mp4"
    target.write_bytes(b"first")
    with AtomicFile(target, keep_extension=True) as part:
        part.write_bytes(b"second")
        assert part.parent == tmp_path and part.suffix == ".mp4" and target.read_bytes() == b"first"
    assert content(tmp_path) == {"a.mp4": b"second"}


def test_an_exception_removes_the_temporary_file_and_keeps_the_target(tmp_path):
    target = tmp_path / "a.png"
    target.write_bytes(b"first")
    with pytest.raises(KeyboardInterrupt), AtomicFile(target) as part:
        part.write_bytes(b"second")
        raise KeyboardInterrupt
    assert content(tmp_path) == {"a.png": b"first"}


def test_a_target_that_cannot_be_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError), AtomicFile(tmp_path / "folder") as part:
        part.write_bytes(b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_commit_and_discard_by_hand(tmp_path):
    file = AtomicFile(tmp_path / "a.png")
    file.discard()  # nothing was written
    file.path.write_bytes(b"x")
    file.commit()
    file.discard()
    assert content(tmp_path) == {"a.png": b"x"}


def test_names_of_temporary_files(tmp_path):
    short, named = (
        temporary_path(tmp_path / "a.mp4", keep_extension=keep) for keep in (False, True)
    )
    assert re.fullmatch(r"\.[0-9a-f]{32}\.part", short.name)
    assert re.fullmatch(r"\.[0-9a-f]{32}\.part\.mp4", named.name)
    assert temporary_path(tmp_path / "a.mp4") != short


def test_bytes_are_written_whole(tmp_path):
    write_bytes(tmp_path / "a.png", b"first")
    write_bytes(tmp_path / "a.png", b"second")
    assert content(tmp_path) == {"a.png": b"second"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_nothing_and_keeps_the_old_file(tmp_path, monkeypatch, error):
    names = []

    def fail(part, target):
        names.append(os.path.basename(part))
        raise error

    write_bytes(tmp_path / "a.png", b"old")
    monkeypatch.setattr(os, "replace", fail)
    expected = MediaError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        write_bytes(tmp_path / "a.png", b"new")
    assert names[0].startswith(".") and names[0].endswith(".part")
    assert content(tmp_path) == {"a.png": b"old"}
    if expected is MediaError:
        assert "No space left" in str(caught.value)


def test_places_that_cannot_be_written(tmp_path):
    with pytest.raises(MediaError, match="No such file or directory"):
        write_bytes(tmp_path / "none" / "a.png", b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(MediaError, match="cannot be written"):
        write_bytes(tmp_path / "folder", b"")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    write_bytes(tmp_path / ("n" * 250 + ".png"), b"")  # the temporary name must not be too long


def test_only_regular_files_are_read(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    with open_regular(tmp_path / "a") as file:
        assert file.read() == b"x"
    for path in (tmp_path, "/dev/null"):
        with pytest.raises(OSError, match="not a regular file"):
            open_regular(path)
