"""A registry of named items: each name is added once, listed by pattern, and never overwritten."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Generic, TypeVar

from ..errors import ConfigError, suggest

T = TypeVar("T")


class Registry(Generic[T]):
    """Items of one kind by name.

    Names are case-insensitive. `get` accepts the aliases of an item; `names` does not list them.

    >>> colors = Registry[int]("color")
    >>> colors.add("red", 1, aliases=("crimson",))
    >>> colors.get("Crimson"), colors.names("r*")
    (1, ['red'])
    """

    def __init__(self, kind: str) -> None:
        """`kind`: what the items are, in one word, for error messages."""
        self.kind = kind
        self._items: dict[str, T] = {}
        self._canonical: dict[str, str] = {}

    def add(self, name: str, item: T, aliases: tuple[str, ...] = ()) -> None:
        """Add `item` with all its aliases, or nothing at all.

        Raises:
            ValueError: `name` or an alias is already registered.
        """
        keys = {key.lower() for key in (name, *aliases)}
        duplicates = sorted(keys & self._canonical.keys())
        if duplicates:
            raise ValueError(f"{self.kind} {duplicates[0]!r} is already registered")
        self._items[name] = item
        self._canonical.update(dict.fromkeys(keys, name))

    def add_all(self, items: Mapping[str, T]) -> None:
        """Add every pair of `items`."""
        for name, item in items.items():
            self.add(name, item)

    def canonical(self, name: str) -> str | None:
        """The listed name that `name` (any case, or an alias) refers to, None without one."""
        return self._canonical.get(name.lower())

    def get(self, name: str) -> T:
        """The item called `name`.

        Raises:
            ConfigError: there is none; the message lists the names and suggests the closest one.
        """
        key = self.canonical(name)
        if key is None:
            allowed = f"one of {', '.join(self.names())}"
            raise ConfigError(self.kind, name, allowed, suggest(name, self._canonical))
        return self._items[key]

    def names(self, pattern: str = "*") -> list[str]:
        """The names that match the shell `pattern`, case-insensitive, in the order of addition."""
        return [name for name in self._items if fnmatchcase(name.lower(), pattern.lower())]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.canonical(name) is not None

    def __iter__(self) -> Iterator[T]:
        return iter(self._items.values())

    def __len__(self) -> int:
        return len(self._items)
