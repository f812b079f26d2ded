"""What was measured on this machine, remembered: which way of running a network is the fastest here.

Kept in one small JSON file beside the weights, under keys that name the hardware, the versions of everything
that computes, and the network's form (not its weights, on which time does not depend).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..weights import cache_dir

if TYPE_CHECKING:
    import torch

SWITCH = "MUSETALK_ENHANCE_TUNING"
"""Environment variable; ``off`` measures nothing and takes the usual order of preference."""
FILE = "tuning.json"
RUNTIMES = ("torch", "onnxruntime", "onnxruntime-gpu", "openvino", "ncnn")


def enabled() -> bool:
    """Whether measuring is allowed."""
    return os.environ.get(SWITCH, "on").lower() not in ("off", "0", "no", "false")


def path() -> Path:
    """Where the measurements are kept."""
    return cache_dir() / FILE


def key_of(network_key: str, device: torch.device) -> str:
    """Key of a network on `device` of this machine."""
    facts = {"network": network_key, "device": _device_facts(device), "versions": _versions()}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


@cache
def _versions() -> dict[str, str]:
    found = {"musetalk_enhance": __version__}
    for name in RUNTIMES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _device_facts(device: torch.device) -> dict[str, Any]:
    import torch

    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        return {"gpu": facts.name, "memory": facts.total_memory}
    return {"cpu": cpu_name(), "threads": torch.get_num_threads(), "type": device.type}


@cache
def cpu_name() -> str:
    """Name of the processor and its vector extensions, as far as the system tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    wanted = ("avx", "amx", "fma", "asimd", "bf16", "sve")
    flags = sorted({flag for flag in facts.get("flags", "").split() if flag.startswith(wanted)})
    return f"{facts.get('model name', platform.machine())} {' '.join(flags)}"


def remembered(key: str) -> dict[str, Any] | None:
    """The entry for `key`; None when there is none or the file cannot be read."""
    entry = _read().get(key)
    return entry if isinstance(entry, dict) else None


def remember(key: str, entry: dict[str, Any]) -> None:
    """Keep `entry`. A folder that cannot be written costs a new measurement next time, nothing else."""
    from filelock import FileLock, Timeout

    try:
        path().parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(path()) + ".lock", timeout=5):
            content = {**_read(), key: entry}
            temporary = path().with_name(f".{FILE}-{secrets.token_hex(4)}")
            try:
                temporary.write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")
                os.replace(temporary, path())
            finally:
                temporary.unlink(missing_ok=True)
    except (OSError, Timeout):
        return


def forget() -> None:
    """Drop every measurement."""
    path().unlink(missing_ok=True)


def _read() -> dict[str, Any]:
    try:
        content = json.loads(path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
