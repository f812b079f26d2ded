"""What the nodes need of ComfyUI itself; its modules are imported on use, inside ComfyUI only."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from ...restorers.catalog import is_path

MODEL_FOLDER = "facerestore_models"
"""Folder below ComfyUI's ``models`` in which other face restorers keep their checkpoints, too."""


def batches(total: int, size: int) -> Iterator[slice]:
    """The batches of `total` images: advances the node's progress bar, and stops between two
    batches if the user interrupts the prompt."""
    management = import_module("comfy.model_management")
    progress = import_module("comfy.utils").ProgressBar(total)
    for start in range(0, total, size):
        management.throw_exception_if_processing_interrupted()
        stop = min(start + size, total)
        yield slice(start, stop)
        progress.update(stop - start)


def device_name() -> str:
    """The device that ComfyUI computes on, ``"cpu"`` if this library does not support it."""
    device = import_module("comfy.model_management").get_torch_device()
    return str(device) if device.type in ("cuda", "mps") else "cpu"


def model_files() -> list[str]:
    """Names of the checkpoints in `MODEL_FOLDER`; empty outside ComfyUI."""
    try:
        folder = _model_folder()
    except ImportError:
        return []
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [file.name for file in files if is_path(file.name)]


def model_path(name: str) -> str:
    """The path of a file in `MODEL_FOLDER`; any other name unchanged."""
    return str(_model_folder() / name) if name in model_files() else name


def output_folder(prefix: str) -> Path:
    """A new folder below ComfyUI's output folder: PREFIX_00001_, and so on."""
    paths = import_module("folder_paths")
    parent, name, counter, _, _ = paths.get_save_image_path(prefix, paths.get_output_directory())
    folder = Path(parent) / f"{name}_{counter:05}_"
    folder.mkdir(parents=True)
    return folder


def _model_folder() -> Path:
    return Path(import_module("folder_paths").models_dir) / MODEL_FOLDER
