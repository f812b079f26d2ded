"""Real-ESRGAN for the background: RealESRGANer's bits, without its prints and stale tiles."""

from __future__ import annotations

import sys
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from musetalk_enhance.errors import (
    CheckpointError,
    ConfigError,
    FrameError,
    MissingDependencyError,
    MissingWeightError,
    OutOfMemoryError,
    RestorerError,
    UntrustedWeightError,
)
from musetalk_enhance.restorers.background_upsampler import BackgroundUpsampler, _spans
from musetalk_enhance.restorers.official_stack import build_realesrganer, import_official

SMALL = {"num_feat": 8, "num_grow_ch": 4, "num_block": 1}
PLUS = {"num_feat": 64, "num_grow_ch": 32, "num_block": 23}


@pytest.fixture(scope="module", autouse=True)
def stack():
    """Skip where the official packages are not installed; say why."""
    try:
        import_official("realesrgan.utils")
    except MissingDependencyError as error:
        pytest.skip(str(error))


def network(factor: int, sizes: dict[str, int], seed: int = 0) -> torch.nn.Module:
    """basicsr's RRDBNet with random weights, its answers spread over 0..1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = import_official("basicsr.archs.rrdbnet_arch").RRDBNet(3, 3, scale=factor, **sizes)
    with torch.no_grad():
        x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
        net.conv_last.bias.zero_()
        answer = net(x)[0]
        gain = 0.2 / answer.std((1, 2)).mean()
        net.conv_last.weight.mul_(gain)
        net.conv_last.bias.copy_(0.5 - gain * answer.mean((1, 2)))
    return net


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Small checkpoints in the official layout, by the enlargement of their networks."""
    folder = tmp_path_factory.mktemp("upsamplers")
    paths = {factor: folder / f"x{factor}.pth" for factor in (2, 4)}
    for factor, path in paths.items():
        torch.save({"params_ema": network(factor, SMALL).state_dict()}, path)
    return paths


@pytest.fixture
def small(files):
    """small(factor=2, tile=32) -> an upsampler around a small network."""
    return lambda factor=2, tile=32: BackgroundUpsampler(
        files[factor], tile=tile, trust_unpinned=True
    )


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)


def plainly(path, factor, sizes, tile, picture_bgr, scale) -> np.ndarray:
    """What ``RealESRGANer.enhance`` makes of a picture, built and driven as its own scripts do."""
    module = import_official("realesrgan.utils")
    net = import_official("basicsr.archs.rrdbnet_arch").RRDBNet(3, 3, scale=factor, **sizes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about torch.load
        official = module.RealESRGANer(
            factor,
            str(path),
            model=net,
            tile=tile,
            pre_pad=0,
            half=False,
            device=torch.device("cpu"),
        )
    return official.enhance(picture_bgr, outscale=scale)[0]


@pytest.mark.parametrize("tile", [0, 32])
@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_every_bit_is_realesrganers(files, small, capfd, factor, tile, scale):
    given = picture(45, 71)
    expected = plainly(files[factor], factor, SMALL, tile, given, scale)
    assert ("Tile" in capfd.readouterr().out) == (tile > 0)
    found = small(factor, tile).enlarge(given, scale)
    assert (
        found.shape == (45 * scale, 71 * scale, 3)
        and found.dtype == np.uint8
        and found.flags.c_contiguous
    )
    assert np.array_equal(found, expected) and found.std((0, 1)).min() > 15
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_the_published_size_of_network(tmp_path):
    path = tmp_path / "plus.pth"
    torch.save({"params_ema": network(2, PLUS).state_dict()}, path)
    given = picture(16, 16)
    upsampler = BackgroundUpsampler(path, trust_unpinned=True)
    assert upsampler.factor == 2 and len(upsampler._upsampler.model.body) == 23
    found = upsampler.enlarge(given, 2)
    assert (
        np.array_equal(found, plainly(path, 2, PLUS, 400, given, 2))
        and found.std((0, 1)).min() > 15
    )
    assert torch.load.__module__ == "torch.serialization"


def test_half_is_near_float(files, small):
    """``half`` on the CPU: float16 in the network, 8 bits in the result."""
    upsampler, given = small(), picture(40, 60)
    expected = upsampler.enlarge(given, 2)
    state_dict = torch.load(files[2], weights_only=True)["params_ema"]
    upsampler._upsampler = build_realesrganer(files[2], state_dict, tile=32, half=True)
    assert next(upsampler._upsampler.model.parameters()).dtype == torch.float16
    try:
        found = upsampler.enlarge(given, 2)
    except RestorerError as error:
        pytest.skip(f"this torch has no float16 on a CPU: {error}")
    assert 0 < np.abs(found.astype(int) - expected).max() <= 2


def test_colours_stay_in_their_channels(small):
    """A network that repeats pixels gives the picture back, each channel where it was."""
    upsampler, given = small(), picture(40, 60)
    upsampler._upsampler.model.forward = lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert np.array_equal(upsampler.enlarge(given, 2), given.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize(("scale", "size"), [(1.5, (68, 108)), (0.25, (11, 18)), (3, (135, 216))])
def test_sizes_are_rounded(small, scale, size):
    assert small().enlarge(picture(45, 72), scale).shape == (*size, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 1)])
def test_pictures_of_one_pixel(small, size):
    for factor in (2, 4):
        assert small(factor).enlarge(picture(*size), 2).shape == (2 * size[0], 2 * size[1], 3)


def test_any_memory_layout_the_same_bits_and_nothing_is_changed(small):
    upsampler, given = small(), picture(40, 60)
    view, before = given[::-1, :, ::-1], given.copy()
    expected = upsampler.enlarge(view.copy(), 2)
    state = torch.get_rng_state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert np.array_equal(upsampler.enlarge(view, 2), expected)
    assert np.array_equal(given, before) and torch.equal(torch.get_rng_state(), state)


def test_tiles_cover_a_line_once_and_see_their_surroundings():
    for length in (1, 31, 32, 33, 64, 100):
        spans = list(_spans(length, 32, 10))
        assert [pixel for span in spans for pixel in range(span.start, span.end)] == list(
            range(length)
        )
        assert all(span.first == max(0, span.start - 10) for span in spans)
        assert all(span.last == min(length, span.end + 10) for span in spans)
    assert [(span.start, span.end) for span in _spans(100, 0, 10)] == [(0, 100)]


def test_memory_is_that_of_the_answer_and_one_tile(small):
    upsampler, given, seen = small(4), picture(300, 400), []

    def run(x):
        seen.append(max(x.shape[2:]))
        return x.repeat_interleave(4, 2).repeat_interleave(4, 3)

    upsampler._upsampler.model.forward = run
    upsampler.enlarge(given, 4)
    tracemalloc.start()
    answer = upsampler.enlarge(given, 4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert max(seen) <= 32 + 2 * 10
    assert peak < 1.3 * (answer.nbytes + given.nbytes)  # in float32 it would be four times as much


def test_a_tile_that_fails_is_no_stale_tile(small, capfd):
    """RealESRGANer itself prints the error and puts the tile before in this one's place."""
    upsampler, calls = small(), []
    forward = upsampler._upsampler.model.forward
    for error, kind in (
        (RuntimeError("no such kernel"), RestorerError),
        (RuntimeError("CUDA out of memory. Tried to allocate"), OutOfMemoryError),
        (MemoryError("no room"), OutOfMemoryError),
    ):

        def run(x, error=error):
            calls.append(x)
            if len(calls) % 2 == 0:
                raise error
            return forward(x)

        upsampler._upsampler.model.forward = run
        with pytest.raises(RestorerError, match=str(error)) as caught:
            upsampler.enlarge(picture(32, 64), 2)
        assert type(caught.value) is kind
    assert capfd.readouterr() == ("", "")


def test_nan_and_a_closed_upsampler(small):
    upsampler = small()
    upsampler._upsampler.model.forward = lambda x: x * torch.nan
    with pytest.raises(RestorerError, match="NaN"):
        upsampler.enlarge(picture(8, 8), 2)
    upsampler.close()
    with pytest.raises(RestorerError, match="closed"):
        upsampler.enlarge(picture(8, 8), 2)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (np.zeros((8, 8, 3), np.float32), "dtype"),
        ([[0]], "dtype"),
        (np.zeros((8, 8), np.uint8), "shape"),
        (np.zeros((8, 8, 4), np.uint8), "shape"),
        (np.zeros((0, 8, 3), np.uint8), "shape"),
    ],
)
def test_something_else_than_a_picture_is_refused(small, given, reason):
    with pytest.raises(FrameError) as caught:
        small().enlarge(given, 2)
    assert caught.value.reason == reason


@pytest.mark.parametrize("scale", [0, -1, 0.2, 9, float("nan"), float("inf")])
def test_impossible_scales(small, scale):
    with pytest.raises(ConfigError, match="scale"):
        small().enlarge(picture(8, 8), scale)


@pytest.mark.parametrize("options", [{"tile": 33}, {"tile": 16}, {"tile": -2}, {"half": True}])
def test_impossible_options(files, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        BackgroundUpsampler(files[2], trust_unpinned=True, **options)


def test_a_missing_weight_is_said_before_any_work():
    with pytest.raises(
        MissingWeightError, match="musetalk-enhance weights fetch RealESRGAN_x2plus"
    ):
        BackgroundUpsampler()


def test_a_user_s_own_file_is_treated_as_every_weight(files, small, tmp_path):
    with pytest.raises(UntrustedWeightError, match="trust_unpinned"):
        BackgroundUpsampler(files[2])
    state_dict = network(2, SMALL).state_dict()
    save_file(state_dict, tmp_path / "own.safetensors")
    own = BackgroundUpsampler(tmp_path / "own.safetensors", tile=32)
    assert np.array_equal(own.enlarge(picture(20, 20), 2), small().enlarge(picture(20, 20), 2))


@pytest.mark.parametrize("change", ["another", "x1", "cut", "empty body"])
def test_another_network_is_refused(tmp_path, change):
    state_dict = network(2, SMALL).state_dict()
    if change == "another":
        state_dict = {"model.0.weight": torch.zeros(64, 3, 3, 3)}
    elif change == "x1":
        state_dict["conv_first.weight"] = torch.zeros(8, 48, 3, 3)
    elif change == "cut":
        del state_dict["conv_last.weight"]
    else:
        state_dict = {
            key: value for key, value in state_dict.items() if not key.startswith("body.")
        }
    save_file(state_dict, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="RealESRGAN_x2plus") as caught:
        BackgroundUpsampler(tmp_path / "other.safetensors")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("module", "package"), [("basicsr.archs.rrdbnet_arch", "basicsr"), ("realesrgan.utils",) * 2]
)
def test_a_missing_package_is_named_with_its_command(files, monkeypatch, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r"musetalk_enhance\[gfpgan\]") as caught:
        BackgroundUpsampler(files[2], trust_unpinned=True)
    assert caught.value.package == package.partition(".")[0]
