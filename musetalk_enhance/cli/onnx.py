"""``musetalk-enhance onnx IMAGE... --output OUT``: ONNX restorers, without torch."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from ..config.schema import checked, help_text
from ..errors import ConfigError, EnhanceError, MediaError
from ..media.image import IMAGE_EXTENSIONS, readable_extensions
from ..onnx_pipeline.options import PipelineOptions
from ..runtime.files import real_path, write_bytes
from .parser import Switch, path_type

HELP = "restore the faces in images with an ONNX file, without torch"
EXAMPLES = (
    "musetalk-enhance onnx talk.png --model gfpgan_1.4.onnx --output out.png --json out.json",
    "musetalk-enhance onnx photos --analysis analyses --model gfpgan_1.4.onnx --output out",
)
UNREADABLE = 3
"""Exit code if images could not be read or restored; all others were."""

logger = logging.getLogger("musetalk_enhance")
Result = TypeVar("Result")


class _Providers(argparse.Action):
    """``--providers`` prints what the installed onnxruntime has, and exits."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from ..runtime.onnx_session import providers

        print("\n".join(providers()))
        parser.exit()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add inputs, outputs, and every option of `PipelineOptions`."""
    parser.add_argument(
        "images",
        metavar="IMAGE",
        type=path_type,
        nargs="+",
        help="an image, or a folder with images",
    )
    parser.add_argument(
        "--output",
        metavar="OUT",
        type=path_type,
        required=True,
        help="the result, or a folder for the results of several images",
    )
    parser.add_argument(
        "--analysis",
        metavar="JSON",
        type=path_type,
        help="analysis of the faces, or a folder with NAME.json for each image; default: detect",
    )
    parser.add_argument("--json", metavar="JSON", type=path_type, help="write what was done")
    parser.add_argument(
        "--providers", action=_Providers, nargs=0, help="list the execution providers and exit"
    )
    for option in dataclasses.fields(PipelineOptions):
        flag, check = f"--{option.name.replace('_', '-')}", option.metadata["check"]
        common: dict[str, Any] = {"dest": f"job_{option.name}", "help": help_text(option)}
        if isinstance(option.default, bool):
            parser.add_argument(flag, action=Switch, metavar="true|false", check=check, **common)
        else:
            parser.add_argument(flag, metavar=option.name.upper(), **common)


def run(args: argparse.Namespace) -> int:
    """Restore; 3 if images could not be read or restored.

    Raises:
        EnhanceError: an invalid option, or a network cannot be opened.
    """
    from ..onnx_pipeline.pipeline import Pipeline, Services

    values = {}
    for option in dataclasses.fields(PipelineOptions):
        value = getattr(args, f"job_{option.name}")
        if value is not None:
            flag = f"--{option.name.replace('_', '-')}"
            values[option.name] = checked(option, value, flag)
    jobs = list(_jobs(args.images, args.output, args.analysis))
    services = Services.open(PipelineOptions(**values))
    rows: list[dict[str, Any]] = []

    def prepared(source: Path, analysis: Path | None, output: Path) -> Pipeline:
        output.parent.mkdir(parents=True, exist_ok=True)
        return Pipeline(source, analysis, output=output, services=services).prepare()

    for (source, _, output), ahead in zip(jobs, _ahead(prepared, jobs), strict=True):
        try:
            row = ahead.result().run()
        except (EnhanceError, OSError) as error:
            logger.warning("%s: %s", source, error)
            rows.append({"source": str(source), "status": "error", "error": str(error)})
            continue
        rows.append({"source": str(source), **row})
        counts = {name: count for name, count in row["counts"].items() if count}
        summary = ", ".join(f"{count} {name}" for name, count in counts.items()) or "no face"
        print(f"{output}: {summary}; {row['timings_ms']['total']:.0f} ms")
    if args.json is not None:
        content = rows[0] if len(rows) == 1 and not args.images[0].is_dir() else rows
        write_bytes(args.json, json.dumps(content, indent=1).encode())
    return UNREADABLE if any(row["status"] == "error" for row in rows) else 0


def _ahead(function: Callable[..., Result], jobs: list[Any]) -> Iterator[Future[Result]]:
    """The result of each job, in order; the next one is computed while a result is used."""
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(function, *jobs[0])
        for job in jobs[1:]:
            ready, upcoming = upcoming, pool.submit(function, *job)
            yield ready
        yield upcoming


def _jobs(
    images: list[Path], output: Path, analysis: Path | None
) -> Iterator[tuple[Path, Path | None, Path]]:
    """Source, analysis and result of every image; no result replaces a source or another result."""
    sources = [path for image in images for path in _listed(image)]
    several = len(sources) > 1 or images[0].is_dir()
    if several and analysis is not None and not analysis.is_dir():
        raise ConfigError("--analysis", str(analysis), "a folder, with several images")
    taken = {real_path(path) for path in sources}
    for source in sources:
        is_written = source.suffix.lower() in IMAGE_EXTENSIONS
        name = source.name if is_written else f"{source.stem}.png"
        result = output / name if several or output.is_dir() else output
        if result.suffix.lower() not in IMAGE_EXTENSIONS:
            expected = f"a file of {', '.join(IMAGE_EXTENSIONS)}, or a folder"
            raise ConfigError("--output", str(output), expected)
        if real_path(result) in taken:
            expected = "a folder in which no result replaces an image or another result"
            raise ConfigError("--output", str(result), expected)
        taken.add(real_path(result))
        is_folder = analysis is not None and analysis.is_dir()
        faces = analysis / f"{source.stem}.json" if analysis and is_folder else analysis
        yield source, faces, result


def _listed(image: Path) -> list[Path]:
    if not image.is_dir():
        return [image]
    extensions = readable_extensions()
    paths = sorted(path for path in image.iterdir() if path.suffix.lower() in extensions)
    if not paths:
        raise MediaError(image, f"has no image ({', '.join(sorted(extensions))})")
    return paths
