"""`wrap`: any function that returns frames, with the faces in its result restored."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from types import MethodType
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConfigError
from ..frames.batch import is_frame
from ..pipeline.outcome import Cause, passed_through

if TYPE_CHECKING:
    from ..enhancer import FaceEnhancer
    from ..pipeline.stats import EnhancerStats
    from ..pipeline.stream import Stream

logger = logging.getLogger("musetalk_enhance")

LAYOUTS = ("NHWC", "NCHW")
"""Orders of the axes: batch, rows, columns and channels. One frame has the last three."""


class Wrapper:
    """A function of a host whose result is restored; it is called as the function was.

    It may stand in a class in place of a method. `detach`, or the end of its ``with``, makes it
    call the function and nothing else.

    Attributes:
        layout: order of the axes of the host's arrays.
        attached: whether results are restored.
    """

    __wrapped__: Callable[..., Any]

    def __init__(
        self,
        function: Callable[..., Any],
        pick: Callable[..., Any],
        layout: str = "NHWC",
        hints: Callable[..., dict[str, Any]] | None = None,
    ) -> None:
        """Wrap `function`; `wrap` is the public way.

        Args:
            function: returns frames.
            pick: called with the arguments of a call, returns its stream (frames -> frames), or
                None where the result is to stay as it is.
            layout: one of `LAYOUTS`.
            hints: called with the arguments of a call, returns the keyword arguments of the stream.
        """
        functools.update_wrapper(self, function, updated=())
        self.layout, self.attached = layout, True
        self._pick, self._hints = pick, hints
        self._warned: set[str] = set()

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else MethodType(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        frames = self.__wrapped__(*args, **kwargs)
        if not self.attached:
            return frames
        stream = None
        try:
            stream = self._pick(*args, **kwargs)
            if stream is None:
                return frames
            hints = {} if self._hints is None else self._hints(*args, **kwargs)
            return self._restored(stream, frames, hints)
        except Exception as error:
            if getattr(getattr(stream, "settings", None), "on_error", "") == "raise":
                raise
            self._pass_through(stream, frames, error)
            return frames

    def _restored(self, stream: Any, frames: Any, hints: dict[str, Any]) -> Any:
        if self.layout == "NHWC":
            restored = stream(frames, **hints)
        else:
            restored = _channels_first(stream(_channels_last(frames), **hints))
        if not _same_kind(frames, restored):
            raise TypeError(f"got {_kind(restored)} back for {_kind(frames)}")
        return restored

    def _pass_through(self, stream: Any, frames: Any, error: Exception) -> None:
        """Count the frames of a call whose result stays as it is, and log it once."""
        count_failure(stream, frames, error)
        if type(error).__name__ not in self._warned:
            self._warned.add(type(error).__name__)
            logger.warning(
                "%s: %s: %s; its result stays as it is; further such calls are not logged",
                getattr(self, "__qualname__", self.__wrapped__),
                type(error).__name__,
                error,
            )

    def detach(self) -> None:
        """Restore nothing from now on; a second call does nothing."""
        self.attached = False

    def __enter__(self) -> Wrapper:
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()


def wrap(
    function: Callable[..., Any],
    enhancer: FaceEnhancer,
    *,
    color: str | None = None,
    value_range: str | None = None,
    layout: str = "NHWC",
    output_size: str | int | None = None,
    stream: Stream | Callable[..., Stream | None] | None = None,
    hints: Callable[..., dict[str, Any]] | None = None,
) -> Wrapper:
    """`function`, with the faces in the frames that it returns restored.

    The frames come back in the container, dtype, layout, value range and color order that the host
    uses, and on its device. Where they cannot be restored, the host gets them as they were, and
    they are counted in the stream's ``stats``; only with ``on_error="raise"`` does an error of this
    library reach the host.

    >>> pipeline.decode = wrap(  # doctest: +SKIP
    ...     pipeline.decode, enhancer, color="rgb", value_range="-1..1", layout="NCHW"
    ... )

    Args:
        function: returns a batch of frames, or one frame, as `FaceEnhancer.__call__` takes it; or
            arrays with the channels before the rows.
        enhancer: holds the network.
        color: ``"bgr"`` or ``"rgb"``; None: the enhancer's option.
        value_range: of float frames: ``"0..1"``, ``"0..255"``, ``"-1..1"`` or ``"auto"``; None: the
            enhancer's option.
        layout: ``"NHWC"`` or ``"NCHW"`` of arrays; of tensors it is recognized.
        output_size: ``"same"`` for a host that needs the size it made, or as the option of that
            name; None: the enhancer's option.
        stream: the sequence that the frames continue; or a function that is called with the
            arguments of each call and returns its stream, or None to leave the result as it is, for
            example for each user of a service. None: one new stream for all calls.
        hints: a function that is called with the arguments of each call and returns ``landmarks``,
            ``occlusion``, ``keys`` and ``cuts`` as a dict; see `FaceEnhancer.__call__`.

    Returns:
        A function with `Wrapper.detach`.

    Raises:
        ConfigError: an invalid value, or options of a stream beside `stream`.
        RestorerError: the enhancer is closed.
    """
    if layout not in LAYOUTS:
        raise ConfigError("layout", layout, " | ".join(LAYOUTS))
    options: dict[str, Any] = {
        "color": color,
        "value_range": value_range,
        "output_size": output_size,
    }
    options = {name: value for name, value in options.items() if value is not None}
    if stream is not None and options:
        name, value = next(iter(options.items()))
        raise ConfigError(name, value, "nothing beside stream: set it in enhancer.stream(...)")
    pick: Callable[..., Any]
    if callable(stream) and not hasattr(stream, "stats"):
        pick = stream
    else:
        own = stream or (enhancer.stream(**options) if enhancer.enabled else enhancer)
        pick = _constant(own)
    return Wrapper(function, pick, layout, hints)


def _constant(stream: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: stream


def count_failure(stream: Any, frames: Any, error: Exception) -> None:
    """Count frames that a call of this library did not restore in ``stream.stats``."""
    stats: EnhancerStats | None = getattr(stream, "stats", None)
    if stats is None:
        return
    batched = isinstance(frames, (list, tuple)) or getattr(frames, "ndim", 0) > 3
    number = len(frames) if batched else 1
    stats.frames += number
    stats.failed += number
    for _ in range(number):
        stats.add(passed_through(Cause.RESTORER, type(error).__name__), 1.0)


def _channels_last(frames: Any) -> Any:
    """Views of arrays (..., 3, H, W) as (..., H, W, 3); anything else stays as it is."""
    if isinstance(frames, (list, tuple)):
        return type(frames)(_channels_last(frame) for frame in frames)
    return np.moveaxis(frames, -3, -1) if isinstance(frames, np.ndarray) else frames


def _channels_first(frames: Any) -> Any:
    """Arrays (..., H, W, 3) as (..., 3, H, W), C-contiguous; anything else stays as it is."""
    if isinstance(frames, (list, tuple)):
        return type(frames)(_channels_first(frame) for frame in frames)
    if not isinstance(frames, np.ndarray):
        return frames
    return np.ascontiguousarray(np.moveaxis(frames, -1, -3))


def _same_kind(frames: Any, restored: Any) -> bool:
    """Whether a result has the container, number, dtype and device of what went in."""
    if type(frames) is not type(restored):
        return False
    if isinstance(frames, (list, tuple)):
        pairs = zip(frames, restored, strict=False)
        return len(frames) == len(restored) and all(_same_kind(*pair) for pair in pairs)
    if not is_frame(frames):
        return True
    batched = frames.ndim > 3
    return bool(
        (frames.dtype, frames.ndim) == (restored.dtype, restored.ndim)
        and getattr(frames, "device", None) == getattr(restored, "device", None)
        and (not batched or len(frames) == len(restored))
    )


def _kind(frames: Any) -> str:
    shape = getattr(frames, "shape", None)
    return type(frames).__name__ + (f" {tuple(shape)} {frames.dtype}" if shape is not None else "")


__all__ = ["Wrapper", "wrap"]
