"""Load a server of `musetalk-enhance serve` and check that no answer belongs to somebody else.

It starts a server on the loopback interface, or uses one that runs (`--url`), and prints a table:

    python scripts/load_test.py --model lite --clients 64 --rounds 4 --sessions 8
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import cv2
import httpx
import numpy as np
from websockets.sync.client import connect

from musetalk_enhance import FaceEnhancer
from musetalk_enhance.cli.bench import moving_frames
from musetalk_enhance.serve.live import HEAD, STATUSES

SIDE = 256
LARGEST_DIFFERENCE = 2
"""Between answers for the same face, in 1/255: a batch of another size may round differently."""


def main() -> int:
    """Print the figures; 1 if an answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", help="a server that runs; default: start one")
    parser.add_argument("--token", default=os.environ.get("MUSETALK_ENHANCE_TOKEN"))
    parser.add_argument("--model", default="lite")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2, help="requests of each client")
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--frames", type=int, default=25, help="of each session")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    headers = {"authorization": f"Bearer {args.token}"} if args.token else {}
    with server(args) as url:
        limits = httpx.Limits(max_connections=args.clients + 8)
        with httpx.Client(base_url=url, headers=headers, timeout=300, limits=limits) as client:
            figures = {"images": images(client, args), "live": live(url, headers, args)}
    figures["class"] = in_class(args)
    reached = figures["images"]["faces_per_second"] / figures["class"]["faces_per_second"]
    figures["images"]["share_of_the_class"] = round(reached, 3)
    for name, values in figures.items():
        print(f"{name:<8}", "  ".join(f"{key} {value}" for key, value in values.items()))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return int(figures["images"]["wrong"] > 0 or figures["live"]["wrong"] > 0)


@contextmanager
def server(args: argparse.Namespace) -> Iterator[str]:
    """The URL of the server, which is stopped at the end if it was started here."""
    if args.url:
        yield args.url
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "musetalk_enhance", "serve", "--port", "0"),
            *("--model", args.model, "--backend", args.backend, "--face-detector", "none"),
            *("--data-dir", folder, "--time-limit", "300", "--max-streams", str(args.sessions)),
        ]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if match := re.search(r"serving on (http://\S+)", line):
                    break
            else:
                raise SystemExit("the server did not start")
            while not ready(match[1]):
                time.sleep(0.1)
            yield match[1]
        finally:
            process.terminate()
            process.communicate()


def ready(url: str) -> bool:
    """Whether the server accepts requests."""
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.TransportError:
        return False


def faces(count: int) -> list[np.ndarray]:
    """Different faces, as far as a network without a detector can tell."""
    return [moving_frames(1, seed)[0] for seed in range(count)]


def images(client: httpx.Client, args: argparse.Namespace) -> dict[str, float]:
    """Every client at once, each with a face of its own, against the answers one by one."""
    uploads = [bytes(cv2.imencode(".bmp", face)[1]) for face in faces(args.clients)]
    options = {"has_aligned": "true", "response": "image", "face_restoration_weight": "1"}

    def send(data: bytes) -> tuple[int, np.ndarray | None, float]:
        begin = time.perf_counter()
        while True:
            answer = client.post("/restore", files={"image": data}, data=options)
            if answer.status_code != 429:
                break
            retries.update([429])
            time.sleep(float(answer.headers["retry-after"]))
        pixels = None
        if answer.status_code == 200:
            pixels = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR)
        return answer.status_code, pixels, time.perf_counter() - begin

    retries: Counter[int] = Counter()
    expected = [send(data)[1] for data in uploads]
    begin = time.perf_counter()
    with ThreadPoolExecutor(args.clients) as pool:
        answers = list(pool.map(send, uploads * args.rounds))
    elapsed = time.perf_counter() - begin
    wrong = sum(
        pixels is not None and not alike(pixels, expected[index % args.clients])
        for index, (_, pixels, _) in enumerate(answers)
    )
    seconds = sorted(each for _, _, each in answers)
    return {
        "requests": len(answers),
        "errors": sum(status != 200 for status, _, _ in answers),
        "retries": retries[429],
        "wrong": wrong,
        "faces_per_second": round(len(answers) / elapsed, 2),
        "median_s": round(statistics.median(seconds), 3),
        "p95_s": round(seconds[int(0.95 * (len(seconds) - 1))], 3),
    }


def live(url: str, headers: dict[str, str], args: argparse.Namespace) -> dict[str, float]:
    """Sessions at once, each with a clip of its own, against each alone."""
    clips = [moving_frames(args.frames, 100 + seed) for seed in range(args.sessions)]
    options = {"format": "raw", "width": SIDE, "height": SIDE, "deadline_ms": 60000}

    def run(clip: np.ndarray) -> list[tuple[str, np.ndarray]]:
        answers = []
        address = url.replace("http", "ws", 1) + "/stream"
        with connect(address, additional_headers=headers, max_size=None) as socket:
            socket.send(json.dumps(options))
            socket.recv()
            for frame in clip:
                socket.send(frame.tobytes())
                data = socket.recv()
                assert isinstance(data, bytes)
                status = STATUSES[HEAD.unpack_from(data)[1]]
                pixels = np.frombuffer(data, np.uint8, offset=HEAD.size).reshape(SIDE, SIDE, 3)
                answers.append((status, pixels))
        return answers

    alone = [run(clip) for clip in clips]
    begin = time.perf_counter()
    with ThreadPoolExecutor(args.sessions) as pool:
        together = list(pool.map(run, clips))
    elapsed = time.perf_counter() - begin
    pairs = [
        (one, other)
        for first, second in zip(alone, together, strict=True)
        for one, other in zip(first, second, strict=True)
    ]
    return {
        "sessions": args.sessions,
        "frames": len(pairs),
        "restored": sum(status == "restored" for _, (status, _) in pairs),
        "wrong": sum(not alike(one[1], other[1]) for one, other in pairs),
        "same_bytes": sum(np.array_equal(one[1], other[1]) for one, other in pairs),
        "frames_per_second": round(len(pairs) / elapsed, 2),
    }


def alike(image: np.ndarray, other: np.ndarray | None) -> bool:
    """Whether two answers show the same, up to rounding."""
    if other is None or image.shape != other.shape:
        return False
    return int(np.abs(image.astype(int) - other).max()) <= LARGEST_DIFFERENCE


def in_class(args: argparse.Namespace) -> dict[str, float]:
    """Faces per second of the class with its defaults, as `musetalk-enhance bench` measures."""
    frames = moving_frames(16)
    with FaceEnhancer(model=args.model, backend=args.backend, dtype="fp32") as enhancer:
        enhancer(frames)
        seconds = []
        for _ in range(3):
            begin = time.perf_counter()
            enhancer(frames)
            seconds.append(time.perf_counter() - begin)
    return {"faces_per_second": round(len(frames) / statistics.median(seconds), 2)}


if __name__ == "__main__":
    sys.exit(main())
