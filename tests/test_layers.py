"""Imports go one way, and importing the package costs next to nothing."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "musetalk_enhance"
LAYERS = [
    {"_version", "errors"},
    {"runtime", "schema"},
    {"media"},
    {"settings", "frames", "imaging", "stats", "memory", "metrics", "precision", "hints"},
    {"costs"},
    {"weights"},
    {"backends"},
    {"restorers"},
    {"faces"},
    {"stability"},
    {"finishing"},
    {"batching"},
    {"enhancer"},
    {"picture_restorer"},
    {"hosts", "jobs", "service"},
    {"bench", "report"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def modules():
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def imported(path) -> set[str]:
    """First part below musetalk_enhance of every module that `path` imports, late imports included."""
    package = ["musetalk_enhance", *path.relative_to(PACKAGE).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        base = package[: len(package) - node.level + 1] if node.level else []
        parts = base + (node.module.split(".") if node.module else [])
        if parts[:1] != ["musetalk_enhance"]:
            continue
        found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
    return found - {"__version__"}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_go_down(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    above = {name for name in imported(path) if name != own and LEVEL[name] >= LEVEL[own]}
    same = {name for name in above if LEVEL[name] == LEVEL[own] and own in ("imaging", "stats", "batching")}
    assert not above - same, f"{own} imports upward: {above}"


def test_every_module_has_its_layer():
    names = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in modules()}
    assert names <= LEVEL.keys()


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return done.stdout.strip()


def test_importing_loads_nothing_heavy():
    heavy = "torch cv2 numpy omegaconf spandrel av onnxruntime gfpgan psutil tqdm".split()
    code = f"import sys, musetalk_enhance; print([n for n in {heavy} if n in sys.modules])"
    assert python(code) == "[]"


def test_importing_the_enhancer_loads_no_torch():
    code = (
        "import sys; from musetalk_enhance import GFPGANEnhancer; print('torch' in sys.modules, 'cv2' in sys.modules)"
    )
    assert python(code) == "False False"


def test_exported_names_are_true():
    import musetalk_enhance

    assert sorted(musetalk_enhance.__all__) == musetalk_enhance.__all__
    for name in musetalk_enhance.__all__:
        assert getattr(musetalk_enhance, name) is not None
    assert set(dir(musetalk_enhance)) == set(musetalk_enhance.__all__)
    with pytest.raises(AttributeError, match="GFPGAN"):
        musetalk_enhance.GFPGAN  # noqa: B018
