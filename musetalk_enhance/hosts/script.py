"""Run a host's own script, unmodified, with its faces restored."""

from __future__ import annotations

import importlib.util
import logging
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ..config.loader import section_of
from ..config.settings import SECTION
from ..enhancer import FaceEnhancer
from ..errors import HostError
from .base import Host, HostRun
from .lazy import LazyEnhancer
from .patches import Patches
from .sessions import Sessions

logger = logging.getLogger("musetalk_enhance")


def run_script(
    script: str,
    arguments: Sequence[str],
    flags: dict[str, Any],
    on_load: Callable[[FaceEnhancer], None] | None = None,
    *,
    as_module: bool = False,
    choose: Callable[[str], Host],
) -> FaceEnhancer:
    """Run a host's script, unmodified, with its faces restored.

    Args:
        script: its path, for example ``scripts/inference.py``, or the name of its module, for
            example ``scripts.inference``; the working directory is the host's folder.
        arguments: the script's own arguments.
        flags: our options, by name, that win over the YAML section.
        on_load: called with the enhancer before its first frame, for example to `observe` it.
        as_module: `script` is a module's name, run as ``python -m`` runs it.
        choose: called with the path of the script, returns its host.

    Returns:
        The enhancer that ran, closed, with its counts in ``stats``, those of all sessions included.

    Raises:
        ConfigError: an option in `flags` or in the YAML section is wrong.
        HostError: there is no such script, no host is recognized, or the host cannot be hooked
            into; or the script never made a face.
        SystemExit: the script ended itself with a code other than 0, or has shown its help.
    """
    with Patches() as patches:
        patches.callback(setattr, sys, "argv", sys.argv)
        patches.callback(sys.path.__setitem__, slice(None), list(sys.path))
        sys.argv = [script, *arguments]
        sys.path.insert(0, os.getcwd())
        if not as_module:
            sys.path.insert(1, os.path.dirname(os.path.abspath(script)))
        host = choose(_path_of(script, as_module))
        defaults = {name: getattr(host, name) for name in ("color", "value_range", "output_size")}
        fixed_size = None if host.resizes else host.title
        lazy = LazyEnhancer(flags, on_load, defaults, fixed_size)
        patches.callback(lazy.close)
        config = _config_path(arguments, host.config_flag)
        # before the host loads gigabytes; a missing file is the host's own error to report
        if config is not None and os.path.isfile(config):
            lazy.configure(section_of(config))
        else:
            lazy.check()
        is_help = bool({"-h", "--help"} & set(arguments))
        if not is_help and not lazy.settings.enabled:
            _warn_that_it_is_off(config)
        _keep_section_from_host(patches, lazy)
        run = HostRun(host, script, list(arguments), lazy, Sessions(lazy), patches)
        patches.callback(run.sessions.close_all)
        run.install()
        sys.argv = [script, *run.arguments]
        try:
            _execute(script, as_module)
        except SystemExit as stop:
            if stop.code not in (None, 0) or is_help:
                raise
        except KeyboardInterrupt:
            if not host.is_service:
                raise
    enhancer = lazy.enhancer or FaceEnhancer.from_settings(lazy.settings.replace(enabled=False))
    if lazy.settings.enabled and not lazy.calls and not enhancer.stats.frames:
        message = f"{script} ended without decoding a single frame"
        if not host.is_service and "gradio" not in sys.modules:
            raise HostError(f"{message}; see its messages above")
        logger.warning("%s", message)  # a page that was opened and closed
    return enhancer


def _execute(script: str, as_module: bool) -> None:
    if as_module:
        runpy.run_module(script, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(script, run_name="__main__")


def _path_of(script: str, as_module: bool) -> str:
    """The file of a script or module; a HostError, before anything is imported, without one."""
    if as_module:
        try:
            spec = importlib.util.find_spec(script)
            if spec is not None and spec.submodule_search_locations is not None:
                spec = importlib.util.find_spec(f"{script}.__main__")
        except (ImportError, ValueError):  # no such package; not a name
            spec = None
        if spec is None or spec.origin is None:
            raise HostError(
                f"no module {script!r} in {os.getcwd()}; run this in the host's folder, with the "
                "name of a module such as scripts.inference"
            )
        return spec.origin
    if not os.path.isfile(script):
        raise HostError(
            f"no script {script!r} in {os.getcwd()}; run this in the host's folder, with one of "
            "its own, such as MuseTalk's scripts/inference.py"
        )
    if script.endswith((".sh", ".bat")):
        raise HostError(
            f"{script} is a shell script; pass the Python script that it runs, and its arguments. "
            "MuseTalk's inference.sh runs: python3 -m scripts.inference --inference_config ..."
        )
    return script


def _keep_section_from_host(patches: Patches, lazy: LazyEnhancer) -> None:
    """Let ``OmegaConf.load`` move the section ``gfpgan:`` to `lazy`."""
    from omegaconf import DictConfig, OmegaConf

    original = OmegaConf.load

    def load(file_: Any) -> Any:
        config = original(file_)
        if isinstance(config, DictConfig) and SECTION in config:
            section = section_of(config)
            del config[SECTION]
            lazy.configure(section)
        return config

    patches.replace(OmegaConf, "load", staticmethod(load))


def _config_path(arguments: Sequence[str], config_flag: str | None) -> str | None:
    """The value of the host's argument `config_flag`; the last one, as in argparse.

    A beginning of the flag counts as well (argparse takes one that is unique); it is three letters
    at least.
    """
    path = None
    for position, word in enumerate(arguments):
        if word == "--" or config_flag is None:
            break
        flag, equals, value = word.partition("=")
        if config_flag.startswith(flag) and len(flag) >= len("--inf"):
            path = value if equals else next(iter(arguments[position + 1 : position + 2]), path)
    return path


def _warn_that_it_is_off(config: str | None) -> None:
    """Warn about a run that restores nothing before it takes hours."""
    if config is not None:
        logger.warning(
            "nothing will be restored: add --%s, or enabled: true under %s: in %s",
            f"enable_{SECTION}",
            SECTION,
            config,
        )
    else:
        logger.warning(
            "nothing will be restored without --%s (or enabled: true under %s: in the YAML file "
            "that the script reads by default)",
            f"enable_{SECTION}",
            SECTION,
        )
