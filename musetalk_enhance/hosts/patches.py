"""Replaced attributes of a host's modules, now or when they are imported; all are put back."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

logger = logging.getLogger("musetalk_enhance")

_INHERITED = object()


class Patches(ExitStack):
    """Changes of a host, undone in reverse order by leaving the ``with`` or by `close`."""

    def replace(self, owner: Any, name: str, replacement: Any) -> None:
        """Set an attribute of a module, class or object until the end.

        A wrapper that somebody else puts around the replacement stays in place, with a warning.
        """
        own = vars(owner).get(name, _INHERITED)
        setattr(owner, name, replacement)

        def undo() -> None:
            if vars(owner).get(name) is not replacement:
                logger.warning(
                    "%s of %r was replaced after this library did; it stays", name, owner
                )
            elif own is _INHERITED:
                delattr(owner, name)
            else:
                setattr(owner, name, own)

        self.callback(undo)

    def replace_module(self, name: str, module: ModuleType) -> None:
        """Let imports of `name` get `module` until the end."""
        before = sys.modules.get(name)
        sys.modules[name] = module

        def undo() -> None:
            if before is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = before

        self.callback(undo)

    def when_imported(self, module: str, change: Callable[[ModuleType], None]) -> None:
        """Call `change` with a module when it has been imported; at once where it already is."""
        if module in sys.modules:
            change(sys.modules[module])
            return
        finder = _Finder(module, change)
        sys.meta_path.insert(0, finder)
        self.callback(finder.remove)


class _Finder(MetaPathFinder):
    """Finds one module as the other finders do, and calls a function after its first import."""

    def __init__(self, name: str, change: Callable[[ModuleType], None]) -> None:
        self.name, self.change = name, change
        self._active = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name or self._active:
            return None
        self._active = True  # the search below asks this finder, too
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._active = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self)
        return spec

    def remove(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)


class _Loader(Loader):
    """Executes a module with its own loader and then calls the function of the finder."""

    def __init__(self, loader: Any, finder: _Finder) -> None:
        self._loader, self._finder = loader, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._finder.remove()
        self._loader.exec_module(module)
        self._finder.change(module)
