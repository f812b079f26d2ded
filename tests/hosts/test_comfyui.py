"""The nodes as ComfyUI calls them, with imitations of the host's modules."""

from __future__ import annotations

import importlib.util
import inspect
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from musetalk_enhance.errors import ConfigError, FrameError
from musetalk_enhance.hosts.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, nodes
from tests.conftest import ROOT
from tests.jobs.conftest import Middle, network, picture  # noqa: F401

FOLDER = ROOT / "musetalk_enhance" / "hosts" / "comfyui"
DOCS = ROOT / "docs" / "hosts"


class InterruptProcessingException(Exception):
    pass


@pytest.fixture
def comfy(monkeypatch, tmp_path):
    """ComfyUI's modules: ``updates`` of the progress bar, ``interrupt_at`` a check, ``output``."""
    state = SimpleNamespace(updates=[], total=None, checks=0, interrupt_at=None)
    state.models, state.output = tmp_path / "models", tmp_path / "output"
    state.output.mkdir()

    class ProgressBar:
        def __init__(self, total):
            state.total = total

        def update(self, value):
            state.updates.append(value)

    def check():
        if state.checks == state.interrupt_at:
            raise InterruptProcessingException
        state.checks += 1

    def save_path(prefix, folder):
        return folder, prefix, 1 + len(list(Path(folder).iterdir())), "", prefix

    state.device = torch.device("cpu")
    names = {
        "comfy": {},
        "comfy.utils": {"ProgressBar": ProgressBar},
        "comfy.model_management": {
            "throw_exception_if_processing_interrupted": check,
            "get_torch_device": lambda: state.device,
        },
        "folder_paths": {
            "models_dir": str(state.models),
            "get_output_directory": lambda: str(state.output),
            "get_save_image_path": save_path,
        },
    }
    for name, members in names.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    return state


@pytest.fixture
def restorer(comfy, network, monkeypatch):  # noqa: F811
    """The output of Load Restorer, around a network that adds fine checks."""
    squares = np.kron(np.indices((32, 32)).sum(0) % 2, np.ones((2, 2))) - 0.5
    network.function = lambda faces: faces + torch.from_numpy(0.2 * squares).float()
    monkeypatch.setattr(nodes, "load", network.load)
    return nodes.LoadRestorer().load("lite")[0]


def batch(count: int = 3, channels: int = 3) -> torch.Tensor:
    stack = np.stack([picture(40 + index % 7, (128, 96)) for index in range(count)])
    images = torch.from_numpy(stack).float() / 255 + 0.0003
    return torch.cat([images, torch.full((*images.shape[:3], channels - 3), 0.25)], -1)


def loaded_module(path: Path, name: str) -> ModuleType:
    """The way of ``nodes.load_custom_node``: by path, under a name made of it."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


def test_the_loader_takes_a_linked_folder_and_a_file_of_one_line(tmp_path):
    (tmp_path / "linked").symlink_to(FOLDER, target_is_directory=True)
    line = next(line for line in (DOCS / "comfyui.md").read_text().splitlines() if "echo" in line)
    (tmp_path / "file.py").write_text(line.split("'")[1])
    for path in (tmp_path / "linked" / "__init__.py", tmp_path / "file.py"):
        module = loaded_module(path, str(path).replace(".", "_x_"))
        assert module.NODE_CLASS_MAPPINGS == NODE_CLASS_MAPPINGS
        assert module.NODE_DISPLAY_NAME_MAPPINGS == NODE_DISPLAY_NAME_MAPPINGS


def test_the_package_imports_without_comfyui():
    code = (
        "import sys, musetalk_enhance.hosts.comfyui as c; "
        "c.NODE_CLASS_MAPPINGS['MuseTalkEnhanceLoadRestorer'].INPUT_TYPES(); "
        "print([n for n in sys.modules if n.split('.')[0] in ('comfy', 'folder_paths')])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("name", NODE_CLASS_MAPPINGS)
def test_a_node_declares_what_its_function_takes(name):
    node = NODE_CLASS_MAPPINGS[name]
    inputs = node.INPUT_TYPES()
    optional = inputs.get("optional", {})
    parameters = dict(inspect.signature(getattr(node(), node.FUNCTION)).parameters)
    assert list(parameters) == [*inputs["required"], *optional]
    assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
    assert name in NODE_DISPLAY_NAME_MAPPINGS and node.DESCRIPTION and node.CATEGORY
    for key, (kind, *rest) in optional.items():
        default = parameters[key].default
        assert default is not inspect.Parameter.empty
        if isinstance(kind, list):
            assert default == kind[0]
        elif rest and "default" in rest[0]:
            assert default == rest[0]["default"]


@pytest.mark.parametrize("name", ["comfyui_workflow.json", "comfyui_workflow_api.json"])
def test_the_workflows_of_the_documentation_use_nodes_that_exist(name):
    workflow = json.loads((DOCS / name).read_text())
    if "nodes" in workflow:
        pairs = [
            (node["type"], [slot["name"] for slot in node["inputs"]]) for node in workflow["nodes"]
        ]
    else:
        pairs = [(node["class_type"], list(node["inputs"])) for node in workflow.values()]
    ours = [(kind, names) for kind, names in pairs if kind.startswith("MuseTalkEnhance")]
    assert len({kind for kind, _ in ours}) >= 3
    for kind, names in ours:
        inputs = NODE_CLASS_MAPPINGS[kind].INPUT_TYPES()
        assert set(inputs["required"]) <= set(names)
        assert set(names) <= {*inputs["required"], *inputs.get("optional", ())}


def test_load_restorer_lists_and_opens_files_of_the_model_folder(comfy, network, monkeypatch):  # noqa: F811
    names = nodes.LoadRestorer.INPUT_TYPES()["required"]["model"][0]
    assert names[0] == "lite" and "gfpgan-1.4" in names
    (comfy.models / "facerestore_models").mkdir(parents=True)
    for name in ("mine.pth", "readme.txt"):
        (comfy.models / "facerestore_models" / name).write_bytes(b"")
    assert nodes.LoadRestorer.INPUT_TYPES()["required"]["model"][0] == [*names, "mine.pth"]
    settings = []
    monkeypatch.setattr(nodes, "load", lambda given: settings.append(given))
    nodes.LoadRestorer().load("mine.pth", region="lower", fidelity=0.2, trust_unpinned=True)
    assert settings[0].model == str(comfy.models / "facerestore_models" / "mine.pth")
    assert (settings[0].region, settings[0].fidelity) == ("lower", 0.2)
    assert settings[0].trust_unpinned and settings[0].download


def test_load_restorer_uses_the_device_of_comfyui(comfy, monkeypatch):
    devices = []
    monkeypatch.setattr(nodes, "load", lambda settings: devices.append(settings.device))
    for device in ("cuda:1", "xpu:0", "cpu"):
        comfy.device = torch.device(device)
        nodes.LoadRestorer().load("lite")
    nodes.LoadRestorer().load("lite", device="cpu")
    assert devices == ["cuda:1", "cpu", "cpu", "cpu"]


def test_an_option_that_the_model_lacks_is_an_error(comfy):
    with pytest.raises(ConfigError, match="fidelity"):
        nodes.LoadRestorer().load("lite", fidelity=0.2)


@pytest.mark.parametrize("mode", ["images", "video"])
@pytest.mark.parametrize("channels", [3, 4])
def test_restore_faces(restorer, comfy, mode, channels):
    images = batch(10, channels)
    before = images.clone()
    off = {"guard": "off", "sharpness_gate": "off"}
    result, mask, notes = nodes.RestoreFaces().restore(restorer, images, mode, 1.0, **off)
    assert torch.equal(images, before) and result.shape == images.shape
    assert result.dtype == torch.float32 and mask.shape == images.shape[:3]
    assert torch.equal(mask.bool(), (result != images).any(-1))
    assert mask[:, 60:68, 44:52].mean() > 0.9 and not mask[:, :8].any()
    if channels == 4:
        assert torch.equal(result[..., 3], images[..., 3])
    assert comfy.total == 10 and comfy.updates == [8, 2] and len(notes) == 10


def test_restore_faces_honors_its_options(restorer, network):  # noqa: F811
    node, images = nodes.RestoreFaces(), batch(1)
    full = node.restore(restorer, images, "images", 1.0)[0]
    half = node.restore(restorer, images, "images", 0.5)[0]
    share = (half - images).abs().sum() / (full - images).abs().sum()
    assert 0.45 < share < 0.55
    assert torch.equal(node.restore(restorer, images, "images", 0.0)[0], images)
    assert torch.equal(node.restore(restorer, images, "video", 1.0, min_face=60)[0], images)
    assert network.opened == 1  # of all nodes one network


@pytest.mark.parametrize("mode", ["images", "video"])
def test_an_interrupt_stops_between_batches(restorer, comfy, network, mode):  # noqa: F811
    comfy.interrupt_at = 1
    with pytest.raises(InterruptProcessingException):
        nodes.RestoreFaces().restore(restorer, batch(24), mode, 1.0)
    assert comfy.updates == [8]
    assert network.faces == (8 if mode == "images" else 0), "a video waits for later frames"
    with pytest.raises(InterruptProcessingException):
        nodes.RestoreTalkingHead().restore(restorer, batch(24), 1.0)


def test_restore_talking_head_is_one_stream_over_the_batch(restorer, comfy, network):  # noqa: F811
    images = batch(20)
    crops = images[:, 16:112]
    result, notes = nodes.RestoreTalkingHead().restore(restorer, crops, 1.0, guard="off")
    settings = {"color": "rgb", "value_range": "0..1", "sharpness_gate": "auto", "guard": False}
    settings["color_match"] = "auto"
    enhancer = network.load(restorer.settings).enhancer(**settings)
    assert np.array_equal(result.numpy(), enhancer(crops.numpy())) and not torch.equal(
        result, crops
    )
    again = nodes.RestoreTalkingHead().restore(restorer, crops, 1.0, guard="off")[0]
    assert torch.equal(result, again)  # a new stream each time
    assert len(notes) == 20 and comfy.updates == [8, 8, 4] * 2


def test_restore_talking_head_honors_its_options(restorer):
    node, images = nodes.RestoreTalkingHead(), batch(2, 4)[:, 16:112]
    off = {"guard": "off", "sharpness_gate": "off"}
    full = node.restore(restorer, images, 1.0, **off)[0]
    assert full.shape == (2, 96, 96, 3) and (full - images[..., :3]).abs().mean() > 0.02
    assert node.restore(restorer, images, 1.0, output_size="native")[0].shape == (2, 64, 64, 3)
    cover = torch.zeros(1, 48, 48)
    cover[:, :24] = 1
    covered = node.restore(restorer, images, 1.0, occlusion=cover, **off)[0]
    assert torch.equal(covered[:, :40], images[:, :40, :, :3])
    assert torch.equal(covered[:, -8:], full[:, -8:])
    assert torch.equal(node.restore(restorer, images, 0.0)[0], images[..., :3])
    with pytest.raises(ConfigError, match="align"):
        node.restore(restorer, images, 1.0, align="sideways")


class Recorder:
    """In place of `make_enhancer`: records options and the sources of each call."""

    def __init__(self, monkeypatch):
        self.matches, self.sources, original = [], [], nodes.make_enhancer

        def make_enhancer(*args, **changes):
            enhancer = original(*args, **changes)
            self.matches.append(enhancer.settings.match)
            restore = enhancer.engine.restore

            def recorded(requests):
                self.sources += [request.hints[4] for request in requests]
                return restore(requests)

            monkeypatch.setattr(enhancer.engine, "restore", recorded)
            return enhancer

        monkeypatch.setattr(nodes, "make_enhancer", make_enhancer)


@pytest.mark.parametrize("count", [1, 10])
def test_match_to_source_of_crops(restorer, monkeypatch, count):
    record, crops = Recorder(monkeypatch), batch(10)[:, 16:112]
    source = batch(10)[:count] * 0.9  # of another size
    (matched,) = nodes.MatchToSource().match(restorer, source)
    result, _ = nodes.RestoreTalkingHead().restore(matched, crops, 1.0, guard="off")
    plain, _ = nodes.RestoreTalkingHead().restore(restorer, crops, 1.0, guard="off")
    assert record.matches == ["source", "none"] and not torch.equal(result, plain)
    assert record.sources[2:] == [None, None]
    expected = source.expand(10, -1, -1, -1)
    assert np.array_equal(np.concatenate(record.sources[:2]), expected)


class Blinking(Middle):
    """Blind from the eighth call on, for four."""

    def __init__(self) -> None:
        self.calls = 0

    def detect(self, picture_bgr):
        self.calls += 1
        return [] if 8 <= self.calls < 12 else super().detect(picture_bgr)


def test_a_gap_over_two_batches_is_filled(restorer, comfy, monkeypatch):
    monkeypatch.setattr(nodes, "load_detector", lambda *_: Blinking())
    images = batch(1).repeat(20, 1, 1, 1)
    off = {"guard": "off", "sharpness_gate": "off"}
    result, mask, notes = nodes.RestoreFaces().restore(restorer, images, "video", 1.0, **off)
    assert mask[:, 60:68, 44:52].mean((1, 2)).min() > 0.9 and len(notes) == 20
    assert comfy.total == 20 and comfy.updates == [8, 8, 4]


@pytest.mark.parametrize("mode", ["images", "video"])
@pytest.mark.parametrize("same", [True, False])
def test_only_the_people_on_the_photos(restorer, monkeypatch, mode, same):
    class Recognizer:
        """Tells the photo, which is dim, from the images."""

        def __init__(self, download):
            assert download is restorer.settings.download

        def embed(self, image_bgr, face):
            is_image = image_bgr[64, 48].max() > 30
            return np.array((1, 0) if same or not is_image else (0, 1), np.float32)

    monkeypatch.setattr(nodes, "SFace", Recognizer)
    images = batch(10)
    photo = images[:1] * 0.3
    result, _, notes = nodes.RestoreFaces().restore(
        restorer, images, mode, 1.0, guard="off", sharpness_gate="off", reference=photo
    )
    assert torch.equal(result, images) is not same
    reasons = {note.get("left alone") or note.get("passthrough") for note in notes}
    assert reasons == ({None} if same else {"not selected"})


def test_match_to_source_of_a_video(restorer, monkeypatch):
    record, images = Recorder(monkeypatch), batch(10)
    (matched,) = nodes.MatchToSource().match(restorer, 1 - images)
    nodes.RestoreFaces().restore(matched, images, "video", 1.0)
    assert record.matches == ["source"] and len(record.sources) == 2
    crops = np.concatenate([np.stack(sources) for sources in record.sources])
    assert crops.shape == (10, 512, 512, 3) and crops.dtype == np.uint8
    center = 255 * (1 - images[:, 64, 48].numpy())  # of the face, in the middle of its crop
    assert np.abs(crops[:, 256, 256] - center).max() < 4


def test_a_source_that_does_not_fit_is_an_error(restorer):
    for source, mode in ((batch(3), "images"), (batch(2), "video"), (batch(3)[:, :64], "video")):
        (matched,) = nodes.MatchToSource().match(restorer, source)
        with pytest.raises(FrameError):
            nodes.RestoreFaces().restore(matched, batch(3), mode, 1.0)
    with pytest.raises(FrameError):
        nodes.MatchToSource().match(restorer, batch(1)[0])


def test_decisions_reach_the_enhancer(restorer, monkeypatch):
    settings = []
    original = nodes.make_enhancer

    def make_enhancer(*args, **changes):
        enhancer = original(*args, **changes)
        settings.append(enhancer.settings)
        return enhancer

    monkeypatch.setattr(nodes, "make_enhancer", make_enhancer)
    crops, faces = nodes.RestoreTalkingHead(), nodes.RestoreFaces()
    crops.restore(restorer, batch(1), 1.0)
    crops.restore(restorer, batch(1), 1.0, stability=0.5, guard="on", sharpness_gate="off")
    for mode in ("images", "video"):
        faces.restore(restorer, batch(1), mode, 1.0)
        faces.restore(restorer, batch(1), mode, 1.0, color_match="off", guard="on", stability=0.5)
    names = ("stability", "color_match", "guard", "sharpness_gate")
    assert [tuple(getattr(each, name) for name in names) for each in settings] == [
        (1, "auto", "auto", "auto"),
        (0.5, "auto", True, False),
        (0, "auto", False, False),
        (0, False, True, False),
        (1, "auto", "auto", True),
        (0.5, False, True, True),
    ]


@pytest.mark.parametrize(
    "call",
    [
        lambda restorer: nodes.RestoreFaces().restore(restorer, batch(1)[..., :1], "images", 1.0),
        lambda restorer: nodes.RestoreFaces().restore(restorer, batch(1)[:0], "video", 1.0),
        lambda restorer: nodes.RestoreTalkingHead().restore(restorer, batch(1)[0], 1.0),
        lambda restorer: nodes.RestoreTalkingHead().restore(
            restorer, batch(3), 1.0, torch.zeros(2, 8, 8)
        ),
    ],
)
def test_images_and_masks_of_another_shape_are_errors(restorer, call):
    with pytest.raises(FrameError):
        call(restorer)


def test_report_measures_the_face(restorer, comfy):
    pytest.importorskip("jinja2")
    images = batch(3)
    result, _, notes = nodes.RestoreFaces().restore(restorer, images, "video", 1.0)
    answer = nodes.Report().write(images, result, 25.0, "report", notes)
    path, summary = answer["result"]
    assert Path(path) == comfy.output / "report_00001_" / "report.html"
    assert answer["ui"]["text"] == [path, summary] and "Color kept" in summary
    report = json.loads(Path(path).with_name("report.json").read_text())
    whole = nodes.Report().write(images, result, 25.0, "report")
    assert Path(whole["result"][0]).parent.name == "report_00002_"
    assert json.loads(Path(whole["result"][0]).with_name("report.json").read_text()) != report


def test_report_needs_pairs(comfy):
    with pytest.raises(FrameError, match="3 images and 2 restored"):
        nodes.Report().write(batch(3), batch(2), 25.0, "report")
