"""SadTalker and Linly-Talker in miniature: modules, calls and results are theirs."""

from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import pytest

from musetalk_enhance.errors import ConfigError, HostError, MediaError
from musetalk_enhance.faces import detect
from musetalk_enhance.faces.selection import LOOK_AHEAD
from musetalk_enhance.hosts.registry import recognize
from musetalk_enhance.hosts.sadtalker import CHUNK, FaceEnhancerModule, attach
from musetalk_enhance.hosts.sessions import Sessions
from musetalk_enhance.media import index_video, read_segment
from musetalk_enhance.pipeline import engine as engine_module
from musetalk_enhance.restorers import background_upsampler
from tests.conftest import RECORD, ROOT
from tests.hosts.host_folder import host_folder, run_host
from tests.jobs.test_video_processor import HEIGHT, WIDTH, Squares, film, scene

COUNT = 11
CALLER = """
import json, pathlib
from src.utils.face_enhancer import enhancer_generator_with_len, enhancer_list

class AnimateFromCoeff:
    def generate(self, x, video_save_dir, pic_path, crop_info, enhancer=None,
                 background_enhancer=None, preprocess="crop", img_size=256):
        result = {"enhancer": enhancer, "frames": []}
        if enhancer:
            frames = enhancer_generator_with_len(
                x["video"], method=enhancer, bg_upsampler=background_enhancer)
            result["length"] = len(frames)
            result["frames"] = [[frame.shape, str(frame.dtype)] for frame in frames]
            result["list"] = len(enhancer_list(x["video"], enhancer, background_enhancer))
        pathlib.Path("result.json").write_text(json.dumps(result))
"""
INFERENCE = """
from argparse import ArgumentParser
from src.facerender.animate import AnimateFromCoeff
parser = ArgumentParser()
parser.add_argument("--enhancer", default=None)
args = parser.parse_args()
AnimateFromCoeff().generate({"video": "film.mp4"}, ".", "face.png", None, enhancer=args.enhancer)
"""
FILES = {
    "src/utils/face_enhancer.py": "import gfpgan_that_is_not_installed",
    "src/facerender/animate.py": CALLER,
    "src/facerender/pirender_animate.py": CALLER.replace("Coeff:", "Coeff_PIRender:"),
    "TFG/__init__.py": "from .SadTalker import SadTalker",
    "TFG/SadTalker.py": "from src.facerender.animate import AnimateFromCoeff as SadTalker",
    "TFG/MuseTalk.py": "import sys\nsys.path.append('./Musetalk')\n"
    "from musetalk.models.vae import VAE",
    "TFG/Wav2Lip.py": "from src.models import Wav2Lip",
    "src/models/__init__.py": "from .wav2lip import Wav2Lip",
    "src/models/wav2lip.py": "import torch\nclass Wav2Lip(torch.nn.Module):\n"
    "    def forward(self, audio, images):\n        return images[:, :3] + 0.3",
    "Musetalk/musetalk/models/vae.py": "import numpy as np\nclass VAE:\n"
    "    def decode_latents(self, latents):\n"
    "        return np.full((len(latents), 256, 256, 3), 99, np.uint8)",
    "app_musetalk.py": "from TFG.MuseTalk import VAE\nfrom TFG.Wav2Lip import Wav2Lip\n"
    "import json, pathlib, torch\nfaces = VAE().decode_latents([0, 0])\n"
    "mouths = Wav2Lip()(torch.zeros(1, 1, 80, 16), torch.zeros(2, 6, 96, 96))\n"
    "result = [[list(faces.shape), str(faces.dtype)], [list(mouths.shape), str(mouths.dtype)]]\n"
    "pathlib.Path('result.json').write_text(json.dumps(result))",
    "inference.py": INFERENCE,
    "app_sadtalker.py": "from src.gradio_demo import SadTalker",
    "app.py": "from TFG import SadTalker\n"
    "SadTalker().generate({'video': 'film.mp4'}, '.', 'face.png', None, None)",
}
FLAGS = ("--enable_gfpgan", "--gfpgan_model", "lite", "--gfpgan_backend", "torch")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    pictures = [scene(at, [(60 + 2 * at, 64)]) for at in range(COUNT)]
    return film(tmp_path_factory.mktemp("clip") / "film.mp4", pictures)


@pytest.fixture(scope="module")
def frames(clip):
    """RGB."""
    decoded = read_segment(clip, index_video(clip), 0, COUNT)
    return [np.ascontiguousarray(frame.bgr[..., ::-1]) for frame in decoded]


@pytest.fixture
def detector(monkeypatch):
    squares = Squares()
    monkeypatch.setattr(detect, "make_detector", lambda *args, **kwargs: squares)
    monkeypatch.setattr(engine_module, "crop_size", lambda _: 128)
    return squares


@pytest.fixture
def folder(tmp_path, clip, detector, monkeypatch):
    with host_folder(tmp_path, FILES, monkeypatch) as folder:
        (folder / "film.mp4").write_bytes(clip.read_bytes())
        monkeypatch.syspath_prepend(str(tmp_path))
        yield folder


@pytest.fixture
def module(detector, make_enhancer):
    """module(function, **options) -> the functions that stand in for the host's."""
    small = replace(RECORD, input_size=128, output_size=128)

    def make(function=None, **options):
        enhancer = make_enhancer(function, small, **options)
        return FaceEnhancerModule(Sessions(enhancer), enhancer)

    return make


def enlarged(frame, scale=2):
    size = (scale * WIDTH, scale * HEIGHT)
    return cv2.resize(frame, size, interpolation=cv2.INTER_LANCZOS4)


@pytest.mark.parametrize("words", [["inference.py"], ["inference.py", "--enhancer", "gfpgan"]])
def test_every_video_is_enhanced_without_the_hosts_own_enhancer(folder, words, capsys):
    code, result = run_host(*words, *FLAGS)
    assert code == 0 and result["enhancer"] == "gfpgan"
    assert result["length"] == result["list"] == COUNT
    assert result["frames"] == [[[2 * HEIGHT, 2 * WIDTH, 3], "uint8"]] * COUNT
    assert f"{2 * COUNT} of {2 * COUNT} faces restored" in capsys.readouterr().err
    assert "src.utils.face_enhancer" not in sys.modules


def test_linly_talker_is_recognized_by_its_package(folder, capsys):
    assert recognize("app.py").name == "linly-talker"
    assert recognize("inference.py").name == recognize("app_sadtalker.py").name == "sadtalker"
    code, result = run_host("app.py", *FLAGS)
    assert code == 0 and result["length"] == COUNT


def test_linly_talkers_musetalk_and_wav2lip_are_restored_too(folder, capsys):
    code, result = run_host("app_musetalk.py", *FLAGS)
    assert code == 0
    assert result == [[[2, 512, 512, 3], "uint8"], [[2, 3, 512, 512], "torch.float32"]]
    assert "of 4 faces restored" in capsys.readouterr().err


def test_without_our_flag_the_host_is_as_it_was(folder):
    with pytest.raises(ModuleNotFoundError, match="gfpgan_that_is_not_installed"):
        run_host("inference.py")


def test_another_network_of_the_host_is_replaced_with_a_warning(folder, capsys):
    code, _ = run_host("inference.py", "--enhancer", "RestoreFormer", *FLAGS)
    assert code == 0 and "RestoreFormer is ignored" in capsys.readouterr().err


@pytest.mark.parametrize("scale", [1, 2])
def test_a_network_that_changes_nothing_changes_no_pixel(module, clip, frames, scale):
    results = module(upscale=scale).enhancer_list(str(clip), bg_upsampler=None)
    assert len(results) == COUNT
    for result, frame in zip(results, frames, strict=True):
        assert np.array_equal(result, enlarged(frame, scale)) and result.flags.c_contiguous


def test_faces_are_restored_in_place_and_in_rgb(module, frames):
    redder = module(lambda faces: faces + faces.new_tensor([0.2, 0, 0])[:, None, None])
    for at, result in enumerate(redder.enhancer_generator_no_len(frames, "gfpgan", None)):
        change = result.astype(int) - enlarged(frames[at])
        x, y = 2 * (60 + 2 * at), 128
        assert change[y, x, 0] > 40 and abs(change[y, x, 1:]).max() <= 2
        change[y - 72 : y + 72, x - 72 : x + 72] = 0
        assert not change.any()


def test_every_face_is_a_stream_that_ends(module, frames):
    functions = module(upscale=1)
    enhancer, opened = functions._enhancer, []
    open_stream = enhancer.stream
    enhancer.stream = lambda **options: opened.append(open_stream(**options)) or opened[-1]
    video = functions.enhancer_generator_with_len(frames, bg_upsampler=None)
    next(iter(video))
    for _ in range(2):
        assert len(list(video)) == len(video) == COUNT
    assert len(opened) == 3 and all(stream.closed for stream in opened)
    assert enhancer.stats.frames == COUNT - LOOK_AHEAD + 2 * COUNT


class Reader(Sequence):
    """Counts what is read of some frames."""

    def __init__(self, frames):
        self.frames, self.read = frames, 0

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, index):
        self.read += 1
        return self.frames[index]


def test_a_few_frames_are_read_at_a_time(module, frames):
    reader = Reader(frames * 3)
    iterator = module().enhancer_generator_no_len(reader, bg_upsampler=None)
    assert reader.read == 0
    next(iterator)
    assert reader.read == CHUNK + LOOK_AHEAD


def test_an_error_of_ours_costs_no_frame(module, detector, frames, monkeypatch, caplog):
    functions = module()
    monkeypatch.setattr(detector, "detect", lambda image: 1 / 0)
    results = functions.enhancer_list(frames, bg_upsampler=None)
    assert len(results) == COUNT and np.array_equal(results[3], enlarged(frames[3]))
    assert "8 frames stay as they are" in caplog.text
    strict = module(on_error="raise")
    with pytest.raises(ZeroDivisionError):
        strict.enhancer_list(frames, bg_upsampler=None)


def test_a_failure_in_between_costs_no_frame(module, frames, caplog):
    """Of 24 frames the second batch fails; the others are restored."""
    functions = module(lambda faces: faces + 0.2)
    engine, calls = functions._enhancer.engine, []
    plain = engine.restore

    def restore(requests):
        calls.append(requests)
        if len(calls) == 2:
            raise ZeroDivisionError
        return plain(requests)

    engine.restore = restore
    clip = frames[:8] * 3
    results = functions.enhancer_list(clip, bg_upsampler=None)
    changed = [not np.array_equal(a, enlarged(b)) for a, b in zip(results, clip, strict=True)]
    assert changed == [True] * 8 + [False] * 8 + [True] * 8
    assert "8 frames stay as they are" in caplog.text


def test_the_background_is_enlarged_on_demand(module, frames, monkeypatch):
    class Upsampler:
        def __init__(self, **options):
            pass

        def enlarge(self, image, scale):
            return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)

        def close(self):
            pass

    monkeypatch.setattr(background_upsampler, "BackgroundUpsampler", Upsampler)
    functions = module()
    result = functions.enhancer_list(frames[:1])[0]
    assert np.array_equal(result[::2, ::2][:8], frames[0][:8])
    functions.close()
    with pytest.raises(ConfigError, match="realesrgan"):
        functions.enhancer_list(frames, bg_upsampler="another")


def test_a_missing_video_is_an_error_at_once(module, tmp_path):
    with pytest.raises(MediaError):
        module().enhancer_generator_with_len(str(tmp_path / "none.mp4"), bg_upsampler=None)


def test_attach_goes_before_the_hosts_modules(folder, make_enhancer):
    enhancer = make_enhancer()
    with attach(enhancer):
        caller = importlib.import_module("src.facerender.pirender_animate")
        caller.AnimateFromCoeff_PIRender().generate({"video": "film.mp4"}, ".", "", None)
        with pytest.raises(HostError, match="attach before"):
            attach(enhancer)
    assert enhancer.stats.frames == 2 * COUNT


def test_the_example_runs_the_hosts_script(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sadtalker.py"])
    monkeypatch.setattr(sys, "path", ["examples", *sys.path])
    runpy.run_path(str(ROOT / "examples" / "sadtalker.py"), run_name="__main__")
    assert f"{2 * COUNT} of {2 * COUNT} faces restored" in capsys.readouterr().out
