"""A damaged spot or a change of size: such frames go through and are told, or end the reading."""

from __future__ import annotations

import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from musetalk_enhance.errors import MediaError
from musetalk_enhance.media import index_video, read_segment
from tests.media.clips import (
    copied,
    copy_of,
    decoded,
    make_film,
    picture,
    planes_of,
    remuxed,
    same_planes,
    times,
)


def kinds(path, first=0, stop=None):
    index = index_video(path, strict=False)
    shots = list(read_segment(path, index, first, stop or len(index)))
    assert [shot.index for shot in shots] == list(range(first, stop or len(index)))
    assert [shot.pts for shot in shots] == list(index.pts[first:stop])
    return shots, [shot.damage for shot in shots]


@pytest.fixture
def broken(tmp_path):
    """30 frames, a key frame every 10; the packets of two of them are noise."""
    whole = make_film(tmp_path / "whole.mp4", 30, options={"g": "10", "bf": "0"})

    def edit(packet, at):
        rng = np.random.default_rng(at)
        return rng.bytes(packet.size) if at in (14, 25) else bytes(packet)

    return whole, remuxed(whole, tmp_path / "broken.mp4", edit)


def test_a_frame_that_cannot_be_decoded_is_repeated(broken):
    whole, path = broken
    shots, damage = kinds(path)
    assert {damage[14], damage[25]} <= {"repeated", "concealed"}
    intact = [number for number in range(30) if damage[number] is None]
    assert set(range(14)) | {20, 21, 22, 23, 24} <= set(intact)
    played = decoded(whole)
    for number in range(14):
        assert same_planes([_planes(shots[number])], [played[number]])
    out = copied(whole, path.with_name("copy.mp4"))
    assert times(out) == times(whole)


def _planes(shot):
    return planes_of(shot.frame)


@pytest.mark.parametrize(("first", "stop"), [(0, 30), (12, 18), (14, 15), (20, 30), (25, 26)])
def test_any_range_is_whole_and_the_same(broken, first, stop):
    _, path = broken
    everything, all_damage = kinds(path)
    shots, damage = kinds(path, first, stop)
    assert damage == all_damage[first:stop]
    for one, other in zip(shots, everything[first:stop], strict=True):
        assert same_planes([_planes(one)], [_planes(other)])


def test_strict_reading_ends_there(broken):
    _, path = broken
    index = index_video(path)
    assert index.strict
    with pytest.raises(MediaError, match="after frame 1[34]"):
        list(read_segment(path, index, 0, 30))


def test_the_first_frames_are_replaced_by_the_next_that_is_whole(tmp_path):
    """The first key frame is lost after the index was made; the second one begins at frame 6."""
    whole = make_film(tmp_path / "whole.mp4", 12, options={"g": "6", "bf": "0"})
    whole = remuxed(whole, tmp_path / "same.mp4")
    index = index_video(whole, strict=False)
    path = remuxed(
        whole,
        tmp_path / "bad.mp4",
        lambda packet, at: bytes(packet.size) if at < 6 else bytes(packet),
    )
    shots = list(read_segment(path, index, 0, 12))
    damage = [shot.damage for shot in shots]
    assert damage == ["repeated"] * 6 + [None] * 6
    assert same_planes([_planes(shots[0])], [_planes(shots[damage.index(None)])])


def resized(path, suffix):
    """VP8 that changes from 96 x 64 to 48 x 32 and back, as WebRTC does."""
    parts = [make_film(path / f"{n}.webm", 8, size, codec="libvpx") for n, size in
             enumerate(((96, 64), (48, 32), (96, 64)))]  # fmt: skip
    out = path / f"resized{suffix}"
    with av.open(str(out), "w") as target:
        stream = None
        for number, part in enumerate(parts):
            with av.open(str(part)) as source:
                stream = stream or copy_of(target, source.streams.video[0])
                for at, packet in enumerate(p for p in source.demux(video=0) if p.size):
                    packet.stream, packet.time_base = stream, Fraction(1, 25)
                    packet.pts = packet.dts = 8 * number + at
                    target.mux(packet)
    return out


def test_frames_of_another_size_are_scaled(tmp_path):
    path = resized(tmp_path, ".webm")
    shots, damage = kinds(path)
    assert damage == [None] * 8 + ["scaled"] * 8 + [None] * 8
    assert {shot.bgr.shape for shot in shots} == {(64, 96, 3)}
    # The scaled frames show the same picture: both parts begin with the same one.
    difference = np.abs(shots[8].bgr.astype(int) - shots[0].bgr).mean()
    assert difference < 25
    with pytest.raises(MediaError, match="frame 8 is 48 x 32 yuv420p; the first one was 96 x 64"):
        list(read_segment(path, index_video(path), 0, 24))


def test_damaged_packets_of_a_transport_stream_are_counted(tmp_path):
    path = make_film(tmp_path / "whole.ts", 50, options={"crf": "1"}, sound=0.0)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2 // 188 * 188
    del data[middle : middle + 188 * 3]  # lost packets: the counters of the others tell
    path = tmp_path / "lost.ts"
    path.write_bytes(data)
    index = index_video(path, strict=False)
    assert index.damaged_packets > 0
    shots, damage = kinds(path)
    assert len(shots) == len(index)
    with pytest.raises(MediaError, match="truncated or damaged"):
        index_video(path)


def test_a_table_of_times_that_lacks_frames_is_damage(tmp_path):
    path = make_film(tmp_path / "whole.mp4", 30)
    assert index_video(path, strict=False).unlisted_frames == 0
    data = bytearray(path.read_bytes())
    at = data.index(b"stts") + 8  # after version, flags and the number of entries
    assert int.from_bytes(data[at + 4 : at + 8], "big") == 30
    data[at + 4 : at + 8] = (5).to_bytes(4, "big")
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(data)
    assert index_video(damaged, strict=False).unlisted_frames == 25
    with pytest.raises(MediaError, match="lists no times of 25 of its frames"):
        index_video(damaged)


def with_edits(data: bytes, edits: list[tuple[int, int]]) -> bytes:
    """An MP4 file that shows parts of its video: (milliseconds, time of the media) of each."""
    entries = b"".join(struct.pack(">IiI", *edit, 1 << 16) for edit in edits)
    box = struct.pack(">I4sII", 16 + len(entries), b"elst", 0, len(edits)) + entries
    result, at = bytearray(data), data.index(b"elst") - 4
    old = int.from_bytes(data[at : at + 4], "big")
    result[at : at + old] = box
    for name in (b"edts", b"trak", b"moov"):
        begin = data.index(name) - 4
        size = int.from_bytes(data[begin : begin + 4], "big") + len(box) - old
        result[begin : begin + 4] = size.to_bytes(4, "big")
    return bytes(result)


@pytest.mark.parametrize("kind", ["fragments", "edits"])
def test_more_packets_than_listed_times_are_no_damage(tmp_path, kind):
    """The first fragment's frames alone are listed; edits show a part of the video twice."""
    path = tmp_path / "video.mp4"
    fragments = {"frag_duration": "400000"} if kind == "fragments" else {}
    with av.open(str(path), "w", options=fragments) as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.codec_context.gop_size = 96, 64, 10
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(picture(number, (96, 64)), format="bgr24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if kind == "edits":
        path.write_bytes(with_edits(path.read_bytes(), [(800, 0), (800, 0)]))
    with av.open(str(path)) as container:
        (video,) = container.streams.video
        packets = sum(packet.size > 0 for packet in container.demux(video))
        assert 0 < video.frames < packets
    assert index_video(path).unlisted_frames == 0
