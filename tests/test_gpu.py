"""What only a GPU can show. MUSETALK_ENHANCE_GPU=1: a GPU must be there; =cpu: a dry run."""

from __future__ import annotations

import types
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from musetalk_enhance import FaceEnhancer, attach, monitor_gpu_memory, wrap
from musetalk_enhance.backends import BackendOptions, TorchBackend, selection
from musetalk_enhance.backends.execution import Execution
from musetalk_enhance.config.settings import EnhancerSettings
from musetalk_enhance.hosts.overlap import overlapped
from musetalk_enhance.restorers.catalog import choose
from musetalk_enhance.runtime import memory
from tests.conftest import PLAIN

pytestmark = pytest.mark.gpu

TOLERANCE = {"fp32": 2, "bf16": 12, "fp16": 4}
"""Steps of 1/255. fp32 is TF32 on a GPU, with 10 bits of mantissa, as fp16 has; bf16 has 7."""


@pytest.fixture(scope="module")
def device() -> torch.device:
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def gpu(device: torch.device) -> torch.device:
    if device.type != "cuda":
        pytest.skip("measures a GPU itself")
    return device


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """20 smooth frames, as many as MuseTalk's realtime batch: uint8 (20, 256, 256, 3)."""
    import cv2

    coarse = np.random.default_rng(3).integers(0, 256, (20, 12, 12, 3), np.uint8)
    return np.stack([cv2.resize(one, (256, 256), interpolation=cv2.INTER_CUBIC) for one in coarse])


@pytest.fixture
def lite(device: torch.device) -> Iterator:
    """lite(**options): an enhancer on the GPU that raises; closed after the test."""
    opened = []

    def create(**options) -> FaceEnhancer:
        base = {"model": "lite", "device": str(device), "backend": "torch", "dtype": "fp32"}
        opened.append(FaceEnhancer(**{**base, "on_error": "raise", **options}))
        return opened[-1]

    yield create
    for enhancer in opened:
        enhancer.close()


@pytest.fixture(scope="module")
def truth(frames: np.ndarray) -> np.ndarray:
    with FaceEnhancer(model="lite", device="cpu", backend="torch", dtype="fp32", **PLAIN) as cpu:
        return cpu(frames)


def steps(a, b) -> int:
    """Largest difference, in steps of 1/255."""
    return int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max())


def chw(frames: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2).to(device)


@pytest.mark.parametrize("region", ["full", "lower"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_every_dtype_and_batch_size(lite, frames, truth, device, dtype, region):
    """Each size three times: eager, captured, replayed."""
    if device.type == "cpu" and dtype != "fp32":
        pytest.skip("on a CPU only fp32 is compared")
    enhancer = lite(dtype=dtype, region=region, batch_size=20, **PLAIN)
    for count in (1, 3, 8, 20):
        for _ in range(3):
            restored = enhancer(frames[:count])
            assert steps(restored[:, 144:], truth[:count, 144:]) <= TOLERANCE[dtype]


def test_defaults_are_those_of_the_cpu(lite, frames):
    on_gpu, on_cpu = lite()(frames), lite(device="cpu")(frames)
    difference = np.abs(on_gpu.astype(int) - on_cpu)
    assert difference.mean() < 0.5 and np.quantile(difference, 0.999) <= 4


def test_tensors_stay_where_they_are_and_give_the_arrays_bytes(lite, frames, device):
    tensors = chw(frames, device)
    restored = lite()(tensors)
    assert restored.device == tensors.device and restored.dtype == torch.uint8
    assert restored.is_contiguous()
    assert steps(restored.permute(0, 2, 3, 1).cpu().numpy(), lite()(frames)) == 0


def test_the_same_bits_twice(lite, frames):
    assert steps(lite()(frames[:8]), lite()(frames[:8])) == 0


def test_deterministic_algorithms_are_no_error(lite, frames):
    plain = lite()(frames[:4])
    torch.use_deterministic_algorithms(True)
    try:
        assert steps(lite()(frames[:4]), plain) <= TOLERANCE["fp32"]
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("options", [{}, PLAIN], ids=["defaults", "alone"])
def test_uint8_tensors_are_never_waited_for(lite, frames, gpu, options):
    enhancer, tensors = lite(batch_size=4, **options), chw(frames, gpu)
    for start in (0, 4, 8):  # eager, captured, replayed
        enhancer(tensors[start : start + 4])
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            enhancer(tensors[12:16])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not [str(one.message) for one in caught if "synchroniz" in str(one.message)]


class Vae:
    """As MuseTalk's: decodes to a tensor, converts it to uint8 BGR frames."""

    scaling_factor = 1.0

    def __init__(self, dtype: torch.dtype) -> None:
        decode = lambda latents: types.SimpleNamespace(sample=latents)  # noqa: E731
        self.vae = types.SimpleNamespace(dtype=dtype, decode=decode)

    def decode_latents(self, latents: torch.Tensor) -> np.ndarray:
        image = self.vae.decode(((1 / self.scaling_factor) * latents).to(self.vae.dtype)).sample
        image = (image / 2 + 0.5).clamp(0, 1).detach().cpu().permute(0, 2, 3, 1).float().numpy()
        return (image * 255).round().astype("uint8")[..., ::-1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_wrap_gives_tensors_back_on_their_device(lite, frames, device, dtype):
    given = (chw(frames, device).to(dtype) / 127.5 - 1).contiguous()
    decode = wrap(lambda: given, lite(), color="bgr", value_range="-1..1", layout="NCHW")
    restored = decode()
    assert (restored.device, restored.dtype) == (given.device, dtype)
    assert restored.shape == given.shape and not torch.equal(restored, given)


def test_attach_takes_the_tensor_before_it_leaves_the_gpu(lite, frames, device):
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    latents = chw(frames, device).flip(1).float() / 127.5 - 1
    results = []
    for on_device in (True, False):
        vae = Vae(dtype)
        with attach(vae, lite(), on_device=on_device):
            parts = [vae.decode_latents(latents[start : start + 4]) for start in range(0, 20, 4)]
        results.append(np.concatenate(parts))
    assert steps(*results) <= 1


def test_another_thread_and_stream(lite, frames, device):
    enhancer, plain = lite(), lite()
    expected = [plain(frames[start : start + 4]) for start in range(0, 20, 4)]
    batches = [chw(frames[start : start + 4], device) for start in range(0, 20, 4)]
    for restored, right in zip(overlapped(enhancer, batches), expected, strict=True):
        assert steps(restored.permute(0, 2, 3, 1).cpu().numpy(), right) == 0


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_graphs_give_the_eager_result_and_their_memory_back(gpu, dtype):
    spec = choose(EnhancerSettings(enabled=True, model="lite")).network()
    eager = TorchBackend(spec, gpu, dtype, graphs=False)
    graphed = TorchBackend(spec, gpu, dtype)
    for _ in range(4):
        for count in (1, 4, 20):
            faces = torch.rand(count, *spec.input_shape, device=gpu)
            assert torch.allclose(graphed.run(faces), eager.run(faces), atol=2e-2)
    graphs = [graph for graph in graphed._graphs._graphs.values() if graph is not None]
    print(f"{dtype}: {len(graphs)} graphs, {memory._graph_pools[0] / 2**20:.0f} MiB")
    graphed.close()
    assert memory._graph_pools[0] == 0


def test_selection_measures_what_later_runs_take(gpu):
    spec = choose(EnhancerSettings(enabled=True, model="lite")).network()
    options, executions = BackendOptions(), [Execution("torch", "bf16"), Execution("torch", "fp32")]
    seconds = selection.measure(spec, options, gpu, executions)
    faces = torch.rand(8, *spec.input_shape, device=gpu)
    for execution, measured in seconds.items():
        backend = selection.open_execution(execution, spec, options, gpu)
        for _ in range(4):
            backend.run(faces)
        again = min(selection._timed(backend, faces, gpu) for _ in range(5)) / 8
        backend.close()
        assert 0.5 < measured / again < 2


@pytest.mark.parametrize("mode", ["batch", "memory"])
def test_with_little_memory_every_frame_is_restored(lite, frames, gpu, mode):
    """All but 300 MiB are taken; afterwards the host can allocate."""
    enhancer = lite(mode=mode, batch_size=20, **PLAIN)
    torch.cuda.empty_cache()
    size = max(0, torch.cuda.mem_get_info(gpu)[0] - 300 * 2**20)
    ballast = torch.empty(size, dtype=torch.uint8, device=gpu)
    restored = enhancer(frames)
    host = torch.empty(64 * 2**20, dtype=torch.uint8, device=gpu)
    assert len(restored) == 20 and enhancer.stats.as_dict()["restored"] == 20
    assert host.numel() and ballast.numel()


def test_unload_gives_the_memory_back_and_the_next_call_is_the_same(lite, frames, gpu):
    enhancer = lite(**PLAIN)
    before = enhancer(frames[:4])
    in_use = monitor_gpu_memory()["allocated_bytes"]
    enhancer.unload()
    assert monitor_gpu_memory()["allocated_bytes"] < in_use
    assert steps(enhancer(frames[:4]), before) == 0


def test_matching_continues_after_unload(lite, frames, device):
    """What the stream remembers waits on the CPU."""
    still = np.repeat(frames[:1], 8, 0)
    still[:, 0, 0, 0] = np.arange(8)  # no frame repeats the one before
    sources = np.clip(still.astype(int) + (6, -4, 3), 0, 255).astype(np.uint8)
    enhancer, on_cpu = lite(match="source"), lite(match="source", device="cpu")
    for part in (slice(0, 4), slice(4, 8)):
        difference = steps(
            enhancer(still[part], sources=sources[part]), on_cpu(still[part], sources=sources[part])
        )
        assert difference <= TOLERANCE["fp32"]
        enhancer.unload()
    assert enhancer.stats.restored == 8
