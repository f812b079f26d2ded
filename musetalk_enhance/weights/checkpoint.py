"""Reading tensors from a file without executing a pickle."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, CorruptWeightError

if TYPE_CHECKING:
    import torch

PLAIN_SUFFIXES = (".safetensors", ".onnx")
"""Formats that cannot carry code."""
PICKLE_SUFFIXES = (".pth", ".pt", ".ckpt")
"""Formats that can carry code and are read by a restricted unpickler."""

# Best first: GFPGAN's files have both of the first two.
_WRAPPERS = ("params_ema", "params", "state_dict")
_PREFIX = "module."  # torch's DataParallel puts this before every name
_EXPECTED = "a checkpoint of named tensors"
_HINT = " Save only its state dict, preferably as .safetensors."


def check_header(path: Path) -> None:
    """Refuse a file whose first bytes show that it is not a weight.

    Raises:
        CorruptWeightError: it is empty, an HTML page or a git-lfs pointer, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512).lstrip()
            size = file.seek(0, 2)
    except OSError as error:
        raise CorruptWeightError(path, f"cannot be read ({error.strerror or error})") from error
    if size == 0:
        raise CorruptWeightError(path, "is empty (0 bytes)", " Copy or download it again.")
    if re.match(rb"<(!doctype|html|head|\?xml)", head, re.IGNORECASE):
        what = f"is a web page of {size} bytes, not a weight"
        raise CorruptWeightError(path, what, " It is a server's error page; download it again.")
    if head.startswith(b"version https://git-lfs"):
        what = "is a git-lfs pointer, not the file it points to"
        raise CorruptWeightError(path, what, " Run `git lfs pull` in its repository.")


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """The named tensors of a checkpoint, on the CPU.

    The wrappers ``params_ema``, ``params`` and ``state_dict`` around them and the prefix
    ``module.`` of their names are removed.

    Raises:
        CorruptWeightError: the file is empty, truncated or not a checkpoint.
        CheckpointError: it holds no tensors, or more than tensors; an ONNX graph; TorchScript.
    """
    check_header(path)
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return _unwrap(_read_safetensors(path), path)
    if suffix in PICKLE_SUFFIXES:
        _refuse_torchscript(path)
        return _unwrap(_read_pickle(path), path)
    actual = "an ONNX graph" if suffix == ".onnx" else describe_extension(path)
    formats = ", ".join((".safetensors", *PICKLE_SUFFIXES))
    raise CheckpointError(path, actual, f"{_EXPECTED} ({formats})")


def describe_extension(path: Path) -> str:
    """``"a .bin file"`` or ``"a file without an extension"``, for error messages."""
    suffix = path.suffix.lower()
    return f"a {suffix} file" if suffix else "a file without an extension"


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, "a .safetensors file", error) from error


def _read_pickle(path: Path) -> Any:
    """torch.load with spandrel's unpickler, which builds only tensors and ordered dicts.

    torch's own ``weights_only=True`` is no protection below torch 2.6 (CVE-2025-32434), and
    spandrel's ``load_state_dict_from_file`` tries TorchScript on .pt files and prefers
    ``state_dict`` to ``params_ema``; so only its unpickler is used.
    """
    import torch
    from spandrel.__helpers.unpickler import RestrictedUnpickle

    guard: dict[str, Any] = {"pickle_module": RestrictedUnpickle, "weights_only": False}
    if os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "").lower() in ("1", "y", "yes", "true"):
        guard = {"weights_only": True}  # torch then takes no other unpickler
    try:
        return torch.load(path, map_location="cpu", **guard)
    except MemoryError:
        raise
    except Exception as error:  # torch, zipfile and pickle raise a dozen classes for a broken file
        pattern = r"(Global '\S+' is forbidden|GLOBAL \S+ was not an allowed)"
        forbidden = re.search(pattern, str(error))
        if isinstance(error, pickle.UnpicklingError) and forbidden:
            actual = f"a pickle with more than tensors, which is not executed ({forbidden[0]})"
            raise CheckpointError(path, actual, _EXPECTED, _HINT) from error
        raise _unreadable(path, "a torch checkpoint", error) from error


def _unreadable(path: Path, format_name: str, error: Exception) -> CorruptWeightError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    size = path.stat().st_size if path.exists() else 0
    what = (
        f"cannot be read as {format_name} ({reason}); "
        f"it has {size} bytes and is truncated or another kind of file"
    )
    return CorruptWeightError(path, what, " Copy or download it again.")


def _refuse_torchscript(path: Path) -> None:
    """torch.load would pass a TorchScript archive, which is a program, to torch.jit.load."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, NotImplementedError, UnicodeDecodeError) as error:
        raise _unreadable(path, "a torch checkpoint", error) from error
    if any(name.rpartition("/")[2] == "constants.pkl" for name in names):
        raise CheckpointError(path, "a TorchScript archive, which is a program", _EXPECTED, _HINT)


def _unwrap(tree: Any, path: Path) -> dict[str, torch.Tensor]:
    import torch

    if not isinstance(tree, Mapping):
        raise CheckpointError(path, f"a {type(tree).__name__}", _EXPECTED, _HINT)
    inner = next((tree[key] for key in _WRAPPERS if isinstance(tree.get(key), Mapping)), tree)
    tensors = {key: value for key, value in inner.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        keys = ", ".join(repr(key) for key in list(inner)[:5]) or "no keys"
        raise CheckpointError(path, f"no tensors ({keys})", _EXPECTED, _HINT)
    if all(str(key).startswith(_PREFIX) for key in tensors):
        return {str(key)[len(_PREFIX) :]: value for key, value in tensors.items()}
    return {str(key): value for key, value in tensors.items()}
