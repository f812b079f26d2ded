"""Names say what a thing is, not that something happened to it; lines fit into 100 columns."""

from __future__ import annotations

import ast

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "musetalk_enhance"
PATHS = sorted(PACKAGE.rglob("*.py"))
EVENTS = set("done found given held kept known laid made said seen shown taken told wanted".split())
PLACES = set("after again anew apart aside before far here least most near own sure there".split())
PARTICIPLES = set(
    "Broken Finished Gauged Guarded Held Known Laid Loaded Made Measured Opened Refused Seen Shown "
    "Told Tried".split()
)
GERUND_TERMS = {"parsing", "tracking", "tuning", "livetalking"}
"""Nouns of the field that happen to be gerunds, and the name of a host."""
MAX_SHARE = 0.01
"""Of the functions may bind a vague name. In httpx, spandrel, torchcodec and PyAV it is 0.2 %."""
MAX_COLUMNS = 100


def vague_names(source: str) -> tuple[int, list[tuple[int, str]]]:
    """Number of functions, and the line of the name and the name for each that binds a vague one.

    Counted are arguments, assignments, and the targets of loops, ``with`` and ``:=``.
    """
    functions = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    places = []
    for function in functions:
        for node in ast.walk(function):
            name = ""
            if isinstance(node, ast.arg):
                name = node.arg
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                name = node.id
            if name.lstrip("_") in EVENTS | PLACES:
                places.append((node.lineno, name))
                break
    return len(functions), places


def participle_classes(source: str) -> list[str]:
    classes = [node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    return [name for name in classes if name.lstrip("_") in PARTICIPLES]


def is_gerund(module: str) -> bool:
    return module.endswith("ing") and module not in GERUND_TERMS


@pytest.fixture(scope="module")
def sources():
    return {str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8") for path in PATHS}


def test_functions_bind_names_that_say_what_they_hold(sources):
    counts = {name: vague_names(text) for name, text in sources.items()}
    functions = sum(count for count, _ in counts.values())
    places = [f"{name}:{line} {word}" for name, (_, hits) in counts.items() for line, word in hits]
    assert functions > 500
    assert len(places) < MAX_SHARE * functions, places


def test_classes_are_named_after_things(sources):
    assert not [
        (name, hits) for name, text in sources.items() if (hits := participle_classes(text))
    ]


def test_modules_are_named_after_things(sources):
    assert not [name for name in sources if is_gerund(name.split("/")[-1].removesuffix(".py"))]


def test_lines_fit(sources):
    long = [
        f"{name}:{number}"
        for name, text in sources.items()
        for number, line in enumerate(text.splitlines(), 1)
        if len(line) > MAX_COLUMNS
    ]
    assert not long


@pytest.mark.parametrize(
    "line",
    [
        "found = 1",
        "for _seen in (): pass",
        "with open('x') as there: pass",
        "(known := 1)",
        "(lambda most: most)",
    ],
)
def test_a_vague_name_is_noticed(line):
    assert vague_names(f"def f():\n    {line}")[1] and not vague_names(line)[1]


def test_a_vague_argument_is_noticed_once():
    assert vague_names("def f(before, *, after): found = before") == (1, [(1, "before")])
    assert vague_names("async def f(boxes): return boxes.found") == (1, [])


def test_participles_and_gerunds_are_noticed():
    assert participle_classes("class _Held: ...\nclass TemporalState: ...") == ["_Held"]
    assert is_gerund("loading") and not is_gerund("loader") and not is_gerund("tracking")
