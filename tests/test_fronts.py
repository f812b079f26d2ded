"""The scripts with the usual names: the same commands in other words, and a self-check that can
fail."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from musetalk_enhance.jobs import image_restorer
from musetalk_enhance.pipeline.outcome import Status
from tests.conftest import ROOT

SCRIPTS = ROOT / "scripts"
sys.path.insert(0, str(SCRIPTS))
import download_gfpgan_models  # noqa: E402
import face_restoration  # noqa: E402
import test_face_restoration as self_check  # noqa: E402

SH, BAT = (SCRIPTS / f"run_inference_optimized.{kind}" for kind in ("sh", "bat"))
LITE = ["--model", "lite", "--backend", "torch", "--device", "cpu", "--face-detector", "none"]


def run(*words: object, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess:
    """A script with this interpreter, the library not on its path."""
    environment = {**os.environ, **variables}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120
    )


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Two soft pictures of 64 px."""
    folder = tmp_path / "my pictures"
    folder.mkdir()
    for name, centre in (("a", (30, 34)), ("b", (26, 30))):
        picture = np.full((64, 64, 3), (120, 110, 100), np.uint8)
        cv2.ellipse(picture, centre, (20, 26), 0, 0, 360, (90, 120, 200), -1)
        cv2.circle(picture, (22, 28), 4, (30, 30, 30), -1)
        cv2.imwrite(str(folder / f"{name}.png"), cv2.GaussianBlur(picture, (0, 0), 1.2))
    return folder


# --- spelling


def test_names_are_spelled_and_values_are_not():
    words = [
        "--output_dir",
        "my_out",
        "--face_detector=none_at",
        "-o_p",
        "--no_guard",
        "--",
        "--a_b",
    ]
    assert face_restoration.hyphened(words) == [
        *("--output-dir", "my_out", "--face-detector=none_at", "-o_p", "--no-guard", "--", "--a_b")
    ]


@pytest.mark.parametrize("words", [["--input-dir", "in_1"], ["--input_dir=in_1"], ["in_1"]])
def test_the_folder_stands_first_however_it_is_given(words):
    assert face_restoration.images_words([*words, "--guard"]) == ["images", "in_1", "--guard"]


@pytest.mark.parametrize("words", [["--input-dir", "in_1"], ["--input_dir=in_1"], ["in_1"]])
def test_a_switch_does_not_swallow_the_folder(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = face_restoration.main(["--output-dir", "out", "--save_comparison", *words, *LITE])
    assert code == 2 and "musetalk-enhance: in_1: " in capsys.readouterr().err


def test_no_script_swallows_a_folder_after_a_switch(capsys):
    with pytest.raises(SystemExit, match="2"):
        self_check.settings_of(["in_1", "--output-dir", "o", "--save-comparison", "in_2"])
    assert "unrecognized arguments: in_2" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        download_gfpgan_models.parsed(["--force", "in_2"])
    assert "unrecognized arguments: in_2" in capsys.readouterr().err


def test_every_option_of_images_is_reached_with_underscores(capsys):
    from musetalk_enhance.cli import images
    from musetalk_enhance.jobs import ImageSettings

    parser = argparse.ArgumentParser(allow_abbrev=False)
    images.add_arguments(parser)
    names = [
        name
        for name, option in ImageSettings.__dataclass_fields__.items()
        if option.metadata["flag"]
    ]
    words = face_restoration.images_words(
        [f"--{name}=v" for name in names] + ["--num_samples", "3", "--input_dir", "d"]
    )
    args = parser.parse_args([*words[1:], "--output-dir", "o"])
    expected = dict.fromkeys(names, "v") | {"face": ["v"]}  # may be given several times
    assert {name: getattr(args, f"job_{name}") for name in names} == expected
    assert (args.num_samples, args.source) == (3, Path("d"))


def test_help_tells_of_both(capsys):
    assert face_restoration.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "--input-dir" in shown and "--save-comparison" in shown


# --- restoring a folder


def test_a_folder_is_restored_and_unreadable_pictures_are_exit_code_3(pictures, tmp_path):
    (pictures / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    words = [*LITE, "--output_dir", str(out), "--upscale=2", "--save_comparison", "--quiet"]
    assert face_restoration.main([*words, "--input-dir", str(pictures)]) == 3
    assert cv2.imread(str(out / "restored" / "a.png")).shape == (128, 128, 3)
    assert (out / "comparisons" / "b_compare.jpg").is_file()
    (pictures / "broken.png").unlink()
    assert face_restoration.main([str(pictures), *words]) == 0


def test_as_a_command_of_its_own(tmp_path):
    done = run(
        SCRIPTS / "face_restoration.py",
        "--input_dir",
        "nowhere",
        "--output_dir",
        "o",
        *LITE,
        cwd=tmp_path,
    )
    assert done.returncode == 2 and "musetalk-enhance: nowhere" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--input-dir"],
        ["--input-dir", "nowhere", "--output-dir", "o"],
        [".", "--output-dir", "o", "--x_y"],
    ],
)
def test_wrong_calls_are_exit_code_2(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        code = face_restoration.main(words)
    except SystemExit as stop:
        code = stop.code
    assert code == 2 and capsys.readouterr().err


def test_a_checkout_runs_where_the_library_is_not_installed(tmp_path):
    """Found by an interpreter that sees no site-packages; where another copy is installed, the
    checkout's wins."""
    code = (
        f"import sys; sys.path.insert(0, {str(SCRIPTS)!r}); import face_restoration, "
        "musetalk_enhance; print(musetalk_enhance.__file__)"
    )
    for words in (["-S", "-c", code], ["-c", code]):
        done = run(*words, cwd=tmp_path)
        assert Path(done.stdout.strip()).parent.parent == ROOT, done.stderr


# --- weights


@pytest.mark.parametrize(
    ("words", "same"),
    [
        ([], ["fetch", "GFPGANv1.4", "YuNet"]),
        (["--models", "codeformer", "lite", "--force"], ["fetch", "--force", "codeformer"]),
        (["--models", "Lite"], []),
        (
            ["--all", "--offline", "--mirror", "http://m/x"],
            ["fetch", "--offline", "--mirror=http://m/x", "all"],
        ),
        (["--list", "--model_dir", "x_y"], ["list"]),
    ],
)
def test_the_call_in_the_words_of_the_command(words, same):
    assert download_gfpgan_models.weights_words(download_gfpgan_models.parsed(words)) == (
        ["weights", *same] if same else []
    )


def test_list_shows_states_and_licences_of_the_folder(tmp_path):
    done = run(
        SCRIPTS / "download_gfpgan_models.py", "--list", "--model_dir", tmp_path / "w", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert (
        "GFPGANv1.4" in done.stdout
        and "S-Lab" in done.stdout
        and f"folder: {tmp_path / 'w'}" in done.stdout
    )
    assert f"MUSETALK_ENHANCE_CACHE={tmp_path / 'w'}" in done.stdout  # how to use it later


@pytest.mark.parametrize("model", ["gfpgan-1.4", "CodeFormer", "restoreformer", "YuNet"])
def test_offline_says_what_is_missing_with_the_code_of_the_command(
    model, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("MUSETALK_ENHANCE_CACHE", "")  # put back afterwards
    folder = tmp_path / "weights"
    assert (
        download_gfpgan_models.main(["--offline", "--models", model, "--model-dir", str(folder)])
        == 2
    )
    printed = capsys.readouterr()
    assert str(folder) in printed.err and "sha256" in printed.err and "export" not in printed.out


def test_the_embedded_model_needs_no_fetching(capsys):
    assert download_gfpgan_models.main(["--models", "lite", "--offline"]) == 0
    assert "nothing to fetch" in capsys.readouterr().out


def test_an_unknown_model_is_named(capsys):
    assert download_gfpgan_models.main(["--models", "gfpgan-9"]) == 2
    assert "gfpgan-9" in capsys.readouterr().err


# --- the self-check


def verdicts(printed: str) -> dict[str, str]:
    """Of each line of a check: what it checks, and OK, FAILED or SKIPPED."""
    found = re.findall(r"^(OK|FAILED|SKIPPED) +([^:\n]+):", printed, re.M)
    return {what: verdict for verdict, what in found}


def test_pictures_of_ones_own_pass(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    assert not self_check.draw(tmp_path / "in", 2)
    words = [
        "--input_dir",
        str(tmp_path / "in"),
        *LITE,
        "--upscale",
        "2",
        "--output-dir",
        str(tmp_path / "out"),
    ]
    assert self_check.main(words) == 0
    printed = capsys.readouterr().out
    said = verdicts(printed)
    assert len(said) == 9 and sorted(set(said.values())) == ["OK", "SKIPPED"]
    assert "ran: lite with torch (fp32) on cpu" in printed
    assert (tmp_path / "out" / "samples" / "comparisons" / "drawn_1_compare.jpg").is_file()


def test_a_restorer_that_is_told_to_do_nothing_fails(pictures, capsys):
    assert (
        self_check.main(
            ["--input-dir", str(pictures), *LITE, "--strength", "0", "--num-samples", "1"]
        )
        == 1
    )
    said = verdicts(capsys.readouterr().out)
    assert said["faces were found and restored"] == "FAILED"


def test_a_restorer_that_does_nothing_fails(pictures, capsys, monkeypatch):
    judged = image_restorer._judged  # it says that it had restored them

    def pretended(note, outcome):
        return judged(note, replace(outcome, status=Status.RESTORED, cause=None))

    monkeypatch.setattr(image_restorer, "_judged", pretended)
    assert (
        self_check.main(
            ["--input-dir", str(pictures), *LITE, "--strength", "0", "--num-samples", "1"]
        )
        == 1
    )
    said = verdicts(capsys.readouterr().out)
    assert said["every restored face has changed"] == "FAILED"
    assert said["faces are sharper (variance of the Laplacian)"] == "FAILED"
    assert said["as many restored as pictures"] == said["a second run changes nothing"] == "OK"


def test_a_missing_weight_fails_and_says_what_to_do(pictures, capsys):
    assert (
        self_check.main(
            ["--input-dir", str(pictures), "--model", "gfpgan-1.4", "--face-detector", "none"]
        )
        == 1
    )
    printed = capsys.readouterr()
    assert "weights fetch GFPGANv1.4" in printed.err and verdicts(printed.out) == {
        "musetalk-enhance images": "FAILED"
    }


def test_a_changed_pixel_beside_the_face_is_seen(rng, capsys, shared):
    """The check on what lies around the faces, on a portrait that it draws itself."""
    pytest.importorskip("skimage")
    yunet = str(shared / "weights" / "face_detection_yunet_2023mar.onnx")
    words = ["in", "--output-dir", "out", "--detector-path", yunet]
    settings = self_check.settings_of(words)
    picture = next(self_check._portraits(1))
    faces = [{"state": "restored", "box_xyxy": [0, 0, 9, 9]}]
    for changed in (0, 1):
        after = picture.copy()
        after[0, 0] ^= changed
        check = self_check.Checks()
        self_check.check_rest(
            check, [self_check.Pair("a.png", picture, picture, after, faces)], settings
        )
        assert check.failed == changed
    assert "1 of" in capsys.readouterr().out


def test_a_portrait_that_it_draws_passes(shared, capsys):
    pytest.importorskip("skimage")
    yunet = str(shared / "weights" / "face_detection_yunet_2023mar.onnx")
    words = [
        "--model",
        "lite",
        "--backend",
        "torch",
        "--detector-path",
        yunet,
        "--num-samples",
        "1",
    ]
    assert self_check.main(words) == 0
    said = verdicts(capsys.readouterr().out)
    assert set(said.values()) == {"OK"} and "all around the faces is as it was" in said


def test_without_the_extra_patterns_take_the_place_of_portraits(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "skimage", None)
    assert self_check.main(["--num-samples", "1", *LITE[:-2]]) == 0
    printed = capsys.readouterr().out
    assert "musetalk_enhance[demo]" in printed and "FAILED" not in printed


def test_a_missing_package_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert self_check.main([]) == 1
    printed = capsys.readouterr().out
    assert "FAILED  cv2 is missing" in printed and f"pip install '{ROOT}[demo]'" in printed


@pytest.mark.parametrize(
    "words", [["--num-samples", "0"], ["--sweep", "strength=0.5,1"], ["--no_such"]]
)
def test_wrong_calls_of_the_self_check(words, pictures, capsys):
    with pytest.raises(SystemExit) as caught:
        self_check.main(["--input-dir", str(pictures), *LITE, *words])
    assert caught.value.code == 2


def test_an_impossible_value_is_exit_code_2(pictures, capsys):
    assert self_check.main(["--input-dir", str(pictures), *LITE, "--strength", "7"]) == 2
    assert "--strength" in capsys.readouterr().out


def test_pytest_does_not_take_it_for_tests():
    done = run(
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
        SCRIPTS / "test_face_restoration.py",
    )
    # 5: nothing collected, and no error
    assert done.returncode == 5 and "no tests collected" in done.stdout


# --- MuseTalk's inference

PRINTS = "import os, sys; print('\\n'.join([os.getcwd(), *sys.argv[1:]])); sys.exit(7)\n"


@pytest.fixture
def musetalk(tmp_path) -> Path:
    """A folder like MuseTalk's, and in it a `musetalk_enhance` that prints how it was called and
    ends with 7."""
    folder = tmp_path / "Muse Talk"
    for name in (
        "scripts/inference.py",
        "scripts/realtime_inference.py",
        "musetalk_enhance/__init__.py",
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (folder / "musetalk_enhance" / "__main__.py").write_text(PRINTS)
    return folder


def inference(*words: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHON": sys.executable, **variables}
    return subprocess.run(
        ["bash", str(SH), *words], capture_output=True, text=True, env=environment, timeout=60
    )


def on_posix(test):
    return pytest.mark.skipif(os.name == "nt", reason="bash")(test)


@on_posix
def test_the_shell_script_is_well_formed():
    assert subprocess.run(["bash", "-n", str(SH)]).returncode == 0
    assert "set -euo pipefail" in SH.read_text() and b"\r" not in SH.read_bytes()


@on_posix
@pytest.mark.parametrize(
    ("version", "mode", "script", "name", "folder"),
    [
        ("v1", "normal", "scripts/inference.py", "v1", "models/musetalk/"),
        ("v1.0", "realtime", "scripts/realtime_inference.py", "v1", "models/musetalk/"),
        ("v1.5", "realtime", "scripts/realtime_inference.py", "v15", "models/musetalkV15/"),
        ("v15", "normal", "scripts/inference.py", "v15", "models/musetalkV15/"),
    ],
)
def test_the_call_of_musetalk(version, mode, script, name, folder, musetalk):
    more = ["--result_dir", "my results", "--fps", "30", "--gfpgan_region", "mouth"]
    done = inference(version, mode, *more, MUSETALK_DIR=str(musetalk), FFMPEG_PATH="/opt/my ffmpeg")
    assert done.returncode == 7, done.stderr  # the script's own code
    where, *words = done.stdout.splitlines()
    assert Path(where).samefile(musetalk) and words[:2] == ["run", script]
    assert words[-6:] == more  # last, and whole
    pairs = dict(zip(words, words[1:], strict=False))
    assert pairs["--version"] == name and pairs["--unet_config"] == f"{folder}musetalk.json"
    assert (
        pairs["--unet_model_path"].startswith(folder) and pairs["--ffmpeg_path"] == "/opt/my ffmpeg"
    )


@on_posix
def test_our_flags_are_ones_that_run_takes_and_the_users_win(musetalk):
    from musetalk_enhance.cli.run import split
    from musetalk_enhance.config.flags import given_flags
    from musetalk_enhance.config.loader import merge

    words = inference(
        "v1.5", "normal", "--gfpgan_mode=batch", MUSETALK_DIR=str(musetalk)
    ).stdout.splitlines()[1:]
    ours, theirs = split(words)
    settings = merge(None, given_flags(ours))
    assert (settings.enabled, settings.region, settings.output_size) == (True, "lower", "native")
    assert settings.mode == "batch" and settings.on_error == "passthrough"
    assert not [word for word in theirs if "gfpgan" in word]
    assert "--ffmpeg_path" not in theirs or "FFMPEG_PATH" in os.environ


@on_posix
@pytest.mark.parametrize(
    ("words", "variables", "said"),
    [
        ([], {}, "usage"),
        (["v1.5"], {}, "usage"),
        (["v2", "normal"], {}, "v2"),
        (["v1.5", "fast"], {}, "fast"),
        (["v1.5", "normal"], {"MUSETALK_DIR": "/no/such/folder"}, "/no/such/folder"),
        (["v1.5", "normal"], {"MUSETALK_DIR": "/"}, "no scripts/inference.py"),
        (["v1.5", "normal"], {"PYTHON": "/no/such/python"}, "/no/such/python"),
    ],
)
def test_what_is_missing_is_said(words, variables, said, musetalk):
    done = inference(*words, **{"MUSETALK_DIR": str(musetalk), **variables})
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1


@on_posix
def test_a_python_without_the_library_is_told_how_to_get_it(musetalk):
    (musetalk / "musetalk_enhance" / "__init__.py").write_text("raise ImportError\n")
    done = inference("v1.5", "normal", MUSETALK_DIR=str(musetalk))
    assert done.returncode == 2 and f"pip install '{ROOT}'" in done.stderr


def test_both_shells_have_the_same_flags_models_and_folders():
    """The .bat cannot be run here: every flag with its value, both ways of both choices, and its
    line ends."""
    texts = [path.read_text(encoding="ascii") for path in (SH, BAT)]
    code = [
        "\n".join(line for line in text.splitlines() if not re.match(r"#|rem ", line))
        for text in texts
    ]
    lines = [
        re.search(r"^(?:set )?ours=\(?([^)\n]+)", text, re.M | re.I).group(1).split()
        for text in code
    ]
    assert lines[0] == lines[1] and "--enable_gfpgan" in lines[0]
    for pattern in (
        r"--(?:version|unet_\w+|inference_config|result_dir) [\w./]+",
        r"\bscripts/\w+\.py",
    ):
        assert sorted(set(re.findall(pattern, code[0]))) == sorted(
            set(re.findall(pattern, code[1]))
        )
    for pattern in (
        r"FFMPEG_PATH",
        r"MUSETALK_DIR",
        r"\bPYTHON\b",
        r"pip install",
        r"import musetalk_enhance",
    ):
        assert all(re.search(pattern, text) for text in code)


def test_the_batch_file_is_well_formed():
    raw = BAT.read_bytes()
    assert raw.count(b"\r\n") == raw.count(b"\n") and raw.endswith(b"\r\n")
    text = raw.decode("ascii")
    labels, jumps = re.findall(r"^:(\w+)", text, re.M), set(re.findall(r"goto (\w+)", text))
    assert len(labels) == len(set(labels)) and jumps <= set(labels) and set(labels) - jumps == set()
    for needed in ("setlocal", "%*", "%errorlevel%", "exit /b %CODE%", "@echo off"):
        assert needed in text
    # no blocks: %VAR% is late
    assert text.count('"') % 2 == 0 and not re.search(r"^\s*(if|for)\b.*\($", text, re.M)
