"""The embedded model over `Ops`: the same on ncnn, and ``lower`` gives the same pixels.

`tests/test_train_lite.py` compares it with the network that is trained.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate

from musetalk_enhance.backends.ncnn_backend import NcnnBackend
from musetalk_enhance.config.settings import EnhancerSettings
from musetalk_enhance.errors import CheckpointError
from musetalk_enhance.frames.resize import kept_rows, lower_weights, resize
from musetalk_enhance.restorers.base import LoadRequest
from musetalk_enhance.restorers.lite import LiteRestorer
from musetalk_enhance.weights import open_file

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def faces() -> torch.Tensor:
    coarse = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    return interpolate(coarse, size=256, mode="bicubic").clamp(0, 1)


@pytest.fixture(scope="module")
def expected(faces) -> torch.Tensor:
    with torch.inference_mode():
        restored: torch.Tensor = spec("full").module(faces)
    assert 0.2 < float((restored - resize(faces, (512, 512))).abs().max() * 255)
    return restored


def spec(region: str):
    return LiteRestorer.network(
        LoadRequest(LiteRestorer.info, EnhancerSettings(enabled=True, region=region), CPU)
    )


@pytest.mark.parametrize("region", ["full", "lower"])
def test_the_kept_rows_are_those_of_the_whole_face(faces, expected, region):
    start = kept_rows(region, 512).start
    module = spec(region).module
    restored = module(faces)
    assert restored.shape == expected.shape
    assert float((restored - expected)[:, :, start:].abs().max()) < 0.25 / 255
    assert torch.equal(
        restored[:, :, :start], restored[:, :, start : start + 1].expand(-1, -1, start, -1)
    )
    backend = NcnnBackend(spec(region))
    assert float((backend.run(faces) - restored)[:, :, start:].abs().max()) < 1e-4
    backend.close()


def test_another_network_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"look.layers.0.weight": torch.zeros(4, 48, 3, 3)}, tmp_path / "other.safetensors")
    request = LoadRequest(
        LiteRestorer.info, EnhancerSettings(), CPU, open_file(tmp_path / "other.safetensors")
    )
    with pytest.raises(CheckpointError, match="second generation"):
        LiteRestorer.network(request)


def test_lower_reads_fewer_rows():
    assert spec("full").module.first == 0
    assert 50 < spec("lower").module.first < kept_rows("lower", 256).start
    assert spec("full").key != spec("lower").key


@pytest.mark.parametrize("side", [100, 200, 300, 333, 512, 600, 1024])
def test_what_lower_leaves_out_does_not_show_after_a_resize(faces, expected, side):
    """A resize reaches a few rows above the first that is kept; black ones would be seen there."""
    rows = lower_weights(side)
    weights = torch.tensor(rows)[:, None]
    change = resize(spec("lower").module(faces), (side, side)) - resize(expected, (side, side))
    assert float((weights * change).abs().max()) < 1 / 255
