"""The training script's data, losses and operator, and the weights that it made."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("piq")
SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))
import lite_data  # noqa: E402
import train_lite  # noqa: E402

WEIGHTS = SCRIPTS.parent / "musetalk_enhance" / "restorers" / "assets" / "lite.safetensors"


@pytest.fixture(autouse=True)
def _leave_randomness_as_it_was():
    with torch.random.fork_rng():
        yield


@pytest.fixture
def texture() -> np.ndarray:
    """A 512 px RGB picture with detail at every size."""
    rng = np.random.default_rng(3)
    layers = [np.kron(rng.uniform(-1, 1, (512 // s, 512 // s, 3)), np.ones((s, s, 1))) for s in (2, 8, 64)]
    return np.clip(128 + 30 * sum(layers), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def shipped() -> torch.nn.Module:
    """The shipped network, loaded and recognised by spandrel."""
    from spandrel import ModelLoader

    descriptor = ModelLoader().load_from_file(WEIGHTS)
    assert (descriptor.scale, descriptor.input_channels, descriptor.output_channels) == (2, 12, 12)
    assert "Compact" in descriptor.architecture.name
    return descriptor.model.eval()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / ((a.astype(float) - b) ** 2).mean()))


def test_degradation_is_seeded_and_keeps_size_and_colour(texture):
    for seed in range(40):
        first, second = (lite_data.degrade(texture, np.random.default_rng(seed)) for _ in range(2))
        assert first.shape == (256, 256, 3) and first.dtype == np.uint8
        assert np.array_equal(first, second)
        # half a grey level of rounding at each of up to four steps, and JPEG's own
        assert np.abs(first.mean((0, 1)) - texture.mean((0, 1))).max() < 1.0


def test_degradation_covers_sharp_and_host_softened_inputs(texture):
    draws = [lite_data.degrade(texture, np.random.default_rng(seed)) for seed in range(40)]
    sharp = lite_data.sharpness(lite_data.resize(texture, 256))
    share = np.array([lite_data.sharpness(draw) for draw in draws]) / sharp
    assert share.min() < 0.1 and share.max() > 0.7
    host = lite_data.soften(lite_data.resize(texture, 256), 96)
    close = [np.abs(draw.astype(int) - host).mean() < 2.5 for draw in draws]
    assert sum(close) >= 4


def test_soften_is_area_down_and_bicubic_up(texture):
    x = lite_data.to_tensor(texture[None, :256, :256])
    small = torch.nn.functional.interpolate(x, size=(96, 96), mode="area")
    expected = torch.nn.functional.interpolate(small, size=(256, 256), mode="bicubic", align_corners=False)
    found = lite_data.to_tensor(lite_data.soften(texture[:256, :256], 96)[None])
    assert (found - expected.clamp(0, 1)).abs().max() <= 0.51 / 255  # rounding to 8 bits


def test_crops_are_square_even_where_the_face_leaves_the_picture(texture):
    for box in ((150.0, 100.0, 200.0, 260.0), (-20.0, 5.0, 240.0, 300.0), (400.0, 380.0, 110.0, 130.0)):
        for crop in (lite_data.tight_crop(texture, box, 0.1), lite_data.head_crop(texture, box)):
            assert crop.shape == (512, 512, 3) and crop.dtype == np.uint8


def test_patches_are_never_enlarged_much(texture):
    rng = np.random.default_rng(0)
    assert [window for window, _ in lite_data.patch_crops(texture[:430], rng, still=True)] == []
    windows = [window for window, _ in lite_data.patch_crops(np.tile(texture, (2, 2, 1)), rng, still=True)]
    assert len(windows) == 12 and min(windows) >= 445


def test_recolour_changes_light_but_not_detail_places(texture):
    out = lite_data.recolour(texture, np.random.default_rng(5))
    assert out.shape == texture.shape and out.dtype == np.uint8
    correlation = np.corrcoef(out[..., 1].ravel(), texture[..., 1].ravel())[0, 1]
    assert correlation > 0.98


def test_batches_are_seeded_by_step_and_line_up(texture):
    records = [lite_data.Crop("a", kind, 0, 400, 50.0) for kind in lite_data.KINDS]
    sampler = lite_data.PatchSampler(records, np.stack([texture] * 3), seed=1, patch=32)
    inputs, targets = sampler.batch(4, 6)
    assert inputs.shape == (6, 3, 32, 32) and targets.shape == (6, 3, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip((inputs, targets), sampler.batch(4, 6), strict=True))
    assert not torch.equal(inputs, sampler.batch(5, 6)[0])
    # the same view: 16 px means agree, but for what softening and noise move
    means = [torch.nn.functional.avg_pool2d(x, side) for x, side in ((inputs, 16), (targets, 32))]
    assert (means[0] - means[1]).abs().mean() < 0.03


def test_an_untrained_net_is_bicubic():
    torch.manual_seed(0)
    x = torch.rand(1, 3, 32, 48)
    bicubic = torch.nn.functional.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)
    with torch.no_grad():
        out = train_lite.lite(train_lite.make_net(), x)
    assert torch.allclose(out, bicubic.clamp(0, 1), atol=1e-5)


def test_texture_loss_wants_detail_in_its_place_and_no_checkerboard():
    torch.manual_seed(0)
    target = torch.nn.functional.interpolate(torch.rand(1, 3, 32, 32), scale_factor=2, mode="bicubic")
    soft = torch.nn.functional.avg_pool2d(target, 5, 1, 2, count_include_pad=False)
    checker = torch.ones(64, 64)
    checker[::2, 1::2] = checker[1::2, ::2] = -1
    lacking, excess = train_lite.texture_loss(target, target)
    assert float(lacking) < 1e-3 and float(excess) < 1e-6
    soft_lacking, soft_excess = train_lite.texture_loss(soft, target)
    assert float(soft_lacking) > 0.01 > float(soft_excess)
    assert float(train_lite.texture_loss(target + 0.1 * checker, target)[1]) > 0.01


def test_gain_scales_what_is_added_to_bicubic():
    torch.manual_seed(0)
    net, x = train_lite.make_net(), torch.rand(1, 3, 32, 32)
    torch.nn.init.normal_(net.body[-1].weight, std=0.01)
    with torch.no_grad():
        bicubic, once = train_lite.raw_lite(train_lite.make_net(), x), train_lite.raw_lite(net, x)
        train_lite.amplify(net, 1.5)
        assert torch.allclose(train_lite.raw_lite(net, x) - bicubic, 1.5 * (once - bicubic), atol=1e-4)


def test_a_few_steps_lower_the_loss_and_a_checkpoint_carries_on(texture, tmp_path, monkeypatch):
    arguments = ["x", "--data", "d", "--yunet", "y", "--work", str(tmp_path), "--texture-from", "2"]
    monkeypatch.setattr(sys, "argv", arguments)
    args = train_lite.parse_args()
    sampler = lite_data.PatchSampler([lite_data.Crop("a", "tight", 0, 400, 50.0)], texture[None], 0, patch=32)
    batch = sampler.batch(0, 2)
    trainer = train_lite.Trainer(args)
    logs = [trainer.train_step(*batch) for _ in range(12)]
    assert logs[1]["l1"] < logs[0]["l1"] and "lacking" not in logs[1]
    assert logs[-1]["lacking"] < logs[2]["lacking"] and "excess" in logs[2]
    torch.save(trainer.state(), tmp_path / "lite.pt")
    again = train_lite.Trainer(args)
    again.load(tmp_path / "lite.pt")
    assert again.step == 12
    assert again.train_step(*batch)["l1"] == pytest.approx(trainer.train_step(*batch)["l1"], rel=1e-4)


def test_export_replaces_the_file_and_says_what_it_is(tmp_path):
    from safetensors import safe_open

    path = tmp_path / "lite.safetensors"
    path.write_bytes(b"old")
    train_lite.export(train_lite.make_net(), path, 7)
    with safe_open(path, "pt") as file:
        assert file.metadata()["steps"] == "7" and file.metadata()["licence"] == "apache-2.0"
    assert [p.name for p in tmp_path.iterdir()] == ["lite.safetensors"]


def test_shipped_weights_are_small_and_keep_a_flat_colour(shipped):
    assert WEIGHTS.stat().st_size <= 8 * 2**20
    colours = np.random.default_rng(0).integers(0, 256, (8, 1, 1, 3)).astype(np.uint8)
    flat = np.ascontiguousarray(np.broadcast_to(colours, (8, 64, 64, 3)))
    out = train_lite.apply(shipped, flat)
    assert np.abs(out.astype(int) - colours).max() <= 1


def test_shipped_weights_sharpen_a_softened_face(shipped):
    data = pytest.importorskip("skimage.data")
    face = lite_data.resize(np.ascontiguousarray(data.astronaut()[0:256, 96:352]), 512)
    given = lite_data.soften(lite_data.resize(face, 256), 96)
    bicubic, out = (train_lite.apply(net, given[None])[0] for net in (None, shipped))
    assert psnr(out, face) > psnr(bicubic, face) + 0.3
    assert lite_data.sharpness(out) > 1.5 * lite_data.sharpness(bicubic)
    assert np.abs(out.mean((0, 1)) - given.mean((0, 1))).max() < 1.0
