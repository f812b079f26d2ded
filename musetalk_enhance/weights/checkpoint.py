"""Tensors out of a file, without executing a pickle."""

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
"""Formats that can, and are read by a restricted unpickler."""

_WRAPPERS = ("params_ema", "params", "state_dict")  # best first: GFPGAN files hold both of the first two
_PREFIX = "module."  # what torch's DataParallel puts before every name
_WANTED = "a checkpoint of named tensors"
_HINT = " Save its state dict alone, best as .safetensors."


def look(path: Path) -> None:
    """Tell by its first bytes a file that is no weight at all.

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
        raise CorruptWeightError(path, what, " A server's error page was saved; download it again.")
    if head.startswith(b"version https://git-lfs"):
        what = "is a git-lfs pointer, not the file it points to"
        raise CorruptWeightError(path, what, " Run `git lfs pull` where it came from.")


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """The named tensors of a checkpoint, on the CPU.

    ``params_ema``, ``params`` or ``state_dict`` around them and ``module.`` before their names are taken off.

    Raises:
        CorruptWeightError: the file is empty, truncated or no checkpoint.
        CheckpointError: it holds no tensors, or more than tensors; an ONNX graph; TorchScript.
    """
    look(path)
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return _unwrapped(_read_safetensors(path), path)
    if suffix in PICKLE_SUFFIXES:
        _refuse_torchscript(path)
        return _unwrapped(_read_pickle(path), path)
    actual = "an ONNX graph" if suffix == ".onnx" else f"a {suffix or 'nameless'} file"
    raise CheckpointError(path, actual, f"{_WANTED} ({', '.join(('.safetensors', *PICKLE_SUFFIXES))})")


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise _broken(path, "a .safetensors file", error) from error


def _read_pickle(path: Path) -> Any:
    """torch.load with spandrel's unpickler, which builds tensors and ordered dicts and knows nothing else.

    torch's own ``weights_only=True`` is no guard below torch 2.6 (CVE-2025-32434), and spandrel's
    ``load_state_dict_from_file`` tries TorchScript on .pt files and takes ``state_dict`` before
    ``params_ema``; so its unpickler is used by itself.
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
    except Exception as error:  # torch, zipfile and pickle have a dozen ways to say that a file is broken
        said = re.search(r"(Global '\S+' is forbidden|GLOBAL \S+ was not an allowed)", str(error))
        if isinstance(error, pickle.UnpicklingError) and said:
            actual = f"a pickle with more than tensors in it, which is not run ({said[0]})"
            raise CheckpointError(path, actual, _WANTED, _HINT) from error
        raise _broken(path, "a torch checkpoint", error) from error


def _broken(path: Path, what: str, error: Exception) -> CorruptWeightError:
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    size = path.stat().st_size if path.exists() else 0
    what = f"cannot be read as {what} ({said}); it has {size} bytes, and is truncated or something else"
    return CorruptWeightError(path, what, " Copy or download it again.")


def _refuse_torchscript(path: Path) -> None:
    """torch.load would hand a TorchScript archive, which is a program, to torch.jit.load."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, NotImplementedError, UnicodeDecodeError) as error:
        raise _broken(path, "a torch checkpoint", error) from error
    if any(name.rpartition("/")[2] == "constants.pkl" for name in names):
        raise CheckpointError(path, "a TorchScript archive, which is a program", _WANTED, _HINT)


def _unwrapped(tree: Any, path: Path) -> dict[str, torch.Tensor]:
    import torch

    if not isinstance(tree, Mapping):
        raise CheckpointError(path, f"a {type(tree).__name__}", _WANTED, _HINT)
    inner = next((tree[key] for key in _WRAPPERS if isinstance(tree.get(key), Mapping)), tree)
    tensors = {key: value for key, value in inner.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        keys = ", ".join(repr(key) for key in list(inner)[:5]) or "no keys"
        raise CheckpointError(path, f"no tensors ({keys})", _WANTED, _HINT)
    if all(str(key).startswith(_PREFIX) for key in tensors):
        return {str(key)[len(_PREFIX) :]: value for key, value in tensors.items()}
    return {str(key): value for key, value in tensors.items()}
