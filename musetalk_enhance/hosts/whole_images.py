"""Whole images and video frames of a host, as arrays: their faces are detected, restored and
pasted."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, FrameError
from ..faces.selection import IdentitySelection
from ..jobs.image_restorer import RESTORED, Parser, PictureRestorer, RestoredImage
from ..jobs.video_faces import FrameFaces, VideoFaces, composite, main_face, main_note
from ..media.arrays import Image

if TYPE_CHECKING:
    from ..enhancer import FaceEnhancer
    from ..faces.detect import FaceDetector
    from ..faces.identity import ReferenceFaces

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
        reference: restore only the faces of people on these photos; None: all.
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
        reference: ReferenceFaces | None = None,
        parser: Parser | None = None,
    ) -> None:
        if fps is not None and not 0 < fps < float("inf"):
            raise ConfigError("fps", fps, "a number above 0")
        self._detector = detector
        self._stills: PictureRestorer | None = None
        self._video: VideoFaces[FrameFaces] | None = None
        if fps is None:
            self._stills = PictureRestorer(
                enhancer,
                detector,
                min_face=min_face,
                only_center_face=only_center_face,
                reference=reference,
                parser=parser,
            )
        else:
            self._video = VideoFaces(
                enhancer,
                fps,
                min_face=min_face,
                only_center_face=only_center_face,
                selection=None if reference is None else IdentitySelection(reference),
            )

    def restore(
        self, images_rgb: NDArray[Any], sources_rgb: NDArray[Any] | None = None
    ) -> tuple[NDArray[Any], list[dict[str, Any]]]:
        """Restore the next images by themselves: no later frame of a video is looked at.

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
        return next(self.restore_batches([(images_rgb, sources_rgb)]))

    def restore_batches(
        self, batches: Iterable[tuple[NDArray[Any], NDArray[Any] | None]]
    ) -> Iterator[tuple[NDArray[Any], list[dict[str, Any]]]]:
        """Restore a sequence up to its end, batch by batch.

        A batch of a video is returned when the frames after it are known, so that gaps of the
        detector are filled from both sides.

        Args:
            batches: images and sources, see `restore`.

        Yields:
            What `restore` returns, for each batch.

        Raises:
            EnhanceError: see `restore`.
        """
        if self._video is None:
            for images_rgb, sources_rgb in batches:
                if sources_rgb is not None:
                    raise FrameError("sources", str(sources_rgb.shape), "None of stills")
                image_bytes = to_bytes(images_rgb)
                yield _merged(images_rgb, image_bytes, self._still_pairs(_bgr(image_bytes)))
            return
        pending: deque[tuple[NDArray[Any], NDArray[np.uint8], list[FrameFaces]]] = deque()
        ready = 0
        for images_rgb, sources_rgb in batches:
            image_bytes = to_bytes(images_rgb)
            pending.append(
                (images_rgb, image_bytes, self._frames(images_rgb, image_bytes, sources_rgb))
            )
            frames = self._video.track(pending[-1][2])
            self._video.restore(frames)
            ready += len(frames)
            while pending and ready >= len(pending[0][2]):
                images, image_bytes, frames = pending.popleft()
                ready -= len(frames)
                yield _merged(images, image_bytes, _video_pairs(frames))
        self._video.restore(self._video.track_rest())
        for images, image_bytes, frames in pending:
            yield _merged(images, image_bytes, _video_pairs(frames))

    def _frames(
        self,
        images_rgb: NDArray[Any],
        image_bytes: NDArray[np.uint8],
        sources_rgb: NDArray[Any] | None,
    ) -> list[FrameFaces]:
        """The frames of a video with their detected faces."""
        sources: Sequence[Image | None] = [None] * len(image_bytes)
        if sources_rgb is not None:
            if sources_rgb.shape != images_rgb.shape:
                raise FrameError("sources", str(sources_rgb.shape), str(images_rgb.shape))
            sources = _bgr(to_bytes(sources_rgb))
        return [
            FrameFaces(image, self._detector.detect(image), source)
            for image, source in zip(_bgr(image_bytes), sources, strict=True)
        ]

    def _still_pairs(self, images: list[Image]) -> Iterator[tuple[Image, dict[str, Any]]]:
        assert self._stills is not None
        for result in self._stills.restore(images):
            if result.error is not None:
                logger.warning("an image is not restored: %s", result.error)
            yield result.bgr, _still_note(result)


def _merged(
    images_rgb: NDArray[Any],
    image_bytes: NDArray[np.uint8],
    pairs: Iterable[tuple[Image, dict[str, Any]]],
) -> tuple[NDArray[Any], list[dict[str, Any]]]:
    """The images with the pixels that changed, and their notes."""
    restored, notes = np.array(images_rgb, order="C"), []
    for image, old, (new_bgr, note) in zip(restored, image_bytes, pairs, strict=True):
        new = new_bgr[..., ::-1]
        changed = (new != old).any(-1)
        image[changed] = new[changed] if image.dtype == np.uint8 else new[changed] / 255
        notes.append(note)
    return restored, notes


def _video_pairs(frames: Sequence[FrameFaces]) -> Iterator[tuple[Image, dict[str, Any]]]:
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
    box = None
    if face is not None:
        box = tuple(round(float(side), 1) for side in face.box_xyxy)
    return {"box_xyxy": box} | main_note(frame)


__all__ = ["BATCH", "WholeImages", "to_bytes"]
