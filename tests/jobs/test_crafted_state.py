"""What somebody else wrote into the state of a job deletes, reads and writes nothing elsewhere."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path

import pytest

from musetalk_enhance.cli.video import summary
from musetalk_enhance.errors import EnhanceError, MediaError
from musetalk_enhance.jobs import VideoResult, restore_images, restore_video
from musetalk_enhance.jobs import video as video_module
from musetalk_enhance.jobs.manifest import (
    FOLDER,
    Manifest,
    digest,
    file_digest,
    is_relative_name,
    outputs_intact,
    read_json,
    state_path,
    write_json,
    write_state,
)
from musetalk_enhance.jobs.models import RunInfo
from musetalk_enhance.jobs.sidecar import read_head, write_sidecar
from tests.jobs.conftest import WHOLE, files, put
from tests.media.clips import make_film

UNIT = {"id": 0, "job": "job", "items": ["a.png"]}


def victim(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"precious")
    digest_of_file = file_digest(path)
    assert digest_of_file is not None
    return digest_of_file


@pytest.mark.parametrize(
    "name",
    [
        "/absolute",
        "../victim.txt",
        "restored/../../victim.txt",
        "restored/./../../victim.txt",
        "restored//../../victim.txt",
        "victim.txt",
        f"{FOLDER}/manifest.json",
        "restored",
        "restored/link/victim.txt",
        "restored/\0",
        "restored/\ud800",
        "",
        ".",
    ],
)
@pytest.mark.parametrize("action", ["undo", "forget", "other job"])
def test_names_that_lead_elsewhere_delete_nothing(tmp_path, name, action):
    out, outside = tmp_path / "out", tmp_path / "victim.txt"
    sha256 = victim(outside)
    victim(out / "victim.txt")
    (out / "restored").mkdir()
    (out / "restored/link").symlink_to(tmp_path)
    name = str(outside) if name == "/absolute" else name
    write_state(out, {"unit": UNIT, "items": [{"name": "a.png", "outputs": {name: sha256}}]})
    manifest = Manifest(out, {}, {}, [UNIT] if action == "undo" else [])
    assert manifest.state(UNIT) is None
    if action == "other job":
        manifest.units = [{**UNIT, "job": "another"}]
    manifest.undo(UNIT) if action == "undo" else manifest.forget()
    assert outside.read_bytes() == (out / "victim.txt").read_bytes() == b"precious"
    assert not state_path(out, UNIT).exists()


def test_an_honest_state_still_deletes_its_results(tmp_path):
    sha256 = victim(tmp_path / "restored/sub/a.png")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "restored/inside").symlink_to(tmp_path / "restored/sub")
    outputs = {"restored/inside/a.png": sha256}
    write_state(tmp_path, {"unit": UNIT, "items": [{"name": "a.png", "outputs": outputs}]})
    assert outputs_intact(tmp_path, Manifest(tmp_path, {}, {}, [UNIT]).state(UNIT))
    Manifest(tmp_path, {}, {}).forget()
    assert not (tmp_path / "restored/sub/a.png").exists()


@pytest.mark.parametrize("name", ["a", "a b/c.png", "..a/b..", "a:b", "ä", "x/\udcff.png"])
def test_plain_names(name):
    assert is_relative_name(name)


def test_the_state_itself_is_no_link(tmp_path, network):
    put(tmp_path / "in", "a.png")
    other = tmp_path / "other"
    for name in (FOLDER, f"{FOLDER}/units", f"{FOLDER}/lock"):
        out = tmp_path / f"out{name.count('/')}{name[-1]}"
        (out / name).parent.mkdir(parents=True)
        victim(other / "000001.json")
        (out / name).symlink_to(other if name != f"{FOLDER}/lock" else other / "000001.json")
        with pytest.raises(MediaError, match="is a link"):
            restore_images(tmp_path / "in", out, WHOLE)
        assert files(other) == {"000001.json": b"precious"}


def test_files_that_are_not_ours_stay_in_the_folder_of_states(tmp_path):
    victim(tmp_path / FOLDER / "units" / "notes.json")
    Manifest(tmp_path, {}, {}).forget()
    assert (tmp_path / FOLDER / "units" / "notes.json").exists()


def test_a_sidecar_is_not_written_through_a_link(tmp_path):
    victim(tmp_path / "victim.txt")
    (tmp_path / "film.json").symlink_to(tmp_path / "victim.txt")
    write_sidecar(tmp_path / "film.json", {"job": {}}, [])
    assert (tmp_path / "victim.txt").read_bytes() == b"precious"
    assert read_head(tmp_path / "film.json") == {"job": {}}


def test_json_that_breaks_parsers_is_damaged(tmp_path):
    for number, text in enumerate(("[" * 10**5, '{"a": ', '{"sha256": "", "x": 1e999}', "\xff")):
        path = tmp_path / FOLDER / "units" / f"{number:06d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("latin-1"))
        assert Manifest(tmp_path, {}, {}).state({"id": number}) is None
        (tmp_path / FOLDER / "manifest.json").write_bytes(text.encode("latin-1"))
        assert Manifest.load(tmp_path) is None
    head = '{"a": ' * 10**5 + ',\n "notes": [\n'
    (tmp_path / "a.json").write_text(head)
    assert read_head(tmp_path / "a.json") is None


def test_run_info_of_a_file_has_its_types():
    plain = {
        "model": "lite", "licence": "x", "weight_sha256": None, "fidelity": None,
        "backend": "torch",
        "dtype": "fp32", "device": "cpu", "batch_size": 1, "threads": 1, "helpers": {"a": None},
        "passed_over": [["gfpgan", "no weight"]],
    }  # fmt: skip
    assert RunInfo.of(plain) is not None
    wrong = {
        "model": 5, "backend": [], "batch_size": "8", "threads": 10**9, "helpers": [],
        "passed_over": [1], "fidelity": "x",
    }  # fmt: skip
    for name, value in wrong.items():
        assert RunInfo.of({**plain, name: value}) is None, name


def test_units_without_images_are_those_of_another_job(tmp_path, network):
    put(tmp_path / "in", "a.png")
    restore_images(tmp_path / "in", tmp_path / "out", WHOLE)
    manifest = Manifest.load(tmp_path / "out")
    del manifest.units[0]["items"]
    manifest.write()
    assert restore_images(tmp_path / "in", tmp_path / "out", WHOLE).errors == 0


VALUES = [
    None, True, -1, 0, 10**30, 0.5, "", "x", "../victim.txt", "/etc/passwd", "\0", "\ud800",
    [], ["../../victim.png"], [["a"]], {}, {"restored/../../victim.txt": "0"}, [{}],
    "restored/a.png",
]  # fmt: skip


def mutated(value, rng: random.Random):
    """A copy with one value, somewhere, replaced, removed or doubled."""
    value = copy.deepcopy(value)
    place = value
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return value
        key = rng.choice(keys)
        if isinstance(place[key], (dict, list)) and place[key] and rng.random() < 0.8:
            place = place[key]
            continue
        action = rng.random()
        if action < 0.7:
            place[key] = rng.choice(VALUES)
        elif action < 0.85:
            del place[key]
        elif isinstance(place, list):
            place.append(copy.deepcopy(place[key]))
        else:
            place[str(rng.choice(VALUES))] = place[key]
        return value


def test_fuzzed_states_and_manifests(tmp_path, network, pairs):
    """Whatever stands there, correctly signed: the run ends well or with an error of ours, and
    every file outside is as it was."""
    source, out = tmp_path / "in", tmp_path / "out"
    put(source, "a.png", "b.png", "sub/c.png")
    for name in ("victim.txt", "victim.png"):
        victim(tmp_path / name)
    restore_images(source, out, WHOLE)
    good = {name: data for name, data in files(out).items() if name.startswith("restored/")}
    manifest_path = out / FOLDER / "manifest.json"
    honest = {path: read_json(path) for path in sorted((out / FOLDER).rglob("*.json"))}
    outside = {name: data for name, data in files(tmp_path).items() if not name.startswith("out/")}
    for seed in range(80):
        rng = random.Random(seed)
        for path, value in honest.items():
            write_json(path, value)
        path = rng.choice(list(honest))
        for _ in range(rng.choice((1, 1, 3))):
            value = mutated(honest[path] if rng.random() < 0.8 else read_json(path), rng)
            signed(path, value, path == manifest_path)
        try:
            restore_images(source, out, WHOLE)
        except EnhanceError:
            continue
        left = {name: data for name, data in files(tmp_path).items() if not name.startswith("out/")}
        assert left == outside, seed
        restored = files(out)
        assert {name: restored.get(name) for name in good} == good, seed


def test_fuzzed_sidecars(tmp_path):
    """A JSON file beside a video either counts as damaged, or can be shown."""
    output = tmp_path / "out.mp4"
    output.write_bytes(b"video")
    totals = {
        "frames": 3, "restored": 2, "faces": 3, "faces_restored": 2, "faces_failed": 0,
        "faces_held": 0, "left": {"lost": 1}, "partial": {}, "passed_through": {"no face": 1},
        "mean_strength": 1.0, "mean_change": 0.5,
    }  # fmt: skip
    job = {
        "settings_sha256": digest({}), "output_sha256": file_digest(output),
        "settings": {"strength": 1.0}, "model_that_ran": {"model": "lite", "fidelity": None},
    }  # fmt: skip
    head = {"job": job, "totals": totals}
    assert video_module._is_done(output, head, {})
    accepted = 0
    for seed in range(400):
        other = mutated(head, random.Random(seed))
        if video_module._is_done(output, other, {}):
            result = VideoResult(output, other, 0.0, 0)
            assert result.errors == 0 and "restored by" in summary(result)
            accepted += 1
    assert 0 < accepted < 300


def test_segments_are_not_written_through_links(tmp_path):
    clip = make_film(tmp_path / "in.mp4", 4)
    for name in (".a.mp4.parts", ".b.mp4.parts/segments"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(tmp_path)
        with pytest.raises(MediaError, match="is a link"):
            restore_video(clip, tmp_path / f"{name[1]}.mp4")


def signed(path: Path, value, is_manifest: bool) -> None:
    value.pop("sha256", None)
    try:
        if is_manifest:
            parts = [value.get(name) for name in ("settings", "facts", "units", "source")]
            sha256 = digest(parts)
        else:
            sha256 = digest(value)
        text = json.dumps({**value, "sha256": sha256})
    except (TypeError, ValueError):
        text = "damaged"
    path.write_text(text)
