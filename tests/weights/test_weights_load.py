"""Opening files: what is trusted, what is refused, and that no pickle is ever executed."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from musetalk_enhance.errors import (
    CheckpointError,
    CorruptWeightError,
    MissingWeightError,
    UntrustedWeightError,
)
from musetalk_enhance.weights import Weight, WeightEntry, open_file, require
from musetalk_enhance.weights.onnx_graph import read_graph


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "conv.bias": torch.zeros(4, dtype=torch.float16),
        "steps": torch.tensor(7),
    }


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(actual) == list(expected)
    for key, value in expected.items():
        assert actual[key].dtype == value.dtype
        assert actual[key].device.type == "cpu"
        assert torch.equal(actual[key], value)


def saved(path: Path, tree: Any, **options: Any) -> Path:
    torch.save(tree, path, **options)
    return path


def opened(path: Path) -> Weight:
    return open_file(path, trust_unpinned=True)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".PTH"])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_old_and_new(suffix: str, zipped: bool, tmp_path: Path) -> None:
    path = saved(tmp_path / f"net{suffix}", tensors(), _use_new_zipfile_serialization=zipped)
    assert_same(opened(path).state_dict(), tensors())


def test_safetensors_needs_no_word_of_trust(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file(tensors(), path)
    weight = open_file(str(path))
    assert weight.entry is None
    assert weight.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    actual = weight.state_dict()
    assert_same({key: actual[key] for key in tensors()}, tensors())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner, other: inner,
        lambda inner, other: {"params": other, "params_ema": inner},
        lambda inner, other: {"params": inner},
        lambda inner, other: {"state_dict": inner, "epoch": 3, "name": "x"},
        lambda inner, other: {"params_ema": inner, "state_dict": other},
        lambda inner, other: collections.OrderedDict(
            (f"module.{key}", value) for key, value in inner.items()
        ),
        lambda inner, other: {
            "params_ema": {f"module.{key}": value for key, value in inner.items()}
        },
    ],
    ids=["bare", "params_ema", "params", "state_dict", "ema before all", "module.", "both"],
)
def test_wrappers_are_taken_off(wrap: Callable[..., Any], tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pth", wrap(tensors(), {"other": torch.zeros(1)}))
    assert_same(opened(path).state_dict(), tensors())


def test_a_prefix_that_only_some_names_have_stays(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pth", {"module.a": torch.zeros(1), "b": torch.zeros(1)})
    assert list(opened(path).state_dict()) == ["module.a", "b"]


class Malicious:
    """What an attacker puts into a checkpoint: unpickling it would create a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt"])
@pytest.mark.parametrize("kind", ["zip", "legacy", "bare pickle", "hidden in a wrapper"])
def test_a_malicious_pickle_is_not_executed(kind: str, suffix: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    path = tmp_path / f"net{suffix}"
    tree: Any = {"a": torch.zeros(1), "evil": Malicious(trace)}
    if kind == "bare pickle":
        path.write_bytes(pickle.dumps(Malicious(trace)))
    elif kind == "hidden in a wrapper":
        saved(path, {"params_ema": tree})
    else:
        saved(path, tree, _use_new_zipfile_serialization=kind == "zip")
    weight = opened(path)
    with pytest.raises(
        CheckpointError, match=r"more than tensors, which is not executed.*mkdir.*safetensors"
    ):
        weight.state_dict()
    assert not trace.exists()
    # what torch says when it has run it
    with contextlib.suppress(RuntimeError, pickle.UnpicklingError):
        torch.load(path, weights_only=False)
    assert trace.exists(), "the trap is real: an unguarded torch.load runs it"


def test_a_module_instead_of_a_state_dict_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pth", torch.nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match="forbidden.*Save only its state dict"):
        opened(path).state_dict()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_torchscript_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"net{suffix}"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path)
    with pytest.raises(CheckpointError, match="TorchScript archive"):
        opened(path).state_dict()


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_checkpoint(share: float, zipped: bool, tmp_path: Path) -> None:
    path = saved(
        tmp_path / "net.pth", {"a": torch.randn(100, 100)}, _use_new_zipfile_serialization=zipped
    )
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(
        CorruptWeightError, match=r"net.pth: cannot be read as a torch checkpoint .*truncated"
    ):
        opened(path).state_dict()


def test_a_truncated_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file(tensors(), path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(
        CorruptWeightError, match=r"cannot be read as a .safetensors file .*truncated"
    ):
        open_file(path).state_dict()


def test_other_files_under_a_weights_name(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(b"hello, this is a text" * 50)
    with pytest.raises(CorruptWeightError, match="cannot be read as a torch checkpoint"):
        opened(path).state_dict()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "a plain zip")
    with pytest.raises(CorruptWeightError, match="cannot be read as a torch checkpoint"):
        opened(path).state_dict()
    shutil.copy(path, tmp_path / "net.safetensors")
    with pytest.raises(CorruptWeightError, match="cannot be read as a .safetensors file"):
        open_file(tmp_path / "net.safetensors").state_dict()


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({}, r"no tensors \(no keys\)"),
        ({"epoch": 3, "lr": 0.1}, r"no tensors \('epoch', 'lr'\)"),
        ({"params_ema": {}}, r"no tensors"),
        ([1, 2], "holds a list"),
        (torch.zeros(2), "holds a Tensor"),
    ],
)
def test_a_checkpoint_without_named_tensors(tree: Any, words: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pth", tree)
    with pytest.raises(CheckpointError, match=f"{words}.*expected a checkpoint of named tensors"):
        opened(path).state_dict()


def test_an_onnx_graph_is_opened_but_has_no_state_dict(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds an ONNX graph"):
        open_file(graph(tmp_path / "net.onnx")).state_dict()


def graph(
    path: Path, external: str | None = None, dims: tuple[int, ...] = (1,), nodes: Any = ()
) -> Path:
    """A graph with one tensor; `external` names the file that has it."""
    onnx = pytest.importorskip("onnx")
    tensor = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1], [1.0])
    tensor.dims[:] = dims
    if external is not None:
        tensor.ClearField("float_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=external)
    value = onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [1])
    proto = onnx.helper.make_graph(list(nodes), "g", [], [value], [tensor])
    path.write_bytes(onnx.helper.make_model(proto).SerializeToString())
    return path


OUTSIDE = ["../secret.bin", "/etc/hostname", "link/secret.bin", "x/" * 90 + "../" * 95]


@pytest.mark.parametrize("name", OUTSIDE)
def test_tensors_of_a_graph_outside_its_folder_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "link").symlink_to(tmp_path)
    with pytest.raises(CheckpointError, match="outside its own folder"):
        open_file(graph(tmp_path / "own" / "net.onnx", name))


@pytest.mark.parametrize("name", ["net.onnx.data", "sub/tensors.bin"])
def test_tensors_beside_a_graph_are_accepted(tmp_path: Path, name: str) -> None:
    path = graph(tmp_path / "net.onnx", name)
    with pytest.raises(CheckpointError, match="which is not there"):
        open_file(path)
    (tmp_path / "sub").mkdir()
    (tmp_path / name).write_bytes(b"1234")
    assert open_file(path).entry is None


@pytest.mark.parametrize("order", [1, -1])
def test_a_name_in_another_encoding_of_protobuf_is_read(tmp_path: Path, order: int) -> None:
    """The length of the key ``location`` in two bytes, and its value before it."""
    onnx = pytest.importorskip("onnx")
    parts = (b"\x0a\x88\x00location", b"\x12\x0d../secret.bin")
    entry = b"".join(parts[::order])
    path = graph(tmp_path / "net.onnx", "../secret.bin")
    model = onnx.load(path, load_external_data=False)
    tensor = model.graph.initializer[0]
    tensor.ClearField("external_data")
    raw = tensor.SerializeToString() + b"\x6a" + bytes([len(entry)]) + entry
    model.graph.ClearField("initializer")
    inner = model.graph.SerializeToString() + b"\x2a" + bytes([len(raw)]) + raw
    model.ClearField("graph")
    path.write_bytes(model.SerializeToString() + b"\x3a" + bytes([len(inner)]) + inner)
    with pytest.raises(CheckpointError, match="outside its own folder"):
        open_file(path)


@pytest.mark.parametrize("dims", [(2**20, 2**20), (9,), (2**62, 2**62, 2**62), (-1,)])
def test_tensors_that_are_larger_than_their_data_are_refused(
    tmp_path: Path, dims: tuple[int, ...]
) -> None:
    with pytest.raises(CheckpointError, match="a graph with tensors of"):
        open_file(graph(tmp_path / "net.onnx", dims=dims))


def test_a_huge_sparse_file_of_tensors_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "net.data").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(CheckpointError, match="at most"):
        open_file(graph(tmp_path / "net.onnx", "net.data", (2**37,)))


@pytest.mark.parametrize("operator", ["ConstantOfShape", "Expand"])
def test_a_constant_shape_that_would_fill_the_memory_is_refused(
    tmp_path: Path, operator: str
) -> None:
    onnx = pytest.importorskip("onnx")
    np = pytest.importorskip("numpy")
    shape = onnx.numpy_helper.from_array(np.array([2**20, 2**20]), "s")
    nodes = [onnx.helper.make_node("Constant", [], ["s"], value=shape)]
    inputs = ["s"] if operator == "ConstantOfShape" else ["w", "s"]
    nodes.append(onnx.helper.make_node(operator, inputs, ["y"]))
    with pytest.raises(CheckpointError, match="a graph with tensors of"):
        open_file(graph(tmp_path / "net.onnx", nodes=nodes))


@pytest.mark.parametrize(
    ("operator", "domain"),
    [("Evil", "my.library"), ("EPContext", "com.microsoft"), ("PythonOp", "com.microsoft")],
)
def test_custom_operators_are_refused(tmp_path: Path, operator: str, domain: str) -> None:
    """In a graph within an attribute, too."""
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node(operator, ["w"], ["y"], domain=domain)
    inner = onnx.helper.make_graph([node], "inner", [], [])
    nested = onnx.helper.make_node("If", ["w"], ["z"], then_branch=inner, else_branch=inner)
    for nodes in ([node], [nested]):
        with pytest.raises(CheckpointError, match=f"custom operators {domain}"):
            open_file(graph(tmp_path / "net.onnx", nodes=nodes))


def test_operators_of_onnxruntime_and_functions_in_the_file_are_accepted(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    make = onnx.helper.make_node
    nodes = [make("FusedConv", ["w"], ["y"], domain="com.microsoft")]
    nodes.append(make("Own", ["w"], ["z"], domain="mine"))
    path = graph(tmp_path / "net.onnx", nodes=nodes)
    with pytest.raises(CheckpointError, match="custom operators mine"):
        open_file(path)
    model = onnx.load(path)
    opsets = [onnx.helper.make_opsetid("", 17)]
    body = [make("Identity", ["a"], ["b"])]
    model.functions.append(onnx.helper.make_function("mine", "Own", ["a"], ["b"], body, opsets))
    path.write_bytes(model.SerializeToString())
    assert open_file(path).entry is None


def test_any_bytes_are_a_graph_or_a_typed_error(tmp_path: Path) -> None:
    """A graph that was cut off, or has bytes replaced."""
    source = graph(tmp_path / "net.onnx", nodes=[])
    data, generator = source.read_bytes(), random.Random(3)
    outcomes = set()
    for _ in range(800):
        changed = bytearray(data[: generator.randint(1, len(data))])
        for _ in range(generator.randint(0, 3)):
            changed[generator.randrange(len(changed))] = generator.randrange(256)
        source.write_bytes(changed)
        try:
            read_graph(source)
            outcomes.add("graph")
        except (CorruptWeightError, CheckpointError) as error:
            outcomes.add(type(error).__name__)
    assert outcomes == {"graph", "CorruptWeightError", "CheckpointError"}


def test_a_file_that_changes_after_the_check_is_not_opened(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pth", tensors())
    weight = opened(path)
    saved(path, {"a": torch.zeros(1)})
    with pytest.raises(CorruptWeightError, match="changed since it was checked"):
        weight.state_dict()
    path.unlink()
    with pytest.raises(CorruptWeightError, match="cannot be read"):
        weight.state_dict()


def test_torchs_own_switch_for_safe_loading_is_respected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    path = saved(tmp_path / "net.pth", tensors())
    assert_same(opened(path).state_dict(), tensors())
    evil = saved(tmp_path / "evil.pth", {"a": Malicious(tmp_path / "trace")})
    with pytest.raises((CheckpointError, CorruptWeightError)):
        opened(evil).state_dict()
    assert not (tmp_path / "trace").exists()


def test_an_unpinned_pickle_needs_a_word_of_trust(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pth", tensors())
    with pytest.raises(UntrustedWeightError, match="trust_unpinned: true") as caught:
        open_file(path)
    assert isinstance(caught.value, PermissionError)
    assert caught.value.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_published_file_is_trusted_under_any_name(
    add: Callable[..., WeightEntry], tmp_path: Path, cache_folder: Path
) -> None:
    path = saved(tmp_path / "whatever.pth", tensors())
    entry = add(data=path.read_bytes())
    weight = open_file(path)
    assert weight.entry is entry
    assert_same(weight.state_dict(), tensors())
    cache_folder.mkdir()
    shutil.copy(path, cache_folder / "tiny.pth")
    assert_same(require("tiny").state_dict(), tensors())


def test_a_shorter_file_under_a_published_name_is_called_truncated(
    add: Callable[..., WeightEntry], tmp_path: Path
) -> None:
    add()
    for name in ("tiny.pth", "tiny (1).pth"):
        (tmp_path / name).write_bytes(b"\x80\x02" * 50)
        words = r"truncated: has 100 bytes.*Tiny has 102400.*weights fetch Tiny"
        with pytest.raises(CorruptWeightError, match=words):
            open_file(tmp_path / name)
        assert opened(tmp_path / name).entry is None


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(MissingWeightError, match=r"gone.pth: no such file.*weights list") as caught:
        open_file(tmp_path / "gone.pth")
    assert isinstance(caught.value, FileNotFoundError)
    assert caught.value.folder == tmp_path
    with pytest.raises(
        CheckpointError, match=r"holds a folder; expected a weight file \(.safetensors, .onnx"
    ):
        open_file(tmp_path)


@pytest.mark.parametrize(
    ("name", "words"), [("net.bin", "a .bin file"), ("net", "a file without an extension")]
)
def test_wrong_suffixes(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=words):
        open_file(tmp_path / name)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".onnx"])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"\n<!DOCTYPE html><html>404</html>", "is a web page of 32 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
    ],
)
def test_files_that_are_no_weight_at_all(
    data: bytes, words: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"net{suffix}"
    path.write_bytes(data)
    with pytest.raises(CorruptWeightError, match=words):
        opened(path)


def test_a_safetensors_file_whose_first_byte_is_an_angle_bracket(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    header = header.ljust(ord("<"))
    path = tmp_path / "net.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert path.read_bytes()[:1] == b"<"
    assert torch.equal(open_file(path).state_dict()["a"], torch.zeros(1))
