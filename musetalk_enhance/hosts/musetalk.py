"""MuseTalk: hooks in right after ``VAE.decode_latents``, which returns BGR uint8 (N, 256, 256, 3).

The host's files stay as they are: `attach` wraps one VAE from Python, `run_script` runs the host's
own script with every VAE wrapped and with our flags and the YAML section ``gfpgan:`` taken out
before the host sees them (MuseTalk walks every top-level key of its YAML as a task).

Neither a detector nor a parser runs here: MuseTalk computed the boxes of the faces before its loop
(once per avatar in ``realtime_inference.py``), and its own blending pastes the restored faces.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import re
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from ..config.loader import merge, section_of
from ..config.settings import SECTION, EnhancerSettings
from ..enhancer import GFPGANEnhancer
from ..errors import ConfigError, HostError
from .decoder import Decoder, to_array

logger = logging.getLogger("musetalk_enhance")

VAE_MODULE = "musetalk.models.vae"
METHOD = "decode_latents"
ENCODE = "get_latents_for_unet"
"""Method of the VAE that a host calls for a new clip or avatar before it decodes frames."""
AUDIO_MODULE, AUDIO_METHOD = "musetalk.utils.audio_processor", "get_audio_feature"
"""Class ``AudioProcessor`` and its method that a script calls at the beginning of each task."""
CONFIG_FLAG = "--inference_config"


class Attachment:
    """An enhancer attached to a VAE; undone by `detach` or by leaving its ``with``.

    Attributes:
        owner: the VAE (or its class) whose ``decode_latents`` is wrapped.
        enhancer: what restores its frames.
        on_device: whether the decoder's tensor is taken before the host copies it to the CPU; see
            `attach`.
    """

    def __init__(
        self, owner: Any, enhancer: Callable[[Any], Any], on_device: str | bool = "auto"
    ) -> None:
        """Wrap ``owner.decode_latents``; `attach` is the public way."""
        self.owner, self.enhancer, self.on_device = owner, enhancer, on_device
        self._own = vars(owner).get(METHOD)
        self._own_encode = vars(owner).get(ENCODE)
        self._task_begins = False
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
            return original(*args, **kwargs)

        setattr(self.owner, ENCODE, get_latents_for_unet)
        return get_latents_for_unet

    def begin_task(self) -> None:
        """Begin a new stream with the next frames: a new clip, avatar or audio."""
        self._task_begins = True

    def _decode(
        self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Decode and restore, on the decoder's device if that gives the same bytes."""
        if self._task_begins:
            self._task_begins = False
            getattr(self.enhancer, "reset", lambda: None)()
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
        if plain or not Decoder.fits(vae):
            return self.enhancer(original(*args, **kwargs))
        if vae not in self._verdicts:
            return self.enhancer(self._first(vae, original, args))
        if not self._verdicts[vae]:
            return self.enhancer(original(*args))
        return to_array(self.enhancer(Decoder(vae).decode(latents[0])))

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
        if isinstance(self.enhancer, GFPGANEnhancer):
            warning = self.enhancer.stats.warning()
            if warning is not None:
                logger.warning("%s", warning)

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()


def _takes_tensors(enhancer: Any) -> bool:
    """Whether `enhancer` takes tensors: an enabled `GFPGANEnhancer`. Others get arrays."""
    if isinstance(enhancer, LazyEnhancer):
        enhancer = enhancer.ready()
    return isinstance(enhancer, GFPGANEnhancer) and enhancer.enabled


def attach(vae: Any, enhancer: Callable[[Any], Any], on_device: str | bool = "auto") -> Attachment:
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
    return Attachment(vae, enhancer, on_device)


class LazyEnhancer:
    """Stands in for the enhancer until flags and YAML are read, which is before the first frame.

    Args:
        flags: options by name; they win over the YAML section.
        on_load: called with each enhancer that is loaded.
    """

    def __init__(
        self, flags: dict[str, Any], on_load: Callable[[GFPGANEnhancer], None] | None = None
    ) -> None:
        self.flags, self.settings, self._on_load = flags, merge(None, flags), on_load
        self.enhancer: GFPGANEnhancer | None = None
        self.calls = 0
        self._device: str | None = None

    def check(self) -> None:
        """Raise if the flags name a missing model, without loading it; a YAML may add options."""
        if {"model", "model_path"} & set(self.flags):
            self._check()

    def _check(self) -> None:
        from ..restorers.catalog import choose

        if self.settings.enabled:
            choose(self.settings)

    def configure(self, section: dict[str, Any] | None) -> None:
        """Take the options of a YAML section; an enhancer that was loaded with others is replaced.

        It is loaded at once, so that what is missing is reported before the host loads gigabytes;
        where a GPU could be chosen, only when the host's VAE tells which one it uses.
        """
        self.settings = merge(section, self.flags)
        if self.enhancer is not None:
            if self.enhancer.settings == self._on_device(self.settings):
                return
            self.enhancer.close()
            self.enhancer = None
        if (
            self.settings.enabled
            and self.settings.device == "auto"
            and self._device is None
            and _has_gpu()
        ):
            self._check()
        else:
            self._load()

    def _load(self) -> GFPGANEnhancer:
        enhancer = self.enhancer = GFPGANEnhancer.from_settings(self._on_device(self.settings))
        if self._on_load is not None:
            self._on_load(enhancer)
        if enhancer.enabled:
            logger.info("faces are restored with %s on %s", enhancer.model_name, enhancer.device)
        return enhancer

    def _on_device(self, settings: EnhancerSettings) -> EnhancerSettings:
        if settings.device != "auto" or self._device is None:
            return settings
        return settings.replace(device=self._device)

    def use_device_of(self, vae: Any) -> None:
        """Run on the device of the host's VAE where the options leave the device open."""
        if self.enhancer is None and self._device is None:
            self._device = _device_of(vae)

    def ready(self) -> GFPGANEnhancer:
        """The enhancer, loaded from the flags alone where no YAML was read."""
        return self._load() if self.enhancer is None else self.enhancer

    def reset(self) -> None:
        """Begin a new stream of frames."""
        if self.enhancer is not None:
            self.enhancer.reset()

    def close(self) -> None:
        """Free what the enhancer holds."""
        if self.enhancer is not None:
            self.enhancer.close()

    def __call__(self, frames: Any) -> Any:
        self.calls += 1
        return self.ready()(frames)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _device_of(vae: Any) -> str | None:
    """The device of MuseTalk's VAE; None where it is not one that an enhancer can use."""
    device = getattr(vae, "device", None) or getattr(getattr(vae, "vae", None), "device", None)
    name = str(device) if device is not None else ""
    return name if name == "cpu" or name.startswith("cuda") else None


@contextmanager
def _config_without_section(lazy: LazyEnhancer) -> Iterator[None]:
    """While inside, ``OmegaConf.load`` moves the section ``gfpgan:`` to `lazy`."""
    from omegaconf import DictConfig, OmegaConf

    original = OmegaConf.load

    def load(file_: Any) -> Any:
        config = original(file_)
        if isinstance(config, DictConfig) and SECTION in config:
            section = section_of(config)
            del config[SECTION]
            lazy.configure(section)
        return config

    OmegaConf.load = staticmethod(load)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        OmegaConf.load = staticmethod(original)  # type: ignore[method-assign]


def _config_path(arguments: Sequence[str]) -> str | None:
    """The value of the host's argument ``--inference_config``; the last one, as in argparse.

    A beginning of the flag counts as well (argparse takes one that is unique); it is three letters
    at least.
    """
    path = None
    for position, word in enumerate(arguments):
        if word == "--":
            break
        flag, equals, value = word.partition("=")
        if CONFIG_FLAG.startswith(flag) and len(flag) >= len("--inf"):
            path = value if equals else next(iter(arguments[position + 1 : position + 2]), path)
    return path


@contextmanager
def _attached(owner: Any, lazy: LazyEnhancer) -> Iterator[Attachment]:
    """Attach `lazy` while inside. A wrapper that the host added stays."""
    attachment = attach(owner, lazy)
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


@contextmanager
def _tasks_begin(attachment: Attachment) -> Iterator[None]:
    """While inside, each audio that MuseTalk's scripts read begins a new stream."""
    try:
        owner = importlib.import_module(AUDIO_MODULE).AudioProcessor
        original = getattr(owner, AUDIO_METHOD)
    except (ImportError, AttributeError):  # an older MuseTalk
        yield
        return

    def get_audio_feature(*args: Any, **kwargs: Any) -> Any:
        attachment.begin_task()
        return original(*args, **kwargs)

    setattr(owner, AUDIO_METHOD, get_audio_feature)
    try:
        yield
    finally:
        setattr(owner, AUDIO_METHOD, original)


def run_script(
    script: str,
    arguments: Sequence[str],
    flags: dict[str, Any],
    on_load: Callable[[GFPGANEnhancer], None] | None = None,
    *,
    as_module: bool = False,
) -> GFPGANEnhancer:
    """Run a script of MuseTalk's, unmodified, with its faces restored.

    Args:
        script: its path, for example ``scripts/inference.py``, or the name of its module, for
            example ``scripts.inference``; the working directory is MuseTalk's folder.
        arguments: the script's own arguments.
        flags: our options, by name, that win over the YAML section.
        on_load: called with the enhancer before its first frame, for example to `observe` it.
        as_module: `script` is a module's name, run as ``python -m`` runs it.

    Returns:
        The enhancer that ran, closed, with its counts in ``stats``.

    Raises:
        ConfigError: an option in `flags` or in the YAML section is wrong.
        HostError: the script or MuseTalk's package does not exist, or the script never decoded a
            frame.
        SystemExit: the script ended itself with a code other than 0, or has shown its help.
    """
    lazy = LazyEnhancer(flags, on_load)
    argv, path = sys.argv, list(sys.path)
    with ExitStack() as stack:
        stack.callback(lazy.close)
        stack.callback(setattr, sys, "argv", argv)
        stack.callback(sys.path.__setitem__, slice(None), path)
        sys.argv = [script, *arguments]
        sys.path.insert(0, os.getcwd())
        if not as_module:
            sys.path.insert(1, os.path.dirname(os.path.abspath(script)))
        _check_script(script, as_module)
        config = _config_path(arguments)
        # before the host loads gigabytes; a missing file is the host's own error to report
        if config is not None and os.path.isfile(config):
            lazy.configure(section_of(config))
        else:
            lazy.check()
        is_help = bool({"-h", "--help"} & set(arguments))
        if not is_help:
            _warn_at_start(script, lazy.settings.enabled, config)
        stack.enter_context(_config_without_section(lazy))
        attachment = stack.enter_context(_attached(_vae_class(), lazy))
        stack.enter_context(_tasks_begin(attachment))
        try:
            if as_module:
                runpy.run_module(script, run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(script, run_name="__main__")
        except SystemExit as stop:
            if stop.code not in (None, 0) or is_help:
                raise
    if lazy.settings.enabled and not lazy.calls:
        message = f"{script} ended without decoding a single frame"
        if "gradio" not in sys.modules:
            raise HostError(f"{message}; see its messages above")
        logger.warning("%s", message)  # a page that was opened and closed
    return lazy.enhancer or GFPGANEnhancer.from_settings(lazy.settings.replace(enabled=False))


def _check_script(script: str, as_module: bool) -> None:
    """Raise a HostError, before MuseTalk is imported, if there is no such script or module."""
    if as_module:
        try:
            exists = importlib.util.find_spec(script) is not None
        except (ImportError, ValueError):  # no such package; not a name
            exists = False
        if not exists:
            raise HostError(
                f"no module {script!r} in {os.getcwd()}; run this in MuseTalk's folder, with the "
                "name of a module such as scripts.inference"
            )
    elif not os.path.isfile(script):
        raise HostError(
            f"no script {script!r} in {os.getcwd()}; expected MuseTalk's own, such as "
            "scripts/inference.py"
        )
    elif script.endswith((".sh", ".bat")):
        raise HostError(
            f"{script} is a shell script; pass the Python script that it runs, and its arguments. "
            "MuseTalk's inference.sh runs: python3 -m scripts.inference --inference_config ..."
        )


def _warn_at_start(script: str, enabled: bool, config: str | None) -> None:
    """Warn about a run that restores nothing, or that cannot end, before it takes hours."""
    if not enabled and config is not None:
        logger.warning(
            "nothing will be restored: add --%s, or enabled: true under %s: in %s",
            f"enable_{SECTION}",
            SECTION,
            config,
        )
    elif not enabled:
        logger.warning(
            "nothing will be restored without --%s (or enabled: true under %s: in the YAML file "
            "that the script reads by default)",
            f"enable_{SECTION}",
            SECTION,
        )
    if re.search(r"(^|[./\\])realtime_inference(\.py)?$", script) and not _has_gpu():
        logger.warning(
            "no GPU is available: MuseTalk's realtime_inference.py puts its last batch on cuda:0 "
            "and does not end without one; use scripts/inference.py"
        )


__all__ = ["Attachment", "attach", "run_script"]
