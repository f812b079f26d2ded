"""Fixtures shared by all tests: a restorer without weights, a synthetic talking head, the data
folder."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from musetalk_enhance.backends import FakeBackend
from musetalk_enhance.config.settings import EnhancerSettings
from musetalk_enhance.enhancer import GFPGANEnhancer
from musetalk_enhance.restorers.base import LoadRequest, ModelInfo, Restorer
from tests.pictures import soften, to_faces, to_frames

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))
RECORD = ModelInfo("fake", "no network", 256, 512, (0.0, 1.0), "none", bytes_per_face=2**20)

PLAIN = {"stability": 0, "color_match": False, "guard": False, "sharpness_gate": False}
"""What a network made comes back as it is: for tests of networks, which are shown no faces but
noise."""


class FakeRestorer(Restorer):
    """Enlarges each face by pixel repetition and runs `function` on the result."""

    info = RECORD

    def __init__(self, request: LoadRequest, function: Callable | None = None) -> None:
        super().__init__(request)
        self.backend = FakeBackend(function)

    def restore(self, faces_rgb: torch.Tensor) -> torch.Tensor:
        side = self.request.info.output_size
        scale = side // faces_rgb.shape[2] if side else 1
        return self.backend.run(faces_rgb.repeat_interleave(scale, 2).repeat_interleave(scale, 3))

    def to(self, device: torch.device) -> None:
        self.device = device
        self.backend.to(device)

    def close(self) -> None:
        self.backend.close()


def enhancer_around(
    function: Callable | None = None, record: ModelInfo = RECORD, **options
) -> GFPGANEnhancer:
    """An enhancer around a FakeRestorer. What a network made comes back as it is, unless `options`
    say otherwise."""
    settings = EnhancerSettings(enabled=True, **(PLAIN | options))
    request = LoadRequest(record, settings, torch.device("cpu"))
    return GFPGANEnhancer.from_settings(settings, FakeRestorer(request, function))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked ``gpu``: MUSETALK_ENHANCE_GPU=1 fails them without a GPU, =cpu tries them."""
    switch = os.environ.get("MUSETALK_ENHANCE_GPU", "")
    if item.get_closest_marker("gpu") is None or switch == "cpu" or torch.cuda.is_available():
        return
    if switch:
        pytest.fail(f"MUSETALK_ENHANCE_GPU={switch}, and torch has no GPU")
    pytest.skip("no GPU")


@pytest.fixture
def make_enhancer():
    """make_enhancer(function=None, record=RECORD, **settings) -> an enhancer, see
    `enhancer_around`."""
    return enhancer_around


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def faces(rng: np.random.Generator) -> np.ndarray:
    """Five different BGR uint8 frames, (5, 256, 256, 3)."""
    return rng.integers(0, 256, (5, 256, 256, 3), np.uint8)


@pytest.fixture(scope="session")
def take() -> torch.Tensor:
    """40 sharp crops of the talking head, float (40, 3, 256, 256), RGB, 0..1; eyes and mouth open
    and close."""
    pytest.importorskip("skimage")
    import cv2
    from talking_head import talking_head

    crops = []
    for frame_bgr, (left, top, right, bottom) in talking_head(40, size=640):
        face = cv2.resize(
            frame_bgr[top:bottom, left:right, ::-1], (256, 256), interpolation=cv2.INTER_AREA
        )
        crops.append(torch.from_numpy(face).permute(2, 0, 1).float() / 255)
    return torch.stack(crops)


@pytest.fixture(scope="session")
def soft(take: torch.Tensor) -> torch.Tensor:
    """`take`, softened, and rounded to 8 bits as a host hands it over."""
    return to_faces(to_frames(soften(take)))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real clips and detectors; MUSETALK_ENHANCE_TEST_DATA or ``shared`` beside the
    checkout."""
    folder = Path(os.environ.get("MUSETALK_ENHANCE_TEST_DATA", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip("no data folder beside the checkout (set MUSETALK_ENHANCE_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def latent_decoder(shared: Path) -> Callable[..., torch.Tensor]:
    """``decoder_soft(crops, blend, noise=0, generator=None)``: crops through a real, tiny latent
    autoencoder.

    Crops are float (N, 3, H, W), RGB, 0..1, sides multiples of 8. `blend` 0..0.55 blurs the
    latents, `noise` is a share of their spread.
    """
    tool = shared / "tools" / "tiny_autoencoder.py"
    weights = [shared / "weights" / f"taef2_{part}.pth" for part in ("encoder", "decoder")]
    missing = [path.name for path in (tool, *weights) if not path.is_file()]
    if missing:
        pytest.skip(f"no latent autoencoder in the data folder ({', '.join(missing)})")
    spec = importlib.util.spec_from_file_location("tiny_autoencoder", tool)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    soften: Callable[..., torch.Tensor] = module.decoder_soft
    return soften


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fixtures that live longer than a test are made before `own_cache`: they get a cache, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUSETALK_ENHANCE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("MUSETALK_ENHANCE_TUNING", "off")
        yield


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees or touches the user's weights and measurements."""
    folder = tmp_path / "weight-cache"
    monkeypatch.setenv("MUSETALK_ENHANCE_CACHE", str(folder))
    # no test waits for a measurement it did not ask for
    monkeypatch.setenv("MUSETALK_ENHANCE_TUNING", "off")
    return folder
