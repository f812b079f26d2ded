"""Small films made on the spot, and what is compared of them."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil

from musetalk_enhance.media import SegmentWriter, concat_segments, index_video, read_segment
from musetalk_enhance.media.writer import X264_PARAMS

NTSC = Fraction(30000, 1001)
QUARTERS = {
    90: (0, -1 << 16, 0, 1 << 16, 0, 0, 0, 96 << 16, 1 << 30),
    180: (-1 << 16, 0, 0, 0, -1 << 16, 0, 96 << 16, 64 << 16, 1 << 30),
    270: (0, 1 << 16, 0, -1 << 16, 0, 0, 64 << 16, 0, 1 << 30),
}
"""Display matrices of a 96 x 64 film that a player turns so many degrees to the left."""
FLIPS = {
    "left-right": (-1 << 16, 0, 0, 0, 1 << 16, 0, 96 << 16, 0, 1 << 30),
    "top-bottom": (1 << 16, 0, 0, 0, -1 << 16, 0, 0, 64 << 16, 1 << 30),
    "transposed": (0, 1 << 16, 0, 1 << 16, 0, 0, 0, 0, 1 << 30),
    "transversed": (0, -1 << 16, 0, -1 << 16, 0, 0, 64 << 16, 96 << 16, 1 << 30),
}
"""Display matrices of a 96 x 64 film that a player mirrors; see `as_displayed`."""
UPRIGHT = (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)


def picture(at: int, size_wh=(96, 64)) -> np.ndarray:
    """BGR uint8: a gradient under a bright square that wanders, so that frames differ and B-frames
    pay off."""
    x, y = np.meshgrid(np.linspace(0, 1, size_wh[0]), np.linspace(0, 1, size_wh[1]))
    image = np.stack([40 + 150 * x, 60 + 120 * y, 200 - 100 * x * y], axis=-1)
    left, top = 3 * at % (size_wh[0] - 16), 2 * at % (size_wh[1] - 16)
    image[top : top + 12, left : left + 12] = (30, 40, 220)
    return np.rint(image).astype(np.uint8)


def make_film(
    path: Path,
    count: int = 24,
    size_wh=(96, 64),
    fps: Fraction = Fraction(25),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options=None,
    pts=None,
    time_base=None,
    sound: float | None = None,
    sound_codec: str = "aac",
    tags=None,
) -> Path:
    """A film of `count` pictures; with `sound`, a tone that begins so many seconds after the
    container's 0."""
    with av.open(str(path), "w") as container:
        container.metadata.update(tags or {})
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size_wh, pix_fmt
        x264 = {"crf": "10", "x264-params": X264_PARAMS} if codec == "libx264" else {}
        stream.options = dict(x264, **(options or {}))
        stream.codec_context.time_base = time_base or 1 / fps
        tone = None
        if sound is not None:
            tone = container.add_stream(sound_codec, rate=16000)
            tone.metadata["language"] = "deu"
            _tone(container, tone, sound, count / fps)
        for at in range(count):
            frame = av.VideoFrame.from_ndarray(picture(at, size_wh), format="bgr24")
            frame = frame.reformat(format=pix_fmt)
            frame.pts, frame.time_base = pts[at] if pts else at, time_base or 1 / fps
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _tone(container, stream, start: float, seconds: Fraction) -> None:
    rate, side = 16000, 1024
    formats = {"aac": "fltp", "libmp3lame": "fltp", "wmav2": "fltp"}
    stream.codec_context.layout, stream.codec_context.bit_rate = "mono", 24000
    stream.codec_context.format = formats.get(stream.codec_context.name, "s16")
    for at in range(int(seconds * rate) // side):
        wave = np.sin(np.arange(at * side, (at + 1) * side) / 7.0)[None]
        floats = stream.codec_context.name in formats
        samples = wave.astype(np.float32) if floats else (wave * 9000).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(
            samples, format="fltp" if floats else "s16", layout="mono"
        )
        frame.rate, frame.pts, frame.time_base = (
            rate,
            int(start * rate) + at * side,
            Fraction(1, rate),
        )
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def copy_of(target, template):
    """A stream of `target` for the packets of `template`; PyAV before 14 has it under another
    name."""
    if hasattr(target, "add_stream_from_template"):
        return target.add_stream_from_template(template, opaque=True)
    return target.add_stream(template=template)


def remuxed(path: Path, out: Path, edit=None) -> Path:
    """The same streams in another container, its list of packets first; `edit(packet, at)` gives
    new bytes."""
    with (
        av.open(str(path)) as source,
        av.open(str(out), "w", options={"movflags": "+faststart"}) as target,
    ):
        streams = {each.index: copy_of(target, each) for each in source.streams}
        for at, packet in enumerate(source.demux()):
            if packet.size:
                if edit:
                    packet.update(edit(packet, at))
                packet.stream = streams[packet.stream_index]
                target.mux(packet)
    return out


def turn(path: Path, matrix) -> Path:
    """Put a display matrix into the only track of an .mp4 file."""
    data = bytearray(path.read_bytes())
    start = data.index(struct.pack(">9i", *UPRIGHT), data.index(b"tkhd"))
    data[start : start + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(data)
    return path


def as_displayed(image: np.ndarray, name) -> np.ndarray:
    """What a player makes of a stored image, for a name of `QUARTERS` or `FLIPS`."""
    if name in QUARTERS:
        return np.rot90(image, name // 90)
    transposed = image.transpose(1, 0, 2)
    return {
        "left-right": image[:, ::-1],
        "top-bottom": image[::-1],
        "transposed": transposed,
        "transversed": transposed[::-1, ::-1],
    }[name]


def with_orientation(path: Path, out: Path, quarter_turns) -> Path:
    """A raw H.264 stream whose n-th frame states the rotation `quarter_turns[n]`, None for none.

    By a display orientation SEI message before the frame (ITU-T H.264, D.1.27).
    """
    at = 0
    pieces = []
    for unit in path.read_bytes().split(b"\0\0\1")[1:]:
        if unit[0] & 31 in (1, 5) and at < len(quarter_turns):
            turns, at = quarter_turns[at], at + 1
            if turns is not None:
                # cancel, flips: 0; 16 bits of angle; repetition period ue(1) = 010; extension 0
                bits = f"000{turns << 14:016b}0100" + "1"
                body = int(bits.ljust(24, "0"), 2).to_bytes(3, "big")
                pieces.append(bytes((6, 47, len(body))) + body + b"\x80")
        pieces.append(unit.rstrip(b"\0"))
    out.write_bytes(b"".join(b"\0\0\0\1" + piece for piece in pieces))
    return out


def copied(
    path: Path, out: Path, size: int = 10, crf: int = 0, change=None, start=None, end=None
) -> Path:
    """`path` through index, segments of `size` frames and join; `change(shot)` gives (bgr,
    box_xyxy)."""
    index = index_video(path, start, end)
    segments = []
    for first in range(0, len(index), size):
        segments.append(out.with_name(f"{out.stem}-{first:04}.mp4"))
        with SegmentWriter(
            segments[-1], index, crf, "ultrafast" if crf == 0 else "medium"
        ) as writer:
            for shot in read_segment(path, index, first, min(first + size, len(index))):
                writer.write(shot, *(change(shot) if change else ()))
    concat_segments(segments, index, path, out)
    for segment in segments:
        segment.unlink()
    return out


def planes_of(frame) -> list[np.ndarray]:
    rows = [np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size) for plane in frame.planes]
    return [
        row[: plane.height, : plane.width].copy()
        for row, plane in zip(rows, frame.planes, strict=True)
    ]


def decoded(path: Path) -> list[list[np.ndarray]]:
    """The planes of every frame, by decoding from the beginning."""
    with av.open(str(path)) as container:
        return [planes_of(frame) for frame in container.decode(video=0)]


def same_planes(one, other) -> bool:
    return len(one) == len(other) and all(
        len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
        for a, b in zip(one, other, strict=True)
    )


def times(path: Path) -> list[Fraction]:
    """When each frame is shown, in seconds, exact."""
    with av.open(str(path)) as container:
        return [frame.pts * frame.time_base for frame in container.decode(video=0)]


def sound(path: Path) -> list[tuple[Fraction, bytes]]:
    """Time and bytes of every sound packet."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        return [
            (each.pts * stream.time_base, bytes(each))
            for each in container.demux(stream)
            if each.size
        ]


def open_files(folder: Path) -> list[str]:
    return [file.path for file in psutil.Process().open_files() if str(folder) in file.path]
