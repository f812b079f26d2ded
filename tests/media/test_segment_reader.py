"""Any stretch of a film is read as if the film were played from its beginning."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from musetalk_enhance.errors import ConfigError, MediaError
from musetalk_enhance.media import SegmentWriter, index_video, read_frames, read_segment
from tests.media.clips import (
    QUARTERS,
    decoded,
    make_film,
    open_files,
    planes_of,
    remuxed,
    same_planes,
    turn,
)

GROUPS = {
    "closed": {"g": "8", "bf": "3"},
    "open": {"x264-params": "open-gop=1:keyint=8:min-keyint=2:bframes=3:b-adapt=0"},
    "refresh": {"x264-params": "intra-refresh=1:keyint=12"},
    "all-key": {"g": "1"},
    "no-b": {"g": "5", "bf": "0"},
}


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize("group", GROUPS)
def test_every_stretch_equals_playing_from_the_beginning(tmp_path, group, suffix):
    path = make_film(tmp_path / f"film{suffix}", 40, options=GROUPS[group])
    index, played = index_video(path), decoded(path)
    assert len(index) == len(played) == 40
    for first in range(0, 40, 7):
        shots = list(read_segment(path, index, first, min(first + 7, 40)))
        assert [shot.index for shot in shots] == list(range(first, min(first + 7, 40)))
        assert [shot.pts for shot in shots] == list(index.pts[first : first + 7])
        assert same_planes([planes_of(shot.frame) for shot in shots], played[first : first + 7])


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.h264", "libx264"),
        ("b.avi", "mpeg4"),
        ("c.avi", "libx264"),
        ("d.webm", "libvpx"),
        ("e.ts", "mpeg2video"),
    ],
)
def test_other_containers_too(tmp_path, name, codec):
    path = make_film(
        tmp_path / name,
        30,
        codec=codec,
        options={"g": "6", **({} if codec == "libvpx" else {"bf": "2"})},
    )
    assert index_video(path).counted == (name in ("a.h264", "b.avi", "c.avi"))
    index, played = index_video(path), decoded(path)
    for first, stop in [(0, 4), (11, 14), (29, 30)]:
        shots = list(read_segment(path, index, first, stop))
        assert [shot.index for shot in shots] == list(range(first, stop))
        assert all(
            np.array_equal(planes_of(shot.frame)[0], played[shot.index][0]) for shot in shots
        )


@pytest.mark.parametrize("name", ["film.mp4", "film.h264"])
def test_a_start_moves_the_numbers_not_the_pictures(tmp_path, name):
    path = make_film(tmp_path / name, 24, options={"g": "6"})
    index, played = index_video(path, start=0.4), decoded(path)
    (shot,) = read_segment(path, index, 3, 4)
    assert index.skipped == 10 and np.array_equal(planes_of(shot.frame)[0], played[13][0])


def mirrored(path):
    return turn(path, (-1 << 16, 0, 0, 0, 1 << 16, 0, 96 << 16, 0, 1 << 30))


def test_pictures_are_those_of_read_frames_and_converted_once(tmp_path):
    plain = make_film(
        tmp_path / "film.mp4", 4, options={"colorspace": "bt709", "color_range": "pc"}
    )
    for path in (plain, turn(make_film(tmp_path / "turned.mp4", 4), QUARTERS[90])):
        shots = list(read_segment(path, index_video(path), 0, 4))
        for shot, frame in zip(shots, read_frames(path), strict=True):
            assert (
                np.array_equal(shot.bgr, frame)
                and shot.bgr.flags.c_contiguous
                and shot.bgr.dtype == np.uint8
            )
            assert shot.bgr is shot.bgr


def test_a_mirrored_film_stands_upright(tmp_path):
    plain = make_film(tmp_path / "plain.mp4", 2)
    path = mirrored(make_film(tmp_path / "film.mp4", 2))
    index = index_video(path)
    assert (index.rotation, index.flipped) == (0, True)
    for shot, frame in zip(read_segment(path, index, 0, 2), read_frames(plain), strict=True):
        assert np.array_equal(shot.bgr, frame[:, ::-1])


@pytest.mark.parametrize("frames", [(-1, 2), (2, 2), (3, 2), (0, 6)])
def test_frames_that_are_not_there(tmp_path, frames):
    path = make_film(tmp_path / "film.mp4", 5)
    with pytest.raises(ConfigError, match="0 to 5"):
        next(read_segment(path, index_video(path), *frames))


def test_frames_go_as_soon_as_nobody_holds_them(tmp_path):
    """Without Python's collector of garbage, which runs too seldom for pictures of a few
    megabytes."""
    path = make_film(tmp_path / "film.mp4", 60)
    index = index_video(path)

    def frames() -> int:
        return sum(type(each).__name__ == "VideoFrame" for each in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = frames()
        with SegmentWriter(tmp_path / "copy.mp4", index) as writer:
            for shot in read_segment(path, index, 0, 60):
                writer.write(shot, 255 - shot.bgr, (8, 8, 24, 24))
        pictures = sum(1 for _ in read_frames(path))
        assert pictures == 60 and frames() - before < 8
    finally:
        gc.enable()


def test_closing_early_closes_the_file(tmp_path):
    path = make_film(tmp_path / "film.mp4", 30)
    shots = read_segment(path, index_video(path), 0, 30)
    next(shots)
    assert open_files(tmp_path)
    shots.close()
    assert not open_files(tmp_path)


def test_a_file_that_was_cut_off_since_names_the_last_good_frame(tmp_path):
    path = remuxed(
        make_film(tmp_path / "whole.mp4", 60, options={"g": "10"}), tmp_path / "film.mp4"
    )
    index, data, good = index_video(path), path.read_bytes(), []
    path.write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(MediaError, match="truncated or damaged after frame") as caught:
        good += read_segment(path, index, 5, 60)
    assert caught.value.path == path and not open_files(tmp_path)
    with pytest.raises(MediaError, match="truncated or damaged after frame 54"):
        next(read_segment(path, index, 55, 60))


def test_damage_is_an_error(tmp_path):
    path = make_film(tmp_path / "film.mp4", 60, options={"crf": "1"})
    index, data = index_video(path), bytearray(path.read_bytes())
    begin, end = len(data) // 3, len(data) // 2
    data[begin:end] = bytes(end - begin)
    path.write_bytes(data)
    with pytest.raises(MediaError, match="after frame [0-9]+"):
        list(read_segment(path, index, 0, 60))


def test_another_file_than_the_indexed_one(tmp_path):
    index = index_video(make_film(tmp_path / "film.mp4", 10))
    small = make_film(tmp_path / "small.mp4", 10, (64, 64))
    with pytest.raises(MediaError, match="frame 0 is 64 x 64 yuv420p; the first one was 96 x 64"):
        list(read_segment(small, index, 0, 10))
    short = make_film(tmp_path / "short.mp4", 6)
    with pytest.raises(MediaError, match="after frame 5"):
        list(read_segment(short, index, 0, 10))


@pytest.mark.slow
def test_real_clips_are_read_exactly(shared):
    path = shared / "data" / "clips" / "d12.mp4"
    index, played = index_video(path), decoded(path)
    assert len(index.keyframes) > 1 and len(played) == len(index)
    for first in (0, 90, len(index) - 9):
        shots = read_segment(path, index, first, first + 9)
        assert same_planes([planes_of(shot.frame) for shot in shots], played[first : first + 9])
