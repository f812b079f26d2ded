"""Opening files: what is trusted, what is refused, and that no pickle is ever executed."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import os
import pickle
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
    path = tmp_path / "net.onnx"
    path.write_bytes(b"\x08\x08 a graph")
    with pytest.raises(CheckpointError, match="holds an ONNX graph"):
        open_file(path).state_dict()


def graph_with_tensors_in(path: Path, name: str) -> Path:
    onnx = pytest.importorskip("onnx")
    tensor = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1], [1.0])
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=name)
    value = onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([], "g", [], [value], [tensor])
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    return path


OUTSIDE = ["../secret.bin", "/etc/hostname", "link/secret.bin", "x/" * 90 + "../" * 95]


@pytest.mark.parametrize("name", OUTSIDE)
def test_tensors_of_a_graph_outside_its_folder_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "link").symlink_to(tmp_path)
    with pytest.raises(CheckpointError, match="outside its own folder"):
        open_file(graph_with_tensors_in(tmp_path / "own" / "net.onnx", name))


@pytest.mark.parametrize("name", ["net.onnx.data", "sub/tensors.bin"])
def test_tensors_beside_a_graph_are_accepted(tmp_path: Path, name: str) -> None:
    assert open_file(graph_with_tensors_in(tmp_path / "net.onnx", name)).entry is None


def test_half_a_name_at_the_end_of_a_graph_raises_nothing_else(tmp_path: Path) -> None:
    for tail in (b"", b"\x85", b"\x05ab", b"\xff\xff"):
        path = tmp_path / "net.onnx"
        path.write_bytes(b"\x0a\x08location\x12" + tail)
        open_file(path)


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
