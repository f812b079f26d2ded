"""Import paths of the previous release lead to the same objects, with a warning."""

from __future__ import annotations

import sys
from importlib import import_module

import pytest

from musetalk_enhance.hosts.overlap import overlapped
from musetalk_enhance.jobs import PictureRestorer
from musetalk_enhance.report.metrics import psnr

PATHS = {
    "bench": ("overlapped", overlapped, "musetalk_enhance.hosts.overlap"),
    "metrics": ("psnr", psnr, "musetalk_enhance.report.metrics"),
    "picture_restorer": ("PictureRestorer", PictureRestorer, "musetalk_enhance.jobs"),
}


@pytest.mark.parametrize("name", PATHS)
def test_an_old_path_warns_and_works(name, monkeypatch):
    member, value, replacement = PATHS[name]
    monkeypatch.delitem(sys.modules, f"musetalk_enhance.{name}", raising=False)
    with pytest.warns(DeprecationWarning, match=f"musetalk_enhance.{name} is.*use {replacement}"):
        module = import_module(f"musetalk_enhance.{name}")
    assert getattr(module, member) is value


def test_the_warning_names_the_line_that_imports(monkeypatch):
    monkeypatch.delitem(sys.modules, "musetalk_enhance.metrics", raising=False)
    with pytest.warns(DeprecationWarning) as caught:
        from musetalk_enhance.metrics import psnr as old  # noqa: F401
    assert caught[0].filename == __file__


def test_a_module_below_an_old_path_can_be_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "musetalk_enhance.bench", raising=False)
    monkeypatch.delitem(sys.modules, "musetalk_enhance.bench.overlap", raising=False)
    with pytest.warns(DeprecationWarning):
        assert import_module("musetalk_enhance.bench.overlap").overlapped is overlapped
