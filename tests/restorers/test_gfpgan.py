"""GFPGAN of every arch against the official code, on full-size random checkpoints."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from musetalk_enhance import weights
from musetalk_enhance.config.settings import EnhancerSettings
from musetalk_enhance.errors import CheckpointError, CorruptWeightError, MissingDependencyError
from musetalk_enhance.restorers import official_stack as stack
from musetalk_enhance.restorers.base import LoadRequest
from musetalk_enhance.restorers.gfpgan import GEOMETRY, VERSIONS, GFPGANRestorer

from .conftest import CPU, spread, to_bgr

CLOSE = 1e-4
"""What the outputs (0..1) may differ by; float32 sums in another order differ by a few 1e-6."""


def agree(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Both (N, 3, 512, 512), 0..1: equal within CLOSE, and not trivially so."""
    std, difference = spread(theirs) if len(theirs) > 1 else (float(theirs.std()), float("nan"))
    error = float((ours - theirs).abs().max())
    print(f"{name}: max difference {error:.2e}, std {std:.3f}, between faces {difference:.3f}")
    assert ours.shape == theirs.shape
    assert std > 0.05, "an output without contrast proves nothing"
    assert not difference < 0.02, "an output that hardly depends on the input proves nothing"
    assert ((theirs < 0) | (theirs > 1)).float().mean() < 0.2, "a saturated output proves nothing"
    assert error < CLOSE


def run_official(network: torch.nn.Module, faces: torch.Tensor) -> torch.Tensor:
    """The official network face by face, noise from its buffers."""
    with torch.no_grad():
        outs = [
            network(face[None] * 2 - 1, return_rgb=False, randomize_noise=False)[0]
            for face in faces
        ]
    return (torch.cat(outs) + 1) / 2


@pytest.mark.slow
def test_clean_is_gfpganer(official_stack, helpers_in_cache, checkpoint, load, faces, no_sockets):
    """A batch of three equals GFPGANer's network on each face, and its 8-bit images."""
    path = checkpoint("clean")
    state_dict = weights.open_file(path, trust_unpinned=True).state_dict()
    gfpganer = stack.build_gfpganer(path, state_dict, device=CPU)
    ours = load(GFPGANRestorer, path).restore(faces)
    agree("clean, multiplier 2", ours, run_official(gfpganer.gfpgan, faces))

    gfpganer.gfpgan.forward = functools.partial(gfpganer.gfpgan.forward, randomize_noise=False)
    picture_bgr = to_bgr(faces[1])
    _, restored, pasted = gfpganer.enhance(picture_bgr, has_aligned=True)
    assert pasted is None
    steps = np.abs(restored[0].astype(int) - to_bgr(ours[1].clamp(0, 1)).astype(int))
    print(
        f"GFPGANer.enhance(has_aligned=True): {np.mean(steps > 0):.1e} of the bytes differ, "
        f"by {steps.max()}"
    )
    assert steps.max() <= 1  # rounding of values that lie on a half
    assert np.mean(steps > 0) < 1e-3


@pytest.mark.slow
def test_clean_with_multiplier_1(official_stack, checkpoint, load, faces):
    from gfpgan.archs.gfpganv1_clean_arch import GFPGANv1Clean

    path = checkpoint("clean", 1)
    ours = load(GFPGANRestorer, path, channel_multiplier=1).restore(faces[:1])
    network = GFPGANv1Clean(**GEOMETRY, channel_multiplier=1).eval()
    network.load_state_dict(torch.load(path, weights_only=True)["params_ema"])
    agree("clean, multiplier 1", ours, run_official(network, faces[:1]))


@pytest.mark.slow
def test_original_is_gfpganv1(plain_fused_act, checkpoint, load, faces):
    """One of a batch of two, against upstream's layers with the test's own CUDA extension."""
    from gfpgan.archs.gfpganv1_arch import GFPGANv1

    path = checkpoint("original", 1)
    restorer = load(GFPGANRestorer, path, arch="original", channel_multiplier=1)
    ours = restorer.restore(faces[:2])
    network = GFPGANv1(**GEOMETRY, channel_multiplier=1).eval()
    network.load_state_dict(torch.load(path, weights_only=True)["params_ema"])
    assert ours[0].sub(ours[1]).abs().mean() > 0.02
    agree("original, multiplier 1", ours[1:], run_official(network, faces[1:2]))


@pytest.mark.slow
def test_the_same_face_comes_out_the_same(checkpoint, load, faces):
    restorer = load(GFPGANRestorer, checkpoint("clean", 1), channel_multiplier=1)
    first, second = restorer.restore(faces[:1]), restorer.restore(faces[:1].clone())
    assert torch.equal(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["bilinear", "original", "RestoreFormer"])
def test_another_arch_is_refused_in_words(checkpoint, load, arch):
    with pytest.raises(CheckpointError) as caught:
        load(GFPGANRestorer, checkpoint("clean", 1), arch=arch, channel_multiplier=1)
    assert "arch clean, channel_multiplier 1" in caught.value.actual
    assert "size mismatch" not in str(caught.value)


@pytest.mark.slow
def test_another_multiplier_is_refused_in_words(checkpoint, load):
    with pytest.raises(CheckpointError, match="Set arch: clean, and channel_multiplier: 1"):
        load(GFPGANRestorer, checkpoint("clean", 1))


@pytest.mark.slow
def test_missing_tensors_are_counted(checkpoint, load, tmp_path):
    state = torch.load(checkpoint("clean", 1), weights_only=True)["params_ema"]
    path = tmp_path / "cut.pth"
    torch.save({"params_ema": dict(list(state.items())[:40])}, path)
    with pytest.raises(CheckpointError, match=r"40 tensors: \d+ missing \(such as"):
        load(GFPGANRestorer, path, channel_multiplier=1)


@pytest.mark.slow
def test_a_truncated_file(checkpoint, load, tmp_path):
    path = tmp_path / "truncated.pth"
    with checkpoint("clean", 1).open("rb") as whole:
        path.write_bytes(whole.read(5_000_000))
    with pytest.raises(CorruptWeightError, match="truncated"):
        load(GFPGANRestorer, path, channel_multiplier=1)


def test_a_foreign_checkpoint(load, tmp_path):
    path = tmp_path / "foreign.pth"
    torch.save({"state_dict": {"layer.weight": torch.zeros(3)}}, path)
    with pytest.raises(CheckpointError, match="an unknown network, 1 tensors"):
        load(GFPGANRestorer, path)


def test_no_weight_at_all():
    request = LoadRequest(VERSIONS["gfpgan-1.4"], EnhancerSettings(), CPU, None)
    with pytest.raises(CheckpointError, match="holds nothing"):
        GFPGANRestorer(request)


@pytest.mark.slow
def test_original_without_the_package(official_stack, checkpoint, load, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gfpgan.archs.gfpganv1_arch", None)
    with pytest.raises(
        MissingDependencyError, match=r"arch: original needs.*musetalk_enhance\[gfpgan\]"
    ):
        load(GFPGANRestorer, checkpoint("original", 1), arch="original", channel_multiplier=1)


def test_loading_leaves_the_random_state_alone(official_stack):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    stack.original_network({**GEOMETRY, "out_size": 32, "narrow": 0.125, "channel_multiplier": 1})
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("name", VERSIONS)
def test_records(name):
    record = VERSIONS[name]
    assert record.name == name
    assert record.weight in weights.WEIGHTS
    assert record.license == weights.WEIGHTS.get(record.weight).license
    assert (record.input_size, record.output_size, record.value_range) == (512, 512, (-1.0, 1.0))
