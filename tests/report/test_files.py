"""Two video files compared: what is found, what is refused, what is message."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import cv2
import numpy as np
import pytest

from musetalk_enhance.errors import ConfigError, MediaError
from musetalk_enhance.media import VideoWriter, probe
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
    return np.stack(
        [
            np.repeat(scene[5:133, index // 4 : index // 4 + 160, None], 3, 2)
            for index in range(COUNT)
        ]
    )


@pytest.fixture(scope="module")
def soft(frames) -> np.ndarray:
    left, top, right, bottom = BOX
    out = frames.copy()
    for frame in out:
        face = frame[top:bottom, left:right]
        small = cv2.resize(face, None, fx=0.375, fy=0.375, interpolation=cv2.INTER_AREA)
        frame[top:bottom, left:right] = cv2.resize(
            small, face.shape[1::-1], interpolation=cv2.INTER_CUBIC
        )
    return out


@pytest.fixture(scope="module")
def clips(frames, soft, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return write(folder / "in.mp4", soft), write(folder / "out.mp4", frames)


def test_a_pair_is_compared_where_it_differs(clips, meter):
    report = compare(*clips, clips[1], meter=meter)
    assert report.frames == COUNT and report.title == "in.mp4 → out.mp4" and report.fps == 25
    assert report.verdict("sharpness").value > 1.2 and report.verdict("frames").value == 0
    assert report.verdict("psnr").value is None or report.verdict("psnr").value > 50
    assert len(report.notes) == 1 and "where the clips differ" in report.notes[0]
    numbers = [int(word) for word in report.notes[0].split("at ")[1].split(" (")[0].split(", ")]
    assert np.abs(np.subtract(numbers, (44, 27, 116, 117))).max() <= 12


@pytest.mark.parametrize(
    ("options", "passes"), [({"box": BOX}, 1), ({}, 2), ({"locate": lambda frame: BOX}, 3)]
)
def test_progress_counts_every_pass(clips, meter, options, passes):
    steps = []
    compare(*clips, meter=meter, progress=lambda *step: steps.append(step), **options)
    total = passes * COUNT
    assert steps == [*((read, total) for read in range(1, total + 1)), (total, total)]


def test_no_progress_without_a_number_of_frames(clips, meter, monkeypatch):
    def without_frames(path):
        return dataclasses.replace(probe(path), frames=None)

    monkeypatch.setattr("musetalk_enhance.report.files.probe", without_frames)
    steps = []
    compare(*clips, box=BOX, meter=meter, progress=lambda *step: steps.append(step))
    assert steps == []


def test_old_names_of_arguments_work_with_a_warning(clips, meter):
    with pytest.warns(DeprecationWarning) as caught:
        report = compare(before=clips[0], after=clips[1], box=BOX, gauge=meter)
    assert {str(each.filename) for each in caught} == {__file__}
    messages = sorted(str(each.message).split(" is ")[0] for each in caught)
    assert messages == [f"compare({name}=...)" for name in ("after", "before", "gauge")]
    assert report.as_dict() == compare(*clips, box=BOX, meter=meter).as_dict()


def test_the_box_can_be_given(clips, meter):
    report = compare(
        *clips,
        box=BOX,
        meter=meter,
        notes=[{"strength": 0.5}, {"guard": "mouth"}],
        totals={"frames": 2},
    )
    assert report.notes == [] and report.verdict("sharpness").value > 1.5
    assert report.events.runs("guard") == [(1, 1, "mouth")] and report.totals == {"frames": 2}
    with pytest.raises(ConfigError, match="160x128"):
        compare(*clips, box=(0, 0, 161, 10), meter=meter)


def test_a_detector_s_boxes_are_followed(clips, meter):
    shapes = []

    def locate(frame):
        shapes.append(frame.shape)
        return BOX

    report = compare(*clips, locate=locate, meter=meter)
    assert (
        shapes == [(128, 160, 3)] * COUNT
        and report.notes == []
        and report.verdict("sharpness").value > 1.2
    )
    unseen = compare(*clips, locate=lambda frame: None, meter=meter)
    assert "No face was found" in unseen.notes[0] and "where the clips differ" in unseen.notes[1]


def test_nothing_differs_and_it_says_so(clips, meter):
    report = compare(clips[0], clips[0], meter=meter)
    assert "nothing was restored" in report.notes[0] and "--box" in report.notes[1]
    assert not report.failed


def test_clips_of_two_lengths_are_compared_as_far_as_they_go(
    clips, frames, meter, tmp_path, caplog
):
    short = write(tmp_path / "short.mp4", frames[:9])
    for pair, text in (((clips[0], short), "IN 12, OUT 9"), ((short, clips[1]), "IN 9, OUT 12")):
        report = compare(*pair, box=BOX, meter=meter)
        assert (
            report.frames == 9
            and report.verdict("frames").state == "fail"
            and report.verdict("frames").value == 3
        )
        assert text in report.notes[-1] and "the first 9 are compared" in caplog.text


def test_a_reference_may_be_of_another_size_and_length(clips, frames, meter, tmp_path):
    large = [cv2.resize(frame, (320, 256), interpolation=cv2.INTER_CUBIC) for frame in frames[:10]]
    report = compare(*clips, write(tmp_path / "large.mp4", large), box=BOX, meter=meter)
    assert (
        report.frames == 10
        and report.verdict("frames").state == "pass"
        and "reference 10" in report.notes[-1]
    )
    assert report.verdict("psnr").value > 25


def test_clips_that_do_not_belong_together(clips, frames, meter, tmp_path):
    small = write(tmp_path / "small.mp4", frames[:, :100])
    slow = write(tmp_path / "slow.mp4", frames, 24)
    for pair, message in (
        ((clips[0], small), "160x100, but .* is 160x128"),
        ((clips[0], slow), "24 frames per second, but .* has 25"),
        ((clips[0], clips[1], slow), "24 frames per second"),
        ((clips[0], tmp_path / "none.mp4"), "does not exist"),
    ):
        with pytest.raises(MediaError, match=message):
            compare(*pair, meter=meter)
