"""What a copy cannot hold is named before the work, and what it can hold is in it."""

from __future__ import annotations

import io
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from musetalk_enhance.errors import MediaError
from musetalk_enhance.media import (
    VideoWriter,
    check_output,
    container,
    display_matrix,
    index_video,
    probe,
    read_frames,
)
from musetalk_enhance.media.pixel_converter import PixelConverter, field_order
from musetalk_enhance.media.timecode import move_timecode, read_timecode
from tests.media.clips import copied, copy_of, decoded, make_film, same_planes, sound, times

PYAV = tuple(int(part) for part in av.__version__.split(".")[:2])


def losses(path: Path, suffix: str = ".mp4", **clip) -> str:
    return "; ".join(check_output(index_video(path, **clip), path, path.with_name(f"out{suffix}")))


def combined(out: Path, *paths: Path, edit=None) -> Path:
    """All streams of some files in one; `edit(output)` adds what it likes first."""
    sources = [av.open(str(path)) for path in paths]
    with av.open(str(out), "w") as target:
        if edit:
            edit(target)
        pairs = [(source, s, copy_of(target, s)) for source in sources for s in source.streams]
        for source, stream, copy in pairs:
            source.seek(0)
            for packet in source.demux(stream):
                if packet.size:
                    packet.stream = copy
                    target.mux(packet)
    for source in sources:
        source.close()
    return out


def test_a_plain_video_loses_nothing(tmp_path):
    path = make_film(tmp_path / "film.mp4", 10, sound=0.0, tags={"title": "A film"})
    assert losses(path) == losses(path, ".mkv") == losses(path, ".mov") == ""
    assert [file.name for file in tmp_path.iterdir()] == ["film.mp4"]


@pytest.mark.parametrize("pix_fmt", ["yuva444p10le", "yuva420p"])
def test_transparency_is_named(tmp_path, pix_fmt):
    codec = {"yuva444p10le": ("alpha.mov", "prores_ks"), "yuva420p": ("alpha.webm", "libvpx-vp9")}
    name, codec_name = codec[pix_fmt]
    path = make_film(tmp_path / name, 3, codec=codec_name, pix_fmt=pix_fmt)
    assert losses(path).startswith("transparency")


def test_further_video_streams_are_named(tmp_path):
    one, two = make_film(tmp_path / "one.mp4", 5), make_film(tmp_path / "two.mp4", 5, (48, 32))
    path = combined(tmp_path / "both.mp4", one, two)
    assert losses(path) == "the video stream 1 (h264)"


@pytest.mark.skipif(
    not hasattr(av.container.OutputContainer, "add_attachment"), reason="PyAV cannot add one"
)
@pytest.mark.parametrize(
    ("name", "mime", "words"),
    [
        ("letters.ttf", "application/x-truetype-font", "attachment"),
        ("cover.png", "image/png", "cover"),
    ],
)
def test_attachments_and_covers_are_named(tmp_path, name, mime, words):
    film, picture = make_film(tmp_path / "film.mp4", 5), io.BytesIO()
    Image.new("RGB", (16, 16)).save(picture, "PNG")

    def attach(target):
        target.add_attachment(name, mime, picture.getvalue())

    path = combined(tmp_path / "film.mkv", film, edit=attach)
    assert losses(path, ".mkv") == f"the {words} 1 ({name})"
    assert len(index_video(path)) == 5


def test_tags_that_a_container_drops_are_named(tmp_path):
    path = make_film(tmp_path / "film.mkv", 5, tags={"title": "A film", "MOOD": "calm"})
    assert losses(path) == "the tags MOOD"
    assert losses(path, ".mkv") == ""


def unknown_codec(path: Path, fourcc: bytes, replacement: bytes) -> Path:
    path.write_bytes(path.read_bytes().replace(fourcc, replacement))
    return path


def test_audio_without_a_decoder_is_left_out_and_named(tmp_path):
    path = combined(
        tmp_path / "two.mov",
        make_film(tmp_path / "film.mov", 25, sound=0.0),
        make_film(tmp_path / "pcm.mov", 25, sound=0.0, sound_codec="pcm_s16le"),
    )
    data = path.read_bytes()
    path.write_bytes(data.replace(b"sowt", b"qzzx"))
    with av.open(str(path)) as opened:
        if all(stream.codec_context for stream in opened.streams.audio):
            pytest.skip("this FFmpeg decodes it all the same")
    named = losses(path)
    assert "the audio stream" in named and "no decoder" in named
    index = index_video(path)
    assert [stream.codec for stream in index.audio] == ["aac"]
    out = copied(path, tmp_path / "out.mp4")
    assert len(sound(out)) == len(sound(tmp_path / "film.mov"))


def test_a_codec_without_a_decoder_is_named(tmp_path):
    path = unknown_codec(make_film(tmp_path / "film.mp4", 5), b"avc1", b"qzzx")
    for action in (index_video, probe, lambda path: next(read_frames(path))):
        with pytest.raises(MediaError, match="'qzzx', has no decoder.*H.264"):
            action(path)


@pytest.mark.parametrize("order", ["tff", "bff"])
def test_interlaced_frames_stay_interlaced(tmp_path, order):
    path = tmp_path / "fields.mp4"
    rng = np.random.default_rng(1)
    with av.open(str(path), "w") as target:
        stream = target.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.options = {"crf": "0", "x264-params": f"{order}=1"}
        fields = PixelConverter()
        for _ in range(5):
            image = rng.integers(0, 256, (64, 96, 3), np.uint8)
            frame = fields.to_yuv(image, interlaced=True)
            frame = PixelConverter().with_fields(frame, order)
            for packet in stream.encode(frame):
                target.mux(packet)
        for packet in stream.encode(None):
            target.mux(packet)
    index = index_video(path)
    assert index.interlaced == order and index.coded_wh == (96, 64)

    def change(shot):
        return 255 - shot.bgr, (16, 16, 48, 48)

    plain, changed = (
        copied(path, tmp_path / f"{name}.mp4", change=each)
        for name, each in (("plain", None), ("changed", change))
    )
    assert same_planes(decoded(path), decoded(plain))
    for copy in (plain, changed):
        with av.open(str(copy)) as opened:
            assert {field_order(frame) for frame in opened.decode(video=0)} == {order}
    for before, after in zip(decoded(path), decoded(changed), strict=True):
        for at, (one, other) in enumerate(zip(before, after, strict=True)):
            inside = slice(16 // (2 if at else 1), 48 // (2 if at else 1))
            assert not np.array_equal(one[inside, inside], other[inside, inside])
            mask = np.ones(one.shape, bool)
            mask[inside, inside] = False
            assert np.array_equal(one[mask], other[mask])


def test_interlaced_chroma_is_not_mixed_between_fields(tmp_path):
    """Red lines in one field, blue ones in the other: through yuv420p and back they stay so."""
    image = np.zeros((64, 96, 3), np.uint8)
    image[::2, :, 2] = image[1::2, :, 0] = 255
    converter = PixelConverter()
    frame = converter.with_fields(converter.to_yuv(image, interlaced=True), "tff")
    assert np.abs(converter.to_bgr(frame).astype(int) - image).mean() < 8
    mixed = converter.to_bgr(converter.to_yuv(image))
    assert np.abs(mixed.astype(int) - image).mean() > 20


@pytest.mark.parametrize(
    ("text", "frames", "fps", "moved"),
    [
        ("01:00:00:00", 5, Fraction(25), "01:00:00:05"),
        ("01:00:00:24", 1, Fraction(25), "01:00:01:00"),
        ("23:59:59:24", 1, Fraction(25), "00:00:00:00"),
        ("00:00:59;29", 1, Fraction(30000, 1001), "00:01:00;02"),
        ("00:09:59;29", 1, Fraction(30000, 1001), "00:10:00;00"),
        ("00:00:00;00", 17982, Fraction(30000, 1001), "00:10:00;00"),
        ("00:00:00;00", 107892, Fraction(30000, 1001), "01:00:00;00"),
        ("00:01:59;59", 1, Fraction(60000, 1001), "00:02:00;04"),
        ("00:00:59:29", 1, Fraction(30000, 1001), "00:01:00:00"),
        ("not one", 5, Fraction(25), "not one"),
    ],
)
def test_timecodes_move_by_frames(text, frames, fps, moved):
    assert move_timecode(text, frames, fps) == moved


def test_drop_frame_timecodes_skip_their_numbers():
    """SMPTE ST 12-1: counted one by one, 2 numbers are left out in each minute but every tenth."""
    fps, text, expected = Fraction(30000, 1001), "00:00:00;00", (0, 0, 0)
    for _ in range(1800 * 12):
        minute, second, number = expected
        number += 1
        if number == 30:
            second, number = second + 1, 0
        if second == 60:
            minute, second = minute + 1, 0
            number = 2 if minute % 10 else 0
        expected = minute, second, number
        text = move_timecode(text, 1, fps)
        assert text == "00:{:02}:{:02};{:02}".format(*expected)


@pytest.mark.parametrize("source", [".mov", ".mkv"])
@pytest.mark.parametrize("target", [".mov", ".mp4", ".mkv"])
def test_the_timecode_is_kept_and_moved_with_the_start(tmp_path, source, target):
    path = make_film(tmp_path / f"film{source}", 25, tags={"timecode": "01:00:00:00"})
    for start, expected in ((None, "01:00:00:00"), (0.2, "01:00:00:05")):
        named = losses(path, target, start=start)
        out = copied(path, tmp_path / f"out{target}", start=start)
        with av.open(str(out)) as opened:
            timecode = read_timecode(opened)
        if target != ".mkv" and PYAV < (14,) and timecode is None:  # it copies no frame rate
            assert named == f"the timecode {expected}"
        else:
            assert (named, timecode) == ("", expected)


def test_a_timecode_that_a_container_cannot_hold_is_named(tmp_path):
    path = make_film(tmp_path / "film.mkv", 6, fps=Fraction(7), tags={"timecode": "01:00:00:00"})
    named = losses(path)
    out = copied(path, tmp_path / "out.mp4")
    with av.open(str(out)) as opened:
        kept = read_timecode(opened) == "01:00:00:00"
    assert kept != ("the timecode 01:00:00:00" in named)


@pytest.mark.parametrize("name", ["12:30.mp4", "http:talk.mp4", "a:b:c.mkv"])
def test_a_name_with_a_colon_is_a_file(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    film = make_film(tmp_path / "film.mp4", 5, sound=0.0)
    Path(name).write_bytes(film.read_bytes())
    assert probe(name).frames == 5 and len(list(read_frames(name))) == 5
    out = copied(Path(name), Path(f"copy:{name}"))
    assert same_planes(decoded(film), decoded(Path(f"file:copy:{name}").absolute().parent / out))
    with VideoWriter(f"new:{name}", 25, (96, 64)) as writer:
        for frame in read_frames(name):
            writer.write(frame)
    assert Path(f"new:{name}").is_file()


def test_the_longest_name_is_written(tmp_path):
    film = make_film(tmp_path / "film.mp4", 5)
    path = tmp_path / ("n" * 251 + ".mp4")
    os.rename(film, path)
    out = tmp_path / ("o" * 251 + ".mp4")
    index = index_video(path)
    check_output(index, path, out)
    with VideoWriter(out, 25, (96, 64)) as writer:
        for frame in read_frames(path):
            writer.write(frame)
    assert len(list(read_frames(out))) == 5


def test_every_error_of_ffmpeg_is_ours(tmp_path, monkeypatch):
    path = make_film(tmp_path / "film.mp4", 5)
    classes = [each for each in vars(av.error).values() if isinstance(each, type)]
    classes = [each for each in classes if issubclass(each, av.error.FFmpegError)]
    assert len(classes) > 20
    for each in classes:

        def fail(*_, **__):
            raise each(1, "broken", "file")  # noqa: B023

        monkeypatch.setattr(av, "open", fail)
        for action in (index_video, probe, lambda path: next(read_frames(path))):
            with pytest.raises(MediaError, match="film.mp4"):
                action(path)
        with pytest.raises(MediaError, match="out.mp4"):
            VideoWriter(tmp_path / "out.mp4", 25, (96, 64))


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfilm.mp4\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile film.mp4\n",
    ],
)
def test_a_playlist_reads_no_other_file(tmp_path, text):
    make_film(tmp_path / "film.mp4", 5)
    path = tmp_path / "list.mp4"
    path.write_text(text)
    with pytest.raises(MediaError, match="playlist|not a readable video"):
        index_video(path)


def test_a_clock_is_not_taken_for_a_frame_rate(tmp_path):
    stream = type("Stream", (), {"average_rate": Fraction(60000), "guessed_rate": Fraction(25)})
    assert container.frame_rate("a.dv", stream) == 25
    stream = type("Stream", (), {"average_rate": Fraction(90000), "guessed_rate": None})
    one, film = make_film(tmp_path / "one.mp4", 1), make_film(tmp_path / "film.mp4", 12)
    with pytest.raises(MediaError, match="states no frame rate that can be one .90000 per second"):
        container.frame_rate(one, stream)
    assert container.frame_rate(film, stream) == 25


def camera_mov(path: Path, orientation: int) -> Path:
    """An MJPEG .mov of a camera: each frame is a JPEG with EXIF."""
    image, exif = Image.fromarray(np.zeros((64, 96, 3), np.uint8)), Image.Exif()
    image.paste((255, 255, 255), (0, 0, 48, 32))
    exif[0x0112], exif[0x010F] = orientation, "Camera"
    data = io.BytesIO()
    image.save(data, "JPEG", exif=exif, quality=95)
    with av.open(str(path), "w") as target:
        stream = target.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuvj420p"
        for at in range(4):
            packet = av.Packet(data.getvalue())
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            packet.pts = packet.dts = at
            packet.is_keyframe = True
            target.mux(packet)
    return path


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_frames_with_exif_are_read(tmp_path, orientation):
    path = camera_mov(tmp_path / "camera.mov", orientation)
    index = index_video(path)
    frames = list(read_frames(path))
    assert len(frames) == len(index) == 4
    assert frames[0].shape == (index.height, index.width, 3)
    if index.is_rotated:  # only an FFmpeg that takes the orientation of EXIF for one of the video
        corner = {3: (-1, -1), 6: (0, -1), 8: (-1, 0)}[orientation]
        assert frames[0][corner].min() > 240
    for before, after in zip(frames, read_frames(copied(path, tmp_path / "out.mp4")), strict=True):
        assert before.shape == after.shape
        assert np.abs(before.astype(int) - after).mean() < 2


@pytest.mark.parametrize(("degrees", "turns"), [(0, 0), (90, 1), (180, 2), (-90, 3), (-180, 2)])
def test_side_data_of_an_unknown_type_does_not_cost_the_rotation(monkeypatch, degrees, turns):
    def refuse(frame):
        raise ValueError("31 is not a valid Type")

    monkeypatch.setattr("av.sidedata.sidedata.SideDataContainer", refuse)
    frame = type("Frame", (), {"rotation": degrees})()
    assert display_matrix.side_data_of(frame) is None
    assert display_matrix.orientation(frame) == (turns, False)


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_audio_and_frames_of_an_avi_move_by_the_same(tmp_path, suffix):
    """Frames out of order begin at 40 ms, and AVI counts audio in packets of 36 ms."""
    path = make_film(
        tmp_path / "film.avi", 12, codec="mpeg4", options={"bf": "2", "g": "12"}, sound=0.0,
        sound_codec="libmp3lame",
    )  # fmt: skip
    out = copied(path, tmp_path / f"out{suffix}")
    frames = {a - b for a, b in zip(times(path), times(out), strict=True)}
    audio = {a[0] - b[0] for a, b in zip(sound(path), sound(out), strict=True)}
    assert times(path)[0] > 0, "the film does not begin late: the test shows nothing"
    assert len(frames) == 1
    assert all(abs(move - min(frames)) < Fraction(1, 1000) for move in audio)
