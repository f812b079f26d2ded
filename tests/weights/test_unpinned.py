"""ONNX files whose hash nobody publishes: fetched, verified and imported by what they hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from weights_server import Server

from musetalk_enhance.cli import main
from musetalk_enhance.errors import CheckpointError, CorruptWeightError, DownloadError
from musetalk_enhance.weights import (
    WEIGHTS,
    cache_dir,
    fetch,
    find,
    find_onnx,
    import_file,
    require,
    verify,
)

NAME = "gpen_bfr_256.onnx"


@pytest.fixture
def restorer(tmp_path: Path) -> Callable[..., Path]:
    """restorer(file, side): a graph that returns its input."""
    onnx = pytest.importorskip("onnx")

    def make(file: str = NAME, side: int = 256) -> Path:
        ports = [
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, side, side])
            for name in ("input", "output")
        ]
        node = onnx.helper.make_node("Identity", ["input"], ["output"])
        graph = onnx.helper.make_graph([node], "g", ports[:1], ports[1:])
        (tmp_path / file).write_bytes(onnx.helper.make_model(graph).SerializeToString())
        return tmp_path / file

    return make


@pytest.fixture
def served(server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """served(content): the published address of `NAME` is a server with this file."""

    def serve(content: bytes) -> None:
        entry = replace(WEIGHTS.get(NAME), urls=(server.add("/file", content),))
        monkeypatch.setitem(WEIGHTS._items, NAME, entry)

    return serve


def test_it_is_fetched_and_read(restorer, served) -> None:
    path = restorer()
    served(path.read_bytes())
    assert find(NAME) is None and [result.status for result in verify([NAME])] == ["missing"]
    target = fetch("gpen_bfr_256", progress=False)
    assert target == cache_dir() / NAME and target.read_bytes() == path.read_bytes()
    assert find(NAME) == target and len(require(NAME).sha256) == 64
    (result,) = verify([NAME])
    assert result.status == "unpinned" and require(NAME).sha256 in result.detail
    assert main(["weights", "verify", NAME]) == main(["weights", "verify"]) == 0


@pytest.mark.parametrize("content", [b"not a graph", b"<!DOCTYPE html><html>"])
def test_what_is_no_graph_is_not_fetched(content, served, server) -> None:
    served(content)
    with pytest.raises(DownloadError, match="unpinned"):
        fetch(NAME, progress=False)
    assert find(NAME) is None


def test_without_an_address_it_must_be_copied() -> None:
    with pytest.raises(DownloadError, match="no address provides GPEN-BFR-256-sim.onnx"):
        fetch("GPEN-BFR-256-sim.onnx", progress=False)


def test_bytes_of_an_earlier_download_are_not_continued(restorer, served) -> None:
    """Nothing would tell that they are another file's."""
    path = restorer()
    served(path.read_bytes())
    cache_dir().mkdir()
    (cache_dir() / f"{NAME}.part").write_bytes(b"another file's")
    assert fetch(NAME, progress=False).read_bytes() == path.read_bytes()


def test_it_is_imported_by_its_name_if_the_inputs_are_that_model_s(restorer, tmp_path) -> None:
    assert import_file(restorer()) == cache_dir() / NAME
    assert import_file(restorer("gpen_bfr_256 (1).onnx")) == cache_dir() / NAME
    with pytest.raises(CheckpointError, match="an input of 512 px"):
        import_file(restorer(side=512))
    (tmp_path / NAME).write_bytes(b"not a graph")
    with pytest.raises(CorruptWeightError, match="cannot be read as an ONNX graph"):
        import_file(tmp_path / NAME)
    with pytest.raises(CheckpointError, match="not a published weight"):
        import_file(restorer("mine.onnx"))
    with pytest.raises(CorruptWeightError, match="by its name this is GPEN-BFR-256.onnx"):
        import_file(restorer("GPEN-BFR-256.onnx"))


def test_a_corrupt_one_is_found(restorer) -> None:
    import_file(restorer())
    path = cache_dir() / NAME
    path.write_bytes(path.read_bytes()[:-9])
    assert [result.status for result in verify([NAME])] == ["corrupt"]
    assert main(["weights", "verify", NAME]) == 1


def test_the_list_marks_them(capsys, restorer) -> None:
    import_file(restorer())
    assert main(["weights", "list"]) == 0
    text = capsys.readouterr().out
    assert "license: GPEN (Alibaba) (non-commercial); unpinned" in text
    assert main(["weights", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows[NAME]["sha256"] is None and rows[NAME]["state"] == "present"
    assert not rows[NAME]["commercial"] and len(rows["GPEN-BFR-256.onnx"]["sha256"]) == 64


def test_all_are_the_pinned_ones(monkeypatch) -> None:
    names: list[str] = []
    monkeypatch.setattr(
        "musetalk_enhance.cli.weights.fetch", lambda name, **_: names.append(name) or Path(name)
    )
    assert main(["weights", "fetch", "all"]) == 0
    assert "GPEN-BFR-256.onnx" in names and NAME not in names


def test_a_model_is_found_under_any_of_its_names(restorer, served) -> None:
    """The file that is there, else a download of the one with a hash."""
    cache_dir().mkdir()
    restorer("GPEN-BFR-256-sim.onnx").rename(cache_dir() / "GPEN-BFR-256-sim.onnx")
    assert find_onnx("gpen_bfr_256").path.name == "GPEN-BFR-256-sim.onnx"
    assert find_onnx("GPEN-bfr-256-SIM.onnx").path.name == "GPEN-BFR-256-sim.onnx"
    served(restorer().read_bytes())
    assert find_onnx(NAME, download=True).path == cache_dir() / NAME
