"""One stream for each session of a host, over one network."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from ..enhancer import FaceEnhancer
from ..errors import ConfigError
from ..pipeline.stream import Stream
from .lazy import LazyEnhancer
from .patches import Patches


class Sessions:
    """The streams of a host's sessions; the counters of those that ended are the enhancer's.

    Args:
        enhancer: holds the network; what observes its frames observes those of all sessions.
    """

    def __init__(self, enhancer: FaceEnhancer | LazyEnhancer) -> None:
        self._enhancer = enhancer
        self._streams: set[Stream] = set()
        self._lock = threading.Lock()

    def enhancer(self) -> FaceEnhancer:
        """What holds the network, loaded."""
        enhancer = self._enhancer
        return enhancer.ready() if isinstance(enhancer, LazyEnhancer) else enhancer

    def open(self, **options: Any) -> Stream | FaceEnhancer:
        """A stream for a new session; `options` as in `FaceEnhancer.stream`.

        With a disabled enhancer that is the enhancer itself, which returns its frames.
        """
        ready = self.enhancer()
        if not ready.enabled:
            return ready
        stream = ready.stream(**options)
        for observer in ready.observers:
            stream.observe(observer)
        with self._lock:
            self._streams.add(stream)
        return stream

    def close(self, stream: Stream | FaceEnhancer) -> None:
        """End a session: free its state and keep its counters; a second call does nothing."""
        with self._lock:
            if stream not in self._streams or not isinstance(stream, Stream):
                return
            self._streams.remove(stream)
            enhancer = self._enhancer
            enhancer.stats.merge(stream.stats)
        stream.close()

    def close_all(self) -> None:
        """End every session that is open."""
        for stream in list(self._streams):
            self.close(stream)


def attached_sessions(
    enhancer: FaceEnhancer | None, options: Mapping[str, Any]
) -> tuple[Sessions, Patches]:
    """Sessions over `enhancer`, or over a new one with these options, and what ends them.

    Raises:
        ConfigError: there are both.
    """
    for name, value in options.items() if enhancer is not None else ():
        raise ConfigError(name, value, "nothing beside an enhancer: set it in FaceEnhancer(...)")
    sessions = Sessions(enhancer or FaceEnhancer(**options))
    patches = Patches()
    patches.callback(sessions.close_all)
    return sessions, patches


class RequestStreams:
    """A stream for each request of a page that serves every request in one thread.

    Args:
        sessions: opens the streams.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._streams: dict[threading.Thread, Stream | FaceEnhancer] = {}

    def begin(self) -> None:
        """Begin another request in the calling thread."""
        stream = self._streams.pop(threading.current_thread(), None)
        if stream is not None:
            self._sessions.close(stream)

    def current(self) -> Stream | FaceEnhancer:
        """The stream of the request that the calling thread serves."""
        thread = threading.current_thread()
        if thread not in self._streams:
            for other in [each for each in list(self._streams) if not each.is_alive()]:
                self._sessions.close(self._streams.pop(other))
            self._streams[thread] = self._sessions.open()
        return self._streams[thread]
