"""`musetalk-enhance images` under the name of the usual face-restoration script.

    python scripts/face_restoration.py --input-dir photos --output-dir out \\
        --model codeformer --fidelity 0.7 --upscale 2 --device cuda --save-comparison

The folder may stand alone (``face_restoration.py photos --output-dir out``) or after
``--input-dir``. Every option is that of ``musetalk-enhance images`` (``--help`` shows them), with
hyphens or underscores: ``--output-dir`` and ``--output_dir``. The exit codes are its own too: 0
fine, 2 a wrong call or a missing weight, 3 some pictures could not be read or restored. Runs from a
checkout, installed or not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# the library of this checkout, not another one's
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def hyphened(words: Sequence[str]) -> list[str]:
    """`words` with ``--output_dir`` as ``--output-dir``; values, and what follows ``--``, stay as
    they are."""
    words = list(words)
    end = words.index("--") if "--" in words else len(words)
    return [_hyphened(word) for word in words[:end]] + words[end:]


def _hyphened(word: str) -> str:
    name, equals, value = word.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}" if word.startswith("--") else word


def images_words(words: Sequence[str]) -> list[str]:
    """The same call in the words of ``musetalk-enhance``."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--input-dir", action="append", default=[])
    args, rest = parser.parse_known_args(hyphened(words))
    return ["images", *args.input_dir, *rest]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    from musetalk_enhance.cli import main as musetalk_enhance

    words = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(words):
        print(__doc__)
    return musetalk_enhance(images_words(words))


if __name__ == "__main__":
    sys.exit(main())
