"""Declaring an option in one place: its default, its check, its valid values, its help.

A settings class is a frozen dataclass with fields from `option`; flags, YAML, documents and errors
are generated from them. Each of the other functions here returns a check and its valid values in
words.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import Any

from ..errors import ConfigError, suggest

_SIZE_UNITS = {
    "B": 1,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
}

Check = Callable[[Any], Any]
"""Takes a raw value (or the text of a flag) and returns the checked one, or raises ValueError."""


def choice(*values: str) -> tuple[Check, str]:
    """One of `values`, in any case."""
    folded = {value.lower(): value for value in values}

    def check(raw: Any) -> str:
        word = raw.lower() if isinstance(raw, str) else None
        if word not in folded:
            raise ValueError(suggest(raw, values) if isinstance(raw, str) else "")
        return folded[word]

    return check, " | ".join(values)


def number(low: float, high: float) -> tuple[Check, str]:
    """A number from `low` to `high`, or its text."""

    def check(raw: Any) -> float:
        if isinstance(raw, bool) or not isinstance(raw, (int, float, str)):
            raise ValueError
        number = float(raw)
        if not low <= number <= high:  # also refuses NaN
            raise ValueError
        return number

    return check, f"a number from {low:g} to {high:g}"


def whole(low: int, high: int, *words: str) -> tuple[Check, str]:
    """An integer from `low` to `high`, or its text; or one of `words`."""

    def check(raw: Any) -> int | str:
        if isinstance(raw, str) and raw.lower() in words:
            return raw.lower()
        if isinstance(raw, bool) or not isinstance(raw, (int, str)):
            raise ValueError
        if not low <= int(raw) <= high:
            raise ValueError
        return int(raw)

    return check, " | ".join([*words, f"a whole number from {low} to {high}"])


def switch() -> tuple[Check, str]:
    """True or false, or one of the words yes, no, on, off."""
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}

    def check(raw: Any) -> bool:
        if isinstance(raw, str) and raw.lower() in words:
            return words[raw.lower()]
        if not isinstance(raw, bool):
            raise ValueError
        return raw

    return check, "true | false"


def auto(check: tuple[Check, str]) -> tuple[Check, str]:
    """`check`, or the word auto."""

    def either(raw: Any) -> Any:
        return "auto" if isinstance(raw, str) and raw.lower() == "auto" else check[0](raw)

    return either, f"auto | {check[1]}"


def text(allowed: str, none: str | None = None) -> tuple[Check, str]:
    """Text; null becomes `none`."""

    def check(raw: Any) -> str | None:
        if raw is None:
            return none
        if not isinstance(raw, (str, Path)) or not str(raw).strip():
            raise ValueError
        return str(raw)

    return check, allowed


def device() -> tuple[Check, str]:
    """The device of a network; None is auto."""

    def check(raw: Any) -> str:
        if raw is None:
            return "auto"
        word = str(raw).lower()  # a torch.device prints as "cuda:0"
        if not re.fullmatch(r"auto|(cpu|mps)(:0)?|cuda(:[0-9]+)?", word):
            raise ValueError
        return word if word.startswith("cuda") else word.partition(":")[0]

    return check, "auto | cpu | cuda | cuda:N | mps"


def memory() -> tuple[Check, str]:
    """Bytes, a size with a unit, or a share of the free memory."""

    def check(raw: Any) -> str | int | float:
        if isinstance(raw, str):
            text = raw.strip().upper()
            if text == "AUTO":
                return "auto"
            digits = text.rstrip("KMGIB ")
            unit = text[len(digits) :].strip()
            if unit:
                raw = int(float(digits) * _SIZE_UNITS.get(unit, 0))
            else:
                raw = float(digits) if "." in digits else int(digits)
        if isinstance(raw, bool) or not isinstance(raw, (int, float)):
            raise ValueError
        if isinstance(raw, float) and not 0 < raw <= 1:
            raise ValueError
        if isinstance(raw, int) and raw < 2**20:
            raise ValueError
        return raw

    forms = ("auto", "bytes (at least 1048576)", 'a size such as "2GiB"')
    share = "a share of the free memory, above 0.0 and at most 1.0"
    return check, " | ".join((*forms, share))


def paths(allowed: str) -> tuple[Check, str]:
    """None, or one path or several, as a tuple."""

    def check(raw: Any) -> tuple[str, ...] | None:
        if raw is None:
            return None
        several = (raw,) if isinstance(raw, (str, Path)) else tuple(raw)
        texts = [isinstance(path, (str, Path)) and bool(str(path).strip()) for path in several]
        if not texts or not all(texts):
            raise ValueError
        return tuple(str(path) for path in several)

    return check, allowed


def point() -> tuple[Check, str]:
    """None, or x and y: two numbers, or the text ``X,Y``."""

    def check(raw: Any) -> tuple[float, float] | None:
        if raw is None:
            return None
        x, y = raw.split(",") if isinstance(raw, str) else raw
        within = number(0, 16384)[0]
        return within(x), within(y)

    return check, "X,Y in pixels, two numbers from 0 to 16384"


def anything() -> tuple[Check, str]:
    """Anything, without a check."""
    return (lambda raw: raw), "an object"


def option(
    default: Any, help: str, check: tuple[Check, str], *, flag: bool = True, repeat: bool = False
) -> Any:
    """A field of a settings class.

    Args:
        default: its default, already checked.
        help: one sentence for ``--help`` and the documents.
        check: the check and its valid values in words.
        flag: whether it is also an option of the command line.
        repeat: whether its flag may be given several times; the check then gets a list.
    """
    return field(
        default=default,
        metadata={
            "help": help,
            "check": check[0],
            "allowed": check[1],
            "flag": flag,
            "repeat": repeat,
        },
    )


def help_text(option: dataclasses.Field[Any]) -> str:
    """The help of a flag: what the option does, its valid values and its default, for argparse."""
    text = f"{option.metadata['help']} Allowed: {option.metadata['allowed']}."
    if option.default is not None:
        text += f" Default: {spelled(option.default)}."
    return text.replace("%", "%%")


def spelled(value: object) -> str:
    """A value as it is written in YAML."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def checked(option: dataclasses.Field[Any], raw: Any, key: str) -> Any:
    """The checked value of `raw` for `option`.

    Args:
        option: a field from `option`.
        raw: the value, or the text of a flag.
        key: the option, as the user wrote it.

    Raises:
        ConfigError: the value is invalid.
    """
    if type(raw).__module__ == "numpy" and getattr(raw, "shape", None) == ():
        raw = raw.item()  # a NumPy scalar
    try:
        return option.metadata["check"](raw)
    except (ValueError, TypeError, OverflowError) as error:
        hint = str(error) if isinstance(error, ValueError) else ""
        hint = f" {hint.strip()}" if "mean" in hint else ""
        raise ConfigError(key, raw, option.metadata["allowed"], hint) from None
