"""What was not changed is written as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

from musetalk_enhance.errors import ConfigError, FrameError, MediaError
from musetalk_enhance.media import (
    SegmentWriter,
    VideoWriter,
    index_video,
    read_frames,
    read_segment,
)
from musetalk_enhance.media.writer import X264_PARAMS
from tests.conftest import ROOT
from tests.media.clips import (
    QUARTERS,
    decoded,
    make_film,
    open_files,
    picture,
    planes_of,
    same_planes,
    turn,
)


def rewrite(path, out, crf=0, change=None, **options):
    """All frames of `path` through one SegmentWriter; `change(shot)` gives (bgr, box_xyxy)."""
    index = index_video(path)
    with SegmentWriter(out, index, crf, **options) as writer:
        for shot in read_segment(path, index, 0, len(index)):
            writer.write(shot, *(change(shot) if change else ()))
    return out


COLOURS = {
    "plain": ("yuv420p", {}),
    "601": (
        "yuv420p",
        {"colorspace": "smpte170m", "color_primaries": "smpte170m", "color_trc": "smpte170m"},
    ),
    "709": ("yuv420p", {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709"}),
    "full": ("yuvj420p", {"colorspace": "bt709", "color_range": "pc"}),
    "full-601": ("yuv420p", {"colorspace": "bt470bg", "color_range": "pc"}),
    "422": ("yuv422p", {"colorspace": "bt709"}),
    "444": ("yuv444p", {"colorspace": "bt709", "color_range": "tv"}),
}


def facts(path):
    with av.open(str(path)) as container:
        codec, frame = container.streams.video[0].codec_context, next(container.decode(video=0))
        return (
            frame.format.name,
            int(frame.colorspace),
            int(frame.color_range),
            codec.color_primaries,
            codec.color_trc,
            (frame.width, frame.height),
        )


@pytest.mark.parametrize("name", COLOURS)
def test_untouched_frames_keep_their_values_and_colours(tmp_path, name):
    pix_fmt, options = COLOURS[name]
    path = make_film(tmp_path / "film.mp4", 12, pix_fmt=pix_fmt, options=options)
    out = rewrite(path, tmp_path / "out.mp4")
    assert facts(out) == facts(path)
    assert same_planes(decoded(out), decoded(path))


@pytest.mark.parametrize("name", COLOURS)
def test_changed_pictures_keep_matrix_and_range(tmp_path, name):
    pix_fmt, options = COLOURS[name]
    path = make_film(tmp_path / "film.mp4", 3, pix_fmt=pix_fmt, options=options)
    patches = np.zeros((64, 96, 3), np.uint8)
    for at, color in enumerate(
        [(0, 0, 255), (0, 255, 0), (255, 0, 0), (40, 90, 200), (255, 255, 255), (0, 0, 0)]
    ):
        patches[:, at * 16 : at * 16 + 16] = color
    out = rewrite(path, tmp_path / "out.mp4", crf=0, change=lambda shot: (patches, None))
    assert facts(out) == facts(path)
    for back in read_frames(out):
        for at in range(6):
            inner = np.s_[4:60, at * 16 + 6 : at * 16 + 10]
            # one step of Y, U or V is up to 2
            assert np.abs(back[inner].astype(int) - patches[inner]).max() <= 3


BOXES = [(10, 6, 40, 30), (11, 7, 40, 31), (-20, -5, 9, 9), (80, 50, 200, 200), (0, 0, 96, 64)]


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p", "yuv444p", "yuvj420p"])
@pytest.mark.parametrize("box", BOXES)
def test_only_the_box_changes(tmp_path, pix_fmt, box):
    path = make_film(tmp_path / "film.mp4", 3, pix_fmt=pix_fmt)
    out = rewrite(path, tmp_path / "out.mp4", change=lambda shot: (255 - shot.bgr, box))
    index = index_video(path)
    across, down = index.chroma_grid
    left, top = max(box[0], 0) // across * across, max(box[1], 0) // down * down
    right, bottom = min(-(-box[2] // across) * across, 96), min(-(-box[3] // down) * down, 64)
    for before, after in zip(decoded(path), decoded(out), strict=True):
        for at, (old, new) in enumerate(zip(before, after, strict=True)):
            x, y = (across, down) if at else (1, 1)
            outside = np.ones(old.shape, bool)
            outside[top // y : bottom // y, left // x : right // x] = False
            assert np.array_equal(old[outside], new[outside])
        inside = np.s_[top:bottom, left:right]
        assert (before[0][inside] != after[0][inside]).mean() > 0.9


@pytest.mark.parametrize(
    "matrix", [*QUARTERS.values(), (-1 << 16, 0, 0, 0, 1 << 16, 0, 96 << 16, 0, 1 << 30)]
)
def test_boxes_of_turned_films_are_upright(tmp_path, matrix):
    path = turn(make_film(tmp_path / "film.mp4", 2), matrix)
    left, top, right, bottom = box = (8, 10, 38, 50)
    shots = list(read_segment(path, index_video(path), 0, 2))

    def painted(shot):
        image = np.full_like(shot.bgr, 255)
        image[top:bottom, left:right] = (20, 160, 60)
        return image, box

    out = turn(rewrite(path, tmp_path / "out.mp4", change=painted), matrix)
    assert facts(out)[-1] == (96, 64)
    for before, after in zip(shots, read_frames(out), strict=True):
        inner = after[top + 6 : bottom - 6, left + 6 : right - 6].astype(int)
        assert np.abs(inner - (20, 160, 60)).max() <= 3
        outside = np.ones(after.shape[:2], bool)
        outside[top - 6 : bottom + 6, left - 6 : right + 6] = False
        assert np.array_equal(after[outside], before.bgr[outside])


@pytest.mark.parametrize("crf", [18, 28])
def test_a_lossy_copy_is_close(tmp_path, crf):
    path = make_film(tmp_path / "film.mp4", 12)
    out = rewrite(path, tmp_path / "out.mp4", crf)
    error = [
        np.abs(a[0].astype(int) - b[0]).mean()
        for a, b in zip(decoded(path), decoded(out), strict=True)
    ]
    assert 0 < max(error) < (2 if crf == 18 else 4)


@pytest.mark.parametrize("changed", [False, True])
def test_odd_sizes_are_continued_not_cut(tmp_path, changed):
    path = make_film(
        tmp_path / "film.webm", 3, (33, 17), codec="libvpx-vp9", options={"lossless": "1"}
    )
    index = index_video(path)
    assert index.coded_wh == (34, 18) and (index.width, index.height) == (33, 17)
    assert index.losses == ("33 x 17 pixels, which become 34 x 18 because of the chroma",)
    change = (lambda shot: (picture(9, (33, 17)), (0, 0, 33, 17))) if changed else None
    out = rewrite(path, tmp_path / "out.mp4", change=change)
    for before, after in zip(decoded(path), decoded(out), strict=True):
        assert after[0].shape == (18, 34) and after[1].shape == (9, 17)
        assert np.array_equal(after[0][:, 33], after[0][:, 32]) and np.array_equal(
            after[0][17], after[0][16]
        )
        assert (
            changed
            or np.array_equal(after[0][:17, :33], before[0])
            and np.array_equal(after[1], before[1])
        )
    if changed:
        assert (
            np.abs(next(read_frames(out))[:17, :33].astype(int) - picture(9, (33, 17))).mean() < 3
        )


@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "yuv422p10le"])
def test_ten_bits_are_rounded_to_eight(tmp_path, pix_fmt):
    path = make_film(tmp_path / "film.mp4", 2, pix_fmt=pix_fmt, options={"crf": "0"})
    out = rewrite(path, tmp_path / "out.mp4")
    assert facts(out)[0] == pix_fmt[:7]
    with av.open(str(path)) as container:
        for frame, after in zip(container.decode(video=0), decoded(out), strict=True):
            ten = np.frombuffer(frame.planes[0], np.uint16).reshape(
                -1, frame.planes[0].line_size // 2
            )[:64, :96]
            assert np.abs(ten / 4 - after[0]).max() <= 1


def test_pictures_without_yuv_become_yuv(tmp_path):
    path = make_film(tmp_path / "film.mkv", 2, codec="ffv1", pix_fmt="bgr0")
    out = rewrite(path, tmp_path / "out.mp4")
    assert facts(out)[0] == "yuv420p" and facts(out)[2] == 1
    for at, back in enumerate(read_frames(out)):
        assert np.abs(back.astype(int) - picture(at)).mean() < 2


def test_pixel_shape_is_kept(tmp_path):
    path = make_film(tmp_path / "film.mp4", 2, options={"aspect": "4:3"})
    assert index_video(path).sample_aspect_ratio == Fraction(4, 3)
    out = rewrite(path, tmp_path / "out.mp4")
    assert index_video(out).sample_aspect_ratio == Fraction(4, 3)


def test_a_segment_can_be_played_alone_and_counts_from_zero(tmp_path):
    path = make_film(tmp_path / "film.mp4", 30, fps=Fraction(30000, 1001))
    index = index_video(path)
    with SegmentWriter(tmp_path / "part.mp4", index) as writer:
        for shot in read_segment(path, index, 11, 25):
            writer.write(shot)
    assert writer.count == 14
    with av.open(str(tmp_path / "part.mp4")) as container:
        frames = list(container.decode(video=0))
    assert frames[0].key_frame and len(frames) == 14
    assert [frame.pts * frame.time_base for frame in frames] == [
        at * Fraction(1001, 30000) for at in range(14)
    ]


def test_same_frames_same_bytes(tmp_path):
    path = make_film(tmp_path / "film.mp4", 30)
    one, two = (rewrite(path, tmp_path / name, 18).read_bytes() for name in ("one.mp4", "two.mp4"))
    assert one == two
    # x264's own account
    assert b"threads=4" in one and b"sliced_threads=0" in one and b"open_gop=0" in one


TEXTURED = """
import sys

from musetalk_enhance.media import SegmentWriter, index_video, read_segment, writer as encoder

path, out, encoder.X264_PARAMS = sys.argv[1:]
index = index_video(path)
with SegmentWriter(out, index) as writer:
    for shot in read_segment(path, index, 0, len(index)):
        writer.write(shot)
"""


@pytest.fixture(scope="module")
def textured(tmp_path_factory):
    """48 frames of 208 x 160, 13 macroblocks a row: a texture that moves, and noise."""
    rng = np.random.default_rng(3)
    ground = rng.integers(0, 256, (20, 30, 3), np.uint8)
    ground = cv2.resize(ground, (320, 240), interpolation=cv2.INTER_CUBIC).astype(int)
    path = tmp_path_factory.mktemp("textured") / "video.mp4"
    with VideoWriter(path, 25, (208, 160), crf=1) as writer:
        for at in range(48):
            window = ground[at : at + 160, 2 * at : 2 * at + 208]
            noise = rng.integers(-6, 7, (160, 208, 1))
            writer.write(np.clip(window + noise, 0, 255).astype(np.uint8))
    return path


def encoded_elsewhere(path, out, params=X264_PARAMS, **environment):
    """The bytes of `path` through one SegmentWriter in another process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-c", TEXTURED, str(path), str(out), params]
    subprocess.run(command, check=True, cwd=ROOT, env=environment)
    return out.read_bytes()


def test_same_bytes_whatever_lay_in_memory(textured, tmp_path):
    """With this variable glibc fills new memory with a byte; other libraries ignore it."""
    fills = ("0", "20", "85", "170", "255")
    contents = set()
    for fill in fills:
        out = tmp_path / f"{fill}.mp4"
        contents.add(encoded_elsewhere(textured, out, MALLOC_PERTURB_=fill))
    assert len(contents) == 1


def test_same_bytes_with_and_without_the_instructions_of_the_processor(textured, tmp_path):
    plain = encoded_elsewhere(textured, tmp_path / "plain.mp4", f"{X264_PARAMS}:asm=0")
    assert encoded_elsewhere(textured, tmp_path / "auto.mp4") == plain


def test_preset_and_crf_reach_the_encoder(tmp_path):
    path = make_film(tmp_path / "film.mp4", 3)
    data = rewrite(path, tmp_path / "out.mp4", 23, preset="slow").read_bytes()
    assert b"crf=23.0" in data and b"subme=8" in data


@pytest.mark.parametrize(
    ("options", "key"), [({"crf": 52}, "crf"), ({"preset": "quick"}, "preset")]
)
def test_impossible_options(tmp_path, options, key):
    index = index_video(make_film(tmp_path / "film.mp4", 2))
    with pytest.raises(ConfigError) as caught:
        SegmentWriter(tmp_path / "out.mp4", index, **options)
    assert caught.value.key == key


def test_what_does_not_fit_is_named_and_nothing_is_left(tmp_path):
    path = make_film(tmp_path / "film.mp4", 5)
    index = index_video(path)
    shots = list(read_segment(path, index, 0, 5))
    bad = [
        ((shots[1], shots[1].bgr[:10]), "size"),
        ((shots[1], shots[1].bgr.astype(np.float32)), "size"),
        ((shots[1], shots[1].bgr, (5, 5, 5, 9)), "box"),
        ((shots[1], shots[1].bgr, (96, 0, 99, 9)), "box"),
        ((shots[2],), "order"),
    ]
    for arguments, reason in bad:
        with (
            pytest.raises(FrameError) as caught,
            SegmentWriter(tmp_path / "out.mp4", index) as writer,
        ):
            writer.write(shots[0])
            writer.write(*arguments)
        assert caught.value.reason == reason and caught.value.index == arguments[0].index
    assert [file.name for file in tmp_path.iterdir()] == ["film.mp4"] and not open_files(tmp_path)


def test_neither_shot_nor_picture_is_modified(tmp_path):
    path = make_film(tmp_path / "film.mp4", 2)
    index = index_video(path)
    shots = list(read_segment(path, index, 0, 2))
    planes, new = [planes_of(shot.frame) for shot in shots], picture(5)[:, ::-1]
    kept = new.copy()
    with SegmentWriter(tmp_path / "out.mp4", index) as writer:
        for shot in shots:
            writer.write(shot, new)
    assert same_planes([planes_of(shot.frame) for shot in shots], planes) and np.array_equal(
        new, kept
    )


def test_stopping_early_leaves_an_older_file_alone(tmp_path):
    path = make_film(tmp_path / "film.mp4", 9)
    out = rewrite(path, tmp_path / "out.mp4")
    older, index = out.read_bytes(), index_video(path)
    with pytest.raises(KeyboardInterrupt), SegmentWriter(out, index) as writer:
        for shot in read_segment(path, index, 0, 9):
            writer.write(shot)
            if shot.index == 4:
                raise KeyboardInterrupt
    assert out.read_bytes() == older and {file.name for file in tmp_path.iterdir()} == {
        "film.mp4",
        "out.mp4",
    }
    with pytest.raises(MediaError, match="closed"):
        writer.write(shot)
    with (
        pytest.raises(MediaError, match="no frame was written"),
        SegmentWriter(tmp_path / "new.mp4", index),
    ):
        pass
    with pytest.raises(MediaError, match="folder"):
        SegmentWriter(tmp_path / "missing" / "out.mp4", index)
    assert not (tmp_path / "new.mp4").exists() and not open_files(tmp_path)
