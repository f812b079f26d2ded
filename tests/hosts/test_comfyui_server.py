"""The nodes in the real ComfyUI, on the CPU, through its API.

MUSETALK_ENHANCE_HOSTS is a folder with a checkout of Comfy-Org/ComfyUI, and
MUSETALK_ENHANCE_COMFYUI_PYTHON an interpreter that has its requirements and this library's.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.conftest import ROOT

COMFYUI = Path(os.environ.get("MUSETALK_ENHANCE_HOSTS", "")) / "ComfyUI"
PYTHON = os.environ.get("MUSETALK_ENHANCE_COMFYUI_PYTHON", sys.executable)
WORKFLOW = ROOT / "docs" / "hosts" / "comfyui_workflow_api.json"
START_S, RUN_S = 180, 240
pytestmark = [
    pytest.mark.slow,
    pytest.mark.shared,
    pytest.mark.skipif(
        not (COMFYUI / "main.py").is_file(), reason="no ComfyUI in MUSETALK_ENHANCE_HOSTS"
    ),
]


class Server:
    """A running ComfyUI.

    Attributes:
        folder: its base directory, with ``input`` and ``output``.
        port: on the loopback interface.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port

    def call(self, path: str, body: object = None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def post(self, workflow: dict, client: str = "test") -> str:
        return self.call("/prompt", {"prompt": workflow, "client_id": client})["prompt_id"]

    def wait(self, prompt: str) -> dict:
        """The history of a prompt, once it is over."""
        end = time.monotonic() + RUN_S
        while prompt not in (history := self.call(f"/history/{prompt}")):
            assert time.monotonic() < end, "the prompt did not end"
            time.sleep(0.2)
        return history[prompt]

    def run(self, workflow: dict) -> dict:
        """The outputs of a prompt that succeeds."""
        history = self.wait(self.post(workflow))
        assert history["status"]["status_str"] == "success", history["status"]
        return history["outputs"]

    def image(self, output: dict) -> np.ndarray:
        return cv2.imread(str(self.folder / "output" / output["images"][0]["filename"]))


@pytest.fixture(scope="module")
def server(tmp_path_factory, shared):
    folder = tmp_path_factory.mktemp("comfyui")
    for name in ("custom_nodes", "input", "models", "cache"):
        (folder / name).mkdir()
    nodes = ROOT / "musetalk_enhance" / "hosts" / "comfyui"
    (folder / "custom_nodes" / "musetalk_enhance").symlink_to(nodes, target_is_directory=True)
    shutil.copy(shared / "weights" / "face_detection_yunet_2023mar.onnx", folder / "cache")
    face = pytest.importorskip("skimage.data").astronaut()[..., ::-1]
    small = cv2.resize(face, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(folder / "input" / "astronaut.png"), cv2.resize(small, face.shape[1::-1]))
    cv2.imwrite(str(folder / "input" / "astronaut_source.png"), face)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MUSETALK_ENHANCE_CACHE": str(folder / "cache"),
    }
    words = ["--cpu", "--port", str(port), "--base-directory", str(folder), "--disable-api-nodes"]
    command = [PYTHON, "main.py", *words, "--database-url", "sqlite:///:memory:"]
    with open(folder / "log.txt", "w") as log:
        process = subprocess.Popen(
            command, cwd=COMFYUI.absolute(), env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            server, end = Server(folder, port), time.monotonic() + START_S
            while True:
                assert process.poll() is None, (folder / "log.txt").read_text()
                try:
                    server.call("/system_stats")
                    break
                except (urllib.error.URLError, OSError):
                    assert time.monotonic() < end, (folder / "log.txt").read_text()
                    time.sleep(0.5)
            yield server
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture
def workflow() -> dict:
    return json.loads(WORKFLOW.read_text())


def ours(workflow: dict, name: str) -> dict:
    """The inputs of the node of that class."""
    nodes = workflow.values()
    return next(node["inputs"] for node in nodes if node["class_type"].endswith(name))


def test_the_workflow_of_the_documentation(server, workflow, own_cache):
    matched = server.image(server.run(workflow)["4"])
    ours(workflow, "RestoreFaces").update(restorer=["2", 0], mode="images")
    outputs = server.run(workflow)
    before, source = (
        cv2.imread(str(server.folder / "input" / name))
        for name in ("astronaut.png", "astronaut_source.png")
    )
    after = server.image(outputs["4"])
    face = np.s_[85:145, 190:260]
    errors = [cv2.norm(image[face], source[face]) for image in (matched, before)]
    assert errors[0] < errors[1] and (matched != after).any()
    changed = (after != before).any(-1)
    rows, columns = np.nonzero(changed)
    assert 0.01 < changed.mean() < 0.2  # around the face, at (224, 117)
    assert rows.max() < 240 and 100 < columns.min() and columns.max() < 350

    from musetalk_enhance.jobs import ImageSettings
    from musetalk_enhance.jobs.model_loader import load_image_models

    shutil.copytree(server.folder / "cache", own_cache, dirs_exist_ok=True)
    models = load_image_models(ImageSettings(model="lite"))
    (expected,) = models.restorer.restore([before])
    models.close()
    assert np.array_equal(after, expected.bgr)

    page, summary = outputs["5"]["text"]
    assert Path(page).is_file() and "Sharper than before" in summary
    assert outputs["6"]["text"] == [summary]


def test_progress_and_interrupt(server, workflow):
    sync = pytest.importorskip("websockets.sync.client")
    workflow["7"] = {
        "class_type": "RepeatImageBatch",
        "inputs": {"image": ["1", 0], "amount": 64},
    }
    faces = ours(workflow, "RestoreFaces")
    faces |= {"images": ["7", 0], "mode": "video"}
    url = f"ws://127.0.0.1:{server.port}/ws?clientId=watcher"
    with sync.connect(url, max_size=None) as connection:
        prompt = server.post(workflow, "watcher")
        values = []
        while True:
            message = connection.recv(timeout=RUN_S)
            message = json.loads(message) if isinstance(message, str) else {}
            data = message.get("data", {})
            if message.get("type") == "progress" and data["node"] == "3":
                values.append((data["value"], data["max"]))
                if len(values) == 2:
                    server.call("/interrupt", {})
            if message.get("type") in ("execution_interrupted", "execution_success"):
                break
    assert message["type"] == "execution_interrupted" and data["node_id"] == "3"
    assert values[:2] == [(8, 64), (16, 64)] and len(values) < 7
    assert not server.wait(prompt)["outputs"]
    outputs = server.run(json.loads(WORKFLOW.read_text()))  # the next prompt is not interrupted
    assert outputs["4"]["images"]


def test_a_talking_head(server, workflow):
    restorer = ours(workflow, "LoadRestorer")
    inputs = {"restorer": ["2", 0], "images": ["8", 0], "strength": 1.0}
    prompt = {
        "1": workflow["1"],
        "2": {"class_type": "MuseTalkEnhanceLoadRestorer", "inputs": restorer},
        "7": {
            "class_type": "ImageCrop",
            "inputs": {"image": ["1", 0], "width": 160, "height": 160, "x": 144, "y": 40},
        },
        "8": {"class_type": "RepeatImageBatch", "inputs": {"image": ["7", 0], "amount": 10}},
        "9": {"class_type": "MuseTalkEnhanceRestoreTalkingHead", "inputs": inputs},
        "4": {
            "class_type": "SaveImage",
            "inputs": {"images": ["9", 0], "filename_prefix": "crops"},
        },
    }
    outputs = server.run(prompt)
    assert len(outputs["4"]["images"]) == 10
    before = cv2.imread(str(server.folder / "input" / "astronaut.png"))[40:200, 144:304]
    after = server.image(outputs["4"])
    assert after.shape == before.shape and (after != before).mean() > 0.5

    source = {"restorer": ["2", 0], "source": ["7", 0]}
    prompt["5"] = {"class_type": "MuseTalkEnhanceMatchToSource", "inputs": source}
    inputs["restorer"] = ["5", 0]
    matched = server.image(server.run(prompt)["4"])
    assert (matched != before).any() and (matched != after).any()

    prompt["9"]["inputs"]["align"] = "sideways"
    with pytest.raises(urllib.error.HTTPError) as error:  # ComfyUI checks the lists itself
        server.post(prompt)
    with error.value as refusal:
        assert refusal.code == 400
    prompt["9"]["inputs"]["align"] = "none"
    restorer["fidelity"] = 0.2
    history = server.wait(server.post(prompt))
    (failure,) = [data for kind, data in history["status"]["messages"] if kind == "execution_error"]
    assert failure["node_type"] == "MuseTalkEnhanceLoadRestorer"
    assert "only codeformer has it" in failure["exception_message"]
