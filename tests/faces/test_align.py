"""Crops reach the FFHQ template and come back, whatever box the host squashed; bad landmarks are
told, not warped."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from musetalk_enhance.errors import ConfigError, FrameError
from musetalk_enhance.faces.align import Aligner, LandmarkTrack
from musetalk_enhance.faces.detect import FFHQ_512, Face, FaceDetector, make_detector

# the nose stands 0.45 eye distances out of the plane of eyes and mouth
DEPTH = np.array((0.0, 0.0, 57.0, 0.0, 0.0))


def head(yaw=0.0, roll=0.0, scale=0.5, size=256):
    """Landmarks (5, 2) of a turned face in a square picture, seen from far away."""
    x, y = (FFHQ_512 - FFHQ_512.mean(axis=0)).T
    x = x * np.cos(np.radians(yaw)) + DEPTH * np.sin(np.radians(yaw))
    turn = np.radians(roll)
    turned = np.stack(
        (x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)), axis=1
    )
    return turned * scale + size / 2


def squashed(landmarks, aspect, size=256):
    """As a host makes a square of a box of width / height = `aspect` around the picture's
    middle."""
    return (landmarks - size / 2) / (aspect, 1) + size / 2


def placed(alignment, landmarks, index=0):
    matrix = alignment.to_template[index]
    return landmarks @ matrix[:, :2].T + matrix[:, 2]


def smooth_faces(count=2, size_hw=(256, 256), seed=0):
    """Float faces (count, 3, H, W) of waves no shorter than 40 px."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size_hw[0], : size_hw[1]].astype(np.float32)
    waves = [
        np.sin(x / rng.uniform(6.5, 20) + y / rng.uniform(6.5, 20) + rng.uniform(0, 6))
        for _ in range(3 * count)
    ]
    return torch.from_numpy(0.5 + 0.45 * np.stack(waves).reshape(count, 3, *size_hw)).float()


@pytest.mark.parametrize("roll", [0, -20, 35])
@pytest.mark.parametrize("aspect", [None, 0.78])
def test_landmarks_land_on_the_template(roll, aspect):
    landmarks = squashed(head(roll=roll), 0.78)
    alignment = Aligner().fit(landmarks[None], (256, 256), aspect)
    assert np.abs(placed(alignment, landmarks) - FFHQ_512).max() < 1e-6
    assert alignment.aspect[0] == pytest.approx(0.78)


def test_it_is_the_official_alignment_where_nothing_is_squashed(rng):
    """facexlib's own: cv2.estimateAffinePartial2D, which is the same least squares."""
    landmarks = head(roll=10) + rng.normal(0, 1, (5, 2))
    want = cv2.estimateAffinePartial2D(landmarks, FFHQ_512, method=cv2.LMEDS)[0]
    got = Aligner().fit(landmarks[None], (256, 256), aspect=1.0).to_template[0]
    error = np.abs(landmarks @ (want - got)[:, :2].T + (want - got)[:, 2]).max()
    assert error < 4  # LMEDS refines over inliers only


@pytest.mark.parametrize("yaw", [-45, -25, 0, 25, 45])
@pytest.mark.parametrize("aspect", [0.65, 0.8, 1.0, 1.2])
def test_a_turned_face_is_not_taken_for_a_squashed_one(yaw, aspect):
    landmarks = squashed(head(yaw=yaw), aspect)
    assert Aligner().fit(landmarks[None], (256, 256)).aspect[0] == pytest.approx(aspect, rel=0.12)


@pytest.mark.parametrize("yaw", [60, 75])
def test_a_strongly_turned_face_is_aligned_soundly_or_refused(yaw):
    landmarks = squashed(head(yaw=yaw), 0.8)
    if Aligner.problems(landmarks[None], (256, 256)):
        return
    alignment = Aligner().fit(landmarks[None], (256, 256))
    scales = np.linalg.svd(alignment.to_template[0][:, :2])[1]
    assert 0.5 < scales[1] and scales[0] < 5 and scales[0] / scales[1] < 2.1
    assert np.abs(placed(alignment, landmarks) - FFHQ_512).max() < 110


def test_the_given_aspect_is_of_the_box_whatever_the_crop():
    """A box of 300x400 squashed to a crop 128 wide and 256 tall."""
    true = head(size=0) + (150, 200)
    landmarks = true * (128 / 300, 256 / 400)
    alignment = Aligner().fit(landmarks[None], (256, 128), aspect=0.75)
    assert np.abs(placed(alignment, landmarks) - FFHQ_512).max() < 1e-6
    unknown = Aligner().fit(landmarks[None], (256, 128))
    assert unknown.aspect[0] == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("size_hw", "side", "back", "aspect"),
    [
        ((256, 256), 512, (256, 256), 0.78),
        ((256, 256), 512, (512, 512), None),
        ((384, 256), 512, None, 1.0),
    ],
)
def test_there_and_back_changes_nothing(size_hw, side, back, aspect):
    """At most 0.5/255 of what is laid over, on smooth content; 3/255 in the crop's outermost
    pixels."""
    aligner = Aligner(side)
    faces = smooth_faces(size_hw=size_hw)
    landmarks = np.stack((head(roll=5), head(roll=-12)))
    aligned, alignment = aligner.warp(faces, landmarks, aspect)
    assert aligned.shape == (2, 3, side, side)
    again, coverage = aligner.unwarp(aligned, alignment, back)
    want = interpolate(faces, back or size_hw, mode="bicubic", antialias=True)
    error = (again - want).abs() * coverage * 255
    assert error.max() < 3 and error.mean() < 0.1
    assert error[..., 4:-4, 4:-4].max() < 0.5
    assert coverage.max() == 1


def test_a_large_crop_is_antialiased_on_the_way():
    """Stripes too fine for the template come out grey, not as other stripes."""
    faces = torch.zeros(1, 3, 1536, 1536)
    faces[..., ::2] = 1
    aligned, alignment = Aligner().warp(faces, head(scale=3.0, size=1536)[None], aspect=1.0)
    assert (aligned[..., 64:-64, 64:-64] - 0.5).abs().max() < 0.02
    back, _ = Aligner().unwarp(faces, alignment, (256, 256))
    assert (back[..., 16:-16, 16:-16] - 0.5).abs().max() < 0.02


def test_one_pixel_goes_to_its_place():
    """Half-pixel centres: a bright spot lies where its coordinates say, at both ends."""
    faces = torch.zeros(1, 1, 256, 256)
    faces[0, 0, 100, 60] = 1
    faces = torch.nn.functional.conv2d(faces, torch.ones(1, 1, 5, 5), padding=2).expand(
        1, 3, -1, -1
    )
    aligner = Aligner()
    aligned, alignment = aligner.warp(faces, squashed(head(roll=15), 0.8)[None])

    def middle(picture):
        y, x = np.mgrid[: picture.shape[0], : picture.shape[1]] + 0.5
        return np.array(((picture * x).sum(), (picture * y).sum())) / picture.sum()

    want = placed(alignment, np.array([(60.5, 100.5)]))[0]
    assert np.abs(middle(aligned[0, 0].numpy()) - want).max() < 0.05
    back, _ = aligner.unwarp(aligned, alignment, (512, 512))
    assert np.abs(middle(back[0, 0].numpy()) - (121, 201)).max() < 0.05


def test_beyond_the_crop_its_border_goes_on():
    faces = torch.full((1, 3, 256, 256), 0.3)
    aligned, _ = Aligner().warp(faces, head(scale=0.9)[None])
    assert (aligned - 0.3).abs().max() < 1e-5


def test_the_coverage_fades_at_the_border_of_the_template():
    """A small face in a large picture: nothing outside the template, all in its middle, a ramp
    between."""
    aligner = Aligner(feather=40)
    faces = smooth_faces(1, (600, 800))
    landmarks = (head(scale=0.5, size=0) + (400, 300))[None]
    aligned, alignment = aligner.warp(faces, landmarks, aspect=800 / 600)
    _, coverage = aligner.unwarp(aligned, alignment)
    corners = alignment.corners_xy[0]
    left, top = corners.min(axis=0)
    right, bottom = corners.max(axis=0)
    assert right - left == pytest.approx(256, abs=1) and bottom - top == pytest.approx(256, abs=1)
    outside = torch.ones_like(coverage, dtype=torch.bool)
    outside[..., int(top) : int(bottom) + 1, int(left) : int(right) + 1] = False
    assert coverage[outside].max() == 0
    row = coverage[0, 0, 300, int(left) : int(left) + 30]
    assert (row.diff() >= 0).all() and 0 < row[5] < 1 and row[22] == 1
    assert row.diff().max() < 0.1


def test_laid_over_a_network_that_changes_nothing_changes_nothing(rng):
    faces = torch.from_numpy(rng.random((2, 3, 300, 300), np.float32))
    aligner = Aligner(256)
    aligned, alignment = aligner.warp(faces, np.stack((head(), head(roll=9))))
    assert torch.equal(aligner.composite(faces, aligned, aligned, alignment), faces)
    changed = aligner.composite(faces, aligned, aligned + 0.1, alignment, (600, 600))
    assert changed.shape == (2, 3, 600, 600)


def test_a_face_comes_out_the_same_in_every_batch():
    faces = smooth_faces(3, (700, 700))
    landmarks = np.stack(
        (head(size=700), head(scale=2.1, size=700), head(scale=1.4, roll=20, size=700))
    )
    aligner = Aligner(256)
    aligned, alignment = aligner.warp(faces, landmarks)
    back, coverage = aligner.unwarp(aligned, alignment)
    for index in range(3):
        one, own = aligner.warp(faces[index : index + 1], landmarks[index : index + 1])
        assert torch.equal(one[0], aligned[index])
        single, cover = aligner.unwarp(one, own)
        assert torch.equal(single[0], back[index]) and torch.equal(cover[0], coverage[index])
        chosen, _ = aligner.unwarp(one, alignment.select([index]))
        assert torch.equal(chosen, single)


def test_the_input_is_not_changed():
    faces = smooth_faces(1)
    before = faces.clone()
    landmarks = torch.from_numpy(head()[None])
    aligned, alignment = Aligner().warp(faces, landmarks)
    kept = aligned.clone()
    Aligner().composite(faces, aligned, aligned, alignment)
    assert torch.equal(faces, before) and torch.equal(aligned, kept)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (head() * np.nan, "nonfinite"),
        (np.where(np.arange(10).reshape(5, 2) == 3, np.inf, head()), "nonfinite"),
        (np.full((5, 2), 128.0), "collapsed"),
        (head() + (400, 0), "outside"),
        (head() - (0, 190), "outside"),
        (head()[[1, 0, 2, 4, 3]], "landmarks"),
        (np.stack((np.full(5, 128.0), np.linspace(90, 170, 5)), axis=1), "landmarks"),
        (np.stack((np.linspace(90, 170, 5), np.full(5, 128.0)), axis=1), "landmarks"),
    ],
)
def test_bad_landmarks_are_told(bad, reason):
    landmarks = np.stack((head(), bad, bad))
    found = Aligner.problems(landmarks, (256, 256))
    assert list(found) == [1, 2] and found[1].reason == reason
    with pytest.raises(FrameError) as caught:
        Aligner().warp(smooth_faces(3), landmarks)
    assert (caught.value.reason, caught.value.index) == (reason, 1)


def test_what_does_not_fit_together_is_refused():
    faces = smooth_faces(2)
    aligner = Aligner(64)
    with pytest.raises(FrameError, match="one for each of 2"):
        aligner.warp(faces, head()[None])
    for bad in (head(), head()[None, :3], "landmarks", [[1, 2]]):
        with pytest.raises(FrameError) as caught:
            aligner.warp(faces, bad)
        assert caught.value.reason == "landmarks"
    aligned, alignment = aligner.warp(faces, np.stack((head(), head())))
    with pytest.raises(FrameError, match="as many as were aligned"):
        aligner.unwarp(aligned[:1], alignment)
    for options in ({"side": 4}, {"feather": 0}, {"feather": 300}):
        with pytest.raises(ConfigError):
            Aligner(**options)
    for aspect in (0, -1, float("nan")):
        with pytest.raises(ConfigError, match="aspect"):
            aligner.fit(head()[None], (256, 256), aspect)


def test_no_faces_at_all():
    aligned, alignment = Aligner(64).warp(torch.zeros(0, 3, 32, 32), np.zeros((0, 5, 2)))
    back, coverage = Aligner(64).unwarp(aligned, alignment)
    assert (aligned.shape, back.shape, coverage.shape) == (
        (0, 3, 64, 64),
        (0, 3, 32, 32),
        (0, 1, 32, 32),
    )


class Told(FaceDetector):
    """Answers with the next of the landmarks it was given; counts."""

    def __init__(self, *answers):
        self.answers, self.calls = list(answers), 0

    def detect(self, picture_bgr):
        self.calls += 1
        answer = self.answers[(self.calls - 1) % len(self.answers)]
        return (
            []
            if answer is None
            else [Face(np.array((0, 0, 256, 256.0)), answer.astype(np.float32), 0.9)]
        )


PICTURE = np.zeros((256, 256, 3), np.uint8)


def test_a_looping_avatar_is_looked_at_once(rng):
    frames = [head() + rng.normal(0, 1, (5, 2)) for _ in range(6)]
    detector = Told(*frames)
    track = LandmarkTrack(detector)
    first = [track.update(face_bgr=PICTURE, key=key) for key in range(6)]
    again = [track.update(key=key) for key in (5, 4, 3, 2, 1, 0, 1, 2)]
    assert detector.calls == 6
    assert all(
        (a == first[key]).all() for a, key in zip(again, (5, 4, 3, 2, 1, 0, 1, 2), strict=True)
    )
    track.reset(keep_cache=True)
    assert track.is_cached(3)
    track.reset()
    assert not track.is_cached(3)
    assert (track.update(face_bgr=PICTURE, key=3) == frames[0].astype(np.float32)).all()


def test_the_landmarks_are_smoothed_at_every_size(rng):
    noise = rng.normal(0, 0.01, (100, 5, 2))
    kept = []
    for scale in (0.25, 2.0):
        track = LandmarkTrack()
        base = head(scale=scale, size=1024)
        out = np.stack([track.update(landmarks=base + 100 * scale * one) for one in noise])
        kept.append((out[25:] - base).std() / scale)
    assert kept[0] == pytest.approx(kept[1], rel=1e-6)
    assert kept[0] < 0.5


def test_a_still_face_gives_the_same_landmarks_to_the_last_bit():
    track = LandmarkTrack(Told(head()))
    out = [track.update(face_bgr=PICTURE) for _ in range(50)]
    assert all((one == out[0]).all() for one in out)


def test_a_jump_is_not_smoothed():
    track = LandmarkTrack()
    for _ in range(5):
        track.update(landmarks=head())
    assert (track.update(landmarks=head() + 60) == head() + 60).all()


def test_a_face_that_is_lost_holds_for_a_while():
    track = LandmarkTrack(Told(head(), *[None] * 9), hold=3)
    out = [track.update(face_bgr=PICTURE) for _ in range(6)]
    assert all((one == out[0]).all() for one in out[:4]) and out[4] is None and out[5] is None
    nan = LandmarkTrack(hold=0)
    assert nan.update(landmarks=head() * np.nan) is None
    assert LandmarkTrack().update(face_bgr=PICTURE) is None


def test_the_cache_keeps_to_its_size():
    track = LandmarkTrack(cache_size=2)
    for key in "abc":
        track.update(landmarks=head(), key=key)
    assert [track.is_cached(key) for key in "abc"] == [False, True, True]


def test_what_the_track_hands_out_belongs_to_the_caller():
    track = LandmarkTrack()
    track.update(landmarks=head(), key=0)[:] = 0
    assert (track.update(key=0) == head()).all()


def test_bad_landmarks_of_a_host():
    with pytest.raises(FrameError, match=r"\(5, 2\)"):
        LandmarkTrack().update(landmarks=np.zeros((68, 2)))
    for options in ({"hold": -1}, {"cache_size": -1}, {"fps": 0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            LandmarkTrack(**options)


@pytest.mark.shared
def test_real_crops_lie_on_the_template(shared):
    """Boxes of MuseTalk's kind, squashed to 256 px: the estimated aspect is near the box's own."""
    detector = make_detector("yunet", shared / "weights" / "face_detection_yunet_2023mar.onnx")
    ratios = []
    for path in sorted((shared / "data" / "clips").glob("*.mp4")):
        video = cv2.VideoCapture(str(path))
        video.set(cv2.CAP_PROP_POS_FRAMES, 10)
        picture = video.read()[1]
        video.release()
        x1, y1, x2, y2 = np.round(detector.detect(picture)[0].box_xyxy).astype(int).clip(0)
        crop = cv2.resize(picture[y1:y2, x1:x2], (256, 256), interpolation=cv2.INTER_AREA)
        landmarks = detector.detect(crop)[0].landmarks
        assert not Aligner.problems(landmarks[None], (256, 256)), path.stem
        ratios.append(
            Aligner().fit(landmarks[None], (256, 256)).aspect[0] / ((x2 - x1) / (y2 - y1))
        )
    # a detector puts a squashed face's landmarks nearer to those of a true one
    assert 0.8 < np.median(ratios) < 1.25
    assert 0.65 < min(ratios) and max(ratios) < 1.5
