"""Odd images in a folder: read, named or skipped; one that cannot be written costs no other."""

from __future__ import annotations

import io
import os

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from musetalk_enhance.cli import main
from musetalk_enhance.errors import ConfigError, MediaError
from musetalk_enhance.jobs import restore_images
from musetalk_enhance.jobs.folder import list_images, result_names
from musetalk_enhance.media import contact_sheet, readable_extensions

from .conftest import WHOLE, files, picture, put, read


@pytest.fixture
def folders(tmp_path):
    put(tmp_path / "in", "a.png", "b.png", "c.png")
    return tmp_path / "in", tmp_path / "out"


def failed(result):
    return {error["name"]: error["error"] for error in result.stats["errors"]}


def test_a_folder_in_the_place_of_a_result_costs_one_image(network, folders):
    source, output = folders
    (output / "restored/b.png").mkdir(parents=True)
    result = restore_images(source, output, WHOLE)
    assert list(failed(result)) == ["b.png"] and "cannot be written" in failed(result)["b.png"]
    assert result.errors == 1 and result.stats["pictures"]["failed"] == 1
    assert {"restored/a.png", "restored/c.png"} <= set(files(output))
    (output / "restored/b.png").rmdir()
    again = restore_images(source, output, WHOLE)
    assert again.errors == 0 and (output / "restored/b.png").is_file()


def test_links_that_lead_to_one_another_cost_one_image(network, folders):
    source, output = folders
    (source / "loop.png").symlink_to("loop.png")
    (source / "folder").symlink_to("folder")
    result = restore_images(source, output, WHOLE)
    assert list(failed(result)) == ["loop.png"]
    assert result.stats["pictures"]["with_restored_faces"] == 3
    with pytest.raises(MediaError, match="does not exist"):
        restore_images(source / "folder", output, WHOLE)


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "sub/../../a.png", "", 5])
def test_pictures_are_names_inside_the_folder(network, folders, name):
    source, output = folders
    put(source.parent, "a.png")
    with pytest.raises(ConfigError, match="pictures: invalid value .* without \\.\\."):
        restore_images(source, output, WHOLE, pictures=["b.png", name])
    assert not output.exists()
    result = restore_images(source, output, WHOLE, pictures=["b.png", "b.png"])
    assert result.stats["pictures"]["all"] == 1


def test_names_that_no_file_can_have(network, folders):
    source, output = folders
    with pytest.raises(MediaError, match="does not exist|null"):
        restore_images(f"{source}\0", output, WHOLE)
    with pytest.raises(MediaError, match="null"):
        restore_images(source, f"{output}\0", WHOLE)
    with pytest.raises(MediaError, match="is neither a folder nor a file"):
        restore_images(os.devnull, output, WHOLE)


def test_a_device_that_no_machine_has(folders):
    settings = WHOLE.replace(model="lite", device="cuda:99999999999999999999")
    with pytest.raises(ConfigError, match="on this machine"):
        restore_images(*folders, settings)


def test_a_profile_that_is_not_kept_is_named(network, tmp_path):
    kept = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    gray = kept[:16] + b"GRAY" + kept[20:]
    (tmp_path / "in").mkdir()
    for name, mode, icc in (
        ("kept.png", "RGB", kept),
        ("junk.png", "RGB", b"junk" * 9),
        ("gray.png", "L", gray),
        ("gray.webp", "RGB", gray),
    ):
        Image.new(mode, (64, 64)).save(tmp_path / "in" / name, icc_profile=icc)
    losses = restore_images(tmp_path / "in", tmp_path / "out", WHOLE).stats["losses"]
    assert losses == {
        "a color profile that is not for RGB or gray": ["junk.png"],
        "the color profile": ["gray.webp"],
    }


def test_a_name_that_is_too_long_costs_one_image(network, folders):
    source, output = folders
    os.rename(source / "b.png", source / f"{'b' * 251}.png")
    result = restore_images(source, output, WHOLE.replace(save_comparison=True))
    (message,) = failed(result).values()
    assert "cannot be written" in message and "comparisons" in message
    assert len(list((output / "restored").iterdir())) == 3
    assert len(list((output / "comparisons").iterdir())) == 2


def test_a_full_disk_costs_what_does_not_fit(network, folders, monkeypatch):
    source, output = folders
    plain = os.replace

    def full(path, target):
        if os.fspath(target).endswith("b.png"):
            raise OSError(28, "No space left on device")
        plain(path, target)

    monkeypatch.setattr(os, "replace", full)
    result = restore_images(source, output, WHOLE)
    assert "No space left" in failed(result)["b.png"] and len(failed(result)) == 1
    assert set(files(output)) >= {"restored/a.png", "restored/c.png"}


def test_that_is_exit_code_3(network, folders, capsys):
    source, output = folders
    (output / "restored/b.png").mkdir(parents=True)
    words = ["images", str(source), "--output-dir", str(output), "--face-detector", "none"]
    assert main([*words, "--quiet"]) == 3
    printed = capsys.readouterr()
    assert "restored/b.png: cannot be written" in printed.err
    assert "1 could not be read, restored or written" in printed.out


def test_stills_of_other_formats_become_png(network, tmp_path):
    source, output = tmp_path / "in", tmp_path / "out"
    put(source, "a.png")
    kinds = {".gif": "GIF", ".avif": "AVIF", ".jp2": "JPEG2000"}
    kinds = {name: kind for name, kind in kinds.items() if name in readable_extensions()}
    for suffix, kind in kinds.items():
        Image.fromarray(picture(90)).save(source / f"a{suffix}", kind)
    assert list_images(source) == sorted(["a.png", *(f"a{suffix}" for suffix in kinds)])
    result = restore_images(source, output, WHOLE)
    assert result.errors == 0 and result.stats["pictures"]["all"] == 1 + len(kinds)
    expected = {"restored/a.png", *(f"restored/a{suffix}.png" for suffix in kinds)}
    assert expected <= set(files(output))
    assert read(output / "restored/a.gif.png").shape == (64, 64, 3)
    assert restore_images(source, output, WHOLE).resumed == 1 + len(kinds)


def test_names_of_other_formats_collide_with_none():
    names = ["a.gif", "a.png", "A.avif", "b.gif", "b.gif.png", "sub/c.jp2"]
    results = [each.restored.lower() for each in result_names(names, "keep").values()]
    assert len(set(results)) == len(names)
    assert result_names(names, "keep")["a.png"].restored == "restored/a.png"
    assert result_names(names, "keep")["sub/c.jp2"].restored == "restored/sub/c.png"


def test_what_is_not_read_is_counted_and_named(network, folders, capsys):
    source, output = folders
    for name in ("photo.HEIC", "raw.cr2", "sub/x.psd"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(b"x")
    (source / "notes.txt").write_text("no image")
    words = ["images", str(source), "--output-dir", str(output), "--face-detector", "none"]
    assert main([*words, "--quiet"]) == 0
    printed = capsys.readouterr()
    assert "photo.HEIC, raw.cr2, sub/x.psd" in printed.err
    assert "3 of other formats skipped" in printed.out
    stats = restore_images(source, output, WHOLE).stats
    assert stats["pictures"]["skipped"] == 3
    assert stats["skipped"] == ["photo.HEIC", "raw.cr2", "sub/x.psd"]
    with pytest.raises(ConfigError, match="photo.HEIC.*the format is not read"):
        (tmp := source / "only").mkdir()
        (tmp / "photo.HEIC").write_bytes(b"x")
        list_images(tmp)


def test_an_animation_is_named_and_the_others_go_on(network, folders):
    source, output = folders
    pages = [Image.fromarray(picture(value)) for value in (40, 90)]
    pages[0].save(source / "moving.gif", save_all=True, append_images=pages[1:])
    result = restore_images(source, output, WHOLE)
    assert list(failed(result)) == ["moving.gif"] and "2 frames" in failed(result)["moving.gif"]
    assert result.stats["pictures"]["with_restored_faces"] == 3


def test_what_a_result_does_not_hold_is_named_once(network, folders, capsys):
    source, output = folders
    rgba = io.BytesIO()
    Image.fromarray(np.dstack((picture(), np.full((64, 64), 90, np.uint8)))).save(rgba, "PNG")
    for name in ("b.jpg", "d.jpg"):
        (source / name).write_bytes(rgba.getvalue())
    words = ["images", str(source), "--output-dir", str(output), "--face-detector", "none"]
    assert main([*words, "--quiet"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "do not hold" in line]
    assert len(lines) == 1 and "transparency (b.jpg, d.jpg)" in lines[0]
    assert restore_images(source, output, WHOLE).stats["losses"] == {
        "transparency": ["b.jpg", "d.jpg"]
    }
    assert (
        cv2.imdecode(np.frombuffer((output / "restored/b.jpg").read_bytes(), np.uint8), 1)
        is not None
    )


def test_a_copied_image_loses_nothing(network, tmp_path):
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    blue, rgba = np.full((64, 64, 3), (20, 20, 200), np.uint8), io.BytesIO()
    Image.fromarray(np.dstack((blue, blue[..., 0]))).save(rgba, "PNG")
    (source / "a.jpg").write_bytes(rgba.getvalue())
    settings = WHOLE.replace(face_detector="yunet", min_face=0)
    assert restore_images(source, output, settings).stats["losses"] == {}
    assert (output / "restored/a.jpg").read_bytes() == rgba.getvalue()


def test_files_that_are_not_ours_are_not_replaced(network, folders):
    source, output = folders
    put(output, "restored/b.png")
    mine = (output / "restored/b.png").read_bytes()
    with pytest.raises(ConfigError, match="restored/b.png.*--overwrite"):
        restore_images(source, output, WHOLE)
    assert files(output) == {"restored/b.png": mine}
    result = restore_images(source, output, WHOLE.replace(overwrite=True))
    assert result.errors == 0 and (output / "restored/b.png").read_bytes() != mine
    assert restore_images(source, output, WHOLE).resumed == 3  # now they are ours
    put(source, "d.png")
    put(output, "restored/d.png")
    with pytest.raises(ConfigError, match="restored/d.png"):
        restore_images(source, output, WHOLE)
    changed = restore_images(source, output, WHOLE.replace(overwrite=True, strength=0.5))
    assert changed.errors == 0 and changed.resumed == 0


def test_a_comparison_shows_faces_at_full_size(rng):
    before = rng.integers(0, 256, (1500, 3000, 3), np.uint8)
    after = 255 - before
    boxes = [(100, 200, 400, 520), (2900.4, 1400.2, 3010.0, 1520.0)]
    sheet = contact_sheet.comparison_sheet(before, after, boxes)
    for left, top, right, bottom in ((100, 200, 400, 520), (2900, 1400, 3000, 1500)):
        for image in (before, after):
            crop = np.ascontiguousarray(image[top:bottom, left:right])
            score = cv2.matchTemplate(sheet, crop, cv2.TM_SQDIFF)
            assert score.min() <= crop.size, "the face is not there, pixel by pixel"
    small = contact_sheet.comparison_sheet(
        before[:400, :500], after[:400, :500], [(100, 100, 200, 200)]
    )
    assert small.shape[0] < 500  # the faces are at full size already


def test_a_comparison_of_an_enlarged_image(rng):
    before = rng.integers(0, 256, (1200, 1800, 3), np.uint8)
    after = cv2.resize(before, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    sheet = contact_sheet.comparison_sheet(before, after, [(600, 500, 900, 800)])
    crop = np.ascontiguousarray(after[1000:1600, 1200:1800])
    assert cv2.matchTemplate(sheet, crop, cv2.TM_SQDIFF).min() <= crop.size
