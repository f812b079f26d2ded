"""Stored measurements of this machine: which execution of a network is the fastest here.

One small JSON file beside the weights, under keys that name the hardware, the versions of
everything that computes, and the network's form (not its weights, on which time does not depend).

A measurement decides which bits are computed, so it counts only once it is stored: of several
processes one measures and the others wait for its entry, and where no entry can be stored nothing
is measured (`NotKeptError`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..runtime.files import AtomicFile, read_json
from ..weights import cache_dir

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("musetalk_enhance")

SWITCH = "MUSETALK_ENHANCE_TUNING"
"""Environment variable; ``off`` measures nothing and uses the usual order of preference."""
FILE = "tuning.json"
PATIENCE = 900.0
"""Seconds to wait for another process that measures the same; GFPGAN takes one to three minutes."""
RUNTIMES = ("torch", "onnxruntime", "onnxruntime-gpu", "openvino", "ncnn")


class NotKeptError(Exception):
    """A measurement cannot be stored; the text says why. Never raised to callers."""


def enabled() -> bool:
    """Whether measuring is allowed."""
    return os.environ.get(SWITCH, "on").lower() not in ("off", "0", "no", "false")


def path() -> Path:
    """The file of the measurements."""
    return cache_dir() / FILE


def key_of(network_key: str, device: torch.device) -> str:
    """Key of a network on `device` of this machine."""
    facts = {"network": network_key, "device": _device_facts(device), "versions": _versions()}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


@cache
def _versions() -> dict[str, str]:
    versions = {"musetalk_enhance": __version__}
    for name in RUNTIMES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


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
    prefixes = ("avx", "amx", "fma", "asimd", "bf16", "sve")
    flags = sorted({flag for flag in facts.get("flags", "").split() if flag.startswith(prefixes)})
    return f"{facts.get('model name', platform.machine())} {' '.join(flags)}"


def remembered(key: str) -> dict[str, Any] | None:
    """The entry for `key`; None if there is none or the file cannot be read."""
    entry = _read().get(key)
    return entry if isinstance(entry, dict) else None


def remember(key: str, entry: dict[str, Any]) -> str | None:
    """Store `entry`, in place of an earlier one; returns why it is not stored, else None."""
    from filelock import FileLock, Timeout

    try:
        path().parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(path()) + ".lock", timeout=5), AtomicFile(path()) as part:
            content = json.dumps({**_read(), key: entry}, indent=1, sort_keys=True)
            part.write_text(content, encoding="utf-8")
    except (OSError, NotImplementedError, Timeout) as error:
        return f"{path()} cannot be written: {error}"
    return None


def keep(key: str, entry: dict[str, Any]) -> None:
    """`remember`, for an entry that counts only once it is stored.

    Raises:
        NotKeptError: the file cannot be written.
    """
    problem = remember(key, entry)
    if problem is not None:
        raise NotKeptError(problem)


@contextmanager
def turn(key: str, waiting: str) -> Iterator[None]:
    """Lock `key` for measuring; the lock of a killed process is released.

    A caller that waited looks for the entry again before measuring.

    Args:
        key: of the future entry.
        waiting: logged while another process has the lock.

    Raises:
        NotKeptError: nothing can be stored here, or the other process did not end in time.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(str(path().with_name(f".tuning-{key}.lock")))
    try:
        path().parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("%s", waiting)
            lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise NotKeptError(f"another process has been measuring for {PATIENCE:.0f} s") from None
    except (OSError, NotImplementedError) as error:
        raise NotKeptError(f"{path()} cannot be written: {error}") from error
    try:
        yield
    finally:
        lock.release()


def forget() -> None:
    """Drop every measurement."""
    path().unlink(missing_ok=True)


def _read() -> dict[str, Any]:
    content = read_json(path())
    return content if isinstance(content, dict) else {}
