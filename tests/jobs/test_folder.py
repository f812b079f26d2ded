"""Which pictures a folder holds, in which units, and what their results are called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from musetalk_enhance.errors import ConfigError, MediaError
from musetalk_enhance.jobs import folder
from musetalk_enhance.jobs.folder import evenly, list_images, result_names, split_into_units
from musetalk_enhance.jobs.manifest import FOLDER

from .conftest import put


def test_pictures_are_listed_in_one_order(tmp_path):
    put(tmp_path, "b.png", "a.JPG", "sub/c.webp", ".hidden.png", ".folder/d.png", "out/e.png")
    (tmp_path / "notes.txt").write_text("no picture")
    assert list_images(tmp_path, skip=[tmp_path / "out"]) == ["a.JPG", "b.png", "sub/c.webp"]
    assert list_images(tmp_path / "b.png") == ["b.png"]


def test_linked_folders_are_followed_but_not_in_circles(tmp_path):
    source, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    put(source, "a.png", "sub/b.png")
    put(elsewhere, "c.png", "out/d.png")
    (source / "link").symlink_to(elsewhere)
    (source / "sub" / "up").symlink_to(source)
    (source / "above").symlink_to(tmp_path)
    (elsewhere / "back").symlink_to(source)
    (source / "lost").symlink_to(tmp_path / "missing")
    (source / "one").symlink_to(source / "other")
    (source / "other").symlink_to(source / "one")
    assert list_images(source, skip=[elsewhere / "out"]) == ["a.png", "link/c.png", "sub/b.png"]


def test_each_linked_folder_is_listed_once(tmp_path):
    source = tmp_path / "in"
    for name in "abc":
        put(tmp_path / name, f"{name}.png")
        for other in "abc":
            (tmp_path / name / f"to-{other}").symlink_to(tmp_path / other)
    put(source, "sub/d.png")
    (source / "first").symlink_to(tmp_path / "a")
    (source / "second").symlink_to(tmp_path / "a")
    (source / "third").symlink_to(source / "sub")
    names = ["first/a.png", "first/to-b/b.png", "first/to-c/c.png", "sub/d.png"]
    assert list_images(source) == names


def test_results_of_other_runs_are_no_inputs(tmp_path):
    put(
        tmp_path,
        "a.png",
        "sub/b.png",
        "sub/out/restored/b.png",
        "sub/out/mine.png",
        "out/sweep/a.png_strength.jpg",
    )
    put(
        tmp_path, "out/sweep/strength=1/restored/a.png", "out/c.png", "sweep/d.png", "sweep/e/f.png"
    )
    for name in ("sub/out", "out/sweep/strength=1"):
        memory = tmp_path / name / FOLDER
        memory.mkdir()
        (memory / "manifest.json").write_text("{}")
    assert list_images(tmp_path) == [
        "a.png",
        "out/c.png",
        "sub/b.png",
        "sweep/d.png",
        "sweep/e/f.png",
    ]
    assert list_images(tmp_path / "sub" / "out") == ["mine.png", "restored/b.png"], (
        "where it is asked for"
    )


def test_links_to_results_are_not_followed(tmp_path):
    source, output = tmp_path / "in", tmp_path / "out"
    put(source, "a.png")
    put(output, "restored/sub/a.png", "comparisons/a_compare.jpg", "mine/b.png")
    for name in ("restored", "restored/sub", "comparisons", "mine"):
        (source / name.replace("/", "-")).symlink_to(output / name)
    assert list_images(source, skip=[output]) == ["a.png", "mine/b.png"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    put(tmp_path, "a.png")
    error = PermissionError(13, "Permission denied", str(tmp_path))
    monkeypatch.setattr(folder.os, "walk", lambda *_, onerror, **__: onerror(error))
    with pytest.raises(MediaError, match="Permission denied"):
        list_images(tmp_path)


@pytest.mark.parametrize(
    ("name", "kind"), [("notes.txt", ConfigError), ("missing", MediaError), ("", ConfigError)]
)
def test_no_pictures(tmp_path, name, kind):
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(kind):
        list_images(tmp_path / name)


def test_names_are_kept():
    names = result_names(["a.jpg", "sub/b.PNG"], "keep")
    assert (
        names["a.jpg"].restored == "restored/a.jpg"
        and names["sub/b.PNG"].restored == "restored/sub/b.PNG"
    )
    assert names["sub/b.PNG"].comparison == "comparisons/sub/b_compare.jpg"
    assert result_names(["a.b.jpg"], "webp")["a.b.jpg"].restored == "restored/a.b.webp"
    same = result_names(["a.JPG", "a.jpg"], "keep")  # where capitals tell files apart
    assert [same[name].restored for name in same] == ["restored/a.JPG", "restored/a.jpg"]


HARD = [
    "a.jpg",
    "a.png",
    "a.jpg.png",
    "a.jpg.jpg",
    "A.JPG",
    "a.JPG.png",
    "a_.png",
    "a.jpg_.png",
    "sub/a.jpg",
    "sub/a.bmp",
]


@pytest.mark.parametrize("format", ["keep", "png", "jpg", "webp"])
def test_no_two_results_have_one_name(format):
    names = result_names(HARD, format)
    for kind in ("restored", "comparison"):
        paths = [getattr(names[name], kind) for name in HARD]
        assert len(set(paths)) == len(HARD), kind
        if kind == "comparison" or format != "keep":  # nor where capitals make no difference
            assert len({path.lower() for path in paths}) == len(HARD), kind
    again = result_names(HARD, format)
    assert again == names


def test_units_are_few_pictures_and_few_pixels(tmp_path, monkeypatch):
    names = [f"{index:02}.png" for index in range(12)]
    put(tmp_path, *names)
    assert [len(unit) for unit in split_into_units(tmp_path, names, 1)] == [8, 4]
    monkeypatch.setattr(folder, "MAX_PIXELS", 64 * 64 * 12)
    assert [len(unit) for unit in split_into_units(tmp_path, names, 1)] == [8, 4]
    assert [len(unit) for unit in split_into_units(tmp_path, names, 2)] == [3, 3, 3, 3]
    assert [len(unit) for unit in split_into_units(tmp_path, names, 4)] == [
        1
    ] * 12  # more than fits is a unit of its own
    (tmp_path / "03.png").write_text("no picture")
    assert [name for unit in split_into_units(tmp_path, names, 2) for name in unit] == names
    assert split_into_units(tmp_path, [], 1) == []


@pytest.mark.parametrize(
    ("count", "expected"), [(1, "f"), (2, "ch"), (3, "bfi"), (10, "abcdefghij"), (99, "abcdefghij")]
)
def test_samples_are_spread(count, expected):
    assert "".join(evenly("abcdefghij", count)) == expected


def test_the_root_of_names():
    assert folder.root_folder(Path(__file__)) == Path(__file__).parent
    assert folder.root_folder(Path(__file__).parent) == Path(__file__).parent


def test_a_sub_folder_that_cannot_be_read_is_listed(tmp_path, monkeypatch):
    """As root every folder can be read, so the answer of the system is made up."""
    (tmp_path / "shut").mkdir()
    (tmp_path / "a.png").write_bytes(b"x")
    scandir = os.scandir

    def refused(path):
        if os.fspath(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    troubles = []
    assert list_images(tmp_path, [], troubles) == ["a.png"]
    assert troubles == [("shut", "shut: cannot be read (Permission denied)")]
    with pytest.raises(MediaError, match="cannot be read"):
        list_images(tmp_path / "shut")
