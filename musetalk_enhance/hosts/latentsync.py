"""LatentSync 1.5 and 1.6: hooks in after ``LipsyncPipeline.paste_surrounding_pixels_back``.

There a batch of faces has its final pixels: RGB, -1..1, (N, 3, H, W), float16 or float32, H 256 or
512. Below a fixed mask they are generated, around it they are the video's own, which stay as they
are. One call of the pipeline makes one video, and its frames are one stream.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from types import ModuleType
from typing import Any

from ..enhancer import FaceEnhancer
from ..errors import HostError
from .base import Host, HostRun
from .patches import Patches
from .sessions import Sessions, attached_sessions
from .wrap import Wrapper

MODULE = "latentsync.pipelines.lipsync_pipeline"
CLASS, METHOD = "LipsyncPipeline", "paste_surrounding_pixels_back"


def _hints(faces: Any, originals: Any, generated: Any, *_: Any, **__: Any) -> dict[str, Any]:
    """What the enhancer is told, from the arguments of the host's method.

    Args:
        faces: of the decoder.
        originals: crops of the same frames of the video, (N, 3, H, W).
        generated: (N, 1, H, W), 1 where the decoder's pixels are taken.
    """
    return {"occlusion": generated[:, 0] < 0.5, "sources": originals}


def _attach_to_class(
    patches: Patches, sessions: Sessions, prepare: Callable[[Any], None], owner: Any
) -> None:
    """Let every call of a pipeline that begins from now on have a stream.

    Args:
        patches: undo it.
        sessions: open the streams.
        prepare: called with the pipeline before its stream is opened.
        owner: the class of the pipeline.
    """
    method = getattr(owner, METHOD, None)
    if not callable(method):
        raise HostError(
            f"{getattr(owner, '__qualname__', owner)!s} has no {METHOD}: this version of "
            "LatentSync is not one that musetalk_enhance was tested with; see docs/hosts"
        )
    call = owner.__call__
    current: ContextVar[Any] = ContextVar("stream", default=None)

    def __call__(pipeline: Any, *args: Any, **kwargs: Any) -> Any:
        prepare(pipeline)
        stream = sessions.open(color="rgb", value_range="-1..1")
        token = current.set(stream)
        try:
            return call(pipeline, *args, **kwargs)
        finally:
            current.reset(token)
            sessions.close(stream)

    wrapper = Wrapper(method, lambda *_, **__: current.get(), "NCHW", _hints)
    patches.replace(owner, METHOD, staticmethod(wrapper))
    patches.replace(owner, "__call__", __call__)


def _attach_to_module(
    patches: Patches, sessions: Sessions, prepare: Callable[[Any], None], module: ModuleType
) -> None:
    owner = getattr(module, CLASS, None)
    if owner is None:
        raise HostError(f"{MODULE} has no {CLASS}: is that LatentSync?")
    _attach_to_class(patches, sessions, prepare, owner)


def attach(
    enhancer: FaceEnhancer | None = None, *, pipeline: Any = None, **options: Any
) -> Patches:
    """Restore the faces of every call of LatentSync's pipeline that begins from now on.

    >>> from musetalk_enhance.hosts.latentsync import attach  # doctest: +SKIP
    >>> attach(model="lite")  # doctest: +SKIP

    Args:
        enhancer: holds the network; its ``stats`` get the counts of the calls that ended.
        pipeline: the class ``LipsyncPipeline``, or a pipeline of it, where the host's modules have
            other names; None: `MODULE`, now or when it is imported.
        options: of a new `FaceEnhancer`, without `enhancer`.

    Returns:
        What undoes it: ``close()``, or the end of its ``with``.

    Raises:
        ConfigError: there are options beside an enhancer.
        HostError: another version of LatentSync.
    """
    sessions, patches = attached_sessions(enhancer, options)
    if pipeline is None:
        change = partial(_attach_to_module, patches, sessions, lambda pipeline: None)
        patches.when_imported(MODULE, change)
    else:
        owner = pipeline if isinstance(pipeline, type) else type(pipeline)
        _attach_to_class(patches, sessions, lambda pipeline: None, owner)
    return patches


def _install(run: HostRun) -> None:
    change = partial(_attach_to_module, run.patches, run.sessions, run.enhancer.use_device_of)
    run.patches.when_imported(MODULE, change)


LATENTSYNC = Host(
    name="latentsync",
    title="LatentSync",
    imports=("latentsync",),
    scripts="scripts/inference.py, gradio_app.py",
    install=_install,
    color="rgb",
    value_range="-1..1",
    layout="NCHW",
    config_flag="--unet_config_path",
)

__all__ = ["LATENTSYNC", "attach"]
