"""What covers a face is found by a graph or told by the host, and always means the same
afterwards."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from musetalk_enhance.errors import (
    CheckpointError,
    ConfigError,
    CorruptWeightError,
    FrameError,
    MissingDependencyError,
    MissingWeightError,
    RestorerError,
)
from musetalk_enhance.faces.occlusion import Occluder, feathered, host_mask

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
FLOAT, DOUBLE = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE


def save(
    path,
    nodes,
    shape_in,
    shape_out,
    constants=(),
    kind=FLOAT,
    name_in="in_face:0",
    name_out="out_mask:0",
):
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [info(name_in, kind, shape_in)],
        [info(name_out, kind, shape_out)],
        list(constants),
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(model, path)
    return path


def constant(name, values):
    return onnx.numpy_helper.from_array(np.asarray(values), name)


@pytest.fixture
def blue_is_seen(tmp_path):
    """blue_is_seen(batch, channels_last, size): a graph whose mask is the first channel it is given
    (blue of BGR)."""

    def make(batch="N", channels_last=True, size=256):
        shape = [batch, size, size, 3] if channels_last else [batch, 3, size, size]
        out = [batch, size, size, 1] if channels_last else [batch, 1, size, size]
        axis = 3 if channels_last else 1
        node = onnx.helper.make_node("Gather", ["in_face:0", "which"], ["out_mask:0"], axis=axis)
        return save(tmp_path / "xseg.onnx", [node], shape, out, [constant("which", np.array([0]))])

    return make


def half_covered(count=2, size_hw=(256, 256)):
    """RGB faces: blue left half, red right half."""
    faces = torch.zeros(count, 3, *size_hw)
    faces[:, 2, :, : size_hw[1] // 2] = 1
    faces[:, 0, :, size_hw[1] // 2 :] = 1
    return faces


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("batch", ["N", 1, 2, 4])
def test_the_graph_sees_bgr_in_its_own_layout_and_batch(blue_is_seen, batch, channels_last):
    occluder = Occluder(blue_is_seen(batch, channels_last))
    assert occluder.channels_last == channels_last and occluder.size_hw == (256, 256)
    seen = occluder.mask(half_covered(3))
    assert seen.shape == (3, 1, 256, 256) and seen.dtype == torch.float32
    assert (seen[..., :120] == 1).all() and (seen[..., 128:] == 0).all()
    assert torch.equal(seen[0], seen[2])


@pytest.mark.parametrize("size_hw", [(512, 512), (96, 96), (300, 200)])
def test_faces_of_any_size(blue_is_seen, size_hw):
    seen = Occluder(blue_is_seen()).mask(half_covered(1, size_hw))
    assert seen.shape == (1, 1, *size_hw)
    half = size_hw[1] // 2
    assert seen[..., : half - 12].min() > 0.95 and seen[..., half + 2 :].max() < 0.05


def test_a_graph_that_leaves_its_size_open_gets_256(blue_is_seen):
    assert Occluder(blue_is_seen(size="side")).size_hw == (256, 256)


def test_each_face_has_its_own_mask(blue_is_seen):
    faces = half_covered(20)
    faces[1::2] = faces[1::2].flip(3)
    seen = Occluder(blue_is_seen()).mask(faces)
    assert torch.equal(seen[0], seen[18]) and torch.allclose(seen[1], seen[0].flip(2), atol=1e-4)


def test_it_is_feathered_only_where_the_face_is_seen(blue_is_seen):
    row = Occluder(blue_is_seen()).mask(half_covered(1))[0, 0, 100]
    assert (row[128:] == 0).all() and (row.diff() <= 0).all() and row.diff().min() > -0.35
    assert ((row > 0) & (row < 1)).sum() >= 4


def test_values_outside_0_to_1_are_cut(tmp_path):
    nodes = [
        onnx.helper.make_node("Gather", ["in_face:0", "which"], ["one"], axis=3),
        onnx.helper.make_node("Mul", ["one", "five"], ["more"]),
        onnx.helper.make_node("Sub", ["more", "two"], ["out_mask:0"]),
    ]
    constants = [
        constant("which", [0]),
        constant("five", np.float32(5)),
        constant("two", np.float32(2)),
    ]
    path = save(tmp_path / "x.onnx", nodes, ["N", 256, 256, 3], ["N", 256, 256, 1], constants)
    seen = Occluder(path).mask(half_covered())
    assert seen.min() == 0 and seen.max() == 1


def test_a_mask_without_the_last_axis(tmp_path):
    nodes = [
        onnx.helper.make_node("ReduceMax", ["in_face:0"], ["out_mask:0"], axes=[3], keepdims=0)
    ]
    path = save(tmp_path / "x.onnx", nodes, ["N", 256, 256, 3], ["N", 256, 256])
    assert (Occluder(path).mask(half_covered()) == 1).all()


def test_no_faces_and_an_unchanged_input(blue_is_seen):
    occluder = Occluder(blue_is_seen())
    assert occluder.mask(torch.zeros(0, 3, 64, 64)).shape == (0, 1, 64, 64)
    faces = half_covered()
    before = faces.clone()
    occluder.mask(faces)
    assert torch.equal(faces, before)
    for bad in (
        torch.zeros(3, 64, 64),
        torch.zeros(1, 1, 64, 64),
        torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
    ):
        with pytest.raises(FrameError):
            occluder.mask(bad)


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        (["N", 256, 256, 4], FLOAT),
        (["N", 256, 3], FLOAT),
        (["N", 3, 256, 3], FLOAT),
        (["N", 256, 256, 3], DOUBLE),
    ],
)
def test_another_input_is_refused(tmp_path, shape, kind):
    node = onnx.helper.make_node("Identity", ["in_face:0"], ["out_mask:0"])
    with pytest.raises(CheckpointError, match="in_face:0"):
        Occluder(save(tmp_path / "x.onnx", [node], shape, shape, kind=kind))


def test_an_output_of_three_channels_is_refused(tmp_path):
    node = onnx.helper.make_node("Identity", ["in_face:0"], ["out_mask:0"])
    with pytest.raises(CheckpointError, match="256, 256, 3"):
        Occluder(save(tmp_path / "x.onnx", [node], ["N", 256, 256, 3], ["N", 256, 256, 3]))


def test_nan_from_the_graph_is_an_error(tmp_path):
    nodes = [
        onnx.helper.make_node("Gather", ["in_face:0", "which"], ["one"], axis=3),
        onnx.helper.make_node("Sqrt", ["one"], ["root"]),
        onnx.helper.make_node("Div", ["root", "root"], ["out_mask:0"]),
    ]
    path = save(
        tmp_path / "x.onnx",
        nodes,
        ["N", 256, 256, 3],
        ["N", 256, 256, 1],
        [constant("which", np.array([0]))],
    )
    occluder = Occluder(path)
    with pytest.raises(RestorerError, match="NaN"):
        occluder.mask(half_covered())


def test_files_that_are_none(tmp_path):
    with pytest.raises(MissingWeightError):
        Occluder(tmp_path / "none.onnx")
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(CorruptWeightError):
        Occluder(tmp_path / "empty.onnx")
    (tmp_path / "text.onnx").write_text("no graph at all")
    with pytest.raises(CorruptWeightError, match="cannot be read as an ONNX graph"):
        Occluder(tmp_path / "text.onnx")
    (tmp_path / "x.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(CheckpointError, match=r"\.onnx"):
        Occluder(tmp_path / "x.safetensors")


def test_without_onnxruntime(blue_is_seen, monkeypatch):
    path = blue_is_seen()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"musetalk_enhance\[onnx\]"):
        Occluder(path)


def test_a_provider_that_is_not_there(blue_is_seen):
    import onnxruntime

    with pytest.raises(ConfigError, match="cpu | cuda"):
        Occluder(blue_is_seen(), provider="none")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(RestorerError, match="provider cuda is not part of"):
            Occluder(blue_is_seen(), provider="cuda")


@pytest.mark.parametrize("starts", [True, False])
def test_it_runs_where_the_network_runs(blue_is_seen, monkeypatch, caplog, starts):
    import onnxruntime

    chains, create = [], onnxruntime.InferenceSession
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def session(path, options, providers, **_):
        chains.append(providers)
        real = create(path, options, ["CPUExecutionProvider"])
        if len(providers) == 2 and starts:
            real.get_providers = lambda: names
        return real

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    Occluder(blue_is_seen(), provider="auto", device=torch.device("cuda:1"))
    assert [chains[0][0][0], chains[0][1]] == names and chains[0][0][1]["device_id"] == "1"
    assert ("falling back to the CPU" in caplog.text) == (not starts) == (len(chains) == 2)
    Occluder(blue_is_seen(), provider="auto", device=torch.device("cpu"))
    assert chains[-1] == ["CPUExecutionProvider"]


COVERED = np.zeros((40, 60), bool)
COVERED[10:20, 30:50] = True
FORMS = {
    "bool": COVERED,
    "uint8 255": COVERED.astype(np.uint8) * 255,
    "uint8 1": COVERED.astype(np.uint8),
    "float32": COVERED.astype(np.float32),
    "float64": COVERED.astype(np.float64) * 0.5,
    "float16": COVERED.astype(np.float16),
    "one each": np.stack([COVERED] * 3),
    "last axis": np.stack([COVERED] * 3)[..., None],
    "view": np.ascontiguousarray(COVERED[:, ::-1])[:, ::-1],
    "tensor": torch.from_numpy(COVERED),
    "tensor bytes": torch.from_numpy(COVERED.astype(np.uint8) * 7),
    "tensor half": torch.from_numpy(COVERED).half(),
    "tensor (N, 1, H, W)": torch.from_numpy(COVERED).float().expand(3, 1, -1, -1),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_hosts_mask_means_the_same(form):
    mask = FORMS[form]
    kept = mask.clone() if isinstance(mask, torch.Tensor) else mask.copy()
    seen = host_mask(mask, 3, (40, 60), feather=0)
    assert seen.shape == (3, 1, 40, 60) and seen.dtype == torch.float32
    assert all(np.array_equal(one[0].numpy(), 1 - COVERED) for one in seen)
    assert (mask == kept).all()


def test_nothing_that_is_covered_is_ever_painted():
    thin = np.zeros((256, 256), np.uint8)
    thin[:, 100] = thin[50, 60] = 1
    seen = host_mask(thin, 1, (256, 256))
    assert (seen[0, 0][torch.from_numpy(thin) > 0] == 0).all()
    assert seen[0, 0, 200, 200] == 1


def test_soft_masks_are_shares():
    shares = np.full((20, 20), 51, np.uint8)
    assert torch.allclose(host_mask(shares, 1, (20, 20), soft=True, feather=0), torch.tensor(0.8))
    assert torch.allclose(
        host_mask(shares / 255.0, 1, (20, 20), soft=True, feather=0), torch.tensor(0.8)
    )
    assert (host_mask(shares, 1, (20, 20), feather=0) == 0).all()


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (np.zeros((40, 61), bool), "shape"),
        (np.zeros((2, 40, 60), bool), "shape"),
        (np.zeros((3, 40, 60, 3), bool), "shape"),
        (np.zeros((40, 60), np.int64), "dtype"),
        (torch.zeros(40, 60, dtype=torch.int32), "dtype"),
        ([[0]], "dtype"),
        (np.full((40, 60), np.nan), "nonfinite"),
        (np.full((40, 60), 255.0), "range"),
        (np.full((40, 60), -0.5, np.float32), "range"),
    ],
)
def test_masks_that_are_none(mask, reason):
    with pytest.raises(FrameError) as caught:
        host_mask(mask, 3, (40, 60))
    assert caught.value.reason == reason


def test_the_feather():
    seen = torch.ones(1, 1, 200, 200)
    assert torch.equal(feathered(seen), seen)
    seen[..., 100:] = 0
    soft = feathered(seen, 0.02)
    assert (soft <= seen).all() and (soft[..., :80] == 1).all() and (soft.diff(dim=3) <= 0).all()
    assert soft[0, 0, 0, 99] < 0.2
    assert torch.equal(feathered(seen, 0), seen)
