"""The parser of every command: short errors, examples in the help, switches that take no paths."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn


def path_type(text: str) -> Path:
    """The type of an argument that is a path.

    An empty one, such as that of a shell variable that is not set, is not the current folder.
    """
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"invalid path {text!r}; expected a name")
    return Path(text)


def folder_type(text: str) -> Path:
    """The type of an argument that is a folder, which need not exist."""
    result = path_type(text)
    if result.exists() and not result.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a folder")
    return result


class CommandParser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` whose errors are three lines: what, usage, where help is.

    Args:
        examples: command lines for the end of the help, one each.
        options: of `argparse.ArgumentParser`.
    """

    def __init__(self, *, examples: Sequence[str] = (), **options: Any) -> None:
        options.setdefault("formatter_class", _Formatter)
        if examples:
            options["epilog"] = "\n  ".join(("examples:", *examples))
        super().__init__(allow_abbrev=False, **options)

    def shorten_usage(self) -> None:
        """Show only the arguments that are required in the usage."""
        words = [self.prog]
        for action in self._actions:
            name = str(action.metavar or action.dest)
            if action.option_strings:
                words += [action.option_strings[0], name] if action.required else []
            else:
                words.append({"?": f"[{name}]", "+": f"{name} ..."}.get(str(action.nargs), name))
        self.usage = " ".join((*words, "[options]"))

    def error(self, message: str) -> NoReturn:
        """Print the three lines and exit with code 2."""
        if self.usage is None:
            self.shorten_usage()
        print(f"{self.prog}: {message}", file=sys.stderr)
        print(self.format_usage().strip(), file=sys.stderr)
        self.exit(2, f"`{self.prog} --help` shows all options\n")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse's, but a `Switch` takes the next argument only if that is a value of it."""
        words = list(sys.argv[1:] if args is None else args)
        end = words.index("--") if "--" in words else len(words)
        for index, word in enumerate(words[:end]):
            action = self._option_string_actions.get(word)
            if isinstance(action, Switch):
                words[index] = action.joined(word, words[index + 1] if index + 1 < end else "")
        return super().parse_known_args(words, namespace)


class Switch(argparse.Action):
    """A switch: ``--guard``, ``--guard true``, ``--guard=false`` or ``--no-guard``.

    Args:
        check: raises ValueError for a word that is no value of the option.
    """

    def __init__(
        self,
        option_strings: Sequence[str],
        dest: str,
        check: Callable[[str], Any],
        **common: Any,
    ) -> None:
        self.check = check
        names = [*option_strings, *(f"--no-{name[2:]}" for name in option_strings)]
        super().__init__(names, dest, nargs="?", **common)

    def joined(self, word: str, following: str) -> str:
        """The flag `word` with its value, unless `following` is the value."""
        if word != self.option_strings[0]:
            return f"{self.option_strings[0]}=false"
        try:
            self.check(following)
        except ValueError:
            return f"{word}=true"
        return word

    def __call__(
        self, parser: Any, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        """Store the value; ``--no-guard=X`` is an error."""
        negated = bool(option_string and option_string.startswith("--no-"))
        if negated and values is not None:
            parser.error(f"{option_string} takes no value, got {values!r}")
        setattr(namespace, self.dest, "false" if negated else values or "true")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Shows that the ``--no-`` form of a switch takes no value."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, Switch):
            return f"{action.option_strings[0]} [{action.metavar}], {action.option_strings[1]}"
        return super()._format_action_invocation(action)


__all__ = ["CommandParser", "Switch", "folder_type", "path_type"]
