"""Figures of memory, with and without a GPU."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch

from musetalk_enhance import monitor_gpu_memory
from musetalk_enhance.runtime import memory

BYTES = {
    "allocated_bytes",
    "reserved_bytes",
    "peak_bytes",
    "free_bytes",
    "total_bytes",
    "process_bytes",
    "ram_free_bytes",
    "ram_total_bytes",
}


@pytest.mark.parametrize("device", [None, "cpu"])
def test_monitor_gpu_memory_gives_numbers(device):
    numbers = monitor_gpu_memory(device)
    assert set(numbers) == BYTES | {"gpu_available", "device"}
    assert all(type(numbers[name]) is int and numbers[name] >= 0 for name in BYTES)
    assert type(numbers["gpu_available"]) is bool and type(numbers["device"]) is str
    assert (
        numbers["process_bytes"] > 2**20
        and numbers["ram_total_bytes"] >= numbers["ram_free_bytes"] > 0
    )
    if not numbers["gpu_available"]:
        assert (
            numbers["total_bytes"] == numbers["allocated_bytes"] == 0 and numbers["device"] == "cpu"
        )


def pretend_gpu(monkeypatch, **figures):
    """Have torch.cuda answer with `figures`, by function name."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, value in figures.items():
        monkeypatch.setattr(torch.cuda, name, lambda device=None, value=value: value)


def test_monitor_gpu_memory_with_a_gpu(monkeypatch):
    pretend_gpu(
        monkeypatch,
        mem_get_info=(3, 9),
        get_device_name="pretended",
        memory_allocated=4,
        memory_reserved=5,
        max_memory_allocated=6,
    )
    numbers = monitor_gpu_memory("cuda:0")
    gpu = [numbers[f"{name}_bytes"] for name in ("free", "total", "allocated", "reserved", "peak")]
    assert gpu == [3, 9, 4, 5, 6] and numbers["device"] == "pretended" and numbers["gpu_available"]
    assert monitor_gpu_memory("cpu")["total_bytes"] == 0


def test_free_on_cuda_leaves_out_what_graphs_hold(monkeypatch):
    pretend_gpu(monkeypatch, mem_get_info=(100, 900), memory_allocated=40, memory_reserved=50)
    gpu = torch.device("cuda:0")
    memory.count_graph_pool(gpu, 7)
    assert memory.free_bytes(gpu) == 103
    memory.count_graph_pool(gpu, -7)
    assert memory.free_bytes(gpu) == 110


def test_free_on_cuda_counts_what_the_allocator_holds_unused(monkeypatch):
    pretend_gpu(monkeypatch, mem_get_info=(100, 900), memory_allocated=40, memory_reserved=50)
    assert memory.free_bytes(torch.device("cuda")) == 110


def test_free_keeps_to_the_limit_of_a_container(monkeypatch, tmp_path):
    limit, usage = tmp_path / "limit", tmp_path / "usage"
    monkeypatch.setattr(memory, "_CGROUPS", [(str(limit), str(usage))])
    everything = memory.free_bytes(torch.device("cpu"))
    assert everything > 2**20
    usage.write_text("1000\n")
    limit.write_text("5000\n")
    assert memory.free_bytes(torch.device("cpu")) == 4000
    limit.write_text("max\n")
    assert memory.free_bytes(torch.device("cpu")) > 2**20


STATUS = "Name:\tpython\nRssAnon:\t  3 kB\nRssFile:\t 70 kB\nRssShmem:\t 50 kB\nVmSwap:\t  2 kB\n"


def test_pages_of_files_are_not_the_process_its_own(monkeypatch):
    monkeypatch.setattr(memory.Path, "read_text", lambda path: STATUS)
    assert memory.own_bytes() == 5 * 1024


def test_what_was_allocated_is_the_process_its_own():
    before = memory.own_bytes()
    # much more than what threads of earlier tests may give back meanwhile
    block = np.ones(256 * 2**20, np.uint8)
    assert memory.own_bytes() - before > len(block) / 2


@pytest.mark.parametrize("status", ["Name: python", "RssAnon: much", None])
def test_without_such_figures_resident_memory_counts(monkeypatch, status):
    def read_text(path):
        if status is None:
            raise FileNotFoundError(path)
        return status

    monkeypatch.setattr(memory.Path, "read_text", read_text)
    monkeypatch.setattr(memory, "resident_bytes", lambda: 5)
    assert memory.own_bytes() == 5


def test_freed_memory_goes_back_to_the_machine():
    # below the size that is mapped on its own
    small = [np.ones(100_000, np.uint8) for _ in range(1000)]
    full = memory.resident_bytes()
    del small
    memory.release(torch.device("cpu"))
    assert memory.resident_bytes() < full - 50 * 2**20


def test_an_error_lets_go_of_what_it_came_through():
    def fail():
        large = torch.zeros(10)
        refs.append(weakref.ref(large))
        raise ValueError

    refs: list[weakref.ref] = []
    kept = None
    gc.disable()
    try:
        try:
            try:
                fail()
            except ValueError as error:
                raise RuntimeError from error
        except RuntimeError as error:
            kept = error
        assert refs[0]() is not None
        memory.forget_locals(kept)
        assert refs[0]() is None and kept.__traceback__ is not None
    finally:
        gc.enable()


@pytest.mark.parametrize(("device", "asked"), [("cuda", None), ("cuda:1", torch.device("cuda:1"))])
def test_a_gpu_without_a_number_is_the_current_one(monkeypatch, device, asked):
    """Before torch 2.5, which MuseTalk pins, ``mem_get_info`` refuses ``torch.device("cuda")``."""
    seen = []
    pretend_gpu(
        monkeypatch,
        get_device_name="x",
        memory_allocated=0,
        memory_reserved=0,
        max_memory_allocated=0,
    )
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda device=None: seen.append(device) or (3, 9)
    )
    assert memory.free_bytes(torch.device(device)) == 3
    assert monitor_gpu_memory(device)["total_bytes"] == 9
    assert seen == [asked, asked]


@pytest.mark.parametrize("key", ["inactive_file", "total_inactive_file"])
def test_files_that_a_container_has_read_are_not_memory_in_use(monkeypatch, tmp_path, key):
    limit, usage = tmp_path / "limit", tmp_path / "usage"
    monkeypatch.setattr(memory, "_CGROUPS", [(str(limit), str(usage))])
    limit.write_text("5000\n")
    usage.write_text("4900\n")
    (tmp_path / "memory.stat").write_text(f"anon 100\n{key} 4500\n")
    assert memory.free_bytes(torch.device("cpu")) == 4600
    (tmp_path / "memory.stat").write_text("nonsense\n")
    assert memory.free_bytes(torch.device("cpu")) == 100
