"""Write configs/musetalk.yaml and docs/options.md from the schema of options; a test keeps them true.

python scripts/make_docs.py
"""

from __future__ import annotations

import textwrap
from pathlib import Path

from musetalk_enhance.settings import SECTION, flag_of, options

ROOT = Path(__file__).resolve().parent.parent
CONFIG_HEAD = """\
# A MuseTalk task file with face restoration switched on. Tasks stay as MuseTalk knows them; the section
# `gfpgan:` is taken out before MuseTalk sees the file.
#
#   musetalk-enhance run scripts/inference.py --inference_config configs/musetalk.yaml [its own arguments]
#
# Flags (--enable_gfpgan, --gfpgan_<option>) win over this file, this file over the defaults shown.

task_0:
  video_path: "data/video/yongen.mp4"
  audio_path: "data/audio/yongen.wav"

gfpgan:
  enabled: true
"""


def _default(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def config_yaml() -> str:
    """The text of configs/musetalk.yaml: every option with its help, commented out at its default."""
    parts = [CONFIG_HEAD]
    for option in options():
        if option.name == "enabled" or not option.metadata["flag"]:
            continue
        text = f"{option.metadata['help']} One of: {option.metadata['allowed']}."
        parts.append("\n" + textwrap.fill(text, 106, initial_indent="  # ", subsequent_indent="  # ") + "\n")
        parts.append(f"  # {option.name}: {_default(option.default)}\n")
    return "".join(parts)


def options_md() -> str:
    """The text of docs/options.md: one table of all options."""
    lines = [
        "# Options",
        "",
        f"One schema for the constructor `GFPGANEnhancer(...)`, the YAML section `{SECTION}:` and the flags; flags",
        "win over YAML, YAML over defaults. An unknown key or an impossible value is an error that names the key,",
        "the value and what is allowed.",
        "",
        "| option | flag | default | allowed | what it does |",
        "|---|---|---|---|---|",
    ]
    for option in options():
        flag = f"`{flag_of(option.name)}`" if option.metadata["flag"] else "Python only"
        allowed = option.metadata["allowed"].replace("|", "\\|")
        meaning = option.metadata["help"].replace("|", "\\|")
        lines.append(f"| `{option.name}` | {flag} | {_default(option.default)} | {allowed} | {meaning} |")
    return "\n".join(lines) + "\n"


FILES = {ROOT / "configs" / "musetalk.yaml": config_yaml, ROOT / "docs" / "options.md": options_md}

if __name__ == "__main__":
    for path, text in FILES.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text(), encoding="utf-8")
        print(path.relative_to(ROOT))
