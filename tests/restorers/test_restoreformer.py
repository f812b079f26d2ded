"""RestoreFormer against the official code, on a full-size random checkpoint."""

from __future__ import annotations

import pytest
import torch

from musetalk_enhance import weights
from musetalk_enhance.config.settings import EnhancerSettings
from musetalk_enhance.errors import CheckpointError
from musetalk_enhance.restorers.base import LoadRequest
from musetalk_enhance.restorers.restoreformer import INFO, RestoreFormerRestorer

from .conftest import CPU, random_restoreformer, spread


@pytest.mark.slow
def test_it_is_the_official_restoreformer(official_stack, checkpoint, load, faces, no_sockets):
    """A face of a batch of two equals upstream's network on it alone."""
    from gfpgan.archs.restoreformer_arch import RestoreFormer

    restorer = load(RestoreFormerRestorer, checkpoint("RestoreFormer"))
    ours = restorer.restore(faces[:2])
    network = RestoreFormer().eval()
    network.load_state_dict(random_restoreformer())
    with torch.no_grad():
        theirs = (network(faces[1:2] * 2 - 1)[0] + 1) / 2
    std, difference = spread(ours)
    error = float((ours[1] - theirs[0]).abs().max())
    print(
        f"RestoreFormer: max difference {error:.2e}, std {std:.3f}, between faces {difference:.3f}"
    )
    assert std > 0.05
    assert difference > 0.05
    assert error < 1e-4


@pytest.mark.slow
def test_a_gfpgan_is_refused_in_words(checkpoint, load):
    with pytest.raises(CheckpointError, match="Set arch: clean, and channel_multiplier: 1"):
        load(RestoreFormerRestorer, checkpoint("clean", 1), arch="RestoreFormer")


def test_a_foreign_checkpoint(load, tmp_path):
    path = tmp_path / "foreign.pth"
    torch.save({"params": {"layer.weight": torch.zeros(3)}}, path)
    with pytest.raises(CheckpointError, match="an unknown network"):
        load(RestoreFormerRestorer, path)


def test_missing_tensors_are_counted(load, tmp_path):
    path = tmp_path / "cut.pth"
    kept = {
        "quant_conv.weight": torch.zeros(256, 256, 1, 1),
        "encoder.down.0.block.0.norm1.weight": torch.zeros(64),
    }
    torch.save({"params_ema": kept}, path)
    with pytest.raises(CheckpointError, match=r"2 tensors: \d+ missing"):
        load(RestoreFormerRestorer, path)


def test_no_weight_at_all():
    with pytest.raises(CheckpointError, match="holds nothing"):
        RestoreFormerRestorer(LoadRequest(INFO, EnhancerSettings(), CPU, None))


def test_record():
    assert weights.WEIGHTS.get(INFO.weight).license == INFO.license
    assert (INFO.input_size, INFO.output_size, INFO.value_range) == (512, 512, (-1.0, 1.0))
