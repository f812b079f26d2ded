"""What may change: exactly 0 outside, 1 in the even part, and around the mouth wherever that is."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from musetalk_enhance.faces import regions
from musetalk_enhance.faces.meter import FaceMeter
from musetalk_enhance.faces.regions import TYPICAL, region_mask
from musetalk_enhance.frames.resize import LOWER_FROM, LOWER_FULL, kept_rows

SIZES = [(256, 256), (512, 512), (97, 131), (300, 64), (16, 16)]


def mouth_at(*points, size_hw=(256, 256)) -> torch.Tensor:
    return region_mask("mouth", size_hw, [np.array(points or TYPICAL, np.float32)])[0, 0]


def turned(degrees: float, centre=(0.5, 0.62)) -> np.ndarray:
    """The usual landmarks, turned around a place in the frame."""
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (np.array(TYPICAL) - centre) @ turn.T * 0.7 + centre


def test_full_is_everywhere():
    assert region_mask("full", (64, 64)) is None


@pytest.mark.parametrize("size_hw", SIZES)
def test_lower_is_0_above_1_below_and_rises_between(size_hw):
    mask = region_mask("lower", size_hw)
    height = size_hw[0]
    assert mask.shape == (1, 1, *size_hw) and mask.dtype == torch.float32
    rows = mask[0, 0, :, 0]
    assert (mask[0, 0] == rows[:, None]).all() and (rows.diff() >= 0).all()
    assert (rows[: int(height * LOWER_FROM)] == 0).all()
    assert (rows[int(np.ceil(height * LOWER_FULL)) :] == 1).all()
    assert set(rows.nonzero()[:, 0].tolist()) <= set(kept_rows("lower", height)), (
        "no row that is not computed"
    )


@pytest.mark.parametrize("size_hw", SIZES)
def test_the_mouth_lies_in_the_lower_part(size_hw):
    mask = region_mask("mouth", size_hw)
    assert mask.shape == (1, 1, *size_hw) and mask.min() == 0 and mask.max() <= 1
    assert (mask <= region_mask("lower", size_hw)).all()
    high = np.array(TYPICAL) - (0, 0.35)
    raised = region_mask("mouth", size_hw, [high])
    assert (raised <= region_mask("lower", size_hw)).all() and (raised < mask).any()


def test_the_mouth_is_even_inside_and_0_around():
    mask = mouth_at()
    x, y = (256 * np.array(TYPICAL)[3:].mean(0)).round().astype(int)
    assert (mask[y - 8 : y + 40, x - 40 : x + 40] == 1).all(), "lips and what is between them"
    assert (mask[:140] == 0).all() and (mask[:, :40] == 0).all() and (mask[:, -40:] == 0).all()
    ramp = mask[200]
    assert ((ramp > 0) & (ramp < 1)).sum() > 16 and ramp.diff().abs().max() < 0.1, "no seam"


def test_the_mouth_follows_the_landmarks():
    usual, moved = mouth_at(), mouth_at(*(np.array(TYPICAL) + (8 / 128, 2 / 128)))
    low = slice(130, 250)  # where `lower` takes nothing off
    assert torch.allclose(moved[134:250, 16:], usual[130:246, :-16], atol=1e-4)
    small = mouth_at(*((np.array(TYPICAL) - (0.5, 0.77)) / 2 + (0.5, 0.77)))
    assert small[low].sum() < 0.4 * usual[low].sum(), (
        "a face of half the size has a mouth of half the size"
    )


def test_a_turned_face_has_a_turned_region():
    up, left, right = (mouth_at(*turned(degrees)) for degrees in (0, 25, -25))
    columns = torch.arange(256) + 0.5
    middle = [float((mask.sum(0) * columns).sum() / mask.sum()) for mask in (right, up, left)]
    assert middle[0] > middle[1] + 8 > middle[2] + 16, (
        "the mouth swings to the side the chin goes to"
    )
    assert torch.allclose(left, right.flip(1), atol=0.08)
    for degrees, mask in ((25, left), (-25, right)):
        corners = (turned(degrees)[3:] * 256).astype(int)
        assert all(mask[y, x] > 0.9 for x, y in corners)


def test_an_open_mouth_is_covered(take):
    """By the meter's own landmarks: corners, and the lips above and below the opening, are in the
    even part."""
    seen = FaceMeter().measure(take)
    masks = region_mask("mouth", (256, 256), list((seen.landmarks / 256).numpy()))
    widest = int(seen.mouth.argmax())
    assert seen.mouth[widest] > 0.15
    for index, mask in enumerate(masks[:, 0]):
        points = seen.landmarks[index]
        down = points[3:].mean(0) - points[:2].mean(0)
        middle, gap = points[3:].mean(0), float(seen.mouth[index])
        wanted = [*points[3:], middle - 0.1 * down, middle + (gap + 0.1) * down]
        assert all(mask[int(y), int(x)] > 0.98 for x, y in wanted), index
        assert mask[int(points[0, 1]), int(points[0, 0])] == 0, "an eye is not"


@pytest.mark.parametrize(
    "points", [np.zeros((5, 2)), np.full((5, 2), 0.5), np.array(TYPICAL) * 0.1 + 0.4]
)
def test_collapsed_landmarks_are_none(points):
    assert torch.equal(mouth_at(*points), region_mask("mouth", (256, 256))[0, 0])


def test_a_mouth_far_outside_leaves_the_frame_alone():
    assert (mouth_at(*(np.array(TYPICAL) + 3)) == 0).all()


def test_each_face_has_its_own_and_unknown_ones_the_usual():
    moved = np.array(TYPICAL) + 0.125
    masks = region_mask("mouth", (128, 128), [None, moved, None])
    assert masks.shape == (3, 1, 128, 128)
    assert torch.equal(masks[0], masks[2]) and not torch.equal(masks[0], masks[1])
    assert torch.equal(masks[1:2], region_mask("mouth", (128, 128), [moved]))


@pytest.mark.parametrize("region", ["lower", "mouth"])
@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_what_a_caller_does_to_its_mask_is_its_own_affair(region, device):
    first = region_mask(region, (48, 48), device=device)
    kept = first.clone()
    first.zero_()
    assert torch.equal(region_mask(region, (48, 48), device=device), kept) and kept.max() == 1


def test_a_mask_goes_to_the_device_asked_for():
    for region in ("lower", "mouth"):
        assert region_mask(region, (32, 32), device=torch.device("meta")).device.type == "meta"
        assert region_mask(region, (32, 32)).device.type == "cpu", "and the next one to its own"


def test_the_default_dtype_of_the_host_means_nothing_here():
    torch.set_default_dtype(torch.float64)
    try:
        masks = [region_mask(region, (50, 54)) for region in ("lower", "mouth")]
    finally:
        torch.set_default_dtype(torch.float32)
    assert [mask.dtype for mask in masks] == [torch.float32] * 2


def tensor_bytes() -> int:
    """Bytes of all tensors of this process."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if type(each) is torch.Tensor]
    return sum(each.numel() * each.element_size() for each in tensors)


def test_masks_of_many_large_mouths_do_not_fill_the_memory():
    """10 mouths of 1024 px, 4 MiB each as a whole."""
    before = tensor_bytes()
    for step in range(10):
        assert mouth_at(*(np.array(TYPICAL) - [0, step / 128]), size_hw=(1024, 1024)).any()
    assert tensor_bytes() - before < 16 * 2**20


def test_the_masks_that_were_used_last_are_kept_up_to_a_number_of_bytes(monkeypatch):
    computed = []
    compute = regions._mouth

    def noting(size_hw, landmarks):
        computed.append(size_hw)
        return compute(size_hw, landmarks)

    monkeypatch.setattr(regions, "_mouth", noting)
    size = regions.MouthMasks(2**20).part((64, 64), TYPICAL)[2].numel() * 4
    masks, computed[:] = regions.MouthMasks(3 * size), []
    for side in (64, 63, 64, 62, 64, 61, 64):  # three of these fit
        masks.part((side, side), TYPICAL)
    assert computed == [(64, 64), (63, 63), (62, 62), (61, 61)]
    masks.part((63, 63), TYPICAL)
    assert computed[-1] == (63, 63), "dropped as the one that was not used for the longest time"
    assert regions.MouthMasks(0).part((64, 64), TYPICAL)[2].max() == 1, "larger than all that fits"
