"""``musetalk-enhance export NAME_OR_PATH OUT.onnx``: write a model as an ONNX file."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..config.schema import help_text
from ..config.settings import options

HELP = "write a model as an ONNX file and compare its output with torch"
EXAMPLES = (
    "musetalk-enhance export lite lite.onnx",
    "musetalk-enhance export gfpgan-1.4 gfpgan.onnx --region lower",
)

MODEL_OPTIONS = ("arch", "channel_multiplier", "region", "fidelity")
"""Options of the enhancer that change the exported network; the flags have the same names."""
SWITCHES = ("trust_unpinned", "download")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, the output file, and the options that select the network."""
    parser.add_argument(
        "model",
        metavar="NAME_OR_PATH",
        help="a name listed by `musetalk-enhance models`, or a checkpoint",
    )
    parser.add_argument(
        "out", metavar="OUT.onnx", help="output file; an existing one is replaced after the check"
    )
    enhancer_options = {option.name: option for option in options()}
    for name in MODEL_OPTIONS:
        text = help_text(enhancer_options[name])
        parser.add_argument(f"--{name}", metavar=name.upper(), help=text)
    for name in SWITCHES:
        text = enhancer_options[name].metadata["help"]
        parser.add_argument(f"--{name}", action="store_true", help=text)


def run(args: argparse.Namespace) -> int:
    """Write the file; print its input, output and largest difference from torch.

    Raises:
        EnhanceError: the model cannot be loaded or written, or its file differs from torch.
    """
    from ..backends.onnx_export import BATCH, INPUT, MAX_DIFFERENCE, OUTPUT, export
    from ..config.settings import EnhancerSettings
    from ..restorers.catalog import choose

    flags = {name: getattr(args, name) for name in (*MODEL_OPTIONS, *SWITCHES)}
    flags = {name: value for name, value in flags.items() if value is not None}
    choice = choose(EnhancerSettings(enabled=True, model=args.model, **flags))
    license = choice.model.info.license
    spec = choice.network()
    difference = export(spec, args.out, facts={"licence": license})
    low, high = spec.value_range
    shape = ", ".join(str(size) for size in (BATCH, *spec.input_shape))
    megabytes = Path(args.out).expanduser().stat().st_size / 1e6
    print(f"{args.out}: {spec.name}, {megabytes:.1f} MB, license: {license}")
    print(f"input {INPUT}: float32 ({shape}), RGB, {low:g}..{high:g}; output {OUTPUT}: same range")
    print(f"largest difference from torch: {difference:.1e} (allowed: {MAX_DIFFERENCE:.0e})")
    return 0
