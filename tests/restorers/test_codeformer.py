"""CodeFormer against its network called directly, with a full-size random checkpoint."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

from musetalk_enhance import weights
from musetalk_enhance.backends import onnx_export
from musetalk_enhance.config.settings import EnhancerSettings
from musetalk_enhance.errors import CheckpointError, ConfigError, MissingDependencyError
from musetalk_enhance.restorers import architecture, catalog, codeformer
from musetalk_enhance.restorers.base import LoadRequest
from musetalk_enhance.restorers.codeformer import INFO, CodeFormerRestorer
from musetalk_enhance.restorers.codeformer_network import Codebook, LayersBySize

from .conftest import CPU, spread

TORCH = {"backend": "torch", "dtype": "fp32"}


def empty_network() -> torch.nn.Module:
    with torch.device("meta"):
        return codeformer.import_network()()


def random_codeformer(seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights that keep the variance of activations near 1, so that different codes win."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, meta in empty_network().state_dict().items():
        tensor = torch.randn(meta.shape, generator=generator)
        if key.endswith("bias"):
            tensor = tensor * 0.1
        elif meta.ndim == 1:
            tensor = tensor * 0.1 + 1  # of a norm
        elif key != "position_emb" and "embedding" not in key:
            tensor = tensor / math.sqrt(math.prod(meta.shape[1:]))
        state[key] = tensor
    last = max(
        (key for key in state if key.startswith("generator")),
        key=lambda key: int(key.split(".")[2]),
    )
    state[f"{last.rsplit('.', 1)[0]}.weight"] *= 0.4  # mostly within -1..1
    return state


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("codeformer") / "codeformer.pth"
    torch.save({"params_ema": random_codeformer()}, file)
    return file


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """spandrel_extra_arches' network as it comes."""
    network = codeformer.import_network()().eval()
    network.load_state_dict(random_codeformer())
    return network


@pytest.mark.slow
@pytest.mark.long  # tests/jobs/test_codeformer_job.py has a shorter comparison
def test_it_is_the_published_network(path, load, faces, network):
    """A batch of three equals the network on each face, with the default fidelity and 0."""
    restorer = load(CodeFormerRestorer, path, arch="CodeFormer", **TORCH)
    ours = restorer.restore(faces)
    fidelity = EnhancerSettings.fidelity
    with torch.no_grad():
        theirs = torch.cat([network(face[None] * 2 - 1, weight=fidelity)[0] for face in faces])
    alone = torch.cat([restorer.restore(face[None]) for face in faces[1:2]])
    std, difference = spread(ours)
    error = float((ours - (theirs + 1) / 2).abs().max())
    print(f"CodeFormer: max difference {error:.2e}, std {std:.3f}, between faces {difference:.3f}")
    assert std > 0.05 and difference > 0.05
    assert error < 1e-5
    assert float((ours[1:2] - alone).abs().max()) < 1e-5
    plain = load(CodeFormerRestorer, path, arch="CodeFormer", fidelity=0, **TORCH).restore(
        faces[:1]
    )
    with torch.no_grad():
        theirs = network(faces[:1] * 2 - 1, weight=0.0)[0]
    assert float((plain - (theirs + 1) / 2).abs().max()) < 1e-5
    assert float((plain - ours[:1]).abs().mean()) > 0.01


@pytest.mark.slow
@pytest.mark.long
def test_it_exports_for_any_batch(path, tmp_path):
    choice = catalog.choose(
        EnhancerSettings(model=str(path), arch="CodeFormer", fidelity=0.7, trust_unpinned=True)
    )
    spec = choice.network()
    error = onnx_export.export(spec, tmp_path / "codeformer.onnx")
    print(f"CodeFormer: the exported graph differs by {error:.1e}")
    assert spec.name == "codeformer" and error < onnx_export.MAX_DIFFERENCE


def test_codes_are_what_the_published_multiplication_finds():
    published = sys.modules[codeformer.import_network().__module__].VectorQuantizer(32, 6, 0.25)
    indices = torch.randint(0, 32, (2, 16, 1), generator=torch.Generator().manual_seed(0))
    expected = published.get_codebook_feat(indices, [2, 4, 4, 6])
    book = Codebook(published.embedding)
    assert torch.equal(book.get_codebook_feat(indices, [2, 4, 4, 6]), expected)
    half = book.bfloat16().get_codebook_feat(indices, [2, 4, 4, 6])
    assert half.dtype == torch.bfloat16 and torch.allclose(half.float(), expected, atol=1e-2)


def test_layers_by_size_are_found_in_a_trace():
    layers = LayersBySize({"32": torch.nn.Identity()})
    assert layers["32"] is layers["tensor(32)"]
    with pytest.raises(KeyError):
        layers["64"]


def test_a_checkpoint_is_told():
    state = empty_network().state_dict()
    assert architecture.detect_architecture(state) == ("CodeFormer", None)
    with pytest.raises(CheckpointError, match=r"holds arch CodeFormer; .* Set arch: CodeFormer\."):
        architecture.check_architecture(state, "clean", 2)


def test_another_network_is_refused_in_words(load, tmp_path):
    path = tmp_path / "foreign.pth"
    torch.save({"params_ema": {"conv_body_first.weight": torch.zeros(32, 3, 1, 1)}}, path)
    with pytest.raises(CheckpointError, match=r"expected arch CodeFormer\. Set arch: clean"):
        load(CodeFormerRestorer, path, arch="CodeFormer")


def test_missing_tensors_are_counted(load, tmp_path):
    path = tmp_path / "cut.pth"
    kept = {
        "position_emb": torch.zeros(256, 512),
        "idx_pred_layer.1.weight": torch.zeros(1024, 512),
    }
    torch.save({"params_ema": kept}, path)
    with pytest.raises(CheckpointError, match=r"2 tensors: \d+ missing"):
        load(CodeFormerRestorer, path, arch="CodeFormer")


def test_no_weight_at_all():
    with pytest.raises(CheckpointError, match="holds nothing"):
        CodeFormerRestorer(LoadRequest(INFO, EnhancerSettings(), CPU, None))


def test_the_package_is_missing(load, tmp_path, monkeypatch):
    path = tmp_path / "any.pth"
    torch.save({"params_ema": {"position_emb": torch.zeros(1)}}, path)
    monkeypatch.setitem(sys.modules, "spandrel_extra_arches.architectures.CodeFormer", None)
    with pytest.raises(MissingDependencyError, match=r"musetalk_enhance\[codeformer\]"):
        load(CodeFormerRestorer, path, arch="CodeFormer")


@pytest.mark.parametrize("options", [{}, {"model": "gfpgan-1.4"}, {"model": "lite", "fidelity": 1}])
def test_only_codeformer_has_fidelity(options, monkeypatch):
    monkeypatch.setattr(weights, "require", lambda name, **_: name)
    with pytest.raises(ConfigError, match="fidelity"):
        catalog.choose(EnhancerSettings(**{"fidelity": 0.9, **options}))
    assert (
        catalog.choose(EnhancerSettings(model="codeformer", fidelity=0.9)).settings.fidelity == 0.9
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"engine": "official"}, "native with model: codeformer"),
        ({"channel_multiplier": 1}, "channel_multiplier"),
        ({"arch": "bilinear"}, "CodeFormer with model: codeformer"),
    ],
)
def test_options_that_it_cannot_honour(options, said, monkeypatch):
    monkeypatch.setattr(weights, "require", lambda name, **_: name)
    with pytest.raises(ConfigError, match=said):
        catalog.choose(EnhancerSettings(model="codeformer", **options))


def test_record():
    assert weights.WEIGHTS.get(INFO.weight).license == INFO.license
    assert "non-commercial" in INFO.license and INFO.has_fidelity
    assert (INFO.input_size, INFO.output_size, INFO.value_range) == (512, 512, (-1.0, 1.0))
