"""What a job remembers is whole or not there, and nothing that it does not know is taken away."""

from __future__ import annotations

import json

import pytest

from musetalk_enhance.errors import ConfigError, MediaError
from musetalk_enhance.jobs import manifest as module
from musetalk_enhance.jobs.manifest import (
    FOLDER,
    Manifest,
    digest,
    discard,
    file_digest,
    locked,
    make_folder,
    outputs_intact,
    outputs_of,
    read_json,
    state_path,
    sweep_parts,
    write_begun,
    write_json,
    write_state,
)

UNIT = {"id": 3, "job": "settings", "items": ["a.png", "b.png"]}


def made(folder, name: str, data: bytes = b"data") -> dict[str, str]:
    """Write a result; name to sha256."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return {name: file_digest(path)}


def state(folder) -> dict:
    items = [
        {"name": name, "outputs": made(folder, f"restored/sub/{name}")} for name in UNIT["items"]
    ]
    return {"unit": UNIT, "items": items}


def test_digests():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
    with pytest.raises(ValueError, match="JSON"):
        digest(float("nan"))


def test_file_digest(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert (
        file_digest(tmp_path / "a")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    assert file_digest(tmp_path / "b") is None and file_digest(tmp_path) is None


def test_json_is_whole_or_nothing(tmp_path, monkeypatch):
    write_json(tmp_path / "sub" / "a.json", {"ä": [1, None]})
    assert (
        read_json(tmp_path / "sub" / "a.json") == {"ä": [1, None]}
        and read_json(tmp_path / "b") is None
    )

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(MediaError, match="No space left"):
        write_json(tmp_path / "sub" / "a.json", {"new": 1})
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["a.json"]
    assert read_json(tmp_path / "sub" / "a.json") == {"ä": [1, None]}


def test_a_manifest_comes_back(tmp_path):
    Manifest(tmp_path, {"strength": 0.5}, {"model": "lite", "threads": 2}, [UNIT]).write()
    found = Manifest.load(tmp_path)
    assert (found.settings, found.run_info, found.units) == (
        {"strength": 0.5},
        {"model": "lite", "threads": 2},
        [UNIT],
    )
    assert found.place == tmp_path / FOLDER and Manifest.load(tmp_path / "other") is None
    assert read_json(found.place / "manifest.json")["settings_sha256"] == digest({"strength": 0.5})


@pytest.mark.parametrize("name", ["version", "settings", "facts", "units", "sha256"])
def test_a_changed_manifest_is_none(tmp_path, name):
    Manifest(tmp_path, {"strength": 0.5}, {"model": "lite"}, [UNIT]).write()
    path = tmp_path / FOLDER / "manifest.json"
    raw = json.loads(path.read_text())
    for value in ({"other": 1}, [], None):
        path.write_text(json.dumps({**raw, name: value}))
        assert Manifest.load(tmp_path) is None
    path.write_text(json.dumps({key: value for key, value in raw.items() if key != name}))
    assert Manifest.load(tmp_path) is None


def test_differences_are_said():
    manifest = Manifest(None, {"a": 1, "b": 2, "gone": 3}, {})
    assert manifest.differences({"a": 1, "b": 5, "new": "x"}) == [
        "b: 2 then, 5 now", "gone: 3 then, None now", "new: None then, 'x' now"
    ]  # fmt: skip


def test_a_state_is_of_its_unit(tmp_path):
    manifest = Manifest(tmp_path, {}, {}, [UNIT])
    assert manifest.state(UNIT) is None
    write_state(tmp_path, state(tmp_path))
    assert manifest.state(UNIT) == state(tmp_path) and outputs_intact(tmp_path, state(tmp_path))
    assert (
        manifest.state({**UNIT, "items": ["a.png"]}) is None
        and manifest.state({**UNIT, "job": "other"}) is None
    )
    (tmp_path / "restored/sub/b.png").write_bytes(b"other")
    assert not outputs_intact(tmp_path, state_of(tmp_path))


def state_of(folder) -> dict:
    return Manifest(folder, {}, {}, [UNIT]).state(UNIT)


def test_a_unit_that_was_only_begun_is_not_done_but_can_be_undone(tmp_path):
    manifest = Manifest(tmp_path, {}, {}, [UNIT])
    outputs = made(tmp_path, "restored/a.png") | {"restored/b.png": "0" * 64}
    write_begun(tmp_path, UNIT, outputs)
    assert manifest.state(UNIT) is None
    manifest.undo(UNIT)
    assert not (tmp_path / "restored").exists() and not state_path(tmp_path, UNIT).exists()
    manifest.undo(UNIT)


def test_undoing_spares_what_changed_and_what_is_to_stay(tmp_path):
    write_state(tmp_path, state(tmp_path))
    made(tmp_path, "restored/sub/mine.txt")
    Manifest(tmp_path, {}, {}, [UNIT]).undo(UNIT, keep={"b.png"})
    assert sorted(path.name for path in (tmp_path / "restored/sub").iterdir()) == [
        "b.png",
        "mine.txt",
    ]
    write_state(tmp_path, state(tmp_path))
    (tmp_path / "restored/sub/a.png").write_bytes(b"edited")
    discard(tmp_path, state_of(tmp_path))
    assert sorted(path.name for path in (tmp_path / "restored/sub").iterdir()) == [
        "a.png",
        "mine.txt",
    ]
    discard(tmp_path, None)


def test_empty_folders_go_and_others_stay(tmp_path):
    discard(tmp_path, state(tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert tmp_path.is_dir()


def test_forgetting_takes_all_but_ones_own_units(tmp_path):
    other = {
        "unit": {"id": 7, "job": "old", "items": ["c.png"]},
        "items": [{"outputs": made(tmp_path, "restored/c.png")}],
    }
    write_state(tmp_path, state(tmp_path))
    write_state(tmp_path, other)
    (tmp_path / FOLDER / "units" / "000009.json").write_text("damaged")
    Manifest(tmp_path, {}, {}, [UNIT]).forget()
    assert [path.name for path in (tmp_path / FOLDER / "units").iterdir()] == ["000003.json"]
    assert not (tmp_path / "restored/c.png").exists() and (tmp_path / "restored/sub/a.png").exists()
    Manifest(tmp_path, {}, {}).forget()
    assert not (tmp_path / "restored").exists()


def test_outputs_of():
    some = {
        "items": [{"name": "a", "outputs": {"x": "1"}}, {"name": "b", "outputs": {"y": "2"}}, {}]
    }
    assert (
        outputs_of(some) == {"x": "1", "y": "2"}
        and outputs_of(some, {"a"}) == {"y": "2"}
        and outputs_of({}) == {}
    )


def test_only_unfinished_files_of_ours_are_swept(tmp_path):
    part = f".{'0' * 32}.part"
    for name in (
        part,
        f"restored/sub/{part}",
        f"{FOLDER}/units/{part}",
        f"input/{part}",
        "restored/.a.part",
        "b.part",
    ):
        made(tmp_path, name)
    sweep_parts(tmp_path, ["restored", "missing"])
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {f"input/{part}", "restored/.a.part", "b.part"}


def test_a_lock_is_held_once_and_given_back(tmp_path):
    with locked(tmp_path / "out"):
        with pytest.raises(ConfigError, match="no other run"), locked(tmp_path / "out"):
            pass
        with locked(tmp_path / "other"):
            pass
    with pytest.raises(KeyError), locked(tmp_path / "out"):
        raise KeyError
    with locked(tmp_path / "out"):
        pass


def test_folders_that_were_made_for_nothing_go_again(tmp_path):
    (tmp_path / "there").mkdir()
    with locked(tmp_path / "there" / "new" / "out"):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]
    with locked(tmp_path / "there" / "new" / "out"):
        (tmp_path / "there" / "new" / "mine").touch()
    assert {path.name for path in tmp_path.rglob("*")} == {"there", "new", "mine"}


def test_folders_that_cannot_be_made_or_locked(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MediaError, match="cannot be created"), locked(tmp_path / "file"):
        pass
    with pytest.raises(MediaError, match="cannot be created"):
        make_folder(tmp_path / "file" / "sub")
    with pytest.raises(MediaError, match="cannot be created"):
        write_json(tmp_path / "file" / "a.json", 1)
    (tmp_path / "out" / FOLDER / "lock").mkdir(parents=True)
    with pytest.raises(MediaError, match="cannot be locked"), locked(tmp_path / "out"):
        pass
    assert module.VERSION >= 2
