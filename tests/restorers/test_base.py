"""A restorer around one network: its value range, and an answer of the caller's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from musetalk_enhance import restorers
from musetalk_enhance.backends import NetworkSpec
from musetalk_enhance.config.settings import EnhancerSettings
from musetalk_enhance.restorers.base import LoadRequest, ModelInfo, NetworkRestorer
from tests.conftest import RECORD as INFO

from .conftest import CPU


class Identity(NetworkRestorer):
    """A network that changes nothing."""

    info = INFO

    @classmethod
    def network(cls, request: LoadRequest) -> NetworkSpec:
        return NetworkSpec("same", torch.nn.Identity(), (3, 8, 8), request.info.value_range, "same")


@pytest.mark.parametrize("backend", ["torch", "onnx", "openvino"])
@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0)])
def test_a_picture_comes_back_in_the_same_colours_whatever_the_networks_range(backend, value_range):
    info = replace(INFO, value_range=value_range, input_size=8, output_size=8)
    settings = EnhancerSettings(enabled=True, backend=backend, dtype="fp32")
    restorer = Identity(LoadRequest(info, settings, CPU))
    faces = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    given = faces.clone()
    restored = restorer.restore(faces)
    assert torch.allclose(restored, faces, atol=1e-6) and torch.equal(faces, given)
    restorer.close()


def test_the_former_names_work_with_a_warning():
    with pytest.warns(DeprecationWarning, match="RestorerRecord is deprecated.*use ModelInfo"):
        record = restorers.RestorerRecord("old", "x", 8, 8, (0.0, 1.0), licence="MIT")
    assert isinstance(record, ModelInfo) and replace(record, name="new").license == "MIT"
    with pytest.warns(DeprecationWarning, match="ModelInfo.licence"):
        assert record.licence == "MIT"
    with pytest.warns(DeprecationWarning, match="Old.record is deprecated.*use Old.info"):

        class Old(Identity):
            record = INFO

    assert Old.info is INFO
    request = LoadRequest(INFO, EnhancerSettings(), CPU)
    with pytest.warns(DeprecationWarning, match="LoadRequest.record"):
        assert request.record is INFO
    with pytest.raises(AttributeError, match="Nothing"):
        restorers.Nothing  # noqa: B018
