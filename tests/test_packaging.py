"""What setup.cfg declares: every folder with data is a package, and every data file is in one."""

from __future__ import annotations

from configparser import ConfigParser
from fnmatch import fnmatch

import pytest

from tests.conftest import ROOT

setuptools = pytest.importorskip("setuptools")
PACKAGE = ROOT / "musetalk_enhance"


@pytest.fixture(scope="module")
def config() -> ConfigParser:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config


@pytest.fixture(scope="module")
def packages(config) -> set[str]:
    assert config["options"]["packages"] == "find_namespace:"
    find = config["options.packages.find"]
    include, exclude = ([pattern.strip()] for pattern in (find["include"], find["exclude"]))
    return set(setuptools.find_namespace_packages(str(ROOT), exclude, include))


def test_every_folder_is_declared(packages):
    """setuptools warns, a page each, about folders of data that are no declared packages."""
    folders = {path.parent for path in PACKAGE.rglob("*") if path.suffix not in ("", ".pyc")}
    assert {".".join(folder.relative_to(ROOT).parts) for folder in folders} == packages
    assert "musetalk_enhance.faces.assets" in packages


def test_every_data_file_is_installed(config):
    patterns = config["options.package_data"]["*"].split(", ")
    files = [path for path in PACKAGE.rglob("*") if path.suffix not in ("", ".py", ".pyc")]
    others = [path for path in files if not any(fnmatch(path.name, one) for one in patterns)]
    assert [path.name for path in others] == ["py.typed"]
    assert config["options.package_data"]["musetalk_enhance"] == "py.typed"
    suffixes = {".typed", ".safetensors", ".md", ".css", ".j2", ".html", ".js"}
    assert {path.suffix for path in files} == suffixes
