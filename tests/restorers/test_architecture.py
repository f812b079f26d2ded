"""Telling a checkpoint's network, and the bilinear network rewritten as the clean one."""

from __future__ import annotations

import math

import pytest
import torch

from musetalk_enhance.errors import CheckpointError
from musetalk_enhance.restorers.architecture import (
    EQUALIZED,
    build_empty,
    check_architecture,
    detect_architecture,
    load_tensors,
)
from musetalk_enhance.restorers.bilinear import bilinear_to_clean
from musetalk_enhance.restorers.gfpgan import GEOMETRY, GFPGANRestorer

from .conftest import random_gfpgan, shapes, spread

SMALL = {**GEOMETRY, "out_size": 32, "num_style_feat": 64, "num_mlp": 2, "narrow": 0.125}
"""A network of the same form with few channels, for quick tests of the rewriting."""


def meta(arch: str, multiplier: int) -> dict[str, torch.Tensor]:
    return {
        key: torch.empty(shape, device="meta") for key, shape in shapes(arch, multiplier).items()
    }


@pytest.mark.parametrize("multiplier", [1, 2])
def test_detect_clean(multiplier):
    assert detect_architecture(meta("clean", multiplier)) == ("clean", multiplier)


@pytest.mark.parametrize(("multiplier", "arch"), [(1, "original"), (2, "bilinear")])
def test_detect_equalised_names_the_published_one(official_stack, multiplier, arch):
    assert detect_architecture(meta("bilinear", multiplier)) == (arch, multiplier)


def test_bilinear_and_original_look_the_same(official_stack):
    from gfpgan.archs.gfpganv1_arch import GFPGANv1

    with torch.device("meta"):
        original = GFPGANv1(**GEOMETRY, channel_multiplier=1).state_dict()
    assert {key: tuple(tensor.shape) for key, tensor in original.items()} == shapes("bilinear", 1)


def test_detect_restoreformer():
    assert detect_architecture(meta("RestoreFormer", 2)) == ("RestoreFormer", None)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["position_emb", "x"], "a part of CodeFormer"),
        (["body.0.rdb1.conv1.weight"], "Real-ESRGAN"),
        (["body.conv1.weight"], "RetinaFace"),
        (["a.b"], "an unknown network, 1 tensors, the first called 'a.b'"),
        ([], "an unknown network, 0 tensors"),
    ],
)
def test_a_stranger_is_named(keys, said):
    with pytest.raises(CheckpointError, match="GFPGAN .* RestoreFormer or CodeFormer") as caught:
        detect_architecture({key: torch.zeros(1) for key in keys})
    assert said in caught.value.actual


def test_a_width_that_no_option_gives():
    with pytest.raises(CheckpointError, match="8 channels"):
        detect_architecture({"conv_body_first.weight": torch.zeros(8, 3, 1, 1)})


@pytest.mark.parametrize(
    ("held", "wanted", "hint"),
    [
        (("clean", 1), ("clean", 2), "Set arch: clean, and channel_multiplier: 1."),
        (("clean", 2), ("original", 2), "Set arch: clean, and channel_multiplier: 2."),
        (("clean", 2), ("RestoreFormer", 2), "Set arch: clean, and channel_multiplier: 2."),
        (("RestoreFormer", 2), ("clean", 2), "Set arch: RestoreFormer."),
    ],
)
def test_the_option_that_fits_is_said(held, wanted, hint):
    with pytest.raises(CheckpointError) as caught:
        check_architecture(meta(*held), *wanted)
    assert hint in str(caught.value)
    assert f"expected arch {wanted[0]}" in str(caught.value)


def test_both_options_are_said_where_the_file_does_not_tell(official_stack):
    with pytest.raises(
        CheckpointError, match="arch: bilinear or arch: original .*channel_multiplier: 1"
    ) as caught:
        check_architecture(meta("bilinear", 1), "clean", 2)
    assert "arch bilinear or original, channel_multiplier 1" in caught.value.actual


@pytest.mark.parametrize("arch", EQUALIZED)
@pytest.mark.parametrize("multiplier", [1, 2])
def test_either_option_is_taken_where_the_file_does_not_tell(official_stack, arch, multiplier):
    check_architecture(meta("bilinear", multiplier), arch, multiplier)


def test_fill_counts_what_is_wrong():
    network = torch.nn.Linear(3, 2)
    with pytest.raises(CheckpointError) as caught:
        load_tensors(
            network, {"weight": torch.zeros(2, 4), "other": torch.zeros(1)}, None, "a layer"
        )
    text = str(caught.value)
    assert "1 missing (such as 'bias')" in text
    assert "1 too many (such as 'other')" in text
    assert "1 of another shape (such as 'weight')" in text


def test_fill_takes_half_precision():
    network = torch.nn.Linear(3, 2)
    load_tensors(
        network,
        {"weight": torch.ones(2, 3).half(), "bias": torch.zeros(2).bfloat16()},
        None,
        "a layer",
    )
    assert network.weight.dtype == torch.float32
    assert network.weight.sum() == 6


def test_rewriting_leaves_its_input_alone(official_stack):
    before = {"final_conv.0.weight": torch.ones(4, 4, 3, 3), "stranger": torch.ones(2)}
    after = bilinear_to_clean(before)
    assert torch.equal(before["final_conv.0.weight"], torch.ones(4, 4, 3, 3))
    assert after["final_conv.weight"][0, 0, 0, 0] == pytest.approx(math.sqrt(2) / 6)
    assert torch.equal(after["stranger"], torch.ones(2))


def test_rewriting_gives_every_name_of_the_clean_network(official_stack):
    state = {key: torch.zeros(shape) for key, shape in shapes("bilinear", 1).items()}
    rewritten = {key: tuple(tensor.shape) for key, tensor in bilinear_to_clean(state).items()}
    assert rewritten == shapes("clean", 1)


@pytest.mark.parametrize("through_mapping", [False, True])
def test_small_rewritten_network_computes_the_same(plain_fused_act, through_mapping):
    """Also through the mapping network, which GFPGAN itself goes around."""
    from gfpgan.archs.gfpgan_bilinear_arch import GFPGANBilinear
    from spandrel.architectures.GFPGAN import GFPGAN

    arguments = {**SMALL, "channel_multiplier": 2, "input_is_latent": not through_mapping}
    if through_mapping:
        arguments["different_w"] = False
    torch.manual_seed(0)
    bilinear = GFPGANBilinear(**arguments).eval()
    for parameter in bilinear.parameters():
        if parameter.numel() and float(parameter.detach().abs().max()) in (0.0, 1.0):
            parameter.data += 0.2 * torch.randn_like(parameter)  # biases and noise strengths
    clean = build_empty(GFPGAN, **arguments).eval()
    load_tensors(clean, bilinear_to_clean(bilinear.state_dict()), None, "small")
    batch = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        ours, our_rgbs = clean(batch, randomize_noise=False)
        theirs, their_rgbs = bilinear(batch, randomize_noise=False)
    assert theirs.std() > 0.1
    # float32 rounding of the folded factors: a few 1e-6 of the output's size
    for one, other in zip([ours, *our_rgbs], [theirs, *their_rgbs], strict=True):
        assert float((one - other).abs().max() / other.abs().max()) < 1e-5


@pytest.mark.slow
def test_full_size_rewritten_network_computes_the_same(plain_fused_act, checkpoint, load, faces):
    """The bar is 1e-4 of the output's range; seen: about 4e-6."""
    from gfpgan.archs.gfpgan_bilinear_arch import GFPGANBilinear

    restorer = load(GFPGANRestorer, checkpoint("bilinear"), arch="bilinear")
    with torch.no_grad():
        ours = restorer.restore(faces[:2]) * 2 - 1
        network = build_empty(GFPGANBilinear, **GEOMETRY, channel_multiplier=2).eval()
        network.load_state_dict(random_gfpgan("bilinear", 2))
        theirs = network(faces[1:2] * 2 - 1, return_rgb=False, randomize_noise=False)[0]
    std, difference = spread(ours)
    assert std > 0.1
    assert difference > 0.05
    error = float((ours[1] - theirs[0]).abs().max() / theirs.abs().max())
    print(f"bilinear: relative error {error:.2e}, std {std:.3f}, between faces {difference:.3f}")
    assert error < 1e-4
