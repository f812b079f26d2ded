"""Run MuseTalk's own scripts with and without us on soft faces, and measure what changes.

    python scripts/check_musetalk.py --musetalk DIR --host identity_host.py --yunet YUNET.onnx \\
        --wav AUDIO.wav --clip A.mp4 --clip B.mp4 --out out/host [-- --gfpgan_model lite ...]

Every clip runs through every script (`--script inference`, `--script realtime`; both by default)
with every softness (`--softness area`, `--softness 0.35,0.1`; both by default), each without us and
with us: the YAML section of the README, with the model `lite`. Flags after ``--`` win over it.

`--host` is a launcher that runs MuseTalk's unmodified scripts with stand-ins for the weights only;
it takes ``MUSETALK YUNET [--hook FILE] [--decoder BLEND,NOISE] -- SCRIPT ARGS...``. Softness
``area`` is its default (each face averaged down to 96 px and enlarged again); two numbers go to its
``--decoder``, which puts each face through a small latent autoencoder instead: share of blur of the
latents, and noise.

Compared are the frames that the host blends, before the video encoder: their number, the audio,
PSNR of the lower face and of the mouth against the clip, sharpness, warping error, the mouth's
opening, color, and every pixel outside the face box. The script prints one table, writes check.json
and a picture for each case, and ends with 1 when something does not hold. Run it in the host's
environment, with this library and its extra ``report`` installed.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
import wave
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from musetalk_enhance.media import VideoWriter, probe, read_frames, write_image
from musetalk_enhance.report import ReportBuilder
from musetalk_enhance.report.metrics import laplacian_energy, psnr
from musetalk_enhance.report.openings import OpeningMeter, parts_of

SECTION = "gfpgan:\n  enabled: true\n  model: lite\n  output_size: native\n  region: lower\n"
SOFTNESS = {"area": "area 96 px", "0.35,0.1": "decoder 0.35/0.1"}

HOOK = """
import os, runpy, shutil, sys
remove = shutil.rmtree
def keep_then_remove(path, *args, **kwargs):
    target = {kept!r}.get(os.path.basename(str(path).rstrip("/")))
    if target is not None and os.path.isdir(path):
        shutil.copytree(path, target, dirs_exist_ok=True)
    return remove(path, *args, **kwargs)
shutil.rmtree = keep_then_remove
import torch
import musetalk.utils.utils as utils
if not torch.cuda.is_available():  # the realtime script leaves datagen at its default, "cuda:0"
    defaults = utils.datagen.__defaults__
    utils.datagen.__defaults__ = tuple("cpu" if v == "cuda:0" else v for v in defaults)
if {enhanced!r}:
    from musetalk_enhance.cli import main
    code = main(["run", *argv, *{flags!r}])
    if code:
        sys.exit(code)
else:
    sys.argv = argv
    sys.path.insert(0, os.getcwd())
    runpy.run_path(argv[0], run_name="__main__")
"""

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Case:
    """One clip through one of the host's scripts with one softness.

    Attributes:
        clip: the first frames of a clip, in a file of their own.
        wav: as many seconds of audio.
        softness: ``area``, or ``BLEND,NOISE`` of the latent decoder.
        script: ``inference`` or ``realtime``.
        out: folder for everything of this case.
    """

    clip: Path
    wav: Path
    softness: str
    script: str
    out: Path


@dataclass(frozen=True)
class HostRun:
    """What one run of the host leaves.

    Attributes:
        frames: BGR uint8 (H, W, 3), as blended.
        sources: the frames of the clip as the host read them: its two scripts decode color
            differently.
        video: the host's own file.
        boxes: of the face in each frame of the clip, left, top, right, bottom in pixels.
        seconds: that it took.
        log: what it printed.
    """

    frames: list[np.ndarray]
    sources: list[np.ndarray]
    video: Path
    boxes: list[Box]
    seconds: float
    log: str


def run_host(args: argparse.Namespace, case: Case, name: str) -> HostRun:
    """Run the host without us (``plain``) or with us (``enhanced``), or read what the last run
    left."""
    out = case.out / name
    seconds_file = out / "seconds.txt"
    stem = case.clip.stem
    frames_folder = f"{stem}_{case.wav.stem}" if case.script == "inference" else "tmp"
    avatar = f"check_{name}"
    if case.script == "inference":
        video, coords = out / "results" / "v15" / f"{frames_folder}.mp4", out / f"{stem}.pkl"
    else:
        video, coords = out / "audio_0.mp4", out / "coords.pkl"
    if not (args.reuse and name == "plain" and seconds_file.is_file()):
        shutil.rmtree(out, ignore_errors=True)
        (out / "frames").mkdir(parents=True)
        command = _command(args, case, name, frames_folder, avatar)
        start = time.perf_counter()
        with open(out / "log.txt", "w", encoding="utf-8") as log:
            # a timeout, because MuseTalk's realtime consumer waits for ever when its producer has
            # failed
            subprocess.run(command, check=True, stdout=log, stderr=log, timeout=args.timeout)
        seconds = time.perf_counter() - start
        if case.script == "realtime":
            folder = args.musetalk / "results" / "v15" / "avatars" / avatar
            shutil.copy(folder / "vid_output" / "audio_0.mp4", video)
            shutil.copy(folder / "coords.pkl", coords)
            shutil.copytree(folder / "full_imgs", out / "sources")
        seconds_file.write_text(f"{seconds:.1f}", encoding="utf-8")
    boxes = pickle.loads(coords.read_bytes())  # our own run wrote it a moment ago
    margin = 10 if case.script == "inference" else 0  # the realtime script keeps it in the box
    frames, sources = (
        [cv2.imread(str(path)) for path in sorted((out / name).glob("*.png"))]
        for name in ("frames", "sources")
    )
    return HostRun(
        frames,
        sources,
        video,
        [(int(x1), int(y1), int(x2), int(y2) + margin) for x1, y1, x2, y2 in boxes],
        float(seconds_file.read_text(encoding="utf-8")),
        (out / "log.txt").read_text(encoding="utf-8", errors="replace"),
    )


def _command(
    args: argparse.Namespace, case: Case, name: str, frames_folder: str, avatar: str
) -> list[str]:
    """Write the task and the hook of a run; the command that starts it."""
    out, enhanced = case.out / name, name == "enhanced"
    config, hook = out / "task.yaml", out / "hook.py"
    kept = {frames_folder: str(out / "frames")}
    if case.script == "inference":
        kept[case.clip.stem] = str(out / "sources")
    text = HOOK.format(kept=kept, enhanced=enhanced, flags=args.flags)
    hook.write_text(text, encoding="utf-8")
    if case.script == "inference":
        task = f'task_0:\n  video_path: "{case.clip}"\n  audio_path: "{case.wav}"\n'
        words = ["scripts/inference.py", "--result_dir", str(out / "results"), "--saved_coord"]
    else:
        shutil.rmtree(args.musetalk / "results" / "v15" / "avatars" / avatar, ignore_errors=True)
        task = f'{avatar}:\n  preparation: true\n  bbox_shift: 0\n  video_path: "{case.clip}"\n'
        task += f'  audio_clips:\n    audio_0: "{case.wav}"\n'
        words = ["scripts/realtime_inference.py"]
    config.write_text(task + (SECTION if enhanced else ""), encoding="utf-8")
    decoder = [] if case.softness == "area" else ["--decoder", case.softness]
    start = [sys.executable, args.host, args.musetalk, args.yunet, "--hook", hook, *decoder, "--"]
    return [*map(str, start), *words, "--inference_config", str(config)]


def audio_of(path: Path) -> np.ndarray:
    """All audio samples of a file as the decoder gives them, channels by samples."""
    import av

    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)


def first_frames(source: Path, target: Path, count: int) -> Path:
    """Write the first frames of a clip without loss."""
    info = probe(source)
    with VideoWriter(target, info.fps, (info.width, info.height), crf=0) as writer:
        for frame in islice(read_frames(source), count):
            writer.write(frame)
    return target


def first_seconds(source: Path, target: Path, seconds: float) -> Path:
    """Write the first seconds of a PCM wave file."""
    with wave.open(str(source), "rb") as reader, wave.open(str(target), "wb") as writer:
        writer.setparams(reader.getparams())
        writer.writeframes(reader.readframes(round(seconds * reader.getframerate())))
    return target


def lower_face(frame: np.ndarray, box: Box) -> np.ndarray:
    """The lower half of the box, without the blurred rim of the host's mask."""
    x1, y1, x2, y2 = box
    rim = (x2 - x1) // 8
    return frame[(y1 + y2) // 2 + rim : y2 - rim, x1 + rim : x2 - rim]


def mouths(faces: list[np.ndarray]) -> list[tuple[slice, slice]]:
    """Rows and columns of the mouth in each crop, by the gauge on the clip's own face."""
    meter = OpeningMeter()
    sized = [cv2.resize(face, (256, 256), interpolation=cv2.INTER_AREA) for face in faces]
    openings = [meter.measure([face])[0] for face in sized]
    return [
        parts_of(one, face.shape[:2])["mouth"] for one, face in zip(openings, faces, strict=True)
    ]


def compare(case: Case, plain: HostRun, ours: HostRun) -> dict[str, Any]:
    """Figures of both runs, and what holds."""
    cycle, boxes = plain.sources + plain.sources[::-1], plain.boxes
    boxes = boxes + boxes[::-1] if case.script == "inference" else boxes
    rows: dict[str, list[float]] = {}
    builder, crops, outside = ReportBuilder(float(probe(case.clip).fps)), [], 0
    for index, (before, after) in enumerate(zip(plain.frames, ours.frames, strict=False)):
        source, box = cycle[index % len(cycle)], boxes[index % len(boxes)]
        x1, y1, x2, y2 = box
        crops.append([frame[max(0, y1) : y2, max(0, x1) : x2] for frame in (source, before, after)])
        builder.add(crops[-1][1], crops[-1][2], crops[-1][0])
        s, p, o = (lower_face(frame, box) for frame in (source, before, after))
        values = {
            "psnr_lower_plain": psnr(s, p),
            "psnr_lower_enhanced": psnr(s, o),
            "sharpness_plain": laplacian_energy(p),
            "sharpness_enhanced": laplacian_energy(o),
            "sharpness_clip": laplacian_energy(s),
            "drift": float(np.abs(p.mean((0, 1)) - o.mean((0, 1))).max()),
        }
        for name, value in values.items():
            rows.setdefault(name, []).append(value)
        mask = np.ones(before.shape[:2], bool)
        mask[max(0, y1) : y2, max(0, x1) : x2] = False
        outside += int((before[mask] != after[mask]).sum())
    for (source, before, after), part in zip(
        crops, mouths([each[0] for each in crops]), strict=True
    ):
        rows.setdefault("psnr_mouth_plain", []).append(psnr(source[part], before[part]))
        rows.setdefault("psnr_mouth_enhanced", []).append(psnr(source[part], after[part]))
    figures: dict[str, Any] = {
        "clip": case.clip.stem,
        "softness": SOFTNESS.get(case.softness, f"decoder {case.softness}"),
        "script": f"{case.script}{'.py' if case.script == 'inference' else '_inference.py'}",
        **{key: round(float(np.mean(values)), 3) for key, values in rows.items()},
        "verdicts": {
            verdict.key: {"value": verdict.value, "limit": verdict.limit, "state": verdict.state}
            for verdict in builder.finish().verdicts
        },
        "frames": [len(plain.frames), len(ours.frames)],
        "video_frames": [sum(1 for _ in read_frames(run.video)) for run in (plain, ours)],
        "fps": [str(probe(run.video).fps) for run in (plain, ours)],
        "audio_identical": bool(np.array_equal(audio_of(plain.video), audio_of(ours.video))),
        "outside_values_changed": outside,
        "seconds": [plain.seconds, ours.seconds],
        "closing_lines": closing_lines(ours.log),
    }
    figures["holds"] = holds(figures)
    return figures


def closing_lines(log: str) -> list[str]:
    """What the enhanced run says of its faces at the end."""
    marks = ("in the network", "most of the restoration")
    return [line.strip() for line in log.splitlines() if any(mark in line for mark in marks)]


def holds(figures: dict[str, Any]) -> dict[str, bool]:
    """What must hold, by its words."""
    verdicts = figures["verdicts"]
    good = {key: verdicts[key]["state"] != "fail" for key in ("warping", "mouth_opening")}
    good["mouth_correlation"] = verdicts["mouth_correlation"]["state"] != "fail"
    return {
        "frames are there": figures["frames"][0] > 0,
        "same number of frames": len(set(figures["frames"])) == 1
        and len(set(figures["video_frames"])) == 1,
        "same audio": figures["audio_identical"],
        "lower face nearer to the clip (PSNR)": figures["psnr_lower_enhanced"]
        > figures["psnr_lower_plain"],
        "lower face sharper": figures["sharpness_enhanced"] > figures["sharpness_plain"],
        "warping error within the report's limit": good["warping"],
        "mouth opens as before": good["mouth_correlation"] and good["mouth_opening"],
        "color stays (mean within 1/255)": figures["drift"] < 1,
        "outside the box identical": figures["outside_values_changed"] == 0,
    }


def write_picture(case: Case, plain: HostRun, ours: HostRun) -> None:
    """Write the face of a frame in the middle: without us, with us, and of the clip."""
    index = len(ours.frames) // 2
    x1, y1, x2, y2 = plain.boxes[index % len(plain.boxes)]
    three = (plain.frames[index], ours.frames[index], plain.sources[index % len(plain.sources)])
    panels = [cv2.resize(frame[max(0, y1) : y2, max(0, x1) : x2], (512, 512)) for frame in three]
    write_image(case.out / "before_after_clip.png", np.hstack(panels))


COLUMNS = (
    "clip",
    "softness",
    "script",
    "frames",
    "PSNR lower face, dB",
    "PSNR mouth, dB",
    "sharpness (the clip)",
    "warping error (limit)",
    "mouth correlation",
    "color drift",
    "outside the box",
    "seconds",
)


def row(figures: dict[str, Any]) -> list[str]:
    """One line of the table; pairs are without us → with us."""

    def pair(name: str, digits: int) -> str:
        values = (figures[f"{name}_{run}"] for run in ("plain", "enhanced"))
        return " → ".join(f"{value:.{digits}f}" for value in values)

    warping, mouth = (figures["verdicts"][key] for key in ("warping", "mouth_correlation"))
    return [
        figures["clip"],
        figures["softness"],
        figures["script"],
        " → ".join(map(str, figures["video_frames"])),
        pair("psnr_lower", 2),
        pair("psnr_mouth", 2),
        f"{pair('sharpness', 1)} ({figures['sharpness_clip']:.1f})",
        "–" if warping["value"] is None else f"{warping['value']:.3f} ({warping['limit']:.3f})",
        "hardly moves" if mouth["value"] is None else f"{mouth['value']:.3f}",
        f"{figures['drift']:.3f}",
        str(figures["outside_values_changed"]),
        " → ".join(f"{value:.0f}" for value in figures["seconds"]),
    ]


def table(results: list[dict[str, Any]]) -> str:
    """All cases as a Markdown table."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(row(figures) for figures in results)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("musetalk", "host", "yunet", "wav", "out"):
        parser.add_argument(f"--{name}", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument(
        "--clip", type=lambda text: Path(text).resolve(), action="append", required=True
    )
    parser.add_argument("--script", choices=("inference", "realtime"), action="append")
    parser.add_argument("--softness", action="append", help="area, or BLEND,NOISE of the decoder")
    parser.add_argument("--frames", type=int, default=40, help="of each clip (%(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=1800, help="seconds one run of the host may take"
    )
    parser.add_argument(
        "--reuse",
        action="store_true",
        help="keep the runs without us that an earlier call finished",
    )
    parser.add_argument("flags", nargs="*", help="our flags for the enhanced runs, after --")
    args = parser.parse_args()
    args.script = args.script or ["inference", "realtime"]
    args.softness = args.softness or list(SOFTNESS)
    return args


def check(args: argparse.Namespace, case: Case) -> dict[str, Any]:
    """Run one case and compare."""
    plain, ours = (run_host(args, case, name) for name in ("plain", "enhanced"))
    figures = compare(case, plain, ours)
    write_picture(case, plain, ours)
    return figures


def main() -> int:
    """Run every case, compare, print; 0 when everything holds."""
    args = parse()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    results: list[dict[str, Any]] = []
    for clip, softness, script in product(args.clip, args.softness, args.script):
        folder = args.out / clip.stem
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{clip.stem}.mp4"
        if not part.is_file() or not args.reuse:
            first_frames(clip, part, args.frames)
        wav = first_seconds(args.wav, folder / "audio.wav", args.frames / float(probe(clip).fps))
        case = Case(part, wav, softness, script, folder / f"{script}_{softness}")
        case.out.mkdir(exist_ok=True)
        results.append(check(args, case))
        print(" | ".join(row(results[-1])), *results[-1]["closing_lines"], sep="\n  ", flush=True)
        text = json.dumps({"flags": args.flags, "cases": results}, indent=2)
        (args.out / "check.json").write_text(text + "\n", encoding="utf-8")
    print(f"\n{table(results)}\n")
    broken = [
        f"{figures['clip']}, {figures['softness']}, {figures['script']}: not so: {words}"
        for figures in results
        for words, good in figures["holds"].items()
        if not good
    ]
    print("\n".join(broken) or "everything holds")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
