"""Random weights are taken by the loaders of this library and of the official packages."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from musetalk_enhance import GFPGANEnhancer
from musetalk_enhance.restorers.architecture import detect_architecture
from musetalk_enhance.restorers.official_stack import HELPERS
from scripts.benchmarks import checkpoints
from scripts.benchmarks.reference import references
from scripts.benchmarks.subject import pictures, random_subject
from tests.conftest import PLAIN

from .conftest import CPU


def test_shapes_take_no_memory():
    assert all(tensor.is_meta for tensor in checkpoints.architecture("clean").state_dict().values())
    assert len(checkpoints.shapes("clean")) == 285


@pytest.mark.slow
def test_variance_is_kept_layer_by_layer():
    state = checkpoints.random_gfpgan("clean", 1)
    weight = state["conv_body_first.weight"]
    assert float(weight.std()) * 3**0.5 == pytest.approx(2**0.5, rel=0.2)
    assert float(
        state["stylegan_decoder.style_conv1.modulated_conv.modulation.bias"].mean()
    ) == pytest.approx(1, abs=0.1)
    assert detect_architecture(state) == ("clean", 1)


def test_the_same_seed_is_the_same_weight(tmp_path):
    state = {"a": torch.ones(2, 3).t()}
    weight = checkpoints.save(state, tmp_path / "x.safetensors")
    assert torch.equal(weight.state_dict()["a"], state["a"])


@pytest.mark.slow
def test_the_enhancer_takes_the_random_checkpoint(tmp_path):
    subject = random_subject(tmp_path)
    assert subject.random and subject.arch == "clean" and "/" not in subject.name
    with GFPGANEnhancer(**subject.options, device="cpu", on_error="raise", **PLAIN) as enhancer:
        done = enhancer(pictures(1))
    assert done.shape == (1, 256, 256, 3) and done.std() > 10


@pytest.mark.slow
def test_gfpganer_takes_it_and_every_stage_runs(tmp_path):
    pytest.importorskip("facexlib")
    plan, aligned = references(random_subject(tmp_path), CPU, 1, (256, 256), tmp_path)
    runner = plan.build()
    ran = []
    helper = runner.gfpganer.face_helper
    for network in (helper.face_det.body, helper.face_parse, runner.gfpganer.gfpgan):
        network.register_forward_hook(lambda module, *_: ran.append(type(module).__name__))
    assert runner.run().shape == (1, 512, 512, 3)
    assert ran == ["IntermediateLayerGetter", "GFPGANv1Clean", "ParseNet"]
    assert np.ptp(aligned.build().run()) > 100
    assert len(ran) == 4 and ran[-1] == "GFPGANv1Clean"
    assert sorted(path.stem for path in tmp_path.glob("*.safetensors")) == sorted(
        [*HELPERS, "random-gfpgan"]
    )
