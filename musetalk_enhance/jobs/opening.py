"""The networks of a job, loaded: restorer, detector, and where they are wanted parser and upsampler."""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import weights
from ..enhancer import GFPGANEnhancer
from ..errors import ConfigError, MissingDependencyError, WeightError
from ..faces.detect import FaceDetector, RetinaFace, WholeImage, YuNet, make_detector
from ..picture_restorer import PictureRestorer
from ..pipeline.batch_planner import BatchPlanner
from ..runtime.devices import pick_device
from .models import Facts, Loaded, facts_of, load
from .options import FaceSettings, ImageSettings, VideoSettings

PARSENET, REALESRGAN = "ParseNet", "RealESRGAN_x2plus"
_WARM_UP_SIDE = 512


@dataclass(frozen=True)
class Opened:
    """The networks of a job over pictures.

    Attributes:
        restorer: restores the faces of pictures.
        detector: finds them.
        enhancer: what it uses.
        loaded: the network behind that.
        facts: what runs.
        held: closes all of them.
    """

    restorer: PictureRestorer
    detector: FaceDetector
    enhancer: GFPGANEnhancer
    loaded: Loaded
    facts: Facts
    held: ExitStack = field(default_factory=ExitStack, repr=False, compare=False)

    def close(self) -> None:
        """Give everything back."""
        self.held.close()


def open_pictures(settings: ImageSettings, pinned: Facts | None = None) -> Opened:
    """Load the networks that pictures are restored with.

    The detector comes first: it is small, and what it lacks is known before gigabytes are read.

    Args:
        settings: of the job.
        pinned: what ran before, to run again to the same bits.

    Raises:
        ConfigError: an option is impossible.
        WeightError: a weight is missing (says what to fetch), damaged or not to be trusted.
        MissingDependencyError: a package is not installed.
    """
    threads = use_threads(pinned)
    with ExitStack() as opening:
        detector = opening.enter_context(closing(open_detector(settings, settings.min_face)))
        background = _open_background(settings)
        if background is not None:
            opening.enter_context(closing(background))
        loaded = load(settings, pinned=pinned)
        opening.enter_context(closing(loaded.restorer))
        whole = isinstance(detector, WholeImage)
        enhancer = open_enhancer(
            loaded, settings, output_size="upscale" if whole else "same", upscale=settings.upscale, stability=0
        )
        opening.enter_context(closing(enhancer))
        parser = None if whole else _open_parser(settings, loaded)
        if parser is not None:
            opening.enter_context(closing(parser))
        restorer = PictureRestorer(
            enhancer,
            detector,
            upscale=settings.upscale,
            min_face=settings.min_face,
            only_center_face=settings.only_center_face,
            parser=parser,
            background=background,
        )
        helpers = {
            "face_detector": detector_digest(settings),
            "parser": None if parser is None else weights.table.WEIGHTS.get(PARSENET).sha256,
            "bg_upsampler": None if background is None else weights.table.WEIGHTS.get(REALESRGAN).sha256,
        }
        facts = facts_of(loaded, enhancer, settings, helpers, threads)
        return Opened(restorer, detector, enhancer, loaded, facts, opening.pop_all())


@dataclass(frozen=True)
class OpenedFilm:
    """The networks of a job over a film.

    Attributes:
        detector: finds the faces.
        enhancer: restores them, each track with a stream of its own.
        settings: of the job, its batches of one size.
        facts: what runs.
        held: closes detector and network.
    """

    detector: FaceDetector
    enhancer: GFPGANEnhancer
    settings: VideoSettings
    facts: Facts
    held: ExitStack = field(default_factory=ExitStack, repr=False, compare=False)

    def close(self) -> None:
        """Give everything back."""
        self.held.close()


def open_film(settings: VideoSettings, pinned: Facts | None = None) -> OpenedFilm:
    """Load the networks that a film is restored with; see `open_pictures`."""
    threads = use_threads(pinned)
    with ExitStack() as opening:
        detector = opening.enter_context(closing(open_detector(settings)))
        loaded = load(settings, pinned=pinned)
        opening.enter_context(closing(loaded.restorer))
        enhancer = opening.enter_context(closing(open_enhancer(loaded, settings, output_size="same")))
        facts = facts_of(loaded, enhancer, settings, {"face_detector": detector_digest(settings)}, threads)
        return OpenedFilm(
            detector, enhancer, settings.replace(batch_size=facts.batch_size), facts, opening.pop_all()
        )


def open_enhancer(loaded: Loaded, settings: FaceSettings, **changes: Any) -> GFPGANEnhancer:
    """An enhancer around the loaded network, whose batches are of one size from now on."""
    chosen = loaded.choice.settings
    if settings.batch_size == "auto" and settings.mode == "batch" and chosen.batch_size == "auto":
        restorer = loaded.restorer
        changes["batch_size"] = BatchPlanner(chosen, restorer.request.info, restorer.device).planned
    enhancer = loaded.enhancer(**changes)
    backend = enhancer.backend
    if backend is not None and backend[1] != "fp32":
        warm_up(enhancer)
    return enhancer


def warm_up(enhancer: GFPGANEnhancer) -> None:
    """Let a reduced precision be judged on a picture that is always the same, not on whichever face comes first."""
    import cv2

    coarse = np.random.default_rng(5).integers(0, 256, (1, 9, 9, 3), np.uint8)
    enhancer(cv2.resize(coarse[0], (_WARM_UP_SIDE, _WARM_UP_SIDE), interpolation=cv2.INTER_CUBIC)[None])
    enhancer.reset()
    enhancer.stats.clear()


def use_threads(pinned: Facts | None) -> int:
    """As many threads as before, in torch and OpenCV: with another number, sums come out in another order."""
    import cv2
    import torch

    count = pinned.threads if pinned is not None and pinned.threads > 0 else int(torch.get_num_threads())
    torch.set_num_threads(count)
    cv2.setNumThreads(count)
    return count


def open_detector(settings: FaceSettings, least_face: float = 0) -> FaceDetector:
    """The detector that the settings mean; for `least_face` see `NetworkDetector`.

    RetinaFace runs where the restorer does, or on the CPU where that is Metal.

    Raises:
        ConfigError: there is no such device.
        WeightError, MissingDependencyError: it cannot be loaded; says what to fetch or install.
    """
    device = pick_device(settings.device)
    return make_detector(
        settings.face_detector,
        settings.detector_path,
        device=None if device.type == "mps" else device,
        max_side=settings.detection_size,
        min_face=least_face,
        download=settings.download,
        trust_unpinned=settings.trust_unpinned,
    )


def detector_digest(settings: FaceSettings) -> str | None:
    """sha256 of the detector's file; None where it has none."""
    if settings.face_detector == "none":
        return None
    if settings.detector_path is not None:
        return weights.open_file(settings.detector_path, trust_unpinned=settings.trust_unpinned).sha256
    names = {"yunet": YuNet.weight_name, "retinaface": RetinaFace.weight_names["resnet50"]}
    name = names.get(settings.face_detector, RetinaFace.weight_names["mobile0.25"])
    return weights.table.WEIGHTS.get(name).sha256


def _open_parser(settings: ImageSettings, loaded: Loaded) -> Any:
    """ParseNet, where it is wanted; with ``auto``, where it is there and may be used."""
    from ..faces.parsing import FaceParser

    auto = settings.face_mask == "auto"
    entry = weights.table.WEIGHTS.get(PARSENET)
    if settings.face_mask == "feathered":
        return None
    if settings.commercial and not entry.commercial:
        if auto:
            return None
        raise ConfigError("face_mask", "parsed", f"auto | feathered with commercial: true ({entry.license})")
    if auto and (loaded.restorer.request.info.landmark_template is None or weights.find(PARSENET) is None):
        return None
    try:
        return FaceParser(device=loaded.restorer.device, download=settings.download)
    except (WeightError, MissingDependencyError):
        if auto:
            return None
        raise


def _open_background(settings: ImageSettings) -> Any:
    if settings.bg_upsampler == "none":
        return None
    from ..restorers.background_upsampler import BackgroundUpsampler

    return BackgroundUpsampler(device=pick_device(settings.device), download=settings.download)
