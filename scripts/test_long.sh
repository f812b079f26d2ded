#!/usr/bin/env bash
# The tests that take more than a minute each, and jobs that are killed again and again (scripts/kill_jobs.py).
# DETECTOR=/path/to/face_detection_yunet_2023mar.onnx PICTURES=FOLDER FILM=FILE bash scripts/test_long.sh
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh all
"$PY" -m pytest -m long "$@"
if [ -n "${PICTURES:-}" ]; then
    "$PY" scripts/kill_jobs.py --kills 15 -- "$PY" -m musetalk_enhance images "$PICTURES" --output-dir {out} \
        --model lite --backend torch --quiet --detector-path "$DETECTOR"
fi
if [ -n "${FILM:-}" ]; then
    "$PY" scripts/kill_jobs.py --kills 15 -- "$PY" -m musetalk_enhance video "$FILM" {out}/film.mp4 \
        --model lite --backend torch --segment 16 --quiet --detector-path "$DETECTOR"
fi
