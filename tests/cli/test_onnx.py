"""``musetalk-enhance onnx``: images, folders, analyses, and what is refused before any work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

from musetalk_enhance.cli import main
from musetalk_enhance.media import read_image, write_image
from tests.conftest import ROOT
from tests.onnx_pipeline.conftest import face, portrait, restorer  # noqa: F401 - fixtures

pytest.importorskip("onnxruntime")


@pytest.fixture
def folder(tmp_path, portrait, face):  # noqa: F811
    """Three images, of which one is damaged, and an analysis of each."""
    images, analyses = tmp_path / "images", tmp_path / "analyses"
    images.mkdir()
    analyses.mkdir()
    for name in ("a.png", "b.jpg"):
        write_image(images / name, portrait)
        (analyses / name).with_suffix(".json").write_text(json.dumps([face]))
    (images / "c.png").write_bytes((images / "a.png").read_bytes()[:900])
    (analyses / "c.json").write_text(json.dumps([face]))
    (images / "notes.txt").write_text("no image")
    return tmp_path


def test_one_image(folder, restorer, capsys):  # noqa: F811
    source, output, report = folder / "images/a.png", folder / "out.png", folder / "out.json"
    words = ["onnx", str(source), "--analysis", str(folder / "analyses/a.json"), "--threads", "1"]
    words += ["--model", str(restorer(shift=0.4)), "--output", str(output), "--json", str(report)]
    assert main(words) == 0
    assert f"{output}: 1 faces, 1 restored" in capsys.readouterr().out
    row = json.loads(report.read_text())
    assert (row["source"], row["status"]) == (str(source), "restored")
    change = read_image(output).astype(int) - read_image(source)
    assert change.max() == 51
    assert main([*words, "--blend", "50", "--region=lower", "--allow-cpu"]) == 0
    half = read_image(output).astype(int) - read_image(source)
    assert half.max() in (25, 26) and (half != 0).sum() < (change != 0).sum()


def test_a_folder_with_a_damaged_image(folder, restorer, caplog):  # noqa: F811
    report = folder / "out.json"
    words = ["onnx", str(folder / "images"), "--analysis", str(folder / "analyses")]
    words += ["--output", str(folder / "out"), "--model", str(restorer(shift=0.4)), "--threads=1"]
    assert main([*words, "--json", str(report)]) == 3
    rows = json.loads(report.read_text())
    assert [(Path(row["source"]).name, row["status"]) for row in rows] == [
        *(("a.png", "restored"), ("b.jpg", "restored"), ("c.png", "error"))
    ]
    assert "truncated or damaged" in rows[2]["error"]
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["a.png", "b.jpg"]
    for name in ("a.png", "b.jpg"):
        change = read_image(folder / "out" / name).astype(int) - read_image(
            folder / "images" / name
        )
        assert change[240, 320].max() > 40 and np.abs(change[:40]).max() < 8


def test_providers(capsys):
    with pytest.raises(SystemExit) as stop:
        raise SystemExit(main(["onnx", "--providers"]))
    assert stop.value.code == 0 and "cpu" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "out.png", "--blend", "101"], "--blend: invalid value '101'"),
        (["--output", "out.txt"], "--output: invalid value 'out.txt'"),
        (["--output", "images/a.png"], "no result replaces an image"),
        (["--output", "out.png", "--model", "gone.onnx"], "no such file"),
        (["--output", "out.png"], "gfpgan_1.4.onnx"),
        (["images/b.jpg", "--output", "out", "--analysis", "analyses/a.json"], "--analysis"),
        (["images", "--output", "out"], "no result replaces an image or another result"),
        (["analyses", "--output", "out"], "has no image"),
    ],
)
def test_what_is_refused(words, message, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(["onnx", "images/a.png", *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(folder.glob("out*"))


def test_the_modules_of_the_torch_free_distribution_suffice(tmp_path, folder, restorer):  # noqa: F811
    """Built, and run with the packages that it does not require hidden."""
    pytest.importorskip("setuptools")
    library, setup = tmp_path / "lib", ROOT / "packaging" / "onnx" / "setup.py"
    words = ["-q", "build", "--build-base", str(tmp_path / "base"), "--build-lib", str(library)]
    subprocess.run([sys.executable, str(setup), *words], check=True, capture_output=True)
    assert not list(library.rglob("hosts")) and (library / "musetalk_enhance/py.typed").exists()
    source, output = folder / "images/a.png", folder / "out.png"
    words = ["onnx", str(source), "--analysis", str(folder / "analyses/a.json"), "--threads", "1"]
    words += ["--model", str(restorer(shift=0.4)), "--output", str(output)]
    hidden = ("torch", "omegaconf", "spandrel", "av", "safetensors", "psutil", "onnx")
    code = (
        f"import sys\nsys.modules.update(dict.fromkeys({hidden}))\n"
        f"from musetalk_enhance.cli import main\nassert main({words}) == 0\n"
        "assert main(['weights', 'list']) == 0\nprint(sys.modules['musetalk_enhance'].__file__)"
    )
    variables = {**os.environ, "PYTHONPATH": str(library)}
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        **{"capture_output": True, "text": True, "env": variables, "cwd": tmp_path},
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1].startswith(str(library))
    assert (read_image(output).astype(int) - read_image(source)).max() == 51


@pytest.mark.long
def test_the_torch_free_distribution_in_a_fresh_environment(tmp_path, folder, restorer):  # noqa: F811
    """Installed from packaging/onnx with its requirements: the command runs, torch is not there."""
    tree, environment = tmp_path / "tree", tmp_path / "env"
    names = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    for name in ("musetalk_enhance", "packaging"):
        shutil.copytree(ROOT / name, tree / name, ignore=names)
    venv.create(environment, with_pip=True)
    scripts = environment / ("Scripts" if os.name == "nt" else "bin")

    def run(*words: str) -> str:
        variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        process = subprocess.run(
            [str(scripts / words[0]), *words[1:]],
            capture_output=True,
            text=True,
            env=variables,
            cwd=tmp_path,
        )
        assert process.returncode == 0, process.stderr
        return process.stdout

    run("python", "-m", "pip", "install", "--quiet", str(tree / "packaging" / "onnx"))
    installed = json.loads(run("python", "-m", "pip", "list", "--format=json"))
    packages = {package["name"].lower() for package in installed}
    assert {"musetalk-enhance-onnx", "onnxruntime"} <= packages
    assert not packages & {"torch", "torchvision", "spandrel", "omegaconf", "av"}
    source, output = folder / "images/a.png", folder / "out.png"
    words = ["onnx", str(source), "--analysis", str(folder / "analyses/a.json"), "--threads", "1"]
    words += ["--model", str(restorer(shift=0.4)), "--output", str(output)]
    assert "1 restored" in run("musetalk-enhance", *words)
    assert (read_image(output).astype(int) - read_image(source)).max() == 51
    assert "YuNet" in run("musetalk-enhance", "weights", "list")
    assert "cpu" in run("musetalk-enhance", "onnx", "--providers").split()
    help_text = run("musetalk-enhance", "--help")
    assert "weights" in help_text and "video" not in help_text
    code = "import musetalk_enhance.onnx_pipeline, sys; print('torch' in sys.modules)"
    assert run("python", "-c", code).strip() == "False"
    detector = os.environ.get("MUSETALK_ENHANCE_TEST_DATA", str(ROOT.parent / "shared"))
    path = Path(detector) / "weights" / "face_detection_yunet_2023mar.onnx"
    if path.is_file():  # detection, too
        words = ["onnx", str(source), "--detector-path", str(path), "--output", str(output)]
        assert "no face" in run("musetalk-enhance", *words, "--model", str(restorer()))
