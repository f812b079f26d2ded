"""Face detection with five landmarks.

Coordinates are in pixels of the input image, x to the right, y down; the image spans 0..W and 0..H,
so that the center of its first pixel is (0.5, 0.5).
"""

from __future__ import annotations

import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, ConfigError, RestorerError
from ..media.arrays import Image, as_bgr_image, resize_image
from ..runtime.registry import Registry

if TYPE_CHECKING:
    import torch

MAX_SIDE = 640
"""Long side, in pixels, that an image is reduced to before detection."""

FFHQ_512: NDArray[np.float64] = np.array(
    [
        (192.98138, 239.94708),
        (318.90277, 240.1936),
        (256.63416, 314.01935),
        (201.26117, 371.41043),
        (313.08905, 371.15118),
    ]
)
"""The mean five landmarks of FFHQ faces at 512x512, (5, 2) x, y in pixels: the template that
GFPGAN, RestoreFormer and CodeFormer were trained on, in the order of `Face.landmarks`. The figures
are facexlib's (`face_template`)."""

_LARGE = 0.5  # share of the image's width or height from which on a face is large
_SURE, _CLEARANCE = 0.9, 0.1  # score, and share of a face's size around it, of a clear detection
_CANDIDATE = 0.3  # score from which on something might be a face
_COARSE_SIDE, _COARSE_SHARE = 320, 0.8  # min long side of a coarse pass; max share of the full one
_VISIBLE, _PRECISE = 24, 48  # size of a face, in a coarse pass, to be detected, and located well
_TIGHT_SIDE = 256  # long side that a tight image is reduced to
_BORDER = 0.25  # share of the long side that is added around it
_GRAY = (127, 127, 127)

_SCORE = 4  # column of what `_find` returns, after x1, y1, x2, y2 and before five x, y

_PLAIN_MOBILE = "ed6fa7d45a5179f03cb5ce82c73b0c6711372968e53782e88395acee88d319e1"
"""sha256 of weights/mobilenet0.25_Final.pth of biubug6/Face-Detector-1MB-with-landmark. It has the
name and size of facexlib's file and fits its network, but was trained with plain ReLU and smaller
anchors: loaded as it is, its boxes have twice the size and its landmarks are arbitrary."""
_PLAIN_ANCHORS = [[10, 20], [32, 64], [128, 256]]


@dataclass(frozen=True, eq=False)
class Face:
    """One face of an image.

    Attributes:
        box_xyxy: float64 (4,): left, top, right, bottom, in pixels; may extend over the image's
            edge.
        landmarks: float32 (5, 2), x, y in pixels: left eye, right eye, nose, left and right mouth
            corner; left and right in the image of an upright face.
        score: the detector's confidence, 0..1.
        aligned: False where the landmarks cannot be those of a face; see `rotated.RotatedFaces`.
    """

    box_xyxy: NDArray[np.float64]
    landmarks: NDArray[np.float32]
    score: float
    aligned: bool = True

    @property
    def size_wh(self) -> tuple[float, float]:
        """Width and height of the box, in pixels."""
        x1, y1, x2, y2 = (float(side) for side in self.box_xyxy)
        return x2 - x1, y2 - y1


class FaceDetector(ABC):
    """Detects faces; safe to call from several threads."""

    @abstractmethod
    def detect(self, image_bgr: Image) -> list[Face]:
        """The faces of an image, the largest box first, and the higher score first among equals.

        Args:
            image_bgr: BGR uint8 (H, W, 3), in any memory layout; not modified.

        Returns:
            The faces; empty when there is none.

        Raises:
            FrameError: `image_bgr` has another type or shape, or is empty.
            RestorerError: the network failed.
        """

    def close(self) -> None:  # noqa: B027 - most detectors own nothing but memory
        """Free the detector's resources; it cannot be used afterwards."""


class WholeImage(FaceDetector):
    """``none``: each image is one face crop, with its landmarks at the FFHQ template's."""

    def detect(self, image_bgr: Image) -> list[Face]:
        """One face: the whole image, score 1; see `FaceDetector.detect`."""
        height, width = as_bgr_image(image_bgr).shape[:2]
        landmarks = (FFHQ_512 * (width / 512, height / 512)).astype(np.float32)
        return [Face(np.array((0.0, 0.0, width, height)), landmarks, 1.0)]


class NetworkDetector(FaceDetector):
    """A detector network: resizes images for it, and maps its output back.

    An image is reduced until its long side is `max_side`. If a face then takes more than half of
    the image's width or height, or none is detected, there is a second pass, smaller and with a
    gray border around the image: networks miss, misplace or duplicate a face that leaves no margin
    (a host's 256x256 face crop). Large faces are then the second pass's, smaller ones beside them
    the first's.

    With `min_face` the first pass is a coarse one, in which faces of that size can still be
    detected. Its result is used if it has a single face, with a high score and not too small, and
    no other candidate; otherwise it is discarded. A single face with a high score and clearance on
    all sides needs no second pass either.

    Args:
        max_side: long side in pixels; None does not reduce images. Faces smaller than about 12 px
            after the reduction are not detected.
        threshold: minimum score, 0..1.
        min_face: size in pixels of the smallest face to detect; 0 skips no pass, for consecutive
            frames, in which a face must not jump by the hundredths of its size that differ between
            a coarse and a full pass.

    Raises:
        ConfigError: an invalid value.
    """

    def __init__(self, max_side: int | None, threshold: float, min_face: float = 0) -> None:
        if max_side is not None and max_side < 64:
            raise ConfigError("max_side", max_side, "at least 64 pixels, or None for no limit")
        if not 0 < threshold < 1:
            raise ConfigError("threshold", threshold, "more than 0 and less than 1")
        if min_face < 0:
            raise ConfigError("min_face", min_face, "0 or more pixels")
        self.max_side, self.threshold, self.min_face = max_side, threshold, min_face
        self._lock = threading.Lock()

    def detect(self, image_bgr: Image) -> list[Face]:
        """See `FaceDetector.detect`."""
        image = as_bgr_image(image_bgr)
        height, width = image.shape[:2]
        faces = self._coarse_pass(image)
        faces = faces or self._pass(image, self.max_side or max(height, width), 0)
        is_clear = self.min_face > 0 and _is_clear(faces, width, height)
        if faces and (is_clear or not _is_large(faces[0], width, height)):
            return faces
        bordered = self._pass(image, min(_TIGHT_SIDE, self.max_side or _TIGHT_SIDE), _BORDER)
        large = [face for face in bordered if _is_large(face, width, height)]
        if not faces or not large:
            return faces or bordered
        small = [face for face in faces if not any(_contains(one, face) for one in large)]
        return _sorted([*large, *small])

    def detect_once(self, image_bgr: Image, threshold: float) -> list[Face]:
        """The faces of a small image in one pass at its own size, see `detect`.

        Args:
            image_bgr: BGR uint8 (H, W, 3), contiguous.
            threshold: minimum score, 0..1.
        """
        return self._pass(image_bgr, max(image_bgr.shape[:2]), 0, threshold)

    @abstractmethod
    def _find(self, image_bgr: Image, threshold: float) -> NDArray[Any]:
        """Run the network: (k, 15) x1, y1, x2, y2, score, then five x, y."""

    def _coarse_pass(self, image: Image) -> list[Face]:
        """The only face of the image; empty where it takes a full pass to be sure."""
        if not self.min_face:
            return []
        height, width = image.shape[:2]
        long = max(height, width)
        full = min(long, self.max_side or long)
        side = max(_COARSE_SIDE, round(long * _VISIBLE / self.min_face))
        if side > _COARSE_SHARE * full:
            return []
        faces = self._pass(image, side, 0, min(_CANDIDATE, self.threshold))
        is_sure = _is_sure(faces) and faces[0].score >= self.threshold
        return faces if is_sure and max(faces[0].size_wh) * side >= _PRECISE * long else []

    def _pass(
        self, image_bgr: Image, max_side: int, border: float, threshold: float | None = None
    ) -> list[Face]:
        """Reduce the image, add a border (a share of the long side), detect, and map back."""
        import cv2

        height, width = image_bgr.shape[:2]
        shrink = min(1.0, max_side / max(height, width))
        size_wh = max(1, round(width * shrink)), max(1, round(height * shrink))
        image_bgr = resize_image(image_bgr, size_wh)
        pad = round(border * max(size_wh))
        if pad:
            bordered = cv2.copyMakeBorder(
                image_bgr, pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=_GRAY
            )
            image_bgr = np.asarray(bordered, np.uint8)
        min_score = self.threshold if threshold is None else threshold
        with self._lock:
            rows = np.asarray(self._find(image_bgr, min_score), np.float64).reshape(-1, 15)
        rows = rows[np.isfinite(rows).all(axis=1) & (rows[:, _SCORE] >= min_score)]
        scale = np.array((width / size_wh[0], height / size_wh[1]))
        return _sorted(_face(row, pad, scale) for row in rows)


class YuNet(NetworkDetector):
    """YuNet through OpenCV's FaceDetectorYN.

    Wu et al., "YuNet: A Tiny Millisecond-level Face Detector", 2023.

    Args:
        path: an .onnx file of the user's own; None uses ``YuNet`` from the cache of weights.
        max_side: see `NetworkDetector`.
        threshold: minimum score, 0..1.
        min_face: see `NetworkDetector`.
        download: download a missing weight now.

    Raises:
        ConfigError: an invalid value.
        WeightError: the weight is missing (the message says how to fetch it), corrupt, or another
            network's.
    """

    weight_name: ClassVar[str] = "YuNet"

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        max_side: int | None = MAX_SIDE,
        threshold: float = 0.7,
        min_face: float = 0,
        download: bool = False,
    ) -> None:
        super().__init__(max_side, threshold, min_face)
        import cv2

        from .. import weights

        weight = weights.resolve(path, self.weight_name, download=download)

        side = 64
        try:
            with quiet_opencv():
                self._net: Any = cv2.FaceDetectorYN.create(
                    str(weight.path), "", (side, side), threshold, 0.3, 5000
                )
                self._find(np.full((side, side, 3), 127, np.uint8), threshold)
        except (cv2.error, RestorerError) as error:
            actual = "something that OpenCV cannot run as YuNet"
            raise CheckpointError(weight.path, actual, "YuNet as ONNX") from error

    def _find(self, image_bgr: Image, threshold: float) -> NDArray[Any]:
        import cv2

        try:
            self._net.setInputSize((image_bgr.shape[1], image_bgr.shape[0]))
            self._net.setScoreThreshold(threshold)
            rows = self._net.detect(image_bgr)[1]
        except cv2.error as error:
            raise RestorerError(f"YuNet failed: {error}") from error
        if rows is None:
            return np.empty((0, 15))
        rows = np.asarray(rows, np.float64)  # x, y, w, h, five x, y, score
        boxes_xyxy = np.hstack((rows[:, :2], rows[:, :2] + rows[:, 2:4]))
        return np.hstack((boxes_xyxy, rows[:, 14:15], rows[:, 4:14]))


class RetinaFace(NetworkDetector):
    """RetinaFace (Deng et al., CVPR 2020) through facexlib, which the extra ``gfpgan`` installs.

    The weight comes from this library's cache, or from `path`, and is read like every weight;
    facexlib downloads nothing.

    Args:
        network: ``"resnet50"`` (accurate) or ``"mobile0.25"`` (small).
        path: a checkpoint of the user's own; None uses the published one from the cache.
        device: where the network runs; None is the CPU.
        max_side: see `NetworkDetector`.
        threshold: minimum score, 0..1.
        min_face: see `NetworkDetector`.
        download: download a missing weight now.
        trust_unpinned: open a ``.pth`` at `path` that is not in the table of published weights.

    Raises:
        ConfigError: an invalid value.
        MissingDependencyError: facexlib is not installed.
        WeightError: the weight is missing (the message says how to fetch it), corrupt, untrusted,
            or another network's.
    """

    weight_names: ClassVar[dict[str, str]] = {
        "resnet50": "RetinaFace-R50",
        "mobile0.25": "RetinaFace-mobile0.25",
    }

    def __init__(
        self,
        network: str = "resnet50",
        path: str | Path | None = None,
        *,
        device: torch.device | str | None = None,
        max_side: int | None = MAX_SIDE,
        threshold: float = 0.9,
        min_face: float = 0,
        download: bool = False,
        trust_unpinned: bool = False,
    ) -> None:
        super().__init__(max_side, threshold, min_face)
        if network not in self.weight_names:
            raise ConfigError("network", network, " | ".join(self.weight_names))
        from .. import weights

        weight = weights.resolve(
            path, self.weight_names[network], download=download, trust_unpinned=trust_unpinned
        )
        import torch

        from ..restorers.official_stack import import_official

        module = import_official("facexlib.detection.retinaface", "face detector: retinaface")
        self.device = torch.device(device or "cpu")
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a deprecated argument of torchvision's
            self._net: Any = module.RetinaFace(network_name=network, device=self.device)
        try:
            self._net.load_state_dict(weight.state_dict())
        except RuntimeError as error:
            actual = "tensors that do not fit it"
            raise CheckpointError(weight.path, actual, f"RetinaFace {network}") from error
        if weight.sha256 == _PLAIN_MOBILE:
            self._net.cfg["min_sizes"] = _PLAIN_ANCHORS
            for module in self._net.modules():
                if isinstance(module, torch.nn.LeakyReLU):
                    module.negative_slope = 0.0
        self._net.eval()

    def _find(self, image_bgr: Image, threshold: float) -> NDArray[Any]:
        import torch

        from ..runtime.precision import without_autocast

        try:
            with torch.no_grad(), without_autocast(self.device):
                rows = self._net.detect_faces(image_bgr, threshold)
        except Exception as error:
            raise RestorerError(f"RetinaFace failed: {type(error).__name__}: {error}") from error
        return np.asarray(rows, np.float64)


class YOLOv5Face(NetworkDetector):
    """YOLOv5-face through ONNX Runtime, on the CPU; the extra ``onnx`` installs it.

    Args:
        path: the user's own .onnx file; the table of weights has none (they are under GPL-3.0).
        max_side: see `NetworkDetector`.
        threshold: minimum score, 0..1.
        min_face: see `NetworkDetector`.

    Raises:
        ConfigError: an invalid value, or no path.
        MissingDependencyError: onnxruntime is not installed.
        WeightError: the file is missing, corrupt, or another network's.
    """

    def __init__(
        self,
        path: str | Path | None,
        *,
        max_side: int | None = MAX_SIDE,
        threshold: float = 0.5,
        min_face: float = 0,
    ) -> None:
        super().__init__(max_side, threshold, min_face)
        if path is None:
            allowed = "the path of a YOLOv5-face .onnx file with face_detector: yolov5 (GPL-3.0)"
            raise ConfigError("detector_path", None, allowed)
        from .yolov5 import YOLOv5Graph

        self._graph = YOLOv5Graph(path)

    def _find(self, image_bgr: Image, threshold: float) -> NDArray[Any]:
        return self._graph.run(image_bgr, threshold)


DETECTORS: Registry[str] = Registry("face detector")
"""The detectors of `make_detector`, with one line about each."""
DETECTORS.add_all(
    {
        "yunet": "YuNet through OpenCV: small, fast, needs no extra",
        "retinaface": "RetinaFace ResNet-50 through facexlib: accurate, slow on a CPU "
        "(extra gfpgan)",
        "retinaface-mobile": "RetinaFace mobile0.25 through facexlib (extra gfpgan)",
        "yolov5": "YOLOv5-face, the user's own ONNX file (extra onnx)",
        "none": "no detection: each image is one face crop",
    }
)


def weight_of(name: str) -> str | None:
    """Name of the published weight of a detector of `DETECTORS`; None without one.

    Raises:
        ConfigError: an unknown name.
    """
    DETECTORS.get(name)
    weights = {
        "yunet": YuNet.weight_name,
        "retinaface": RetinaFace.weight_names["resnet50"],
        "retinaface-mobile": RetinaFace.weight_names["mobile0.25"],
    }
    return weights.get(DETECTORS.canonical(name) or name)


def make_detector(
    name: str,
    path: str | Path | None = None,
    *,
    device: torch.device | str | None = None,
    max_side: int | None = MAX_SIDE,
    threshold: float | None = None,
    min_face: float = 0,
    download: bool = False,
    trust_unpinned: bool = False,
) -> FaceDetector:
    """Make a detector by name; its weight is checked and loaded now, before any work starts.

    Args:
        name: ``"yunet"``, ``"retinaface"``, ``"retinaface-mobile"``, ``"yolov5"`` or ``"none"``, in
            any case.
        path: a weight of the user's own instead of the published one; yolov5 has no published one.
        device: where RetinaFace runs; the others run on the CPU.
        max_side: long side in pixels that images are reduced to, None for no limit; see
            `NetworkDetector`.
        threshold: minimum score, 0..1; None uses the detector's own.
        min_face: size in pixels of the smallest face to detect, 0 to skip no pass; see
            `NetworkDetector`.
        download: download a missing weight now.
        trust_unpinned: open a ``.pth`` at `path` that is not in the table of published weights.

    Raises:
        ConfigError: an unknown name or an invalid value.
        MissingDependencyError: facexlib, or onnxruntime, is not installed.
        WeightError: the weight is missing (the message says how to fetch it), corrupt, untrusted,
            or another network's.
    """
    DETECTORS.get(name)
    name = DETECTORS.canonical(name) or name
    if name == "none":
        return WholeImage()
    options: dict[str, Any] = {"min_face": min_face}
    if threshold is not None:
        options["threshold"] = threshold
    if name == "yunet":
        return YuNet(path, max_side=max_side, download=download, **options)
    if name == "yolov5":
        return YOLOv5Face(path, max_side=max_side, **options)
    return RetinaFace(
        "mobile0.25" if name == "retinaface-mobile" else "resnet50",
        path,
        device=device,
        max_side=max_side,
        download=download,
        trust_unpinned=trust_unpinned,
        **options,
    )


def _face(row: NDArray[Any], pad: int, scale_xy: NDArray[Any]) -> Face:
    box = (row[:_SCORE].reshape(2, 2) - pad) * scale_xy
    landmarks = (row[_SCORE + 1 :].reshape(5, 2) - pad) * scale_xy
    return Face(box.reshape(4), landmarks.astype(np.float32), min(1.0, float(row[_SCORE])))


def _is_large(face: Face, width: int, height: int) -> bool:
    return face.size_wh[0] >= _LARGE * width or face.size_wh[1] >= _LARGE * height


def _is_sure(faces: Sequence[Face]) -> bool:
    """Whether there is a single face and its score is high."""
    return len(faces) == 1 and faces[0].score >= _SURE


def _is_clear(faces: Sequence[Face], width: int, height: int) -> bool:
    """Whether that face has clearance on all sides, too."""
    if not _is_sure(faces):
        return False
    (left, top), (right, bottom) = faces[0].box_xyxy.reshape(2, 2)
    clearance = min(left, top, width - right, height - bottom)
    return bool(clearance >= _CLEARANCE * max(faces[0].size_wh))


def _contains(face: Face, other: Face) -> bool:
    """Whether the center of `other` lies in the box of `face`."""
    center = (other.box_xyxy[:2] + other.box_xyxy[2:]) / 2
    return bool((face.box_xyxy[:2] <= center).all() and (center <= face.box_xyxy[2:]).all())


def _sorted(faces: Iterable[Face]) -> list[Face]:
    def rank(face: Face) -> tuple[float, float]:
        return face.size_wh[0] * face.size_wh[1], face.score

    return sorted(faces, key=rank, reverse=True)


@contextmanager
def quiet_opencv() -> Iterator[None]:
    """Keep OpenCV 5 from printing a warning about one of its own settings."""
    import cv2

    log = getattr(getattr(cv2, "utils", None), "logging", None)
    if log is None:
        yield
        return
    level = log.getLogLevel()
    log.setLogLevel(min(level, log.LOG_LEVEL_ERROR))
    try:
        yield
    finally:
        log.setLogLevel(level)
