"""A registry that is an object: named things, added once, listed by pattern, never overwritten."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Generic, TypeVar

from .errors import ConfigError, suggest

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to things of one kind.

    Names are matched without regard to case. `aliases` of a thing are found by `get` but not listed.

    >>> colours = Registry[int]("colour")
    >>> colours.add("red", 1, aliases=("crimson",))
    >>> colours.get("Crimson"), colours.names("r*")
    (1, ['red'])
    """

    def __init__(self, kind: str) -> None:
        """`kind`: what the things are, in one word, for the error texts."""
        self.kind = kind
        self._items: dict[str, T] = {}
        self._canonical: dict[str, str] = {}

    def add(self, name: str, item: T, aliases: tuple[str, ...] = ()) -> None:
        """Add `item`, wholly or not at all.

        Raises:
            ValueError: `name` or an alias is taken.
        """
        keys = {key.lower() for key in (name, *aliases)}
        taken = sorted(keys & self._canonical.keys())
        if taken:
            raise ValueError(f"{self.kind} {taken[0]!r} is registered already")
        self._items[name] = item
        self._canonical.update(dict.fromkeys(keys, name))

    def add_all(self, items: Mapping[str, T]) -> None:
        """Add every pair of `items`."""
        for name, item in items.items():
            self.add(name, item)

    def canonical(self, name: str) -> str | None:
        """The listed name behind `name` (any case, or an alias); None if there is none."""
        return self._canonical.get(name.lower())

    def get(self, name: str) -> T:
        """The thing called `name`.

        Raises:
            ConfigError: there is none; the text lists the names and suggests the nearest.
        """
        key = self.canonical(name)
        if key is None:
            raise ConfigError(self.kind, name, ", ".join(self.names()), suggest(name, self._canonical))
        return self._items[key]

    def names(self, pattern: str = "*") -> list[str]:
        """The names that match the shell `pattern`, without regard to case, in the order of adding."""
        return [name for name in self._items if fnmatchcase(name.lower(), pattern.lower())]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.canonical(name) is not None

    def __iter__(self) -> Iterator[T]:
        return iter(self._items.values())

    def __len__(self) -> int:
        return len(self._items)
