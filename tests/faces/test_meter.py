"""The meter reads geometry: known poses, mirrored pictures, soft beside sharp, planted changes,
nonsense."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from musetalk_enhance.errors import FrameError
from musetalk_enhance.faces.meter import (
    ASSET,
    FaceMeasurement,
    FaceMeter,
    MeterNetwork,
    mouth_share,
    shrink,
)
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "examples"))


@pytest.fixture(scope="module")
def meter() -> FaceMeter:
    return FaceMeter()


@pytest.fixture(scope="module")
def take():
    """60 frames of the synthetic head: crops (60, 3, 256, 256) and their poses."""
    pytest.importorskip("skimage")
    from talking_head import pose_at, talking_head

    crops = []
    for frame_bgr, (left, top, right, bottom) in talking_head(60, size=480):
        face = cv2.resize(
            frame_bgr[top:bottom, left:right, ::-1], (256, 256), interpolation=cv2.INTER_CUBIC
        )
        crops.append(torch.from_numpy(face).permute(2, 0, 1).float() / 255)
    return torch.stack(crops), [pose_at(index / 25, 0) for index in range(60)]


@pytest.fixture(scope="module")
def measured(meter, take) -> FaceMeasurement:
    return meter.measure(take[0])


def soften(faces: torch.Tensor) -> torch.Tensor:
    """What a decoder leaves: the detail of 96 px."""
    small = interpolate(faces, size=(96, 96), mode="area")
    return interpolate(small, size=faces.shape[2:], mode="bicubic", align_corners=False).clamp(0, 1)


def correlation(one, other) -> float:
    return float(np.corrcoef(np.asarray(one, float), np.asarray(other, float))[0, 1])


def fields(measured: FaceMeasurement) -> list[torch.Tensor]:
    return [measured.landmarks, measured.mouth, measured.eyes, measured.confidence]


def test_the_mouth_follows_the_known_opening(take, measured):
    opening = [pose.opening for pose in take[1]]
    assert correlation(measured.mouth, opening) > 0.97
    wide = measured.mouth[int(np.argmax(opening))] - measured.mouth[int(np.argmin(opening))]
    assert float(wide) > 0.2


def test_the_eyes_follow_the_known_blink(take, measured):
    blink = np.array([pose.blink for pose in take[1]])
    eyes = measured.eyes.mean(1).numpy()
    assert correlation(eyes, -blink) > 0.95
    assert eyes[blink < 0.01].mean() - eyes[blink > 0.9].mean() > 0.1


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("clip", ["d3", "d18"])
def test_real_people_open_and_close_their_mouths_and_softness_does_not(meter, shared, clip):
    detector = shared / "weights" / "face_detection_yunet_2023mar.onnx"
    if not detector.exists():
        pytest.skip(f"no {detector.name} in the data folder")
    finder = cv2.FaceDetectorYN.create(str(detector), "", (320, 320), 0.7, 0.3, 50)
    video, crops = cv2.VideoCapture(str(shared / "data" / "clips" / f"{clip}.mp4")), []
    for index in range(200):
        frame_bgr = video.read()[1]
        if index % 4 == 0:
            finder.setInputSize(frame_bgr.shape[1::-1])
            x, y, w, h = finder.detect(frame_bgr)[1][0][:4]
            left, top, right, bottom = (
                max(0, round(float(v))) for v in (x, y + 0.08 * h, x + w, y + h)
            )
            face = cv2.resize(
                frame_bgr[top:bottom, left:right, ::-1], (256, 256), interpolation=cv2.INTER_AREA
            )
            crops.append(torch.from_numpy(face).permute(2, 0, 1).float() / 255)
    faces = torch.stack(crops)
    sharp, soft = meter.measure(faces), meter.measure(soften(faces))
    assert float(sharp.confidence.min()) > 0.5
    noise = float((soft.mouth - sharp.mouth).abs().max())
    assert noise < 0.02
    assert float(sharp.mouth.max() - sharp.mouth.min()) > max(0.15, 8 * noise)
    assert correlation(soft.mouth, sharp.mouth) > 0.995
    # d18 hardly blinks, so no correlation is asked for
    assert float((soft.eyes - sharp.eyes).abs().max()) < 0.04
    assert float((soft.landmarks - sharp.landmarks).norm(dim=2).mean()) < 1.0


def test_softness_is_not_read_as_a_movement(meter, take, measured):
    soft = meter.measure(soften(take[0]))
    assert float((soft.mouth - measured.mouth).abs().max()) < 0.02
    assert float((soft.eyes - measured.eyes).abs().max()) < 0.03
    assert float((soft.landmarks - measured.landmarks).norm(dim=2).max()) < 3.0


def test_a_tint_or_another_exposure_changes_little(meter, take, measured):
    tinted = take[0] * torch.tensor([0.9, 0.8, 0.7])[:, None, None] + 0.05
    found = meter.measure(tinted)
    assert float((found.mouth - measured.mouth).abs().max()) < 0.01
    assert float((found.landmarks - measured.landmarks).norm(dim=2).max()) < 0.5


def test_landmarks_lie_in_a_face_and_move_with_it(meter, take, measured):
    left, right, nose, left_corner, right_corner = measured.landmarks.mean(0).tolist()
    assert left[0] < nose[0] < right[0] and left_corner[0] < nose[0] < right_corner[0]
    assert max(left[1], right[1]) < nose[1] < min(left_corner[1], right_corner[1])
    moved = meter.measure(torch.roll(take[0], (4, 6), (2, 3)))
    shift = (moved.landmarks - measured.landmarks).mean((0, 1))
    assert shift.tolist() == pytest.approx([6.0, 4.0], abs=1.5)


def test_a_mirrored_picture_gives_mirrored_landmarks(meter, take, measured):
    other = meter.measure(take[0].flip(3))
    back = (torch.tensor([256.0, 0.0]) + torch.tensor([-1.0, 1.0]) * other.landmarks)[
        :, [1, 0, 2, 4, 3]
    ]
    assert float((back - measured.landmarks).norm(dim=2).mean()) < 4.0
    assert float((other.mouth - measured.mouth).abs().mean()) < 0.03
    assert float((other.eyes.flip(1) - measured.eyes).abs().mean()) < 0.03


def test_landmarks_are_in_pixels_of_any_crop(meter, take, measured):
    larger = interpolate(take[0][:4], size=(384, 512), mode="bilinear", align_corners=False)
    found = meter.measure(larger)
    expected = measured.landmarks[:4] * torch.tensor([2.0, 1.5])
    assert float((found.landmarks - expected).norm(dim=2).max()) < 3.0
    assert float((found.mouth - measured.mouth[:4]).abs().max()) < 0.02
    # the share of the lids is of the crop's own pixels: wider crops have wider eyes
    assert torch.allclose(found.eyes * (2.0 / 1.5), measured.eyes[:4], atol=0.03)


def test_each_face_is_measured_by_itself_and_always_alike(meter, take, measured):
    for found, again in zip(fields(meter.measure(take[0])), fields(measured), strict=True):
        assert torch.equal(found, again)
    for index in (0, 17, 59):
        for single, batched in zip(
            fields(meter.measure(take[0][index : index + 1])), fields(measured), strict=True
        ):
            assert torch.allclose(single[0], batched[index], atol=1e-3)


@pytest.mark.parametrize("shape", [(2, 16, 16), (1, 40, 300), (3, 256, 256), (1, 700, 500)])
def test_shapes_types_and_finite_numbers_on_nonsense(meter, shape):
    count, *size_hw = shape
    noise = torch.rand(count, 3, *size_hw, generator=torch.Generator().manual_seed(0))
    broken = torch.full_like(noise, float("nan"))
    for faces in (
        noise,
        noise.double(),
        torch.zeros_like(noise),
        torch.full_like(noise, 0.6),
        9 * noise,
        broken,
    ):
        found = meter.measure(faces)
        assert [tuple(field.shape) for field in fields(found)] == [
            (count, 5, 2),
            (count,),
            (count, 2),
            (count,),
        ]
        for field in fields(found):
            assert (
                field.dtype == torch.float32
                and bool(field.isfinite().all())
                and not field.requires_grad
            )
        assert float(found.mouth.min()) >= 0 and float(found.eyes.min()) >= 0


def test_no_faces_are_no_measures(meter):
    found = meter.measure(torch.zeros(0, 3, 64, 64))
    assert [tuple(field.shape) for field in fields(found)] == [(0, 5, 2), (0,), (0, 2), (0,)]


def test_confidence_tells_faces_from_what_is_none(meter, take, measured):
    flat = torch.rand(8, 3, 1, 1, generator=torch.Generator().manual_seed(1)).expand(8, 3, 256, 256)
    noise = torch.rand(8, 3, 256, 256, generator=torch.Generator().manual_seed(2))
    assert float(measured.confidence.min()) > 0.9
    for nonsense in (flat, noise, take[0][:8].flip(2)):
        assert float(meter.measure(nonsense).confidence.median()) < 0.5


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 3, 15, 64)])
def test_another_shape_is_refused(meter, shape):
    with pytest.raises(FrameError, match="expected"):
        meter.measure(torch.zeros(shape))


def test_the_input_is_left_as_it_was(meter):
    faces = 2 * torch.rand(2, 3, 32, 32)
    before = faces.clone()
    meter.measure(faces)
    assert torch.equal(faces, before)


def test_it_is_small_and_moves(meter):
    assert ASSET.stat().st_size < 350_000
    assert FaceMeter("cpu").to("cpu").device == torch.device("cpu")


def test_the_gap_is_measured_along_the_face():
    landmarks = torch.tensor([[[0.2, 0.3], [0.6, 0.3], [0.4, 0.5], [0.3, 0.7], [0.5, 0.7]]])
    assert float(mouth_share(torch.tensor([[0.0, 0.1]]), landmarks)) == pytest.approx(0.25)
    assert float(mouth_share(torch.tensor([[0.1, 0.0]]), landmarks)) == pytest.approx(0.0)


def test_shrinking_keeps_means_and_does_not_alias():
    stripes = torch.zeros(1, 3, 288, 288)
    stripes[..., ::2] = 1
    small = shrink(stripes, 96)
    assert small.shape == (1, 3, 96, 96) and float((small - 0.5).abs().max()) < 0.12


def test_training_moves_the_network_towards_the_truth():
    pytest.importorskip("safetensors")
    sys.path.insert(0, str(ROOT / "scripts"))
    import train_meter

    with torch.random.fork_rng():
        torch.manual_seed(0)
        views, faces = torch.rand(2, 4, 3, 96, 96), torch.tensor([True, True, True, False])
        said = torch.tensor([0.3, 0.4, 0.7, 0.4, 0.5, 0.55, 0.4, 0.75, 0.6, 0.75]).repeat(4, 1)
        corners = torch.tensor([0.22, 0.4, 0.38, 0.4, 0.62, 0.4, 0.78, 0.4]).repeat(4, 1)
        said = torch.cat(
            [said, corners, torch.tensor([0.0, 0.05, 0.0, 0.04, 0.0, 0.04]).repeat(4, 1)], 1
        )
        assert torch.allclose(train_meter.mirrored(train_meter.mirrored(said)), said, atol=1e-6)
        assert torch.allclose(train_meter.mirrored(said), said, atol=1e-6)  # this face is symmetric
        network = MeterNetwork()
        optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
        totals = []
        for _ in range(25):
            total = torch.stack(
                list(train_meter.losses(network, views, said, faces).values())
            ).sum()
            optimiser.zero_grad()
            torch.autograd.backward(total)
            optimiser.step()
            totals.append(float(total.detach()))
    assert totals[-1] < 0.5 * totals[0]
