"""The official stack behind its one door, and ``engine: official`` with random weights."""

from __future__ import annotations

import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from musetalk_enhance import weights
from musetalk_enhance.config.settings import EnhancerSettings
from musetalk_enhance.errors import (
    CheckpointError,
    MissingDependencyError,
    MissingWeightError,
    NoFaceError,
    RestorerError,
)
from musetalk_enhance.restorers import official_stack as stack
from musetalk_enhance.restorers.base import LoadRequest
from musetalk_enhance.restorers.official import INFO, OfficialRestorer
from musetalk_enhance.restorers.plain_operations import upfirdn

from .conftest import CPU, pictures, put_in_cache, to_bgr

SIDE = 320
BOX = [90.0, 80.0, 230.0, 260.0, 0.99]
LANDMARKS = [125.0, 150.0, 195.0, 150.0, 160.0, 190.0, 132.0, 222.0, 188.0, 222.0]
"""Eyes, nose and corners of the mouth of a face in the middle of a picture of `SIDE` pixels."""


@pytest.fixture(scope="module")
def restorer(helper_files, checkpoint, tmp_path_factory):
    """GFPGANer with random networks: GFPGAN clean, multiplier 1, RetinaFace-R50, ParseNet."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("MUSETALK_ENHANCE_CACHE", str(folder))
        put_in_cache(helper_files, folder, patch)
        weight = weights.open_file(checkpoint("clean", 1), trust_unpinned=True)
        settings = EnhancerSettings(
            enabled=True, engine="official", channel_multiplier=1, upscale=2
        )
        yield OfficialRestorer(LoadRequest(INFO, settings, CPU, weight))


@pytest.fixture
def face_found(restorer, monkeypatch):
    """The detector runs, and its answer is replaced by one face."""
    detect = restorer.gfpganer.face_helper.face_det.detect_faces

    def answer(*args, **kwargs):
        detect(*args, **kwargs)
        return np.array([[*BOX, *LANDMARKS]], np.float32)

    monkeypatch.setattr(restorer.gfpganer.face_helper.face_det, "detect_faces", answer)


@pytest.mark.slow
def test_every_stage_runs(restorer, face_found, no_sockets):
    """Aligned, restored, parsed, pasted: the face changes, the corners are only enlarged."""
    picture = pictures(1, SIDE)
    restored = restorer.restore(picture)
    assert restored.shape == (1, 3, 2 * SIDE, 2 * SIDE)
    assert restored.dtype == torch.float32
    assert 0 <= restored.min() < restored.max() <= 1

    enlarged = cv2.resize(
        to_bgr(picture[0]), (2 * SIDE, 2 * SIDE), interpolation=cv2.INTER_LANCZOS4
    )
    change = np.abs(to_bgr(restored[0]).astype(int) - enlarged.astype(int))
    assert change[:20, :20].max() == 0
    assert change[-20:, -20:].max() == 0
    assert change[280:400, 280:360].mean() > 10, "nothing was pasted over the face"
    helper = restorer.gfpganer.face_helper
    assert helper.cropped_faces[0].shape == helper.restored_faces[0].shape == (512, 512, 3)


@pytest.mark.slow
def test_no_face_is_said(restorer, no_sockets):
    """The detector's own answer for the picture: background everywhere."""
    with pytest.raises(NoFaceError, match="no face in a frame of 320x320"):
        restorer.restore(pictures(1, SIDE))


@pytest.mark.slow
def test_a_failing_network_is_not_taken_for_a_restored_face(
    restorer, face_found, monkeypatch, capsys
):
    """GFPGANer itself prints such an error and pastes the unrestored face."""

    def fail(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(restorer.gfpganer.gfpgan.conv_body_first, "forward", fail)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        restorer.restore(pictures(1, SIDE))
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_one_picture_at_a_time(restorer):
    with pytest.raises(RestorerError, match="not 2"):
        restorer.restore(pictures(2, 64))


@pytest.mark.slow
def test_moving_takes_every_network_along(helpers_in_cache, checkpoint, load):
    restorer = load(
        OfficialRestorer, checkpoint("clean", 1), engine="official", channel_multiplier=1
    )
    helper = restorer.gfpganer.face_helper
    restorer.to(torch.device("meta"))
    networks = (restorer.gfpganer.gfpgan, helper.face_det, helper.face_parse)
    assert {next(network.parameters()).device.type for network in networks} == {"meta"}
    assert helper.face_det.mean_tensor.device.type == "meta"
    assert {restorer.device, restorer.gfpganer.device, helper.device} == {torch.device("meta")}


@pytest.mark.slow
def test_bilinear_runs_though_gfpganer_hands_it_an_unknown_argument(
    helpers_in_cache, checkpoint, load
):
    restorer = load(OfficialRestorer, checkpoint("bilinear"), engine="official", arch="bilinear")
    crop = to_bgr(pictures(1)[0])
    _, restored, _ = restorer.gfpganer.enhance(crop, has_aligned=True)
    assert np.abs(restored[0].astype(int) - crop.astype(int)).mean() > 5


@pytest.mark.slow
def test_missing_helpers_are_named_before_anything_is_built(
    official_stack, checkpoint, load, no_sockets
):
    with pytest.raises(MissingWeightError, match="RetinaFace-R50") as caught:
        load(OfficialRestorer, checkpoint("clean", 1), engine="official", channel_multiplier=1)
    assert caught.value.name == stack.HELPERS[0]


@pytest.mark.slow
def test_another_multiplier_is_refused_in_words(helpers_in_cache, checkpoint, load):
    with pytest.raises(CheckpointError, match="Set arch: clean, and channel_multiplier: 1"):
        load(OfficialRestorer, checkpoint("clean", 1), engine="official")


@pytest.mark.slow
def test_missing_tensors_are_no_list_of_names(helpers_in_cache, checkpoint, tmp_path):
    state = torch.load(checkpoint("clean", 1), weights_only=True)["params_ema"]
    cut = dict(list(state.items())[:40])
    with pytest.raises(CheckpointError, match="40 tensors that do not fit") as caught:
        stack.build_gfpganer(tmp_path / "cut.pth", cut, channel_multiplier=1, device=CPU)
    assert len(str(caught.value)) < 300


@pytest.mark.slow
def test_every_patch_is_taken_off_again(restorer):
    import facexlib.detection
    import facexlib.parsing
    import gfpgan.utils
    from basicsr.utils.download_util import load_file_from_url as basicsr_load
    from facexlib.utils.misc import load_file_from_url as facexlib_load

    assert torch.load.__module__ == "torch.serialization"
    assert facexlib.detection.load_file_from_url is facexlib_load
    assert facexlib.parsing.load_file_from_url is facexlib_load
    assert gfpgan.utils.load_file_from_url is basicsr_load
    if find_spec(stack._ALIAS) is None:  # torchvision 0.16 and older have the module itself
        assert stack._ALIAS not in sys.modules
    assert not Path("gfpgan").exists()


def test_an_error_takes_the_patches_off_too():
    original = torch.load
    with pytest.raises(KeyError), stack.safe_loading({}):
        raise KeyError
    assert torch.load is original


def test_only_the_files_that_were_given_are_loaded(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({}, path)
    given = tmp_path / "given.pth"  # does not even exist: nothing is opened
    with stack.safe_loading({given: {"key": 1}}):
        assert torch.load(given, map_location="cpu") == torch.load(str(given)) == {"key": 1}
        torch.load(given).clear()
        assert torch.load(given) == {"key": 1}
        with pytest.raises(RestorerError, match="unexpected file"):
            torch.load(path)
        with pytest.raises(RestorerError, match="unexpected file"), path.open("rb") as file:
            torch.load(file)


def test_other_threads_load_as_ever(tmp_path):
    path = tmp_path / "own.pth"
    torch.save({"own": 1}, path)
    loaded = []
    with stack.safe_loading({}):
        thread = threading.Thread(target=lambda: loaded.append(torch.load(path)))
        thread.start()
        thread.join()
    assert loaded == [{"own": 1}]


def test_downloads_are_refused(official_stack, no_sockets):
    import facexlib.detection

    with stack._no_downloads({"known.pth": Path("/cache/known.pth")}):
        load = facexlib.detection.load_file_from_url
        assert load("https://example.org/a/known.pth", model_dir="x") == str(
            Path("/cache/known.pth")
        )
        with pytest.raises(RestorerError, match="blocked"):
            load(url="https://example.org/a/other.pth")


@pytest.mark.parametrize("name", ["gfpgan.utils", "no_such_package_at_all"])
def test_a_missing_package_is_named_with_its_command(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        MissingDependencyError, match=r"pip install 'musetalk_enhance\[gfpgan\]'"
    ) as caught:
        stack.import_official(name)
    assert caught.value.package == name.split(".")[0]


@pytest.mark.slow
def test_import_works_after_a_failed_one_and_without_the_alias_left_behind(official_stack):
    code = """
import sys
try:
    import gfpgan
except ImportError:
    pass
from musetalk_enhance.restorers import official_stack as stack
gfpgan = stack.import_official("gfpgan")
realesrgan = stack.import_official("realesrgan")
assert gfpgan.GFPGANer and realesrgan.RealESRGANer
from importlib.util import find_spec
assert find_spec(stack._ALIAS) or stack._ALIAS not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


@pytest.mark.parametrize(
    ("up", "down", "pad"),
    [(1, 1, (2, 2)), (1, 1, (1, 1)), (2, 1, (2, 1)), (1, 2, (1, 1)), (1, 1, (-1, 2))],
)
def test_upfirdn_is_basicsrs(official_stack, up, down, pad):
    from basicsr.ops.upfirdn2d import upfirdn2d

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 9, 12, generator=generator)
    kernel = torch.rand(4, 4, generator=generator)  # not symmetric: flipping shows
    ours, theirs = upfirdn(x, kernel, up, down, pad), upfirdn2d(x, kernel, up, down, pad)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_upfirdn_by_hand():
    x = torch.tensor([[[[1.0, 2.0]]]])
    out = upfirdn(x, torch.tensor([[1.0, 10.0]]), 1, 1, (1, 1))
    assert out.tolist() == [[[[0, 0, 0], [1, 12, 20], [0, 0, 0]]]]
