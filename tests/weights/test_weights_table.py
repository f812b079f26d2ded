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
    "RealESRGAN_x2plus",
]


def test_the_names_the_issue_asks_for() -> None:
    assert WEIGHTS.names() == NAMES


@pytest.mark.parametrize("entry", list(WEIGHTS), ids=lambda entry: entry.name)
def test_every_entry_is_complete(entry: WeightEntry) -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
    assert entry.size > 200_000
    assert entry.urls and all(url.startswith("https://") for url in entry.urls)
    assert len(set(entry.urls)) == len(entry.urls)
    assert re.fullmatch(r"[\w.-]+\.(pth|onnx|safetensors)", entry.file)
    assert entry.license and entry.purpose and "\n" not in entry.purpose
    assert "non-commercial" in WEIGHTS.get("codeformer").license


def test_commercial_use_is_what_the_license_says() -> None:
    assert [entry.name for entry in WEIGHTS if not entry.commercial] == ["CodeFormer", "ParseNet"]
    for entry in WEIGHTS:
        # of the whole, not of some parts
        restriction = re.search(r"\(non-commercial\)|CC-BY-NC", entry.license)
        assert entry.commercial == (restriction is None), entry.name


@pytest.mark.parametrize("entry", list(WEIGHTS), ids=lambda entry: entry.name)
def test_two_sources_state_every_hash_and_one_the_size(entry: WeightEntry) -> None:
    stating = [source for source in entry.sources if "sha256" in source]
    assert len({source.split(":")[0] for source in stating}) >= 2, entry.sources
    assert any("size" in source for source in entry.sources)


def test_hashes_and_file_names_are_each_used_once() -> None:
    assert len({entry.sha256 for entry in WEIGHTS}) == len(NAMES)
    assert len({entry.file for entry in WEIGHTS}) == len(NAMES)


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
