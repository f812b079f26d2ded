"""Videos and pictures: exact rates, true colours, nothing lost, nothing half-written, nothing left
open."""

from __future__ import annotations

import enum
import struct
import wave
from fractions import Fraction
from types import SimpleNamespace

import av
import cv2
import numpy as np
import psutil
import pytest

from musetalk_enhance.errors import ConfigError, FrameError, MediaError
from musetalk_enhance.media import (
    VideoWriter,
    exact_fps,
    probe,
    read_frames,
    read_image,
    write_image,
)
from musetalk_enhance.media.container import disposition
from musetalk_enhance.media.pixel_converter import PixelConverter

pytestmark = pytest.mark.filterwarnings("error")

NTSC = Fraction(30000, 1001)


def gradient(index=0, size_wh=(96, 64)) -> np.ndarray:
    """A smooth picture that differs from frame to frame."""
    x, y = np.meshgrid(np.linspace(0, 1, size_wh[0]), np.linspace(0, 1, size_wh[1]))
    channels = [40 + 150 * x, 60 + 120 * y, 50 + 8 * index % 160 + 0 * x]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def write(path, frames, fps=Fraction(25), **options):
    with VideoWriter(path, fps, frames[0].shape[1::-1], **options) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def clip(path, count=7, fps=Fraction(25)):
    return write(path, [gradient(i) for i in range(count)], fps)


def opened(folder) -> list[str]:
    return [file.path for file in psutil.Process().open_files() if str(folder) in file.path]


@pytest.mark.parametrize("fps", [Fraction(25), NTSC, Fraction(24000, 1001), Fraction(50)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_rate_count_and_size_survive(tmp_path, fps, suffix):
    info = probe(clip(tmp_path / f"clip{suffix}", 7, fps))
    assert (info.width, info.height) == (96, 64)
    assert info.frames in (7, None)  # Matroska does not state it
    # Matroska keeps times in whole milliseconds, so its rate is a measured one.
    assert info.fps == fps or (suffix == ".mkv" and abs(info.fps / fps - 1) < 1e-3)
    assert info.duration == pytest.approx(7 / fps, abs=0.002)
    assert sum(1 for _ in read_frames(tmp_path / f"clip{suffix}")) == 7


def test_frames_come_back_in_order_and_contiguous(tmp_path):
    frames = [gradient(i) for i in range(12)]
    back = list(read_frames(write(tmp_path / "clip.mp4", frames)))
    for frame, copy in zip(frames, back, strict=True):
        assert copy.dtype == np.uint8 and copy.flags.c_contiguous and copy.shape == frame.shape
        assert np.abs(copy.astype(int) - frame).mean() < 2  # a step between two frames is 8 in red


@pytest.mark.parametrize(
    "color",
    [
        (0, 0, 255),
        (0, 255, 0),
        (255, 0, 0),
        (40, 90, 200),
        (128, 128, 128),
        (255, 255, 255),
        (0, 0, 0),
    ],
)
def test_flat_colours_survive_within_one_step(tmp_path, color):
    frame = np.full((64, 96, 3), color, np.uint8)
    for back in read_frames(write(tmp_path / "clip.mp4", [frame] * 3)):
        assert np.abs(back.reshape(-1, 3).mean(axis=0) - color).max() <= 1.0


def test_file_says_bt709_limited_and_holds_it(tmp_path):
    path = write(tmp_path / "red.mp4", [np.full((64, 96, 3), (0, 0, 255), np.uint8)] * 2)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        assert (frame.format.name, int(frame.colorspace), int(frame.color_range)) == (
            "yuv420p",
            1,
            1,
        )
        planes = frame.to_ndarray()
    # ITU-R BT.709: red is Y 0.2126, Cb -0.1146, Cr 0.5, scaled to 16..235 and 16..240.
    assert (planes[0, 0], planes[64, 0], planes[80, 0]) == (63, 102, 240)


@pytest.mark.parametrize(
    ("space", "range_", "expected_yuv"),
    # Red by ITU-R BT.601 (Y 0.299, Cb -0.1687): full range, and limited range.
    [
        ("bt470bg", "pc", (76, 85, 255)),
        ("bt470bg", "tv", (81, 90, 240)),
        (None, None, (81, 90, 240)),
    ],
)
def test_other_matrices_and_ranges_are_honoured(tmp_path, space, range_, expected_yuv):
    path = tmp_path / "red.mp4"
    planes = np.empty((96, 96), np.uint8)
    planes[:64], planes[64:80], planes[80:] = expected_yuv[0], expected_yuv[1], expected_yuv[2]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.options = {
            "crf": "0",
            **({"colorspace": space, "color_range": range_} if space else {}),
        }
        container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(stream.encode(None))
    (frame,) = read_frames(path)
    # yuv itself is rounded
    assert np.abs(frame.reshape(-1, 3).mean(axis=0) - (0, 0, 255)).max() <= 2.0


def test_odd_sizes_are_padded_not_cut(tmp_path):
    frame = gradient(0, (33, 17))
    with VideoWriter(tmp_path / "odd.mp4", 25, (33, 17), crf=0) as writer:
        writer.write(frame)
        assert writer.coded_wh == (34, 18)
    (back,) = read_frames(tmp_path / "odd.mp4")
    assert back.shape == (18, 34, 3)
    assert np.abs(back[:17, :33].astype(int) - frame).mean() < 3
    assert np.abs(back[17].astype(int) - back[16]).mean() < 3


def test_a_view_is_written_as_it_looks_and_left_alone(tmp_path):
    frame = gradient()
    view, kept = frame[:, ::-1], frame.copy()
    (back,) = read_frames(write(tmp_path / "view.mp4", [view], crf=1))
    assert np.abs(back.astype(int) - view).mean() < 2
    assert np.array_equal(frame, kept)


def test_same_frames_same_bytes(tmp_path):
    assert clip(tmp_path / "a.mp4").read_bytes() == clip(tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_inside_leaves_the_folder_as_it_was(tmp_path, error):
    path = clip(tmp_path / "clip.mp4")
    older = path.read_bytes()
    with pytest.raises(error, match="stop"), VideoWriter(path, 25, (96, 64)) as writer:
        writer.write(gradient())
        raise error("stop")
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"]
    assert path.read_bytes() == older
    assert not opened(tmp_path)


def test_the_name_appears_only_at_the_end(tmp_path):
    with VideoWriter(tmp_path / "clip.mp4", 25, (96, 64)) as writer:
        writer.write(gradient())
        assert not (tmp_path / "clip.mp4").exists()
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"]
    writer.close()  # once more changes nothing
    with pytest.raises(MediaError, match="closed"):
        writer.write(gradient())


def test_writing_nothing_is_an_error_and_leaves_nothing(tmp_path):
    with (
        pytest.raises(MediaError, match="no frame was written"),
        VideoWriter(tmp_path / "clip.mp4", 25, (96, 64)),
    ):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "frame", [gradient(0, (96, 62)), gradient().astype(np.float32), gradient()[..., 0]]
)
def test_a_frame_that_does_not_fit_is_named(tmp_path, frame):
    with (
        pytest.raises(FrameError) as caught,
        VideoWriter(tmp_path / "clip.mp4", 25, (96, 64)) as writer,
    ):
        writer.write(gradient())
        writer.write(frame)
    assert caught.value.index == 1
    assert not list(tmp_path.iterdir())


def test_a_disk_that_refuses_is_a_media_error(tmp_path, monkeypatch):
    def refuse(*names):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(MediaError, match="No space left"):
        clip(tmp_path / "clip.mp4")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "key"),
    [({"fps": 0}, "fps"), ({"crf": 52}, "crf"), ({"size_wh": (0, 64)}, "size_wh")],
)
def test_impossible_options(tmp_path, options, key):
    with pytest.raises(ConfigError) as caught:
        VideoWriter(tmp_path / "clip.mp4", **{"fps": 25, "size_wh": (96, 64), **options})
    assert caught.value.key == key


@pytest.mark.parametrize("name", ["missing/clip.mp4", "clip.nonsense"])
def test_a_place_that_cannot_be_written(tmp_path, name):
    with pytest.raises(MediaError) as caught:
        VideoWriter(tmp_path / name, 25, (96, 64))
    assert caught.value.path == tmp_path / name
    assert not list(tmp_path.iterdir())


def test_reading_closes_the_file_when_the_consumer_stops(tmp_path):
    frames = read_frames(clip(tmp_path / "clip.mp4"))
    next(frames)
    assert opened(tmp_path)
    frames.close()
    assert not opened(tmp_path)


def test_a_consumer_that_raises_is_not_held_up(tmp_path):
    frames = read_frames(clip(tmp_path / "clip.mp4"))
    with pytest.raises(ZeroDivisionError):
        for _ in frames:
            raise ZeroDivisionError
    frames.close()
    assert not opened(tmp_path)


@pytest.mark.parametrize("reader", [probe, lambda path: next(read_frames(path))])
def test_what_cannot_be_read_is_named(tmp_path, reader):
    (tmp_path / "text.mp4").write_text("not a video at all\n" * 100)
    (tmp_path / "empty.mp4").touch()
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 16000, 0, "NONE", ""))
        sound.writeframes(bytes(3200))
    for name in ("missing.mp4", "text.mp4", "empty.mp4", "sound.wav"):
        with pytest.raises(MediaError, match=name) as caught:
            reader(tmp_path / name)
        assert caught.value.path == tmp_path / name
    assert not opened(tmp_path)


def noisy_clip(path, rng):
    return write(path, [rng.integers(0, 256, (64, 96, 3), np.uint8) for _ in range(20)])


def test_a_cut_off_file_is_an_error_not_a_shorter_video(tmp_path, rng):
    path = noisy_clip(tmp_path / "clip.mp4", rng)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 6 // 10])
    with pytest.raises(MediaError, match="truncated|decoded"):
        list(read_frames(path))


def test_a_damaged_file_is_an_error(tmp_path, rng):
    path = noisy_clip(tmp_path / "clip.mp4", rng)
    whole = bytearray(path.read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 20000] = bytes(20000)
    path.write_bytes(whole)
    with pytest.raises(MediaError, match="frame"):
        list(read_frames(path))


def test_a_phone_video_is_turned_upright(tmp_path):
    frame = np.zeros((64, 96, 3), np.uint8)
    frame[:32, :48] = 255  # the upper left corner
    path = write(tmp_path / "phone.mp4", [frame] * 2)
    data = bytearray(path.read_bytes())
    upright = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    quarter_right = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 64 << 16, 0, 1 << 30)
    start = data.index(upright, data.index(b"tkhd"))
    data[start : start + 36] = quarter_right
    path.write_bytes(data)
    info, turned = probe(path), next(read_frames(path))
    assert (info.width, info.height) == (64, 96) and turned.shape == (96, 64, 3)
    assert turned[5, -5].min() > 250 and turned[5, 5].max() < 5  # now the upper right corner


def test_real_clips_are_read_whole(shared):
    path = sorted((shared / "data" / "clips").glob("*.mp4"))[0]
    info = probe(path)
    shapes = {frame.shape for frame in read_frames(path)}
    assert shapes == {(info.height, info.width, 3)}
    assert sum(1 for _ in read_frames(path)) == info.frames


def test_pictures_survive_under_any_name(tmp_path):
    image = gradient()
    path = tmp_path / "Gesicht-面-é.png"
    write_image(path, image[::-1])
    assert np.array_equal(read_image(path), image[::-1])
    write_image(tmp_path / "face.jpg", image)
    assert np.abs(read_image(tmp_path / "face.jpg").astype(int) - image).mean() < 3


def test_alpha_grey_and_16_bits_become_bgr(tmp_path):
    cv2.imwrite(
        str(tmp_path / "alpha.png"), np.dstack([gradient(), np.full((64, 96), 9, np.uint8)])
    )
    cv2.imwrite(str(tmp_path / "deep.png"), gradient().astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "grey.png"), gradient()[..., 0])
    assert np.array_equal(read_image(tmp_path / "alpha.png"), gradient())
    assert np.array_equal(read_image(tmp_path / "deep.png"), gradient())
    assert np.array_equal(
        read_image(tmp_path / "grey.png"), np.repeat(gradient()[..., :1], 3, axis=2)
    )


def test_pictures_that_fail_are_named(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    for name in ("text.png", "empty.png", "missing.png"):
        with pytest.raises(MediaError, match=name):
            read_image(tmp_path / name)
    for name in ("face.nonsense", "face", "missing/face.png"):
        with pytest.raises(MediaError, match="face"):
            write_image(tmp_path / name, gradient())
    with pytest.raises(FrameError, match="float32"):
        write_image(tmp_path / "face.png", gradient().astype(np.float32))


@pytest.mark.parametrize(
    ("fps", "exact"),
    [
        (29.97, NTSC),
        (23.976, Fraction(24000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (25.0, 25),
        (12.5, Fraction(25, 2)),
    ],
)
def test_float_rates(tmp_path, fps, exact):
    assert exact_fps(fps) == exact
    assert probe(write(tmp_path / "clip.mp4", [gradient(i) for i in range(3)], fps)).fps == exact


@pytest.mark.parametrize("fps", [float("nan"), float("inf"), 0.0, -1.0, 0, None])
def test_impossible_rates(tmp_path, fps):
    with pytest.raises(ConfigError, match="fps"):
        VideoWriter(tmp_path / "clip.mp4", fps, (96, 64))


def test_two_writers_of_one_process_may_write_the_same_file(tmp_path):
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, 25, (96, 64)) as one:
        for index in range(120):  # more than the encoder keeps to itself: the file is begun
            one.write(gradient(index))
        with VideoWriter(path, 25, (96, 64)) as two:
            two.write(gradient())
        assert sum(1 for _ in read_frames(path)) == 1
    assert sum(1 for _ in read_frames(path)) == 120 and [
        file.name for file in tmp_path.iterdir()
    ] == ["clip.mp4"]


class Mark(enum.Flag):
    """As PyAV 14.1 to 17.0 states it."""

    default = 1
    attached_pic = 1024


@pytest.mark.parametrize(
    ("marks", "expected"), [(Mark.default | Mark.attached_pic, 1025), (1, 1), (None, 0)]
)
def test_what_a_stream_is_for_is_read_of_every_pyav(marks, expected):
    stream = SimpleNamespace() if marks is None else SimpleNamespace(disposition=marks)
    assert disposition(stream) == expected


def test_full_range_is_written_through_the_plain_format():
    """FFmpeg 7.0 takes no matrix for the others."""
    frame = PixelConverter().to_yuv(np.zeros((16, 16, 3), np.uint8), "bt709", "pc", "yuvj420p")
    assert frame.format.name == "yuv420p"
