"""A restorer around one network: its value range, and an answer of the caller's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from musetalk_enhance.backends import NetworkSpec
from musetalk_enhance.config.settings import EnhancerSettings
from musetalk_enhance.restorers.base import LoadRequest, NetworkRestorer
from tests.conftest import RECORD

from .conftest import CPU


class Identity(NetworkRestorer):
    """A network that changes nothing."""

    record = RECORD

    @classmethod
    def network(cls, request: LoadRequest) -> NetworkSpec:
        return NetworkSpec("same", torch.nn.Identity(), (3, 8, 8), request.record.value_range, "same")


@pytest.mark.parametrize("backend", ["torch", "onnx", "openvino"])
@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0)])
def test_a_picture_comes_back_in_the_same_colours_whatever_the_networks_range(backend, value_range):
    record = replace(RECORD, value_range=value_range, input_size=8, output_size=8)
    settings = EnhancerSettings(enabled=True, backend=backend, dtype="fp32")
    restorer = Identity(LoadRequest(record, settings, CPU))
    faces = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    given = faces.clone()
    restored = restorer.restore(faces)
    assert torch.allclose(restored, faces, atol=1e-6) and torch.equal(faces, given)
    restorer.close()
