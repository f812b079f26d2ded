"""Write what is generated in the documentation; a test keeps it current.

configs/musetalk.yaml and docs/options.md come from the schema of options, the map of the packages
in CONTRIBUTING.md from their docstrings and the layers in tests/test_layers.py.

    python scripts/make_docs.py
"""

from __future__ import annotations

import ast
import dataclasses
import re
import textwrap
from pathlib import Path
from typing import Any

from musetalk_enhance.cli.job import flag
from musetalk_enhance.config.flags import flag_of
from musetalk_enhance.config.schema import spelled
from musetalk_enhance.config.settings import SECTION, options
from musetalk_enhance.jobs import ImageSettings, VideoSettings
from musetalk_enhance.onnx_pipeline import PipelineOptions
from musetalk_enhance.serve import ServeSettings

ROOT = Path(__file__).resolve().parent.parent
JOBS = (
    (ImageSettings, "images", "restore_images"),
    (VideoSettings, "video", "restore_video"),
    (PipelineOptions, "onnx", "onnx_pipeline.Pipeline"),
    (ServeSettings, "serve", "serve.create_app"),
)
CONFIG_HEAD = """\
# A MuseTalk task file with face restoration switched on. Tasks stay as MuseTalk knows them; the
# section `gfpgan:` is taken out before MuseTalk sees the file.
#
#   musetalk-enhance run scripts/inference.py --inference_config configs/musetalk.yaml [arguments]
#
# Flags (--enable_gfpgan, --gfpgan_<option>) win over this file, this file over the defaults shown.

task_0:
  video_path: "data/video/yongen.mp4"
  audio_path: "data/audio/yongen.wav"

gfpgan:
  enabled: true
"""

CHOSEN = {
    "region": (
        "lower",
        "Measured: 1.47 times quicker with GFPGAN on a CPU; what MuseTalk keeps is equal to 5e-6.",
    ),
    "align": (
        "none",
        "Measured with lite on five clips: mouth and chin 42.6 dB with none, 39.9 dB with ffhq.",
    ),
    "stability": (
        "1",
        "Measured with lite on fifteen clips: what changes between frames beyond motion falls "
        "from 1.13-1.26 times the soft input's to 1.03-1.07 after a resize to 96 px (the sharp "
        "original's own: 0.98-1.43), and from 1.07-1.19 to 1.03-1.05 through a latent decoder; 79 "
        "to 105 % of the gain in sharpness stays (one clip through the decoder: 68 %), and a mouth "
        "that moves opens as before (correlation 0.992-1.000, no lag).",
    ),
    "color_match": ("true", "Measured: mean color within 0.1 of 255."),
    "guard": (
        "true",
        "Measured: acts on lite on three of fifteen clips through a latent decoder, where eyes "
        "that it had blurred move; the sharp original keeps its strength on faces of 96 px and "
        "of a latent decoder (blend 0.35); planted failures are held back (tests).",
    ),
    "sharpness_gate": (
        "false",
        "Measured: what a latent decoder made has no sharpness of its own to protect.",
    ),
}
"""What the configuration for MuseTalk says in so many words, and the figures that speak for it."""


def config_yaml() -> str:
    """The text of configs/musetalk.yaml: every option with its help; commented out at its default,
    or chosen."""
    parts = [CONFIG_HEAD]
    for option in options():
        if option.name == "enabled" or not option.metadata["flag"]:
            continue
        text = f"{option.metadata['help']} Allowed: {option.metadata['allowed']}."
        value, why = CHOSEN.get(option.name, ("", ""))
        parts.append(
            "\n"
            + textwrap.fill(
                f"{text} {why}".strip(), 106, initial_indent="  # ", subsequent_indent="  # "
            )
        )
        parts.append(
            f"\n  {option.name}: {value}\n"
            if value
            else f"\n  # {option.name}: {spelled(option.default)}\n"
        )
    return "".join(parts)


def options_md() -> str:
    """The text of docs/options.md: a table for each schema."""
    lines = [
        "# Options",
        "",
        f"One schema for the constructor `GFPGANEnhancer(...)`, the YAML section `{SECTION}:` "
        "and the flags; flags",
        "win over YAML, YAML over defaults. An unknown key or an impossible value is an error "
        "that names the key,",
        "the value and what is allowed.",
        "",
        "| option | flag | default | allowed | what it does |",
        "|---|---|---|---|---|",
    ]
    for option in options():
        lines.append(
            _row(option, f"`{flag_of(option.name)}`" if option.metadata["flag"] else "Python only")
        )
    for settings, command, function in JOBS:
        lines += [
            "",
            f"## `musetalk-enhance {command}`",
            "",
            f"`{settings.__name__}` in Python, for `{function}`.",
            "",
            "| option | flag | default | allowed | what it does |",
            "|---|---|---|---|---|",
        ]
        lines += [
            _row(option, f"`{flag(option.name)}`")
            for option in dataclasses.fields(settings)
            if option.metadata["flag"]
        ]
    return "\n".join(lines) + "\n"


def _row(option: dataclasses.Field[Any], flag_text: str) -> str:
    allowed = option.metadata["allowed"].replace("|", "\\|")
    meaning = option.metadata["help"].replace("|", "\\|")
    return f"| `{option.name}` | {flag_text} | {spelled(option.default)} | {allowed} | {meaning} |"


def layers() -> list[set[str]]:
    """The layers in tests/test_layers.py, the lowest first."""
    tree = ast.parse((ROOT / "tests" / "test_layers.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LAYERS":
            names: list[set[str]] = ast.literal_eval(node.value)
            return names
    raise ValueError("tests/test_layers.py assigns no LAYERS")


def package_map() -> str:
    """Every package and module of the first level with its summary; imports only go down."""
    rows = []
    for names in reversed(layers()):
        for name in sorted(names):
            package = ROOT / "musetalk_enhance" / name
            path = package / "__init__.py" if package.is_dir() else package.with_suffix(".py")
            if not name.startswith("_") and path.exists():
                docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
                summary = " ".join(docstring.split("\n\n")[0].split())
                row = f"{name}/" if package.is_dir() else path.name
                rows.append(textwrap.fill(f"{row:<13} {summary}", 100, subsequent_indent=" " * 14))
    return "\n".join(rows)


def contributing_md() -> str:
    """The text of CONTRIBUTING.md with the current map."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    pattern = r"(## Where things live\n\n```\n).*?(\n```\n)"
    return re.sub(pattern, lambda match: match[1] + package_map() + match[2], text, flags=re.S)


FILES = {
    ROOT / "configs" / "musetalk.yaml": config_yaml,
    ROOT / "docs" / "options.md": options_md,
    ROOT / "CONTRIBUTING.md": contributing_md,
}

if __name__ == "__main__":
    for path, text in FILES.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text(), encoding="utf-8")
        print(path.relative_to(ROOT))
