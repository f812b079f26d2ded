"""``musetalk-enhance export NAME_OR_PATH OUT.onnx``: a model as an ONNX file, for other runtimes."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..settings import options

HELP = "write a model as an ONNX file, and check that it computes what torch does"

PASSED = ("arch", "channel_multiplier", "region", "fidelity")
"""Options of the enhancer that change what is written; they are flags here under their own names."""
SWITCHES = ("trust_unpinned", "download")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the file, and the options that say which network it is."""
    parser.add_argument("model", metavar="NAME_OR_PATH", help="a name of `musetalk-enhance models`, or a checkpoint")
    parser.add_argument("out", metavar="OUT.onnx", help="the file to write; replaced when the new one is checked")
    known = {option.name: option for option in options()}
    for name in PASSED:
        metadata = known[name].metadata
        text = f"{metadata['help']} One of: {metadata['allowed']}. Default: {known[name].default}."
        parser.add_argument(f"--{name}", metavar=name.upper(), help=text.replace("%", "%%"))
    for name in SWITCHES:
        parser.add_argument(f"--{name}", action="store_true", help=known[name].metadata["help"])


def run(args: argparse.Namespace) -> int:
    """Write the file and print what it takes and how far it is from torch.

    Raises:
        EnhanceError: the model cannot be loaded or written, or its file differs from torch.
    """
    from ..backends.exporting import BATCH, INPUT, MOST_DIFFERENCE, OUTPUT, export
    from ..restorers.catalog import choose
    from ..settings import EnhancerSettings

    given = {name: getattr(args, name) for name in (*PASSED, *SWITCHES) if getattr(args, name) is not None}
    choice = choose(EnhancerSettings(enabled=True, model=args.model, **given))
    licence = choice.model.info.license
    spec = choice.network()
    found = export(spec, args.out, facts={"licence": licence})
    low, high = spec.value_range
    shape = ", ".join(str(size) for size in (BATCH, *spec.input_shape))
    print(f"{args.out}: {spec.name}, {Path(args.out).expanduser().stat().st_size / 1e6:.1f} MB, licence: {licence}")
    print(f"takes {INPUT}, float32 ({shape}), RGB, {low:g}..{high:g}; makes {OUTPUT}, in the same range")
    print(f"largest difference from torch: {found:.1e} (at most {MOST_DIFFERENCE:.0e} is allowed)")
    return 0
