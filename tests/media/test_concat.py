"""The joined film: every frame at its own time, every sound packet as it was."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from musetalk_enhance.errors import MediaError
from musetalk_enhance.media import (
    SegmentWriter,
    check_output,
    concat,
    concat_segments,
    index_video,
    probe,
    read_frames,
    read_segment,
)
from musetalk_enhance.media.container import disposition
from tests.media.clips import (
    FLIPS,
    NTSC,
    QUARTERS,
    UPRIGHT,
    as_displayed,
    copied,
    copy_of,
    decoded,
    make_film,
    open_files,
    remuxed,
    same_planes,
    sound,
    times,
    turn,
    with_orientation,
)

ROOT = Path(__file__).resolve().parents[2]
UNEVEN = [
    0,
    7,
    40,
    41,
    90,
    200,
    201,
    203,
    260,
    300,
    333,
    334,
    420,
    500,
    501,
    502,
    700,
    710,
    711,
    900,
    901,
    1000,
]


@pytest.mark.parametrize(
    ("size", "suffix"),
    [(10, ".mp4"), (7, ".mp4"), (1, ".mp4"), (99, ".mp4"), (10, ".mov"), (10, ".mkv")],
)
def test_segments_make_the_film_that_one_piece_makes(tmp_path, size, suffix):
    path = make_film(tmp_path / "film.mp4", 34, options={"bf": "3"})
    out = copied(path, tmp_path / f"out{suffix}", size)
    assert same_planes(decoded(out), decoded(path))
    assert times(out) == times(path)
    assert {file.name for file in tmp_path.iterdir()} == {"film.mp4", out.name} and not open_files(
        tmp_path
    )


def test_lossy_segments_with_b_frames_keep_order_and_times(tmp_path):
    path = make_film(tmp_path / "film.mp4", 47)
    out = copied(path, tmp_path / "out.mp4", 20, crf=20)
    assert times(out) == times(path)
    for before, after in zip(decoded(path), decoded(out), strict=True):
        # the square moves 3 pixels a frame
        assert np.abs(before[0].astype(int) - after[0]).mean() < 2
    with av.open(str(out)) as container:
        stamps = [(each.dts, each.pts) for each in container.demux(video=0) if each.size]
    assert all(dts <= pts for dts, pts in stamps) and any(dts < pts for dts, pts in stamps)
    assert all(one[0] < two[0] for one, two in zip(stamps, stamps[1:], strict=False))


@pytest.mark.parametrize(
    "fps", [NTSC, Fraction(24000, 1001), Fraction(25), Fraction(60), Fraction(25, 2)]
)
def test_rate_and_length_are_exact(tmp_path, fps):
    path = make_film(tmp_path / "film.mp4", 33, fps=fps)
    out = copied(path, tmp_path / "out.mp4")
    assert probe(out).fps == probe(path).fps == fps and probe(out).frames == 33
    assert probe(out).duration == pytest.approx(float(33 / fps), abs=1e-4)
    assert (
        index_video(out).pts == index_video(path).pts
        and index_video(out).time_base == index_video(path).time_base
    )


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("crf", [0, 18])
def test_uneven_times_are_kept_exactly(tmp_path, suffix, crf):
    path = make_film(
        tmp_path / f"film{suffix}", len(UNEVEN), pts=UNEVEN, time_base=Fraction(1, 1000)
    )
    assert times(path) == [Fraction(each, 1000) for each in UNEVEN]
    out = copied(path, tmp_path / f"out{suffix}", 9, crf)
    assert times(out) == times(path)
    if suffix == ".mp4":
        assert probe(out).duration == pytest.approx(probe(path).duration, abs=0.1)


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_sound_is_copied_bit_for_bit(tmp_path, start):
    path = make_film(
        tmp_path / "film.mp4", 40, sound=start, tags={"title": "Übung", "comment": "two words"}
    )
    out = copied(path, tmp_path / "out.mp4", 16)
    assert len(sound(path)) > 20 and sound(out) == sound(path)  # times too
    with av.open(str(out)) as container:
        assert (
            container.metadata["title"] == "Übung" and container.metadata["comment"] == "two words"
        )
        assert container.streams.audio[0].metadata["language"] == "deu"
        assert sum(1 for _ in container.decode(audio=0)) > 20


def test_sound_that_starts_before_the_pictures(tmp_path):
    path = make_film(tmp_path / "film.mp4", 20, pts=list(range(10, 30)), sound=0.0)
    out = copied(path, tmp_path / "out.mp4")
    assert (
        times(out) == times(path)
        and times(out)[0] == Fraction(10, 25)
        and sound(out) == sound(path)
    )


def test_a_transport_stream_begins_at_zero(tmp_path):
    path = make_film(tmp_path / "film.ts", 25, sound=0.0)
    shift = times(path)[0]
    assert shift > 0
    out = copied(path, tmp_path / "out.mp4")
    assert times(out) == [time - shift for time in times(path)]
    for (before, _), (after, _) in zip(sound(path), sound(out), strict=True):
        assert float(before - shift) == pytest.approx(float(after), abs=1e-3)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_stretch_keeps_pictures_and_sound_together(tmp_path, suffix):
    path = make_film(tmp_path / "film.mp4", 75, sound=0.0)
    out = copied(path, tmp_path / f"out{suffix}", start=1, end=2)
    assert same_planes(decoded(out), decoded(path)[25:50])
    offset = times(out)[0]
    assert [time - offset for time in times(out)] == [time - 1 for time in times(path)[25:50]]
    before = {data: time for time, data in sound(path)}
    shifts = [float(before[data] - time + offset) for time, data in sound(out)]
    assert shifts == pytest.approx([1.0] * len(shifts), abs=2e-3)
    first, last = sound(out)[0][0] - offset, sound(out)[-1][0] - offset
    assert -0.065 <= first <= 0 and 0.9 < last < 1  # one packet is 0.064 s


@pytest.mark.parametrize("name", [*QUARTERS, *FLIPS])
@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_rotation_survives(tmp_path, name, suffix):
    matrix = (QUARTERS | FLIPS)[name]
    path = make_film(tmp_path / "film.mp4", 12)
    stored = list(read_frames(path))
    path = turn(path, matrix)
    with_sound = turn(make_film(tmp_path / "sound.mp4", 12, sound=0.0), matrix)
    for source in (path, with_sound):
        out = copied(source, tmp_path / f"out{suffix}")
        index = index_video(out)
        assert index.display_matrix == matrix and index.rotation == index_video(path).rotation
        for before, after in zip(stored, read_frames(out), strict=True):
            assert np.array_equal(as_displayed(before, name), after)


DEGREES_30 = (56756, 32768, 0, -32768, 56756, 0, 0, 0, 1 << 30)


def test_other_angles_survive_too(tmp_path):
    path = turn(make_film(tmp_path / "film.mp4", 5), DEGREES_30)
    index = index_video(copied(path, tmp_path / "out.mp4"))
    assert index.display_matrix == DEGREES_30 and (index.rotation, index.flipped) == (0, False)
    with pytest.raises(MediaError, match="the source's rotation; choose .mp4 or .mov"):
        check_output(index, path, tmp_path / "out.mkv")


@pytest.mark.parametrize("matrix", [(2 << 16, *UPRIGHT[1:]), (*UPRIGHT[:6], 64 << 16, 0, 1 << 30)])
def test_a_scale_or_a_shift_is_no_rotation(tmp_path, matrix):
    path = turn(make_film(tmp_path / "film.mp4", 5), matrix)
    out = copied(path, tmp_path / "out.mkv")
    assert not index_video(out).is_rotated
    ratios = [index_video(each).sample_aspect_ratio or 1 for each in (path, out)]
    assert ratios == [matrix[0] >> 16] * 2


@pytest.mark.parametrize("stated", [(1,), (1, None, None, 2), (None, None, 1)])
def test_all_frames_of_a_raw_stream_are_rotated_like_the_first(tmp_path, stated):
    options = {"g": "2", "bf": "0"}
    raw = make_film(tmp_path / "film.h264", 12, options=options)
    path = with_orientation(raw, tmp_path / "stated.h264", stated)
    index, degrees = index_video(path), 90 * (stated[0] or 0)
    assert index.rotation == degrees
    stored = [np.rot90(frame, degrees // 90) for frame in read_frames(raw)]
    out = copied(path, tmp_path / "out.mp4", size=4)
    assert index_video(out).rotation == degrees
    for source in (path, out):
        for before, after in zip(stored, read_frames(source), strict=True):
            assert np.array_equal(before, after)
    for frame in read_segment(path, index, 4, 12):
        assert np.array_equal(stored[frame.index], frame.bgr)


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (QUARTERS[90], "rotation by 90 degrees"),
        (FLIPS["left-right"], "flip"),
        (FLIPS["transposed"], "rotation by 90 degrees and flip"),
    ],
)
def test_rotation_needs_mp4_or_mov(tmp_path, matrix, words):
    path = turn(make_film(tmp_path / "film.mp4", 5), matrix)
    for action in (
        lambda out: check_output(index_video(path), path, out),
        lambda out: copied(path, out),
    ):
        with pytest.raises(MediaError, match=f"the source's {words}; choose .mp4 or .mov"):
            action(tmp_path / "out.mkv")


def test_colours_and_pixel_shape_survive(tmp_path):
    colours = {
        "colorspace": "bt709",
        "color_primaries": "bt709",
        "color_trc": "bt709",
        "color_range": "pc",
    }
    path = make_film(
        tmp_path / "film.mp4", 12, pix_fmt="yuvj420p", options={**colours, "aspect": "4:3"}
    )
    for suffix in (".mp4", ".mkv"):
        one, two = index_video(path), index_video(copied(path, tmp_path / f"out{suffix}"))
        names = "colorspace color_range color_primaries color_trc sample_aspect_ratio pix_fmt fps"
        for name in names.split():
            assert getattr(one, name) == getattr(two, name), name


def test_sound_that_fits_nowhere_is_named(tmp_path):
    path = make_film(tmp_path / "film.avi", 25, sound=0.0, sound_codec="wmav2")
    for suffix in (".mp4", ".mov", ".mkv"):
        with pytest.raises(
            MediaError, match=f"{suffix} cannot hold the source's wmav2 audio.*convert the audio"
        ):
            check_output(index_video(path), path, tmp_path / f"out{suffix}")


def test_sound_that_does_not_fit_is_named_before_the_work(tmp_path, codec="pcm_s16le"):
    path = make_film(tmp_path / "film.mkv", 25, sound=0.0, sound_codec=codec)
    with pytest.raises(
        MediaError, match=f"mp4 cannot hold the source's {codec} audio.*choose .mkv"
    ):
        check_output(index_video(path), path, tmp_path / "out.mp4")
    with pytest.raises(MediaError, match=codec):
        copied(path, tmp_path / "out.mp4")
    assert not (tmp_path / "out.mp4").exists()
    check_output(index_video(path), path, tmp_path / "out.mkv")
    assert [data for _, data in sound(copied(path, tmp_path / "out.mkv"))] == [
        data for _, data in sound(path)
    ]


@pytest.mark.parametrize("version", ["14.0.1", "14.1.0"])
def test_a_pyav_that_spoils_copies_is_named_before_the_work(tmp_path, monkeypatch, version):
    path = make_film(tmp_path / "film.mp4", 4)
    index = index_video(path)
    monkeypatch.setattr(av, "__version__", version)
    with pytest.raises(MediaError, match=f"PyAV {version}"):
        check_output(index, path, tmp_path / "out.mp4")


def test_streams_are_copied_not_encoded():
    """Without ``opaque``, PyAV 14 takes the stream for an encoder's, and the film does not play."""
    asked = []
    output = SimpleNamespace(
        add_stream_from_template=lambda template, **options: asked.append((template, options))
    )
    concat._copy_stream(output, "stream")
    assert asked == [("stream", {"opaque": True})]


def test_the_sound_that_is_played_by_default_stays_so(tmp_path):
    path = make_film(tmp_path / "one.mkv", 25, sound=0.0)
    two = tmp_path / "two.mkv"
    with av.open(str(path)) as film, av.open(str(path)) as other, av.open(str(two), "w") as target:
        pairs = [
            (film, film.streams.video[0]),
            (film, film.streams.audio[0]),
            (other, other.streams.audio[0]),
        ]
        copies = [copy_of(target, each) for _, each in pairs]
        try:
            copies[1].disposition, copies[2].disposition = 0, 1
        except (AttributeError, TypeError):
            pytest.skip("this PyAV cannot set it")
        for copy, (source, stream) in zip(copies, pairs, strict=True):
            source.seek(0)
            for packet in source.demux(stream):
                if packet.size:
                    packet.stream = copy
                    target.mux(packet)
    with av.open(str(copied(two, tmp_path / "out.mkv"))) as made:
        assert [disposition(each) & 1 for each in made.streams.audio] == [0, 1]


@pytest.mark.parametrize("codec", ["flac", "libopus"])
def test_sound_that_a_header_refuses_is_named_before_the_work(tmp_path, codec):
    path = make_film(tmp_path / "film.mkv", 25, sound=0.0, sound_codec=codec)
    with pytest.raises(
        MediaError, match=f"cannot hold the source's {codec[-4:]} audio; choose .mkv"
    ):
        check_output(index_video(path), path, tmp_path / "out.mov")
    check_output(index_video(path), path, tmp_path / "out.mkv")
    assert [each.name for each in tmp_path.iterdir()] == ["film.mkv"]


def with_subtitles(path, out):
    """`path` with one line of SubRip text."""
    text = path.with_suffix(".srt")
    text.write_text("1\n00:00:00,200 --> 00:00:00,800\nHello\n\n", encoding="utf-8")
    with av.open(str(path)) as film, av.open(str(text)) as lines, av.open(str(out), "w") as target:
        pairs = [(film, film.streams.video[0]), (lines, lines.streams.subtitles[0])]
        for source, stream in [(source, copy_of(target, each)) for source, each in pairs]:
            for packet in source.demux():
                if packet.size:
                    packet.stream = stream
                    target.mux(packet)
    return out


def test_subtitles_go_along_where_they_can(tmp_path):
    path = with_subtitles(make_film(tmp_path / "film.mp4", 25), tmp_path / "film.mkv")
    with av.open(str(copied(path, tmp_path / "out.mkv"))) as container:
        (line,) = [bytes(each) for each in container.demux(subtitles=0) if each.size]
        assert line == b"Hello"
    out = copied(path, tmp_path / "out.mp4")
    with av.open(str(out)) as container:
        assert not container.streams.subtitles
    (loss,) = check_output(index_video(path), path, out)
    assert re.fullmatch(r"the subtitle stream 1 \((subrip|srt)\), which \.mp4 cannot hold", loss)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_same_film_same_bytes(tmp_path, suffix):
    tags = {"creation_time": "2024-05-06T07:08:09.000000Z", "title": "take one"}
    path = make_film(tmp_path / "film.mp4", 25, sound=0.0, tags=tags)
    one, two = (
        copied(path, tmp_path / f"{name}{suffix}", crf=18).read_bytes() for name in ("one", "two")
    )
    assert one == two
    code = (
        "import sys, pathlib; from tests.media.clips import copied; "
        "copied(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), crf=18)"
    )
    out = tmp_path / f"three{suffix}"
    subprocess.run([sys.executable, "-c", code, str(path), str(out)], check=True, cwd=ROOT)
    assert out.read_bytes() == one


def segments_of(path, folder, sizes, crf=0):
    index, first, made = index_video(path), 0, []
    for size in sizes:
        made.append(folder / f"{first}.mp4")
        with SegmentWriter(made[-1], index, crf) as writer:
            for shot in read_segment(path, index, first, first + size):
                writer.write(shot)
        first += size
    return index, made


def test_segments_that_do_not_make_the_film_are_refused(tmp_path):
    path = make_film(tmp_path / "film.mp4", 12)
    index, made = segments_of(path, tmp_path, [5, 4])
    out = tmp_path / "out.mp4"
    with pytest.raises(MediaError, match="have 9 frames, the video has 12"):
        concat_segments(made, index, path, out)
    (tmp_path / "other").mkdir()
    other = segments_of(make_film(tmp_path / "small.mp4", 12, (64, 64)), tmp_path / "other", [3])[1]
    with pytest.raises(MediaError, match="other settings than 0.mp4"):
        concat_segments([*made, *other], index, path, out)
    with pytest.raises(MediaError, match="3.mp4: does not exist"):
        concat_segments([*made, tmp_path / "3.mp4"], index, path, out)
    late = remuxed(made[0], tmp_path / "late.mkv")
    data = late.read_bytes()
    late.write_bytes(data[: len(data) * 6 // 10])
    with pytest.raises(MediaError, match="late.mkv|frames"):
        concat_segments([late, made[1]], index, path, out)
    assert not out.exists() and not list(tmp_path.glob(".*")) and not open_files(tmp_path)


def test_a_failure_leaves_the_older_file(tmp_path, monkeypatch):
    path = make_film(tmp_path / "film.mp4", 12, sound=0.0)
    index, made = segments_of(path, tmp_path, [12])
    out = tmp_path / "out.mp4"
    out.write_bytes(b"older")

    def refuse(*names):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(MediaError, match="No space left"):
        concat_segments(made, index, path, out)
    assert (
        out.read_bytes() == b"older" and not list(tmp_path.glob(".*")) and not open_files(tmp_path)
    )


@pytest.mark.parametrize("name", ["missing/out.mp4", "out.nonsense", "out.webm"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, name):
    path = make_film(tmp_path / "film.mp4", 3)
    with pytest.raises(MediaError, match="folder|choose .mp4, .mov or .mkv") as caught:
        check_output(index_video(path), path, tmp_path / name)
    assert caught.value.path == tmp_path / name
    assert [file.name for file in tmp_path.iterdir()] == ["film.mp4"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["d12.mp4", "d9.mp4"])
def test_real_clips_come_back(tmp_path, shared, name):
    path = shared / "data" / "clips" / name
    out = copied(path, tmp_path / "out.mp4", 30, start=1, end=3)
    index = index_video(path, 1, 3)
    with av.open(str(path)) as container:
        frames = [frame for frame in container.decode(video=0) if frame.pts in set(index.pts)]
    assert len(frames) == len(index) == len(index_video(out))
    for frame, back in zip(frames, decoded(out), strict=True):
        assert np.array_equal(
            np.frombuffer(frame.planes[0], np.uint8).reshape(-1, frame.planes[0].line_size)[
                :, : frame.width
            ],
            back[0],
        )
    assert index_video(out).sample_aspect_ratio == index.sample_aspect_ratio
    assert hashlib.md5(b"".join(data for _, data in sound(out))).digest() in _runs(sound(path))


def _runs(packets):
    """Digests of every run of consecutive packets of about 2 s."""
    data = [each for _, each in packets]
    counts = range(80, 100)
    return {
        hashlib.md5(b"".join(data[at : at + count])).digest()
        for at in range(len(data))
        for count in counts
    }


def with_chapters(path: Path, out: Path, marks=((0, 400, "Über"), (400, 1000, "two"))) -> Path:
    """The film with chapters: start and end in milliseconds, and title."""
    with av.open(str(path)) as source, av.open(str(out), "w") as target:
        streams = {one.index: copy_of(target, one) for one in source.streams}
        tick = Fraction(1, 1000)
        target.set_chapters(
            [
                {
                    "id": at,
                    "start": start,
                    "end": end,
                    "time_base": tick,
                    "metadata": {"title": title},
                }
                for at, (start, end, title) in enumerate(marks)
            ]
        )
        for packet in source.demux():
            if packet.size:
                packet.stream = streams[packet.stream_index]
                target.mux(packet)
    return out


@pytest.mark.skipif(
    not hasattr(av.container.InputContainer, "chapters"), reason="this PyAV knows no chapters"
)
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (None, None, [("Über", 0, 0.4), ("two", 0.4, 1)]),
        (0.2, 0.6, [("Über", 0, 0.2), ("two", 0.2, 0.4)]),
        (0.6, None, [("two", 0, 0.4)]),
    ],
)
def test_chapters_go_along(tmp_path, suffix, start, end, expected):
    path = with_chapters(make_film(tmp_path / "film.mp4", 25, sound=0), tmp_path / "told.mp4")
    out = copied(path, tmp_path / f"new{suffix}", start=start, end=end)
    with av.open(str(out)) as film:
        found = film.chapters()
        assert [one.type for one in film.streams if one.type in ("video", "audio")] == [
            "video",
            "audio",
        ]
    assert [one["metadata"]["title"] for one in found] == [title for title, *_ in expected]
    places = [[float(one[name] * one["time_base"]) for name in ("start", "end")] for one in found]
    assert np.allclose(places, [place for _, *place in expected], atol=0.03), (
        "sound ends a little later"
    )


@pytest.mark.skipif(
    not hasattr(av.container.InputContainer, "chapters"), reason="this PyAV knows no chapters"
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_chapter_that_begins_late_stays_where_it_is(tmp_path, suffix):
    marks = ((500, 700, "one"), (700, 1000, "two"))
    path = with_chapters(make_film(tmp_path / "film.mp4", 25), tmp_path / "told.mkv", marks)
    with av.open(str(copied(path, tmp_path / f"new{suffix}"))) as film:
        found = [
            (one["metadata"].get("title"), float(one["start"] * one["time_base"]))
            for one in film.chapters()
        ]
    assert [name for name, _ in found if name] == ["one", "two"]
    assert [place for name, place in found if name] == pytest.approx([0.5, 0.7], abs=0.03)


@pytest.mark.skipif(
    not hasattr(av.container.InputContainer, "chapters"), reason="this PyAV knows no chapters"
)
def test_titles_that_are_not_utf8_are_read_as_latin_1(tmp_path):
    path = with_chapters(make_film(tmp_path / "film.mp4", 25), tmp_path / "told.mp4")
    path.write_bytes(path.read_bytes().replace("Über".encode(), b"\xdc\xffber"))
    out = copied(path, tmp_path / "out.mp4")
    with av.open(str(out)) as film:
        assert "Üÿber" in [chapter["metadata"]["title"] for chapter in film.chapters()]
    assert times(out) == times(path)


def test_tags_that_are_not_utf8_do_not_cost_the_film(tmp_path):
    path = make_film(tmp_path / "film.avi", 5, codec="mpeg4", tags={"title": "Maerz"})
    path.write_bytes(path.read_bytes().replace(b"Maerz", b"M\xe4rz\0"))
    with av.open(str(copied(path, tmp_path / "out.mp4"))) as film:
        assert film.metadata["title"] == "März"
