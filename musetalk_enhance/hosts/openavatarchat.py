"""OpenAvatarChat with its MuseTalk avatar: restores each face where it is pasted into its frame.

The host decodes batches in one or two threads, pads the last batch of a speech, and warms up in
every thread. Only faces that will be shown reach the thread that calls ``res2combined(face,
number)``, one by one and in order: BGR (256, 256, 3), 0..255. There the next batch is decoded
meanwhile, and every session of the host is a stream. Where a face is late, the host shows the
avatar's original frame first.

While nobody speaks the host shows the avatar's original frame: beside silence the restored face is
blended with the original's. The host's own queue tells which of its frames are the last of a
speech.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from ..enhancer import FaceEnhancer
from ..errors import HostError
from .base import Host, HostRun
from .fade import FADE_FRAMES, check_fade_frames, fade_weight, faded
from .patches import Patches
from .sessions import Sessions, attached_sessions
from .wrap import Wrapper

AVATAR = "handlers.avatar.musetalk.avatar_musetalk_algo"
PROCESSOR = "handlers.avatar.musetalk.avatar_musetalk_processor"

Face = NDArray[Any]


class Speech:
    """How near each face is to the beginning and the end of its speech.

    Args:
        frames: over which the restored face fades.
    """

    def __init__(self, frames: int) -> None:
        self._frames, self._spoken = frames, 0
        self._ends: deque[bool] = deque()  # of the faces that are not shown yet

    def put(self, ends: bool) -> None:
        """The host is to generate another face, perhaps the last of its speech."""
        self._ends.append(ends)

    def weight(self) -> float:
        """The share of the restored face in the next frame, 0..1.

        Every end fades, also where the next speech is queued already: the host shows a face long
        after this, and only then it turns out whether there is an original frame between the two.
        """
        if not self._ends:  # not a frame of the host's queue
            return 1.0
        self._spoken += 1
        # by index, as the host appends meanwhile
        upcoming = [self._ends[at] for at in range(min(len(self._ends), self._frames + 1))]
        left = upcoming.index(True) + 1 if True in upcoming else self._frames + 1
        weight = fade_weight(self._spoken, left, self._frames)
        if self._ends.popleft():
            self._spoken = 0
        return weight


class AvatarStreams:
    """The stream of each avatar's session.

    Args:
        sessions: open the streams.
        fade_frames: frames over which a restored face fades in and out.
    """

    def __init__(self, sessions: Sessions, fade_frames: int) -> None:
        self._sessions, self._fade_frames = sessions, fade_frames
        self._streams: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
        self._speech: WeakKeyDictionary[Any, tuple[Speech, Any]] = WeakKeyDictionary()

    def begin(self, avatar: Any, queue: Any) -> None:
        """Begin an avatar's session; a second call does nothing.

        Args:
            avatar: of the session.
            queue: of the faces to be generated, a dict of each; None: nothing fades.
        """
        if queue is None or avatar in self._speech:
            return
        speech, put = Speech(self._fade_frames), queue.put

        def put_and_tell(item: Any, *args: Any, **kwargs: Any) -> None:
            speech.put(bool(item.get("end_of_speech")))
            put(item, *args, **kwargs)

        queue.put = put_and_tell
        self._speech[avatar] = speech, queue

    def weight(self, avatar: Any) -> float:
        """The share of the avatar's next restored face in its frame, 0..1."""
        return self._speech[avatar][0].weight() if avatar in self._speech else 1.0

    def of(self, avatar: Any, face: Face, number: int) -> Any:
        """The stream of an avatar; None for the black face of a batch that the host lost."""
        if not np.any(face):
            return None
        if avatar not in self._streams:
            # an error in the host's thread would end the session
            self._streams[avatar] = self._sessions.open(
                color="bgr", value_range="0..255", on_error="passthrough"
            )
        return self._streams[avatar]

    def end(self, avatar: Any) -> None:
        """End an avatar's session; the next face begins another one."""
        _, queue = self._speech.pop(avatar, (None, None))
        if queue is not None:
            vars(queue).pop("put", None)
        stream = self._streams.pop(avatar, None)
        if stream is not None:
            self._sessions.close(stream)

    def end_all(self) -> None:
        """End every session: a queue that stayed wrapped would count faces for ever."""
        for avatar in {*self._speech, *self._streams}:
            self.end(avatar)


def _source(avatar: Any, number: int) -> Face:
    """The original's crop in a frame of the avatar's loop, BGR uint8 (h, w, 3)."""
    x1, y1, x2, y2 = avatar.coord_list_cycle[number % len(avatar.coord_list_cycle)]
    crop: Face = avatar.frame_list_cycle[number % len(avatar.frame_list_cycle)][y1:y2, x1:x2]
    return crop


def _hints(avatar: Any, face: Face, number: int) -> dict[str, Any]:
    """The place of a frame in the avatar's loop, and the original's crop."""
    place = number % len(avatar.frame_list_cycle)
    return {"keys": [place], "sources": [_source(avatar, number)]}


def _attach_to_avatar(patches: Patches, streams: AvatarStreams, module: ModuleType) -> None:
    owner = _class_of(module, "MuseAvatarV15", "res2combined")
    original = owner.res2combined
    restore = Wrapper(lambda avatar, face, number: face, streams.of, hints=_hints)

    def res2combined(avatar: Any, res_frame: Face, idx: int) -> Any:
        face, weight = restore(avatar, res_frame, idx), streams.weight(avatar)
        if face is not res_frame and weight < 1:  # neither lost nor passed through, and fading
            face = faded(_source(avatar, idx), face, weight)
        return original(avatar, face, idx)

    patches.replace(owner, "res2combined", res2combined)


def _attach_to_processor(patches: Patches, streams: AvatarStreams, module: ModuleType) -> None:
    owner = _class_of(module, "AvatarMuseTalkProcessor", "start", "stop")
    original_start, original = owner.start, owner.stop

    def start(processor: Any) -> None:
        streams.begin(processor._avatar, getattr(processor, "_whisper_queue", None))
        original_start(processor)

    def stop(processor: Any) -> None:
        try:
            original(processor)
        finally:
            streams.end(processor._avatar)

    patches.replace(owner, "start", start)
    patches.replace(owner, "stop", stop)


def _class_of(module: ModuleType, name: str, *methods: str) -> Any:
    owner = getattr(module, name, None)
    for method in methods:
        if not callable(getattr(owner, method, None)):
            raise HostError(
                f"{module.__name__} has no {name}.{method}: this version of OpenAvatarChat is not "
                "one that musetalk_enhance was tested with; see docs/hosts"
            )
    return owner


def _attach_when_imported(
    patches: Patches, sessions: Sessions, fade_frames: int = FADE_FRAMES
) -> None:
    streams = AvatarStreams(sessions, fade_frames)
    patches.callback(streams.end_all)
    changes: dict[str, Callable[[Patches, AvatarStreams, ModuleType], None]] = {
        AVATAR: _attach_to_avatar,
        PROCESSOR: _attach_to_processor,
    }
    for module, change in changes.items():
        patches.when_imported(module, partial(change, patches, streams))


def attach(
    enhancer: FaceEnhancer | None = None, *, fade_frames: int = FADE_FRAMES, **options: Any
) -> Patches:
    """Restore the faces of every session of OpenAvatarChat that begins from now on.

    Two lines at the top of ``src/demo.py``:

    >>> from musetalk_enhance.hosts.openavatarchat import attach  # doctest: +SKIP
    >>> attach(model="lite")  # doctest: +SKIP

    Args:
        enhancer: holds the network; its ``stats`` get the counts of the sessions that ended.
        fade_frames: frames over which the restored face fades in where speech begins and out where
            it ends; 0 switches at once.
        options: of a new `FaceEnhancer`, without `enhancer`.

    Returns:
        What undoes it: ``close()``, or the end of its ``with``.

    Raises:
        ConfigError: `fade_frames` is negative, or there are options beside an enhancer.
        HostError: another version of OpenAvatarChat.
    """
    check_fade_frames(fade_frames)
    sessions, patches = attached_sessions(enhancer, options)
    _attach_when_imported(patches, sessions, fade_frames)
    return patches


def _install(run: HostRun) -> None:
    """Load the network before the first user comes, and attach."""
    if run.enhancer.settings.enabled:
        run.enhancer.ready()
        _attach_when_imported(run.patches, run.sessions)


OPENAVATARCHAT = Host(
    name="openavatarchat",
    title="OpenAvatarChat",
    imports=("chat_engine",),
    scripts="src/demo.py",
    install=_install,
    value_range="0..255",
    is_service=True,
)

__all__ = ["OPENAVATARCHAT", "attach"]
