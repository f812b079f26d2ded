"""MuseTalk: hooks in right after ``VAE.decode_latents``, which returns BGR uint8 (N, 256, 256, 3).

The host's files stay as they are: `attach` wraps one VAE from Python, `run_script` runs the host's
own script with every VAE wrapped and with our flags and the YAML section ``gfpgan:`` taken out
before the host sees them (MuseTalk walks every top-level key of its YAML as a task). ``app.py``
serves each request of its page in a thread; each has a stream of its own.

Neither a detector nor a parser runs here: MuseTalk computed the boxes of the faces before its loop
(once per avatar in ``realtime_inference.py``), and its own blending pastes the restored faces.
"""

from __future__ import annotations

import importlib
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from ..config.settings import EnhancerSettings
from ..enhancer import GFPGANEnhancer
from ..errors import ConfigError, HostError
from . import script as script_runner
from .base import Host, HostRun
from .crops import LoopedCrops
from .decoder import Decoder, to_array
from .lazy import LazyEnhancer, has_gpu
from .overlap import Ahead
from .patches import Patches
from .sessions import RequestStreams

logger = logging.getLogger("musetalk_enhance")

VAE_MODULE = "musetalk.models.vae"
METHOD = "decode_latents"
ENCODE = "get_latents_for_unet"
"""Method of the VAE that a host calls for a new clip or avatar before it decodes frames."""
AUDIO_MODULE, AUDIO_METHOD = "musetalk.utils.audio_processor", "AudioProcessor.get_audio_feature"
"""What a script calls at the beginning of each task."""
LOOP_MODULE, LOOP_FUNCTION = "musetalk.utils.utils", "datagen"
"""What a script calls then, with the latents that it plays in a loop."""
LOOP_START, LOOP_START_POSITION = "delay_frame", 3
"""Argument of that function: index of the latents that it begins with."""


class Attachment:
    """An enhancer attached to a VAE; undone by `detach` or by leaving its ``with``.

    Attributes:
        owner: the VAE (or its class) whose ``decode_latents`` is wrapped.
        enhancer: what restores its frames.
        on_device: whether the decoder's tensor is taken before the host copies it to the CPU; see
            `attach`.
        requests: streams for the requests of a Gradio page; None: all frames are one stream's.
        ahead: restores while the host goes on; None: before the host gets its frames.
    """

    requests: RequestStreams | None = None
    _warned = False

    def __init__(
        self,
        owner: Any,
        enhancer: Callable[[Any], Any],
        on_device: str | bool = "auto",
        overlap: bool = False,
    ) -> None:
        """Wrap ``owner.decode_latents``; `attach` is the public way."""
        self.owner, self.enhancer, self.on_device = owner, enhancer, on_device
        self.ahead = Ahead() if overlap else None
        self._own = vars(owner).get(METHOD)
        self._own_encode = vars(owner).get(ENCODE)
        self._task_begins = False
        self._crops = LoopedCrops()
        self._verdicts: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
        original = getattr(owner, METHOD)

        def decode_latents(*args: Any, **kwargs: Any) -> Any:
            return self._decode(original, args, kwargs)

        decode_latents.__wrapped__ = original  # type: ignore[attr-defined]
        self._wrapper: Callable[..., Any] | None = decode_latents
        setattr(owner, METHOD, decode_latents)
        self._encode_wrapper = self._wrapped_encode(getattr(owner, ENCODE, None))

    def _wrapped_encode(self, original: Any) -> Any:
        """Wrap the method that encodes a clip's frames; decoding then begins a new stream."""
        if not callable(original):
            return None

        def get_latents_for_unet(*args: Any, **kwargs: Any) -> Any:
            self.begin_task()
            latents = original(*args, **kwargs)
            if args and _takes_sources(self.enhancer):
                self._crops.add(args[-1], latents)
            return latents

        setattr(self.owner, ENCODE, get_latents_for_unet)
        return get_latents_for_unet

    def begin_task(self) -> None:
        """Begin a new stream with the next frames: a new clip, avatar or audio."""
        self._crops.end()
        if self.requests is not None and _serves_a_page():
            self.requests.begin()
        else:
            self._task_begins = True

    def begin_loop(self, latents: Sequence[Any]) -> None:
        """The host begins to play an avatar's latents, again and again.

        With ``match: source`` faces are matched to the crops that these were encoded from, until
        the calling thread encodes another clip. Without this call they are not matched: what the
        host decodes does not tell of which clip it is.

        Args:
            latents: what ``get_latents_for_unet`` returned, the objects themselves, in the order in
                which the calling thread plays them: often forward and backward.
        """
        if _takes_sources(self.enhancer):
            self._crops.begin(latents)

    def begin_loop_of(self, *args: Any, **kwargs: Any) -> None:
        """As `begin_loop`, with the arguments of MuseTalk's ``datagen``, the latents by any name;
        without encoded latents among them nothing is matched."""
        if _takes_sources(self.enhancer):
            first = kwargs.get(LOOP_START, [*args, *[0] * 4][LOOP_START_POSITION])
            first = first if isinstance(first, int) else 0
            self._crops.begin_any([*args, *kwargs.values()], first)

    def _decode(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Decode and restore, on the decoder's device if that gives the same bytes."""
        begins, self._task_begins = self._task_begins, False
        vae, latents = (
            (args[0], args[1:]) if isinstance(self.owner, type) and args else (self.owner, args)
        )
        if isinstance(self.enhancer, LazyEnhancer):
            self.enhancer.use_device_of(vae)
        plain = (
            bool(kwargs)
            or len(latents) != 1
            or self.on_device is False
            or not _takes_tensors(self.enhancer)
        )
        stream: Any = self.enhancer
        if self.requests is not None and _serves_a_page():
            stream = self.requests.current()
        on_device = False
        if plain or not Decoder.fits(vae):
            frames = original(*args, **kwargs)
        elif vae not in self._verdicts:
            frames = self._first(vae, original, args)
        elif not self._verdicts[vae]:
            frames = original(*args)
        else:
            frames, on_device = Decoder(vae).decode(latents[0]), True
        hints = self._hints(len(frames)) if _takes_sources(self.enhancer) else {}

        def restored(frames: Any) -> Any:
            if begins:
                getattr(self.enhancer, "reset", lambda: None)()
            result = stream(frames, **hints)
            return to_array(result) if on_device else result

        if self.ahead is None:
            return restored(frames)
        on_error = getattr(getattr(self.enhancer, "settings", None), "on_error", "passthrough")
        try:
            return self.ahead.submit(restored, frames, on_error)
        except Exception:  # of a batch before, perhaps of another task
            self._task_begins |= begins
            raise

    def _hints(self, count: int) -> dict[str, Any]:
        """The original crops of the next frames."""
        sources = self._crops.take(count)
        if sources is None and not self._warned:
            self._warned = True
            logger.warning(
                "match: source has no effect: the original crops of these faces are not known. An "
                "avatar that was prepared in an earlier run has none; with attach(vae, ...), call "
                "begin_loop(latents) of what it returns when latents are played; see "
                "docs/matching.md"
            )
        return {"sources": sources or [None] * count}

    def _first(self, vae: Any, original: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Frames of the host's own decoding of `vae`'s first batch; decides how to go on."""
        frames, device = Decoder(vae).verify(
            lambda latents: original(*args[:-1], latents), args[-1]
        )
        self._verdicts[vae] = device is not None and (self.on_device is True or device != "cpu")
        if device is None:
            level = logging.WARNING if self.on_device is True else logging.DEBUG
            logger.log(
                level,
                "%s of %s is not MuseTalk's own: faces are restored after it, not on its device",
                METHOD,
                type(vae).__name__,
            )
        return frames

    @property
    def attached(self) -> bool:
        """Whether the wrapper is in place."""
        return self._wrapper is not None

    def detach(self) -> None:
        """Put the VAE back as it was; a second call does nothing.

        Raises:
            HostError: somebody else wrapped the method after us; detach theirs first.
            Exception: with ``on_error: raise``, what the last batches ahead of the host raised.
        """
        if self._wrapper is None:
            return
        if vars(self.owner).get(METHOD) is not self._wrapper:
            raise HostError(
                f"{METHOD} of {self.owner!r} was wrapped again after this library; remove that "
                "wrapper first"
            )
        if self._own is not None:
            setattr(self.owner, METHOD, self._own)
        else:
            delattr(self.owner, METHOD)
        self._wrapper = None
        if (
            self._encode_wrapper is not None
            and vars(self.owner).get(ENCODE) is self._encode_wrapper
        ):
            if self._own_encode is not None:
                setattr(self.owner, ENCODE, self._own_encode)
            else:
                delattr(self.owner, ENCODE)
        try:
            if self.ahead is not None:
                self.ahead.close()
        finally:
            if isinstance(self.enhancer, GFPGANEnhancer):
                warning = self.enhancer.stats.warning()
                if warning is not None:
                    logger.warning("%s", warning)

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()


def _serves_a_page() -> bool:
    """Whether the calling thread serves a request of a Gradio page."""
    is_main = threading.current_thread() is threading.main_thread()
    return "gradio" in sys.modules and not is_main


def _takes_tensors(enhancer: Any) -> bool:
    """Whether `enhancer` takes tensors: an enabled `GFPGANEnhancer`. Others get arrays."""
    if isinstance(enhancer, LazyEnhancer):
        enhancer = enhancer.ready()
    return isinstance(enhancer, GFPGANEnhancer) and enhancer.enabled


def _takes_sources(enhancer: Any) -> bool:
    """Whether `enhancer` matches faces to the host's original crops."""
    settings = getattr(enhancer, "settings", None)
    if not isinstance(settings, EnhancerSettings):
        return False
    return settings.enabled and settings.match == "source"


def attach(
    vae: Any,
    enhancer: Callable[[Any], Any],
    on_device: str | bool = "auto",
    overlap: bool = False,
) -> Attachment:
    """Restore every batch that `vae` decodes, from now until `Attachment.detach`.

    Args:
        vae: MuseTalk's ``VAE`` (or its class): anything with a method ``decode_latents`` that
            returns frames.
        enhancer: a `GFPGANEnhancer` with ``color="bgr"``, or any callable frames -> frames.
        on_device: whether a `GFPGANEnhancer` is handed the decoder's tensor where it is, instead of
            the host's copy of it on the CPU. ``"auto"``: where the decoder is on a GPU. True:
            always. False: never. The first batch goes the host's own way and decides: only where
            its bytes are reproduced to the last bit are the following ones restored on the device.
            What comes back is the same either way: (N, H, W, 3) uint8, BGR, an array.
        overlap: return at once, with frames that are restored in another thread while the host
            goes on; see `overlap.Ahead`. For a host that hands each frame to a thread of its own
            and looks at it only there, as ``realtime_inference.py`` does.

    >>> with attach(vae, enhancer):  # doctest: +SKIP
    ...     main(args)

    Raises:
        HostError: `vae` has no ``decode_latents``, or an enhancer is attached already.
        ConfigError: `on_device` is none of its values.
    """
    if not isinstance(on_device, bool) and on_device != "auto":
        raise ConfigError("on_device", on_device, "auto | True | False")
    method = getattr(vae, METHOD, None)
    if not callable(method):
        raise HostError(f"{vae!r} has no method {METHOD}; attach takes MuseTalk's VAE")
    if hasattr(method, "__wrapped__") and method.__qualname__.startswith(Attachment.__qualname__):
        raise HostError(f"an enhancer is attached to {vae!r} already; detach it first")
    return Attachment(vae, enhancer, on_device, overlap)


@contextmanager
def _attached(
    owner: Any, lazy: LazyEnhancer, requests: RequestStreams, overlap: bool
) -> Iterator[Attachment]:
    """Attach `lazy` while inside. A wrapper that the host added stays."""
    attachment = attach(owner, lazy, overlap=overlap)
    attachment.requests = requests
    try:
        yield attachment
    finally:
        try:
            attachment.detach()
        except HostError as error:
            logger.warning("%s", error)


def _vae_class() -> Any:
    try:
        return importlib.import_module(VAE_MODULE).VAE
    except ImportError as error:
        raise HostError(
            f"{VAE_MODULE} cannot be imported ({error}): run this in MuseTalk's own folder and "
            "environment"
        ) from error


def attach_to_run(run: HostRun, vae: Any, overlap: bool = False) -> Attachment:
    """Attach the run's enhancer to a VAE or its class until the run ends.

    Each request of a Gradio page has a stream of its own.
    """
    requests = RequestStreams(run.sessions)
    return run.patches.enter_context(_attached(vae, run.enhancer, requests, overlap))


def _install(run: HostRun) -> None:
    """Attach to the class of VAEs; each audio that MuseTalk's scripts read begins a new stream."""
    is_realtime = re.search(r"(^|[./\\])realtime_inference(\.py)?$", run.script) is not None
    if is_realtime and not has_gpu():
        logger.warning(
            "no GPU is available: MuseTalk's realtime_inference.py puts its last batch on cuda:0 "
            "and does not end without one; use scripts/inference.py"
        )
    attachment = attach_to_run(run, _vae_class(), is_realtime)

    def begin_task(*args: Any, **kwargs: Any) -> None:
        attachment.begin_task()

    for module, attribute, begin in (
        (AUDIO_MODULE, AUDIO_METHOD, begin_task),
        (LOOP_MODULE, LOOP_FUNCTION, attachment.begin_loop_of),
    ):
        with suppress(ImportError):  # an older host has not all of them
            call_before(run.patches, importlib.import_module(module), attribute, begin)


def call_before(
    patches: Patches, module: ModuleType, attribute: str, begin: Callable[..., None]
) -> None:
    """Call `begin` with the arguments of each call of a module's function, where it has it."""
    owner_name, _, name = attribute.rpartition(".")
    owner: Any = getattr(module, owner_name, None) if owner_name else module
    original = getattr(owner, name, None)
    if original is None:
        return

    def function(*args: Any, **kwargs: Any) -> Any:
        begin(*args, **kwargs)
        return original(*args, **kwargs)

    patches.replace(owner, name, function)


MUSETALK = Host(
    name="musetalk",
    title="MuseTalk",
    imports=("musetalk",),
    scripts="scripts/inference.py, scripts/realtime_inference.py, app.py",
    install=_install,
    config_flag="--inference_config",
)


def run_script(
    script: str,
    arguments: Sequence[str],
    flags: dict[str, Any],
    on_load: Callable[[GFPGANEnhancer], None] | None = None,
    *,
    as_module: bool = False,
) -> GFPGANEnhancer:
    """Run a script of MuseTalk's, unmodified, with its faces restored; see `script.run_script`."""
    return script_runner.run_script(
        script, arguments, flags, on_load, as_module=as_module, choose=lambda path: MUSETALK
    )


__all__ = ["MUSETALK", "Attachment", "attach", "attach_to_run", "run_script"]
