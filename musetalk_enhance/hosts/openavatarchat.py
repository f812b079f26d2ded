"""OpenAvatarChat with its MuseTalk avatar: restores each face where it is pasted into its frame.

The host decodes batches in one or two threads, pads the last batch of a speech, and warms up in
every thread. Only faces that will be shown reach the thread that calls ``res2combined(face,
number)``, one by one and in order: BGR (256, 256, 3), 0..255. There the next batch is decoded
meanwhile, and every session of the host is a stream. Where a face is late, the host shows the
avatar's original frame first.
"""

from __future__ import annotations

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
from .patches import Patches
from .sessions import Sessions, enhancer_of
from .wrap import Wrapper

AVATAR = "handlers.avatar.musetalk.avatar_musetalk_algo"
PROCESSOR = "handlers.avatar.musetalk.avatar_musetalk_processor"

Face = NDArray[Any]


class AvatarStreams:
    """The stream of each avatar's session.

    Args:
        sessions: open the streams.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._streams: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()

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
        stream = self._streams.pop(avatar, None)
        if stream is not None:
            self._sessions.close(stream)


def _hints(avatar: Any, face: Face, number: int) -> dict[str, Any]:
    """The place of a frame in the avatar's loop, and the original's crop."""
    place = number % len(avatar.frame_list_cycle)
    x1, y1, x2, y2 = avatar.coord_list_cycle[number % len(avatar.coord_list_cycle)]
    return {"keys": [place], "sources": [avatar.frame_list_cycle[place][y1:y2, x1:x2]]}


def _attach_to_avatar(patches: Patches, streams: AvatarStreams, module: ModuleType) -> None:
    owner = _class_of(module, "MuseAvatarV15", "res2combined")
    original = owner.res2combined
    restore = Wrapper(lambda avatar, face, number: face, streams.of, hints=_hints)

    def res2combined(avatar: Any, res_frame: Face, idx: int) -> Any:
        return original(avatar, restore(avatar, res_frame, idx), idx)

    patches.replace(owner, "res2combined", res2combined)


def _attach_to_processor(patches: Patches, streams: AvatarStreams, module: ModuleType) -> None:
    owner = _class_of(module, "AvatarMuseTalkProcessor", "stop")
    original = owner.stop

    def stop(processor: Any) -> None:
        try:
            original(processor)
        finally:
            streams.end(processor._avatar)

    patches.replace(owner, "stop", stop)


def _class_of(module: ModuleType, name: str, method: str) -> Any:
    owner = getattr(module, name, None)
    if not callable(getattr(owner, method, None)):
        raise HostError(
            f"{module.__name__} has no {name}.{method}: this version of OpenAvatarChat is not one "
            "that musetalk_enhance was tested with; see docs/hosts"
        )
    return owner


def _attach_when_imported(patches: Patches, sessions: Sessions) -> None:
    streams = AvatarStreams(sessions)
    changes: dict[str, Callable[[Patches, AvatarStreams, ModuleType], None]] = {
        AVATAR: _attach_to_avatar,
        PROCESSOR: _attach_to_processor,
    }
    for module, change in changes.items():
        patches.when_imported(module, partial(change, patches, streams))


def attach(enhancer: FaceEnhancer | None = None, **options: Any) -> Patches:
    """Restore the faces of every session of OpenAvatarChat that begins from now on.

    Two lines at the top of ``src/demo.py``:

    >>> from musetalk_enhance.hosts.openavatarchat import attach  # doctest: +SKIP
    >>> attach(model="lite")  # doctest: +SKIP

    Args:
        enhancer: holds the network; its ``stats`` get the counts of the sessions that ended.
        options: of a new `FaceEnhancer`, without `enhancer`.

    Returns:
        What undoes it: ``close()``, or the end of its ``with``.

    Raises:
        ConfigError: there are options beside an enhancer.
        HostError: another version of OpenAvatarChat.
    """
    sessions = Sessions(enhancer_of(enhancer, options))
    patches = Patches()
    patches.callback(sessions.close_all)
    _attach_when_imported(patches, sessions)
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
