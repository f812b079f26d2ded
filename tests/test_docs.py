"""Generated files are what the schema says, and the shipped configuration loads."""

from __future__ import annotations

import importlib.util

import pytest

from musetalk_enhance.config.loader import merge, section_of
from tests.conftest import ROOT

spec = importlib.util.spec_from_file_location("make_docs", ROOT / "scripts" / "make_docs.py")
make_docs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_docs)


@pytest.mark.parametrize("path", list(make_docs.FILES), ids=lambda path: path.name)
def test_generated_files_are_current(path):
    assert path.read_text(encoding="utf-8") == make_docs.FILES[path](), (
        "run: python scripts/make_docs.py"
    )


def test_the_map_of_the_packages_is_whole():
    rows = make_docs.package_map().splitlines()
    summaries = dict(row.split(maxsplit=1) for row in rows if not row.startswith(" "))
    package = ROOT / "musetalk_enhance"
    packages = {f"{path.parent.name}/" for path in package.glob("[a-z]*/__init__.py")}
    assert summaries.keys() == packages | {path.name for path in package.glob("[a-z]*.py")}
    assert all(len(row) <= 100 for row in rows)
    assert make_docs.package_map() in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_shipped_configuration_is_on_and_otherwise_default_or_chosen():
    shipped = merge(section_of(ROOT / "configs" / "musetalk.yaml"))
    assert shipped == merge(
        {"enabled": True, **{name: value for name, (value, _) in make_docs.CHOSEN.items()}}
    )
    assert all(why.startswith("Measured") for _, why in make_docs.CHOSEN.values())


def test_what_is_chosen_is_what_the_defaults_do():
    """But for the region: the class serves every host, the file MuseTalk alone."""
    shipped, default = (
        merge(section_of(ROOT / "configs" / "musetalk.yaml")),
        merge({"enabled": True}),
    )
    for name in ("stability_amount", "color_match_on", "guard_on", "sharpness_gate_on", "align"):
        assert getattr(shipped, name) == getattr(default, name)


def test_every_commented_default_can_be_switched_in():
    text = make_docs.config_yaml().split("gfpgan:\n", 1)[1]
    lines = [line.replace("# ", "", 1) for line in text.splitlines() if line.startswith("  # ")]
    pairs = [
        line.strip() for line in lines if ": " in line and " " not in line.strip().split(": ", 1)[0]
    ]
    section = dict(
        pair.split(": ", 1) for pair in pairs if pair.split(": ")[0] in merge(None).__dict__
    )
    section = {key: None if value == "null" else value for key, value in section.items()}
    assert len(section) >= 20
    assert merge({**section, "enabled": True}) == merge({"enabled": True})
