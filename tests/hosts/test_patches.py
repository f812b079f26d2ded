"""Replaced attributes are put back, and modules are changed when they are imported."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace

import pytest

from musetalk_enhance.hosts.patches import Patches
from tests.hosts.host_folder import host_folder


class Base:
    value = 1


class Derived(Base):
    @staticmethod
    def static():
        return "own"


def test_attributes_are_put_back_in_reverse_order():
    thing = SimpleNamespace(value=None)
    raw = vars(Derived)["static"]
    with Patches() as patches:
        patches.replace(thing, "value", 1)
        patches.replace(thing, "value", 2)
        patches.replace(Derived, "value", 3)
        patches.replace(Derived, "static", staticmethod(lambda: "ours"))
        assert (thing.value, Derived.value, Base.value, Derived.static()) == (2, 3, 1, "ours")
    assert thing.value is None and "value" not in vars(Derived)
    assert vars(Derived)["static"] is raw


def test_somebody_elses_replacement_stays(caplog):
    thing = SimpleNamespace(value=1)
    with Patches() as patches:
        patches.replace(thing, "value", 2)
        thing.value = 3
    assert thing.value == 3 and "it stays" in caplog.text


@pytest.fixture
def modules(tmp_path, monkeypatch):
    files = {"pack/__init__.py": "", "pack/part.py": "value = 1", "broken.py": "import no_such"}
    with host_folder(tmp_path, files, monkeypatch):
        monkeypatch.syspath_prepend(str(tmp_path))
        yield


def test_a_module_is_changed_when_it_is_imported(modules):
    before = list(sys.meta_path)
    with Patches() as patches:
        patches.when_imported("pack.part", lambda part: patches.replace(part, "value", 2))
        assert "pack.part" not in sys.modules
        part = importlib.import_module("pack.part")
        assert part.value == 2 and part.__spec__.loader is part.__loader__
        assert part.__loader__.get_source("pack.part") == "value = 1"
        assert sys.meta_path == before
    assert part.value == 1


def test_an_imported_module_is_changed_at_once(modules):
    part = importlib.import_module("pack.part")
    with Patches() as patches:
        patches.when_imported("pack.part", lambda part: patches.replace(part, "value", 2))
        assert part.value == 2


@pytest.mark.parametrize("name", ["none.at.all", "none", "broken"])
def test_a_module_that_cannot_be_imported_raises_as_ever(modules, name):
    before = list(sys.meta_path)
    with Patches() as patches:
        patches.when_imported(name, lambda module: pytest.fail("not imported"))
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(name)
    assert sys.meta_path == before
