"""CodeFormer first, GFPGAN behind it, and it is said which ran and why."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace

import pytest
import torch

from musetalk_enhance import GFPGANEnhancer, weights
from musetalk_enhance.backends import selection, tuning
from musetalk_enhance.errors import (
    ConfigError,
    LicenseError,
    MissingDependencyError,
    MissingWeightError,
)
from musetalk_enhance.jobs import ImageSettings, restore_images
from musetalk_enhance.jobs.manifest import FOLDER, read_json
from musetalk_enhance.jobs.models import FIDELITY, RunInfo, candidates, load
from musetalk_enhance.jobs.options import FaceSettings
from musetalk_enhance.restorers.catalog import Choice
from musetalk_enhance.restorers.codeformer import INFO as CODEFORMER
from tests.conftest import FakeRestorer
from tests.restorers.conftest import put_in_cache

from .conftest import put

PLAIN = ImageSettings(face_detector="none", device="cpu")


@pytest.fixture
def available(monkeypatch):
    """available("GFPGANv1.4", ...): these weights are here, and a fake stands for each network."""
    there: set[str] = set()
    require, really = weights.require, Choice.load

    def required(name, **options):
        return None if name in there else require(name, **options)

    def loaded(choice, device):
        if choice.model.info.name == "lite" or choice.weight is not None:
            return really(choice, device)
        return FakeRestorer(choice._request(device), lambda faces: 1 - faces)

    monkeypatch.setattr(weights, "require", required)
    monkeypatch.setattr(Choice, "load", loaded)
    return there.update


def record_of(loaded):
    return loaded.restorer.request.info


def test_the_order():
    assert candidates("auto") == ["codeformer", "gfpgan-1.4", "gfpgan-1.3", "gfpgan-1.2", "lite"]
    assert candidates("CodeFormer") == candidates("codeformer") == candidates("auto")[:-1]
    assert candidates("restoreformer") == ["restoreformer"]


@pytest.mark.parametrize("model", ["auto", "codeformer"])
def test_codeformer_comes_first(available, model):
    available(["codeformer", CODEFORMER.weight, "GFPGANv1.4", "gfpgan-1.4"])
    found = load(PLAIN.replace(model=model))
    assert (
        record_of(found).name == "codeformer"
        and found.passed_over == []
        and found.fidelity == FIDELITY == 0.7
    )
    assert found.choice.settings.fidelity == 0.7
    assert load(PLAIN.replace(model=model, fidelity=0)).choice.settings.fidelity == 0


@pytest.mark.parametrize("model", ["auto", "codeformer"])
def test_gfpgan_takes_over_where_the_weight_is_missing(available, model, caplog):
    available(["GFPGANv1.4", "GFPGANv1.3"])
    caplog.set_level(logging.WARNING, "musetalk_enhance")
    found = load(PLAIN.replace(model=model, fidelity=0.9))
    assert record_of(found).name == "gfpgan-1.4" and found.fidelity is None
    assert [name for name, _ in found.passed_over] == ["codeformer"]
    assert f"weights fetch {CODEFORMER.weight}" in found.passed_over[0][1]
    assert (
        "codeformer cannot be loaded" in caplog.text and "Falling back to gfpgan-1.4" in caplog.text
    )


def test_codeformer_is_mentioned_only_where_it_was_asked_for(available, caplog):
    available(["GFPGANv1.4"])
    caplog.set_level(logging.WARNING, "musetalk_enhance")
    assert record_of(load(PLAIN)).name == "gfpgan-1.4" and caplog.text == ""


def test_lite_as_the_last_names_gfpgan_alone(available, caplog):
    caplog.set_level(logging.WARNING, "musetalk_enhance")
    assert record_of(load(PLAIN)).name == "lite"
    assert "gfpgan-1.4 cannot be loaded" in caplog.text and "codeformer" not in caplog.text


def test_an_older_gfpgan_takes_over_where_the_newer_is_missing(available):
    available(["GFPGANv1.3"])
    found = load(PLAIN)
    assert record_of(found).name == "gfpgan-1.3"
    assert [name for name, _ in found.passed_over] == ["codeformer", "gfpgan-1.4"]


def test_gfpgan_takes_over_where_the_licence_is_refused(available):
    available([CODEFORMER.weight, "GFPGANv1.4"])
    found = load(PLAIN.replace(commercial=True))
    assert (
        record_of(found).name == "gfpgan-1.4"
        and "license does not allow" in found.passed_over[0][1]
    )


def test_gfpgan_takes_over_where_the_package_is_missing(
    available, tmp_path, own_cache, monkeypatch
):
    file = tmp_path / "codeformer.pth"
    torch.save({"params_ema": {"position_emb": torch.zeros(1)}}, file)
    put_in_cache({CODEFORMER.weight: file}, own_cache, monkeypatch)
    monkeypatch.setitem(sys.modules, "spandrel_extra_arches.architectures.CodeFormer", None)
    available(["GFPGANv1.4"])
    found = load(PLAIN)
    assert (
        record_of(found).name == "gfpgan-1.4"
        and "musetalk_enhance[codeformer]" in found.passed_over[0][1]
    )
    monkeypatch.setattr(
        weights, "require", lambda name, **_: weights.open_file(file, trust_unpinned=True)
    )
    with pytest.raises(MissingDependencyError, match="codeformer"):
        Choice.load(
            replace(
                found.choice,
                weight=weights.open_file(file, trust_unpinned=True),
                # fmt: skip
                model=replace(found.choice.model, load_class=codeformer_kind),
            ),
            "cpu",
        )


def codeformer_kind():
    from musetalk_enhance.restorers.codeformer import CodeFormerRestorer

    return CodeFormerRestorer


def test_lite_comes_last_and_only_with_auto():
    found = load(PLAIN.replace(backend="torch"))
    assert record_of(found).name == "lite" and len(found.passed_over) == 4
    with pytest.raises(MissingWeightError) as caught:
        load(PLAIN.replace(model="codeformer"))
    assert f"weights fetch {CODEFORMER.weight}" in str(caught.value) and "gfpgan-1.2" in str(
        caught.value
    )


@pytest.mark.parametrize("model", ["gfpgan-1.4", "GFPGANv1.4", "lite", "restoreformer"])
def test_fidelity_is_refused_where_there_is_none(available, model):
    available(["GFPGANv1.4", "RestoreFormer"])
    with pytest.raises(ConfigError, match="fidelity") as caught:
        load(PLAIN.replace(model=model, fidelity=0.7))
    assert "strength" in caught.value.allowed


def test_a_model_that_is_named_is_never_replaced(available):
    available([CODEFORMER.weight])
    with pytest.raises(MissingWeightError, match="weights fetch GFPGANv1.4"):
        load(PLAIN.replace(model="gfpgan-1.4"))
    with pytest.raises(ConfigError, match="gfpgan-1.4"):
        load(PLAIN.replace(model="gfpgan-1.5"))


@pytest.mark.parametrize("way", ["model", "model_path"])
def test_a_licence_is_refused_for_a_path_too(available, way, tmp_path):
    file = tmp_path / "mine.safetensors"
    from safetensors.torch import save_file

    save_file({"position_emb": torch.zeros(1)}, file)
    with pytest.raises(LicenseError, match="mine.safetensors"):
        load(PLAIN.replace(**{way: str(file), "arch": "CodeFormer", "commercial": True}))


@pytest.mark.parametrize(
    ("missing", "options", "name", "why"),
    [
        ("weight", {}, "gfpgan-1.4", "its weight is not on this machine"),
        ("licence", {"commercial": True}, "gfpgan-1.4", "its license does not allow"),
        ("nothing", {"fidelity": 0.4}, "codeformer", None),
    ],
)
def test_statistics_say_which_ran_and_why(available, tmp_path, missing, options, name, why):
    available(["GFPGANv1.4", *([] if missing == "weight" else [CODEFORMER.weight])])
    put(tmp_path / "in", "a.png")
    settings = PLAIN.replace(fidelity=options.pop("fidelity", 0.9), **options)
    stats = restore_images(tmp_path / "in", tmp_path / "out", settings).stats
    assert stats["model_that_ran"]["model"] == name and stats["model_asked_for"] == "auto"
    assert stats["model_that_ran"]["fidelity"] == (0.4 if why is None else None)
    passed = stats["models_passed_over"]
    assert (
        passed == []
        if why is None
        else (passed[0]["model"], why in passed[0]["reason"]) == ("codeformer", True)
    )


def test_codeformer_that_comes_later_starts_afresh(available, tmp_path, caplog):
    available(["GFPGANv1.4"])
    put(tmp_path / "in", "a.png")
    restore_images(tmp_path / "in", tmp_path / "out", PLAIN)
    available([CODEFORMER.weight])
    caplog.set_level(logging.WARNING, "musetalk_enhance")
    result = restore_images(tmp_path / "in", tmp_path / "out", PLAIN)
    assert result.resumed == 0 and result.stats["model_that_ran"]["model"] == "codeformer"
    assert "'gfpgan-1.4' then, 'codeformer' now" in caplog.text


def run_info(**changes) -> RunInfo:
    values = {
        "model": "lite",
        "licence": "x",
        "weight_sha256": None,
        "fidelity": None,
        "backend": "torch",
    }
    values |= {
        "dtype": "fp32",
        "device": "cpu",
        "batch_size": 3,
        "threads": 2,
        "helpers": {},
        "passed_over": [],
    }
    return RunInfo(**(values | changes))


def test_facts_come_back_from_json():
    assert RunInfo.of(run_info().as_dict()) == run_info()
    assert (
        RunInfo.of({"model": "lite"}) is None
        and RunInfo.of(None) is None
        and RunInfo.of([1]) is None
    )


def test_what_ran_before_runs_again_where_it_is_left_open():
    found = load(PLAIN.replace(model="lite"), pinned=run_info())
    assert found.choice.settings.backend == "torch" and found.choice.settings.batch_size == 3
    found = load(PLAIN.replace(model="lite", batch_size=5), pinned=run_info())
    assert found.choice.settings.batch_size == 5
    found = load(PLAIN.replace(model="lite", backend="torch"), pinned=run_info(model="gfpgan-1.4"))
    assert found.choice.settings.batch_size == "auto"


@pytest.fixture
def measured(monkeypatch):
    """measured("torch bf16"): from now on that way measures ten times as fast as all others."""

    def from_now_on(name):
        monkeypatch.delenv(tuning.SWITCH, raising=False)
        monkeypatch.setattr(tuning, "cpu_name", lambda: "a processor avx512_bf16")
        seconds = {name: 1}
        monkeypatch.setattr(selection, "_timed", lambda backend, *_: seconds.get(str(backend), 10))

    return from_now_on


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_a_job_runs_in_fp32_whatever_is_faster(measured, backend):
    measured("torch bf16")
    lite = PLAIN.replace(model="lite", backend=backend)
    enhancer = GFPGANEnhancer(model="lite", backend="torch", device="cpu")
    assert enhancer.backend == ("torch", "bf16"), "a host's frames are no files"
    loaded = load(lite)
    assert loaded.enhancer().backend[1] == loaded.choice.settings.dtype == "fp32"
    assert loaded.enhancer(dtype="fp32").settings.dtype == "fp32"


def test_a_reduced_precision_that_was_asked_for_or_noted_stays():
    lite = PLAIN.replace(model="lite", backend="torch")
    assert load(lite.replace(dtype="bf16")).choice.settings.dtype == "bf16"
    assert load(lite, pinned=run_info(dtype="bf16")).choice.settings.dtype == "bf16"
    assert (
        load(lite.replace(dtype="fp32"), pinned=run_info(dtype="bf16")).choice.settings.dtype
        == "fp32"
    )
    other = run_info(model="gfpgan-1.4", dtype="bf16")
    assert load(lite, pinned=other).choice.settings.dtype == "fp32"


def test_a_manifest_of_an_earlier_version_is_read():
    """It also had the forms of torch's convolutions, of which there is only one now."""
    older = {**run_info().as_dict(), "forms": ["scale", "folded"]}
    assert RunInfo.of(older) == run_info() and run_info().same_bits(older)
    assert RunInfo.of([]) is None and RunInfo.of({"model": "lite"}) is None


def test_a_job_that_was_stopped_keeps_its_backend_though_another_measures_faster(
    measured, tmp_path, caplog, monkeypatch
):
    """The tuning file is lost in between, and the next measurement would choose differently."""
    put(tmp_path / "in", *(f"{at}.png" for at in range(20)))
    lite = PLAIN.replace(model="lite")
    measured("ncnn fp32")
    whole = restore_images(tmp_path / "in", tmp_path / "whole", lite)
    assert whole.stats["model_that_ran"]["backend"] == "ncnn"

    def stop(done, total):
        assert tuning.path().exists() and read_json(manifest)["facts"]["backend"] == "ncnn"
        if done:
            raise KeyboardInterrupt

    manifest = tmp_path / "out" / FOLDER / "manifest.json"
    with pytest.raises(KeyboardInterrupt):
        restore_images(tmp_path / "in", tmp_path / "out", lite, progress=stop)
    measured("torch fp32")
    tuning.forget()
    again = restore_images(tmp_path / "in", tmp_path / "out", lite)
    assert again.resumed and again.stats["model_that_ran"]["backend"] == "ncnn"
    for path in sorted((tmp_path / "whole" / "restored").iterdir()):
        assert path.read_bytes() == (tmp_path / "out" / "restored" / path.name).read_bytes()
    assert not tuning.path().exists(), "what is noted is not measured again"


def test_where_nothing_can_be_kept_two_jobs_make_the_same_files(measured, tmp_path, monkeypatch):
    put(tmp_path / "in", "a.png")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MUSETALK_ENHANCE_CACHE", str(tmp_path / "file" / "below"))
    backends = []
    for name in ("torch fp32", "onnx fp32"):
        measured(name)
        result = restore_images(tmp_path / "in", tmp_path / name, PLAIN.replace(model="lite"))
        backends.append(result.stats["model_that_ran"]["backend"])
    assert backends == ["ncnn", "ncnn"]
    one, two = (tmp_path / name / "restored" / "a.png" for name in ("torch fp32", "onnx fp32"))
    assert one.read_bytes() == two.read_bytes()


def test_only_what_makes_other_pixels_is_decisive():
    assert run_info().decisive() == run_info(backend="onnx", batch_size=9, licence="y").decisive()
    assert run_info().decisive() != run_info(fidelity=0.5).decisive()
    assert isinstance(PLAIN, FaceSettings)
