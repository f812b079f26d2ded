"""Whether two faces are those of one person: embeddings, and the faces of reference photos."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, ConfigError, RestorerError
from ..media.arrays import Image, as_bgr_image
from .detect import Face, FaceDetector, NetworkDetector, quiet_opencv
from .rotated import RotatedFaces

SAME_PERSON = 0.363
"""Smallest cosine of two embeddings of one person: OpenCV Zoo's figure for SFace, with which it
tells 99.4 % of LFW's pairs."""


class FaceRecognizer(Protocol):
    """Embeds faces; see `SFace`."""

    def embed(self, image_bgr: Image, face: Face) -> NDArray[np.float32]:
        """The embedding of a face in BGR uint8 (H, W, 3): float32 (d,) of length 1."""


class SFace:
    """SFace through OpenCV's FaceRecognizerSF, on the CPU; safe to call from several threads.

    Zhong et al., "SFace: Sigmoid-Constrained Hypersphere Loss for Robust Face Recognition", 2021.

    Args:
        path: an .onnx file of the user's own; None uses ``sface`` from the cache of weights.
        download: download a missing weight now.

    Raises:
        WeightError: the weight is missing (the message says how to fetch it), corrupt, or another
            network's.
    """

    weight_name: ClassVar[str] = "sface"

    def __init__(self, path: str | Path | None = None, *, download: bool = False) -> None:
        import cv2

        from .. import weights

        weight = weights.resolve(path, self.weight_name, download=download)
        self._lock = threading.Lock()
        try:
            with quiet_opencv():
                self._net: Any = cv2.FaceRecognizerSF.create(str(weight.path), "")
                self._net.feature(np.zeros((112, 112, 3), np.uint8))
        except cv2.error as error:
            actual = "something that OpenCV cannot run as SFace"
            raise CheckpointError(weight.path, actual, "SFace as ONNX") from error

    def embed(self, image_bgr: Image, face: Face) -> NDArray[np.float32]:
        """The embedding of a face, aligned by its five landmarks.

        Args:
            image_bgr: BGR uint8 (H, W, 3), in any memory layout; not modified.
            face: a face of that image.

        Returns:
            float32 (128,) of length 1.

        Raises:
            FrameError: `image_bgr` has another type or shape, or is empty.
            RestorerError: the network failed.
        """
        import cv2

        image = np.ascontiguousarray(as_bgr_image(image_bgr))
        row = np.zeros((1, 15), np.float32)  # as of FaceDetectorYN; only the landmarks are read
        row[0, 4:14] = np.asarray(face.landmarks, np.float32).ravel()
        try:
            with self._lock:
                feature = self._net.feature(self._net.alignCrop(image, row))
        except cv2.error as error:
            raise RestorerError(f"SFace failed: {error}") from error
        embedding = np.array(feature, np.float32).ravel()
        return np.asarray(embedding / max(float(np.linalg.norm(embedding)), 1e-12), np.float32)


class ReferenceFaces:
    """The faces of reference photos.

    Args:
        recognizer: embeds faces.
        detector: detects the face of a photo, of a `NetworkDetector` in every rotation.
        photos_bgr: name to photo, BGR uint8 (H, W, 3), each with one face; at least one. Several
            may be of one person, or of several.

    Raises:
        ConfigError: a photo has no face, or more than one.
        RestorerError: a network failed.
    """

    def __init__(
        self, recognizer: FaceRecognizer, detector: FaceDetector, photos_bgr: Mapping[str, Image]
    ) -> None:
        self._recognizer = recognizer
        rotated = RotatedFaces(detector) if isinstance(detector, NetworkDetector) else detector
        embeddings = []
        for name, image in photos_bgr.items():
            faces = [face for face in rotated.detect(image) if face.aligned]
            if len(faces) != 1:
                hint = f" The face detector finds {len(faces)}; crop the photo to one."
                raise ConfigError("face", name, "a photo with one face", hint)
            embeddings.append(recognizer.embed(image, faces[0]))
        self._embeddings = np.stack(embeddings)

    def similarity(self, image_bgr: Image, face: Face) -> float:
        """The cosine between a face and the most similar one of the photos, -1..1.

        Args:
            image_bgr: BGR uint8 (H, W, 3).
            face: a face of that image.

        Raises:
            RestorerError: the network failed.
        """
        return float((self._embeddings @ self._recognizer.embed(image_bgr, face)).max())

    def is_same_person(self, image_bgr: Image, face: Face) -> bool:
        """Whether a single face is that of a person on the photos; see `similarity`."""
        return self.similarity(image_bgr, face) >= SAME_PERSON
