"""The requested execution runs, or an error says why not; auto measures once and stores it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from musetalk_enhance.backends import (
    BackendOptions,
    FakeBackend,
    open_backend,
    selection,
    tuning,
)
from musetalk_enhance.backends.selection import Execution, possible_executions
from musetalk_enhance.errors import ConfigError, MissingDependencyError, RestorerError
from tests.backends.conftest import CPU, TinyNetwork, spec_of
from tests.conftest import ROOT

CUDA = torch.device("cuda:0")


@pytest.fixture
def no_bf16(monkeypatch):
    monkeypatch.setattr(tuning, "cpu_name", lambda: "a processor avx avx2")


@pytest.fixture
def measuring(monkeypatch):
    monkeypatch.delenv(tuning.SWITCH)


def ways(device=CPU, **options) -> list[str]:
    return [str(way) for way in possible_executions(BackendOptions(**options), device)]


def test_what_auto_leaves_open(no_bf16):
    assert ways() == ["ncnn fp32", "openvino fp32", "onnx fp32", "torch fp32"]
    assert ways(dtype="bf16") == ["ncnn bf16", "torch bf16"]
    assert ways(backend="torch") == ["torch fp32"]
    assert ways(backend="ncnn", dtype="bf16") == ["ncnn bf16"]
    assert ways(CUDA) == ["torch bf16", "torch fp16", "torch fp32", "onnx fp32"]
    assert ways(CUDA, dtype="fp16") == ["torch fp16"]
    assert ways(CUDA, backend="ncnn", allow_cpu=True) == ["ncnn fp32"]


def test_bf16_is_measured_where_the_processor_has_it(monkeypatch):
    monkeypatch.setattr(tuning, "cpu_name", lambda: "a processor avx512_bf16")
    assert "openvino bf16" in ways() and "ncnn bf16" in ways()
    assert ways(dtype="fp32") == ["ncnn fp32", "openvino fp32", "onnx fp32", "torch fp32"]


@pytest.mark.parametrize(
    ("device", "options", "key"),
    [
        (CUDA, {"backend": "openvino"}, "device"),
        (CUDA, {"backend": "ncnn"}, "device"),
        (CPU, {"backend": "onnx", "dtype": "bf16"}, "dtype"),
        (CPU, {"backend": "ncnn", "dtype": "fp16"}, "dtype"),
    ],
)
def test_contradictions_are_refused(device, options, key):
    with pytest.raises(ConfigError) as caught:
        possible_executions(BackendOptions(**options), device)
    assert caught.value.key == key


def test_measured_once_then_remembered(tiny, measuring, no_bf16, caplog, monkeypatch):
    caplog.set_level("INFO")
    first = open_backend(tiny, BackendOptions(), CPU)
    assert "measuring once how" in caplog.text and "runs with" in caplog.text
    entry = next(iter(json.loads(tuning.path().read_text()).values()))
    assert set(entry["ms"]) >= {"ncnn fp32", "torch fp32"} and min(entry["ms"].values()) > 0
    # two may have the same time in the file, where it is rounded
    assert entry["ms"][str(first)] == min(entry["ms"].values())
    monkeypatch.setattr(selection, "measure", lambda *_: pytest.fail("measured again"))
    assert str(open_backend(tiny, BackendOptions(), CPU)) == str(first)


def test_what_was_remembered_decides(tiny, measuring, no_bf16):
    key = tuning.key_of(f"{tiny.key} auto auto auto", CPU)
    for fastest in ("torch fp32", "ncnn fp32"):
        tuning.remember(key, {"ms": {"torch fp32": 5.0, "ncnn fp32": 5.0} | {fastest: 1.0}})
        assert str(open_backend(tiny, BackendOptions(), CPU)) == fastest


@pytest.mark.parametrize(
    "entry",
    [
        *({"ms": {"torch fp32": value}} for value in (float("nan"), float("-inf"), True, -1.0)),
        *({"ms": {"torch fp32": 1.0}, "chosen": chosen} for chosen in ([], {}, 5, "nothing fp1")),
        {"ms": {"nothing": 1.0}},
        {"ms": []},
    ],
)
def test_an_entry_of_somebody_else_breaks_nothing(tiny, measuring, no_bf16, entry):
    tuning.remember(tuning.key_of(f"{tiny.key} auto auto auto", CPU), entry)
    assert str(open_backend(tiny, BackendOptions(), CPU)).endswith(" fp32")


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "\xff", "{", '{"a": 1}', None])
def test_a_damaged_file_counts_as_empty(text, monkeypatch, tmp_path):
    monkeypatch.setattr(tuning, "path", lambda: tmp_path / tuning.FILE)
    if text is None:
        os.mkfifo(tuning.path())
    else:
        tuning.path().write_bytes(text.encode("latin-1"))
    assert tuning.remembered("a") is None
    assert tuning.remember("a", {"ms": {}}) is None and tuning.remembered("a") == {"ms": {}}


def test_a_remembered_way_that_is_gone_gives_way_to_the_next(tiny, measuring, no_bf16, monkeypatch):
    tuning.remember(
        tuning.key_of(f"{tiny.key} auto auto auto", CPU),
        {"ms": {"ncnn fp32": 1.0, "torch fp32": 2.0}},
    )
    real = selection.open_execution

    def without_ncnn(way, *rest, **more):
        if way.backend == "ncnn":
            raise MissingDependencyError("ncnn", "ncnn", "a test")
        return real(way, *rest, **more)

    monkeypatch.setattr(selection, "open_execution", without_ncnn)
    assert str(open_backend(tiny, BackendOptions(), CPU)) == "torch fp32"
    with pytest.raises(MissingDependencyError):
        open_backend(tiny, BackendOptions(backend="ncnn"), CPU)


def test_nothing_works_is_the_first_ones_error(tiny, measuring, no_bf16, monkeypatch):
    def none(way, *_, **__):
        raise RestorerError(f"no {way}")

    monkeypatch.setattr(selection, "open_execution", none)
    with pytest.raises(RestorerError, match="no ncnn fp32"):
        open_backend(tiny, BackendOptions(), CPU)
    assert not tuning.path().exists()


def test_reduced_precision_comes_with_its_check(tiny, batch):
    backend = open_backend(tiny, BackendOptions(backend="torch", dtype="bf16"), CPU)
    assert (str(backend), backend.fallbacks) == ("torch bf16", 0)
    assert backend.run(batch).shape == (3, 3, 32, 32)


class Overflowing(TinyNetwork):
    """In fp16 its hidden values are infinite, in bf16 and fp32 they are not."""

    def __init__(self) -> None:
        super().__init__(gain=1e6)


def test_fp16_that_overflows_falls_back_to_bf16(batch):
    backend = open_backend(
        spec_of(Overflowing()), BackendOptions(backend="torch", dtype="fp16"), CPU
    )
    restored = backend.run(batch)
    assert (
        str(backend) == "torch bf16" and backend.fallbacks == 1
    )  # or has no fp16 at all: the same
    assert torch.isfinite(restored).all()


def test_a_damaged_memory_is_a_new_measurement(tiny, measuring, no_bf16):
    tuning.path().parent.mkdir(parents=True)
    for text in ("{", "[]", '{"a": 1}'):
        tuning.path().write_text(text)
        assert tuning.remembered("a") is None
    open_backend(tiny, BackendOptions(), CPU)
    assert json.loads(tuning.path().read_text())
    tuning.forget()
    assert not tuning.path().exists()


def test_an_unwritable_folder_costs_nothing_but_the_measurement(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MUSETALK_ENHANCE_CACHE", str(tmp_path / "file" / "below"))
    tuning.remember("a", {"ms": {}})
    assert tuning.remembered("a") is None


def test_keys_differ_where_speed_may(monkeypatch):
    keys = {tuning.key_of("a", CPU), tuning.key_of("b", CPU)}
    monkeypatch.setattr(tuning, "cpu_name", lambda: "another")
    keys.add(tuning.key_of("a", CPU))
    assert len(keys) == 3


def test_the_line_for_a_person():
    assert selection.summary("lite", {"torch fp32": 80.2, "ncnn fp32": 30.4}) == (
        "lite runs with ncnn fp32: 30 ms per face (torch fp32 80)"
    )
    assert Execution("ncnn", "fp32") == Execution("ncnn", "fp32")


def test_what_runs_on_the_cpu_only_is_no_way_elsewhere():
    for device in (CUDA, torch.device("mps")):
        names = [name for dtype in ("fp32", "bf16") for name in ways(device, dtype=dtype)]
        assert not [name for name in names if "ncnn" in name]


def failing(monkeypatch, errors):
    """Make running an execution fail with ``errors[str(execution)]``; returns all backends."""
    opened = []
    real = selection.open_execution

    def opening(way, *rest):
        def run(_):
            raise errors[str(way)]

        backend = FakeBackend(run) if str(way) in errors else real(way, *rest)
        opened.append(backend)
        return backend

    monkeypatch.setattr(selection, "open_execution", opening)
    return opened


def test_an_operation_that_is_missing_costs_a_way_not_the_model(
    tiny, measuring, no_bf16, monkeypatch
):
    """Before torch 2.1, CUDA enlarges nothing in bf16; MuseTalk pins 2.0.1."""
    error = RuntimeError("\"upsample_bilinear2d_out_frame\" not implemented for 'BFloat16'")
    failing(monkeypatch, {"ncnn fp32": error})
    assert str(open_backend(tiny, BackendOptions(), CPU)) != "ncnn fp32"
    (entry,) = json.loads(tuning.path().read_text()).values()
    assert "ncnn fp32" not in entry["ms"] and "torch fp32" in entry["ms"]


@pytest.mark.parametrize(
    "error", [torch.cuda.OutOfMemoryError("CUDA out of memory"), MemoryError()]
)
def test_without_memory_to_measure_the_first_way_is_taken(
    tiny, measuring, no_bf16, monkeypatch, caplog, error
):
    opened = failing(monkeypatch, {"onnx fp32": error})
    executions = [Execution("torch", "fp32"), Execution("onnx", "fp32")]
    monkeypatch.setattr(selection, "possible_executions", lambda *_: executions)
    assert str(open_backend(tiny, BackendOptions(), CPU)) == "torch fp32"
    assert "out of memory while measuring" in caplog.text and not tuning.path().exists()
    assert opened[0].module is None and opened[1].closed, "what was opened for measuring is closed"


def test_a_type_without_instructions_is_measured_only_where_nothing_else_runs(
    tiny, measuring, no_bf16, monkeypatch
):
    failing(monkeypatch, {"torch bf16": AssertionError("minutes pass")})
    assert str(open_backend(tiny, BackendOptions(dtype="bf16"), CPU)) == "ncnn bf16"


def test_memory_mode_measures_one_face(tiny, monkeypatch):
    faces = []
    monkeypatch.setattr(selection, "open_execution", lambda *_, **__: FakeBackend())
    monkeypatch.setattr(selection, "_timed", lambda _, batch, __: faces.append(len(batch)) or 1.0)
    for mode in ("memory", "batch"):
        executions = [Execution("torch", "fp32")]
        selection.measure(tiny, BackendOptions(mode=mode), torch.device("meta"), executions)
    assert set(faces[: len(faces) // 2]) == {1} and set(faces[len(faces) // 2 :]) == {8}


@pytest.mark.parametrize("ms", [None, {}, {"torch fp32": None}, {"torch fp32": "quick"}, [1]])
def test_spoilt_figures_are_a_new_measurement(tiny, measuring, no_bf16, ms):
    tuning.remember(tuning.key_of(f"{tiny.key} auto auto auto", CPU), {"ms": ms})
    open_backend(tiny, BackendOptions(), CPU)
    (entry,) = json.loads(tuning.path().read_text()).values()
    assert "torch fp32" in entry["ms"] and min(entry["ms"].values()) > 0


def test_a_disk_that_is_full_leaves_no_file_behind(monkeypatch):
    tuning.remember("a", {"ms": {"torch fp32": 1.0}})
    before = sorted(tuning.path().parent.iterdir())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    tuning.remember("b", {"ms": {}})
    assert sorted(tuning.path().parent.iterdir()) == before and tuning.remembered("a")


class Clock:
    """Stands in for opening and timing: every way takes the seconds that a test says.

    Attributes:
        seconds: by name of a way, for each time it is opened; the last one is for all later times.
        opened: names of ways, in the order in which they were opened.
        most_open: most ways that were open at once.
    """

    def __init__(self, monkeypatch, **seconds) -> None:
        self.seconds = {name.replace("_", " "): list(values) for name, values in seconds.items()}
        self.opened: list[str] = []
        self.most_open = 0
        self._open: list[FakeBackend] = []
        self._runs: dict[int, int] = {}
        monkeypatch.setattr(selection, "open_execution", self.open_execution)
        monkeypatch.setattr(selection, "_timed", self.timed)
        ways = [Execution(*name.split()) for name in self.seconds]
        monkeypatch.setattr(selection, "possible_executions", lambda *_: ways)

    def open_execution(self, way, *_):
        backend = FakeBackend()
        backend.name, backend.dtype = way.backend, way.dtype
        self.opened.append(str(way))
        self._open = [other for other in self._open if not other.closed] + [backend]
        self.most_open = max(self.most_open, len(self._open))
        return backend

    def timed(self, backend, faces, device):
        """A warm-up takes a minute."""
        name = str(backend)
        self._runs[id(backend)] = self._runs.get(id(backend), 0) + 1
        values = self.seconds[name]
        took = values[min(self.opened.count(name), len(values)) - 1]
        return 60.0 if self._runs[id(backend)] == 1 else took


def entry_of():
    (entry,) = json.loads(tuning.path().read_text()).values()
    return entry


@pytest.mark.parametrize(
    ("bf16", "choice", "looks"),
    [
        ([0.5, 0.5], "ncnn bf16", 2),  # half the time, both times
        ([0.5, 0.95], "ncnn fp32", 2),  # somebody else was at work when fp32 was measured
        ([0.9], "ncnn fp32", 1),  # faster, but not clearly
        ([1.5], "ncnn fp32", 1),
    ],
)
def test_a_reduced_precision_is_taken_when_it_wins_clearly_twice(
    tiny, measuring, monkeypatch, caplog, bf16, choice, looks
):
    caplog.set_level("INFO")
    clock = Clock(monkeypatch, ncnn_fp32=[1.0], torch_fp32=[1.2], ncnn_bf16=bf16)
    for _ in range(3):
        backend = open_backend(tiny, BackendOptions(), CPU)
        assert str(backend) == choice
        backend.close()
    assert entry_of()["chosen"] == choice and clock.most_open == 1
    measured = ["ncnn fp32", "torch fp32", "ncnn bf16"] + ["ncnn fp32", "ncnn bf16"] * (looks - 1)
    assert clock.opened == measured + [choice] * 3
    assert "runs with" in caplog.text and "selected earlier on this machine" in caplog.text


def test_the_first_run_of_a_way_does_not_count(tiny, measuring, monkeypatch):
    """Each way's first run takes a minute; with that counted, all would be as slow."""
    Clock(monkeypatch, ncnn_fp32=[3.0], onnx_fp32=[2.0], torch_fp32=[1.0])
    assert str(open_backend(tiny, BackendOptions(), CPU)) == "torch fp32"
    assert entry_of()["ms"] == {"ncnn fp32": 3000.0, "onnx fp32": 2000.0, "torch fp32": 1000.0}


def test_the_choice_is_kept_before_the_backend_is_opened(tiny, measuring, monkeypatch):
    clock = Clock(monkeypatch, ncnn_fp32=[1.0], torch_fp32=[2.0])
    plain, kept = clock.open_execution, []

    def noting(way, *rest):
        kept.append(tuning.path().exists())
        return plain(way, *rest)

    monkeypatch.setattr(selection, "open_execution", noting)
    open_backend(tiny, BackendOptions(), CPU)
    assert kept == [False, False, True]


def test_where_nothing_can_be_kept_every_run_takes_the_same(
    tiny, measuring, monkeypatch, tmp_path, caplog
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MUSETALK_ENHANCE_CACHE", str(tmp_path / "file" / "below"))
    clock = Clock(monkeypatch, onnx_fp32=[1.0], torch_fp32=[0.1, 5.0], torch_bf16=[0.01])
    selection._warn_of_fixed_order.cache_clear()
    for _ in range(3):
        assert str(open_backend(tiny, BackendOptions(), CPU)) == "onnx fp32"
    assert clock.opened == ["onnx fp32"] * 3, "nothing is measured for nothing"
    assert caplog.text.count("nothing is measured") == 1 and "MUSETALK_ENHANCE_CACHE" in caplog.text
    assert str(tuning.path()) in caplog.text


def test_a_disk_that_fills_up_leaves_the_usual_choice(tiny, measuring, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    Clock(monkeypatch, onnx_fp32=[1.0], torch_fp32=[0.1])
    monkeypatch.setattr(os, "replace", full)
    selection._warn_of_fixed_order.cache_clear()
    assert str(open_backend(tiny, BackendOptions(), CPU)) == "onnx fp32"
    assert "No space left on device" in caplog.text
    assert selection.tune(tiny, BackendOptions(), CPU) == {"onnx fp32": 1000.0, "torch fp32": 100.0}
    assert "has no effect" in caplog.text


def test_a_process_that_never_ends_is_not_waited_for_forever(tiny, measuring, monkeypatch, caplog):
    from filelock import FileLock

    caplog.set_level("INFO")
    Clock(monkeypatch, onnx_fp32=[1.0], torch_fp32=[0.1])
    monkeypatch.setattr(tuning, "PATIENCE", 0.2)
    key = tuning.key_of(f"{tiny.key} auto auto auto", CPU)
    with FileLock(str(tuning.path().with_name(f".tuning-{key}.lock"))):
        assert str(open_backend(tiny, BackendOptions(), CPU)) == "onnx fp32"
    assert "another process that measures" in caplog.text
    assert str(open_backend(tiny, BackendOptions(), CPU)) == "torch fp32"


NOISY = """
import sys
import time

import torch

from musetalk_enhance.backends import BackendOptions, FakeBackend, selection
from musetalk_enhance.backends.selection import Execution
from tests.backends.conftest import TinyNetwork, spec_of

favorite, pause = sys.argv[1], float(sys.argv[2])

def open_execution(way, *_):
    backend = FakeBackend()
    backend.name, backend.dtype = way.backend, way.dtype
    return backend

def timed(backend, *_):
    print("measuring", flush=True)
    time.sleep(pause)
    return 1.0 if str(backend) == favorite else 2.0

executions = [Execution(name, "fp32") for name in ("ncnn", "onnx", "torch")]
selection.open_execution, selection._timed = open_execution, timed
selection.possible_executions = lambda *_: executions
spec = spec_of(TinyNetwork())
print(selection.open_backend(spec, BackendOptions(), torch.device("cpu")), flush=True)
"""


def noisy(favorite, pause):
    """A process in which `favorite` measures fastest."""
    command = [sys.executable, "-c", NOISY, favorite, str(pause)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def test_processes_that_measure_at_once_take_the_same(measuring):
    """Each would choose differently; one measures, the others wait and take what it chose."""
    runs = [noisy(name, 0.3) for name in ("ncnn fp32", "torch fp32")]
    outputs = [run.communicate()[0].split("\n") for run in runs]
    assert len({lines[-2] for lines in outputs}) == 1
    assert sorted("measuring" in lines for lines in outputs) == [False, True]


def test_a_run_killed_while_it_measures_leaves_no_choice_and_no_lock(tiny, measuring, monkeypatch):
    with noisy("onnx fp32", 30) as run:
        assert run.stdout.readline() == "measuring\n"
        os.kill(run.pid, signal.SIGKILL)
    assert not tuning.path().exists()
    monkeypatch.setattr(tuning, "PATIENCE", 0.0)
    Clock(monkeypatch, onnx_fp32=[1.0], torch_fp32=[0.1])
    assert str(open_backend(tiny, BackendOptions(), CPU)) == "torch fp32"
    assert entry_of()["chosen"] == "torch fp32"


def test_a_graph_is_traced_once_for_measuring_and_running(tiny, measuring, no_bf16, monkeypatch):
    from musetalk_enhance.backends import onnx_export

    plain, traced = onnx_export.trace, []

    def counted(*arguments):
        traced.append(len(arguments))
        return plain(*arguments)

    monkeypatch.setattr(onnx_export, "trace", counted)
    seconds = {"onnx": 1.0, "ncnn": 2.0, "openvino": 2.0, "torch": 2.0}
    monkeypatch.setattr(selection, "_timed", lambda backend, *_: seconds[backend.name])
    assert open_backend(tiny, BackendOptions(), CPU).name == "onnx" and len(traced) == 1


@pytest.mark.parametrize("choice", [None, 3, "ncnn bf16", "none fp32"])
def test_a_choice_that_cannot_be_read_is_the_fastest_fp32(tiny, measuring, no_bf16, choice):
    entry = {"ms": {"ncnn fp32": 2.0, "torch fp32": 1.5, "torch bf16": 1.0}, "chosen": choice}
    tuning.remember(tuning.key_of(f"{tiny.key} auto auto auto", CPU), entry)
    assert str(open_backend(tiny, BackendOptions(), CPU)) == "torch fp32"


def test_a_gpu_without_bf16_takes_fp16_first(monkeypatch):
    monkeypatch.setattr(selection, "_capability", lambda _: (7, 5))
    assert ways(CUDA) == ["torch fp16", "torch bf16", "torch fp32", "onnx fp32"]
    monkeypatch.setattr(selection, "_capability", lambda _: (8, 6))
    assert ways(CUDA) == ["torch bf16", "torch fp16", "torch fp32", "onnx fp32"]


@pytest.mark.parametrize(("flags", "name"), [("avx2", "ncnn"), ("avx512_bf16", "openvino")])
def test_where_torch_is_the_only_backend_a_faster_one_is_named(
    tiny, monkeypatch, caplog, flags, name
):
    caplog.set_level("INFO")
    monkeypatch.setattr(tuning, "cpu_name", lambda: f"a processor {flags}")
    monkeypatch.setattr(selection, "find_spec", lambda _: None)
    selection._suggest_a_runtime.cache_clear()
    for _ in range(2):
        open_backend(tiny, BackendOptions(dtype="fp32"), CPU)
    assert caplog.text.count(f"pip install 'musetalk_enhance[{name}]'") == 1


def test_a_second_look_that_fails_is_no_second_win(tiny, measuring, monkeypatch):
    clock = Clock(monkeypatch, ncnn_fp32=[1.0], ncnn_bf16=[0.5])
    plain = clock.timed

    def failing_later(backend, *rest):
        if len(clock.opened) > 2:
            raise RestorerError("the driver is gone")
        return plain(backend, *rest)

    monkeypatch.setattr(selection, "_timed", failing_later)
    assert str(open_backend(tiny, BackendOptions(), CPU)) == "ncnn fp32"
    assert entry_of()["ms"] == {"ncnn fp32": 1000.0, "ncnn bf16": 500.0}


def test_a_way_that_failed_is_given_back_before_the_next_is_opened(tiny, measuring, monkeypatch):
    clock = Clock(monkeypatch, ncnn_fp32=[1.0], onnx_fp32=[1.0], torch_fp32=[1.0])
    plain = clock.timed

    def failing_once(backend, *rest):
        if backend.name == "ncnn":
            raise RestorerError("not on this processor")
        return plain(backend, *rest)

    monkeypatch.setattr(selection, "_timed", failing_once)
    open_backend(tiny, BackendOptions(), CPU)
    assert clock.most_open == 1 and set(entry_of()["ms"]) == {"onnx fp32", "torch fp32"}


@pytest.mark.parametrize(("free", "choice"), [(0.99, "torch fp32"), (1.01, "ncnn fp32")])
def test_memory_is_looked_at_before_anything_is_opened(
    tiny, measuring, monkeypatch, caplog, free, choice
):
    """The kernel ends a process that takes more: no error would be raised."""
    weights = sum(tensor.nbytes for tensor in tiny.module.buffers())
    monkeypatch.setattr(selection.memory, "free_bytes", lambda _: free * selection.NEEDED * weights)
    clock = Clock(monkeypatch, ncnn_fp32=[1.0], torch_fp32=[2.0], ncnn_bf16=[2.0])
    assert str(open_backend(tiny, BackendOptions(), CPU)) == choice
    assert (
        ("too little memory is free" in caplog.text) == (free < 1) == (not tuning.path().exists())
    )
    assert clock.opened[-1] == choice and len(clock.opened) == (1 if free < 1 else 4)
    tuning.remember(tuning.key_of(f"{tiny.key} auto auto auto", CPU), {"ms": {"ncnn fp32": 1.0}})
    assert str(open_backend(tiny, BackendOptions(), CPU)) == "ncnn fp32", "it was measured before"
