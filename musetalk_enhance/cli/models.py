"""``musetalk-enhance models``: the restorers there are."""

from __future__ import annotations

import argparse
import json
from typing import Any

HELP = "list the restorers, plug-ins included, and whether their weight is here"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A shell pattern and ``--json``."""
    parser.add_argument(
        "pattern", nargs="?", default="*", help="shell pattern, for example 'gfpgan*'"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the list; 1 when nothing matches."""
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
    from .. import weights
    from ..errors import RestorerError
    from ..restorers.catalog import get_model

    try:
        record = get_model(name).info
    except RestorerError as error:  # a broken plug-in is reported and breaks nothing else
        unknown = dict.fromkeys(("license", "licence", "weight"))
        return {"name": name, "status": "broken", "summary": str(error), **unknown}
    here = record.weight is None or weights.find(record.weight) is not None
    return {
        "name": name,
        "status": "ready" if here else "no weight",
        "summary": record.summary,
        "license": record.license,
        "licence": record.license,  # the key before it was spelled "license"
        "weight": record.weight,
    }
