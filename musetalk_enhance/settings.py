"""The one schema for options: every name, default, check and help text stands here once.

`EnhancerSettings` is what the constructor, the YAML section ``gfpgan:`` and the ``--gfpgan_*`` flags all
become. OmegaConf merges them (flags win over YAML, YAML over defaults); `__post_init__` checks every value.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import ConfigError, suggest

SECTION = "gfpgan"
"""Name of the YAML section and prefix of the flags."""

_SIZE_UNITS = {"B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}

Check = Callable[[Any], Any]
"""Takes a raw value (also the text of a flag), returns the checked one, raises ValueError."""


def _choice(*values: str) -> tuple[Check, str]:
    folded = {value.lower(): value for value in values}

    def check(raw: Any) -> str:
        word = raw.lower() if isinstance(raw, str) else None
        if word not in folded:
            raise ValueError(suggest(raw, values) if isinstance(raw, str) else "")
        return folded[word]

    return check, " | ".join(values)


def _number(low: float, high: float) -> tuple[Check, str]:
    def check(raw: Any) -> float:
        if isinstance(raw, bool) or not isinstance(raw, (int, float, str)):
            raise ValueError
        number = float(raw)
        if not low <= number <= high:  # also refuses NaN
            raise ValueError
        return number

    return check, f"a number from {low:g} to {high:g}"


def _whole(low: int, high: int, *words: str) -> tuple[Check, str]:
    def check(raw: Any) -> int | str:
        if isinstance(raw, str) and raw.lower() in words:
            return raw.lower()
        if isinstance(raw, bool) or not isinstance(raw, (int, str)) or not low <= int(raw) <= high:
            raise ValueError
        return int(raw)

    return check, " | ".join([*words, f"a whole number from {low} to {high}"])


def _switch() -> tuple[Check, str]:
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}

    def check(raw: Any) -> bool:
        if isinstance(raw, str) and raw.lower() in words:
            return words[raw.lower()]
        if not isinstance(raw, bool):
            raise ValueError
        return raw

    return check, "true | false"


def _auto(check: tuple[Check, str]) -> tuple[Check, str]:
    """`check`, or the word auto."""

    def either(raw: Any) -> Any:
        return "auto" if isinstance(raw, str) and raw.lower() == "auto" else check[0](raw)

    return either, f"auto | {check[1]}"


def _text(allowed: str, none: str | None = None) -> tuple[Check, str]:
    """Text; null means `none`."""

    def check(raw: Any) -> str | None:
        if raw is None:
            return none
        if not isinstance(raw, (str, Path)) or not str(raw).strip():
            raise ValueError
        return str(raw)

    return check, allowed


def _device() -> tuple[Check, str]:
    def check(raw: Any) -> str:
        if raw is None:
            return "auto"
        word = str(raw).lower()  # a torch.device prints as "cuda:0"
        if not re.fullmatch(r"auto|(cpu|mps)(:0)?|cuda(:[0-9]+)?", word):
            raise ValueError
        return word if word.startswith("cuda") else word.partition(":")[0]

    return check, "auto | cpu | cuda | cuda:N | mps"


def _memory() -> tuple[Check, str]:
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

    return (
        check,
        'auto | bytes (1048576 at least) | a size such as "2GiB" | a share of what is free, over 0.0 up to 1.0',
    )


def _anything() -> tuple[Check, str]:
    return (lambda raw: raw), "an object"


def _option(default: Any, help: str, check: tuple[Check, str], *, flag: bool = True) -> Any:
    return field(
        default=default,
        metadata={"help": help, "check": check[0], "allowed": check[1], "flag": flag},
    )


@dataclass(frozen=True)
class EnhancerSettings:
    """All options of an enhancer. Immutable; every value has been checked.

    Raises:
        ConfigError: a value is impossible, or two options contradict each other.
    """

    enabled: bool = _option(False, "Restore the faces; without it the host runs as if we were not there.", _switch())
    model: str = _option(
        "auto",
        "Which restorer: a name (`musetalk-enhance models` lists them) or the path of a checkpoint. "
        "auto: the best GFPGAN whose weight is in the cache, otherwise the embedded lite.",
        _text("auto | the name of a restorer | the path of a .safetensors or .pth file", none="auto"),
    )
    model_path: str | None = _option(
        None,
        "Path of a GFPGAN, RestoreFormer or CodeFormer checkpoint; its network is told by arch.",
        _text("a path"),
    )
    upscale: float = _option(
        2.0,
        "Size of the faces that enhance_face and its kin return, as a multiple of the input's "
        "(and of enhancer(frames) with output_size: upscale).",
        _number(0.25, 8),
    )
    arch: str = _option(
        "clean",
        "Network of the checkpoint at model_path.",
        _choice("clean", "bilinear", "original", "RestoreFormer", "CodeFormer"),
    )
    channel_multiplier: int = _option(
        2, "Width of the StyleGAN2 decoder of the checkpoint at model_path.", _whole(1, 2)
    )
    bg_upsampler: Any = _option(
        None, "Background upsampler handed to GFPGANer; engine: official only.", _anything(), flag=False
    )
    device: str = _option("auto", "Where the network runs.", _device())
    engine: str = _option(
        "native",
        "native: our batched run with fixed noise. official: gfpgan.GFPGANer, face by face, as it comes.",
        _choice("native", "official"),
    )
    backend: str = _option(
        "auto",
        "What executes the network. auto: measured once per machine and model, then remembered.",
        _choice("auto", "torch", "onnx", "openvino", "ncnn"),
    )
    dtype: str = _option(
        "auto",
        "Arithmetic of the network. bf16 and fp16 are checked against fp32 on the first face and given up where "
        "they fail. auto: the fastest that passes.",
        _choice("auto", "fp32", "bf16", "fp16"),
    )
    provider: str = _option(
        "auto",
        "Execution provider of backend: onnx. auto: cuda on a GPU, cpu elsewhere.",
        _choice("auto", "cpu", "cuda", "tensorrt"),
    )
    allow_cpu: bool = _option(
        False, "Run on the CPU, with a warning, where the device or provider asked for is not there.", _switch()
    )
    color: str = _option("bgr", "Channel order of the frames, in and out.", _choice("bgr", "rgb"))
    value_range: str = _option(
        "auto",
        "Value range of float frames, in and out (uint8 is always 0..255). auto: told from the first frames.",
        _choice("auto", "0..1", "0..255", "-1..1"),
    )
    output_size: str | int = _option(
        "same",
        "Side of the faces handed back: same as the input, native (what the network made), upscale "
        "(upscale times the input), or a number of pixels.",
        _whole(16, 4096, "same", "native", "upscale"),
    )
    strength: float = _option(1.0, "Blend of the restored face over the input; 0 changes nothing.", _number(0, 1))
    fidelity: float = _option(
        0.5,
        "CodeFormer's w: 0 paints the best face, 1 keeps closest to the input. Other models have no such thing.",
        _number(0, 1),
    )
    region: str = _option(
        "full",
        "Which part of the face may change. lower: from just above the centre of the frame down, which is all "
        "that MuseTalk keeps; rows that cannot reach it are not computed. mouth: lips and chin only. The edge is "
        "soft; outside the host's pixels come back bit for bit.",
        _choice("full", "lower", "mouth"),
    )
    align: str = _option(
        "none",
        "none: the network sees the host's crop as it is. ffhq: the face is turned and scaled as in the pictures "
        "that GFPGAN and CodeFormer were trained on, and back, by its landmarks.",
        _choice("none", "ffhq"),
    )
    landmarks: str = _option(
        "embedded",
        "Who finds the landmarks for align: ffhq and region: mouth where the host gives none. embedded: the small "
        "network that the guard uses. yunet: OpenCV's detector, whose weight must be in the cache.",
        _choice("embedded", "yunet"),
    )
    stability: str | float = _option(
        "auto",
        "How firmly restored detail is held still where the host's picture is still; 0 leaves every frame to "
        "itself. auto: 1 with engine: native, 0 with official.",
        _auto(_number(0, 1)),
    )
    color_match: str | bool = _option(
        "auto",
        "Lock the low frequencies of the restored face to the input's: no tint, no step at the seam. auto: true "
        "with engine: native, false with official.",
        _auto(_switch()),
    )
    guard: str | bool = _option(
        "auto",
        "Lower the strength of a frame whose mouth, eyes or coarse structure the restorer has moved. auto: true "
        "with engine: native, false with official.",
        _auto(_switch()),
    )
    sharpness_gate: str | bool = _option(
        "auto",
        "Leave a face alone that is as sharp as a photograph already. auto: true with engine: native, false with "
        "official.",
        _auto(_switch()),
    )
    occluder: str | None = _option(
        None,
        "Path of an ONNX file that finds what covers a face (dfl_xseg.onnx); it is never painted over.",
        _text("a path"),
    )
    mode: str = _option(
        "batch",
        "batch: throughput. memory: the batch is planned for memory_budget and halved when memory runs out.",
        _choice("batch", "memory"),
    )
    batch_size: str | int = _option("auto", "Faces in one run of the network.", _whole(1, 1024, "auto"))
    memory_budget: str | int | float = _option(
        "auto",
        "Memory that restoring may take in mode: memory, beyond the loaded network; kept by measuring. "
        "auto: half of what is free.",
        _memory(),
    )
    cpu_fallback: bool = _option(
        True, "In mode: memory, finish on the CPU when not even one face fits on the GPU.", _switch()
    )
    on_error: str = _option(
        "passthrough",
        "A bad frame: passthrough hands it back as it came, counted; raise stops with a typed error.",
        _choice("passthrough", "raise"),
    )
    download: bool = _option(False, "Fetch a missing weight when the model is loaded.", _switch())
    trust_unpinned: bool = _option(
        False, "Open a .pth file that is not in the table of published weights.", _switch()
    )

    def __post_init__(self) -> None:
        for option in options():
            raw = getattr(self, option.name)
            object.__setattr__(self, option.name, checked(option, raw, option.name))
        if self.model_path is not None and self.model != "auto":
            raise ConfigError("model_path", self.model_path, f"not together with model: {self.model}; give one")
        if self.landmarks != "embedded" and self.align == "none" and self.region != "mouth":
            raise ConfigError("landmarks", self.landmarks, "embedded, unless align: ffhq or region: mouth needs any")
        if self.engine == "official":
            self._check_official()
        elif self.bg_upsampler is not None:
            raise ConfigError(
                "bg_upsampler", self.bg_upsampler, "None with engine: native (a face crop has no background)"
            )

    @property
    def stability_amount(self) -> float:
        """`stability` as a number."""
        return float(self.engine == "native") if self.stability == "auto" else float(self.stability)

    @property
    def color_match_on(self) -> bool:
        """`color_match` as a decision."""
        return self._decided(self.color_match)

    @property
    def guard_on(self) -> bool:
        """`guard` as a decision."""
        return self._decided(self.guard)

    @property
    def sharpness_gate_on(self) -> bool:
        """`sharpness_gate` as a decision."""
        return self._decided(self.sharpness_gate)

    @property
    def computed_region(self) -> str:
        """The region the network must compute: all of it where what it makes is turned back afterwards."""
        return "full" if self.align == "ffhq" else self.region

    def _decided(self, value: str | bool) -> bool:
        return self.engine == "native" if value == "auto" else bool(value)

    def _check_official(self) -> None:
        if self.align == "ffhq":
            raise ConfigError("align", "ffhq", "none with engine: official (GFPGANer aligns by itself)")
        if self.model == "lite":
            raise ConfigError("engine", "official", "native with model: lite (GFPGANer has no such network)")
        if self.backend not in ("auto", "torch"):
            raise ConfigError("backend", self.backend, "auto | torch with engine: official")

    def replace(self, **changes: Any) -> EnhancerSettings:
        """A copy with `changes`, checked anew."""
        return dataclasses.replace(self, **changes)


def options() -> tuple[dataclasses.Field[Any], ...]:
    """The options as dataclass fields, with ``help``, ``check``, ``allowed`` and ``flag`` in their metadata."""
    return dataclasses.fields(EnhancerSettings)


def checked(option: dataclasses.Field[Any], raw: Any, key: str) -> Any:
    """The checked value of `raw` for `option`.

    Raises:
        ConfigError: naming `key`, as the user wrote it.
    """
    if type(raw).__module__ == "numpy" and getattr(raw, "shape", None) == ():
        raw = raw.item()  # a number of numpy's is a number
    try:
        return option.metadata["check"](raw)
    except (ValueError, TypeError, OverflowError) as error:
        hint = str(error) if isinstance(error, ValueError) else ""
        hint = f" {hint.strip()}" if "mean" in hint else ""
        raise ConfigError(key, raw, option.metadata["allowed"], hint) from None


def flag_of(name: str) -> str:
    """The command-line flag of an option: ``--enable_gfpgan`` for `enabled`, ``--gfpgan_<name>`` otherwise."""
    return f"--enable_{SECTION}" if name == "enabled" else f"--{SECTION}_{name}"


def add_gfpgan_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add ``--enable_gfpgan`` and a ``--gfpgan_<option>`` for every option to a host's own parser.

    A flag that is not given leaves no trace in the namespace, so that `GFPGANEnhancer.from_args` can let
    flags win over YAML and YAML over defaults. Returns `parser`.
    """
    group = parser.add_argument_group("face restoration (musetalk_enhance)")
    for option in options():
        if not option.metadata["flag"]:
            continue
        default = "" if option.default is None else f" Default: {str(option.default).lower()}."
        text = f"{option.metadata['help']} One of: {option.metadata['allowed']}.{default}".replace("%", "%%")
        common: dict[str, Any] = {"dest": _dest(option.name), "default": argparse.SUPPRESS, "help": text}
        if isinstance(option.default, bool):
            group.add_argument(flag_of(option.name), action=argparse.BooleanOptionalAction, **common)
        else:
            group.add_argument(flag_of(option.name), metavar=option.name.upper(), **common)
    return parser


def _dest(name: str) -> str:
    return flag_of(name).lstrip("-")


def given_flags(args: argparse.Namespace) -> dict[str, Any]:
    """The options that were given as flags, by option name."""
    found = {option.name: getattr(args, _dest(option.name), None) for option in options()}
    return {name: value for name, value in found.items() if value is not None}


def section_of(cfg: Any) -> dict[str, Any] | None:
    """The ``gfpgan:`` section of a host's configuration as a plain dict, None where there is none.

    `cfg`: a mapping, an OmegaConf node, the path of a YAML file, or None.

    Raises:
        ConfigError: the file or the section is not a mapping.
    """
    from omegaconf import OmegaConf

    if cfg is None:
        return None
    with _read(cfg) as node:
        if SECTION not in node:
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
    """`cfg` (mapping, OmegaConf node, path of a YAML file, None) as a plain dict, interpolations resolved."""
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
    except (OmegaConfBaseException, OSError, ValueError) as error:
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
    known = {option.name for option in options()}
    if not known & set(section) and any(isinstance(value, (dict, list)) for value in section.values()):
        allowed = f"a configuration with a section {SECTION}:, or the options themselves"
        raise ConfigError("configuration", ", ".join(section), allowed)
    return section


def merge(section: Mapping[str, Any] | None, flags: Mapping[str, Any] | None = None) -> EnhancerSettings:
    """Settings from defaults, a YAML section and flags, the later ones winning.

    Raises:
        ConfigError: an unknown key or an impossible value, named as the user wrote it.
    """
    from omegaconf import OmegaConf

    known = {option.name: option for option in options()}
    layers: list[dict[str, Any]] = []
    for layer, prefix in ((section or {}, f"{SECTION}."), (flags or {}, "")):
        values = {}
        for name, value in layer.items():
            if name not in known:
                raise ConfigError.unknown(f"{prefix}{name}", value, known)
            key = f"{prefix}{name}" if prefix else flag_of(name)
            values[name] = checked(known[name], value, key)
        layers.append(values)
    objects = {name: layer.pop(name) for layer in layers for name in ("bg_upsampler",) if name in layer}
    merged = OmegaConf.to_container(OmegaConf.merge(*(OmegaConf.create(layer) for layer in layers)))
    assert isinstance(merged, dict)
    return EnhancerSettings(**{str(k): v for k, v in merged.items()}, **objects)
