"""`musetalk-enhance weights fetch` under the name of the usual download script.

    python scripts/download_gfpgan_models.py     # GFPGANv1.4, and YuNet, which detects faces
    python scripts/download_gfpgan_models.py --models codeformer gfpgan-1.4 YuNet
    python scripts/download_gfpgan_models.py --all --model-dir /data/weights \\
        --mirror https://host/folder
    python scripts/download_gfpgan_models.py --list

Names are those that ``--model`` takes and those of the list, in any case. Downloads resume, and are
checked against pinned hashes. Options may be written with hyphens or underscores. Exit codes: 0
fine, 2 a wrong call, no network, or a weight that is not to be had. Runs from a checkout, installed
or not.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from face_restoration import hyphened  # finds the library in the checkout, too

DEFAULT = ("GFPGANv1.4", "YuNet")
CACHE = "MUSETALK_ENHANCE_CACHE"


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """The call, taken apart."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--models", nargs="+", metavar="NAME", default=DEFAULT, help=f"default: {' '.join(DEFAULT)}"
    )
    what.add_argument("--all", action="store_true", help="every weight of the list")
    what.add_argument(
        "--list", action="store_true", help="show every weight: state, size, licence; fetch nothing"
    )
    parser.add_argument(
        "--model-dir",
        metavar="DIR",
        type=Path,
        help="put the files there, not into the user's cache",
    )
    parser.add_argument(
        "--mirror", action="append", default=[], metavar="URL", help="tried first; may be repeated"
    )
    parser.add_argument("--offline", action="store_true", help="never connect; say what is missing")
    parser.add_argument("--force", action="store_true", help="download again what is there already")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(hyphened(words))


def weights_words(args: argparse.Namespace) -> list[str]:
    """The same call in the words of ``musetalk-enhance``; what is part of the package needs
    none."""
    if args.list:
        return ["weights", "list"]
    switches = [f"--{name}" for name in ("offline", "force", "quiet") if getattr(args, name)]
    mirrors = [f"--mirror={url}" for url in args.mirror]
    names = ["all"] if args.all else [name for name in args.models if name.lower() != "lite"]
    return ["weights", "fetch", *switches, *mirrors, *names] if names else []


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    from musetalk_enhance.cli import main as musetalk_enhance

    args = parsed(sys.argv[1:] if argv is None else argv)
    if args.model_dir is not None:
        os.environ[CACHE] = str(args.model_dir.expanduser().absolute())
    words = weights_words(args)
    if not args.all and "lite" in [name.lower() for name in args.models]:
        print("lite: part of the package, nothing to fetch (licence: Apache-2.0)")
    code = musetalk_enhance(words) if words else 0
    if args.model_dir is not None and code == 0:
        folder = os.environ[CACHE]
        setting = (
            f'set "{CACHE}={folder}"'
            if os.name == "nt"
            else f"export {CACHE}={shlex.quote(folder)}"
        )
        print(f"\nSay where the weights are, before musetalk-enhance and MuseTalk:\n  {setting}")
    return code


if __name__ == "__main__":
    sys.exit(main())
