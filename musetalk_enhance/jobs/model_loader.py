"""Loads the networks of a job: restorer, detector, and if enabled parser and upsampler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import weights
from ..enhancer import GFPGANEnhancer
from ..errors import ConfigError, MissingDependencyError, WeightError
from ..faces.detect import FaceDetector, WholeImage, make_detector, weight_of
from ..faces.identity import ReferenceFaces, SFace
from ..media import read_image
from ..pipeline.batch_planner import BatchPlanner
from ..runtime.devices import pick_device
from .image_restorer import PictureRestorer
from .manifest import digest, file_digest
from .models import LoadedModel, RunInfo, load, run_info_of
from .options import FaceSettings, ImageSettings, VideoSettings

if TYPE_CHECKING:
    from ..faces.parsing import FaceParser

PARSENET, REALESRGAN = "ParseNet", "RealESRGAN_x2plus"
_WARM_UP_SIDE = 512


@dataclass(frozen=True)
class ImageModels:
    """The networks of a job over images.

    Attributes:
        restorer: restores the faces of images.
        detector: detects them.
        enhancer: used by the restorer.
        loaded: the network of the enhancer.
        run_info: what runs.
        resources: closes all of them.
    """

    restorer: PictureRestorer
    detector: FaceDetector
    enhancer: GFPGANEnhancer
    loaded: LoadedModel
    run_info: RunInfo
    held: ExitStack = field(default_factory=ExitStack, repr=False, compare=False)

    def close(self) -> None:
        """Close all networks."""
        self.held.close()


def load_image_models(settings: ImageSettings, pinned: RunInfo | None = None) -> ImageModels:
    """Load the networks of a job over images.

    The detector comes first: it is small, so its errors are raised before gigabytes are read.

    Args:
        settings: of the job.
        pinned: of an earlier run, to produce the same bits.

    Raises:
        ConfigError: an option is invalid.
        WeightError: a weight is missing (says what to fetch), damaged or untrusted.
        MissingDependencyError: a package is not installed.
    """
    with ExitStack() as stack:
        threads = stack.enter_context(use_threads(pinned))
        detector = stack.enter_context(closing(load_detector(settings, settings.min_face)))
        reference = load_reference(settings, detector)
        background = _open_background(settings)
        if background is not None:
            stack.enter_context(closing(background))
        loaded = load(settings, pinned=pinned)
        stack.enter_context(closing(loaded.restorer))
        whole = isinstance(detector, WholeImage)
        enhancer = make_enhancer(loaded, settings, output_size="same", stability=0)
        stack.enter_context(closing(enhancer))
        parser = None if whole else load_parser(settings, loaded)
        if parser is not None:
            stack.enter_context(closing(parser))
        restorer = PictureRestorer(
            enhancer,
            detector,
            upscale=settings.upscale,
            min_face=settings.min_face,
            only_center_face=settings.only_center_face,
            parser=parser,
            background=background,
            reference=reference,
        )
        helpers = {
            "face_detector": detector_digest(settings),
            "parser": None if parser is None else weights.table.WEIGHTS.get(PARSENET).sha256,
            "bg_upsampler": None
            if background is None
            else weights.table.WEIGHTS.get(REALESRGAN).sha256,
            **reference_digests(settings),
        }
        run_info = run_info_of(loaded, enhancer, settings, helpers, threads)
        return ImageModels(restorer, detector, enhancer, loaded, run_info, stack.pop_all())


@dataclass(frozen=True)
class VideoModels:
    """The networks of a job over a video.

    Attributes:
        detector: detects the faces.
        enhancer: restores them, each track with a stream of its own.
        settings: of the job, with a fixed batch size.
        run_info: what runs.
        reference: the faces of the reference photos; None without a photo.
        resources: closes detector and network.
    """

    detector: FaceDetector
    enhancer: GFPGANEnhancer
    settings: VideoSettings
    run_info: RunInfo
    reference: ReferenceFaces | None = None
    held: ExitStack = field(default_factory=ExitStack, repr=False, compare=False)

    def close(self) -> None:
        """Close all networks."""
        self.held.close()


def load_video_models(settings: VideoSettings, pinned: RunInfo | None = None) -> VideoModels:
    """Load the networks of a job over a video; see `load_image_models`."""
    with ExitStack() as stack:
        threads = stack.enter_context(use_threads(pinned))
        detector = stack.enter_context(closing(load_detector(settings)))
        reference = load_reference(settings, detector)
        loaded = load(settings, pinned=pinned)
        stack.enter_context(closing(loaded.restorer))
        enhancer = stack.enter_context(closing(make_enhancer(loaded, settings, output_size="same")))
        helpers = {"face_detector": detector_digest(settings), **reference_digests(settings)}
        run_info = run_info_of(loaded, enhancer, settings, helpers, threads)
        return VideoModels(
            detector,
            enhancer,
            settings.replace(batch_size=run_info.batch_size),
            run_info,
            reference,
            stack.pop_all(),
        )


def make_enhancer(loaded: LoadedModel, settings: FaceSettings, **changes: Any) -> GFPGANEnhancer:
    """Make an enhancer with the loaded network and a fixed batch size."""
    choice = loaded.choice.settings
    if settings.batch_size == "auto" and settings.mode == "batch" and choice.batch_size == "auto":
        restorer = loaded.restorer
        changes["batch_size"] = BatchPlanner(choice, restorer.request.info, restorer.device).planned
    enhancer = loaded.enhancer(**changes)
    backend = enhancer.backend
    if backend is not None and backend[1] != "fp32":
        warm_up(enhancer)
    return enhancer


def warm_up(enhancer: GFPGANEnhancer) -> None:
    """Check a reduced precision on a fixed image, not on whichever face comes first."""
    import cv2

    coarse = np.random.default_rng(5).integers(0, 256, (1, 9, 9, 3), np.uint8)
    size = (_WARM_UP_SIDE, _WARM_UP_SIDE)
    frame = cv2.resize(coarse[0], size, interpolation=cv2.INTER_CUBIC)[None]
    enhancer(frame, sources=frame)
    enhancer.reset()
    enhancer.stats.clear()


@contextmanager
def use_threads(pinned: RunInfo | None) -> Iterator[int]:
    """Use the thread count of the earlier run in torch and OpenCV, until the block ends.

    Another count changes the order of sums.

    Yields:
        The count.
    """
    import cv2
    import torch

    previous = torch.get_num_threads(), cv2.getNumThreads()
    count = pinned.threads if pinned is not None and pinned.threads > 0 else int(previous[0])
    torch.set_num_threads(count)
    cv2.setNumThreads(count)
    try:
        yield count
    finally:
        torch.set_num_threads(previous[0])
        cv2.setNumThreads(previous[1])


def load_detector(settings: FaceSettings, least_face: float = 0) -> FaceDetector:
    """Load the detector of the settings; for `least_face` see `NetworkDetector`.

    RetinaFace runs on the restorer's device, or on the CPU if that is Metal.

    Raises:
        ConfigError: there is no such device.
        WeightError, MissingDependencyError: it cannot be loaded; says what to fetch or install.
    """
    device = pick_device(settings.device, settings.allow_cpu)
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
    """sha256 of the detector's file; None if it has none."""
    name = weight_of(settings.face_detector)
    if settings.detector_path is not None:
        return weights.open_file(
            settings.detector_path, trust_unpinned=settings.trust_unpinned
        ).sha256
    return None if name is None else weights.table.WEIGHTS.get(name).sha256


def load_reference(settings: FaceSettings, detector: FaceDetector) -> ReferenceFaces | None:
    """Load the faces of the reference photos; None without a photo.

    Raises:
        ConfigError: a photo has no face, or more than one.
        MediaError: a photo cannot be read.
        WeightError: the recognizer cannot be loaded; says what to fetch.
    """
    if settings.face is None:
        return None
    photos = {path: read_image(path) for path in settings.face}
    return ReferenceFaces(SFace(download=settings.download), detector, photos)


def reference_digests(settings: FaceSettings) -> dict[str, str | None]:
    """sha256 of the reference photos, in any order, and of the recognizer; empty without a photo.

    The names are those of `RunInfo.helpers`.
    """
    if settings.face is None:
        return {}
    photos = sorted(str(file_digest(Path(path))) for path in settings.face)
    weight = weights.table.WEIGHTS.get(SFace.weight_name)
    return {"face": digest(photos), "face_recognizer": weight.sha256}


def load_parser(settings: ImageSettings, loaded: LoadedModel) -> FaceParser | None:
    """Load ParseNet if enabled; with ``auto``, if its weight is available and may be used.

    Raises:
        ConfigError: its license does not allow ``commercial: true``.
        WeightError, MissingDependencyError: with ``parsed``, it cannot be loaded.
    """
    from ..faces.parsing import FaceParser

    auto = settings.face_mask == "auto"
    entry = weights.table.WEIGHTS.get(PARSENET)
    if settings.face_mask == "feathered":
        return None
    if settings.commercial and not entry.commercial:
        if auto:
            return None
        raise ConfigError(
            "face_mask", "parsed", f"auto | feathered with commercial: true ({entry.license})"
        )
    if auto and (
        loaded.restorer.request.info.landmark_template != "ffhq_512"  # ParseNet's own
        or weights.find(PARSENET) is None
    ):
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

    device = pick_device(settings.device, settings.allow_cpu)
    return BackgroundUpsampler(device=device, download=settings.download)
