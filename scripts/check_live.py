"""Play a live host on the CPU: is every frame there, in order and in time?

    python scripts/check_live.py [--minutes 10] [--sessions 2] [--batch 8] [--fps 25]
        [--deadline MS] [--slow 10]

Each session is a thread that generates a batch of soft faces every BATCH / FPS seconds and restores
it on a stream of its own over one network, `Ahead` of the host, as MuseTalk's realtime loop does; a
second thread takes single frames from a queue, with the number of the audio that belongs to each,
looks at them, and notes how late they are. In the middle third of every minute the networks take
SLOW times as long. At the end: frames that were lost, out of order or of an earlier batch (every
frame carries its number in a corner that is not restored), batches that came after the next one was
due, steps, percentiles, and how much memory grew after the first fifth. The exit code is 1 where a
frame was lost or mixed up, or memory grew by more than 5 %.
"""

from __future__ import annotations

import argparse
import json
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil

from musetalk_enhance import FaceEnhancer
from musetalk_enhance.hosts.overlap import Ahead

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))
from talking_head import talking_head  # noqa: E402

LOOP = 50
DIGITS = 4


def soft_faces() -> np.ndarray:
    """A loop of soft faces, BGR uint8 (N, 256, 256, 3)."""
    faces = []
    for frame, (left, top, right, bottom) in talking_head(LOOP, size=640):
        face = cv2.resize(frame[top:bottom, left:right], (96, 96), interpolation=cv2.INTER_AREA)
        faces.append(cv2.resize(face, (256, 256), interpolation=cv2.INTER_CUBIC))
    return np.stack(faces).astype(np.uint8)


def numbered(face: np.ndarray, number: int) -> np.ndarray:
    """A copy of `face` with its number in the first pixels."""
    face = face.copy()
    face[0, :DIGITS, 0] = [number // 256**place % 256 for place in range(DIGITS)]
    return face


def number_of(face: np.ndarray) -> int:
    """The number that `numbered` wrote."""
    return sum(int(value) * 256**place for place, value in enumerate(face[0, :DIGITS, 0]))


class Session(threading.Thread):
    """One user of the host."""

    def __init__(self, enhancer: FaceEnhancer, faces: np.ndarray, args: argparse.Namespace) -> None:
        super().__init__(name="session")
        self.stream, self.faces, self.args = enhancer.stream(), faces, args
        self.queue: queue.Queue[Any] = queue.Queue()
        self.sent = self.mixed_up = self.shown = 0
        self.late: list[float] = []
        self.consumer = threading.Thread(target=self.consume, name="paste")

    def run(self) -> None:
        """Generate at the host's rate."""
        self.consumer.start()
        ahead, start, period = Ahead(), time.perf_counter(), self.args.batch / self.args.fps
        batches = int(self.args.minutes * 60 / period)
        for batch in range(batches):
            wait = start + batch * period - time.perf_counter()
            time.sleep(max(0.0, wait))
            numbers = range(batch * self.args.batch, (batch + 1) * self.args.batch)
            frames = np.stack([numbered(self.faces[n % LOOP], n) for n in numbers])
            due = start + (batch + 1) * period
            for number, frame in zip(numbers, ahead.submit(self.stream, frames), strict=True):
                self.queue.put((number, frame, due))
                self.sent += 1
        self.queue.put(None)
        self.consumer.join()
        ahead.close()

    def consume(self) -> None:
        """Look at the frames as a host's second thread does."""
        expected = 0
        while (item := self.queue.get()) is not None:
            audio, frame, due = item
            face = frame.astype(np.uint8)
            self.late.append(time.perf_counter() - due)
            self.mixed_up += number_of(face) != audio or audio != expected
            expected += 1
            self.shown += 1


def slow_down(enhancer: FaceEnhancer, factor: float) -> threading.Event:
    """While the event is set, every network takes `factor` times as long."""
    slow = threading.Event()
    engine: Any = enhancer.engine
    for _, each in engine._steps:
        restorer, restore = each.model.restorer, each.model.restorer.restore

        def slowly(faces: Any, restore: Any = restore) -> Any:
            start = time.perf_counter()
            result = restore(faces)
            if slow.is_set():
                time.sleep((factor - 1) * (time.perf_counter() - start))
            return result

        restorer.restore = slowly
    return slow


def main() -> int:
    """Play, and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--sessions", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--fps", type=float, default=25)
    parser.add_argument("--deadline", type=float, help="ms; by default 0.8 of a batch's time")
    parser.add_argument("--slow", type=float, default=10)
    args = parser.parse_args()
    period = 1e3 * args.batch / args.fps
    enhancer = FaceEnhancer(model="lite", region="lower", deadline_ms=args.deadline or 0.8 * period)
    slow, faces = slow_down(enhancer, args.slow), soft_faces()
    sessions = [Session(enhancer, faces, args) for _ in range(args.sessions)]
    start, memory = time.perf_counter(), []
    for session in sessions:
        session.start()
    while any(session.is_alive() for session in sessions):
        time.sleep(0.5)
        seconds = time.perf_counter() - start
        (slow.set if 20 <= seconds % 60 < 40 else slow.clear)()
        memory.append((seconds, psutil.Process().memory_info().rss))
    took = time.perf_counter() - start
    settled = [rss for seconds, rss in memory if seconds > 0.2 * took]
    third = max(1, len(settled) // 3)
    growth = float(np.median(settled[-third:]) / np.median(settled[:third]) - 1)
    report = {
        "minutes": round(took / 60, 2),
        "frames": sum(session.sent for session in sessions),
        "lost": sum(session.sent - session.shown for session in sessions),
        "mixed up": sum(session.mixed_up for session in sessions),
        "after the next batch was due": round(
            float(np.mean([late > 0 for session in sessions for late in session.late])), 4
        ),
        "latest, ms": round(1e3 * max(max(session.late) for session in sessions)),
        "rate of the target": round(args.minutes * 60 / took, 3),
        "memory growth": round(growth, 4),
        "steps": [dict(session.stream.stats.steps) for session in sessions],
        "late calls": [session.stream.stats.late for session in sessions],
        "call, ms": [session.stream.stats.percentiles()["call"] for session in sessions],
    }
    print(json.dumps(report, indent=1))
    return int(bool(report["lost"] or report["mixed up"] or growth > 0.05))


if __name__ == "__main__":
    sys.exit(main())
