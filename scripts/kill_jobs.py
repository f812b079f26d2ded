"""Kill a job again and again, let it go on, and compare what it wrote with what an uninterrupted
run writes.

    python scripts/kill_jobs.py --kills 30 -- \
        python -m musetalk_enhance images PICTURES --output-dir {out} --model lite \
        --backend torch --quiet

The command stands behind ``--``; ``{out}`` in it becomes a new folder. It runs once undisturbed,
for what is to be expected and how long that takes. Then it is killed (SIGKILL, with its children)
at random moments: half of them any time from its start to its end, half just after the next few
files were written. When it gets to its end the files are compared bit for bit, but for the job's
own memory, and it begins anew in another folder until there were kills enough. Ends with 1 where a
file differs, is missing, or is left over, or where the exit code is another.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MEMORY = ".musetalk_enhance"
POLL = 0.002  # seconds


def files(folder: Path) -> dict[str, str]:
    """Path to sha256 of everything below `folder`, without the job's memory."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and MEMORY not in path.parts
    }


def leftovers(folder: Path) -> list[str]:
    """Files that are not whole, the job's memory included."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*.part")]


def written(folder: Path) -> int:
    """When anything below `folder` was last written, as a number that grows, and 0 where there is
    nothing."""
    times = []
    for here, _, names in os.walk(folder):
        for name in names:
            try:
                times.append(os.stat(os.path.join(here, name)).st_mtime_ns)
            except FileNotFoundError:  # renamed meanwhile
                continue
    return max(times, default=0)


def start(command: list[str], out: Path) -> subprocess.Popen[bytes]:
    """The command in a process group of its own, what it says beside the folder."""
    out.mkdir(exist_ok=True)
    words = [word.replace("{out}", str(out)) for word in command]
    with open(out.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its children."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait(
    process: subprocess.Popen[bytes], out: Path, draw: random.Random, seconds: float
) -> str | None:
    """Wait for the moment to kill; says which it was, None where the process ended first."""
    begun = time.monotonic()
    if draw.random() < 0.5:
        moment = draw.uniform(0, seconds)
        while process.poll() is None:
            if time.monotonic() - begun >= moment:
                return f"after {moment:.2f} s"
            time.sleep(POLL)
        return None
    count, seen, last = draw.randint(1, 6), 0, written(out)
    while process.poll() is None:
        now = written(out)
        if now != last:
            seen, last = seen + 1, now
            if seen == count:
                return f"at the {count}. new file, after {time.monotonic() - begun:.2f} s"
        time.sleep(POLL)
    return None


def compared(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """What is not as it should be, a line for each file."""
    lines = [f"missing: {name}" for name in expected.keys() - found.keys()]
    lines += [f"left over: {name}" for name in found.keys() - expected.keys()]
    both = expected.keys() & found.keys()
    return sorted(lines + [f"differs: {name}" for name in both if expected[name] != found[name]])


def one_round(
    args: argparse.Namespace, out: Path, draw: random.Random, seconds: float, most: int
) -> tuple[int, int]:
    """Kill and start again until the command ends by itself; how many kills, and its exit code."""
    kills = 0
    while True:
        process = start(args.command, out)
        try:
            moment = wait(process, out, draw, seconds) if kills < most else None
            if moment is None:
                return kills, process.wait()
        finally:
            if process.poll() is None:
                end(process)
        kills += 1
        print(f"{out.name}: killed {moment}; {len(files(out))} files", flush=True)


def main() -> int:
    """See the top of this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--kills", type=int, default=30, help="at least as many (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder by default")
    parser.add_argument(
        "command", nargs="+", metavar="COMMAND", help="with {out} for the output folder"
    )
    args = parser.parse_args()
    if not any("{out}" in word for word in args.command):
        parser.error("the command needs {out} where its output folder stands")
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        return run(args, Path(name))


def run(args: argparse.Namespace, place: Path) -> int:
    """The undisturbed run, and then the others."""
    begun = time.monotonic()
    code = start(args.command, place / "undisturbed").wait()
    seconds = time.monotonic() - begun
    expected = files(place / "undisturbed") if (place / "undisturbed").is_dir() else {}
    print(f"undisturbed: {len(expected)} files in {seconds:.1f} s, exit code {code}", flush=True)
    if not expected:
        print(
            (place / "undisturbed.log").read_text(encoding="utf-8", errors="replace"),
            file=sys.stderr,
        )
        return 1
    draw, kills, rounds, bad = random.Random(args.seed), 0, 0, 0
    while kills < args.kills:
        rounds += 1
        out = place / f"round{rounds}"
        mine, again = one_round(args, out, draw, seconds, args.kills)
        kills += mine
        wrong = compared(expected, files(out)) + [f"not whole: {name}" for name in leftovers(out)]
        wrong += [f"exit code {again}"] if again != code else []
        bad += bool(wrong)
        print(
            f"{out.name}: {mine} kills, then exit code {again}: "
            f"{'; '.join(wrong) or 'the same files'}",
            flush=True,
        )
    print(f"{kills} kills in {rounds} rounds, {bad} of them ended with other files")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
