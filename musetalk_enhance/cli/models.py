"""``musetalk-enhance models``: list the restorers."""

from __future__ import annotations

import argparse
import json
from typing import Any

HELP = "list the restorers, including plug-ins, and whether their weights are installed"
EXAMPLES = (
    "musetalk-enhance models",
    "musetalk-enhance models 'gfpgan*' --json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a shell pattern and ``--json``."""
    parser.add_argument(
        "pattern", nargs="?", default="*", help="shell pattern, for example 'gfpgan*'"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the list; 1 if nothing matches."""
    rows = [_row(name) for name in _names(args.pattern)]
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        for row in rows:
            print(f"{row['name']:<16} {row['status']:<9} {row['summary']}")
    return 0 if rows else 1


def _names(pattern: str) -> list[str]:
    from ..restorers.catalog import model_names

    return model_names(pattern)


def _row(name: str) -> dict[str, Any]:
    from ..errors import RestorerError
    from ..restorers.catalog import get_model, is_installed

    try:
        info = get_model(name).info
    except RestorerError as error:  # a broken plug-in is reported and breaks nothing else
        unknown = dict.fromkeys(("license", "licence", "weight"))
        return {"name": name, "status": "broken", "summary": str(error), **unknown}
    return {
        "name": name,
        "status": "ready" if is_installed(name) else "no weight",
        "summary": info.summary,
        "license": info.license,
        "licence": info.license,  # the key before it was spelled "license"
        "weight": info.weight,
    }
