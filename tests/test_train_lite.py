"""Training of lite: data, degradations, network, losses, checkpoints; and the shipped weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

pytest.importorskip("piq")
SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))
import eval_lite  # noqa: E402
import lite_data  # noqa: E402
import lite_gain  # noqa: E402
import lite_losses  # noqa: E402
import lite_net  # noqa: E402
import train_lite  # noqa: E402

WEIGHTS = SCRIPTS.parent / "musetalk_enhance" / "restorers" / "assets" / "lite.safetensors"
TINY = {"width": 16, "blocks": 2, "wide": 8, "look": 8}


@pytest.fixture(autouse=True)
def _leave_randomness_as_it_was():
    with torch.random.fork_rng():
        yield


@pytest.fixture(scope="module")
def texture() -> np.ndarray:
    """A 512 px RGB picture with detail at every size."""
    rng = np.random.default_rng(3)
    noise = [rng.uniform(-1, 1, (512 // s, 512 // s, 3)) for s in (2, 8, 64)]
    layers = [np.kron(n, np.ones((512 // len(n), 512 // len(n), 1))) for n in noise]
    return np.clip(128 + 30 * sum(layers), 0, 255).astype(np.uint8)


@pytest.fixture
def net() -> lite_net.LiteNet:
    """A small network whose every layer does something."""
    torch.manual_seed(0)
    small = lite_net.LiteNet(**TINY).eval()
    for parameter in small.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return small.requires_grad_(False)


@pytest.fixture(scope="module")
def shipped():
    """The shipped network."""
    return eval_lite.shipped_lite()


def crop(source: str = "a", person: int = 0) -> lite_data.Crop:
    return lite_data.Crop(
        person, source, 0, 500, 3.0, [(180.0, 200.0), (330.0, 200.0), (256.0, 380.0)]
    )


def fake_decoder(crops, blend, noise, generator):
    """Blurs with ``blend``, adds ``noise``; its outputs are darker than any other's."""
    soft = F.avg_pool2d(crops, 3, 1, 1, count_include_pad=False)
    noisy = noise * 0.1 * torch.randn(crops.shape, generator=generator)
    return ((1 - blend) * crops + blend * soft + noisy - 0.1).clamp(0, 1)


def energy_of(images: torch.Tensor) -> torch.Tensor:
    return lite_losses.fine_detail(images).square().mean((1, 2, 3))


def arguments(work: Path, *more: str) -> list[str]:
    paths = ["--data", "d", "--repositories", "r", "--yunet", "y", "--work", str(work)]
    shape = [word for name, value in TINY.items() for word in (f"--{name}", str(value))]
    return [*paths, *shape, "--batch", "2", "--patch", "32", *more]


# ---------------------------------------------------------------- people


def test_nobody_is_in_two_splits_and_judges_are_in_none():
    table = json.loads(lite_data.PEOPLE.read_text())
    splits = {name: lite_data.read_people(name) for name in lite_data.SPLITS}
    names = [name for people in splits.values() for files in people for name in files]
    assert len(names) == len(set(names))
    assert min(len(people) for people in splits.values()) >= 10
    # of the repositories' files, d9.jpg is somebody else than d9.mp4
    trained = {Path(name).stem for files in splits["train"] for name in files if ":" not in name}
    assert not trained & lite_data.HELD_OUT
    assert set(table) == {*lite_data.SPLITS, "never"}


@pytest.mark.parametrize(
    "name",
    [
        "clips/d10.mp4",
        "KwaiVGI/LivePortrait:assets/examples/source/s18.mp4",
        "OpenTalker/SadTalker:examples/ref_video/WDA_KatieHill_000.mp4",
        "TMElyralab/MuseTalk:data/video/yongen.mp4",
        "bytedance/LatentSync:assets/demo1_video.mp4",
        "OpenTalker/video-retalking:examples/face/4.mp4",
        "Kedreamix/Linly-Talker:Musetalk/data/video/man_musev.mp4",
        "TMElyralab/MuseV:data/images/Mona_Lisa.jpg",
    ],
)
def test_files_that_judge_the_result_are_refused(name, tmp_path, monkeypatch):
    table = json.loads(lite_data.PEOPLE.read_text())
    table["train"] = [["clips/d13.mp4"], [name]]
    (tmp_path / "people.json").write_text(json.dumps(table))
    monkeypatch.setattr(lite_data, "PEOPLE", tmp_path / "people.json")
    with pytest.raises(ValueError, match="judging"):
        lite_data.read_people("train")


# ---------------------------------------------------------------- crops


def test_windows_hold_the_face_and_are_never_enlarged_much():
    for box in (
        (150.0, 100.0, 200.0, 260.0),
        (-20.0, 5.0, 240.0, 300.0),
        (700.0, 500.0, 110.0, 130.0),
    ):
        window = lite_data.face_window((720, 900, 3), box, 1.2, 1.3)
        assert window is not None
        left, top, width, height = window
        assert min(width, height) >= lite_data.MIN_WINDOW
        assert left >= 0 and top >= 0 and left + width <= 900 and top + height <= 720
        x, y = np.clip(box[0] + box[2] / 2, 0, 900), np.clip(box[1] + box[3] / 2, 0, 720)
        assert left <= x <= left + width and top <= y <= top + height
    assert lite_data.face_window((400, 900, 3), (0.0, 0.0, 200.0, 200.0), 1.2, 1.0) is None


def test_upscaled_pictures_are_left_out(texture):
    class Finder:
        def detect(self, image_rgb):
            return (150.0, 150.0, 200.0, 240.0), [(200.0, 200.0), (300.0, 200.0), (250.0, 330.0)]

    rng = np.random.default_rng(0)
    upscaled = lite_data.resize(lite_data.resize(texture, 64), 512)
    for picture, expected in ((texture, 1), (upscaled, 0)):
        crops = list(lite_data.crops_of(iter([(0, picture)]), Finder(), rng, "a.png", 0, False))
        assert len(crops) == expected
    record, image = next(lite_data.crops_of(iter([(0, texture)]), Finder(), rng, "a.png", 0, False))
    assert image.shape == (512, 512, 3)
    x, y = (round(v) for v in record.points[2])
    assert np.abs(image[y, x].astype(int) - texture[330, 250]).max() < 60


def test_a_video_gives_pairs_of_following_frames_under_one_window(texture):
    class Finder:
        def detect(self, image_rgb):
            return (150.0, 150.0, 200.0, 240.0), [(200.0, 200.0), (300.0, 200.0), (250.0, 330.0)]

    frames = [(10, texture), (11, texture), (40, texture), (41, texture)]
    rng = np.random.default_rng(0)
    crops = list(lite_data.crops_of(iter(frames), Finder(), rng, "a.mp4", 0, True))
    assert [record.frame for record, _ in crops] == [10, 11, 40, 41]
    assert np.array_equal(crops[0][1], crops[1][1]) and crops[0][0].points == crops[1][0].points
    assert not np.array_equal(crops[1][1], crops[2][1])


# ---------------------------------------------------------------- degradations


def test_degradation_is_seeded_and_keeps_size_and_color(texture):
    decoded = lite_data.soften(lite_data.resize(texture, 256), 128)
    for seed in range(40):
        draws = [lite_data.degrade(texture, decoded, np.random.default_rng(seed)) for _ in range(2)]
        assert draws[0].shape == (256, 256, 3) and draws[0].dtype == np.uint8
        assert np.array_equal(*draws)
        # H.264 at CRF 28 moves the mean of a channel of this harsh texture most
        assert np.abs(draws[0].mean((0, 1)) - texture.mean((0, 1))).max() < 2.5


def test_degradation_has_each_kind_by_its_share(texture):
    sharp = lite_data.resize(texture, 256)
    draws = [lite_data.degrade(texture, None, np.random.default_rng(s)) for s in range(160)]
    same = np.mean([np.array_equal(draw, sharp) for draw in draws])
    energy = np.array([lite_data.sharpness(draw) for draw in draws]) / lite_data.sharpness(sharp)
    assert 0.1 < same < 0.35
    assert np.mean(energy < 0.6) > 0.4 and energy.min() < 0.1


def test_views_are_decoded_by_their_share_and_some_targets_are_soft(texture, tmp_path):
    targets, crops = np.stack([texture]), [crop()]
    cache = lite_data.DecodedCache(tmp_path, crops, targets, fake_decoder, versions=24)
    cache.refresh(24)
    sampler = lite_data.PatchSampler(crops, targets, 0, decoded=cache)
    darker, soft = [], []
    for seed in range(200):
        target, image = sampler.view(0, seed, 0, 7, False)
        darker.append(target.mean() - image.mean() > 12)  # the fake decoder takes 25 levels
        soft.append(lite_data.detail(target) < 0.8 * lite_data.detail(texture))
    assert abs(np.mean(darker) - lite_data.DECODER_SHARE) < 0.1
    darker, soft = np.array(darker), np.array(soft)
    assert abs(soft[darker].mean() - lite_data.SOFT_DECODED) < 0.15
    assert abs(soft[~darker].mean() - lite_data.SOFT_OTHERS) < 0.15


def test_soft_target_holds_the_detail_of_fewer_pixels(texture):
    assert lite_data.soften_target(texture, 512) is texture
    half = lite_data.soften_target(texture, 256)
    assert half.shape == texture.shape and lite_data.detail(half) < 0.5 * lite_data.detail(texture)
    sizes = [lite_data.soft_size(np.random.default_rng(seed)) for seed in range(100)]
    assert 104 <= min(sizes) < 120 and 400 < max(sizes) <= 440


def test_what_a_film_takes_is_seen_after_a_resize():
    """A soft original has less than a crisp one below what a resize to 96 px takes from both."""
    astronaut = pytest.importorskip("skimage.data").astronaut()
    rows, columns = np.mgrid[-128:128, -128:128]
    radius = np.hypot(rows, columns)
    below = (radius > 24) & (radius < 44)  # a resize to 96 px takes what is above 48

    def energy(image: np.ndarray) -> float:
        soft = lite_data.soften_exact(lite_data.resize(image, 256), 96)
        spectrum = np.fft.fftshift(np.fft.fft2(soft.mean(2) - soft.mean()))
        return float(np.square(np.abs(spectrum))[below].mean())

    crisp = energy(astronaut)
    assert energy(lite_data.soften_target(astronaut, 104)) > 0.6 * crisp
    films = [lite_data.film(astronaut, np.random.default_rng(seed)) for seed in range(60)]
    shares = [energy(image) / crisp for image in films if image is not astronaut]
    assert abs(len(shares) / len(films) - lite_data.SOFT_OTHERS) < 0.15 and min(shares) < 0.45


def test_soften_is_area_down_and_bicubic_up(texture):
    x = lite_data.to_tensor(texture[None, :256, :256])
    small = F.interpolate(x, size=(96, 96), mode="area")
    expected = F.interpolate(small, size=(256, 256), mode="bicubic", align_corners=False)
    softened = lite_data.to_tensor(lite_data.soften(texture[:256, :256], 96)[None])
    assert (softened - expected.clamp(0, 1)).abs().max() <= 0.51 / 255  # rounding to 8 bits


def test_h264_and_jpeg_lose_more_at_lower_quality(texture):
    frames = [texture[:256, :256]] * 2
    fine, coarse = (lite_data.h264(frames, crf) for crf in (14, 34))
    assert len(fine) == len(coarse) == 2
    assert train_lite.psnr(fine[0], frames[0]) > train_lite.psnr(coarse[0], frames[0]) + 2
    high, low = (train_lite.psnr(lite_data.jpeg(frames[0], q), frames[0]) for q in (95, 40))
    assert high > low + 2


def test_conditions_get_softer_with_size_and_blend(texture):
    energies = [
        lite_data.fine_energy(lite_data.condition(name, texture, fake_decoder, 0))
        for name in ("80 px", "112 px", "160 px", "none")
    ]
    assert energies == sorted(energies)
    assert lite_data.condition("decoder 0/0", texture, None, 0) is None
    none, some = (
        lite_data.fine_energy(lite_data.decode(fake_decoder, texture[:256, :256], b, 0.0, 0))
        for b in (0.0, 0.5)
    )
    assert some < none


def test_decoded_views_fill_up_turn_by_turn_and_go_on_after_a_restart(texture, tmp_path):
    targets, crops = np.stack([texture, texture[::-1], texture[:, ::-1]]), [crop(), crop(), crop()]
    rng = np.random.default_rng(0)
    cache = lite_data.DecodedCache(tmp_path, crops, targets, fake_decoder, versions=2)
    assert all(cache.get(index, rng) is None for index in range(3))
    cache.refresh(2)
    present = [cache.get(index, rng) is not None for index in range(3)]
    assert sum(present) == 2 and not cache.complete()
    cache.refresh(1)
    again = lite_data.DecodedCache(tmp_path, crops, targets, fake_decoder, versions=2)
    assert again.total == 3 and again.complete() and list(again.turns) == [1, 1, 1]
    again.refresh(3)
    for index, target in enumerate(targets):
        target = np.ascontiguousarray(target)
        for _ in range(6):
            decoded, size = again.get(index, rng)
            view = lite_data.resize(lite_data.soften_target(target, size), 256).astype(int)
            # the place is kept, whatever the shift of the grid was
            errors = [np.abs(np.roll(view, s, 1) - 25 - decoded).mean() for s in (-2, 0, 2)]
            assert np.argmin(errors) == 1
    before = again.images.copy()
    again.refresh(1)
    assert not np.array_equal(before, again.images)


def test_following_frames_are_decoded_alike(texture, tmp_path):
    crops = [lite_data.Crop(0, "a.mp4", 4, 500, 3.0, [], 1), crop("a.mp4"), crop("b")]
    targets = np.stack([texture] * 3)

    def tinted(crops_rgb, blend, noise, generator):
        return torch.full_like(crops_rgb, blend)

    cache = lite_data.DecodedCache(tmp_path, crops, targets, tinted, versions=2)
    cache.refresh(4)
    assert cache.total == 4 and list(cache.turns) == [2, 2, 2]
    for seed in range(8):
        first, second = (cache.get(index, np.random.default_rng(seed)) for index in (0, 1))
        assert np.array_equal(first[0], second[0]) and first[1] == second[1]


def test_recolor_changes_light_but_not_detail_places(texture):
    out, twin = lite_data.recolor([texture, texture], np.random.default_rng(5))
    assert out.shape == texture.shape and out.dtype == np.uint8 and np.array_equal(out, twin)
    correlation = np.corrcoef(out[..., 1].ravel(), texture[..., 1].ravel())[0, 1]
    assert correlation > 0.98 and not np.array_equal(out, texture)


# ---------------------------------------------------------------- batches


def test_batches_are_seeded_by_step_and_line_up(texture):
    sampler = lite_data.PatchSampler([crop()], texture[None], seed=1, patch=32)
    patches = sampler.batch(4, 6)
    inputs, targets, whole, owner = patches
    assert inputs.shape == (6, 32, 32, 3) and targets.shape == (6, 64, 64, 3)
    assert inputs.dtype == torch.uint8
    assert all(torch.equal(a, b) for a, b in zip(patches, sampler.batch(4, 6), strict=True))
    # every patch is a part of the face that owns it
    assert whole.shape == (3, 256, 256, 3) and owner.tolist() == [0, 0, 1, 1, 2, 2]
    windows = whole[owner].unfold(1, 32, 2).unfold(2, 32, 2).permute(0, 1, 2, 4, 5, 3)
    assert (windows == inputs[:, None, None]).all((3, 4, 5)).any((1, 2)).all()
    assert not torch.equal(inputs, sampler.batch(5, 6)[0])
    # the same view: 16 px means agree, but for what softening and noise move
    views = [(lite_data.to_tensor(x), side) for x, side in ((inputs, 16), (targets, 32))]
    means = [F.avg_pool2d(x, side) for x, side in views]
    assert (means[0] - means[1]).abs().mean() < 0.03


def test_patches_gather_at_eyes_and_mouth(texture):
    sampler = lite_data.PatchSampler([crop()], texture[None], seed=1, patch=32)
    rng = np.random.default_rng(0)
    centers = np.array([sampler.place(crop(), rng, 32) for _ in range(300)]) + 16
    near = np.hypot(*(centers - np.array([190, 128])).T) < 24  # the mouth, in the input
    assert near.mean() > 0.12
    assert (centers >= 16).all() and (centers <= 240).all() and not (centers % 2).any()


def test_pairs_are_following_frames_with_one_softness_and_faces_are_whole(texture):
    crops = [lite_data.Crop(0, "a.mp4", 4, 500, 3.0, [], 1), crop("a.mp4"), crop("b", 1)]
    brighter = np.clip(texture.astype(int) + 8, 0, 255).astype(np.uint8)
    images = np.stack([texture, brighter, texture[::-1]])
    sampler = lite_data.PatchSampler(crops, images, seed=1, patch=32)
    energies = []
    for step in range(12):
        inputs, targets, whole, owner = sampler.batch(step, 4, "pairs")
        assert len(whole) == 2 and owner.tolist() == [0, 0, 1, 1]
        assert inputs.shape == (4, 32, 32, 3) and targets.shape == (4, 64, 64, 3)
        first, second = lite_data.to_tensor(targets).chunk(2)
        lighter = (second - first).mean((1, 2, 3))
        assert (lighter >= 0).all()
        halves = lite_data.to_tensor(inputs).chunk(2)
        energies.append([float(half.std()) for half in halves])
    ratio = np.array(energies)[:, 0] / np.maximum(np.array(energies)[:, 1], 1e-6)
    assert np.abs(np.log(ratio[ratio > 0])).max() < 0.15  # one softness
    inputs, targets, whole, owner = sampler.batch(0, 8, "faces")
    assert torch.equal(whole[owner], inputs)
    assert inputs.shape == (2, 256, 256, 3) and targets.shape == (2, 512, 512, 3)


def test_the_stream_goes_on_at_a_step_and_decodes_beside(texture, tmp_path):
    np.save(tmp_path / "train.npy", texture[None])
    (tmp_path / "train.json").write_text(json.dumps([{**crop().__dict__}]))
    module = tmp_path / "decoder.py"
    module.write_text("def decoder_soft(crops, blend, noise, generator):\n    return crops * 0.5\n")
    words = arguments(tmp_path, "--versions", "1", "--decode-every", "2", "--steps", "4")
    args = train_lite.parse_args([*words, "--decoder", str(module)])
    batches = list(lite_data.BatchStream(args, 0))
    assert [len(patches.whole) for _, _, patches in batches] == [1] * 4
    counts = [each[1] for each in batches]
    assert counts[0] == 1 and counts[-1] >= 2
    args = train_lite.parse_args([*words, "--per-face", "1"])
    assert len(next(iter(lite_data.BatchStream(args, 0)))[2].whole) == 2
    first, later = (
        [each[2].targets for each in lite_data.BatchStream(args, start)] for start in (0, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first[2:], later, strict=True))


def test_the_second_stage_mixes_pairs_and_faces_in(tmp_path):
    words = arguments(tmp_path)
    kinds = {}
    for stage in ("1", "2"):
        stream = lite_data.BatchStream(train_lite.parse_args([*words, "--stage", stage]), 0)
        kinds[stage] = [stream.kind(step, True) for step in range(80)]
    assert set(kinds["1"]) == {"patches"}
    assert kinds["2"].count("pairs") > 12 and kinds["2"].count("faces") == 5
    assert "pairs" not in [stream.kind(step, False) for step in range(80)]


# ---------------------------------------------------------------- network


def test_an_untrained_net_is_bicubic():
    torch.manual_seed(0)
    x = torch.rand(1, 3, 32, 48)
    bicubic = F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)
    with torch.no_grad():
        assert torch.allclose(lite_net.LiteNet(**TINY)(x), bicubic, atol=1e-5)


def test_a_patch_is_restored_as_a_part_of_its_face(net):
    faces = torch.rand(2, 3, 256, 256)
    for number, style in enumerate(net.styles):
        torch.nn.init.normal_(style.weight, std=0.5 + number)
    looks = net.look(faces)
    whole = net.restore(faces, looks)
    patches = faces[:, :, 64:192, 64:192].repeat_interleave(2, 0)
    part = net.restore(patches, looks[[0, 0, 1, 1]])
    inner = part[:, :, 96:160, 96:160]  # what the net reaches is inside the patch
    expected = whole[:, :, 224:288, 224:288].repeat_interleave(2, 0)
    assert torch.allclose(inner, expected, atol=1e-4)
    alone = net.restore(patches, net.look(patches))
    assert not torch.allclose(alone[:, :, 96:160, 96:160], expected, atol=1e-4)


def test_a_start_without_a_look_and_a_gain_does_the_same(net, tmp_path):
    state = {name: value for name, value in net.state_dict().items()}
    plain = {k: v for k, v in state.items() if not k.startswith(("look.", "styles.", "gain."))}
    for value in net.gain[1].parameters():
        torch.nn.init.zeros_(value)
    torch.save({"ema": plain}, tmp_path / "plain.pt")
    words = arguments(tmp_path, "--init", str(tmp_path / "plain.pt"))
    started = train_lite.Trainer(train_lite.parse_args(words)).net
    x = torch.rand(1, 3, 64, 64)
    for style in net.styles:
        torch.nn.init.zeros_(style.weight)
        torch.nn.init.ones_(style.bias)
    assert torch.allclose(started(x), net(x), atol=1e-6)
    torch.save({"ema": plain | {"other": torch.zeros(1)}}, tmp_path / "plain.pt")
    with pytest.raises(ValueError, match="another network"):
        train_lite.Trainer(train_lite.parse_args(words))


@pytest.mark.parametrize("keep, gain", [(0, 1.0), (0, 9.0), (120, 1.0)])
def test_what_is_exported_is_the_net_on_every_backend(tmp_path, keep, gain):
    pytest.importorskip("ncnn")
    from safetensors.torch import load_file

    from musetalk_enhance.backends import NetworkSpec
    from musetalk_enhance.backends.ncnn_backend import NcnnBackend
    from musetalk_enhance.restorers.lite_network import LiteNetwork

    torch.manual_seed(0)
    full = lite_net.LiteNet().eval()
    with torch.no_grad():
        for parameter in full.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    torch.nn.init.constant_(full.gain[1].bias, gain)  # within its limits, and above them
    train_lite.export(full, tmp_path / "net.safetensors", 1, torch.float32)
    fused = LiteNetwork(load_file(tmp_path / "net.safetensors"), keep)
    assert (fused.width, fused.blocks) == (96, 4) and fused.first == (68 if keep else 0)
    x = F.interpolate(torch.rand(1, 3, 40, 40), size=256, mode="bicubic").clamp(0, 1)
    with torch.inference_mode():
        published, restored = full(x), fused(x)
    # weights at random reach further than trained ones
    assert float((restored - published)[:, :, 2 * keep :].abs().max()) < (2 / 255 if keep else 1e-5)
    assert torch.equal(
        restored[:, :, : 2 * keep],
        restored[:, :, 2 * keep][:, :, None].expand(-1, -1, 2 * keep, -1),
    )
    spec = NetworkSpec(
        "lite",
        fused,
        (3, 256, 256),
        (0.0, 1.0),
        "lite2",
        symbolic=lambda ops: fused.compute(ops, ops.input),
        identity=f"test {keep} {gain}",
    )
    backend = NcnnBackend(spec)
    assert float((backend.run(x) - restored)[:, :, 2 * keep :].abs().max()) < 1e-4
    backend.close()


def test_cost_and_reach_are_what_they_are_said_to_be(net):
    full = lite_net.LiteNet()
    assert full.macs() <= 3.8e9
    layer = net.head
    side = (64 + 2 * lite_net.PADDING) // 4
    assert net.macs(64) > layer.weight.numel() * side * side
    x = torch.rand(1, 3, 256, 256)
    y = x.clone()
    y[..., :, :64] += 0.1  # columns from 64 on + reach do not see it, but for the look
    look = net.look(x)
    changed = (net.restore(y, look) - net.restore(x, look)).abs().amax((0, 1, 2)) > 1e-6
    last = int(changed.nonzero().max())
    assert last >= 2 * 64 + 40  # it does look wide
    assert last < 2 * (64 + net.reach())


def test_branches_fuse_into_one_kernel():
    torch.manual_seed(0)
    layer = lite_net.Layer(4, 5, leaky=True)
    torch.nn.init.normal_(layer.point)
    x = torch.randn(1, 4, 8, 8)
    branches = F.conv2d(x, layer.weight, layer.bias, padding=1) + F.conv2d(x, layer.point)
    expected = F.leaky_relu(branches, 0.2)
    assert torch.allclose(layer(x), expected, atol=1e-5)
    fused = layer.fused()
    assert fused.weight.shape == (5, 4, 3, 3) and fused.leaky


# ---------------------------------------------------------------- losses and training


def test_losses_are_zero_on_the_target_and_grow_with_what_is_lost(texture):
    target = lite_data.to_tensor(texture[None, :64, :64])
    soft = F.avg_pool2d(target, 5, 1, 2, count_include_pad=False)
    softer = F.avg_pool2d(target, 9, 1, 4, count_include_pad=False)
    losses = (
        lite_losses.robust,
        lambda d: lite_losses.scales_loss(d)[0],
        lite_losses.spectrum_loss,
    )
    for loss in losses:
        values = [float(loss(x - target)) for x in (target, soft, softer)]
        assert values[0] == 0 < values[1] < values[2]
    # drift is about color: blur is none, a shift is
    shift = torch.full_like(target, 0.05)
    assert float(lite_losses.scales_loss(soft - target)[1]) < 0.01
    assert float(lite_losses.scales_loss(shift)[1]) == pytest.approx(0.05, abs=1e-4)


def test_sharpness_has_limits(texture):
    target = lite_data.to_tensor(texture[None, :128, :128])
    mean = F.avg_pool2d(target, 9, 1, 4, count_include_pad=False)

    def loss(share: float) -> float:
        out = mean + share**0.5 * (target - mean)
        return float(lite_losses.sharpness_loss(out, target))

    assert loss(0.9) < 0.01 and loss(1.0) < 1e-6
    assert loss(0.1) > loss(0.4) > 0.05
    assert loss(2.0) > 0.05
    flat = torch.full_like(target, 0.5)
    noisy = flat + torch.randn(flat.shape, generator=torch.Generator().manual_seed(0)) / 255
    assert float(lite_losses.sharpness_loss(noisy, flat)) < 3 * loss(0.1)
    # the same measure as the report's
    bgr = np.ascontiguousarray(texture[:128, :128, ::-1])
    energy = float(energy_of(target)) * 255**2
    assert energy == pytest.approx(lite_data.fine_detail_energy(bgr), rel=0.15)


def test_combs_across_an_edge_are_no_sharpness():
    target = torch.zeros(1, 3, 64, 64)
    target[..., 28:] = 0.5  # in the middle of a cell
    soft = F.avg_pool2d(F.pad(target, (4, 4, 0, 0), mode="replicate"), (1, 9), 1)
    comb = soft.clone()
    rows = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(16).view(1, 1, 64, 1)
    comb[..., 24:32] += 0.04 * rows
    shares = [energy_of(x) / energy_of(target) for x in (soft, comb)]
    assert float(shares[1]) > 2 * float(shares[0]), "by energy alone it is sharper"
    losses = [float(lite_losses.sharpness_loss(x, target)) for x in (soft, comb, target)]
    assert losses[1] > losses[0] > losses[2] == 0
    false = [float(lite_losses.false_detail(x, target)) for x in (soft, comb, target)]
    assert false[1] > 0.5 > 0.2 > false[0] and false[2] == 0
    assert float(lite_losses.false_detail(2**0.5 * target, target)) == pytest.approx(0.5, abs=0.01)


def test_dots_are_a_grid_and_photographs_are_not():
    astronaut = pytest.importorskip("skimage.data").astronaut()
    assert lite_data.grid(astronaut) < 0.03
    shifted = np.clip(astronaut.astype(np.int16), 10, None)
    shifted[::4, ::4] -= 10
    dots = shifted.astype(np.uint8)
    assert lite_data.grid(dots) > 0.2
    out, target = (lite_data.to_tensor(each[None]) for each in (dots, astronaut))
    assert float(lite_losses.grid_loss(target, target)) == 0
    softer = F.avg_pool2d(target, 3, 1, 1)
    assert float(lite_losses.grid_loss(softer, target)) < 0.02, "softness is no grid"
    loss = float(lite_losses.grid_loss(out, target))
    assert loss == pytest.approx(lite_data.grid(dots) - lite_data.grid(astronaut), rel=0.2)


def test_subbands_hold_detail_and_no_brightness(texture):
    target = lite_data.to_tensor(texture[None, :64, :64])
    bands = lite_losses.subbands(target)
    assert bands.shape == (1, 6, 64, 64)
    assert torch.allclose(bands, lite_losses.subbands(target + 0.1), atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(bands, lite_losses.subbands(target), atol=1e-3)
    rows = torch.zeros(1, 3, 32, 32)
    rows[:, :, ::2] = 1
    strength = lite_losses.subbands(rows).square().mean((0, 2, 3))
    assert int(strength.argmax()) == 1 and float(strength[0]) == float(strength[2]) == 0
    columns = lite_losses.subbands(rows.transpose(2, 3)).square().mean((0, 2, 3))
    assert int(columns.argmax()) == 0


def test_artifacts_are_where_the_residual_varies_and_the_average_is_nearer():
    target = torch.zeros(1, 3, 32, 32)
    out = target.clone()
    out[..., 4:12, 4:12] = 0.2 * torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    weights = lite_losses.artifact_map(out, target, target)
    assert float(weights[..., 4:12, 4:12].mean()) > 10 * float(weights[..., 20:, 20:].mean())
    assert float(lite_losses.artifact_map(out, out + 0.5, target).max()) == 0


def test_a_constant_error_does_not_flicker():
    error = torch.rand(2, 3, 16, 16)
    steady, other = torch.cat([error, error]), torch.cat([error, error.flip(3)])
    assert float(lite_losses.flicker_loss(steady)) < 0.002 < float(lite_losses.flicker_loss(other))


def test_the_critic_learns_to_tell_soft_from_sharp(texture):
    torch.manual_seed(0)
    critic = lite_losses.Critic(8)
    optimizer = torch.optim.Adam(critic.parameters(), lr=3e-3)
    sharp = lite_data.to_tensor(texture[None, :64, :64])
    soft = F.avg_pool2d(sharp, 3, 1, 1, count_include_pad=False)
    losses = []
    for _ in range(25):
        loss = lite_losses.critic_loss(critic(sharp, soft), critic(soft, soft))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_a_few_steps_lower_the_loss_and_a_checkpoint_carries_on(texture, tmp_path):
    # the limits of detail pull against l1 on this texture, which no network can predict
    words = ["--no-bf16", "--lr", "0.01", "--sharpness", "0"]
    args = train_lite.parse_args(arguments(tmp_path, *words))
    sampler = lite_data.PatchSampler([crop()], texture[None], 0, patch=32)
    batch = sampler.batch(1, 2)
    assert float(batch.targets.float().std()) > 10  # not one of the flat ones
    trainer = train_lite.Trainer(args)
    logs = [trainer.train_step(batch) for _ in range(12)]
    assert logs[-1]["l1"] < logs[0]["l1"]
    torch.save(trainer.state(), tmp_path / "lite.pt")
    again = train_lite.Trainer(args)
    again.load(tmp_path / "lite.pt")
    assert again.step == 12
    assert again.train_step(batch)["l1"] == pytest.approx(trainer.train_step(batch)["l1"], rel=1e-4)


def test_the_second_stage_starts_from_the_first_and_balances_the_critic(texture, tmp_path):
    first = train_lite.Trainer(train_lite.parse_args(arguments(tmp_path)))
    with torch.no_grad():
        first.ema.tail.bias.fill_(0.02)
    torch.save(first.state(), tmp_path / "first.pt")
    words = ["--stage", "2", "--init", str(tmp_path / "first.pt"), "--no-bf16"]
    trainer = train_lite.Trainer(train_lite.parse_args(arguments(tmp_path, *words)))
    assert float(trainer.net.tail.bias.detach().min()) == pytest.approx(0.02)
    sampler = lite_data.PatchSampler([crop()], texture[None], 0, patch=32)
    patches = sampler.batch(0, 4)
    x, target = (lite_data.to_tensor(each) for each in patches[:2])
    out = trainer.net(x).detach()
    before = [p.detach().clone() for p in trainer.critic.parameters()]
    pull, figures = trainer.criticism(lite_net.enlarged(x), out, target)
    assert pull.shape == out.shape and float(pull.abs().max()) > 0
    # high-frequency subbands alone are judged: no pull on the mean
    assert float(pull.mean().abs()) < 1e-3 * float(pull.abs().mean())
    assert any(
        not torch.equal(a, b) for a, b in zip(before, trainer.critic.parameters(), strict=True)
    )
    log = trainer.train_step(patches)
    assert {"l1", "artifacts", "critic", "margin"} <= set(log) and trainer.balance > 0
    assert "flicker" in trainer.train_step(patches, "pairs")
    state = trainer.state()
    again = train_lite.Trainer(trainer.args)
    torch.save(state, tmp_path / "second.pt")
    again.load(tmp_path / "second.pt")
    assert again.balance == trainer.balance and "critic" in state and "critic" not in first.state()


def test_a_face_wants_the_gain_that_brings_its_fine_detail(texture):
    target = lite_data.to_tensor(texture[None]).repeat(2, 1, 1, 1)
    target[1] = torch.from_numpy(cv2.GaussianBlur(texture, (0, 0), 3)).permute(2, 0, 1) / 255
    soft = F.interpolate(target, scale_factor=0.5, mode="area")
    restored = lite_net.enlarged(soft)
    gains = lite_gain.wanted_gains(restored, target, share=0.9, decibels=100)

    def sharper(gain):
        return restored + gain.float()[:, None, None, None] * lite_losses.fine_detail(restored)

    def share(gain):
        energies = [energy_of(x) for x in (sharper(gain), target)]
        return energies[0] / energies[1]

    def error(gain):
        return (sharper(gain) - target).square().mean((1, 2, 3)).double()

    assert float(share(gains)[0]) == pytest.approx(0.9, abs=0.02)
    nearest = lite_gain.wanted_gains(restored, target, share=0, decibels=100)
    least = error(nearest)
    for change in (-0.1, 0.1):
        assert (error(nearest + change) > least).all()
    # what is soft itself gets as much as brings it nearest
    assert float(gains[1]) == pytest.approx(float(nearest[1]))
    limited = lite_gain.wanted_gains(restored, target, share=1, decibels=0.1)
    lost = 10 * torch.log10(error(limited) / least)
    assert float(lost[0]) == pytest.approx(0.1, abs=0.01) and float(lost.max()) < 0.11


def test_the_gain_is_fitted_to_the_energies(texture, net, tmp_path, monkeypatch):
    crisp = lite_data.to_tensor(texture[None])
    faces = []
    for size in range(96, 256, 10):
        small = F.interpolate(crisp, size=(size, size), mode="area")
        faces.append((F.interpolate(small, size=(256, 256), mode="bicubic").clamp(0, 1), crisp))
    plain = [float(lite_gain.wanted_gains(net.restore(x, net.look(x)), y)) for x, y in faces]
    assert lite_gain.fit_gain(net, faces) > 0.5
    gains = [float(net.gains(net.look.energies(x))) for x, _ in faces]
    assert np.corrcoef(gains, np.clip(plain, *lite_gain.LIMITS))[0, 1] > 0.7
    x = faces[0][0]
    restored = net.restore(x, net.look(x))
    expected = restored + gains[0] * lite_losses.fine_detail(restored)
    assert torch.allclose(net(x), expected, atol=1e-6)
    np.save(tmp_path / "train.npy", texture[None])
    (tmp_path / "train.json").write_text(json.dumps([{**crop().__dict__}]))
    cache = lite_data.DecodedCache(tmp_path, [crop()], texture[None], fake_decoder, versions=2)
    cache.refresh(2)
    state = {"ema": lite_net.LiteNet(**TINY).state_dict(), "shape": TINY, "step": 7}
    torch.save(state, tmp_path / "a.pt")
    paths = f"--export {tmp_path}/b --snapshot {tmp_path}/c.safetensors"
    words = f"x --work {tmp_path} --weights {tmp_path}/a.pt --faces 16 {paths}"
    monkeypatch.setattr(sys, "argv", words.split())
    lite_gain.main()
    for name in ("b", "c.safetensors"):
        with safe_open(tmp_path / name, "pt") as file:
            assert file.metadata()["steps"] == "7"
            assert float(file.get_tensor("gain.1.weight").abs().max()) > 0
    other = lite_net.LiteNet(**TINY | {"blocks": 3}).state_dict()
    torch.save(state | {"ema": other}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="another network"):
        lite_gain.main()


def test_gains_have_limits(net, tmp_path):
    from safetensors.torch import load_file

    from musetalk_enhance.restorers.lite_network import GAIN_LIMITS, LiteNetwork

    x = torch.rand(1, 3, 256, 256)
    low, high = GAIN_LIMITS
    for bias, expected in ((-9.0, low), (1.0, None), (9.0, high)):
        torch.nn.init.constant_(net.gain[1].bias, bias)
        torch.nn.init.constant_(net.gain[1].weight, 0.001)
        gain = float(net.gains(net.look.energies(x)))
        assert expected is None or gain == pytest.approx(expected)
        assert expected is not None or low < gain < high
        train_lite.export(net, tmp_path / "net", 1, torch.float32)
        with torch.inference_mode():
            assert torch.allclose(LiteNetwork(load_file(tmp_path / "net"))(x), net(x), atol=1e-5)


def test_the_meter_pulls_on_whole_faces(texture, tmp_path):
    trainer = train_lite.Trainer(train_lite.parse_args(arguments(tmp_path, "--stage", "2")))
    target = lite_data.to_tensor(texture[None])
    assert float(trainer.meter_loss(target, target)) == 0
    out = target.roll(24, 3).requires_grad_()
    loss = trainer.meter_loss(out, target)
    assert float(loss.detach()) > 0
    assert torch.isfinite(torch.autograd.grad(loss, out)[0]).all()


def test_a_step_without_a_finite_gradient_changes_nothing(tmp_path):
    trainer = train_lite.Trainer(train_lite.parse_args(arguments(tmp_path, "--no-bf16")))
    before = [parameter.detach().clone() for parameter in trainer.net.parameters()]
    nothing = torch.full((1, 32, 32, 3), float("nan"))
    whole = torch.zeros(1, 256, 256, 3)
    owner = torch.zeros(1, dtype=torch.long)
    trainer.train_step(lite_data.Patches(nothing, torch.zeros(1, 64, 64, 3), whole, owner))
    after = list(trainer.net.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(torch.isfinite(parameter).all() for parameter in trainer.ema.parameters())


def test_the_rate_warms_up_stays_and_falls(tmp_path):
    args = train_lite.parse_args(arguments(tmp_path, "--steps", "10000", "--lr", "1"))
    trainer = train_lite.Trainer(args)
    rates = []
    for trainer.step in (0, 600, 7900, 9000, 10000):
        rates.append(trainer.learning_rate())
    assert rates[0] < 0.01 and rates[1] == rates[2] == 1 and 0.3 < rates[3] < 0.7
    assert rates[4] == pytest.approx(0.02)


def test_a_run_logs_and_goes_on_with_the_work_folder_alone(texture, tmp_path, monkeypatch):
    for split in ("train", "validation"):
        np.save(tmp_path / f"{split}.npy", texture[None])
        (tmp_path / f"{split}.json").write_text(json.dumps([{**crop().__dict__}]))
    short = [
        "--workers",
        "0",
        "--validate-every",
        "2",
        "--validation-count",
        "1",
        "--save-minutes",
        "0",
    ]
    monkeypatch.setattr(sys, "argv", ["x", *arguments(tmp_path, *short, "--steps", "2")])
    train_lite.main()
    monkeypatch.setattr(sys, "argv", ["x", "--work", str(tmp_path), "--resume", "--steps", "4"])
    train_lite.main()
    lines = [json.loads(line) for line in (tmp_path / "lite.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation" in line] == [2, 4]
    assert lines[0]["bicubic"]["96 px"][0] < lines[0]["bicubic"]["160 px"][0]
    assert len(lines[0]["bicubic"]["96 px"]) == 4
    with pytest.raises(SystemExit):
        train_lite.parse_args(arguments(tmp_path, "--per-face", "0"))
    assert torch.load(tmp_path / "lite.pt", weights_only=True)["step"] == 4
    assert not list(tmp_path.glob("*.partial*"))


def test_export_fuses_replaces_the_file_and_says_what_it_is(net, tmp_path):
    path = tmp_path / "lite.safetensors"
    path.write_bytes(b"old")
    train_lite.export(net, path, 7)
    with safe_open(path, "pt") as file:
        assert file.metadata()["steps"] == "7" and file.metadata()["license"] == "apache-2.0"
        assert torch.equal(file.get_tensor("mix.weight"), net.mix.kernel().half())
        assert not [name for name in file.keys() if "point" in name]  # noqa: SIM118
    assert [p.name for p in tmp_path.iterdir()] == ["lite.safetensors"]


# ---------------------------------------------------------------- evaluation


def test_another_run_begins_with_a_snapshot(net, tmp_path):
    path = tmp_path / "start.safetensors"
    train_lite.snapshot(net, path, 7)
    args = train_lite.parse_args(arguments(tmp_path, "--init", str(path)))
    for trained in (train_lite.Trainer(args).net, train_lite.Trainer(args).ema):
        for name, value in trained.state_dict().items():
            assert torch.equal(value, net.state_dict()[name].half().float())


def test_the_rival_is_the_best_mask_at_least_as_sharp():
    grid = [(0.3, 33.0), (0.6, 32.0), (0.7, 32.5), (1.2, 30.0)]
    assert eval_lite.rival(grid, 0.5) == 32.5
    assert eval_lite.rival(grid, 0.9) == 30.0
    assert eval_lite.rival(grid, 1.5) is None


def test_evaluation_measures_every_row(texture, shipped):
    bicubic = lambda image: train_lite.apply(None, image[None])[0]  # noqa: E731
    oracle = lambda image: texture  # noqa: E731
    rows = {"bicubic": bicubic, "oracle": oracle}
    result = eval_lite.measure_stills(rows, [crop()], texture[None], None, ["96 px", "decoder 0/0"])
    assert list(result["conditions"]) == ["96 px"]  # no decoder, no such row
    table = result["conditions"]["96 px"]
    assert table["oracle"]["haarpsi"] > 0.999 > table["bicubic"]["haarpsi"]
    assert table["oracle"]["share"] == pytest.approx(1) and table["bicubic"]["share"] < 0.5
    assert table["bicubic"]["share"] < table["bicubic"]["share_256"] < table["oracle"]["share_256"]
    assert result["second_pass"]["oracle"] == 0
    assert table["oracle"]["false"] == 0 < table["bicubic"]["false"] < 0.5


def test_warping_error_sees_flicker(texture):
    still = [texture] * 3
    rng = np.random.default_rng(0)
    noisy = [np.clip(f + rng.normal(0, 8, f.shape), 0, 255).astype(np.uint8) for f in still]
    motions = eval_lite.flows(still)
    assert eval_lite.warping(still, motions) < 0.5 < eval_lite.warping(noisy, motions)


def test_figures_at_the_size_of_hosts(texture):
    small = [lite_data.resize(texture, 256)] * 2
    soft = [lite_data.soften(small[0], 128)] * 2
    same, softened = (eval_lite.at_host_size(frames, small) for frames in (small, soft))
    assert same["share"] == 1 and same["psnr"] > 90
    assert softened["share"] < 0.7 and softened["psnr"] < 40


# ---------------------------------------------------------------- the shipped weights


def test_shipped_weights_are_small_and_keep_a_flat_color(shipped):
    assert WEIGHTS.stat().st_size <= 8 * 2**20
    colors = np.random.default_rng(0).integers(0, 256, (8, 1, 1, 3)).astype(np.uint8)
    flat = np.ascontiguousarray(np.broadcast_to(colors, (8, 256, 256, 3)))
    out = train_lite.apply(shipped, flat)
    assert np.abs(out.astype(int) - colors).max() <= 1


def test_shipped_weights_sharpen_a_softened_face(shipped):
    data = pytest.importorskip("skimage.data")
    face = lite_data.resize(np.ascontiguousarray(data.astronaut()[0:256, 96:352]), 512)
    given = lite_data.soften(lite_data.resize(face, 256), 96)
    bicubic, out = (train_lite.apply(net, given[None])[0] for net in (None, shipped))
    assert train_lite.psnr(out, face) > train_lite.psnr(bicubic, face) + 1.0
    # the plain Laplacian counts dots as sharpness; this is the report's measure
    assert lite_data.fine_energy(out) > 2 * lite_data.fine_energy(bicubic)
    assert np.abs(out.mean((0, 1)) - given.mean((0, 1))).max() < 1.0
    assert lite_data.grid(out) < 0.06  # no dots
