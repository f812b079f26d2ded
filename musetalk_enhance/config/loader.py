"""Settings from YAML files, mappings and flags."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .flags import flag_of
from .schema import checked
from .settings import SECTION, EnhancerSettings, options


def section_of(cfg: Any) -> dict[str, Any] | None:
    """The ``gfpgan:`` section of a host's configuration as a plain dict, None where there is none.

    `cfg`: a mapping, an OmegaConf node, the path of a YAML file, or None.

    Raises:
        ConfigError: the file or the section is not a mapping, or the section is in capitals, which
            a host would take for something else.
    """
    from omegaconf import OmegaConf

    if cfg is None:
        return None
    with _read(cfg) as node:
        if SECTION not in node:
            other = next((key for key in node if str(key).lower() == SECTION), None)
            if other is not None:
                raise ConfigError("section", f"{other}:", f"{SECTION}: in lower case")
            return None
        section = node[SECTION]
        if OmegaConf.is_config(section):  # of the host's other keys nothing is resolved
            section = OmegaConf.to_container(section, resolve=True)
    if section is None:
        return {}
    if not isinstance(section, dict):
        raise ConfigError(SECTION, section, "a section of options, such as {enabled: true}")
    return {str(key): value for key, value in section.items()}


def plain(cfg: Any) -> dict[str, Any]:
    """`cfg` (mapping, OmegaConf node, YAML path or None) as a plain dict, interpolated."""
    from omegaconf import OmegaConf

    if cfg is None:
        return {}
    with _read(cfg) as node:
        tree = OmegaConf.to_container(node, resolve=True)
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


@contextmanager
def _read(cfg: Any) -> Iterator[Any]:
    """`cfg` as an OmegaConf mapping; what goes wrong with it inside becomes a ConfigError."""
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    where = str(cfg) if isinstance(cfg, (str, Path)) else "configuration"
    try:
        node = OmegaConf.load(cfg) if isinstance(cfg, (str, Path)) else OmegaConf.create(cfg)
        if not isinstance(node, DictConfig):
            raise ConfigError(where, OmegaConf.to_container(node), "a mapping of options")
        yield node
    except ConfigError:
        raise
    except (OmegaConfBaseException, OSError, ValueError, RecursionError) as error:
        raise ConfigError(where, str(error), "a readable YAML mapping of options") from error
    except Exception as error:  # yaml's own errors, without importing yaml
        if type(error).__module__.startswith("yaml"):
            raise ConfigError(where, str(error), "valid YAML") from error
        raise


def alone(cfg: Any) -> dict[str, Any]:
    """`cfg` as the section itself, without a host's tree around it.

    Raises:
        ConfigError: it looks like a host's tree: sections, and not one option.
    """
    section = plain(cfg)
    names = {option.name for option in options()}
    if not names & set(section) and any(
        isinstance(value, (dict, list)) for value in section.values()
    ):
        allowed = f"a configuration with a section {SECTION}:, or the options themselves"
        raise ConfigError("configuration", ", ".join(section), allowed)
    return section


def merge(
    section: Mapping[str, Any] | None, flags: Mapping[str, Any] | None = None
) -> EnhancerSettings:
    """Settings from defaults, a YAML section and flags, the later ones winning.

    Raises:
        ConfigError: an unknown key or an impossible value, named as the user wrote it.
    """
    from omegaconf import OmegaConf

    known_options = {option.name: option for option in options()}
    layers: list[dict[str, Any]] = []
    for layer, prefix in ((section or {}, f"{SECTION}."), (flags or {}, "")):
        values = {}
        for name, value in layer.items():
            if name not in known_options:
                raise ConfigError.unknown(f"{prefix}{name}", value, known_options)
            key = f"{prefix}{name}" if prefix else flag_of(name)
            values[name] = checked(known_options[name], value, key)
        layers.append(values)
    objects = {
        name: layer.pop(name) for layer in layers for name in ("bg_upsampler",) if name in layer
    }
    merged = OmegaConf.to_container(OmegaConf.merge(*(OmegaConf.create(layer) for layer in layers)))
    assert isinstance(merged, dict)
    return EnhancerSettings(**{str(k): v for k, v in merged.items()}, **objects)
