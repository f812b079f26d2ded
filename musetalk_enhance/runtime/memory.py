"""How much memory is free, which errors mean that it ran out, and how it is released."""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_graph_pools: Counter[int] = Counter()  # bytes that CUDA graphs hold, by index of the GPU
_OUT_OF_MEMORY_WORDS = (
    "out of memory",  # CUDA, MPS, TensorRT
    "out_of_memory",  # CUDA_ERROR_OUT_OF_MEMORY
    "memoryallocation",  # cudaErrorMemoryAllocation
    "alloc_failed",  # CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_ALLOC_FAILED
    "allocation_failed",  # CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED
    "can't allocate memory",  # torch's CPU allocator
    "cannot allocate memory",  # the C library
    "not enough memory",  # torch's CPU allocator, on Windows
    "failed to allocate",  # ONNX Runtime, OpenCV
    "insufficient memory",  # OpenCV
    "bad_alloc",  # C++, OpenVINO
    "bad allocation",  # C++, ONNX Runtime on Windows
)
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def monitor_gpu_memory(device: str | int | None = None) -> dict[str, Any]:
    """Memory of the GPU in use, of this process and of the machine; works without a GPU.

    Args:
        device: which GPU, as torch names it; None takes the current one. ``"cpu"`` asks for no GPU.

    Returns:
        ``gpu_available`` (bool), ``device`` (its name, ``"cpu"`` without a GPU) and, in bytes,
        ``allocated_bytes``, ``reserved_bytes``, ``peak_bytes``, ``free_bytes``, ``total_bytes`` of
        the GPU (0 without one), ``process_bytes`` (resident memory of this process),
        ``ram_free_bytes``, ``ram_total_bytes``.
    """
    import psutil
    import torch

    ram = psutil.virtual_memory()
    name = "cuda" if device is None else device
    gpu = torch.device(name if torch.cuda.is_available() else "cpu")
    numbers: dict[str, Any] = {
        "gpu_available": gpu.type == "cuda",
        "device": "cpu",
        "allocated_bytes": 0,
        "reserved_bytes": 0,
        "peak_bytes": 0,
        "free_bytes": 0,
        "total_bytes": 0,
        "process_bytes": resident_bytes(),
        "ram_free_bytes": ram.available,
        "ram_total_bytes": ram.total,
    }
    if numbers["gpu_available"]:
        free, total = on_gpu(gpu)
        numbers.update(
            device=torch.cuda.get_device_name(gpu),
            allocated_bytes=torch.cuda.memory_allocated(gpu),
            reserved_bytes=torch.cuda.memory_reserved(gpu),
            peak_bytes=torch.cuda.max_memory_allocated(gpu),
            free_bytes=free,
            total_bytes=total,
        )
    return numbers


def resident_bytes() -> int:
    """Resident memory of this process."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def own_bytes() -> int:
    """Memory that this process has allocated, in RAM or swapped out.

    Unlike `resident_bytes` it does not grow when the system reads dropped pages of a library again.
    Resident memory on systems without that figure.
    """
    try:
        facts = dict(
            line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines()
        )
        return sum(int(facts[name].split()[0]) for name in ("RssAnon", "VmSwap")) * 1024
    except (OSError, KeyError, ValueError):
        return resident_bytes()


def free_bytes(device: torch.device) -> int:
    """Bytes free for new tensors on `device`.

    On CUDA that is what the driver has and what torch's allocator holds unused; anywhere else the
    machine's RAM, within the limit of a container.
    """
    if device.type == "cuda":
        import torch

        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        in_graphs = _graph_pools[_index(device)] if any(_graph_pools.values()) else 0
        return on_gpu(device)[0] + max(0, unused - in_graphs)
    import psutil

    return min([int(psutil.virtual_memory().available), *_free_in_container()])


def count_graph_pool(device: torch.device, change: int) -> None:
    """Add `change` bytes to what CUDA graphs on `device` hold, which no other tensor can use."""
    _graph_pools[_index(device)] += change


def _index(device: torch.device) -> int:
    import torch

    return torch.cuda.current_device() if device.index is None else device.index


def on_gpu(device: torch.device) -> tuple[int, int]:
    """Bytes free and in all on a CUDA device, as the driver counts them.

    Before torch 2.5, ``mem_get_info`` refuses a device without a number.
    """
    import torch

    free, total = torch.cuda.mem_get_info(None if device.index is None else device)
    return int(free), int(total)


def _free_in_container() -> Iterator[int]:
    for limit, usage in _CGROUPS:
        try:
            used = int(Path(usage).read_text()) - _reclaimable(Path(usage).with_name("memory.stat"))
            yield max(0, int(Path(limit).read_text()) - used)
        except (OSError, ValueError):  # no such file, or "max"
            continue


def _reclaimable(stat: Path) -> int:
    """Bytes in a container of files that were read once, which the kernel can drop."""
    try:
        facts = dict(line.split() for line in stat.read_text().splitlines())
        return int(facts.get("total_inactive_file", facts.get("inactive_file", 0)))
    except (OSError, ValueError):
        return 0


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out.

    That is MemoryError, torch's own error, or one in the words of a runtime (CUDA, cuBLAS, cuDNN,
    ONNX Runtime, OpenVINO, OpenCV, torch on the CPU), also where another error was raised from it.
    """
    return any(_says_out_of_memory(link) for link in _chain(error))


def _says_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return any(words in text for words in _OUT_OF_MEMORY_WORDS)


def _chain(error: BaseException) -> list[BaseException]:
    """`error` and the errors it was raised from, without one that a caller is handling anyway."""
    handled = sys.exc_info()[1]
    links = [error]
    while True:
        link = links[-1].__cause__ or links[-1].__context__
        if link is None or link is handled or link in links:
            return links
        links.append(link)


def forget_locals(error: BaseException) -> None:
    """Release the local variables of the functions that `error` was raised through.

    An error keeps the frames of its traceback alive, and with them the tensors that did not fit:
    without this nothing can be released before a retry.
    """
    for link in _chain(error):
        if link.__traceback__ is not None:
            traceback.clear_frames(link.__traceback__)


def release(device: torch.device) -> None:
    """Release cached memory of `device`."""
    import gc

    gc.collect()
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()
    trim()


def trim() -> None:
    """Make the C library release freed memory, if it can (glibc)."""
    malloc_trim = _malloc_trim()
    if malloc_trim is not None:
        malloc_trim(0)


@cache
def _malloc_trim() -> Any:
    import ctypes

    try:
        return getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # Windows has no such library
        return None
