"""attach() and run_script() against a host in miniature that behaves as MuseTalk does where it
matters."""

from __future__ import annotations

import importlib
import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from musetalk_enhance import GFPGANEnhancer, attach
from musetalk_enhance.cli import main
from musetalk_enhance.cli.run import split
from musetalk_enhance.errors import HostError
from musetalk_enhance.hosts.script import _config_path

VAE = """
import numpy as np
class VAE:
    def decode_latents(self, latents):
        ramp = np.linspace(0, 255, 256).astype("uint8")
        frame = np.broadcast_to(ramp[:, None, None], (256, 256, 3))
        frames = np.stack([frame for _ in latents]).copy()
        frames[..., 2] = 40  # red in RGB order is last in BGR: told apart below
        return frames[..., ::-1][..., ::-1]
"""

SCRIPT = """
import argparse, json, sys
from omegaconf import OmegaConf
from musetalk.models.vae import VAE
parser = argparse.ArgumentParser()
parser.add_argument("--inference_config", default="configs/default.yaml")
parser.add_argument("--batch_size", type=int, default=2)
parser.add_argument("--fail", type=int, default=0)
parser.add_argument("--skip", action="store_true")
args = parser.parse_args()
config = OmegaConf.load(args.inference_config)
seen = []
for task in config:
    video = config[task]["video_path"]  # a section that is no task would fail here, as in MuseTalk
    if args.skip:
        continue
    frames = VAE().decode_latents([0] * args.batch_size)
    seen.append({"task": task, "shape": frames.shape, "kind": str(frames.dtype),
                 "blue_is_ramp": int(frames[0, -6, 0, 0]), "red": int(frames[0, -64, 64, 2])})
with open("seen.json", "w") as file:
    json.dump({"seen": seen, "argv": sys.argv, "name": __name__}, file)
if args.fail:
    sys.exit(args.fail)
"""

APP = """
import json, sys
import musetalk.models.vae
class Page:
    def __init__(self, vae):
        self.vae = vae
    def click(self):
        return self.vae.decode_latents([0, 0])
    def launch(self):
        if "--idle" not in sys.argv:
            shapes = [{"shape": self.click().shape} for _ in range(2)]
            with open("seen.json", "w") as file:
                json.dump({"seen": shapes, "argv": sys.argv, "name": __name__}, file)
Page(musetalk.models.vae.VAE()).launch()
"""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like MuseTalk's, the working directory of the test."""
    for name, text in {
        "musetalk/models/vae.py": VAE,
        "scripts/inference.py": SCRIPT,
        "scripts/__init__.py": "",
        "inference.sh": "python3 -m scripts.inference",
        "app.py": APP,
        "configs/default.yaml": "task_0:\n  video_path: a.mp4\n",
        "configs/on.yaml": "task_0:\n  video_path: a.mp4\n"
        "gfpgan:\n  enabled: true\n  model: lite\n  output_size: native\n",
        "configs/off.yaml": "task_0:\n  video_path: a.mp4\ngfpgan:\n  enabled: false\n",
        "configs/bad.yaml": "task_0:\n  video_path: a.mp4\ngfpgan:\n  enabled: true\n  upscal: 2\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    for name in _host_modules():
        monkeypatch.delitem(sys.modules, name)
    yield tmp_path
    for name in _host_modules():
        del sys.modules[name]


def _host_modules() -> list[str]:
    return [name for name in sys.modules if name.split(".")[0] in ("musetalk", "scripts")]


def run(*words: str) -> tuple[int, dict]:
    Path("seen.json").unlink(missing_ok=True)
    code = main(["run", *words])
    path = Path("seen.json")
    return code, json.loads(path.read_text()) if path.exists() else {}


def test_flag_anywhere_and_the_scripts_own_arguments_stay(host):
    code, seen = run(
        "--gfpgan_model", "lite", "scripts/inference.py", "--batch_size", "3", "--enable_gfpgan",
        "--gfpgan_output_size=native", "--inference_config", "configs/default.yaml",
    )  # fmt: skip
    assert code == 0
    assert seen["argv"] == [
        "scripts/inference.py", "--batch_size", "3", "--inference_config", "configs/default.yaml",
    ]  # fmt: skip
    assert seen["name"] == "__main__"
    assert [row["shape"] for row in seen["seen"]] == [[3, 512, 512, 3]]
    assert seen["seen"][0]["kind"] == "uint8"


def test_colours_stay_in_their_channels(host):
    _, seen = run("scripts/inference.py", "--enable_gfpgan", "--gfpgan_model", "lite")
    row = seen["seen"][0]
    assert row["shape"] == [2, 256, 256, 3]
    assert abs(row["red"] - 40) <= 3 and row["blue_is_ramp"] > 230


def test_yaml_section_switches_it_on_and_the_host_never_sees_it(host):
    code, seen = run("scripts/inference.py", "--inference_config", "configs/on.yaml")
    assert code == 0
    assert [row["task"] for row in seen["seen"]] == ["task_0"]
    assert seen["seen"][0]["shape"] == [2, 512, 512, 3]


def test_the_scripts_default_config_is_read_too(host):
    (host / "configs/default.yaml").write_text((host / "configs/on.yaml").read_text())
    code, seen = run("scripts/inference.py")
    assert code == 0 and seen["seen"][0]["shape"] == [2, 512, 512, 3]


def test_flags_win_over_yaml(host):
    _, seen = run(
        "scripts/inference.py", "--inference_config=configs/on.yaml", "--gfpgan_output_size", "128"
    )
    assert seen["seen"][0]["shape"] == [2, 128, 128, 3]


@pytest.mark.parametrize("after", [False, True])
def test_a_module_runs_as_with_python_m(host, after):
    flags = ["--enable_gfpgan", "--gfpgan_model", "lite", "--gfpgan_output_size", "native"]
    script = ["-m", "scripts.inference", "--batch_size", "3"]
    code, seen = run(*(script + flags if after else flags + script))
    assert code == 0 and seen["name"] == "__main__"
    # the file's path, as python -m has it
    assert seen["argv"] == [str(host / "scripts/inference.py"), "--batch_size", "3"]
    assert [row["shape"] for row in seen["seen"]] == [[3, 512, 512, 3]]


def test_a_page_without_a_main_function(host):
    flags = ["--enable_gfpgan", "--gfpgan_model", "lite", "--gfpgan_output_size", "native"]
    code, seen = run("app.py", *flags, "--use_float16")
    assert code == 0 and seen["argv"] == ["app.py", "--use_float16"]
    assert [row["shape"] for row in seen["seen"]] == [[2, 512, 512, 3]] * 2


def test_a_page_that_is_closed_unused_is_no_error(host, capsys, monkeypatch):
    words = ["app.py", "--enable_gfpgan", "--gfpgan_model", "lite", "--idle"]
    assert run(*words)[0] == 2, "a script that should have decoded frames"
    monkeypatch.setitem(sys.modules, "gradio", SimpleNamespace())
    assert run(*words)[0] == 0
    assert "app.py ended without decoding a single frame" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "will be restored without --enable_gfpgan (or enabled: true under gfpgan:"),
        (
            ["--inference_config", "configs/off.yaml"],
            "add --enable_gfpgan, or enabled: true under gfpgan: in configs/off.yaml",
        ),
        (["--inference_config", "configs/on.yaml"], None),
        (["--enable_gfpgan", "--gfpgan_model", "lite"], None),
        (["--help"], None),
    ],
)
def test_a_run_that_will_restore_nothing_says_so_at_its_start(host, capsys, words, expected):
    script = host / "scripts/inference.py"
    script.write_text("import sys\nprint('host starts', file=sys.stderr)\n" + SCRIPT)
    assert run("scripts/inference.py", *words)[0] == 0
    at_start = capsys.readouterr().err.partition("host starts")[0]
    assert ("nothing will" in at_start) == (expected is not None)
    assert expected is None or expected in at_start


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize(
    ("words", "is_realtime"),
    [
        (["scripts/realtime_inference.py"], True),
        (["-m", "scripts.realtime_inference"], True),
        (["scripts/inference.py"], False),
    ],
)
def test_realtime_without_a_gpu_is_warned_about(host, capsys, monkeypatch, words, is_realtime, gpu):
    monkeypatch.setattr("musetalk_enhance.hosts.musetalk.has_gpu", lambda: gpu)
    (host / "scripts/realtime_inference.py").write_text(SCRIPT)
    assert run(*words, "--inference_config", "configs/off.yaml")[0] == 0
    assert ("no GPU is available" in capsys.readouterr().err) == (is_realtime and not gpu)


def test_off_means_as_if_we_were_not_there(host, capsys):
    code, seen = run("scripts/inference.py", "--inference_config", "configs/off.yaml")
    assert (
        code == 0 and seen["seen"][0]["shape"] == [2, 256, 256, 3] and seen["seen"][0]["red"] == 40
    )
    assert "nothing was restored" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["scripts/inference.py", "--inference_config", "configs/bad.yaml"], "gfpgan.upscal"),
        (
            ["scripts/inference.py", "--enable_gfpgan", "--gfpgan_upscale", "x"],
            "--gfpgan_upscale: invalid value 'x'",
        ),
        (
            ["scripts/inference.py", "--enable_gfpgan", "--gfpgan_modell", "lite"],
            "Did you mean '--gfpgan_model'?",
        ),
        (["scripts/inference.py", "--enable_gfpgan", "--gfpgan_model"], "a value after the flag"),
        (["scripts/inference.py", "--enable_gfpgan", "--gfpgan_model", "gfpgan-9"], "gfpgan-9"),
        (
            ["scripts/inference.py", "--enable_gfpgan", "--gfpgan_model", "gfpgan-1.4"],
            "weights fetch GFPGANv1.4",
        ),
        (["scripts/none.py", "--enable_gfpgan"], "no script"),
        (["--enable_gfpgan"], "SCRIPT"),
        (["-m", "--enable_gfpgan"], "the name of the host's module"),
        (["-m", "scripts.none", "--enable_gfpgan"], "no module 'scripts.none'"),
        (["-m", "none.inference", "--enable_gfpgan"], "no module 'none.inference'"),
        (["-m", "scripts/inference.py", "--enable_gfpgan"], "no module 'scripts/inference.py'"),
        (["inference.sh", "v1.5", "normal", "--enable_gfpgan"], "python3 -m scripts.inference"),
        (["--report", "-m", "scripts.inference"], "--report: invalid value '-m'"),
        (["scripts/inference.py", "--enable_gfpgan=true"], "ignored explicit argument 'true'"),
    ],
)
def test_wrong_calls_end_before_the_host_starts(host, capsys, words, said):
    code, seen = run(*words)
    assert code == 2 and not seen
    assert said in capsys.readouterr().err


def test_the_closing_line_counts_faces_that_changed(host, capsys):
    # a plain ramp stays the same
    striped = VAE.replace("frames[..., 2] = 40", "frames[:, ::16] //= 2")
    (host / "musetalk/models/vae.py").write_text(striped)
    words = [
        "scripts/inference.py",
        "--enable_gfpgan",
        "--gfpgan_model",
        "lite",
        "--gfpgan_sharpness_gate",
        "false",
    ]
    assert run(*words)[0] == 0
    printed = capsys.readouterr().err
    assert "2 of 2 faces restored, by " in printed and "; 0 left alone; 0 passed through" in printed
    assert "most of the restoration" not in printed


def test_a_run_that_leaves_its_faces_alone_says_so_and_how_to_change_it(host, capsys):
    words = [
        "scripts/inference.py",
        "--enable_gfpgan",
        "--gfpgan_model",
        "lite",
        "--gfpgan_strength",
        "0",
    ]
    assert run(*words)[0] == 0
    printed = capsys.readouterr().err
    assert "0 of 2 faces restored; 2 left alone (2 strength 0); 0 passed through" in printed
    assert (
        "2 of 2 faces left alone (2 strength 0); to restore more, set --gfpgan_strength 1"
        in printed
    )


def test_attach_warns_at_its_end_where_faces_were_left_alone(caplog):
    class Black:
        def decode_latents(self, latents):
            return np.zeros((2, 64, 64, 3), np.uint8)

    vae, enhancer = Black(), GFPGANEnhancer(model="lite", device="cpu", backend="torch", strength=0)
    with caplog.at_level(logging.WARNING, "musetalk_enhance"), attach(vae, enhancer):
        vae.decode_latents(None)
        assert not caplog.records
    assert "2 of 2 faces left alone (2 strength 0); to restore more, set strength: 1" in caplog.text


def test_the_scripts_exit_code_is_ours(host):
    assert (
        run("scripts/inference.py", "--fail", "7", "--enable_gfpgan", "--gfpgan_model", "lite")[0]
        == 7
    )


def test_a_run_without_a_single_frame_is_an_error(host, capsys):
    assert (
        run("scripts/inference.py", "--skip", "--enable_gfpgan", "--gfpgan_model", "lite")[0] == 2
    )
    assert "without decoding a single frame" in capsys.readouterr().err


def test_not_in_musetalks_folder(host, capsys):
    (host / "musetalk/models/vae.py").unlink()
    assert run("scripts/inference.py", "--enable_gfpgan", "--gfpgan_model", "lite")[0] == 2
    assert "MuseTalk's own folder" in capsys.readouterr().err


def test_nothing_is_left_behind(host):
    from omegaconf import OmegaConf

    before = OmegaConf.load, sys.argv, list(sys.path)
    run("scripts/inference.py", "--inference_config", "configs/on.yaml")
    assert (OmegaConf.load, sys.argv, list(sys.path)) == before
    vae = sys.modules["musetalk.models.vae"].VAE
    assert vae().decode_latents([0]).shape == (1, 256, 256, 3)


class Decoder:
    def decode_latents(self, latents):
        return np.full((len(latents), 4, 4, 3), 9, np.uint8)


def test_attach_and_detach():
    vae, other = Decoder(), Decoder()
    attachment = attach(vae, lambda frames: frames + 1)
    assert attachment.attached and vae.decode_latents([0])[0, 0, 0, 0] == 10
    assert other.decode_latents([0])[0, 0, 0, 0] == 9, "only this one"
    attachment.detach()
    attachment.detach()
    assert "decode_latents" not in vars(vae) and vae.decode_latents([0])[0, 0, 0, 0] == 9


def test_attach_as_a_context_also_after_an_error():
    vae = Decoder()
    with pytest.raises(KeyError), attach(vae, lambda frames: frames + 1):
        raise KeyError
    assert vae.decode_latents([0])[0, 0, 0, 0] == 9


def test_attach_to_a_class_and_back():
    with attach(Decoder, lambda frames: frames * 0):
        assert Decoder().decode_latents([0]).max() == 0
    assert Decoder().decode_latents([0]).max() == 9


def test_attaching_twice_or_to_nothing_is_refused():
    vae = Decoder()
    with attach(vae, lambda frames: frames), pytest.raises(HostError, match="already"):
        attach(vae, lambda frames: frames)
    with pytest.raises(HostError, match="decode_latents"):
        attach(object(), lambda frames: frames)


def test_detaching_under_somebody_elses_wrapper_is_refused():
    vae = Decoder()
    attachment = attach(vae, lambda frames: frames)
    vae.decode_latents = lambda latents: None
    with pytest.raises(HostError, match="wrapped again"):
        attachment.detach()


@pytest.fixture
def made(monkeypatch) -> list[GFPGANEnhancer]:
    """Every enhancer that is loaded during the test, in order."""
    found: list[GFPGANEnhancer] = []
    start = GFPGANEnhancer._start

    def noting(self, settings, restorer=None):
        if settings.enabled:
            found.append(self)
        return start(self, settings, restorer)

    monkeypatch.setattr(GFPGANEnhancer, "_start", noting)
    return found


def test_one_model_is_loaded_although_the_yaml_is_known_late(host, made):
    (host / "configs/default.yaml").write_text((host / "configs/on.yaml").read_text())
    assert run("scripts/inference.py", "--enable_gfpgan", "--gfpgan_strength", "0.5")[0] == 0
    assert [enhancer.settings.output_size for enhancer in made] == ["native"]


def test_every_enhancer_is_closed_the_replaced_one_too(host, made):
    (host / "configs/second.yaml").write_text(
        (host / "configs/on.yaml").read_text().replace("native", "128")
    )
    script = host / "scripts/inference.py"
    script.write_text(
        script.read_text().replace("seen = []", "OmegaConf.load('configs/second.yaml'); seen = []")
    )
    code, seen = run("scripts/inference.py", "--inference_config", "configs/on.yaml")
    assert code == 0 and seen["seen"][0]["shape"] == [2, 128, 128, 3]
    assert len(made) == 2 and not any(enhancer.loaded for enhancer in made)
    assert [enhancer.model_name for enhancer in made] == ["none", "none"]


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (["--inference_config", "a", "--inference_config=b"], "b"),
        (["--inference_conf", "a"], "a"),
        (["--inf=a"], "a"),
        (["--i", "a", "--inference_config"], None),
        (["--", "--inference_config", "a"], None),
    ],
)
def test_the_config_is_found_as_argparse_finds_it(words, path):
    assert _config_path(words, "--inference_config") == path


def test_a_value_may_begin_with_a_minus(host):
    args, rest = split(
        ["s.py", "--gfpgan_value_range", "-1..1", "--shift", "-7", "--gfpgan_color", "rgb"]
    )
    assert (args.gfpgan_value_range, args.gfpgan_color, rest) == (
        "-1..1",
        "rgb",
        ["s.py", "--shift", "-7"],
    )


def test_words_after_two_dashes_are_the_hosts(host):
    args, rest = split(
        ["s.py", "--enable_gfpgan", "--", "--gfpgan_modell", "x", "--gfpgan_model", "y"]
    )
    assert rest == ["s.py", "--", "--gfpgan_modell", "x", "--gfpgan_model", "y"]
    assert args.enable_gfpgan and not hasattr(args, "gfpgan_model")


def test_the_hosts_own_wrapper_does_not_fail_the_run(host, capsys):
    script = host / "scripts/inference.py"
    wrap = (
        "inner = VAE.decode_latents\nVAE.decode_latents = lambda self, latents: inner(self, "
        "latents)\nseen = []"
    )
    script.write_text(script.read_text().replace("seen = []", wrap))
    code, seen = run("scripts/inference.py", "--enable_gfpgan", "--gfpgan_model", "lite")
    assert code == 0 and seen and "wrapped again after this library" in capsys.readouterr().err


def test_the_scripts_help_is_no_failure(host, capsys):
    assert (
        run("scripts/inference.py", "--enable_gfpgan", "--gfpgan_model", "lite", "--help")[0] == 0
    )
    assert "--inference_config" in capsys.readouterr().out


def test_logging_is_left_to_the_host(host, capsys, monkeypatch):
    root, ours = logging.getLogger(), logging.getLogger("musetalk_enhance")
    monkeypatch.setattr(root, "handlers", [])
    script = host / "scripts/inference.py"
    setup = (
        "import logging\nlogging.basicConfig(format='HOST %(message)s', "
        "level=10)\nlogging.debug('hello')\nseen = []"
    )
    script.write_text(script.read_text().replace("seen = []", setup))
    before = list(ours.handlers), ours.level, ours.propagate
    assert run("scripts/inference.py", "--enable_gfpgan", "--gfpgan_model", "lite")[0] == 0
    said = capsys.readouterr().err
    assert "HOST hello" in said and said.count("faces are restored with lite") == 1
    assert (list(ours.handlers), ours.level, ours.propagate) == before


class EncodingDecoder(Decoder):
    """A VAE that also encodes the frames of a clip, as MuseTalk's does before it decodes any."""

    def get_latents_for_unet(self, image):
        return image


def test_a_task_does_not_depend_on_the_ones_before_it(make_enhancer):
    """Encoding the frames of another clip begins a new stream: the same bytes as in a run of its
    own."""
    rng = np.random.default_rng(3)
    # two clips of one face: nothing that looks like a cut
    ground = rng.integers(60, 190, (64, 64, 3))
    clips = [(ground + rng.integers(-6, 7, (4, 64, 64, 3))).astype(np.uint8) for _ in range(2)]

    def decoded(numbers, encodes=True):
        calls = iter([clips[number] for number in numbers])
        vae = EncodingDecoder()
        vae.decode_latents = lambda latents: next(calls)
        enhancer = make_enhancer(
            lambda batch: 1.5 * batch - 0.5 * torch.roll(batch, 1, 2), stability=1
        )
        out = []
        with attach(vae, enhancer):
            for _ in numbers:
                if encodes:
                    vae.get_latents_for_unet(None)
                out.append(vae.decode_latents(None))
        assert "get_latents_for_unet" not in vars(vae), "put back"
        return out

    assert np.array_equal(decoded([0, 1])[1], decoded([1])[0])
    assert not np.array_equal(decoded([0, 1], encodes=False)[1], decoded([1])[0]), "else it would"


def test_within_a_task_the_stream_goes_on(make_enhancer):
    vae, enhancer = EncodingDecoder(), make_enhancer(stability=1)
    resets = []
    enhancer.reset = lambda: resets.append(1)
    with attach(vae, enhancer):
        vae.get_latents_for_unet(None)
        vae.get_latents_for_unet(None)
        assert not resets, "nothing was decoded yet"
        vae.decode_latents([0])
        vae.decode_latents([0])
    assert resets == [1]


@pytest.mark.parametrize(
    ("device", "expected"), [("cuda:1", "cuda:1"), ("cpu", "cpu"), ("meta", "auto"), (None, "auto")]
)
def test_the_device_is_that_of_the_hosts_vae(monkeypatch, device, expected):
    """With ``--gpu_id 1`` the VAE is on cuda:1, whatever torch's current device is."""
    from musetalk_enhance.hosts import lazy as loader

    used = []
    monkeypatch.setattr(loader, "has_gpu", lambda: True)
    monkeypatch.setattr(
        GFPGANEnhancer,
        "from_settings",
        lambda settings: used.append(settings.device) or GFPGANEnhancer(model="lite"),
    )
    lazy = loader.LazyEnhancer({"enabled": True, "model": "lite"})
    lazy.configure({"strength": 0.5})
    assert lazy.enhancer is None and not used, "it waits for the VAE"
    lazy.use_device_of(SimpleNamespace(device=device))
    lazy.ready()
    assert used == [expected]
    lazy.close()


PAGE = """
import json, pathlib, threading
import gradio
from musetalk.models.vae import VAE
from musetalk.utils.audio_processor import AudioProcessor
vae, audio = VAE(), AudioProcessor()
def inference(name, gate):
    audio.get_audio_feature(name)
    for _ in range(2):
        gate.wait(timeout=60)
        result = vae.decode_latents([0, 0])
    shapes[name] = result.shape
def serve(names):
    gate = threading.Barrier(len(names))
    threads = [threading.Thread(target=inference, args=(name, gate)) for name in names]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
shapes = {}
serve(["first", "second"])  # at the same time
serve(["third"])
pathlib.Path("seen.json").write_text(json.dumps(shapes))
"""


def test_each_request_of_the_page_has_a_stream_of_its_own(host, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", SimpleNamespace())
    (host / "app.py").write_text(PAGE)
    (host / "musetalk/utils").mkdir()
    (host / "musetalk/utils/audio_processor.py").write_text(
        "class AudioProcessor:\n    def get_audio_feature(self, path):\n        return path"
    )
    streams, start = [], GFPGANEnhancer.stream

    def noting(enhancer, **options):
        streams.append(start(enhancer, **options))
        return streams[-1]

    monkeypatch.setattr(GFPGANEnhancer, "stream", noting)
    code, shapes = run(
        "--report", "report", "app.py", "--enable_gfpgan", "--gfpgan_model", "lite",
        "--gfpgan_output_size", "native",
    )  # fmt: skip
    assert code == 0 and list(shapes.values()) == [[2, 512, 512, 3]] * 3
    assert [stream.stats.frames for stream in streams] == [4, 4, 4]
    assert all(stream.closed for stream in streams)
    printed = capsys.readouterr().err
    assert "of 12 faces restored" in printed, "the counts of all requests"
    assert json.loads((host / "report/report.json").read_text())["frames"] == 12


def test_a_thread_that_serves_another_request_begins_anew(make_enhancer):
    from musetalk_enhance.hosts.sessions import RequestStreams, Sessions

    enhancer = make_enhancer(stability=1)
    requests = RequestStreams(Sessions(enhancer))
    first = requests.current()
    assert requests.current() is first
    requests.begin()
    requests.begin()
    assert first.closed and requests.current() is not first


def test_streams_of_threads_that_ended_are_closed(make_enhancer):
    import threading

    from musetalk_enhance.hosts.sessions import RequestStreams, Sessions

    requests, streams = RequestStreams(Sessions(make_enhancer())), []
    for _ in range(3):
        thread = threading.Thread(target=lambda: streams.append(requests.current()))
        thread.start()
        thread.join()
    assert [stream.closed for stream in streams] == [True, True, False]
