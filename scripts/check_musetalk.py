"""Run MuseTalk's own scripts with and without us, and say what changed.

    python scripts/check_musetalk.py --musetalk DIR --host identity_host.py --yunet YUNET.onnx \
        --clip CLIP.mp4 --wav AUDIO.wav --script inference|realtime --out out/host [-- --gfpgan_model lite ...]

`--host` is a launcher that runs MuseTalk's unmodified scripts with stand-ins for the weights only; it takes
``MUSETALK YUNET [--hook FILE] -- SCRIPT ARGS...``. This script runs it twice, keeps the frames that the host
deletes before it ends, and compares: number of frames, audio, PSNR and sharpness of the lower face against the
clip, colours, and every pixel outside the face box. It prints a table, writes check.json and before_after.png,
and ends with 1 when something does not hold. Run it in the host's environment, with this library installed.
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
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from musetalk_enhance.media import probe, read_frames, write_image
from musetalk_enhance.metrics import laplacian_energy, psnr

HOOK = """
import os, runpy, shutil, sys
remove = shutil.rmtree
def keep_then_remove(path, *args, **kwargs):
    if os.path.isdir(path) and os.path.basename(str(path).rstrip("/")) in {names!r}:
        shutil.copytree(path, {kept!r}, dirs_exist_ok=True)
    return remove(path, *args, **kwargs)
shutil.rmtree = keep_then_remove
import torch
import musetalk.utils.utils as utils
if not torch.cuda.is_available():  # the realtime script leaves datagen at its default, "cuda:0"
    utils.datagen.__defaults__ = tuple("cpu" if v == "cuda:0" else v for v in utils.datagen.__defaults__)
if {enhanced!r}:
    from musetalk_enhance.cli import main
    code = main(["run", *{report!r}, *argv, "--enable_gfpgan", *{flags!r}])
    if code:
        sys.exit(code)
else:
    sys.argv = argv
    sys.path.insert(0, os.getcwd())
    runpy.run_path(argv[0], run_name="__main__")
"""


def run_host(args: argparse.Namespace, name: str, wav: Path, flags: list[str]) -> dict[str, Any]:
    """One run of the host; returns frames (list of BGR arrays), video (path), boxes, seconds."""
    out = args.out / name
    shutil.rmtree(out, ignore_errors=True)
    kept = out / "frames"
    kept.mkdir(parents=True)
    config, hook = out / "task.yaml", out / "hook.py"
    stem = args.clip.name.split(".")[0]
    frames_folder = f"{stem}_{wav.name.split('.')[0]}" if args.script == "inference" else "tmp"
    report = ["--report", str(args.out / "report")] if args.report else []
    text = HOOK.format(
        names=(frames_folder,), kept=str(kept), enhanced=name == "enhanced", flags=flags, report=report
    )
    hook.write_text(text, encoding="utf-8")
    command = [sys.executable, args.host, args.musetalk, args.yunet, "--hook", str(hook), "--"]
    if args.script == "inference":
        config.write_text(f'task_0:\n  video_path: "{args.clip}"\n  audio_path: "{wav}"\n', encoding="utf-8")
        command += ["scripts/inference.py", "--result_dir", str(out / "results"), "--saved_coord"]
        video, coords = out / "results" / "v15" / f"{frames_folder}.mp4", out / f"{stem}.pkl"
    else:
        avatar = f"check_{name}"
        folder = args.musetalk / "results" / "v15" / "avatars" / avatar
        shutil.rmtree(folder, ignore_errors=True)
        config.write_text(
            f'{avatar}:\n  preparation: true\n  bbox_shift: 0\n  video_path: "{args.clip}"\n'
            f'  audio_clips:\n    audio_0: "{wav}"\n',
            encoding="utf-8",
        )
        command += ["scripts/realtime_inference.py"]
        video, coords = folder / "vid_output" / "audio_0.mp4", folder / "coords.pkl"
    start = time.perf_counter()
    with open(out / "log.txt", "w", encoding="utf-8") as log:
        # a timeout, because MuseTalk's realtime consumer waits for ever when its producer has failed
        subprocess.run(
            [*command, "--inference_config", str(config)], check=True, stdout=log, stderr=log, timeout=args.timeout
        )
    boxes = pickle.loads(coords.read_bytes())  # our own run wrote it a moment ago
    margin = 10 if args.script == "inference" else 0  # the realtime script keeps it in the box
    frames = [cv2.imread(str(path)) for path in sorted(kept.glob("*.png"))]
    return {
        "frames": frames,
        "video": video,
        "boxes": [(int(x1), int(y1), int(x2), int(y2) + margin) for x1, y1, x2, y2 in boxes],
        "seconds": time.perf_counter() - start,
    }


def audio_of(path: Path) -> np.ndarray:
    """All audio samples of a file as the decoder gives them, channels by samples."""
    import av

    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)


def first_seconds(source: Path, target: Path, seconds: float) -> Path:
    """Write the first `seconds` of a PCM wave file."""
    with wave.open(str(source), "rb") as reader, wave.open(str(target), "wb") as writer:
        writer.setparams(reader.getparams())
        writer.writeframes(reader.readframes(round(seconds * reader.getframerate())))
    return target


def lower_face(frame: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """The lower half of the box, without the blurred rim of the host's mask."""
    x1, y1, x2, y2 = box
    rim = (x2 - x1) // 8
    return frame[(y1 + y2) // 2 + rim : y2 - rim, x1 + rim : x2 - rim]


def compare(args: argparse.Namespace, plain: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Figures of both runs and the list of what does not hold."""
    clip = list(read_frames(args.clip))
    cycle, boxes = clip + clip[::-1], plain["boxes"]
    boxes = boxes + boxes[::-1] if args.script == "inference" else boxes
    rows: dict[str, list[float]] = {key: [] for key in ("psnr_p", "psnr_o", "sharp_p", "sharp_o", "sharp_s", "drift")}
    outside = 0
    for index, (before, after) in enumerate(zip(plain["frames"], ours["frames"], strict=False)):
        source, box = cycle[index % len(cycle)], boxes[index % len(boxes)]
        s, p, o = (lower_face(frame, box) for frame in (source, before, after))
        for key, value in zip(
            rows,
            (psnr(s, p), psnr(s, o), laplacian_energy(p), laplacian_energy(o), laplacian_energy(s)),
            strict=False,
        ):
            rows[key].append(value)
        rows["drift"].append(float(np.abs(p.mean((0, 1)) - o.mean((0, 1))).max()))
        mask = np.ones(before.shape[:2], bool)
        mask[max(0, box[1]) : box[3], max(0, box[0]) : box[2]] = False
        outside += int((before[mask] != after[mask]).sum())
    figures: dict[str, Any] = {key: round(float(np.mean(values)), 3) for key, values in rows.items()}
    figures |= {
        "frames": [len(plain["frames"]), len(ours["frames"])],
        "video_frames": [sum(1 for _ in read_frames(run["video"])) for run in (plain, ours)],
        "fps": [str(probe(run["video"]).fps) for run in (plain, ours)],
        "audio_identical": bool(np.array_equal(audio_of(plain["video"]), audio_of(ours["video"]))),
        "outside_values_changed": outside,
        "seconds": [round(plain["seconds"], 1), round(ours["seconds"], 1)],
    }
    holds = {
        "same number of frames": len(set(figures["frames"])) == 1 and len(set(figures["video_frames"])) == 1,
        "frames there at all": figures["frames"][0] > 0,
        "same audio": figures["audio_identical"],
        "lower face nearer to the clip (PSNR)": figures["psnr_o"] > figures["psnr_p"],
        "lower face sharper": figures["sharp_o"] > figures["sharp_p"],
        "colours stay (mean within 1/255)": figures["drift"] < 1,
        "outside the box identical": outside == 0,
    }
    figures["holds"] = holds
    return figures


def picture(args: argparse.Namespace, plain: dict[str, Any], ours: dict[str, Any]) -> None:
    """Write the face of a frame in the middle: without us, with us."""
    index = len(ours["frames"]) // 2
    x1, y1, x2, y2 = plain["boxes"][index % len(plain["boxes"])]
    pair = [cv2.resize(run["frames"][index][y1:y2, x1:x2], (512, 512)) for run in (plain, ours)]
    write_image(args.out / "before_after.png", np.hstack(pair))


def main() -> int:
    """Run, compare, print; 0 when everything holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("musetalk", "host", "yunet", "clip", "wav", "out"):
        parser.add_argument(f"--{name}", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--script", choices=("inference", "realtime"), default="inference")
    parser.add_argument("--seconds", type=float, default=2.0, help="of the audio that are used")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds one run of the host may take")
    parser.add_argument("--report", action="store_true", help="have our run write its report, too")
    parser.add_argument("flags", nargs="*", help="our flags for the enhanced run, after --")
    args = parser.parse_args()
    args.out = args.out / args.script
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    wav = first_seconds(args.wav, args.out / "audio.wav", args.seconds)
    plain = run_host(args, "plain", wav, [])
    ours = run_host(args, "enhanced", wav, args.flags)
    figures = compare(args, plain, ours)
    picture(args, plain, ours)
    (args.out / "check.json").write_text(json.dumps(figures, indent=2), encoding="utf-8")
    for key, value in figures.items():
        print(f"{key:<24} {value}")
    return 0 if all(figures["holds"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
