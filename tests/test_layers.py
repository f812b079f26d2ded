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
    {"runtime"},
    {"config", "frames", "media"},
    {"weights"},
    {"backends"},
    {"restorers"},
    {"faces"},
    {"pipeline", "onnx_pipeline"},
    {"enhancer"},
    {"jobs"},
    {"report"},
    {"hosts", "serve"},
    {"cli"},
    {"__main__", "_deprecated"},
]
BESIDE = {("media", "frames"), ("frames", "config"), ("hosts", "jobs")}
"""Rooms of one level of which the first may import the second."""
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def modules():
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def imported(path) -> set[str]:
    """First part below musetalk_enhance of every module that `path` imports, late imports
    included."""
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


def imported_files(path, late: bool) -> set[str]:
    """Dotted names of the modules of the package that `path` imports; `late`: also inside
    functions."""
    package = ["musetalk_enhance", *path.relative_to(PACKAGE).parts[:-1]]
    names, known = set(), {name_of(each) for each in modules()}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if late else _top_level(tree)
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            target = ".".join(base + (node.module.split(".") if node.module else []))
            members = {f"{target}.{alias.name}" for alias in node.names} & known
            names |= members or {target} & known
    return names


def _top_level(tree):
    """Statements that run when the module is imported; those for type checkers alone do not."""
    pending = list(tree.body)
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            pending += node.body + node.orelse
        elif isinstance(node, ast.Try):
            pending += node.body


def name_of(path) -> str:
    parts = ["musetalk_enhance", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_file_imports_itself_by_a_detour():
    graph = {
        name_of(path): imported_files(path, late=False) - {name_of(path)} for path in modules()
    }
    while leaves := [name for name, targets in graph.items() if not targets & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph, f"in a circle, or importing one: {sorted(graph)}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_go_down(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    above = {name for name in imported(path) if name != room and LEVEL[name] >= LEVEL[room]}
    beside = {name for name in above if LEVEL[name] == LEVEL[room] and (room, name) in BESIDE}
    assert not above - beside, f"{room} imports upward: {above}"


def test_every_module_has_its_layer():
    names = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in modules()}
    assert names <= LEVEL.keys()


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    return done.stdout.strip()


def test_importing_loads_nothing_heavy():
    heavy = "torch cv2 numpy omegaconf spandrel av onnxruntime gfpgan psutil tqdm".split()
    code = f"import sys, musetalk_enhance; print([n for n in {heavy} if n in sys.modules])"
    assert python(code) == "[]"


def test_importing_the_enhancer_loads_no_torch():
    code = (
        "import sys; from musetalk_enhance import GFPGANEnhancer; print('torch' in sys.modules, "
        "'cv2' in sys.modules)"
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
