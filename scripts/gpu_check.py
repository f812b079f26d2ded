"""The checks and the benchmark of ``scripts/gpu_check.sh``; see there."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from scripts.benchmarks.measure import Measurement
    from scripts.benchmarks.runner import Candidate
    from scripts.benchmarks.subject import Subject

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "tools" / "gpu_check.py"
NEEDED = {
    "torch": "torch",
    "numpy": "numpy",
    "cv2": "opencv-python-headless",
    "omegaconf": "omegaconf",
    "safetensors": "safetensors",
    "spandrel": "spandrel",
    "av": "av",
    "PIL": "pillow",
    "filelock": "filelock",
    "psutil": "psutil",
    "tqdm": "tqdm",
    "pytest": "pytest",
}
"""Modules without which nothing runs, and their packages."""
OPTIONAL = {
    "gfpgan": "gfpgan",
    "basicsr": "basicsr",
    "facexlib": "facexlib",
    "onnxruntime": "onnxruntime-gpu",
    "onnx": "onnx",
    "skimage": "scikit-image",
}
"""Modules without which a part is left out: paths (a) and (b), ONNX Runtime, some tests."""
TIMES_FASTER, MATRIX_SHARE, OVERHEAD = 10.0, 0.25, 1.25
"""Bars: times faster than path (a); share of the bf16 matrix rate; defaults over network alone."""


def main() -> int:
    """Run everything; 0 if all checks passed and, on a GPU, all bars were reached."""
    args = _arguments()
    deadline = time.monotonic() + 60 * args.minutes
    if args.wheels:
        _install(args.wheels)
    missing = [package for module, package in NEEDED.items() if find_spec(module) is None]
    absent = [package for module, package in OPTIONAL.items() if find_spec(module) is None]
    if missing or absent:
        wheels = f"pip wheel --wheel-dir wheels {' '.join([*missing, *absent])}"
        print(f"missing: {', '.join(missing) or 'nothing that is needed'}")
        print(f"left out without: {', '.join(absent) or 'nothing'}")
        print(f"on a machine with a network: {wheels}; then --wheels wheels")
    if missing:
        return 2
    import torch

    if not args.cpu and not torch.cuda.is_available():
        print("torch finds no GPU; --cpu is a dry run of the same steps")
        return 2
    device = torch.device("cpu" if args.cpu else "cuda:0")
    args.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"machine": _machine(device), "checks": {}}
    share = 60 * args.minutes / 3
    report["checks"]["tests"] = _tests(args.cpu, share)
    if args.checks.is_file():
        report["checks"]["script"] = _script(args.checks, args.cpu, args.out, share)
    report |= _benchmark(device, deadline)
    report["bars"] = {} if args.cpu else _bars(report)
    (args.out / "gpu_check.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    print("\n".join(_table(report)))
    passed = all(check == "passed" for check in report["checks"].values())
    return 0 if passed and all(bar["reached"] for bar in report["bars"].values()) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu_check.sh", description=__doc__)
    parser.add_argument("--cpu", action="store_true", help="a dry run without a GPU")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="install what is missing")
    parser.add_argument("--checks", type=Path, default=SHARED, metavar="FILE", help="more checks")
    parser.add_argument("--minutes", type=float, default=9.0, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("out/gpu_check"), metavar="DIR")
    return parser.parse_args()


def _install(wheels: Path) -> None:
    """Install missing packages from a folder, into one of their own that is searched last."""
    target = wheels / "installed"
    names = [name for module, name in {**NEEDED, **OPTIONAL}.items() if find_spec(module) is None]
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--find-links", str(wheels)]
    for name in names:  # one by one: what no wheel is there for costs only itself
        subprocess.run([*command, "--no-deps", "--target", str(target), name], check=False)
    sys.path.append(str(target))
    os.environ["PYTHONPATH"] = f"{os.environ.get('PYTHONPATH', ROOT)}{os.pathsep}{target}"


def _machine(device: torch.device) -> dict[str, Any]:
    import torch

    from scripts.benchmarks import machine

    facts = machine.facts(str(device))
    facts["tf32 in convolutions"] = torch.backends.cudnn.allow_tf32
    if device.type == "cuda":
        facts["capability"] = torch.cuda.get_device_capability(device)
    return facts


def _tests(cpu: bool, seconds: float) -> str:
    environment = {**os.environ, "MUSETALK_ENHANCE_GPU": "cpu" if cpu else "1"}
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-s", "tests/test_gpu.py"]
    return _run(command, environment, seconds)


def _script(path: Path, cpu: bool, out: Path, seconds: float) -> str:
    command = [sys.executable, str(path), *(["--cpu"] if cpu else [])]
    return _run(command, {**os.environ, "OUT": str(out)}, seconds)


def _run(command: list[str], environment: dict[str, str], seconds: float) -> str:
    try:
        code = subprocess.run(command, cwd=ROOT, env=environment, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        return f"not finished after {seconds:.0f} s"
    return "passed" if code == 0 else f"failed with exit code {code}"


def _benchmark(device: torch.device, deadline: float) -> dict[str, Any]:
    """Rows of the benchmark, usual precisions first; what does not fit in the time is left out."""
    from scripts.benchmarks import reference, roofline
    from scripts.benchmarks.measure import Rounds, measure
    from scripts.benchmarks.rows import roof, rows_of
    from scripts.benchmarks.subject import Subject, random_subject
    from scripts.benchmarks.suite import work_folder

    cpu = device.type == "cpu"
    dtypes, batches = ["bf16", "fp16", "fp32"], [1, 2, 4, 8, 16, 32, 64]
    if cpu:
        dtypes, batches = ["fp32"], [1, 2]
    rounds = Rounds(1 if cpu else 3, 1, device)
    results: list[Measurement] = []
    left_out: list[str] = []
    with work_folder() as folder:
        gfpgan, lite = random_subject(folder), Subject("lite", {"model": "lite"})
        paths = reference.references(gfpgan, device, 1 if cpu else 4, (256, 256), folder)
        groups = [
            _pair(subject, device, dtype, batch)
            for dtype in dtypes
            for subject in (lite, gfpgan)
            for batch in batches
        ]
        groups = [[*roofline.probes(device)], *groups]
        groups.insert(len(groups) if cpu else 1, paths)  # a minute a face on a busy CPU
        longest_s = 0.0
        for group in groups:
            start = time.monotonic()
            if start + longest_s > deadline:
                left_out += [candidate.name for candidate in group]
                continue
            results += measure([], rounds, group)
            longest_s = max(longest_s, time.monotonic() - start)
        work = roofline.work_of(gfpgan)
    rows = rows_of(results, None)
    plan = [row for row in rows if row["path"] == "plan" and row["reason"] is None]
    for row in rows:
        if plan and row["reason"] is None and "GFPGAN" in row["name"]:
            row["times_faster"] = {"plan": round(plan[0]["ms_per_face"] / row["ms_per_face"], 2)}
    large = [row for row in rows if row.get("subject") != "lite"]
    return {"rows": rows, "roofline": roof(work, results, large), "left_out": left_out}


def _pair(subject: Subject, device: torch.device, dtype: str, batch: int) -> list[Candidate]:
    """The network alone, and with all defaults."""
    from musetalk_enhance.cli.bench import moving_frames
    from musetalk_enhance.config.settings import EnhancerSettings
    from musetalk_enhance.enhancer import FaceEnhancer
    from scripts.benchmarks.candidates import NETWORK_ALONE, EnhancerRunner
    from scripts.benchmarks.runner import Candidate, Runner

    def build(options: dict[str, Any]) -> Runner:
        settings: dict[str, Any] = {
            **subject.options,
            **options,
            "device": str(device),
            "backend": "torch",
            "dtype": dtype,
            "batch_size": batch,
            "on_error": "raise",
        }
        enhancer = FaceEnhancer.from_settings(EnhancerSettings(enabled=True, **settings))
        faces = max(2 if device.type == "cpu" else 8, batch)  # a repeated frame is not computed
        return EnhancerRunner(enhancer, faces, moving_frames(faces))

    candidates = []
    for words, options in (("alone", NETWORK_ALONE), ("defaults", {})):
        name = "lite" if subject.name == "lite" else "GFPGAN"
        facts: dict[str, Any] = {"path": "ours", "subject": subject.name, "options": words}
        facts |= {"backend": "torch", "dtype": dtype, "region": "full", "batch": batch}
        load = lambda options=options: build(dict(options))  # noqa: E731
        candidates.append(Candidate(f"{name} {dtype} batch {batch} {words}", load, facts))
    return candidates


def _bars(report: dict[str, Any]) -> dict[str, Any]:
    """What was to be reached, and what was."""
    rows = [row for row in report["rows"] if row["path"] == "ours" and row["reason"] is None]
    faster = [row["times_faster"]["plan"] for row in rows if row.get("times_faster")]
    limits = {limit["dtype"]: limit for limit in (report["roofline"] or {}).get("limits", [])}
    share = limits.get("bf16", {}).get("best", {}).get("full", {}).get("share")
    ms = {(row["subject"], row["dtype"], row["batch"], row["options"]): row for row in rows}
    over = {
        " ".join(map(str, key[:3])): round(row["ms_per_face"] / alone["ms_per_face"], 3)
        for key, row in ms.items()
        if key[3] == "defaults" and (alone := ms.get((*key[:3], "alone"))) is not None
    }
    bars = {
        f"{TIMES_FASTER:g} times path (a)": (max(faster, default=None), TIMES_FASTER),
        f"{MATRIX_SHARE:.0%} of the bf16 matrix rate": (share, MATRIX_SHARE),
    }
    result: dict[str, Any] = {
        name: {"value": value, "reached": value is not None and value >= bar}
        for name, (value, bar) in bars.items()
    }
    worst = max(over.values(), default=None)
    result["defaults at most 25 % over the network alone"] = {
        "value": worst,
        "reached": worst is not None and worst <= OVERHEAD,
        "all": over,
    }
    return result


def _table(report: dict[str, Any]) -> list[str]:
    lines = [f"{'':44}{'ms/face':>10}{'faces/s':>10}{'MiB':>8}{'x (a)':>8}  runs as"]
    for row in report["rows"]:
        if row["reason"] is not None:
            lines.append(f"{row['name']:44}not measured: {row['reason'][:60]}")
            continue
        times = (row.get("times_faster") or {}).get("plan", "")
        mib = row["peak_bytes"] / 2**20
        figures = f"{row['ms_per_face']:10.2f}{row['faces_per_second']:10.2f}{mib:8.0f}{times:>8}"
        lines.append(f"{row['name']:44}{figures}  {row['runs_as']}")
    lines += [f"not reached in time: {', '.join(report['left_out'])}"] if report["left_out"] else []
    lines += [f"{name}: {result}" for name, result in report["checks"].items()]
    for name, bar in report["bars"].items():
        lines.append(f"{'reached' if bar['reached'] else 'MISSED'}: {name}: {bar['value']}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
