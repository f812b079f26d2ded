"""MuseTalk: hook in right after ``VAE.decode_latents``, which hands out BGR uint8 (N, 256, 256, 3).

The host's files stay as they are: `attach` wraps one VAE from Python, `run_script` runs the host's own script with
every VAE wrapped and with our flags and the YAML section ``gfpgan:`` taken out before the host sees them (MuseTalk
walks every top-level key of its YAML as a task).

No detector and no parser of ours runs here: the boxes that MuseTalk computed before its loop (once per avatar in
``realtime_inference.py``) are those of the faces that its VAE hands out, and its own blending puts the restored ones
back.
"""

from __future__ import annotations

import importlib
import logging
import os
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

from ..config.loading import merge, section_of
from ..config.settings import SECTION
from ..enhancer import GFPGANEnhancer
from ..errors import ConfigError, HostError
from .decoder import Decoder, to_array

logger = logging.getLogger("musetalk_enhance")

VAE_MODULE = "musetalk.models.vae"
METHOD = "decode_latents"
CONFIG_FLAG = "--inference_config"


class Attachment:
    """An enhancer attached to a VAE; undone by `detach` or by leaving its ``with``.

    Attributes:
        owner: the VAE (or its class) whose ``decode_latents`` is wrapped.
        enhancer: what restores its frames.
        on_device: whether the decoder's tensor is taken before the host copies it to the CPU; see `attach`.
    """

    def __init__(self, owner: Any, enhancer: Callable[[Any], Any], on_device: str | bool = "auto") -> None:
        """Wrap ``owner.decode_latents``; `attach` is the public way."""
        self.owner, self.enhancer, self.on_device = owner, enhancer, on_device
        self._own = vars(owner).get(METHOD)
        self._verdicts: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
        original = getattr(owner, METHOD)

        def decode_latents(*args: Any, **kwargs: Any) -> Any:
            return self._decode(original, args, kwargs)

        decode_latents.__wrapped__ = original  # type: ignore[attr-defined]
        self._wrapper: Callable[..., Any] | None = decode_latents
        setattr(owner, METHOD, decode_latents)

    def _decode(self, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Decode and restore: on the decoder's device where that is wanted and known to be the same."""
        vae, latents = (args[0], args[1:]) if isinstance(self.owner, type) and args else (self.owner, args)
        plain = bool(kwargs) or len(latents) != 1 or self.on_device is False or not _takes_tensors(self.enhancer)
        if plain or not Decoder.fits(vae):
            return self.enhancer(original(*args, **kwargs))
        if vae not in self._verdicts:
            return self.enhancer(self._first(vae, original, args))
        if not self._verdicts[vae]:
            return self.enhancer(original(*args))
        return to_array(self.enhancer(Decoder(vae).decode(latents[0])))

    def _first(self, vae: Any, original: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """The host's own frames of the first batch of `vae`, which decides on the way of the others."""
        frames, device = Decoder(vae).verify(lambda latents: original(*args[:-1], latents), args[-1])
        self._verdicts[vae] = device is not None and (self.on_device is True or device != "cpu")
        if device is None:
            level = logging.WARNING if self.on_device is True else logging.DEBUG
            logger.log(level, "%s of %s is not MuseTalk's own: it is not taken apart", METHOD, type(vae).__name__)
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
            raise HostError(f"{METHOD} of {self.owner!r} was wrapped again after us; take that wrapper off first")
        if self._own is not None:
            setattr(self.owner, METHOD, self._own)
        else:
            delattr(self.owner, METHOD)
        self._wrapper = None
        if isinstance(self.enhancer, GFPGANEnhancer):
            warning = self.enhancer.stats.warning()
            if warning is not None:
                logger.warning("%s", warning)

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


def _takes_tensors(enhancer: Any) -> bool:
    """Whether `enhancer` is one of ours and on: anything else is given what the host makes."""
    if isinstance(enhancer, _LateEnhancer):
        enhancer = enhancer.ready()
    return isinstance(enhancer, GFPGANEnhancer) and enhancer.enabled


def attach(vae: Any, enhancer: Callable[[Any], Any], on_device: str | bool = "auto") -> Attachment:
    """Restore every batch that `vae` decodes, from now until `Attachment.detach`.

    Args:
        vae: MuseTalk's ``VAE`` (or its class): anything with a method ``decode_latents`` that returns frames.
        enhancer: a `GFPGANEnhancer` with ``color="bgr"``, or any callable frames -> frames.
        on_device: whether a `GFPGANEnhancer` is handed the decoder's tensor where it is, instead of the host's
            copy of it on the CPU. ``"auto"``: where the decoder is on a GPU. True: always. False: never. The first
            batch goes the host's own way and decides: only where its bytes are reproduced to the last bit are the
            following ones restored on the device. What comes back is the same either way:
            (N, H, W, 3) uint8, BGR, an array.

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


class _LateEnhancer:
    """Stands in for the enhancer until flags and YAML are known, which is before the first frame."""

    def __init__(self, flags: dict[str, Any], made: Callable[[GFPGANEnhancer], None] | None = None) -> None:
        self.flags, self.settings, self.made = flags, merge(None, flags), made
        self.enhancer: GFPGANEnhancer | None = None
        self.calls = 0

    def check(self) -> None:
        """See whether the model that the flags name is there, without loading it: a YAML may add options yet."""
        from ..restorers.catalog import choose

        if self.settings.enabled and {"model", "model_path"} & set(self.flags):
            choose(self.settings)

    def make(self, section: dict[str, Any] | None) -> None:
        """The enhancer that a YAML section and the flags mean, in place of one made for another section."""
        self.settings = merge(section, self.flags)
        if self.enhancer is not None:
            if self.enhancer.settings == self.settings:
                return
            self.enhancer.close()
        self.enhancer = GFPGANEnhancer.from_settings(self.settings)
        if self.made is not None:
            self.made(self.enhancer)
        if self.enhancer.enabled:
            logger.info("faces are restored with %s on %s", self.enhancer.model_name, self.enhancer.device)

    def ready(self) -> GFPGANEnhancer:
        """The enhancer, made from the flags alone where no YAML was read."""
        if self.enhancer is None:
            self.make(None)
        assert self.enhancer is not None
        return self.enhancer

    def close(self) -> None:
        """Give back what the enhancer holds, where there is one."""
        if self.enhancer is not None:
            self.enhancer.close()

    def __call__(self, frames: Any) -> Any:
        self.calls += 1
        return self.ready()(frames)


@contextmanager
def _config_without_section(late: _LateEnhancer) -> Iterator[None]:
    """While inside, ``OmegaConf.load`` hands out configurations without ``gfpgan:`` and `late` learns of it."""
    from omegaconf import DictConfig, OmegaConf

    original = OmegaConf.load

    def load(file_: Any) -> Any:
        config = original(file_)
        if isinstance(config, DictConfig) and SECTION in config:
            section = section_of(config)
            del config[SECTION]
            late.make(section)
        return config

    OmegaConf.load = staticmethod(load)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        OmegaConf.load = staticmethod(original)  # type: ignore[method-assign]


def _config_path(arguments: Sequence[str]) -> str | None:
    """The value of ``--inference_config`` among the host's own arguments: of several the last, as argparse does.

    A beginning of the flag counts as well (argparse takes one that is unique); it is three letters at least.
    """
    found = None
    for position, word in enumerate(arguments):
        if word == "--":
            break
        flag, equals, value = word.partition("=")
        if CONFIG_FLAG.startswith(flag) and len(flag) >= len("--inf"):
            found = value if equals else next(iter(arguments[position + 1 : position + 2]), found)
    return found


@contextmanager
def _attached(owner: Any, late: _LateEnhancer) -> Iterator[None]:
    """Attach `late` while inside. A wrapper that the host put over ours is left with it: its run is over."""
    attachment = attach(owner, late)
    try:
        yield
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
            f"{VAE_MODULE} cannot be imported ({error}): run this in MuseTalk's own folder and environment"
        ) from error


def run_script(
    script: str,
    arguments: Sequence[str],
    flags: dict[str, Any],
    made: Callable[[GFPGANEnhancer], None] | None = None,
) -> GFPGANEnhancer:
    """Run a script of MuseTalk's, unmodified, with its faces restored.

    Args:
        script: its path, for example ``scripts/inference.py``; the working directory is MuseTalk's folder.
        arguments: the script's own arguments.
        flags: our options, by name, that win over the YAML section.
        made: called with the enhancer before its first frame, for example to `observe` it.

    Returns:
        The enhancer that ran, closed, with its counts in ``stats``.

    Raises:
        ConfigError: an option in `flags` or in the YAML section is wrong.
        HostError: the script or MuseTalk's package is not there, or the script never decoded a frame.
        SystemExit: the script ended itself with a code other than 0, or has shown its help.
    """
    if not os.path.isfile(script):
        raise HostError(f"no script {script!r} in {os.getcwd()}; give MuseTalk's own, such as scripts/inference.py")
    late = _LateEnhancer(flags, made)
    config = _config_path(arguments)
    # Told before the host loads gigabytes; a missing file is the host's own error to report.
    if config is not None and os.path.isfile(config):
        late.make(section_of(config))
    else:
        late.check()
    argv, path = sys.argv, list(sys.path)
    with ExitStack() as stack:
        stack.callback(late.close)
        stack.callback(setattr, sys, "argv", argv)
        stack.callback(sys.path.__setitem__, slice(None), path)
        sys.argv = [script, *arguments]
        sys.path[:0] = [os.getcwd(), os.path.dirname(os.path.abspath(script))]
        stack.enter_context(_config_without_section(late))
        stack.enter_context(_attached(_vae_class(), late))
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as stop:
            if stop.code not in (None, 0) or {"-h", "--help"} & set(arguments):
                raise
    if late.settings.enabled and not late.calls:
        raise HostError(f"{script} ended without decoding a single frame; its own messages above say why")
    return late.enhancer or GFPGANEnhancer.from_settings(late.settings.replace(enabled=False))


__all__ = ["Attachment", "attach", "run_script"]
