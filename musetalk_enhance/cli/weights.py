"""``musetalk-enhance weights``: list, path, fetch, verify, import."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from ..errors import CacheError, EnhanceError
from ..weights import WeightEntry, cache_dir, fetch, find, import_file, table, verify

HELP = "list, locate, fetch, verify and import weight files"
EXAMPLES = (
    "musetalk-enhance weights list",
    "musetalk-enhance weights fetch YuNet GFPGANv1.4",
)

_ALL = "all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the commands and their options to `parser`."""
    commands = parser.add_subparsers(dest="weights_command", required=True, metavar="COMMAND")

    command = commands.add_parser("list", help="list every weight: state, size, license, purpose")
    command.add_argument(
        "--json", action="store_true", help="print JSON, with URLs, hashes and sources"
    )

    command = commands.add_parser("path", help="print the cache folder, or the path of NAME")
    command.add_argument("name", nargs="?", metavar="NAME")

    command = commands.add_parser(
        "fetch", help="download weights into the cache, or resume a download"
    )
    text = f"a name of the list, or {_ALL}, which is every pinned one"
    command.add_argument("names", nargs="+", metavar="NAME", help=text)
    command.add_argument(
        "--offline", action="store_true", help="do not connect; report missing weights"
    )
    command.add_argument(
        "--mirror",
        action="append",
        default=[],
        metavar="URL",
        help="URL of a folder with the files, tried first; may be repeated",
    )
    command.add_argument(
        "--force", action="store_true", help="download weights again that are in the cache"
    )
    command.add_argument("--quiet", action="store_true", help="no progress bar")

    command = commands.add_parser(
        "verify",
        help="hash the cached files; fails if one is corrupt or, without NAME, if there is none",
    )
    command.add_argument("names", nargs="*", metavar="NAME")
    command.add_argument("--json", action="store_true", help="print JSON")

    command = commands.add_parser(
        "import",
        help="copy files into the cache; their sha256 identifies them, or their name and "
        "inputs if they are unpinned ONNX files",
    )
    command.add_argument("files", nargs="+", metavar="FILE")


def run(args: argparse.Namespace) -> int:
    """Run the parsed command; 1 if a check failed or a weight is missing.

    Raises:
        EnhanceError: an error of the library.
    """
    commands = {
        "list": _list,
        "path": _path,
        "fetch": _fetch,
        "verify": _verify,
        "import": _import,
    }
    return commands[args.weights_command](args)


def _state(entry: WeightEntry) -> str:
    if find(entry.name) is not None:
        return "present"
    return "wrong size" if (cache_dir() / entry.file).is_file() else "missing"


def _list(args: argparse.Namespace) -> int:
    if args.json:
        rows = [
            {
                **dataclasses.asdict(entry),
                "licence": entry.license,  # the key before it was spelled "license"
                "state": _state(entry),
                "path": str(cache_dir() / entry.file),
            }
            for entry in table.WEIGHTS
        ]
        print(json.dumps(rows, indent=2))
        return 0
    width = max(len(entry.name) for entry in table.WEIGHTS)
    for entry in table.WEIGHTS:
        size = " " * 9 if entry.size is None else f"{entry.size / 1e6:6.1f} MB"
        print(f"{entry.name:{width}}  {_state(entry):10}  {size}  {entry.purpose}")
        note = "; unpinned" if entry.sha256 is None else ""
        print(f"{'':{width}}  license: {entry.license}{note}")
    print(f"\nfolder: {cache_dir()}")
    return 0


def _path(args: argparse.Namespace) -> int:
    if args.name is None:
        print(cache_dir())
        return 0
    entry = table.WEIGHTS.get(args.name)
    print(cache_dir() / entry.file)
    state = _state(entry)
    if state != "present":
        print(
            f"{state}; fetch it with `musetalk-enhance weights fetch {entry.name}`", file=sys.stderr
        )
    return 0 if state == "present" else 1


def _fetch(args: argparse.Namespace) -> int:
    """Fetch every name; a failure does not stop the others, and the last one is raised."""
    if _ALL in args.names:
        entries = [entry for entry in table.WEIGHTS if entry.sha256 is not None]
    else:
        entries = [table.WEIGHTS.get(name) for name in args.names]
    failed: list[EnhanceError] = []
    for entry in entries:
        try:
            path = fetch(
                entry.name,
                offline=args.offline or None,
                mirrors=args.mirror,
                progress=not args.quiet,
                force=args.force,
            )
        except CacheError:  # the next weight would fail in the same way
            raise
        except EnhanceError as error:
            failed.append(error)
        else:
            print(f"{entry.name}: {path} (license: {entry.license})")
    for failure in failed[:-1]:
        print(f"error: {failure}", file=sys.stderr)
    if failed:
        raise failed[-1]
    return 0


def _verify(args: argparse.Namespace) -> int:
    results = verify(args.names or None)
    if args.json:
        rows = [{**dataclasses.asdict(r), "path": str(r.path)} for r in results]
        print(json.dumps(rows, indent=2))
    else:
        width = max(len(result.name) for result in results)
        for result in results:
            print(f"{result.name:{width}}  {result.status:7}  {result.path}: {result.detail}")
    statuses = {result.status for result in results}
    if args.names:
        return 0 if statuses <= {"ok", "unpinned"} else 1
    return 0 if statuses & {"ok", "unpinned"} and "corrupt" not in statuses else 1


def _import(args: argparse.Namespace) -> int:
    for file in args.files:
        print(f"{file}: imported as {import_file(file)}")
    return 0
