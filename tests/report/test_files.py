"""Two video files compared: what is found, what is refused, what is said."""

from __future__ import annotations

from fractions import Fraction

import cv2
import numpy as np
import pytest

from musetalk_enhance.errors import ConfigError, MediaError
from musetalk_enhance.media import VideoWriter
from musetalk_enhance.report import compare

BOX = (48, 32, 112, 112)
COUNT = 12


def write(path, frames, fps=25):
    with VideoWriter(path, Fraction(fps), frames[0].shape[1::-1], crf=8) as writer:
        for frame in frames:
            writer.write(frame)
    return path


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """Texture that drifts slowly, BGR uint8 (N, 128, 160, 3)."""
    noise = np.random.default_rng(5).normal(0, 60, (140, 180)).astype(np.float32)
    scene = np.clip(128 + cv2.GaussianBlur(noise, (0, 0), 1.5) * 1.5, 0, 255).astype(np.uint8)
    return np.stack([np.repeat(scene[5:133, index // 4 : index // 4 + 160, None], 3, 2) for index in range(COUNT)])


@pytest.fixture(scope="module")
def soft(frames) -> np.ndarray:
    left, top, right, bottom = BOX
    out = frames.copy()
    for frame in out:
        face = frame[top:bottom, left:right]
        small = cv2.resize(face, None, fx=0.375, fy=0.375, interpolation=cv2.INTER_AREA)
        frame[top:bottom, left:right] = cv2.resize(small, face.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return out


@pytest.fixture(scope="module")
def clips(frames, soft, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return write(folder / "in.mp4", soft), write(folder / "out.mp4", frames)


def test_a_pair_is_compared_where_it_differs(clips, gauge):
    made = compare(*clips, clips[1], gauge=gauge)
    assert made.frames == COUNT and made.title == "in.mp4 → out.mp4" and made.fps == 25
    assert made.verdict("sharpness").value > 1.2 and made.verdict("frames").value == 0
    assert made.verdict("psnr").value is None or made.verdict("psnr").value > 50
    assert len(made.notes) == 1 and "where the clips differ" in made.notes[0]
    numbers = [int(word) for word in made.notes[0].split("at ")[1].split(" (")[0].split(", ")]
    assert np.abs(np.subtract(numbers, (44, 27, 116, 117))).max() <= 12


def test_the_box_can_be_given(clips, gauge):
    made = compare(*clips, box=BOX, gauge=gauge, notes=[{"strength": 0.5}, {"guard": "mouth"}], totals={"frames": 2})
    assert made.notes == [] and made.verdict("sharpness").value > 1.5
    assert made.events.runs("guard") == [(1, 1, "mouth")] and made.totals == {"frames": 2}
    with pytest.raises(ConfigError, match="160x128"):
        compare(*clips, box=(0, 0, 161, 10), gauge=gauge)


def test_a_detector_s_boxes_are_followed(clips, gauge):
    looked = []

    def locate(frame):
        looked.append(frame.shape)
        return BOX

    made = compare(*clips, locate=locate, gauge=gauge)
    assert looked == [(128, 160, 3)] * COUNT and made.notes == [] and made.verdict("sharpness").value > 1.2
    unseen = compare(*clips, locate=lambda frame: None, gauge=gauge)
    assert "No face was found" in unseen.notes[0] and "where the clips differ" in unseen.notes[1]


def test_nothing_differs_and_it_says_so(clips, gauge):
    made = compare(clips[0], clips[0], gauge=gauge)
    assert "nothing was restored" in made.notes[0] and "--box" in made.notes[1]
    assert not made.failed


def test_clips_of_two_lengths_are_compared_as_far_as_they_go(clips, frames, gauge, tmp_path, caplog):
    short = write(tmp_path / "short.mp4", frames[:9])
    for pair, text in (((clips[0], short), "IN 12, OUT 9"), ((short, clips[1]), "IN 9, OUT 12")):
        made = compare(*pair, box=BOX, gauge=gauge)
        assert made.frames == 9 and made.verdict("frames").state == "fail" and made.verdict("frames").value == 3
        assert text in made.notes[-1] and "the first 9 are compared" in caplog.text


def test_a_reference_may_be_of_another_size_and_length(clips, frames, gauge, tmp_path):
    large = [cv2.resize(frame, (320, 256), interpolation=cv2.INTER_CUBIC) for frame in frames[:10]]
    made = compare(*clips, write(tmp_path / "large.mp4", large), box=BOX, gauge=gauge)
    assert made.frames == 10 and made.verdict("frames").state == "pass" and "reference 10" in made.notes[-1]
    assert made.verdict("psnr").value > 25


def test_clips_that_do_not_belong_together(clips, frames, gauge, tmp_path):
    small = write(tmp_path / "small.mp4", frames[:, :100])
    slow = write(tmp_path / "slow.mp4", frames, 24)
    for pair, said in (
        ((clips[0], small), "160x100, but .* is 160x128"),
        ((clips[0], slow), "24 frames per second, but .* has 25"),
        ((clips[0], clips[1], slow), "24 frames per second"),
        ((clips[0], tmp_path / "none.mp4"), "does not exist"),
    ):
        with pytest.raises(MediaError, match=said):
            compare(*pair, gauge=gauge)
