"""The table of published weights: nothing missing, nothing twice, every spelling found."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from musetalk_enhance import weights
from musetalk_enhance.errors import ConfigError
from musetalk_enhance.weights import WEIGHTS, WeightEntry
from musetalk_enhance.weights.onnx_models import MODELS
from musetalk_enhance.weights.table import by_sha256

NAMES = [
    "GFPGANv1.2",
    "GFPGANv1.3",
    "GFPGANv1.4",
    "RestoreFormer",
    "CodeFormer",
    "RetinaFace-R50",
    "RetinaFace-mobile0.25",
    "ParseNet",
    "YuNet",
    "sface",
    "RealESRGAN_x2plus",
]
PINNED = [entry for entry in WEIGHTS if entry.sha256 is not None]
ONNX_FILES = {  # by the applications that keep them
    "FaceFusion": "gfpgan_1.2 gfpgan_1.3 gfpgan_1.4 gpen_bfr_256 gpen_bfr_512 gpen_bfr_1024 "
    "gpen_bfr_2048 codeformer restoreformer_plus_plus",
    "Deep-Live-Cam": "gfpgan-1024 GPEN-BFR-256 GPEN-BFR-512 GFPGANv1.4",
    "ReActor": "GPEN-BFR-512 GPEN-BFR-1024 GPEN-BFR-2048 RestoreFormer_PP GFPGANv1.4",
    "wav2lip-onnx-HQ": "GFPGANv1.4 GPEN-BFR-256-sim codeformerfixed restoreformer16",
}


def test_the_names_the_issue_asks_for() -> None:
    assert [name for name in WEIGHTS.names() if not name.endswith(".onnx")] == NAMES


@pytest.mark.parametrize("application", ONNX_FILES)
def test_onnx_files_by_the_names_under_which_applications_keep_them(application: str) -> None:
    for name in ONNX_FILES[application].split():
        entry, model = WEIGHTS.get(f"{name}.onnx"), MODELS.get(f"{name}.onnx")
        assert (entry.license, entry.commercial) == (model.license, model.commercial)
        assert entry.commercial != model.name.startswith(("gpen", "codeformer"))


def test_every_onnx_entry_is_a_file_of_the_table_of_models() -> None:
    for entry in WEIGHTS:
        is_model = entry.file.endswith(".onnx") and entry.name not in ("YuNet", "sface")
        assert is_model == (entry.file in MODELS)
    assert {WEIGHTS.get(name).name for name in ("gpen_bfr_256", "gfpgan_1.4")} == {
        *("gpen_bfr_256.onnx", "gfpgan_1.4.onnx")
    }
    assert WEIGHTS.get("codeformer").file == "codeformer.pth"


@pytest.mark.parametrize("entry", list(WEIGHTS), ids=lambda entry: entry.name)
def test_every_entry_is_complete(entry: WeightEntry) -> None:
    assert entry.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
    assert entry.size is None or entry.size > 200_000
    assert entry.urls or entry.sha256 is None
    assert all(url.startswith("https://") for url in entry.urls)
    assert len(set(entry.urls)) == len(entry.urls)
    assert re.fullmatch(r"[\w.-]+\.(pth|onnx|safetensors)", entry.file)
    assert entry.license and entry.purpose and "\n" not in entry.purpose
    assert "non-commercial" in WEIGHTS.get("codeformer").license


def test_commercial_use_is_what_the_license_says() -> None:
    assert [name for name in NAMES if not WEIGHTS.get(name).commercial] == [
        *("CodeFormer", "ParseNet")
    ]
    for entry in WEIGHTS:
        # of the whole, not of some parts
        restriction = re.search(r"\(non-commercial\)|CC-BY-NC", entry.license)
        assert entry.commercial == (restriction is None), entry.name


@pytest.mark.parametrize("entry", PINNED, ids=lambda entry: entry.name)
def test_two_sources_state_every_hash_and_one_the_size(entry: WeightEntry) -> None:
    stating = [source for source in entry.sources if "sha256" in source]
    assert len({source.split(":")[0] for source in stating}) >= 2, entry.sources
    assert any("size" in source for source in entry.sources) == (entry.size is not None)


def test_an_unpinned_entry_states_nothing() -> None:
    unpinned = [entry for entry in WEIGHTS if entry.sha256 is None]
    assert unpinned and not any(entry.size or entry.sources for entry in unpinned)


def test_hashes_and_file_names_are_each_used_once() -> None:
    assert len({entry.sha256 for entry in PINNED}) == len(PINNED)
    assert len({entry.file for entry in WEIGHTS}) == len(WEIGHTS)


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("gfpgan-1.4", "GFPGANv1.4"),
        ("GFPGANv1.4.pth", "GFPGANv1.4"),
        ("gfpgan-v1.4", "GFPGANv1.4"),
        ("gfpganv1.3", "GFPGANv1.3"),
        ("GFPGANCleanv1-NoCE-C2.pth", "GFPGANv1.2"),
        ("restoreformer.pth", "RestoreFormer"),
        ("codeformer", "CodeFormer"),
        ("retinaface_resnet50", "RetinaFace-R50"),
        ("detection_mobilenet0.25_Final.pth", "RetinaFace-mobile0.25"),
        ("parsing_parsenet.pth", "ParseNet"),
        ("yunet", "YuNet"),
        ("face_recognition_sface_2021dec.onnx", "sface"),
        ("realesrgan-x2plus", "RealESRGAN_x2plus"),
    ],
)
def test_spellings(spelling: str, name: str) -> None:
    assert WEIGHTS.get(spelling).name == name


def test_an_unknown_name_lists_what_there_is_and_suggests() -> None:
    with pytest.raises(
        ConfigError, match=r"weight: invalid value 'GFPGANv1.5'.*RestoreFormer.*Did you mean"
    ):
        weights.find("GFPGANv1.5")


def test_by_sha256() -> None:
    entry = WEIGHTS.get("YuNet")
    assert by_sha256(entry.sha256) is entry
    assert by_sha256("0" * 64) is None


def test_public_names_exist() -> None:
    for name in weights.__all__:
        assert getattr(weights, name).__doc__


def test_importing_is_quick_and_touches_neither_torch_nor_network() -> None:
    code = """
import sys

def refuse(event, details):
    assert not event.startswith(("socket.connect", "socket.getaddrinfo")), event

sys.addaudithook(refuse)
import musetalk_enhance.weights
heavy = ("torch", "safetensors", "spandrel", "tqdm", "numpy", "filelock")
print([name for name in heavy if name in sys.modules])
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_the_old_spelling_of_license_works_with_a_warning() -> None:
    entry = WEIGHTS.get("YuNet")
    with pytest.warns(DeprecationWarning, match="WeightEntry.licence is deprecated"):
        assert entry.licence == entry.license
