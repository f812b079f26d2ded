"""The demo: its talking head, its imitation of the host, its files and figures, and when it
fails."""

from __future__ import annotations

import json
import sys
from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch

from musetalk_enhance.enhancer import GFPGANEnhancer
from musetalk_enhance.media import probe, read_frames, read_image
from musetalk_enhance.report.metrics import color_drift, laplacian_energy, psnr
from tests.conftest import RECORD, ROOT
from tests.pictures import to_faces, to_frames

pytest.importorskip(
    "skimage", reason="the demo animates scikit-image's portrait: pip install -e '.[demo]'"
)
pytestmark = pytest.mark.filterwarnings("error")

sys.path.insert(0, str(ROOT / "examples"))
import demo  # noqa: E402
import latent_softness  # noqa: E402
import talking_head  # noqa: E402

FPS = Fraction(30000, 1001)
SHORT = ["--seconds", "0.4", "--fps", "30000/1001", "--size", "320"]  # 12 frames, two batches
SHORTEST = ["--seconds", "0.12", "--size", "160"]  # 3 frames


@pytest.fixture(scope="module")
def take() -> list:
    """The first half second of the talking head, small."""
    return list(talking_head.talking_head(12, 320))


def sharpen(faces: torch.Tensor) -> torch.Tensor:
    """Unsharp masking, a stand-in for a restorer: float (N, 3, S, S), 0..1."""
    blurred = torch.nn.functional.avg_pool2d(faces, 9, 1, 4, count_include_pad=False)
    return (faces + 1.0 * (faces - blurred)).clamp(0, 1)


@pytest.fixture
def with_restorer(monkeypatch, make_enhancer):
    """with_restorer(function): the demo's enhancer shall run `function` instead of a network."""

    def install(function) -> None:
        enhancer = make_enhancer(function, RECORD)
        monkeypatch.setattr(GFPGANEnhancer, "from_args", lambda args: enhancer)

    return install


def test_talking_head_gives_the_same_frames_again_and_moves(take):
    again = list(talking_head.talking_head(2, 320))
    for (frame, box), (copy, same_box) in zip(take, again, strict=False):
        assert np.array_equal(frame, copy) and box == same_box
        assert frame.shape == (320, 320, 3) and frame.dtype == np.uint8
    assert psnr(take[0][0], take[11][0]) < 35
    other, _ = next(talking_head.talking_head(1, 320, seed=1))
    assert not np.array_equal(take[0][0], other)


def test_boxes_lie_in_the_frame_and_are_about_256_px_at_full_size():
    for seconds in np.linspace(0, 20, 101):
        left, top, right, bottom = talking_head._face_box(
            talking_head.pose_at(float(seconds), 0), 640 / 270
        )
        assert 0 <= left < right <= 640 and 0 <= top < bottom <= 640
        assert 200 < right - left < 256 < bottom - top < 340


def test_the_mouth_opens_and_closes():
    openings = [talking_head.pose_at(index / 25, 0).opening for index in range(250)]
    assert min(openings) < -5 and max(openings) > 4
    turns = np.diff(np.sign(np.diff(openings)))
    # 4 to 5 syllables a second, some of ten seconds in pauses
    assert 40 < np.count_nonzero(turns) < 110


def test_an_open_mouth_is_dark_and_nothing_else_of_the_frame_changes():
    still = talking_head.make_still(320 / 270, 0)
    poses = [talking_head.Pose((0, 0), 0, 1, (0, 0), opening, 0, 0) for opening in (0, 6)]
    shut, wide = (talking_head.render(still, pose, 320).astype(int) for pose in poses)
    x, y = (round((v - w) * 320 / 270) for v, w in ((223, 90), (153, 0)))
    assert wide[y, x].max() < 100 < shut[y, x].max()
    assert np.array_equal(shut[:160], wide[:160]) and np.array_equal(shut[300:], wide[300:])


def test_the_source_is_sharper_than_an_enlargement(take):
    from skimage import data

    frame, box = take[0]
    portrait = np.ascontiguousarray(data.astronaut()[:270, 90:360, ::-1])
    plain = demo.zoom(portrait, (0, 0, 270, 270), (320, 320))
    assert laplacian_energy(demo.measured_part(frame, box)) > 1.5 * laplacian_energy(
        demo.measured_part(plain, box)
    )


def test_a_frame_size_that_is_too_small():
    with pytest.raises(ValueError, match="159"):
        next(talking_head.talking_head(1, 159))


def test_softening_loses_detail_and_keeps_color():
    face = demo.crop_face(*next(talking_head.talking_head(1, 640)))
    soft = demo.soften(face, 3)
    assert soft.shape == (256, 256, 3) and soft.dtype == np.uint8
    assert laplacian_energy(soft) < 0.7 * laplacian_energy(face)
    assert color_drift(soft, face) < 1.5
    assert np.array_equal(soft, demo.soften(face, 3)) and not np.array_equal(
        soft, demo.soften(face, 4)
    )


def test_the_transform_of_the_softening_is_its_own_inverse(rng):
    plane = rng.random((64, 80), np.float32) * 255
    latents = latent_softness._transform(plane)
    assert latents.shape == (9, 11, 16, 16)
    assert np.abs(latent_softness._inverse(latents) - plane).max() < 1e-3


def test_softening_keeps_edges_and_smears_fine_detail():
    """What a latent decoder does and a resize does not."""
    edge = np.full((64, 64, 3), 60, np.uint8)
    edge[:, 35:] = 200
    soft_edge = demo.soften(edge)[..., 1].astype(float)
    step = np.abs(np.diff(soft_edge.mean(0))).max()
    assert step > 0.7 * 140, "a resize to 96 px leaves a third"
    grain = np.random.default_rng(0).normal(128, 6, (64, 64, 1)).repeat(3, 2).astype(np.uint8)
    assert demo.soften(grain).std() < 0.65 * grain.std()


@pytest.mark.shared
def test_softening_is_nearer_to_a_latent_decoder_than_a_resize(latent_decoder):
    face = demo.crop_face(*next(talking_head.talking_head(1, 640)))
    soft = to_frames(
        latent_decoder(to_faces(face[None]), 0.35, 0.1, torch.Generator().manual_seed(0))
    )[0]
    small = cv2.resize(face, (96, 96), interpolation=cv2.INTER_AREA)
    plain = cv2.resize(small, (256, 256), interpolation=cv2.INTER_CUBIC)
    assert psnr(demo.soften(face), soft) > psnr(plain, soft) + 1
    share = laplacian_energy(soft) / laplacian_energy(face)
    assert abs(laplacian_energy(demo.soften(face)) / laplacian_energy(face) - share) < 0.3
    assert laplacian_energy(plain) / laplacian_energy(face) < share - 0.3


def test_blending_changes_the_lower_half_of_the_box_only(take):
    frame, (left, top, right, bottom) = take[0]
    blended = demo.blend_face(
        frame, np.full((256, 256, 3), 255, np.uint8), (left, top, right, bottom)
    )
    changed = np.argwhere((blended != frame).any(axis=2))
    (y0, x0), (y1, x1) = changed.min(axis=0), changed.max(axis=0)
    blur = 6  # half of the width of the blur of the mask, at this size
    assert y0 >= (top + bottom) // 2 - blur and y1 < bottom + blur
    assert x0 >= left - blur and x1 < right + blur
    assert (blended[bottom - 40, (left + right) // 2] == 255).all()


def test_zoom_keeps_places_and_repeats_the_border():
    frame = np.zeros((40, 40, 3), np.uint8)
    frame[10:20, 10:20] = 200
    assert np.array_equal(demo.zoom(frame, (0, 0, 40, 40), (40, 40)), frame)
    assert (demo.zoom(frame, (12, 12, 18, 18), (30, 30)) == 200).all()
    assert demo.zoom(frame, (-10, -10, 30, 30), (80, 80)).shape == (80, 80, 3)


def test_the_demo_writes_all_it_promises(tmp_path, capsys, with_restorer):
    with_restorer(sharpen)
    assert demo.main(["--out", str(tmp_path), *SHORT]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert sorted(report["files"]) == sorted(
        path.name for path in tmp_path.iterdir() if path.is_file()
    )
    for name, count in report["frames_in_files"].items():
        info = probe(tmp_path / f"{name}.mp4")
        assert (info.frames, count, info.fps) == (12, 12, FPS)
        assert (info.width, info.height) == ((960, 320) if name == "side_by_side" else (320, 320))
    assert report["problems"] == [] and report["fps"] == "30000/1001" and report["frames"] == 12
    assert report["sharpness"]["before"] < report["sharpness"]["after"]
    assert report["sharpness"]["before"] < 0.7 * report["sharpness"]["source"]
    assert 20 < report["psnr_db"]["before"] < 60
    assert max(report["color_drift"].values()) < 2
    assert (
        report["stats"]["restored"] == 12
        and report["model"] == "fake"
        and report["device"] == "cpu"
    )
    assert {"restore", "host: blend"} <= report["seconds"].keys()
    assert report["faces_per_second"] > 0 < report["frames_per_second"]
    assert {"python", "torch", "av", "musetalk_enhance"} <= report["versions"].keys()
    # before, after, source; the mouths at the bottom
    picture = read_image(tmp_path / "before_after.png")
    assert picture.shape == (512 + 6 + 256, 3 * 512 + 12, 3)
    before, after, source = (laplacian_energy(picture[-256:, x : x + 512]) for x in (0, 518, 1036))
    assert before < after and before < source
    frame = next(read_frames(tmp_path / "side_by_side.mp4"))
    before, after, source = (laplacian_energy(frame[160:, x : x + 320]) for x in (0, 320, 640))
    assert before < after and before < source
    printed = capsys.readouterr()
    for word in ("frames", "sharpness", "PSNR", "faces/s", "report.json", "before_after.png"):
        assert word in printed.out
    assert "12/12" in printed.err  # the progress bar


def test_a_result_that_is_not_sharper_is_a_failure(tmp_path, capsys, with_restorer):
    with_restorer(
        lambda faces: torch.nn.functional.avg_pool2d(faces, 9, 1, 4, count_include_pad=False)
    )
    assert demo.main(["--out", str(tmp_path), *SHORTEST]) == 1
    assert "not sharper" in capsys.readouterr().err
    assert json.loads((tmp_path / "report.json").read_text())["problems"]


def test_lost_frames_are_a_failure(tmp_path, monkeypatch, capsys, with_restorer):
    with_restorer(sharpen)
    monkeypatch.setattr(
        demo, "read_frames", lambda path: iter(range(2 if path.name == "after.mp4" else 3))
    )
    assert demo.main(["--out", str(tmp_path), *SHORTEST]) == 1
    assert "after.mp4 holds 2 frames of 3" in capsys.readouterr().err


@pytest.mark.parametrize("calls", [0, 1])
def test_an_interruption_is_one_line_and_leaves_no_folder(tmp_path, capsys, with_restorer, calls):
    """Before the first batch is restored, and before the second."""
    left = iter([None] * calls)

    def restore(faces):
        if next(left, "interrupt") == "interrupt":
            raise KeyboardInterrupt
        return sharpen(faces)

    with_restorer(restore)
    assert demo.main(["--out", str(tmp_path / "new" / "out"), *SHORT]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "demo: interrupted, nothing was written" and not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    with_restorer(restore)
    assert demo.main(["--out", str(tmp_path / "mine"), *SHORTEST]) == 130
    assert (tmp_path / "mine").is_dir(), "the user's own folder stays"


def test_an_unknown_model_is_one_line(tmp_path, capsys):
    assert (
        demo.main(["--out", str(tmp_path / "out"), *SHORTEST, "--gfpgan_model", "no-such-model"])
        == 2
    )
    assert "no-such-model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ["--seconds", "0"],
        ["--seconds", "nan"],
        ["--seconds", "inf"],
        ["--out", __file__],
        ["--out", f"{__file__}/x"],
        ["--fps", "0"],
        ["--fps", "1/0"],
        ["--size", "20"],
        ["--seconds", "soon"],
    ],
)
def test_impossible_flags(flags, capsys):
    with pytest.raises(SystemExit) as caught:
        demo.main(flags)
    assert caught.value.code == 2


def test_flags_reach_the_settings():
    assert demo.parse([]).gfpgan_model == "lite" and demo.parse([]).enable_gfpgan is True
    assert demo.parse([]).gfpgan_output_size == "native"
    assert demo.parse(["--gfpgan_output_size", "same"]).gfpgan_output_size == "same"
    assert demo.parse(["--gfpgan_model", "gfpgan-1.4"]).gfpgan_model == "gfpgan-1.4"
    assert not hasattr(demo.parse(["--gfpgan_model_path", "my.safetensors"]), "gfpgan_model")


def test_the_embedded_model_makes_the_clip_sharper_and_nearer_to_the_source(tmp_path):
    assert demo.main(["--out", str(tmp_path), "--seconds", "0.24", "--size", "640"]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["model"] == "lite" and report["stats"]["passed_through"] == {}
    assert report["sharpness"]["after"] > 1.3 * report["sharpness"]["before"]
    assert report["psnr_db"]["after"] > report["psnr_db"]["before"]
    assert report["color_drift"]["after"] < 2
