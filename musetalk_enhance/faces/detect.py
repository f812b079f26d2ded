"""Where the faces of a picture are, and their five landmarks.

Coordinates are in pixels of the picture that was given, x to the right, y down; the picture spans 0..W and 0..H,
so that the middle of its first pixel is (0.5, 0.5).
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
from ..media.arrays import as_bgr_image
from ..runtime.registry import Registry

if TYPE_CHECKING:
    import torch


Picture = NDArray[np.uint8]
"""BGR uint8 (H, W, 3)."""

MAX_SIDE = 640
"""Long side, in pixels, that a picture is reduced to before a detector sees it."""

FFHQ_512: NDArray[np.float64] = np.array(
    [
        (192.98138, 239.94708),
        (318.90277, 240.1936),
        (256.63416, 314.01935),
        (201.26117, 371.41043),
        (313.08905, 371.15118),
    ]
)
"""The mean five landmarks of FFHQ faces at 512x512, (5, 2) x, y in pixels: what GFPGAN, RestoreFormer and
CodeFormer were trained on, in the order of `Face.landmarks`. The figures are facexlib's (`face_template`)."""

_FILLS = 0.5  # share of a picture's width or height from which on a face is a large one
_SURE, _ROOM = 0.9, 0.1  # score, and share of its size around a face, with which a look leaves no doubt
_HINT = 0.3  # score from which on something might be a face
_COARSE_SIDE = 320  # least long side of a coarse look; of no use where it is over this share of the full one
_COARSE_SHARE = 0.8
_VISIBLE, _PRECISE = 24, 48  # pixels that a face needs in a coarse look to be seen, and to be placed well
_TIGHT_SIDE = 256  # long side that such a picture is reduced to
_BORDER = 0.25  # share of the long side that is put around it
_GREY = (127, 127, 127)

_SCORE = 4  # column of what `_find` returns: x1, y1, x2, y2 before it, five x, y after it

_PLAIN_MOBILE = "ed6fa7d45a5179f03cb5ce82c73b0c6711372968e53782e88395acee88d319e1"
"""sha256 of weights/mobilenet0.25_Final.pth of biubug6/Face-Detector-1MB-with-landmark. It goes by the name and
size of facexlib's file and fits its network, but was trained with plain ReLU and smaller anchors: loaded as it is,
it finds boxes of twice the size and puts landmarks anywhere."""
_PLAIN_ANCHORS = [[10, 20], [32, 64], [128, 256]]


@dataclass(frozen=True, eq=False)
class Face:
    """One face of a picture.

    Attributes:
        box_xyxy: float64 (4,): left, top, right, bottom, in pixels; may reach over the picture's edge.
        landmarks: float32 (5, 2), x, y in pixels: left eye, right eye, nose, left and right mouth corner, left
            and right as one sees them in the picture of an upright face.
        score: how sure the detector is, 0..1.
    """

    box_xyxy: NDArray[np.float64]
    landmarks: NDArray[np.float32]
    score: float

    @property
    def size_wh(self) -> tuple[float, float]:
        """Width and height of the box, in pixels."""
        x1, y1, x2, y2 = (float(side) for side in self.box_xyxy)
        return x2 - x1, y2 - y1


class FaceDetector(ABC):
    """Finds faces; safe to call from several threads."""

    @abstractmethod
    def detect(self, picture_bgr: Picture) -> list[Face]:
        """The faces of a picture, the largest box first, and the surer first where two are of one size.

        Args:
            picture_bgr: BGR uint8 (H, W, 3), in any memory layout; it is not changed.

        Returns:
            The faces; empty when there is none.

        Raises:
            FrameError: `picture_bgr` is something else, or empty.
            RestorerError: the network failed.
        """

    def close(self) -> None:  # noqa: B027 - most detectors have nothing to give back but memory
        """Give back what the detector holds; it is not used afterwards."""


class WholePicture(FaceDetector):
    """``none``: takes every picture for one face crop, with its landmarks where the FFHQ template has them."""

    def detect(self, picture_bgr: Picture) -> list[Face]:
        """One face: the whole picture, score 1; see `FaceDetector.detect`."""
        height, width = as_bgr_image(picture_bgr).shape[:2]
        landmarks = (FFHQ_512 * (width / 512, height / 512)).astype(np.float32)
        return [Face(np.array((0.0, 0.0, width, height)), landmarks, 1.0)]


class NetworkDetector(FaceDetector):
    """A detector that is a network: brings pictures to a size it works at, and its answer back.

    A picture is reduced until its long side is `max_side`. Where a face then takes more than half of the picture's
    width or height, or none is found, the picture is looked at once more, smaller and with a grey border around
    it: networks miss, misplace or see several of a face that leaves no room (a host's 256x256 face crop). Such
    large faces count as they are found then; smaller ones beside them as they were found first.

    With `least_face` the first look is a coarse one, in which faces of that size can still be seen. Where it shows
    one face, surely and not too small, and nothing else that might be one, it counts; otherwise it is forgotten.
    And a single face that was surely seen, and has room on all sides, needs no second look.

    Args:
        max_side: long side in pixels; None takes pictures as large as they are. Faces that are smaller than about
            12 px after the reduction are not found.
        threshold: least score, 0..1.
        least_face: size in pixels of the smallest face that is wanted; 0: save no look, for pictures that follow
            one another, in which a face must not jump by the hundredths of its size between two ways to look.

    Raises:
        ConfigError: an impossible value.
    """

    def __init__(self, max_side: int | None, threshold: float, least_face: float = 0) -> None:
        if max_side is not None and max_side < 64:
            raise ConfigError("max_side", max_side, "64 pixels at least, or None for no limit")
        if not 0 < threshold < 1:
            raise ConfigError("threshold", threshold, "more than 0 and less than 1")
        if least_face < 0:
            raise ConfigError("least_face", least_face, "0 or more pixels")
        self.max_side, self.threshold, self.least_face = max_side, threshold, least_face
        self._lock = threading.Lock()

    def detect(self, picture_bgr: Picture) -> list[Face]:
        """See `FaceDetector.detect`."""
        picture = as_bgr_image(picture_bgr)
        height, width = picture.shape[:2]
        faces = self._look_coarsely(picture) or self._look(picture, self.max_side or max(height, width), 0)
        alone = self.least_face > 0 and _is_plain(faces, width, height)
        if faces and (alone or not _fills(faces[0], width, height)):
            return faces
        again = self._look(picture, min(_TIGHT_SIDE, self.max_side or _TIGHT_SIDE), _BORDER)
        large = [face for face in again if _fills(face, width, height)]
        if not faces or not large:
            return faces or again
        return _sorted([*large, *(face for face in faces if not any(_holds(one, face) for one in large))])

    @abstractmethod
    def _find(self, picture_bgr: Picture, threshold: float) -> NDArray[Any]:
        """Faces of a picture of the right size: (k, 15) x1, y1, x2, y2, score, then five x, y."""

    def _look_coarsely(self, picture: Picture) -> list[Face]:
        """The only face there is; nothing where a closer look is needed to say so."""
        if not self.least_face:
            return []
        height, width = picture.shape[:2]
        long = max(height, width)
        full = min(long, self.max_side or long)
        side = max(_COARSE_SIDE, round(long * _VISIBLE / self.least_face))
        if side > _COARSE_SHARE * full:
            return []
        faces = self._look(picture, side, 0, min(_HINT, self.threshold))
        sure = _is_sure(faces) and faces[0].score >= self.threshold
        return faces if sure and max(faces[0].size_wh) * side >= _PRECISE * long else []

    def _look(self, picture_bgr: Picture, max_side: int, border: float, threshold: float | None = None) -> list[Face]:
        """Reduce, put a border around (a share of the long side), look, and take both back."""
        import cv2

        height, width = picture_bgr.shape[:2]
        shrink = min(1.0, max_side / max(height, width))
        size_wh = max(1, round(width * shrink)), max(1, round(height * shrink))
        if size_wh != (width, height):
            picture_bgr = np.asarray(cv2.resize(picture_bgr, size_wh, interpolation=cv2.INTER_AREA), np.uint8)
        pad = round(border * max(size_wh))
        if pad:
            bordered = cv2.copyMakeBorder(picture_bgr, pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=_GREY)
            picture_bgr = np.asarray(bordered, np.uint8)
        least = self.threshold if threshold is None else threshold
        with self._lock:
            rows = np.asarray(self._find(picture_bgr, least), np.float64).reshape(-1, 15)
        rows = rows[np.isfinite(rows).all(axis=1) & (rows[:, _SCORE] >= least)]
        scale = np.array((width / size_wh[0], height / size_wh[1]))
        return _sorted(_face(row, pad, scale) for row in rows)


class YuNet(NetworkDetector):
    """YuNet (Wu et al., "YuNet: A Tiny Millisecond-level Face Detector", 2023) through OpenCV's FaceDetectorYN.

    Args:
        path: an .onnx file of the user's own; None takes ``YuNet`` from the cache of weights.
        max_side: see `NetworkDetector`.
        threshold: least score, 0..1.
        least_face: see `NetworkDetector`.
        download: fetch a missing weight now.

    Raises:
        ConfigError: an impossible value.
        WeightError: the weight is missing (says how to fetch it), damaged, or another network.
    """

    weight_name: ClassVar[str] = "YuNet"

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        max_side: int | None = MAX_SIDE,
        threshold: float = 0.7,
        least_face: float = 0,
        download: bool = False,
    ) -> None:
        super().__init__(max_side, threshold, least_face)
        import cv2

        from .. import weights

        weight = weights.resolve(path, self.weight_name, download=download)

        side = 64
        try:
            with _quiet_opencv():
                self._net: Any = cv2.FaceDetectorYN.create(str(weight.path), "", (side, side), threshold, 0.3, 5000)
                self._find(np.full((side, side, 3), 127, np.uint8), threshold)
        except (cv2.error, RestorerError) as error:
            raise CheckpointError(
                weight.path, "something that OpenCV cannot run as YuNet", "YuNet as ONNX"
            ) from error

    def _find(self, picture_bgr: Picture, threshold: float) -> NDArray[Any]:
        import cv2

        try:
            self._net.setInputSize((picture_bgr.shape[1], picture_bgr.shape[0]))
            self._net.setScoreThreshold(threshold)
            rows = self._net.detect(picture_bgr)[1]
        except cv2.error as error:
            raise RestorerError(f"YuNet failed: {error}") from error
        if rows is None:
            return np.empty((0, 15))
        rows = np.asarray(rows, np.float64)  # x, y, w, h, five x, y, score
        boxes_xyxy = np.hstack((rows[:, :2], rows[:, :2] + rows[:, 2:4]))
        return np.hstack((boxes_xyxy, rows[:, 14:15], rows[:, 4:14]))


class RetinaFace(NetworkDetector):
    """RetinaFace (Deng et al., CVPR 2020) through facexlib, which the extra ``gfpgan`` brings.

    Its weight comes from our cache, or from `path`, and is read as every weight is; facexlib downloads nothing.

    Args:
        network: ``"resnet50"`` (exact) or ``"mobile0.25"`` (small).
        path: a checkpoint of the user's own; None takes the published one from the cache.
        device: where the network runs; None is the CPU.
        max_side: see `NetworkDetector`.
        threshold: least score, 0..1.
        least_face: see `NetworkDetector`.
        download: fetch a missing weight now.
        trust_unpinned: open a ``.pth`` at `path` that is not in the table of published weights.

    Raises:
        ConfigError: an impossible value.
        MissingDependencyError: facexlib is not installed.
        WeightError: the weight is missing (says how to fetch it), damaged, not to be trusted, or another network.
    """

    weight_names: ClassVar[dict[str, str]] = {"resnet50": "RetinaFace-R50", "mobile0.25": "RetinaFace-mobile0.25"}

    def __init__(
        self,
        network: str = "resnet50",
        path: str | Path | None = None,
        *,
        device: torch.device | str | None = None,
        max_side: int | None = MAX_SIDE,
        threshold: float = 0.9,
        least_face: float = 0,
        download: bool = False,
        trust_unpinned: bool = False,
    ) -> None:
        super().__init__(max_side, threshold, least_face)
        if network not in self.weight_names:
            raise ConfigError("network", network, " | ".join(self.weight_names))
        from .. import weights

        name = self.weight_names[network]
        weight = weights.resolve(path, name, download=download, trust_unpinned=trust_unpinned)
        import torch

        from ..restorers.official_stack import import_official

        module = import_official("facexlib.detection.retinaface", "face detector: retinaface")
        self.device = torch.device(device or "cpu")
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about an old argument of torchvision's
            self._net: Any = module.RetinaFace(network_name=network, device=self.device)
        try:
            self._net.load_state_dict(weight.state_dict())
        except RuntimeError as error:
            raise CheckpointError(weight.path, "tensors that do not fit it", f"RetinaFace {network}") from error
        if weight.sha256 == _PLAIN_MOBILE:
            self._net.cfg["min_sizes"] = _PLAIN_ANCHORS
            for module in self._net.modules():
                if isinstance(module, torch.nn.LeakyReLU):
                    module.negative_slope = 0.0
        self._net.eval()

    def _find(self, picture_bgr: Picture, threshold: float) -> NDArray[Any]:
        import torch

        from ..precision import without_autocast

        try:
            with torch.no_grad(), without_autocast(self.device):
                rows = self._net.detect_faces(picture_bgr, threshold)
        except Exception as error:
            raise RestorerError(f"RetinaFace failed: {type(error).__name__}: {error}") from error
        return np.asarray(rows, np.float64)


DETECTORS: Registry[str] = Registry("face detector")
"""What `make_detector` knows, with one line about each."""
DETECTORS.add_all(
    {
        "yunet": "YuNet through OpenCV: small, quick, needs no extra",
        "retinaface": "RetinaFace ResNet-50 through facexlib: exact, slow on a CPU (extra gfpgan)",
        "retinaface-mobile": "RetinaFace mobile0.25 through facexlib (extra gfpgan)",
        "none": "no search: each picture is one face crop",
    }
)


def make_detector(
    name: str,
    path: str | Path | None = None,
    *,
    device: torch.device | str | None = None,
    max_side: int | None = MAX_SIDE,
    threshold: float | None = None,
    least_face: float = 0,
    download: bool = False,
    trust_unpinned: bool = False,
) -> FaceDetector:
    """A detector by name, its weight found, checked and loaded now, before any work starts.

    Args:
        name: ``"yunet"``, ``"retinaface"``, ``"retinaface-mobile"`` or ``"none"``, in any case.
        path: a weight of the user's own in place of the published one.
        device: where RetinaFace runs; YuNet runs on the CPU.
        max_side: long side in pixels that pictures are reduced to, None for no limit; see `NetworkDetector`.
        threshold: least score, 0..1; None takes the detector's own.
        least_face: size in pixels of the smallest face that is wanted, 0 for no hurry; see `NetworkDetector`.
        download: fetch a missing weight now.
        trust_unpinned: open a ``.pth`` at `path` that is not in the table of published weights.

    Raises:
        ConfigError: an unknown name or an impossible value.
        MissingDependencyError: facexlib is not installed.
        WeightError: the weight is missing (says how to fetch it), damaged, not to be trusted, or another network.
    """
    DETECTORS.get(name)
    name = DETECTORS.canonical(name) or name
    if name == "none":
        return WholePicture()
    least: dict[str, Any] = {"least_face": least_face} | ({} if threshold is None else {"threshold": threshold})
    if name == "yunet":
        return YuNet(path, max_side=max_side, download=download, **least)
    return RetinaFace(
        "mobile0.25" if name == "retinaface-mobile" else "resnet50",
        path,
        device=device,
        max_side=max_side,
        download=download,
        trust_unpinned=trust_unpinned,
        **least,
    )


def _face(row: NDArray[Any], pad: int, scale_xy: NDArray[Any]) -> Face:
    box = (row[:_SCORE].reshape(2, 2) - pad) * scale_xy
    landmarks = (row[_SCORE + 1 :].reshape(5, 2) - pad) * scale_xy
    return Face(box.reshape(4), landmarks.astype(np.float32), min(1.0, float(row[_SCORE])))


def _fills(face: Face, width: int, height: int) -> bool:
    return face.size_wh[0] >= _FILLS * width or face.size_wh[1] >= _FILLS * height


def _is_sure(faces: Sequence[Face]) -> bool:
    """Whether there is one face and no doubt about it."""
    return len(faces) == 1 and faces[0].score >= _SURE


def _is_plain(faces: Sequence[Face], width: int, height: int) -> bool:
    """Whether that face has room on all sides as well."""
    if not _is_sure(faces):
        return False
    (left, top), (right, bottom) = faces[0].box_xyxy.reshape(2, 2)
    room = min(left, top, width - right, height - bottom)
    return bool(room >= _ROOM * max(faces[0].size_wh))


def _holds(face: Face, other: Face) -> bool:
    """Whether the middle of `other` lies in the box of `face`."""
    middle = (other.box_xyxy[:2] + other.box_xyxy[2:]) / 2
    return bool((face.box_xyxy[:2] <= middle).all() and (middle <= face.box_xyxy[2:]).all())


def _sorted(faces: Iterable[Face]) -> list[Face]:
    return sorted(faces, key=lambda face: (face.size_wh[0] * face.size_wh[1], face.score), reverse=True)


@contextmanager
def _quiet_opencv() -> Iterator[None]:
    """Keep OpenCV 5 from printing a warning about a setting of its own."""
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
