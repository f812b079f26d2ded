"""The list of frames: what is counted, what is known, and what is refused."""

from __future__ import annotations

import pickle
import wave
from fractions import Fraction

import pytest

from musetalk_enhance.errors import ConfigError, MediaError
from musetalk_enhance.media import index_video, probe
from tests.media.clips import NTSC, QUARTERS, make_film, open_files, remuxed, times, turn


def test_a_film_is_listed_frame_by_frame(tmp_path):
    path = make_film(tmp_path / "film.mp4", 24, fps=NTSC, sound=0.5, options={"bf": "3"})
    index = index_video(path)
    assert len(index) == 24 and index.complete and not index.counted
    assert [pts * index.time_base for pts in index.pts] == times(path)
    assert index.fps == NTSC and index.duration == 24 / NTSC
    assert (index.width, index.height, index.source_wh, index.coded_wh) == (
        96,
        64,
        (96, 64),
        (96, 64),
    )
    assert (index.pix_fmt, index.out_pix_fmt, index.bit_depth, index.codec) == (
        "yuv420p",
        "yuv420p",
        8,
        "h264",
    )
    assert (index.rotation, index.flipped, index.display_matrix or None) in [(0, False, None)]
    (tone,) = index.audio
    assert (tone.codec, tone.rate, tone.channels, tone.language) == ("aac", 16000, 1, "deu")
    assert tone.start == pytest.approx(0.5, abs=0.1) and tone.duration == pytest.approx(
        24 / NTSC, abs=0.2
    )
    assert pickle.loads(pickle.dumps(index)) == index
    assert not open_files(tmp_path)


@pytest.mark.parametrize("degrees", QUARTERS)
def test_rotation_is_the_one_a_player_applies(tmp_path, degrees):
    path = turn(make_film(tmp_path / "film.mp4", 2), QUARTERS[degrees])
    index, info = index_video(path), probe(path)
    assert (
        index.rotation == degrees
        and index.display_matrix == QUARTERS[degrees]
        and not index.flipped
    )
    assert (index.width, index.height) == (info.width, info.height) and index.coded_wh == (96, 64)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (None, None, range(24)),
        (0.4, None, range(10, 24)),
        (None, 0.4, range(10)),
        # 0.1 s is between frames 2 and 3 of 25 a second, 0.3 s between 7 and 8
        (0.1, 0.3, range(3, 8)),
        (0.04, 0.08, range(1, 2)),
        (0.9, 99, range(23, 24)),
    ],
)
def test_start_and_end_are_seconds_from_the_first_frame(tmp_path, start, end, expected):
    path = make_film(tmp_path / "film.mp4", 24)
    whole, index = index_video(path), index_video(path, start, end)
    assert index.pts == tuple(whole.pts[at] for at in expected)
    assert index.stop_pts == (*whole.pts, whole.stop_pts)[expected.stop]
    assert index.skipped == expected.start and index.complete == (len(expected) == 24)


def test_a_written_tenth_is_a_tenth(tmp_path):
    index = index_video(make_film(tmp_path / "film.mp4", 12, fps=Fraction(10)), 0.1, 0.3)
    assert index.skipped == 1 and len(index) == 2


@pytest.mark.parametrize(
    ("start", "end", "key"),
    [
        (-1, None, "start"),
        (float("nan"), None, "start"),
        (None, float("inf"), "end"),
        (2, 1, "end"),
        (0, 0, "end"),
    ],
)
def test_impossible_times(tmp_path, start, end, key):
    with pytest.raises(ConfigError) as caught:
        index_video(tmp_path / "film.mp4", start, end)
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("start", "end", "key"),
    [
        (0.2, None, "start"),
        (5, 6, "start"),
        (0.17, None, "start"),
        (0.17, 0.19, "start"),
        (0.01, 0.02, "end"),
    ],
)
def test_a_stretch_without_a_frame(tmp_path, start, end, key):
    path = make_film(tmp_path / "film.mp4", 5)
    with pytest.raises(ConfigError, match=r"film.mp4 is 0.200 s long") as caught:
        index_video(path, start, end)
    assert caught.value.key == key


def test_raw_streams_and_old_files_are_counted(tmp_path):
    raw = index_video(make_film(tmp_path / "film.h264", 24, options={"bf": "2"}))
    assert raw.counted and raw.pts == tuple(range(24)) and raw.time_base == 1 / raw.fps
    avi = index_video(make_film(tmp_path / "film.avi", 24, codec="mpeg4"))
    assert len(avi) == 24 and avi.fps == 25 and avi.duration == Fraction(24, 25)


def test_frames_before_an_edit_list_are_left_out(tmp_path):
    path = tmp_path / "film.mp4"
    make_film(path, 24, pts=[at - 5 for at in range(24)])
    index = index_video(path)
    assert [pts * index.time_base for pts in index.pts] == times(path)
    assert index.pts[0] >= 0 and 19 <= len(index) < 24


def test_hidden_frames_of_vp8_are_not_counted(tmp_path):
    path, hidden = make_film(tmp_path / "film.webm", 20, codec="libvpx"), tmp_path / "hidden.webm"

    def hide(packet, at):
        data = bytearray(bytes(packet))
        data[0] &= ~16 if at == 7 else 255  # show_frame, RFC 6386 section 9.1
        return bytes(data)

    remuxed(path, hidden, hide)
    index = index_video(hidden)
    assert len(index) == 19 and [pts * index.time_base for pts in index.pts] == times(hidden)


@pytest.mark.parametrize(("trc", "name"), [("smpte2084", "PQ"), ("arib-std-b67", "HLG")])
def test_hdr_is_refused(tmp_path, trc, name):
    path = make_film(tmp_path / "film.mp4", 2, options={"color_trc": trc})
    with pytest.raises(MediaError, match=f"HDR, {name}.*SDR"):
        index_video(path)


def test_ten_bits_become_eight_and_are_named_as_lost(tmp_path):
    index = index_video(make_film(tmp_path / "film.mp4", 2, pix_fmt="yuv422p10le"))
    assert (index.pix_fmt, index.out_pix_fmt, index.bit_depth) == ("yuv422p10le", "yuv422p", 10)
    assert index.losses == ("10 bits per color, which become 8",)


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "text.mp4").write_text("not a video at all\n" * 100)
    (tmp_path / "empty.mp4").touch()
    with wave.open(str(tmp_path / "sound.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(bytes(3200))
    for name in ("missing.mp4", "text.mp4", "empty.mp4", "sound.wav"):
        with pytest.raises(MediaError, match=name) as caught:
            index_video(tmp_path / name)
        assert caught.value.path == tmp_path / name
    assert not open_files(tmp_path)


@pytest.mark.parametrize("part", [0.5, 0.8, 0.97])
def test_a_cut_off_file_is_refused(tmp_path, part):
    path = remuxed(make_film(tmp_path / "whole.mp4", 60, sound=0.0), tmp_path / "film.mp4")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(MediaError, match="truncated|damaged"):
        index_video(path)
