"""Folders of pictures: every input has its result, and a run that was stopped ends with the same
files."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from musetalk_enhance.errors import ConfigError, MediaError, WeightError
from musetalk_enhance.jobs import LocalEngine, image_processor, images, model_loader, restore_images
from musetalk_enhance.jobs.images import STATS
from musetalk_enhance.jobs.manifest import FOLDER, locked
from musetalk_enhance.runtime.files import write_bytes
from tests.conftest import ROOT

from .conftest import ADDED, WHOLE, files, picture, put, read

NAMES = ("a.png", "b.jpg", "c.png", "sub/d.png", "sub/e.webp", "sub/deep/f.png", "z.png")
LOGGER = "musetalk_enhance"


@pytest.fixture
def folders(tmp_path):
    source = tmp_path / "in"
    put(source, *NAMES)
    return source, tmp_path / "out"


def test_every_picture_is_restored_and_keeps_its_name(network, folders):
    source, output = folders
    result = restore_images(source, output, WHOLE)
    assert set(files(output)) == {STATS, *(f"restored/{name}" for name in NAMES)}
    for name in ("a.png", "sub/deep/f.png"):
        assert (
            np.abs(read(output / "restored" / name).astype(int) - read(source / name) - ADDED).max()
            <= 1
        )
    assert (result.errors, result.resumed, result.output) == (0, 0, output)
    stats = json.loads((output / STATS).read_text())
    assert stats == result.stats
    assert stats["pictures"] == {
        "all": 7, "with_restored_faces": 7, "without_restored_face": 0, "failed": 0,
        "unreadable": 0,
        "unreadable_folders": 0, "skipped": 0,
    }  # fmt: skip
    faces = stats["faces"]
    assert faces["found"] == faces["restored"] == 7 and faces["left"] == faces["partial"] == {}
    assert faces["mean_strength"] == 1 and abs(faces["mean_change"] - ADDED) <= 1
    assert stats["errors"] == []
    assert (
        stats["model_that_ran"]["model"] == "fake" and stats["settings"]["face_detector"] == "none"
    )
    assert [item["name"] for item in stats["items"]] == sorted(NAMES)
    assert network.closed and network.opened == 1 and network.faces == 7


def test_comparisons_show_before_beside_after(network, folders):
    source, output = folders
    restore_images(source, output, WHOLE.replace(save_comparison=True))
    compared = sorted(path for path in files(output) if path.startswith("comparisons/"))
    assert compared == sorted(
        f"comparisons/{name[: name.rindex('.')]}_compare.jpg" for name in NAMES
    )
    sheet = read(output / "comparisons" / "a_compare.jpg").astype(int)
    before, after = read(source / "a.png"), read(output / "restored" / "a.png")
    columns = sheet[-32]
    assert abs(columns[: sheet.shape[1] // 2].max() - int(before.max())) < 8
    assert abs(columns[sheet.shape[1] // 2 + 20 :].max() - int(after.max())) < 8


@pytest.mark.parametrize("upscale", [1, 2, 4])
@pytest.mark.parametrize("detector", ["none", "yunet"])
def test_upscale_is_the_size_of_what_is_written(network, folders, upscale, detector):
    source, output = folders
    result = restore_images(
        source,
        output,
        WHOLE.replace(
            face_detector=detector, upscale=upscale, min_face=32 if detector == "none" else 0
        ),
    )
    sizes = {read(output / "restored" / name).shape[:2] for name in NAMES}
    assert sizes == {(64 * upscale, 64 * upscale)}
    assert {tuple(item["size_wh"]) for item in result.stats["items"]} == sizes


def test_pictures_without_a_face_are_copied_byte_for_byte(network, tmp_path):
    source, output = tmp_path / "in", tmp_path / "out"
    put(source, "face.jpg", "none.jpg")
    blue = np.full((64, 64, 3), (200, 20, 20), np.uint8)
    (source / "none.jpg").write_bytes(cv2.imencode(".jpg", blue)[1].tobytes() + b"trailing bytes")
    settings = WHOLE.replace(face_detector="yunet", min_face=0)
    result = restore_images(source, output, settings)
    assert (output / "restored/none.jpg").read_bytes() == (source / "none.jpg").read_bytes()
    assert result.stats["pictures"]["without_restored_face"] == 1 and result.errors == 0
    again = restore_images(source, tmp_path / "png", settings.replace(format="png"))
    assert (
        np.array_equal(read(tmp_path / "png/restored/none.png"), read(source / "none.jpg"))
        and again.errors == 0
    )
    restore_images(source, tmp_path / "large", settings.replace(upscale=2))
    assert read(tmp_path / "large/restored/none.jpg").shape == (128, 128, 3)


def test_odd_names(network, tmp_path):
    source, output = tmp_path / "in", tmp_path / "out"
    names = [
        "Ünï cödé 顔.png",
        "UPPER.PNG",
        "Upper.JPeG",
        "two.dots.jpg",
        " space .png",
        "-dash.png",
        "a%d.png",
        "x.jfif",
    ]
    put(source, *names, ".hidden.png", ".folder/in.png")
    (source / "notes.txt").write_text("no picture")
    (source / os.fsdecode(b"latin\xe4.png")).write_bytes((source / "-dash.png").read_bytes())
    put(tmp_path / "elsewhere", "linked.png")
    (source / "link.png").symlink_to(tmp_path / "elsewhere" / "linked.png")
    names += ["link.png", os.fsdecode(b"latin\xe4.png")]
    result = restore_images(source, output, WHOLE)
    assert {path.name for path in (output / "restored").iterdir()} == set(
        names
    ) and result.errors == 0
    assert not (output / "restored/link.png").is_symlink()
    assert (output / "restored/UPPER.PNG").read_bytes()[:4] == b"\x89PNG"
    assert restore_images(source, output, WHOLE).resumed == len(names)


def test_results_of_one_name_are_told_apart(network, tmp_path):
    source, output = tmp_path / "in", tmp_path / "out"
    put(source, "a.jpg", "a.png", "b.png")
    restore_images(source, output, WHOLE.replace(format="png", save_comparison=True))
    assert set(files(output)) == {
        STATS, "restored/a.jpg.png", "restored/a.png.png", "restored/b.png",
        "comparisons/a.jpg_compare.jpg",
        "comparisons/a.png_compare.jpg", "comparisons/b_compare.jpg",
    }  # fmt: skip
    for name in ("a.jpg", "a.png"):
        made = read(output / f"restored/{name}.png").astype(int)
        assert np.abs(made - read(source / name) - ADDED).max() <= 1


def test_only_people_on_a_photo(network, tmp_path, monkeypatch, caplog):
    class Recognizer:
        """Tells dark pictures from bright ones."""

        weight_name = "sface"

        def __init__(self, download):
            assert not download

        def embed(self, image_bgr, face):
            return np.array((1, 0) if image_bgr.mean() < 50 else (0, 1), np.float32)

    monkeypatch.setattr(model_loader, "SFace", Recognizer)
    source, output, photo = tmp_path / "in", tmp_path / "out", tmp_path / "photo.png"
    put(source, "dark.png", "bright.png")
    cv2.imwrite(str(photo), picture(10))
    settings = WHOLE.replace(face_detector="yunet", min_face=8, face=photo)
    faces = restore_images(source, output, settings).stats["faces"]
    assert (faces["found"], faces["restored"], faces["left"]) == (2, 1, {"not selected": 1})
    assert not np.array_equal(read(output / "restored/dark.png"), read(source / "dark.png"))
    assert np.array_equal(read(output / "restored/bright.png"), read(source / "bright.png"))
    assert restore_images(source, output, settings).resumed == 2
    cv2.imwrite(str(photo), picture(150))
    faces = restore_images(source, output, settings).stats["faces"]
    assert faces["restored"] == 1 and "starting over" in caplog.text
    assert np.array_equal(read(output / "restored/dark.png"), read(source / "dark.png"))


def test_a_picture_that_comes_later_may_change_a_name(network, tmp_path):
    source, output = tmp_path / "in", tmp_path / "out"
    put(source, "a.jpg")
    settings = WHOLE.replace(format="png")
    restore_images(source, output, settings)
    assert "restored/a.png" in files(output)
    put(source, "a.png")
    restore_images(source, output, settings)
    assert set(files(output)) == {STATS, "restored/a.jpg.png", "restored/a.png.png"}


def test_alpha_is_kept(network, tmp_path):
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    alpha = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    rgba = np.dstack((picture(50), alpha))
    cv2.imwrite(str(source / "a.png"), rgba)
    restore_images(source, output, WHOLE)
    made = read(output / "restored/a.png")
    assert made.shape == (64, 64, 4) and np.array_equal(made[..., 3], alpha)
    assert np.abs(made[..., :3].astype(int) - rgba[..., :3] - ADDED).max() <= 1
    restore_images(source, output, WHOLE.replace(upscale=2))
    assert read(output / "restored/a.png").shape == (128, 128, 4)


def test_exif_orientation_is_honoured_once(network, tmp_path):
    """A picture that lies on its side stands upright, and its tag says so."""
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    lying = Image.fromarray(picture(60, (48, 96)))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    lying.save(source / "a.jpg", exif=exif, quality=95)
    restore_images(source, output, WHOLE)
    made = Image.open(output / "restored/a.jpg")
    assert (
        made.size == (48, 96)
        and made.getexif().get(0x0112, 1) == 1
        and made.getexif()[0x010F] == "camera"
    )
    upright = np.asarray(lying.transpose(Image.Transpose.ROTATE_270)).astype(int)
    assert np.abs(np.asarray(made).astype(int) - upright - ADDED).mean() < 3


def test_what_cannot_be_read_is_listed_and_stops_nothing(network, tmp_path, monkeypatch):
    source, output = tmp_path / "in", tmp_path / "out"
    put(source, "good.png", "zgood.jpg")
    cv2.imwrite(str(source / "deep.png"), np.full((64, 64, 3), 3000, np.uint16))
    (source / "empty.jpg").write_bytes(b"")
    (source / "text.jpg").write_text("this is no picture")
    (source / "cut.png").write_bytes((source / "good.png").read_bytes()[:-60])
    (source / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    result = restore_images(source, output, WHOLE)
    bad = {"deep.png", "empty.jpg", "text.jpg", "cut.png", "dangling.png"}
    errors = {item["name"]: item["error"] for item in result.stats["errors"]}
    assert set(errors) == bad and result.errors == 5 and result.stats["pictures"]["unreadable"] == 5
    assert "16 bits" in errors["deep.png"] and "empty" in errors["empty.jpg"]
    assert set(files(output)) == {STATS, "restored/good.png", "restored/zgood.jpg"}
    assert str(tmp_path) not in json.dumps(errors)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_pipe_is_listed_and_never_waited_for(network, folders):
    source, output = folders
    os.mkfifo(source / "pipe.jpg")
    result = restore_images(source, output, WHOLE)
    assert result.errors == 1 and result.stats["pictures"]["with_restored_faces"] == len(NAMES)
    assert [error["error"] for error in result.stats["errors"]] == [
        "pipe.jpg: cannot be read (not a regular file)"
    ]


def test_a_unit_of_unreadable_pictures_only(network, tmp_path):
    for settings in (WHOLE, WHOLE.replace(face_detector="yunet")):
        source, output = tmp_path / "in", tmp_path / settings.face_detector
        source.mkdir(exist_ok=True)
        (source / "text.jpg").write_text("this is no picture")
        result = restore_images(source, output, settings)
        assert result.errors == 1 and set(files(output)) == {STATS}


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything"
)
def test_a_picture_that_may_not_be_read(network, folders):
    source, output = folders
    (source / "a.png").chmod(0)
    assert restore_images(source, output, WHOLE).errors == 1
    (source / "a.png").chmod(0o644)
    assert restore_images(source, output, WHOLE).errors == 0


def test_a_file_that_cannot_be_read_now_is_read_another_time(network, folders, monkeypatch):
    source, output = folders
    whole = image_processor.open_regular

    def refused(path):
        if path.name == "a.png":
            raise PermissionError(13, "Permission denied")
        return whole(path)

    with monkeypatch.context() as patched:
        patched.setattr(image_processor, "open_regular", refused)
        result = restore_images(source, output, WHOLE)
    assert result.errors == 1 and "Permission denied" in result.stats["errors"][0]["error"]
    assert restore_images(source, output, WHOLE).errors == 0 and "restored/a.png" in files(output)


def test_a_network_that_fails_makes_the_picture_failed_and_is_tried_again(network, folders):
    source, output = folders
    good, network.function = (
        network.function,
        lambda faces: torch.where(faces.mean() < 0.2, torch.nan, faces),
    )
    result = restore_images(source, output, WHOLE.replace(batch_size=1))
    failed = [item["name"] for item in result.stats["items"] if item["state"] == "failed"]
    assert failed and result.errors == len(failed) == result.stats["pictures"]["failed"]
    assert set(files(output)) == {
        STATS,
        *(f"restored/{name}" for name in NAMES),
    }  # each is written all the same
    for name in failed:
        assert (output / "restored" / name).read_bytes() == (source / name).read_bytes()
    network.function = good
    assert restore_images(source, output, WHOLE.replace(batch_size=1)).errors == 0


def test_a_picture_that_outgrows_its_format_stops_nothing(network, tmp_path):
    put(tmp_path / "in", "a.png", "c.png")
    put(tmp_path / "in", "b.webp", size_hw=(16, 4100))  # 16400 pixels are more than a WebP can have
    settings = WHOLE.replace(upscale=4, save_comparison=True)
    result = restore_images(tmp_path / "in", tmp_path / "out", settings)
    assert (
        result.errors == result.stats["pictures"]["failed"] == 1
        and result.stats["faces"]["restored"] == 2
    )
    (error,) = result.stats["errors"]
    assert (
        error["name"] == "b.webp"
        and "b.webp: cannot be written" in error["error"]
        and "16383" in error["error"]
    )
    assert {name for name in files(tmp_path / "out") if "/a" in name or "/b" in name} == {
        *("restored/a.png", "comparisons/a_compare.jpg"),
    }
    png = restore_images(tmp_path / "in", tmp_path / "out", settings.replace(format="png"))
    assert not png.errors and read(tmp_path / "out/restored/b.png").shape[:2] == (64, 16400)


def test_a_single_picture(network, folders):
    source, output = folders
    result = restore_images(source / "sub" / "d.png", output, WHOLE)
    assert set(files(output)) == {STATS, "restored/d.png"} and result.errors == 0


def test_output_within_the_input_is_no_input(network, folders):
    source, _ = folders
    first = restore_images(source, source / "out", WHOLE)
    second = restore_images(source, source / "out", WHOLE)
    assert first.stats == second.stats and second.resumed == len(NAMES)


@pytest.mark.parametrize("way", ["the folder itself", "by another way", "what restored holds"])
def test_an_output_that_would_be_the_next_input_is_refused(network, folders, way):
    source, output = folders
    if way == "what restored holds":
        output = source.parent / "big"
        shutil.move(source, output / "restored" / "in")
        source = output / "restored" / "in"
    elif way == "by another way":
        output = source / "sub" / ".."
    else:
        output = source
    before = files(source)
    with pytest.raises(ConfigError, match="--output-dir"):
        restore_images(source, output, WHOLE)
    assert files(source) == before and not (output / FOLDER).exists()


def test_no_input_is_written_over(network, tmp_path):
    put(tmp_path / "restored", "a.png")
    before = files(tmp_path)
    with pytest.raises(ConfigError, match="not one of the inputs"):
        restore_images(tmp_path / "restored" / "a.png", tmp_path, WHOLE)
    assert files(tmp_path) == before


def test_nothing_to_do_is_an_error(network, tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(ConfigError, match="a folder with images"):
        restore_images(tmp_path / "in", tmp_path / "out", WHOLE)
    with pytest.raises(MediaError, match="does not exist"):
        restore_images(tmp_path / "other", tmp_path / "out", WHOLE)
    assert not (tmp_path / "out").exists() and network.opened == 0


def test_an_output_that_cannot_be_written(network, folders):
    source, output = folders
    output.write_text("a file")
    with pytest.raises(MediaError, match="cannot be created"):
        restore_images(source, output, WHOLE)
    output.unlink()
    (output / "restored").mkdir(parents=True)
    (output / "restored" / "sub").write_text("a file")
    result = restore_images(source, output, WHOLE)
    failed = [error["name"] for error in result.stats["errors"]]
    assert failed and all(name.startswith("sub/") for name in failed)
    assert result.errors == len(failed) and (output / "restored" / "a.png").exists()


def test_progress_counts_pictures(network, folders, pairs):
    source, output = folders
    told = []
    restore_images(source, output, WHOLE, progress=lambda *at: told.append(at))
    assert told[0] == (0, 7) and told[-1] == (7, 7) and told == sorted(told) and len(told) == 5
    told.clear()
    restore_images(source, output, WHOLE, progress=lambda *at: told.append(at))
    assert told == [(7, 7)]


# --- going on


class Stopped(Exception):
    pass


def stopping(function, after: int):
    """`function`, which raises when it is called once too often."""
    calls = []

    def counted(*args, **kwargs):
        calls.append(args)
        if len(calls) > after:
            raise Stopped
        return function(*args, **kwargs)

    return counted


@pytest.fixture
def whole(network, folders, pairs, tmp_path):
    """Settings, and the files of a run that nobody stopped."""
    settings = WHOLE.replace(save_comparison=True, upscale=2)
    restore_images(folders[0], tmp_path / "uninterrupted", settings)
    return settings, files(tmp_path / "uninterrupted")


@pytest.mark.parametrize("after", [0, 1, 2, 3])
@pytest.mark.parametrize("step", ["read", "prepare", "process", "finish", "write"])
def test_a_run_that_was_stopped_ends_with_the_same_files(
    network, folders, whole, monkeypatch, step, after
):
    settings, expected = whole
    source, output = folders
    kind = {"read": image_processor.ReadUnit, "write": image_processor.WriteUnit}.get(
        step, image_processor.ImageProcessor
    )
    name = step if kind is image_processor.ImageProcessor else "__call__"
    with monkeypatch.context() as patched:
        patched.setattr(kind, name, stopping(getattr(kind, name), after))
        with pytest.raises(Stopped):
            restore_images(source, output, settings)
    assert STATS not in files(output)
    done = len(list((output / FOLDER / "units").glob("*.json")))
    assert done == after if step == "write" else done <= after
    network.faces = 0
    result = restore_images(source, output, settings)
    assert files(output) == expected and result.resumed == len(NAMES) - network.faces
    assert result.resumed == 2 * done  # nothing is done twice
    network.faces = 0
    again = restore_images(source, output, settings)
    assert files(output) == expected and again.resumed == len(NAMES) and network.faces == 0


@pytest.mark.parametrize("after", [0, 1, 4, 8, 11, 15, 19, 23])
def test_a_run_that_was_killed_between_two_files_ends_with_the_same_files(
    network, folders, whole, monkeypatch, after
):
    """Every file that is written, results and memory alike, may be the last."""
    settings, expected = whole
    source, output = folders
    from musetalk_enhance.jobs import manifest

    counted = stopping(write_bytes, after)
    with monkeypatch.context() as patched:
        patched.setattr(image_processor, "write_bytes", counted)
        patched.setattr(manifest, "write_bytes", counted)
        with pytest.raises(Stopped):
            restore_images(source, output, settings)
    restore_images(source, output, settings)
    assert files(output) == expected


def test_half_a_file_of_a_killed_run_is_swept_away(network, folders, whole):
    settings, expected = whole
    source, output = folders
    part = f".{'0123456789abcdef' * 2}.part"
    for place in (".", "restored/sub", "comparisons", f"{FOLDER}/units"):
        (output / place).mkdir(parents=True, exist_ok=True)
        (output / place / part).write_bytes(b"half")
    (output / "restored" / ".keep.part").write_bytes(b"not ours")
    restore_images(source, output, settings)
    assert files(output) == expected | {"restored/.keep.part": b"not ours"}
    assert not list(output.rglob(part))


@pytest.mark.parametrize("after", [3, 6, 9])
def test_what_a_killed_run_began_does_not_outlive_other_settings(
    network, folders, pairs, tmp_path, monkeypatch, after
):
    source, output = folders
    with monkeypatch.context() as patched:
        patched.setattr(image_processor, "write_bytes", stopping(write_bytes, after))
        with pytest.raises(Stopped):
            restore_images(source, output, WHOLE.replace(format="webp", save_comparison=True))
    assert any(name.startswith("restored/") for name in files(output))
    restore_images(source, output, WHOLE)
    restore_images(source, tmp_path / "fresh", WHOLE)
    assert files(output) == files(tmp_path / "fresh")


def test_other_settings_start_afresh_and_say_so(network, folders, tmp_path, caplog):
    source, output = folders
    restore_images(source, output, WHOLE.replace(save_comparison=True, format="png"))
    caplog.set_level(logging.WARNING, LOGGER)
    result = restore_images(source, output, WHOLE.replace(strength=0.5))
    said = caplog.records[-1].getMessage()
    assert (
        "starting over" in said
        and "strength: 1.0 then, 0.5 now" in said
        and "format: 'png' then" in said
    )
    restore_images(source, tmp_path / "fresh", WHOLE.replace(strength=0.5))
    assert files(output) == files(tmp_path / "fresh") and result.resumed == 0
    assert not (output / "comparisons").exists()


def test_starting_afresh_spares_what_is_not_ours(network, folders, caplog):
    source, output = folders
    restore_images(source, output, WHOLE.replace(format="png"))
    (output / "restored" / "b.png").write_bytes(b"edited by hand")
    (output / "restored" / "notes.txt").write_text("mine")
    restore_images(source, output, WHOLE)
    assert files(output)["restored/b.png"] == b"edited by hand" and "restored/notes.txt" in files(
        output
    )
    assert "restored/sub/e.png" not in files(output)


def test_afresh_and_stopped_leaves_no_old_statistics(network, folders, monkeypatch):
    source, output = folders
    restore_images(source, output, WHOLE)
    with monkeypatch.context() as patched:
        patched.setattr(image_processor.ImageProcessor, "process", stopping(None, 0))
        with pytest.raises(Stopped):
            restore_images(source, output, WHOLE.replace(strength=0.5))
    assert STATS not in files(output)


def test_options_that_change_no_pixel_do_not_start_afresh(network, folders):
    source, output = folders
    restore_images(source, output, WHOLE)
    assert restore_images(source, output, WHOLE.replace(mode="memory")).resumed == len(NAMES)


def test_another_model_starts_afresh(network, folders, monkeypatch, caplog):

    source, output = folders
    restore_images(source, output, WHOLE)
    run_info = images.RunInfo.decisive
    monkeypatch.setattr(
        images.RunInfo, "decisive", lambda self: run_info(self) | {"model": "other"}
    )
    caplog.set_level(logging.WARNING, LOGGER)
    assert restore_images(source, output, WHOLE).resumed == 0
    assert "model: 'fake' then, 'other' now" in caplog.text


def test_a_changed_input_is_done_again(network, folders, pairs, tmp_path):
    source, output = folders
    restore_images(source, output, WHOLE)
    cv2.imwrite(str(source / "c.png"), picture(7))
    network.faces = 0
    result = restore_images(source, output, WHOLE)
    assert network.faces == 2 and result.resumed == len(NAMES) - 2  # its unit
    restore_images(source, tmp_path / "fresh", WHOLE)
    assert files(output) == files(tmp_path / "fresh")


@pytest.mark.parametrize("harm", ["deleted", "damaged", "emptied"])
def test_a_lost_result_is_made_again(network, folders, whole, harm):
    settings, expected = whole
    source, output = folders
    restore_images(source, output, settings)
    for name in ("restored/c.png", "comparisons/z_compare.jpg"):
        if harm == "deleted":
            (output / name).unlink()
        else:
            (output / name).write_bytes(b"" if harm == "emptied" else expected[name][:-1])
    network.faces = 0
    restore_images(source, output, settings)
    assert files(output) == expected and network.faces == 3  # of the two units


@pytest.mark.parametrize(
    "harm",
    [b"", b"{", b"[]", b"{}", b"null", b"\xff\xfe", b'{"unit": 3}', "cut", "changed", "gone"],
)
@pytest.mark.parametrize("which", ["manifest.json", "units/000001.json"])
def test_a_damaged_memory_is_made_again(network, folders, whole, which, harm, caplog):
    settings, expected = whole
    source, output = folders
    restore_images(source, output, settings)
    path = output / FOLDER / which
    data = path.read_bytes()
    changed = data.replace(b'"threads": ', b'"threads": 9').replace(b'"restored/', b'"restored/x')
    assert changed != data
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": data[: len(data) // 2], "changed": changed}.get(harm, harm))
    caplog.set_level(logging.WARNING, LOGGER)
    caplog.clear()
    restore_images(source, output, settings)
    assert files(output) == expected
    assert ("starting over" in caplog.text) == (which == "manifest.json" and harm != "gone")


def test_states_of_other_settings_are_nothing_without_their_manifest(network, folders, tmp_path):
    source, output = folders
    restore_images(source, output, WHOLE.replace(format="webp"))
    (output / FOLDER / "manifest.json").unlink()
    result = restore_images(source, output, WHOLE.replace(strength=0.5))
    restore_images(source, tmp_path / "fresh", WHOLE.replace(strength=0.5))
    assert files(output) == files(tmp_path / "fresh") and result.resumed == 0


def test_a_new_picture_is_done_and_no_other(network, folders):
    source, output = folders
    before = restore_images(source, output, WHOLE)
    put(source, "new.png")
    network.faces = 0
    result = restore_images(source, output, WHOLE)
    assert (
        network.faces == 1
        and result.resumed == len(NAMES)
        and result.stats["pictures"]["all"] == len(NAMES) + 1
    )
    (source / "new.png").unlink()
    after = restore_images(source, output, WHOLE)
    assert after.stats == before.stats and "restored/new.png" in files(output)  # its result stays


def test_the_result_of_a_removed_picture_stays_while_its_neighbour_is_done_again(
    network, folders, pairs
):
    source, output = folders
    restore_images(source, output, WHOLE)
    kept = files(output)["restored/b.jpg"]
    (source / "b.jpg").unlink()
    cv2.imwrite(str(source / "a.png"), picture(7))
    result = restore_images(source, output, WHOLE)
    assert result.errors == 0 and files(output)["restored/b.jpg"] == kept
    assert "b.jpg" not in {item["name"] for item in result.stats["items"]} and result.resumed == 5


def test_results_of_two_folders_are_not_mixed(network, folders, tmp_path):
    source, output = folders
    restore_images(source, output, WHOLE)
    before = files(output)
    put(tmp_path / "other", "a.png")
    with pytest.raises(
        ConfigError, match=f"another folder: that one holds the results of {source}"
    ):
        restore_images(tmp_path / "other", output, WHOLE)
    assert files(output) == before
    moved = source.rename(tmp_path / "moved")
    assert restore_images(moved, output, WHOLE).resumed == len(NAMES)


def test_a_folder_that_may_not_be_looked_into_is_taken_to_be_gone(network, folders, monkeypatch):
    """Another user's, say: that is no reason to fail."""
    source, output = folders
    restore_images(source, output, WHOLE)
    moved, stat = source.rename(source.parent / "moved"), os.stat

    def refused(path, *args, **options):
        if os.fspath(path) == str(source):
            raise PermissionError(13, "Permission denied", path)
        return stat(path, *args, **options)

    monkeypatch.setattr(os, "stat", refused)
    assert restore_images(moved, output, WHOLE).resumed == len(NAMES)


@pytest.mark.parametrize("there", [False, True])
def test_a_network_that_cannot_be_loaded_leaves_nothing(network, folders, there, monkeypatch):
    source, output = folders
    if there:
        output.mkdir()
    monkeypatch.setattr(model_loader, "load", _refuse)
    with pytest.raises(WeightError, match="refused"):
        restore_images(source, output, WHOLE)
    assert output.exists() == there and not list(output.glob("*"))


def _refuse(*_, **__):
    raise WeightError("refused")


def test_what_was_opened_is_closed_where_a_later_step_fails(network, folders, monkeypatch):
    def fail(*_):
        raise WeightError("no parser")

    monkeypatch.setattr(model_loader, "load_parser", fail)
    with pytest.raises(WeightError, match="no parser"):
        restore_images(*folders, WHOLE.replace(face_detector="yunet", min_face=0))
    assert network.opened == 1 and network.closed


def test_two_runs_at_once_are_refused(network, folders):
    source, output = folders
    with locked(output), pytest.raises(ConfigError, match="no other run is using"):
        restore_images(source, output, WHOLE)
    restore_images(source, output, WHOLE)


def test_an_engine_of_ones_own_is_told_everything(network, folders, pairs):
    source, output = folders
    seen = []

    class Engine(LocalEngine):
        def run(self, job, done):
            seen.append(job)
            super().run(job, done)

    restore_images(source, output, WHOLE, engine=Engine())
    assert [unit["items"] for unit in seen[0].units][0] == ["a.png", "b.jpg"] and seen[
        0
    ].threads >= 1
    assert set(files(output)) == {STATS, *(f"restored/{name}" for name in NAMES)}


# --- a real process


@pytest.mark.slow
def test_a_process_that_is_killed_goes_on(tmp_path, monkeypatch):
    """SIGKILL in the middle, once; `scripts/kill_jobs.py` does it at every moment."""
    source = tmp_path / "in"
    put(source, *(f"{index:02}.png" for index in range(11)), size_hw=(256, 256))
    words = [
        sys.executable,
        "-m",
        LOGGER,
        "images",
        str(source),
        "--model",
        "lite",
        "--backend",
        "torch",
    ]
    words += ["--face-detector", "none", "--quiet", "--output-dir"]
    process = subprocess.Popen([*words, str(tmp_path / "out")], cwd=ROOT)
    units = tmp_path / "out" / FOLDER / "units"
    limit = time.monotonic() + 60
    while not list(units.glob("*.json")) and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert STATS not in files(tmp_path / "out")
    assert subprocess.run([*words, str(tmp_path / "out")], cwd=ROOT, check=False).returncode == 0
    restore_images(source, tmp_path / "uninterrupted", WHOLE.replace(model="lite", backend="torch"))
    assert files(tmp_path / "out") == files(tmp_path / "uninterrupted")
    assert len(files(tmp_path / "out")) == 12


def test_what_cannot_run_again_is_not_mixed_with_what_does(network, folders, monkeypatch, caplog):
    """Other threads here; a backend that is gone is the same."""
    source, output = folders
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        restore_images(source, output, WHOLE)
        before = network.faces
        torch.set_num_threads(threads)
        assert restore_images(source, output, WHOLE).resumed == before, (
            "they are taken as they were"
        )
        torch.set_num_threads(threads)
        monkeypatch.setattr(
            images.RunInfo, "of", classmethod(lambda cls, raw: None)
        )  # and here they cannot be
        again = restore_images(source, output, WHOLE)
    finally:
        torch.set_num_threads(threads)
        cv2.setNumThreads(-1)
    assert (
        again.resumed == 0 and network.faces == 2 * before and "no longer available" in caplog.text
    )
