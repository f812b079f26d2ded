"""SadTalker, and Linly-Talker, which holds copies of it, of Wav2Lip and of MuseTalk.

SadTalker hands a finished video to its face enhancer, ``src.utils.face_enhancer``, which returns
the frames one by one, RGB uint8, and has a length. The module here has the same functions. It reads
the video while its frames are written, a few at a time, and every tracked face is a stream. The
host's own module, which needs ``gfpgan`` and ``basicsr``, is never imported.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial, wraps
from itertools import islice
from types import ModuleType
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from ..enhancer import FaceEnhancer
from ..errors import ConfigError, HostError
from .base import HOST_FPS, Hook, Host, HostRun
from .musetalk import (
    LOOP_FUNCTION,
    LOOP_MODULE,
    VAE_MODULE,
    Attachment,
    attach_to_run,
    call_before,
)
from .patches import Patches
from .sessions import Sessions, attached_sessions
from .wav2lip import original_faces

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..faces.detect import FaceDetector
    from ..jobs.video_faces import FrameFaces, VideoFaces
    from ..restorers.background_upsampler import BackgroundUpsampler

logger = logging.getLogger("musetalk_enhance")

MODULE = "src.utils.face_enhancer"
CALLERS = {
    "src.facerender.animate": "AnimateFromCoeff",
    "src.facerender.pirender_animate": "AnimateFromCoeff_PIRender",
}
"""Modules that import the enhancer, and their classes, whose ``generate`` calls it on demand."""
METHOD = "gfpgan"
CHUNK = 8
"""Frames in memory at a time; the same as in `restore_video`."""
DETECTION_SIDE = 640
"""Long side, in pixels, to which a frame is reduced for the detector."""


class EnhancedFrames:
    """The frames of a video with their faces restored; every iteration reads it from its beginning.

    Yields RGB uint8 (round(H * scale), round(W * scale), 3), exactly as many as there are.
    """

    def __init__(
        self,
        images: Any,
        sessions: Sessions,
        enhancer: FaceEnhancer,
        detector: FaceDetector,
        background: BackgroundUpsampler | None = None,
    ) -> None:
        """Index the video.

        Args:
            images: path of a video, or a sequence of RGB uint8 (H, W, 3).
            sessions: open the streams of the faces.
            enhancer: holds the network; its ``upscale`` is the scale of the frames.
            detector: detects the faces.
            background: enlarges what surrounds the faces; None: interpolation.

        Raises:
            MediaError: the video cannot be read.
        """
        from ..media import index_video

        self._images, self._sessions, self._enhancer = images, sessions, enhancer
        self._detector, self._background = detector, background
        self._scale = float(enhancer.settings.upscale)
        self._index = index_video(images, strict=False) if _is_path(images) else None

    def __len__(self) -> int:
        return len(self._images if self._index is None else self._index)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        from ..jobs.video_faces import VideoFaces

        fps = HOST_FPS if self._index is None else float(self._index.fps)
        open_stream: Any = self._sessions.open
        faces: VideoFaces[FrameFaces] = VideoFaces(
            self._enhancer, fps, open_stream=open_stream, close_stream=self._sessions.close
        )
        with closing(faces), closing(self._frames()) as frames:
            while chunk := list(islice(frames, CHUNK)):
                yield from self._finished(faces, faces.track(self._detected(chunk)))
            yield from self._finished(faces, faces.track_rest())

    def _frames(self) -> Any:
        """BGR frames, one by one."""
        from ..media import read_segment

        if self._index is None:
            return (np.ascontiguousarray(image[..., ::-1]) for image in self._images)
        decoded = read_segment(self._images, self._index, 0, len(self._index))
        return (frame.bgr for frame in decoded)

    def _detected(self, chunk: Sequence[NDArray[np.uint8]]) -> list[FrameFaces]:
        """The frames with their faces; without any where the detector fails."""
        from ..jobs.video_faces import FrameFaces

        try:
            return [FrameFaces(bgr, self._detector.detect(bgr)) for bgr in chunk]
        except Exception:
            self._warn_or_raise(len(chunk))
            return [FrameFaces(bgr, []) for bgr in chunk]

    def _finished(
        self, faces: VideoFaces[FrameFaces], frames: list[FrameFaces]
    ) -> Iterator[NDArray[np.uint8]]:
        """The tracked frames, RGB, restored; as they are where something fails that must not."""
        from ..jobs.video_faces import FrameFaces

        try:
            faces.restore(frames)
        except Exception:
            self._warn_or_raise(len(frames))
            frames = [FrameFaces(frame.image, []) for frame in frames]
        for frame in frames:
            yield np.ascontiguousarray(self._pasted(frame)[..., ::-1])

    def _warn_or_raise(self, count: int) -> None:
        """To be called where an exception is caught."""
        if self._enhancer.settings.on_error == "raise":
            raise
        logger.warning("%d frames stay as they are", count, exc_info=True)

    def _pasted(self, frame: FrameFaces) -> NDArray[np.uint8]:
        from ..faces.paste import without_added_color
        from ..jobs.video_faces import composite

        image = frame.image
        if self._background is not None:
            large = self._background.enlarge(image, self._scale)
            canvas = np.array(without_added_color(image, large), np.uint8)
        else:
            size_wh = round(image.shape[1] * self._scale), round(image.shape[0] * self._scale)
            enlarged = cv2.resize(image, size_wh, interpolation=cv2.INTER_LANCZOS4)
            canvas = np.array(enlarged, np.uint8)
        return composite(frame, canvas, replace=self._background is not None)[0]


def _is_path(images: Any) -> bool:
    return isinstance(images, (str, os.PathLike))


class FaceEnhancerModule:
    """What stands in for the host's module.

    Args:
        sessions: open the streams of the faces.
        enhancer: holds the network.
    """

    def __init__(self, sessions: Sessions, enhancer: FaceEnhancer) -> None:
        from ..faces.detect import make_detector

        self._sessions, self._enhancer = sessions, enhancer
        self._detector = make_detector(
            "yunet", max_side=DETECTION_SIDE, download=enhancer.settings.download
        )
        self._background: BackgroundUpsampler | None = None

    def enhancer_generator_with_len(
        self, images: Any, method: str = METHOD, bg_upsampler: str | None = "realesrgan"
    ) -> EnhancedFrames:
        """The frames of a video with their faces restored; see `EnhancedFrames`.

        Args:
            images: path of a video, or a sequence of RGB uint8 (H, W, 3).
            method: the host's name of a network; the options choose it.
            bg_upsampler: ``"realesrgan"``, or None to enlarge what surrounds the faces by
                interpolation.

        Raises:
            ConfigError: another upsampler.
            WeightError: its weight is missing.
            MediaError: the video cannot be read.
        """
        if method != METHOD:
            logger.warning(
                "the host's enhancer %s is ignored: faces are restored with %s; choose another "
                "with --gfpgan_model",
                method,
                self._enhancer.model_name,
            )
        background = self._background_of(bg_upsampler)
        return EnhancedFrames(images, self._sessions, self._enhancer, self._detector, background)

    def enhancer_generator_no_len(self, *args: Any, **kwargs: Any) -> Iterator[NDArray[np.uint8]]:
        """As `enhancer_generator_with_len`, an iterator."""
        return iter(self.enhancer_generator_with_len(*args, **kwargs))

    def enhancer_list(self, *args: Any, **kwargs: Any) -> list[NDArray[np.uint8]]:
        """As `enhancer_generator_with_len`, all at once."""
        return list(self.enhancer_generator_with_len(*args, **kwargs))

    def _background_of(self, name: str | None) -> BackgroundUpsampler | None:
        if name is None:
            return None
        if name != "realesrgan":
            raise ConfigError("bg_upsampler", name, "realesrgan | None")
        if self._background is None:
            from ..restorers.background_upsampler import BackgroundUpsampler

            download = self._enhancer.settings.download
            self._background = BackgroundUpsampler(device=self._enhancer.device, download=download)
        return self._background

    def close(self) -> None:
        """Free the detector and the upsampler."""
        self._detector.close()
        if self._background is not None:
            self._background.close()


def _generate_with_enhancer(original: Any) -> Any:
    """The host's ``generate``, which enhances every video, not only on demand."""
    signature = inspect.signature(original)

    @wraps(original)
    def generate(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.arguments["enhancer"] = bound.arguments.get("enhancer") or METHOD
        return original(*bound.args, **bound.kwargs)

    return generate


def _replace_enhancer(patches: Patches, sessions: Sessions) -> None:
    """Let the host import the module here, and call it for every video."""
    for name in CALLERS:
        if name in sys.modules:
            raise HostError(f"{name} is imported already; attach before the host's modules")
    functions = FaceEnhancerModule(sessions, sessions.enhancer())
    patches.callback(functions.close)
    module = ModuleType(MODULE)
    for name in ("enhancer_generator_with_len", "enhancer_generator_no_len", "enhancer_list"):
        setattr(module, name, getattr(functions, name))
    patches.replace_module(MODULE, module)

    def change(class_name: str, caller: ModuleType) -> None:
        owner = getattr(caller, class_name)
        patches.replace(owner, "generate", _generate_with_enhancer(owner.generate))

    for name, class_name in CALLERS.items():
        patches.when_imported(name, partial(change, class_name))


def attach(enhancer: FaceEnhancer | None = None, **options: Any) -> Patches:
    """Restore the faces of every video of SadTalker's, before its modules are imported.

    >>> from musetalk_enhance.hosts.sadtalker import attach  # doctest: +SKIP
    >>> attach(model="lite", upscale=2)  # doctest: +SKIP

    Args:
        enhancer: holds the network; its ``stats`` get the counts of the videos that ended.
        options: of a new `FaceEnhancer`, without `enhancer`.

    Returns:
        What undoes it: ``close()``, or the end of its ``with``.

    Raises:
        ConfigError: there are options beside an enhancer.
        HostError: the host's modules are imported already.
        WeightError: the detector's weight is missing; says what to fetch.
    """
    sessions, patches = attached_sessions(enhancer, options)
    _replace_enhancer(patches, sessions)
    return patches


def _install(run: HostRun) -> None:
    """Load what is needed before the host renders for minutes."""
    if run.enhancer.settings.enabled:
        _replace_enhancer(run.patches, run.sessions)


def _install_all(run: HostRun) -> None:
    """As `_install`, and attach to Linly-Talker's copy of MuseTalk."""
    _install(run)
    if not run.enhancer.settings.enabled:
        return
    attachments: list[Attachment] = []

    def attach_to_vae(module: ModuleType) -> None:
        attachments.append(attach_to_run(run, module.VAE))

    def begin(*args: Any, **kwargs: Any) -> None:  # of each audio, also for a prepared avatar
        for attachment in attachments:
            attachment.begin_task()
            attachment.begin_loop_of(*args, **kwargs)

    def follow_loops(module: ModuleType) -> None:
        call_before(run.patches, module, LOOP_FUNCTION, begin)

    run.patches.when_imported(VAE_MODULE, attach_to_vae)
    run.patches.when_imported(LOOP_MODULE, follow_loops)  # imports the other one


SADTALKER = Host(
    name="sadtalker",
    title="SadTalker",
    imports=("src.facerender", "src.gradio_demo"),
    scripts="inference.py, app_sadtalker.py",
    install=_install,
    resizes=False,
)
LINLY_TALKER = Host(
    name="linly-talker",
    title="Linly-Talker",
    imports=("TFG",),
    scripts="webui.py, app.py, app_img.py, app_talk.py, app_musetalk.py",
    hooks=(Hook("src.models.wav2lip", "Wav2Lip.forward", original_faces),),
    install=_install_all,
    value_range="0..1",
    layout="NCHW",
    output_size="native",  # its Wav2Lip and MuseTalk resize to the face box
)

__all__ = ["LINLY_TALKER", "SADTALKER", "EnhancedFrames", "FaceEnhancerModule", "attach"]
