"""The process that restores one video of the service.

It is a process of its own because a damaged video may crash a decoder, and because it can be
stopped at any frame. It reads what to do from stdin, as JSON on one line, writes progress and
result to stdout, as JSON lines, and ends when stdin is closed: then the server is gone.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from ..errors import EnhanceError, MediaError, MissingDependencyError, WeightError
from ..jobs import VideoSettings, restore_video
from ..media import index_video


class _LimitError(Exception):
    """The video is larger than the service allows."""


def main() -> int:
    """Restore the video; 1 if that failed."""
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    try:
        _send({"result": _restored(order)})
    except _LimitError as error:
        _send({"error": str(error)})
    except MediaError as error:
        _send({"error": str(error).removeprefix(f"{error.path}: ")})
    except (WeightError, MissingDependencyError):
        traceback.print_exc()
        _send({"error": "the model is not available on this server"})
    except EnhanceError as error:
        _send({"error": str(error)})
    else:
        return 0
    return 1


def _restored(order: dict[str, Any]) -> dict[str, Any]:
    source, output = Path(order["source"]), Path(order["output"])
    index = index_video(source, None, None, strict=False)
    if len(index) > order["max_frames"]:
        raise _LimitError(f"{len(index)} frames; at most {order['max_frames']} are allowed")
    if index.width * index.height > order["max_pixels"]:
        raise _LimitError(f"{index.width}x{index.height} pixels; too many")

    def report_progress(frames: int, total: int) -> None:
        _send({"frames": frames, "total": total})

    settings = VideoSettings(**order["settings"])
    result = restore_video(source, output, settings, progress=report_progress)
    if order["report"]:
        _write_report(source, output, order)
    model = result.stats["job"]["model_that_ran"]["model"]
    return {**result.stats["totals"], "model": model, "seconds": round(result.seconds, 2)}


def _write_report(source: Path, output: Path, order: dict[str, Any]) -> None:
    from ..report import compare
    from ..report.inputs import find_locator, read_sidecar

    notes, totals = read_sidecar(None, output)
    locate = find_locator(order["settings"].get("detector_path"))
    title = f"{order['name']}, before and after"
    compare(source, output, locate=locate, notes=notes, totals=totals, title=title).write(
        output.parent
    )


def _send(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)  # noqa: T201 - the protocol


def _end_with_the_server() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
