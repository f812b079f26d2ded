"""The rearranged GFPGAN against the published network, whole and without omitted rows."""

from __future__ import annotations

import pytest
import torch
from spandrel.architectures.GFPGAN import GFPGAN

from musetalk_enhance.backends import NetworkSpec
from musetalk_enhance.backends.ncnn_backend import NcnnBackend
from musetalk_enhance.frames.resize import kept_rows
from musetalk_enhance.restorers.gfpgan import CALL, GEOMETRY
from musetalk_enhance.restorers.gfpgan_network import GFPGANNetwork, first_rows

KEEP = kept_rows("lower", 512).start


@pytest.fixture(scope="module")
def published() -> torch.nn.Module:
    """GFPGAN with a sixteenth of its channels, random noise strengths and biases."""
    torch.manual_seed(0)
    network = (
        GFPGAN(**{**GEOMETRY, "narrow": 1 / 16}, channel_multiplier=2).eval().requires_grad_(False)
    )
    for name, parameter in network.named_parameters():
        if name.endswith(("bias", "style_conv1.weight")) or (
            "style_convs" in name and parameter.numel() == 1
        ):
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network


@pytest.fixture(scope="module")
def faces() -> torch.Tensor:
    return torch.rand(2, 3, 512, 512, generator=torch.Generator().manual_seed(5)) * 2 - 1


@pytest.fixture(scope="module")
def expected(published, faces) -> torch.Tensor:
    return published(faces, **CALL)[0]


def test_it_is_the_published_network(published, faces, expected):
    network = GFPGANNetwork(published)
    scale = float(expected.abs().max())
    assert scale > 0.1
    assert float((network(faces) - expected).abs().max()) < 1e-5 * max(1.0, scale)


@pytest.mark.parametrize("keep", [KEEP, 130, 131, 480, 511, 8, 1])
def test_rows_that_are_kept_come_out_the_same(published, faces, expected, keep):
    restored = GFPGANNetwork(published, keep)(faces[:1])
    assert restored.shape == (1, 3, 512, 512)
    assert float((restored - expected[:1])[:, :, keep:].abs().max()) < 1e-5 * float(
        expected.abs().max()
    )
    assert torch.equal(
        restored[:, :, :keep], restored[:, :, keep : keep + 1].expand(-1, -1, keep, -1)
    )


def test_the_margin_is_not_wider_than_it_need_be(published, faces, expected, monkeypatch):
    """With a margin of five rows the edge of the crop is felt: the test above can fail."""
    from musetalk_enhance.restorers import gfpgan_network

    monkeypatch.setattr(gfpgan_network, "_MARGIN", 3)
    restored = GFPGANNetwork(published, KEEP)(faces[:1])
    assert float((restored - expected[:1])[:, :, KEEP:].abs().max()) > 1e-4 * float(
        expected.abs().max()
    )


@pytest.mark.parametrize("keep", [0, KEEP])
def test_the_recording_for_ncnn_is_the_same_network(published, faces, expected, keep):
    network = GFPGANNetwork(published, keep)
    spec = NetworkSpec(
        "g",
        network,
        (3, 512, 512),
        (-1, 1),
        "g",
        symbolic=lambda ops: network.compute(ops, ops.input),
    )
    backend = NcnnBackend(spec)
    restored = backend.run(faces)
    backend.close()
    assert float((restored - expected)[:, :, keep:].abs().max()) < 1e-4 * max(
        1.0, float(expected.abs().max())
    )


def test_first_rows():
    assert set(first_rows(0).values()) == {0}
    rows = first_rows(KEEP)
    assert rows[512] < KEEP and all(row % 2 == 0 for row in rows.values())
    assert (
        1 - sum((side - rows[side]) * side for side in rows) / sum(side * side for side in rows)
        > 0.35
    )


@pytest.mark.slow
@pytest.mark.parametrize("region", ["full", "lower"])
def test_full_size_through_the_restorer(checkpoint, load, region):
    from musetalk_enhance.restorers.gfpgan import GFPGANRestorer

    path = checkpoint("clean")
    face = torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(2))
    whole = load(GFPGANRestorer, path, backend="torch").restore(face)
    restorer = load(GFPGANRestorer, path, region=region, backend="ncnn")
    start = kept_rows(region, 512).start
    assert float((restorer.restore(face) - whole)[:, :, start:].abs().max()) < 1e-4
    restorer.close()
