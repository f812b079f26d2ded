"""The machine's CPU, GPU, memory and package versions; no host name, no user name."""

from __future__ import annotations

import os
import platform
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from musetalk_enhance._version import __version__

_PACKAGES = (
    "torch torchvision numpy opencv-python spandrel gfpgan facexlib "
    "onnxruntime onnxruntime-gpu openvino ncnn tensorrt diffusers"
).split()
_ISA = (
    "avx2 fma avx512f avx512_vnni avx512_bf16 avx512_fp16 avx_vnni amx_tile amx_bf16 asimd fphp "
    "bf16 i8mm sve"
).split()


def facts(device: str) -> dict[str, Any]:
    """The machine and the versions that matter, ready for JSON.

    Args:
        device: where the networks run, as torch names it.
    """
    import psutil
    import torch

    numbers: dict[str, Any] = {
        "cpu": cpu_name(),
        "cores": psutil.cpu_count(logical=False),
        "threads": _usable_threads(),
        "torch_threads": torch.get_num_threads(),
        "isa": isa_flags(),
        "ram_bytes": psutil.virtual_memory().total,
        "system": platform.system(),
        "python": platform.python_version(),
        "device": device,
        "versions": {"musetalk_enhance": __version__, **_versions()},
    }
    if torch.cuda.is_available():
        numbers["gpu"] = torch.cuda.get_device_name()
        numbers["gpu_bytes"] = torch.cuda.get_device_properties(0).total_memory
        numbers["cuda"] = torch.version.cuda
    return numbers


def _usable_threads() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _cpuinfo() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines if ":" in line)
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


def cpu_name() -> str:
    """What the CPU calls itself."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def isa_flags() -> list[str]:
    """Instruction sets that matter for convolutions, as Linux names them; torch's own word
    elsewhere."""
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("features") or "").split())
    if flags:
        return [flag for flag in _ISA if flag in flags]
    import torch

    capability = getattr(torch.backends.cpu, "get_cpu_capability", None)
    return [str(capability()).lower()] if capability else []


def anonymous(text: str) -> str:
    """`text` on one line, with the folders of this machine's user and of temporary files taken out
    of it."""
    for folder, short in (
        (tempfile.gettempdir(), "<tmp>"),
        (str(Path.home()), "~"),
        (os.getcwd(), "."),
    ):
        if len(folder) > 1:
            text = text.replace(folder, short)
    return " ".join(text.split())
