"""The command line: each check in a process of its own."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from . import stand_ins
from .stand_ins import LiveRun, MissingPackages

CHECKS = {
    "musetalk_page": "MuseTalk",
    "musetalk_realtime": "MuseTalk",
    "livetalking": "LiveTalking",
    "wav2lip": "Wav2Lip",
    "wav2lip_onnx_hq": "wav2lip-onnx-HQ",
    "latentsync": "LatentSync",
    "sadtalker": "SadTalker",
    "linly_talker": "Linly-Talker",
    "openavatarchat": "OpenAvatarChat",
    "ditto": "ditto-talkinghead",
    "liveportrait": "LivePortrait",
}
"""Module of each check, and the name of the host's repository."""
LIVE = ("musetalk_realtime", "livetalking")
"""Checks with a live loop."""
WITH_PICTURES = tuple(name for name in CHECKS if name != "musetalk_realtime")
"""Checks that write a picture."""
SKIPPED = 77
"""Exit code of a check that cannot run here."""


def _run_one(name: str, folder: Path, run: LiveRun, pictures: Path | None) -> NoReturn:
    """Run one check, and end the process, whichever threads of the host still run."""
    code = 1
    if pictures is not None:
        stand_ins.PICTURE = pictures / f"{name.removesuffix('_page')}.jpg"
        stand_ins.SIZE = stand_ins.PICTURE_SIZE
        stand_ins.SOFT_SIDE = stand_ins.PICTURE_SOFT_SIDE
    try:
        module = import_module(f"scripts.host_checks.{name}")
        if run.minutes:
            module.live(folder, run)
        else:
            module.check(folder)
        code = 0
    except MissingPackages as error:
        print(f"  skipped: {error}")
        code = SKIPPED
    except BaseException:  # what the host raises, too
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> int:
    """Run the checks that are named, or all whose host is there; 0 where everything holds."""
    parser = argparse.ArgumentParser(prog="python -m scripts.host_checks", description=__doc__)
    parser.add_argument("--hosts", type=Path, required=True, help="folder with the checkouts")
    parser.add_argument(
        "--minutes",
        type=float,
        default=0,
        help="run the live loop of musetalk_realtime, livetalking",
    )
    parser.add_argument("--fps", type=float, default=25, help="of the live loops (%(default)s)")
    parser.add_argument(
        "--pictures",
        type=lambda text: Path(text).resolve(),
        help="folder for pictures of the hosts",
    )
    parser.add_argument("--one", choices=CHECKS, help=argparse.SUPPRESS)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CHECKS)}")
    args = parser.parse_args()
    hosts = args.hosts.resolve()
    if args.one:
        _run_one(args.one, hosts / CHECKS[args.one], LiveRun(args.minutes, args.fps), args.pictures)
    names = LIVE if args.minutes else WITH_PICTURES if args.pictures else tuple(CHECKS)
    if unknown := set(args.names) - set(names):
        parser.error(f"no such check {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    failed = []
    for name in args.names or [name for name in names if (hosts / CHECKS[name]).is_dir()]:
        print(f"{name}:", flush=True)
        command = [sys.executable, "-m", "scripts.host_checks", "--hosts", str(hosts)]
        command += ["--minutes", str(args.minutes), "--fps", str(args.fps)]
        command += ["--pictures", str(args.pictures.resolve())] if args.pictures else []
        code = subprocess.run([*command, "--one", name], check=False).returncode
        if code not in (0, SKIPPED):
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "everything that ran holds")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
