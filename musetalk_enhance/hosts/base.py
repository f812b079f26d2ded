"""What a host is: a few facts, and a few lines of code where those do not suffice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from operator import attrgetter
from types import ModuleType
from typing import Any

from ..errors import HostError
from .lazy import LazyEnhancer
from .patches import Patches
from .sessions import Sessions
from .wrap import Wrapper

HOST_FPS = 25.0
"""Frames per second of talking heads, where a host's arguments give no other."""


@dataclass(frozen=True)
class Hook:
    """A function of a host that returns faces.

    Attributes:
        module: its module, as the host imports it.
        attribute: its name there, such as ``"Wav2Lip.forward"``.
        sources: called with the arguments of a call, returns the original crops of its faces in
            their form, for ``match: source``; None where the host does not pass them.
    """

    module: str
    attribute: str
    sources: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Host:
    """A pipeline that this library hooks into.

    Attributes:
        name: as ``musetalk-enhance run --host NAME`` takes it.
        title: as its authors write it.
        imports: modules, or names in modules; a script that imports one of them is the host's.
        scripts: those that can be run, for messages.
        hooks: functions whose results are restored.
        install: called before the script runs, for what hooks cannot say.
        color: order of the channels of its faces, ``"bgr"`` or ``"rgb"``.
        value_range: of its faces, as the option of that name.
        layout: order of the axes, see `wrap.LAYOUTS`.
        resizes: whether it takes faces of any size.
        output_size: default of the option of that name: what serves the host best.
        fps: frames per second without ``--fps`` in its arguments.
        config_flag: argument of its scripts that names a YAML file with the section ``gfpgan:``.
        is_service: whether its scripts run until they are interrupted, perhaps without a frame.
    """

    name: str
    title: str
    imports: tuple[str, ...]
    scripts: str
    hooks: tuple[Hook, ...] = ()
    install: Callable[[HostRun], None] | None = None
    color: str = "bgr"
    value_range: str = "auto"
    layout: str = "NHWC"
    resizes: bool = True
    output_size: str = "same"
    fps: float = HOST_FPS
    config_flag: str | None = None
    is_service: bool = False


@dataclass
class HostRun:
    """One run of a host's script.

    Attributes:
        host: the host.
        script: path of the script, or name of the module, as the user wrote it.
        arguments: of the script; `Host.install` may change them.
        enhancer: restores the faces of a host with one sequence of them.
        sessions: streams for a host with several.
        patches: changes of the host, which end with the run.
    """

    host: Host
    script: str
    arguments: list[str]
    enhancer: LazyEnhancer
    sessions: Sessions
    patches: Patches

    def install(self) -> None:
        """Hook into the host's modules, as soon as they are imported."""
        for hook in self.host.hooks:
            self.patches.when_imported(hook.module, partial(self._wrap, hook))
        if self.host.install is not None:
            self.host.install(self)

    def _wrap(self, hook: Hook, module: ModuleType) -> None:
        owner_name, _, name = hook.attribute.rpartition(".")
        try:
            owner = attrgetter(owner_name)(module) if owner_name else module
            function = getattr(owner, name)
        except AttributeError as error:
            raise HostError(
                f"{hook.module} has no {hook.attribute}: this version of {self.host.title} is not "
                f"one that musetalk_enhance was tested with; see docs/hosts"
            ) from error

        def hints(*args: Any, **kwargs: Any) -> dict[str, Any]:
            if hook.sources is None or self.enhancer.settings.match != "source":
                return {}
            return {"sources": hook.sources(*args, **kwargs)}

        wrapper = Wrapper(function, lambda *_, **__: self.enhancer, self.host.layout, hints)
        self.patches.replace(owner, name, wrapper)


def argument_of(arguments: Sequence[str], flag: str) -> str | None:
    """The value that a flag has in the arguments of a script; None where it is not given."""
    for word, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        name, equals, value = word.partition("=")
        if name == flag:
            return value if equals else following
    return None
