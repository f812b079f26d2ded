"""Whose a script is, by what it imports."""

from __future__ import annotations

import pytest

from musetalk_enhance.errors import ConfigError, HostError
from musetalk_enhance.hosts.base import argument_of
from musetalk_enhance.hosts.registry import HOSTS, host_named, imported_names, recognize
from tests.hosts.host_folder import host_folder, run_host

CASES = {
    "import musetalk.utils.utils": "musetalk",
    "def main():\n    from musetalk.models.vae import VAE": "musetalk",
    "from avatars.base_avatar import BaseAvatar": "livetalking",
    "from models import Wav2Lip": "wav2lip",
    "from models.wav2lip import Wav2Lip as Network": "wav2lip",
    "if True:\n\tfrom enhancers.GFPGAN.GFPGAN import GFPGAN": "wav2lip-onnx-hq",
    # LiveTalking has modules of MuseTalk and Wav2Lip of its own
    "from musetalk import utils\nimport avatars.base_avatar": "livetalking",
    "path = 'checkpoints\\wav2lip'\nfrom models import Wav2Lip": "wav2lip",
}


@pytest.mark.parametrize(("text", "name"), CASES.items())
def test_a_script_is_recognized_by_its_imports(tmp_path, text, name):
    script = tmp_path / "app.py"
    script.write_text(text)
    assert recognize(str(script)).name == name


@pytest.mark.parametrize(
    "first", ["import pages", "from pages import page", "from pages.page import run"]
)
def test_a_thin_script_is_recognized_by_the_modules_of_its_folder(tmp_path, monkeypatch, first):
    files = {
        "scripts/start.py": first,
        "scripts/pages/__init__.py": "from .page import run",
        "scripts/pages/page.py": "import tool",
        "scripts/tool.py": "import musetalk.models",
        "tool.py": "import no_host",
    }
    with host_folder(tmp_path, files, monkeypatch):
        monkeypatch.chdir(tmp_path / "scripts")
        assert recognize("start.py").name == "musetalk"


def test_what_the_script_imports_goes_before_what_its_modules_import(tmp_path):
    (tmp_path / "app.py").write_text("import musetalk, deeper")
    (tmp_path / "deeper.py").write_text("import avatars.base_avatar")
    assert recognize(str(tmp_path / "app.py")).name == "musetalk"


@pytest.mark.parametrize(
    "text", ["import musetalk_enhance, models, enhancers", "import loop", "a syntax error", ""]
)
def test_an_unknown_script_gets_the_hosts_and_wrap(tmp_path, text):
    (tmp_path / "loop.py").write_text("import app")
    script = tmp_path / "app.py"
    script.write_text(text)
    with pytest.raises(HostError) as caught:
        recognize(str(script))
    assert all(host.title in str(caught.value) for host in HOSTS)
    assert "musetalk_enhance.wrap(function, enhancer, ...)" in str(caught.value)


def test_run_says_so_before_the_script_starts(tmp_path, monkeypatch, capsys):
    with host_folder(tmp_path, {"own.py": "print('started')"}, monkeypatch):
        assert run_host("own.py", "--enable_gfpgan")[0] == 2
    streams = capsys.readouterr()
    assert "own.py is not recognized" in streams.err and not streams.out


def test_a_name_goes_before_what_the_script_imports(tmp_path, monkeypatch, capsys):
    files = {
        "own.py": "import json, pathlib, tool\n"
        "result = tool.VAE().decode_latents([0, 0])\n"
        "pathlib.Path('result.json').write_text(json.dumps(result.shape))",
        "tool.py": "from importlib import import_module\n"
        "VAE = import_module('musetalk.models.' + 'vae').VAE",
        "musetalk/models/vae.py": "import numpy as np\nclass VAE:\n"
        "    def decode_latents(self, latents):\n"
        "        return np.zeros((len(latents), 256, 256, 3), np.uint8)",
    }
    flags = ["--enable_gfpgan", "--gfpgan_model", "lite", "--gfpgan_output_size", "native"]
    with host_folder(tmp_path, files, monkeypatch):
        assert run_host("own.py", *flags)[0] == 2
        code, shape = run_host("--host", "musetalk", "own.py", *flags)
        assert (code, shape) == (0, [2, 512, 512, 3])
        assert run_host("--host=wav2lip", "own.py", *flags)[0] == 2, "it makes no such face"
    assert "without decoding a single frame" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--host", "musetalks", "x.py"], "Did you mean 'musetalk'?"),
        (["--host", "x.py"], "the name of a host, before the script"),
        (["--host"], "the name of a host, before the script"),
        (["--report", "out", "--host", "-m", "x"], "the name of a host, before the script"),
    ],
)
def test_wrong_names_of_hosts(tmp_path, monkeypatch, capsys, words, text):
    with host_folder(tmp_path, {"x.py": ""}, monkeypatch):
        assert run_host(*words)[0] == 2
    assert text in capsys.readouterr().err


def test_names_are_unique_and_found():
    assert [host_named(host.name) for host in HOSTS] == list(HOSTS)
    assert len({host.name for host in HOSTS}) == len(HOSTS)
    with pytest.raises(ConfigError):
        host_named("MuseTalk")


def test_relative_imports_are_names_below_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    path = tmp_path / "a" / "b" / "c.py"
    path.write_text("from . import d\nfrom ..e import f\nimport g.h")
    assert imported_names(path) == {"a.b", "a.b.d", "a.e", "a.e.f", "g.h"}


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ([], None),
        (["--fps"], ""),
        (["--fps", "30"], "30"),
        (["-x", "--fps=24", "y"], "24"),
        (["--fpsx", "1"], None),
    ],
)
def test_the_value_of_an_argument(arguments, value):
    assert argument_of(arguments, "--fps") == value


def test_a_report_of_a_script_without_arguments(tmp_path, monkeypatch, capsys):
    files = {"app.py": "from models import Wav2Lip", "models.py": "Wav2Lip = 1"}
    with host_folder(tmp_path, files, monkeypatch):
        assert run_host("--report", "out", "app.py")[0] == 0
    assert "nothing was restored" in capsys.readouterr().err
