"""How much memory there is, and which errors mean that it ran out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_OUT_OF_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "failed to allocate")


def monitor_gpu_memory(device: str | int | None = None) -> dict[str, Any]:
    """Memory of the GPU in use, of this process and of the machine; works without a GPU.

    Args:
        device: which GPU, as torch names it; None takes the current one.

    Returns:
        ``gpu_available`` (bool), ``device`` (its name, ``"cpu"`` without a GPU) and, in bytes,
        ``allocated_bytes``, ``reserved_bytes``, ``peak_bytes``, ``free_bytes``, ``total_bytes`` of the GPU
        (0 without one), ``process_bytes`` (resident memory of this process), ``ram_free_bytes``,
        ``ram_total_bytes``.
    """
    import psutil
    import torch

    ram = psutil.virtual_memory()
    numbers: dict[str, Any] = {
        "gpu_available": torch.cuda.is_available(),
        "device": "cpu",
        "allocated_bytes": 0,
        "reserved_bytes": 0,
        "peak_bytes": 0,
        "free_bytes": 0,
        "total_bytes": 0,
        "process_bytes": psutil.Process().memory_info().rss,
        "ram_free_bytes": ram.available,
        "ram_total_bytes": ram.total,
    }
    if numbers["gpu_available"]:
        gpu = torch.device("cuda" if device is None else device)
        free, total = torch.cuda.mem_get_info(gpu)
        numbers.update(
            device=torch.cuda.get_device_name(gpu),
            allocated_bytes=torch.cuda.memory_allocated(gpu),
            reserved_bytes=torch.cuda.memory_reserved(gpu),
            peak_bytes=torch.cuda.max_memory_allocated(gpu),
            free_bytes=free,
            total_bytes=total,
        )
    return numbers


def free_bytes(device: torch.device) -> int:
    """Bytes free for new tensors on `device` (the machine's RAM for anything but CUDA)."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out: torch's own error, MemoryError, or a runtime error in such words."""
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    if type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return any(words in text for words in _OUT_OF_MEMORY_WORDS)


def release(device: torch.device) -> None:
    """Hand cached memory of `device` back, after memory ran out."""
    import gc

    gc.collect()
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()
