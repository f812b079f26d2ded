"""What reading, detecting, pasting and writing add to restoring, over a folder of pictures; and the
memory it takes.

The same faces are restored alone, already aligned and in memory, in turn with the whole job over
the same pictures, in rounds of some hundred pictures in one process. Pictures come from a folder of
your own: each is brought to the size asked for, and copied as often as it takes.

    python scripts/bench_images.py PICTURES --count 1000 --size 512 \\
        --model lite --detector-path yunet.onnx
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import psutil

from musetalk_enhance.faces.paste import crop_face
from musetalk_enhance.jobs import ImageSettings, LocalEngine
from musetalk_enhance.jobs.folder import list_images, result_names, split_into_units
from musetalk_enhance.jobs.image_processor import (
    ImageProcessor,
    ImageProcessorFactory,
    ReadUnit,
    WriteUnit,
)
from musetalk_enhance.jobs.image_restorer import RESTORED
from musetalk_enhance.jobs.job import Job, Tally
from musetalk_enhance.media import read_image


class Watched:
    """The most memory that this process took while the block ran, in MiB."""

    def __enter__(self) -> Watched:
        self.peak, self._on = 0.0, True
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        process = psutil.Process()
        while self._on:
            self.peak = max(self.peak, process.memory_info().rss / 2**20)
            time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        self._on = False
        self._thread.join()


def make_pictures(source: Path, folder: Path, count: int, size: int, suffix: str) -> None:
    """`count` pictures of `size` pixels, all different in their bytes."""
    names = list_images(source)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for index in range(count):
        picture = read_image(source / names[index % len(names)])
        side = min(picture.shape[:2])
        top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
        square = picture[top : top + side, left : left + side]
        square = cv2.resize(
            square, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
        )
        noisy = np.clip(square + rng.normal(0, 1, square.shape), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{index:05d}{suffix}"), noisy, [cv2.IMWRITE_JPEG_QUALITY, 95])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--suffix", default=".jpg", choices=(".jpg", ".png", ".webp"))
    parser.add_argument("--model", default="lite")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--detector-path")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    settings = ImageSettings(
        model=args.model, backend=args.backend, detector_path=args.detector_path
    )
    scratch = Path(tempfile.mkdtemp(prefix="bench-images-"))
    try:
        figures = measure(args, settings, scratch)
    finally:
        shutil.rmtree(scratch)
    print(json.dumps(figures, indent=1))
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def run_job(folder: Path, output: Path, settings: ImageSettings, processor: ImageProcessor) -> int:
    """The whole job but for the loading of networks; returns how many faces were restored."""
    listed = list_images(folder)
    units = [
        {"id": number, "items": items}
        for number, items in enumerate(split_into_units(folder, listed, 1))
    ]
    write = WriteUnit(output, settings, result_names(listed, settings.format))
    states = Tally()
    LocalEngine(processor).run(
        Job(units, ReadUnit(folder), ImageProcessorFactory(settings), write), states
    )
    faces = [face for state in states.states for item in state["items"] for face in item["faces"]]
    return sum(face["state"] == RESTORED for face in faces)


def measure(args: argparse.Namespace, settings: ImageSettings, scratch: Path) -> dict[str, object]:
    processor = ImageProcessorFactory(settings)()
    opened, rows, each = processor.models, [], args.count // args.rounds
    with Watched() as memory:
        for number in range(args.rounds + 1):  # the first round warms up
            folder = scratch / f"in{number}"
            make_pictures(args.pictures, folder, each if number else 16, args.size, args.suffix)
            aligned = []
            for name in list_images(folder):
                picture = read_image(folder / name)
                aligned += [
                    crop_face(picture, face.landmarks).aligned
                    for face in opened.detector.detect(picture)
                ]
            start = time.perf_counter()
            for first in range(0, len(aligned), 8):
                opened.enhancer.reset()
                some = np.stack(aligned[first : first + 8])
                opened.enhancer(some, cuts=[True] * len(some))
            alone = time.perf_counter() - start
            del aligned
            start = time.perf_counter()
            faces = run_job(folder, scratch / f"out{number}", settings, processor)
            whole = time.perf_counter() - start
            rows.append(
                {
                    "pictures": each,
                    "faces": faces,
                    "alone_s": round(alone, 2),
                    "job_s": round(whole, 2),
                }
            )
            print(rows[-1], f"job / restorer alone: {whole / alone:.3f}", file=sys.stderr)
            shutil.rmtree(folder)
            shutil.rmtree(scratch / f"out{number}")
    alone, whole = (sum(float(row[name]) for row in rows[1:]) for name in ("alone_s", "job_s"))
    return {
        "model": opened.run_info.model,
        "backend": opened.run_info.backend,
        "pictures": each * args.rounds,
        "faces": sum(int(row["faces"]) for row in rows[1:]),
        "size": args.size,
        "suffix": args.suffix,
        "pictures_a_second": round(each * args.rounds / whole, 2),
        "job_over_restorer": round(whole / alone, 3),
        "peak_mib": round(memory.peak),
        "rounds": rows[1:],
    }


if __name__ == "__main__":
    main()
