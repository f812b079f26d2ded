"""Which model a set of options means, plug-ins included, and what is refused."""

from __future__ import annotations

import logging
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from musetalk_enhance import GFPGANEnhancer, weights
from musetalk_enhance.config.settings import EnhancerSettings
from musetalk_enhance.errors import (
    CheckpointError,
    ConfigError,
    CorruptWeightError,
    MissingWeightError,
    RestorerError,
    UntrustedWeightError,
)
from musetalk_enhance.restorers import catalog
from musetalk_enhance.restorers.lite import ASSET
from tests.conftest import PLAIN, RECORD, FakeRestorer


class PluginRestorer(FakeRestorer):
    """What somebody else's package would bring."""

    info = RECORD


@pytest.fixture
def plugin(monkeypatch):
    """plugin(name, "module:object") pretends that a package with this entry point is installed."""

    def add(name: str, value: str) -> None:
        point = EntryPoint(name, value, catalog.ENTRY_POINT_GROUP)
        monkeypatch.setattr(catalog, "plugins", lambda: {name: point})

    return add


def choose(**options):
    return catalog.choose(EnhancerSettings(enabled=True, **options))


def test_names():
    assert catalog.model_names() == [
        "lite",
        "gfpgan-1.4",
        "gfpgan-1.3",
        "gfpgan-1.2",
        "restoreformer",
        "codeformer",
        *("gfpgan_1.4", "gfpgan_1.3", "gfpgan_1.2", "gfpgan_1024"),
        *("restoreformer_plus_plus", "vqfr"),
        *("gpen_bfr_256", "gpen_bfr_512", "gpen_bfr_1024", "gpen_bfr_2048"),
    ]
    assert catalog.model_names("GFPGAN-*") == ["gfpgan-1.4", "gfpgan-1.3", "gfpgan-1.2"]


def test_records_point_to_weights_that_exist():
    for model in catalog.MODELS:
        assert model.info.weight is None or weights.WEIGHTS.get(model.info.weight).license


@pytest.mark.parametrize(
    "record", [model.info for model in catalog.MODELS if model.info.weight], ids=lambda r: r.name
)
def test_record_and_table_agree_about_commercial_use(record):
    assert record.commercial == weights.WEIGHTS.get(record.weight).commercial
    assert record.commercial != ("(non-commercial)" in record.license)


def test_commercial_use_of_a_file_is_that_of_its_network(tmp_path, monkeypatch):
    """A user's own file keeps what its network is published under."""
    weight = weights.Weight(tmp_path / "mine.pth", "0" * 64, None)
    (tmp_path / "mine.pth").write_bytes(b"x" * 64)
    monkeypatch.setattr(weights, "open_file", lambda path, **_: weight)
    monkeypatch.setattr(weights.Weight, "state_dict", lambda self: {})
    info = choose(model=str(weight.path), arch="CodeFormer").model.info
    assert not info.commercial and "(non-commercial)" in info.license
    assert choose(model=str(weight.path)).model.info.commercial


def test_auto_without_gfpgan_is_lite_and_warns_once(caplog):
    catalog._warn_about_lite.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert choose().model.info.name == choose().model.info.name == "lite"
    assert len(caplog.records) == 1 and "weights fetch GFPGANv1.4" in caplog.text


def test_auto_takes_the_best_gfpgan_in_the_cache(monkeypatch):
    monkeypatch.setattr(
        weights, "find", lambda name: "there" if name in ("gfpgan-1.3", "gfpgan-1.2") else None
    )
    monkeypatch.setattr(weights, "require", lambda name, **_: name)
    choice = choose()
    assert choice.model.info.name == "gfpgan-1.3" and choice.weight == "GFPGANv1.3"


def test_a_missing_weight_names_file_hash_command_and_folder(own_cache):
    with pytest.raises(MissingWeightError) as caught:
        choose(model="gfpgan-1.4")
    entry = weights.WEIGHTS.get("GFPGANv1.4")
    for word in (
        entry.file,
        entry.sha256,
        "musetalk-enhance weights fetch GFPGANv1.4",
        str(own_cache),
    ):
        assert word in str(caught.value)
    with pytest.raises(MissingWeightError):
        choose(engine="official")


@pytest.mark.parametrize(
    "options",
    [
        {"model": "gfpgan-9"},
        {"model": "GFPGANv1.4", "arch": "bilinear"},
        {"model": "gfpgan-1.4", "channel_multiplier": 1},
    ],
)
def test_refused(options):
    with pytest.raises(ConfigError):
        choose(**options)


def test_a_near_miss_gets_a_suggestion():
    with pytest.raises(ConfigError, match=r"Did you mean 'gfpgan[-_]1\.4'"):
        choose(model="gfpgan1.4")


def test_a_path_is_never_guessed_from_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lite").write_text("a file that happens to be called so")
    assert choose(model="lite").weight is None
    with pytest.raises(MissingWeightError, match=r"here\.pth"):
        choose(model="here.pth")


def test_a_path_to_a_network_like_lite(tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(ASSET.read_bytes())
    enhancer = GFPGANEnhancer(model=str(path), **PLAIN)
    assert enhancer.model_name == "mine" and enhancer.engine.model.info.input_size == 256


def test_a_published_file_at_a_path_keeps_its_licence(tmp_path, monkeypatch):
    entry = weights.WEIGHTS.get("CodeFormer")
    weight = weights.Weight(tmp_path / "mine.pth", entry.sha256, entry)
    (tmp_path / "mine.pth").write_bytes(b"x" * 64)
    monkeypatch.setattr(weights, "open_file", lambda path, **_: weight)
    monkeypatch.setattr(weights.Weight, "state_dict", lambda self: {})
    record = choose(model=str(weight.path), arch="CodeFormer").model.info
    assert (record.name, record.license) == ("mine", entry.license)


def test_files_that_are_no_checkpoint(tmp_path):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(ASSET.read_bytes()[:5000])
    with pytest.raises(CorruptWeightError, match=r"broken\.safetensors"):
        GFPGANEnhancer(model_path=str(broken), **PLAIN)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"some.weight": torch.zeros(3)}, foreign)
    with pytest.raises(CheckpointError, match=r"foreign\.safetensors"):
        GFPGANEnhancer(model_path=str(foreign), **PLAIN)
    unknown = tmp_path / "unknown.pth"
    torch.save({"params_ema": {"some.weight": torch.zeros(3)}}, unknown)
    with pytest.raises(UntrustedWeightError, match="trust_unpinned: true"):
        GFPGANEnhancer(model_path=str(unknown), **PLAIN)
    with pytest.raises(CheckpointError):
        GFPGANEnhancer(model_path=str(unknown), trust_unpinned=True, **PLAIN)


def test_plugin_is_listed_unimported_and_runs(plugin, rng):
    plugin("mine", "tests.restorers_plugin_that_is_not_there:Restorer")
    assert "mine" in catalog.model_names()
    plugin("mine", "tests.restorers.test_catalog:PluginRestorer")
    enhancer = GFPGANEnhancer(model="mine", **PLAIN)
    frames = rng.integers(0, 256, (2, 256, 256, 3), np.uint8)
    assert np.array_equal(enhancer(frames), frames)


@pytest.mark.parametrize(
    "value", ["no_such_module_at_all:X", "json:dumps", "tests.conftest:RECORD"]
)
def test_broken_plugin_is_reported_and_breaks_nothing_else(plugin, value, capsys):
    from musetalk_enhance.cli import main

    plugin("mine", value)
    with pytest.raises(RestorerError, match="'mine'"):
        GFPGANEnhancer(model="mine", **PLAIN)
    assert choose(model="lite").model.info.name == "lite"
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    assert "broken" in printed and "lite" in printed


@pytest.mark.parametrize("options", [{"arch": "bilinear"}, {"channel_multiplier": 1}])
def test_options_of_a_gfpgan_checkpoint_are_refused_where_there_is_none(tmp_path, options):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(ASSET.read_bytes())
    for model in ({"model": "lite"}, {"model_path": str(path)}, {"model": "auto"}):
        with pytest.raises(
            ConfigError, match="model_path" if model == {"model": "auto"} else "lite"
        ):
            choose(**model, **options)


def test_auto_with_download_fetches_the_best_gfpgan(monkeypatch):
    asked = []
    monkeypatch.setattr(weights, "require", lambda name, download: asked.append((name, download)))
    assert choose(download=True).model.info.name == "gfpgan-1.4" and asked == [("GFPGANv1.4", True)]


@pytest.mark.parametrize("backend", ["torch", "onnx", "ncnn"])
def test_a_host_s_default_device_is_not_where_networks_are_built(rng, backend):
    faces = rng.integers(0, 256, (2, 256, 256, 3), np.uint8)
    expected = GFPGANEnhancer(model="lite", backend="torch", **PLAIN)(faces)
    torch.set_default_device("meta")
    try:
        enhancer = GFPGANEnhancer(model="lite", backend=backend, **PLAIN)
        restored = enhancer(faces)
        assert torch.empty(0).device.type == "meta"
    finally:
        torch.set_default_device(None)
    assert enhancer.stats.restored == len(faces)
    assert np.abs(restored.astype(int) - expected).max() <= 1


def test_the_gpu_is_the_one_that_is_current_when_it_is_loaded(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    choice = catalog.choose(EnhancerSettings(enabled=True, model="lite"))
    devices = [
        str(choice._request(torch.device(name)).device) for name in ("cuda", "cuda:0", "cpu")
    ]
    assert devices == ["cuda:1", "cuda:0", "cpu"]


@pytest.mark.parametrize("backend", ["torch", "onnx", "openvino", "ncnn"])
def test_a_host_s_autocast_is_not_written_into_networks(rng, backend):
    faces = rng.integers(0, 256, (2, 256, 256, 3), np.uint8)
    expected = GFPGANEnhancer(model="lite", backend="torch", **PLAIN)(faces)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        enhancer = GFPGANEnhancer(model="lite", backend=backend, **PLAIN)
    restored = enhancer(faces)
    assert enhancer.stats.restored == len(faces)
    assert np.abs(restored.astype(int) - expected).max() <= 1
