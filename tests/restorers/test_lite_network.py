"""The embedded model over `Ops` is its operator; ``lower`` gives the same pixels."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate

from musetalk_enhance.backends.ncnn_backend import NcnnBackend
from musetalk_enhance.config.settings import EnhancerSettings
from musetalk_enhance.frames.resize import kept_rows, lower_weights, resize
from musetalk_enhance.restorers.base import LoadRequest
from musetalk_enhance.restorers.lite import ASSET, LiteRestorer, _network, operator
from musetalk_enhance.weights import open_file

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def faces() -> torch.Tensor:
    coarse = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    return interpolate(coarse, size=256, mode="bicubic").clamp(0, 1)


@pytest.fixture(scope="module")
def expected(faces) -> torch.Tensor:
    weight = open_file(ASSET)
    with torch.inference_mode():
        return operator(_network(weight.state_dict(), weight.path).eval(), faces)


def spec(region: str):
    return LiteRestorer.network(
        LoadRequest(LiteRestorer.info, EnhancerSettings(enabled=True, region=region), CPU)
    )


@pytest.mark.parametrize("region", ["full", "lower"])
def test_it_is_the_operator(faces, expected, region):
    start = kept_rows(region, 512).start
    module = spec(region).module
    restored = module(faces)
    assert restored.shape == expected.shape
    assert float((restored - expected)[:, :, start:].abs().max()) < 1e-5
    assert torch.equal(
        restored[:, :, :start], restored[:, :, start : start + 1].expand(-1, -1, start, -1)
    )
    backend = NcnnBackend(spec(region))
    assert float((backend.run(faces) - expected)[:, :, start:].abs().max()) < 1e-4
    backend.close()


def test_lower_reads_fewer_rows():
    assert spec("full").module.first == 0
    assert 80 < spec("lower").module.first < kept_rows("lower", 256).start
    assert spec("full").key != spec("lower").key


@pytest.mark.parametrize("side", [100, 200, 300, 333, 512, 600, 1024])
def test_what_lower_leaves_out_does_not_show_after_a_resize(faces, expected, side):
    """A resize reaches a few rows above the first that is kept; black ones would be seen there."""
    rows = lower_weights(side)
    weights = torch.tensor(rows)[:, None]
    change = resize(spec("lower").module(faces), (side, side)) - resize(expected, (side, side))
    assert float((weights * change).abs().max()) < 1 / 255
