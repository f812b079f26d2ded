"""Whole images and video frames of a host, as arrays: their faces are detected, restored and
pasted."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, FrameError
from ..jobs.image_restorer import RESTORED, Parser, PictureRestorer, RestoredImage
from ..jobs.video_faces import FrameFaces, VideoFaces, composite, main_face
from ..media.arrays import Image

if TYPE_CHECKING:
    from ..enhancer import FaceEnhancer
    from ..faces.detect import FaceDetector

logger = logging.getLogger("musetalk_enhance")

BATCH = 8
"""Images in one call of `WholeImages.restore` by the hosts: as `musetalk-enhance video` does."""


class WholeImages:
    """Restores the faces in the images of one sequence.

    Images of a video are tracked, and each track has a stream of its own, so that its detail is
    steady over time; a new video needs a new object.

    Args:
        enhancer: restores the faces; its `color`, `output_size` and `upscale` are ignored.
        detector: detects them; `faces.detect.make_detector` makes one.
        fps: frames per second of a video; None: the images are stills, independent of one another.
        min_face: a face whose box is smaller than this on both sides, in pixels, is left unchanged.
        only_center_face: restore only the face nearest to the center.
        parser: limits the paste in stills to the face itself; see `PictureRestorer`.

    Raises:
        ConfigError: a value is invalid.
    """

    def __init__(
        self,
        enhancer: FaceEnhancer,
        detector: FaceDetector,
        *,
        fps: float | None = None,
        min_face: float = 0,
        only_center_face: bool = False,
        parser: Parser | None = None,
    ) -> None:
        if fps is not None and not 0 < fps < float("inf"):
            raise ConfigError("fps", fps, "a number above 0")
        self._detector = detector
        self._stills = self._video = None
        if fps is None:
            self._stills = PictureRestorer(
                enhancer,
                detector,
                min_face=min_face,
                only_center_face=only_center_face,
                parser=parser,
            )
        else:
            self._video = VideoFaces(
                enhancer, fps, min_face=min_face, only_center_face=only_center_face
            )

    def restore(
        self, images_rgb: NDArray[Any], sources_rgb: NDArray[Any] | None = None
    ) -> tuple[NDArray[Any], list[dict[str, Any]]]:
        """Restore the next images.

        Args:
            images_rgb: RGB (N, H, W, 3), uint8, or float 0..1; not modified.
            sources_rgb: the originals of a video's frames, in the same form, for an enhancer with
                ``match="source"``; None: the frames themselves.

        Returns:
            As many images of the same shape and dtype, C-contiguous, in which only pixels of
                restored faces differ; and of each image a note on its main face: its ``box_xyxy``
                in pixels (None without a face), and its outcome in the words of reports.

        Raises:
            FrameError: the shape or dtype is another, or there are sources of stills.
            EnhanceError: with ``on_error="raise"``, restoring failed.
        """
        before = to_bytes(images_rgb)
        images = _bgr(before)
        sources: Sequence[Image | None] = [None] * len(before)
        if sources_rgb is not None:
            if self._stills or sources_rgb.shape != images_rgb.shape:
                expected = f"{images_rgb.shape}, of a video"
                raise FrameError("sources", str(sources_rgb.shape), expected)
            sources = _bgr(to_bytes(sources_rgb))
        pairs = self._still_pairs(images) if self._stills else self._video_pairs(images, sources)
        restored, notes = np.array(images_rgb, order="C"), []
        for image, old, (new_bgr, note) in zip(restored, before, pairs, strict=True):
            new = new_bgr[..., ::-1]
            changed = (new != old).any(-1)
            image[changed] = new[changed] if image.dtype == np.uint8 else new[changed] / 255
            notes.append(note)
        return restored, notes

    def _still_pairs(self, images: list[Image]) -> Iterator[tuple[Image, dict[str, Any]]]:
        assert self._stills is not None
        for result in self._stills.restore(images):
            if result.error is not None:
                logger.warning("an image is not restored: %s", result.error)
            yield result.bgr, _still_note(result)

    def _video_pairs(
        self, images: list[Image], sources: Sequence[Image | None]
    ) -> Iterator[tuple[Image, dict[str, Any]]]:
        assert self._video is not None
        frames = [
            FrameFaces(image, self._detector.detect(image), source)
            for image, source in zip(images, sources, strict=True)
        ]
        if frames:
            self._video.restore(frames)
        for frame in frames:
            for outcome in frame.outcomes.values():
                if outcome.failed:
                    logger.warning("a face is not restored: %s", outcome.reason)
            yield composite(frame)[0], _video_note(frame)


def to_bytes(images_rgb: NDArray[Any]) -> NDArray[np.uint8]:
    """(N, H, W, 3), uint8 or float 0..1, as uint8; what is not a number becomes 0.

    Raises:
        FrameError: the shape or dtype is another.
    """
    if images_rgb.ndim != 4 or images_rgb.shape[-1] != 3 or 0 in images_rgb.shape[1:]:
        raise FrameError("shape", str(images_rgb.shape), "(N, H, W, 3)")
    if images_rgb.dtype == np.uint8:
        return images_rgb
    if not np.issubdtype(images_rgb.dtype, np.floating):
        raise FrameError("dtype", str(images_rgb.dtype), "uint8, or float 0..1")
    unit = np.clip(np.nan_to_num(images_rgb), 0, 1)
    return np.asarray(np.rint(unit * 255), np.uint8)


def _bgr(images_rgb: NDArray[np.uint8]) -> list[Image]:
    return [np.ascontiguousarray(image[..., ::-1]) for image in images_rgb]


def _still_note(result: RestoredImage) -> dict[str, Any]:
    """The note on the largest face, of the restored ones if there are any."""
    if not result.faces:
        return {"box_xyxy": None, "cut": True, "passthrough": result.error or "no face"}
    face = next((face for face in result.faces if face.state == RESTORED), result.faces[0])
    note: dict[str, Any] = {"box_xyxy": face.box_xyxy, "cut": True}
    if face.state == RESTORED:
        return note | {"strength": face.strength, "change": face.change}
    return note | {"change": 0.0, "left alone": face.state}


def _video_note(frame: FrameFaces) -> dict[str, Any]:
    face = main_face(frame)
    if face is None:
        return {"box_xyxy": None, "passthrough": "no face"}
    box = tuple(round(float(side), 1) for side in face.box_xyxy)
    return {"box_xyxy": box} | frame.outcomes[face.track].as_dict()


__all__ = ["BATCH", "WholeImages", "to_bytes"]
