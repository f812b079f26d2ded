"""A host's own live loop for minutes: is every frame there, in order, with its audio, in time?

Frames are due at a fixed rate. For a third of every minute our networks take ten times as long. A
frame is recognized by which frame of the avatar's loop it resembles most.
"""

from __future__ import annotations

import runpy
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import psutil

from scripts.check_live import slow_down

from .stand_ins import Box, LiveRun, expect

SLOW_FACTOR, SLOW_SECONDS = 10, range(20, 40)
"""How much longer our networks take, and in which seconds of every minute."""
SIDE = 48


def is_slow(seconds: float) -> bool:
    """Whether our networks are slowed down at that time of a run."""
    return int(seconds) % 60 in SLOW_SECONDS


class Pace:
    """Lets frames through at a fixed rate from the first on, as LiveTalking's stream does.

    Args:
        fps: the rate.

    Attributes:
        latest: how late the latest frame came, in seconds.
    """

    def __init__(self, fps: float) -> None:
        self._fps, self._start, self._frames, self.latest = fps, 0.0, 0, 0.0

    def wait(self, frames: int = 1) -> None:
        """Wait until the next `frames` are due."""
        now = time.perf_counter()
        self._start = self._start or now
        left = self._start + self._frames / self._fps - now
        self.latest = max(self.latest, -left)
        self._frames += frames
        time.sleep(max(0.0, left))


class Watch:
    """Looks at what a host shows.

    Attributes:
        pace: at which the host's stand-ins take or make frames.

    Args:
        loop: BGR uint8 (H, W, 3), in the order in which the host shows them.
        box: of the face in them.
    """

    def __init__(self, loop: Sequence[np.ndarray], box: Box, fps: float) -> None:
        self._box = box
        self._loop = np.stack([self._small(frame) for frame in loop])
        self.frames = self.mixed_up = self.audio = self.audio_mixed_up = 0
        self.shown = np.zeros(2)  # without and with slow networks
        self.start = self.end = 0.0
        self.pace = Pace(fps)

    def _small(self, frame: np.ndarray) -> np.ndarray:
        left, top, right, bottom = self._box
        gray = cv2.cvtColor(frame[top:bottom, left:right], cv2.COLOR_BGR2GRAY)
        return cv2.resize(gray, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)

    def show(self, frame: np.ndarray) -> None:
        """The host shows its next frame."""
        self.end = time.perf_counter()
        self.start = self.start or self.end
        self.shown[int(is_slow(self.end - self.start))] += 1
        nearest = np.abs(self._loop - self._small(frame)).sum((1, 2)).argmin()
        expected = self._loop[self.frames % len(self._loop)]
        self.mixed_up += not np.array_equal(self._loop[nearest], expected)
        self.frames += 1

    def hear(self, number: int, expected: int) -> None:
        """The host plays its next audio, that of the frame that it showed last."""
        self.audio += 1
        self.audio_mixed_up += number != expected or (self.audio + 1) // 2 != self.frames

    def rates(self) -> tuple[float, float, float]:
        """Frames a second: of all, while our networks have their own speed, and while not."""
        took = self.end - self.start
        slow = sum(is_slow(second) for second in range(int(took)))
        quick, late = self.shown / np.maximum(1, [took - slow, slow])
        return (self.frames - 1) / took, float(quick), float(late)


class Meter(threading.Thread):
    """Slows our networks down, and measures memory, from the first frame that is shown."""

    def __init__(self, watch: Watch) -> None:
        super().__init__(name="meter", daemon=True)
        self.watch, self.memory = watch, list[tuple[float, int]]()
        self.slow = threading.Event()
        self.stop = threading.Event()

    def on_load(self, enhancer: Any) -> None:
        """Called with the enhancer of the run."""
        self.slow = slow_down(enhancer, SLOW_FACTOR)

    def run(self) -> None:
        while not self.stop.wait(0.25):
            seconds = time.perf_counter() - self.watch.start
            if self.watch.start:
                (self.slow.set if is_slow(seconds) else self.slow.clear)()
                self.memory.append((seconds, psutil.Process().memory_info().rss))

    def mebibytes(self) -> tuple[float, float]:
        """Memory in the first minute, without its first quarter, and in the last 45 seconds."""
        end = self.memory[-1][0]
        length = min(60, end)
        spans = ((length / 4, length), (end - 0.75 * length, end))
        values = [
            [rss for seconds, rss in self.memory if first <= seconds <= last]
            for first, last in spans
        ]
        first, last = (float(np.median(each)) / 2**20 for each in values)
        return first, last


def measure(
    name: str,
    words: Sequence[str],
    run: LiveRun,
    batch: int,
    begin: Callable[[int], Watch],
) -> None:
    """Run a host's script alone, for a minute at most, and then with us, and report.

    Args:
        name: of the loop.
        words: the script and its arguments.
        run: its length, and the rate.
        batch: frames that the host generates at once; our deadline is 0.8 of their time.
        begin: called with the number of frames of a run, prepares the host; what looks at it.
    """
    from musetalk_enhance.hosts.registry import recognize
    from musetalk_enhance.hosts.script import run_script

    counts = [
        round(each * 60 * run.fps / batch) * batch for each in (min(1, run.minutes), run.minutes)
    ]
    alone = begin(counts[0])
    sys.argv = list(words)
    try:
        runpy.run_path(words[0], run_name="__main__")
    except KeyboardInterrupt:  # the end of a service
        pass
    ours = begin(counts[1])
    meter = Meter(ours)
    meter.start()
    flags = {"enabled": True, "model": "lite", "device": "cpu", "region": "lower"}
    flags |= {"deadline_ms": 800 * batch / run.fps}
    enhancer = run_script(words[0], words[1:], flags, meter.on_load, choose=recognize)
    meter.stop.set()
    meter.join()
    expect(alone.frames - counts[0] == ours.frames - counts[1], "as many frames as without us")
    report(name, counts[1], alone, ours, meter, enhancer)


def report(name: str, count: int, alone: Watch, ours: Watch, meter: Meter, enhancer: Any) -> None:
    """Print what was measured, and raise where something does not hold."""
    stats, (first, last) = enhancer.stats, meter.mebibytes()
    rate, quick, late = ours.rates()
    print(
        f"  {name}: {(ours.end - ours.start) / 60:.1f} minutes, {ours.frames} of {count} frames, "
        f"{ours.mixed_up} out of order; {ours.audio} pieces of audio, {ours.audio_mixed_up} not "
        f"with their frame\n    {alone.rates()[0]:.2f} frames a second without us, {rate:.2f} "
        f"with us ({quick:.2f} and, with slow networks, {late:.2f}); the latest "
        f"{1e3 * alone.pace.latest:.0f} and {1e3 * ours.pace.latest:.0f} ms late\n"
        f"    memory {first:.0f} MiB in the first minute, {last:.0f} in the last "
        f"({last / first - 1:+.1%})\n    "
        f"{stats.restored} of {stats.frames} faces restored, left to the host: "
        f"{dict(stats.left_alone)}, steps {dict(stats.steps)}, {stats.late} late calls, "
        f"call {stats.percentiles().get('call')} ms"
    )
    expect(alone.mixed_up == 0, f"{alone.mixed_up} frames are out of order without us")
    expect(ours.mixed_up == 0, f"{ours.mixed_up} frames are out of order")
    expect(ours.audio_mixed_up == 0, f"{ours.audio_mixed_up} pieces of audio are out of order")
    expect(last < 1.05 * first, f"memory grows by {last / first - 1:.1%}")
    expect(rate > 0.97 * alone.rates()[0], f"the rate falls to {rate:.2f}")
