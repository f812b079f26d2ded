"""diffusers: faces of the images and videos that any pipeline returns.

`restore` takes what a pipeline returned, `attach` wraps a pipeline that other code calls. Neither
imports diffusers. A step callback of diffusers sees latents, which have no faces yet.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import logging
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EnhanceError, FrameError, HostError
from ..faces.detect import FaceDetector, make_detector
from ..jobs.options import FaceSettings
from .whole_images import BATCH, WholeImages

if TYPE_CHECKING:
    from ..enhancer import FaceEnhancer

logger = logging.getLogger("musetalk_enhance")

FPS = 25.0
"""Frames per second of a video, if the caller does not tell: it sets how landmarks are smoothed."""
_FIELDS = {"images": False, "image": False, "frames": True, "videos": True, "video": True}
_EXPECTED = "PIL images, arrays (N, H, W, C) or tensors (N, C, H, W) of 3 or 4 channels, or videos"


class PostProcessor:
    """Restores the faces in what diffusers pipelines return.

    Each image is a still of its own. Each video is one clip, whose faces are tracked and kept
    steady. Other pixels keep their values.

    Args:
        enhancer: restores the faces; its `color`, `output_size` and `upscale` are ignored. With its
            ``on_error="passthrough"``, what cannot be restored is returned unchanged, with a
            warning: no generated image is lost.
        face_detector: ``"yunet"``, ``"retinaface"``, ``"retinaface-mobile"``, or a detector.
        fps: frames per second of a video; None: 25, and a batch that is not nested holds stills.
        min_face: a face whose box is smaller than this on both sides, in pixels, is left unchanged.
        only_center_face: restore only the face nearest to the center.

    Raises:
        ConfigError: a value is invalid.
        WeightError, MissingDependencyError: the detector cannot be loaded.
    """

    def __init__(
        self,
        enhancer: FaceEnhancer,
        *,
        face_detector: str | FaceDetector = "yunet",
        fps: float | None = None,
        min_face: float = FaceSettings.min_face,
        only_center_face: bool = False,
    ) -> None:
        self.enhancer, self._fps = enhancer, fps
        if isinstance(face_detector, str):
            face_detector = make_detector(face_detector, download=enhancer.settings.download)
        self._detector = face_detector
        self._options: dict[str, Any] = {
            "min_face": min_face,
            "only_center_face": only_center_face,
        }
        for rate in (
            None,
            FPS if fps is None else fps,
        ):  # a wrong value is an error now, not after a generation
            self._sequence(rate)

    def __call__(self, output: Any) -> Any:
        """Restore the faces of a pipeline's output.

        Args:
            output: a pipeline's output object or tuple, or its images or videos: a PIL image, a
                list of them, or a list of lists; array (N, H, W, C) or (N, F, H, W, C), float 0..1
                or uint8; tensor (N, C, H, W) or (N, F, C, H, W), float 0..1, on any device. C is 3,
                or 4 with alpha. Not modified.

        Returns:
            The same with restored faces: same type, shape, dtype, device and range.

        Raises:
            EnhanceError: only with ``on_error="raise"``: another layout, or restoring failed.
        """
        if dataclasses.is_dataclass(output) and not isinstance(output, type):
            names = [name for name in _FIELDS if getattr(output, name, None) is not None]
            images = {name: self._safe(getattr(output, name), _FIELDS[name]) for name in names}
            return dataclasses.replace(output, **images)
        if isinstance(output, tuple) and output and not _is_pil(output[0]):
            return (self._safe(output[0]), *output[1:])
        return self._safe(output)

    def _safe(self, images: Any, is_video: bool | None = None) -> Any:
        """`_restored`, or the images themselves if that fails and the enhancer does not raise."""
        try:
            return self._restored(images, is_video)
        except Exception as error:
            if self.enhancer.settings.on_error == "raise":
                raise
            is_bug = not isinstance(error, EnhanceError)
            logger.warning("no face is restored: %s", error, exc_info=is_bug)
            return images

    def _restored(self, images: Any, is_video: bool | None) -> Any:
        """Restore images or videos; `is_video` None: videos are nested, images are not."""
        if _is_pil(images):
            return self._restored([images], is_video)[0]
        if isinstance(images, (list, tuple)):
            if all(_is_pil(image) for image in images):
                arrays = [_pixels(image) for image in images]
                results = self._clip(arrays, bool(is_video))
                return type(images)(
                    _like_pil(image, result) for image, result in zip(images, results, strict=True)
                )
            nested = True if is_video is None else is_video
            return type(images)(self._restored(image, nested) for image in images)
        if not hasattr(images, "ndim"):
            raise FrameError("type", type(images).__name__, _EXPECTED)
        if images.ndim == 5:
            nested = True if is_video is None else is_video
            return _stacked([self._restored(image, nested) for image in images], images)
        if images.ndim == 3:
            return self._restored(images[None], is_video)[0]
        return self._array(images, bool(is_video))

    def _array(self, images: Any, is_video: bool) -> Any:
        """Restore an array (N, H, W, C) or a tensor (N, C, H, W)."""
        if isinstance(images, np.ndarray):
            return _stacked(self._clip(list(images), is_video), images)
        import torch

        with torch.no_grad():
            rows = images.detach().movedim(1, -1)
            rows = rows.cpu() if rows.dtype == torch.uint8 else rows.float().cpu()
            array = rows.numpy()
            result = torch.from_numpy(_stacked(self._clip(list(array), is_video), array))
            return result.movedim(-1, 1).to(images, memory_format=torch.contiguous_format)

    def _clip(self, images: list[NDArray[Any]], is_video: bool) -> list[NDArray[Any]]:
        """Restore the images (H, W, C) of one clip, or stills of any sizes."""
        for image in images:
            if image.ndim != 3 or image.shape[-1] not in (3, 4):
                raise FrameError("shape", str(image.shape), _EXPECTED)
        is_video = is_video or self._fps is not None
        sequence = self._sequence((self._fps or FPS) if is_video else None)
        alike = len({image.shape for image in images}) < 2
        size, results = BATCH if alike else 1, [np.array(image) for image in images]
        starts = range(0, len(images), size)
        batches = ((np.stack(images[i : i + size])[..., :3], None) for i in starts)
        for start, (restored, _) in zip(starts, sequence.restore_batches(batches), strict=True):
            for result, image in zip(results[start : start + size], restored, strict=True):
                result[..., :3] = image
        return results

    def _sequence(self, fps: float | None) -> WholeImages:
        return WholeImages(self.enhancer, self._detector, fps=fps, **self._options)


def restore(output: Any, enhancer: FaceEnhancer, **options: Any) -> Any:
    """Restore the faces of one output; for many, a `PostProcessor` loads the detector only once.

    >>> enhancer = FaceEnhancer("gfpgan-1.4")  # doctest: +SKIP
    >>> image = restore(pipe("a portrait"), enhancer).images[0]  # doctest: +SKIP

    Args:
        output: see `PostProcessor.__call__`.
        enhancer: see `PostProcessor`.
        options: see `PostProcessor`.
    """
    return PostProcessor(enhancer, **options)(output)


class Attachment:
    """A pipeline whose outputs are restored; undone by `detach` or by leaving its ``with``.

    Attributes:
        pipe: the pipeline.
        process: its `PostProcessor`.
    """

    def __init__(self, pipe: Any, process: PostProcessor) -> None:
        self.pipe, self.process = pipe, process
        self._original = original = type(pipe)

        @functools.wraps(original.__call__)
        def call(pipeline: Any, *args: Any, **kwargs: Any) -> Any:
            output = original.__call__(pipeline, *args, **kwargs)
            if _output_type(original, pipeline, args, kwargs) == "latent":
                return output
            return process(output)

        # Python looks ``__call__`` up in the class: this one pipeline gets a class of its own
        members = {
            "__call__": call,
            "__module__": original.__module__,
            "__qualname__": original.__qualname__,
            "__doc__": original.__doc__,
        }
        pipe.__class__ = self._class = type(original.__name__, (original,), members)

    def detach(self) -> None:
        """Make the pipeline what it was.

        Raises:
            HostError: something else was attached after this, and must be detached first.
        """
        if type(self.pipe) is self._original:
            return
        if type(self.pipe) is not self._class:
            raise HostError("the pipeline was wrapped again since; detach what was attached last")
        self.pipe.__class__ = self._original

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()


def attach(pipe: Any, enhancer: FaceEnhancer, **options: Any) -> Attachment:
    """Restore whatever a pipeline returns from now on, wherever it is called.

    Latents (``output_type="latent"``) are returned as they are. The pipeline's files and its class
    stay as they are: only this object is changed.

    >>> with attach(pipe, enhancer):  # doctest: +SKIP
    ...     image = pipe("a portrait").images[0]

    Args:
        pipe: any `DiffusionPipeline`.
        enhancer: see `PostProcessor`.
        options: see `PostProcessor`.

    Raises:
        HostError: `pipe` cannot be called.
    """
    if not callable(pipe) or inspect.isroutine(pipe) or isinstance(pipe, type):
        raise HostError(f"attach takes a pipeline, an object that is called; got {pipe!r}")
    return Attachment(pipe, PostProcessor(enhancer, **options))


def _output_type(cls: type, pipe: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The argument ``output_type`` of a call, None if the pipeline has none."""
    bound = inspect.signature(cls.__call__).bind(pipe, *args, **kwargs)
    bound.apply_defaults()
    return bound.arguments.get("output_type")


def _is_pil(value: Any) -> bool:
    image = sys.modules.get("PIL.Image")
    return image is not None and isinstance(value, image.Image)


def _pixels(image: Any) -> NDArray[Any]:
    if image.mode not in ("RGB", "RGBA"):
        raise FrameError("channels", f"a PIL image of mode {image.mode}", _EXPECTED)
    return np.asarray(image)


def _like_pil(image: Any, pixels: NDArray[Any]) -> Any:
    from PIL import Image

    result = Image.fromarray(pixels)
    result.info = dict(image.info)
    return result


def _stacked(parts: list[Any], like: Any) -> Any:
    """Arrays or tensors as one; an empty batch stays what it is."""
    if not parts:
        return like
    if isinstance(parts[0], np.ndarray):
        return np.stack(parts)
    import torch

    return torch.stack(parts)


__all__ = ["Attachment", "PostProcessor", "attach", "restore"]
