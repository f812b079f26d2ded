"""Ditto and LivePortrait in miniature, and the examples that wrap them."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.hosts.host_folder import host_folder

DITTO = """
import json, pathlib, queue, threading
import numpy as np

class DecodeF3D:
    def __init__(self):
        self.decoder = lambda feature: np.full((512, 512, 3), feature, np.float32)

    def __call__(self, feature):
        return self.decoder(feature)

class StreamSDK:
    def __init__(self, cfg_pkl, data_root):
        self.decode_f3d = DecodeF3D()
        self.decode_f3d_queue = queue.Queue()

    def decode_f3d_worker(self):
        while (feature := self.decode_f3d_queue.get()) is not None:
            self.faces.append(self.decode_f3d(feature))

def run(SDK, audio_path, source_path, output_path):
    SDK.faces = []
    thread = threading.Thread(target=SDK.decode_f3d_worker)
    thread.start()
    for feature in ([200.0, 60.0, 20.0], [210.0, 70.0, 30.0], None):
        SDK.decode_f3d_queue.put(feature)
    thread.join()
    result = [[face.shape, str(face.dtype), face.mean((0, 1)).tolist()] for face in SDK.faces]
    pathlib.Path("result.json").write_text(json.dumps(result))
"""
LIVE_PORTRAIT = """
import numpy as np

class LivePortraitWrapper:
    def parse_output(self, out):
        return np.clip(np.transpose(out, [0, 2, 3, 1]) * 255, 0, 255).astype(np.uint8)
"""
INFERENCE = """
import json, pathlib, sys
import numpy as np
from src.live_portrait_wrapper import LivePortraitWrapper

def main():
    assert sys.argv[1:] == ["-s", "face.jpg"]
    wrapper, result = LivePortraitWrapper(), []
    for red in (0.8, 0.9):
        out = np.full((1, 3, 512, 512), 0.2, np.float32)
        out[:, 0] = red
        face = wrapper.parse_output(out)[0]
        result.append([face.shape, str(face.dtype), face.mean((0, 1)).tolist()])
    pathlib.Path("result.json").write_text(json.dumps(result))
"""
CASES = {
    "ditto": (
        {"inference.py": DITTO},
        [f"--{name}=x" for name in "data_root cfg_pkl audio_path source_path output_path".split()],
        "float32",
        [[200, 60, 20], [210, 70, 30]],
    ),
    "liveportrait": (
        {"src/live_portrait_wrapper.py": LIVE_PORTRAIT, "inference.py": INFERENCE},
        ["-s", "face.jpg"],
        "uint8",
        [[204, 51, 51], [229, 51, 51]],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_example_gives_the_host_its_faces_in_its_form(name, tmp_path, monkeypatch, capsys):
    files, arguments, dtype, colors = CASES[name]
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    monkeypatch.setattr(sys, "path", ["examples", *sys.path])
    with host_folder(tmp_path, files, monkeypatch):
        runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
        result = json.loads(Path("result.json").read_text())
    assert [row[:2] for row in result] == [[[512, 512, 3], dtype]] * 2
    for row, color in zip(result, colors, strict=True):
        assert row[2] == pytest.approx(color, abs=4), "red stays the first channel"
    assert " of 2 faces restored" in capsys.readouterr().out
