"""LiveTalking: every session's avatar returns a batch of faces, and another thread pastes them.

Each session runs ``BaseAvatar.inference`` in a thread of its own, which calls the avatar's
``inference_batch(index, features)``: BGR, (N, H, W, 3), uint8 or float 0..255. That method is
wrapped for as long as the session lasts, on its own stream over one network. The host's warm-up
does not go through it.

Frames without speech show the avatar's original frame, so the mouth would jump between the
original and the restored face: within a few frames of silence the restored face is blended with the
original's. Faces of frames that the host will not show are not restored.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..enhancer import FaceEnhancer
from ..errors import HostError
from .base import Host, HostRun
from .crops import mirror_index
from .fade import FADE_FRAMES, check_fade_frames, fade_weights, faded
from .patches import Patches
from .sessions import Sessions, attached_sessions
from .wrap import Wrapper

logger = logging.getLogger("musetalk_enhance")

MODULE = "avatars.base_avatar"
SPEECH = 0
"""`type` of an audio frame with speech; others are silence or the audio of a custom action."""

Faces = NDArray[Any]


@dataclass(frozen=True)
class AvatarKind:
    """What differs between the host's avatars.

    Attributes:
        module: of the avatar's class.
        resizes: whether its faces are resized before they are pasted.
        source: called with the avatar and the number of a frame, returns the original's crop that
            the face replaces: BGR uint8 (h, w, 3).
    """

    module: str
    resizes: bool
    source: Callable[[Any, int], Faces]


def _musetalk_source(avatar: Any, number: int) -> Faces:
    x1, y1, x2, y2 = avatar.coord_list_cycle[number]
    crop: Faces = avatar.frame_list_cycle[number][y1:y2, x1:x2]
    return crop


def _wav2lip_source(avatar: Any, number: int) -> Faces:
    y1, y2, x1, x2 = avatar.coord_list_cycle[number]
    crop: Faces = avatar.frame_list_cycle[number][y1:y2, x1:x2]
    return crop


def _ultralight_source(avatar: Any, number: int) -> Faces:
    # the host pastes its 160 px into these pixels of a crop of 168 px, and resizes that
    crop: Faces = avatar.face_list_cycle[number][4:164, 4:164]
    return crop


KINDS = (
    AvatarKind("avatars.musetalk_avatar", True, _musetalk_source),
    AvatarKind("avatars.wav2lip_avatar", True, _wav2lip_source),
    AvatarKind("avatars.ultralight_avatar", False, _ultralight_source),
)


def kind_of(avatar: Any) -> AvatarKind | None:
    """The kind of an avatar, by the modules of its classes; None of one that is not the host's."""
    modules = [cls.__module__ for cls in type(avatar).__mro__]
    return next((kind for kind in KINDS if kind.module in modules), None)


class Session:
    """One session of the host: its stream, and which of its frames have speech.

    Attributes:
        stream: over the network that all sessions share.
    """

    def __init__(self, avatar: Any, sessions: Sessions, fade_frames: int) -> None:
        """Open a stream for an avatar; `install` hooks it in."""
        self._avatar, self._sessions, self._fade = avatar, sessions, fade_frames
        self._kind = kind_of(avatar)
        self._patches = Patches()
        # of the audio frames that the host took, two a video frame: of the last batch, and of the
        # frames before that decide about its first
        self._types: deque[int] = deque(maxlen=2 * (avatar.batch_size + fade_frames + 1))
        options: dict[str, Any] = {"color": "bgr", "value_range": "0..255"}
        if self._kind is None or not self._kind.resizes:
            options["output_size"] = "same"
        # an error in the host's thread would end the session
        self.stream = sessions.open(**options, on_error="passthrough")

    @property
    def stats(self) -> Any:
        """Counters of the stream."""
        return self.stream.stats

    def install(self) -> None:
        """Restore what the avatar returns, and note the speech in the audio that the host takes."""
        avatar, queue = self._avatar, self._avatar.asr.output_queue
        take = queue.get

        def get(*args: Any, **kwargs: Any) -> Any:
            item = take(*args, **kwargs)
            self._types.append(getattr(item, "type", SPEECH))
            return item

        self._patches.replace(queue, "get", get)
        wrapper = Wrapper(
            avatar.inference_batch,
            lambda *args, **kwargs: self,
            hints=lambda index, *args, **kwargs: {"index": index},
        )
        self._patches.replace(avatar, "inference_batch", wrapper)

    def close(self) -> None:
        """Put the avatar back and free the stream."""
        self._patches.close()
        self._sessions.close(self.stream)

    def __call__(self, faces: Faces, index: int) -> Faces:
        """Restore the faces of a batch that will be shown.

        Args:
            faces: BGR (N, H, W, 3), uint8 or float 0..255.
            index: step of the first in the avatar's loop.
        """
        count = len(faces)
        speech = self._speech(count)
        first = len(speech) - count  # of the batch; before it are earlier frames
        shown = [position for position in range(count) if speech[first + position]]
        if not shown:
            return faces
        length = self._avatar.get_avatar_length()
        numbers = [mirror_index(length, index + position) for position in range(count)]
        restored = self.stream(
            np.ascontiguousarray(faces[shown]),
            keys=[numbers[position] for position in shown],
            cuts=[not speech[first + position - 1] for position in shown],
            sources=self._sources([numbers[position] for position in shown]),
        )
        if self._kind is not None:
            weights = fade_weights(speech, self._fade)[first:]
            for row, position in enumerate(shown):
                if weights[position] < 1:  # a source may have to be cropped first
                    source = self._kind.source(self._avatar, numbers[position])
                    restored[row] = faded(source, restored[row], weights[position])
        if len(shown) == count:
            return np.asarray(restored)
        result = np.empty((count, *restored.shape[1:]), faces.dtype)
        for position in set(range(count)) - set(shown):
            result[position] = cv2.resize(faces[position], restored.shape[2:0:-1])
        result[shown] = restored
        return result

    def _sources(self, numbers: Sequence[int]) -> list[Faces] | None:
        """The original crops of some frames of the loop, where faces are matched to them."""
        if self._kind is None or self.stream.settings.match != "source":
            return None
        return [self._kind.source(self._avatar, number) for number in numbers]

    def _speech(self, count: int) -> list[bool]:
        """Whether the frames before a batch of `count` and those of the batch have speech.

        The host shows a frame without speech where both of its audio frames are silent. Nothing was
        said before the first.
        """
        types = list(self._types)
        pairs = list(zip(types[::2], types[1::2], strict=False))
        speech = [SPEECH in pair for pair in pairs]
        return [False] * max(1, count + self._fade + 1 - len(speech)) + speech


def _attach_to_class(
    patches: Patches, sessions: Sessions, fade_frames: int, module: ModuleType
) -> None:
    """Let every session that begins from now on have a stream."""
    owner = getattr(module, "BaseAvatar", None)
    original = getattr(owner, "inference", None)
    if not callable(original) or not hasattr(owner, "get_avatar_length"):
        raise HostError(
            f"{MODULE} has no BaseAvatar with inference and get_avatar_length: this version of "
            "LiveTalking is not one that musetalk_enhance was tested with; see docs/hosts"
        )

    def inference(avatar: Any, *args: Any, **kwargs: Any) -> Any:
        session = None
        try:
            session = Session(avatar, sessions, fade_frames)
            session.install()
        except Exception:
            logger.warning("the faces of this session are not restored", exc_info=True)
        try:
            return original(avatar, *args, **kwargs)
        finally:
            if session is not None:
                session.close()

    patches.replace(owner, "inference", inference)


def attach(
    enhancer: FaceEnhancer | None = None, *, fade_frames: int = FADE_FRAMES, **options: Any
) -> Patches:
    """Restore the faces of every session that begins from now on.

    Two lines at the top of LiveTalking's ``app.py``:

    >>> from musetalk_enhance.hosts.livetalking import attach  # doctest: +SKIP
    >>> attach(model="lite")  # doctest: +SKIP

    Args:
        enhancer: holds the network that all sessions share; its ``stats`` get the counts of those
            that ended.
        fade_frames: frames over which the restored face fades in after silence and out before it;
            0 switches at once.
        options: of a new `FaceEnhancer`, without `enhancer`.

    Returns:
        What undoes it: ``close()``, or the end of its ``with``.

    Raises:
        ConfigError: `fade_frames` is negative, or there are options beside an enhancer.
        HostError: another version of LiveTalking.
    """
    check_fade_frames(fade_frames)
    sessions, patches = attached_sessions(enhancer, options)
    patches.when_imported(MODULE, partial(_attach_to_class, patches, sessions, fade_frames))
    return patches


def _install(run: HostRun) -> None:
    """Load the network before the first user comes, and attach."""
    if not run.enhancer.settings.enabled:
        return
    run.enhancer.ready()
    change = partial(_attach_to_class, run.patches, run.sessions, FADE_FRAMES)
    run.patches.when_imported(MODULE, change)


LIVETALKING = Host(
    name="livetalking",
    title="LiveTalking",
    imports=(MODULE,),
    scripts="app.py",
    install=_install,
    value_range="0..255",
    is_service=True,
)

__all__ = ["LIVETALKING", "Session", "attach"]
