"""What of a face is paste_mask: facexlib's classes, blur and border, and one face at a time."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from musetalk_enhance.errors import (
    CheckpointError,
    FrameError,
    MissingDependencyError,
    MissingWeightError,
    OutOfMemoryError,
    RestorerError,
    UntrustedWeightError,
)
from musetalk_enhance.faces.parsing import CLASSES, SIDE, FaceParser, paste_mask

MODULE = "facexlib.parsing.parsenet"
LEFT_OUT = {0: "background", 14: "hat", 16: "necklace", 17: "neck", 18: "clothes"}


class TinyParseNet(nn.Module):
    """Class k where red is k/18: the score of k is -(18 red - k)^2, less what all classes share."""

    def __init__(self, in_size, out_size, parsing_ch):
        super().__init__()
        assert (in_size, out_size, parsing_ch) == (512, 512, 19)
        self.scores = nn.Conv2d(3, parsing_ch, 1)
        self.seen = []

    def forward(self, x):
        self.seen.append(tuple(x.shape))
        return self.scores(x), x


def tiny_state() -> dict[str, torch.Tensor]:
    number = torch.arange(float(CLASSES))
    weight = torch.zeros(CLASSES, 3, 1, 1)
    weight[:, 0, 0, 0] = 18 * number  # red comes as 2 red - 1
    return {"scores.weight": weight, "scores.bias": 18 * number - number**2}


def of_class(number: int, size=(SIDE, SIDE)) -> torch.Tensor:
    """One face that is all of one class, float32 (1, 3, H, W)."""
    face = torch.full((1, 3, *size), 0.5)
    face[:, 0] = number / 18
    return face


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A parser around `TinyParseNet`, loaded as every weight is; needs no facexlib."""
    module = ModuleType(MODULE)
    module.ParseNet = TinyParseNet
    monkeypatch.setitem(sys.modules, MODULE, module)
    save_file(tiny_state(), tmp_path / "tiny.safetensors")
    return FaceParser(tmp_path / "tiny.safetensors")


@pytest.mark.parametrize("number", range(CLASSES))
def test_every_class_is_pasted_or_not(tiny, number):
    mask = tiny.mask(of_class(number))
    assert mask.shape == (1, 1, SIDE, SIDE) and mask.dtype == torch.float32
    inside = torch.zeros(SIDE, SIDE)
    inside[10:-10, 10:-10] = 0 if number in LEFT_OUT else 1
    torch.testing.assert_close(mask[0, 0], inside, rtol=0, atol=1e-5)
    assert 0 <= mask.min() and mask.max() <= 1


def test_an_edge_is_soft_and_in_its_place():
    classes = np.zeros((SIDE, SIDE), np.uint8)
    classes[:, 256:] = 1
    row = paste_mask(classes)[256]
    assert row[255] + row[256] == pytest.approx(1, abs=1e-4) and row[220] < 0.03 and row[292] > 0.97
    assert (np.diff(row[10:-10]) >= -1e-6).all()
    slope = 1 / (11 * np.sqrt(2) * np.sqrt(2 * np.pi))  # of two blurs of sigma 11
    assert row[256] - row[255] == pytest.approx(slope, rel=0.01)


def test_the_border_is_not_pasted():
    mask = paste_mask(np.ones((SIDE, SIDE), np.uint8))
    assert mask.sum() == pytest.approx((SIDE - 20) ** 2, rel=1e-5)
    assert (
        not mask[:10].any()
        and not mask[-10:].any()
        and not mask[:, :10].any()
        and not mask[:, -10:].any()
    )


@pytest.mark.parametrize("size", [(256, 256), (1024, 1024), (300, 700)])
def test_another_size_is_brought_to_512(tiny, size):
    face = of_class(0, size)
    face[:, 0, :, size[1] // 2 :] = 1 / 18
    mask = tiny.mask(face)
    assert tiny._net.seen == [(1, 3, SIDE, SIDE)] and mask.shape == (1, 1, SIDE, SIDE)
    assert mask[0, 0, 256, 200] < 0.01 and mask[0, 0, 256, 312] > 0.99


def test_a_mask_does_not_depend_on_its_batch(tiny):
    faces = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    given = faces.clone()
    alone = torch.cat([tiny.mask(face[None]) for face in faces])
    assert torch.equal(tiny.mask(faces), alone) and torch.equal(
        tiny.mask(faces.flip(0)), alone.flip(0)
    )
    assert set(tiny._net.seen) == {(1, 3, SIDE, SIDE)} and torch.equal(faces, given)
    assert 0.05 < alone.std()


def test_values_a_little_outside_are_cut_off_and_no_face_is_no_error(tiny):
    face = of_class(18)
    assert torch.equal(tiny.mask(face + 0.2), tiny.mask(face))
    assert tiny.mask(face[:0]).shape == (0, 1, SIDE, SIDE)


def test_a_host_s_autocast_and_gradients_are_its_own(tiny):
    faces = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    plain = tiny.mask(faces)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tiny.mask(faces), plain)
    assert not plain.requires_grad


@pytest.mark.parametrize(
    ("faces", "reason"),
    [
        (torch.zeros(3, 64, 64), "shape"),
        (torch.zeros(1, 1, 64, 64), "shape"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "shape"),
        (torch.full((1, 3, 64, 64), torch.nan), "nonfinite"),
    ],
)
def test_something_else_than_faces_is_refused(tiny, faces, reason):
    with pytest.raises(FrameError) as caught:
        tiny.mask(faces)
    assert caught.value.reason == reason


def test_a_failing_network_is_a_typed_error(tiny, monkeypatch):
    for error, kind in (
        (RuntimeError("broken"), RestorerError),
        (MemoryError("no room"), OutOfMemoryError),
    ):

        def fail(_, error=error):
            raise error

        monkeypatch.setattr(tiny._net, "forward", fail)
        with pytest.raises(kind, match=f"{type(error).__name__}: {error}"):
            tiny.mask(of_class(1))
    monkeypatch.setattr(tiny._net, "forward", lambda x: (x * torch.nan, x))
    with pytest.raises(RestorerError, match="NaN"):
        tiny.mask(of_class(1))
    tiny.close()
    with pytest.raises(RestorerError, match="closed"):
        tiny.mask(of_class(1))


def test_another_network_is_refused(tiny, tmp_path):
    save_file({"scores.weight": torch.zeros(19, 3, 1, 1)}, tmp_path / "half.safetensors")
    with pytest.raises(CheckpointError, match="ParseNet"):
        FaceParser(tmp_path / "half.safetensors")


def test_a_missing_weight_is_said_before_any_work():
    with pytest.raises(MissingWeightError, match="musetalk-enhance weights fetch ParseNet"):
        FaceParser()


def test_an_unknown_pickle_is_not_opened_unless_it_is_trusted(tiny, tmp_path):
    torch.save(tiny_state(), tmp_path / "own.pth")
    with pytest.raises(UntrustedWeightError, match="trust_unpinned"):
        FaceParser(tmp_path / "own.pth")
    parser = FaceParser(tmp_path / "own.pth", trust_unpinned=True)
    assert torch.equal(parser.mask(of_class(1)), tiny.mask(of_class(1)))


def test_without_facexlib(monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.partition(".")[0] == "facexlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "facexlib", None)
    save_file(tiny_state(), tmp_path / "tiny.safetensors")
    with pytest.raises(MissingDependencyError, match=r"musetalk_enhance\[gfpgan\]"):
        FaceParser(tmp_path / "tiny.safetensors")


@pytest.mark.slow
def test_the_mask_is_facexlibs(tmp_path, monkeypatch, capfd):
    """The full-size network with random weights, against the mask that facexlib's own method pastes
    with."""
    pytest.importorskip("facexlib")
    from musetalk_enhance.restorers.official_stack import import_official

    torch.manual_seed(0)
    state_dict = (
        import_official(MODULE).ParseNet(in_size=512, out_size=512, parsing_ch=19).state_dict()
    )
    torch.save(state_dict, tmp_path / "parsenet.pth")
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("a download"))
    random_state = torch.get_rng_state()
    parser = FaceParser(tmp_path / "parsenet.pth", trust_unpinned=True)
    assert torch.equal(torch.get_rng_state(), random_state)

    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    face_bgr = cv2.resize(noise, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    parser._net = Once(parser._net)
    expected = facexlibs_mask(parser._net, face_bgr, monkeypatch)
    face_rgb = torch.from_numpy(face_bgr[..., ::-1].copy()).permute(2, 0, 1)[None].float() / 255
    found = parser.mask(face_rgb)[0, 0].numpy()
    assert expected.shape == found.shape and np.abs(found - expected).max() < 1e-5
    assert np.ptp(expected[10:-10, 10:-10]) > 0.4, "one class everywhere proves little"
    assert capfd.readouterr() == ("", "") and parser._net.runs == 1


class Once:
    """Keeps the answer of a slow network for an input that comes again, bit for bit."""

    def __init__(self, net):
        self.net, self.known, self.runs = net, None, 0

    def __call__(self, x):
        if self.known is None or not torch.equal(self.known[0], x):
            self.runs += 1
            self.known = (x.clone(), self.net(x))
        return self.known[1]


def facexlibs_mask(net, face_bgr, monkeypatch) -> np.ndarray:
    """What `FaceRestoreHelper` multiplies a face with, float64 (512, 512), taken where it turns it
    back."""
    from musetalk_enhance.restorers.official_stack import import_official

    module = import_official("facexlib.utils.face_restoration_helper")
    helper = SimpleNamespace(
        input_img=np.zeros_like(face_bgr),
        upscale_factor=1,
        restored_faces=[face_bgr],
        inverse_affine_matrices=[np.eye(2, 3)],
        use_parse=True,
        face_parse=net,
        device=torch.device("cpu"),
    )
    turned = []
    warp = cv2.warpAffine
    monkeypatch.setattr(
        module.cv2,
        "warpAffine",
        lambda *args, **named: turned.append(args[0]) or warp(*args, **named),
    )
    module.FaceRestoreHelper.paste_faces_to_input_image(helper)
    return turned[1]
