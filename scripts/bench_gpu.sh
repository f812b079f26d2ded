#!/usr/bin/env bash
# The whole benchmark on this machine's GPU: every batch, dtype and backend beside gfpgan's own path, the time added
# to a host's loop, and a table last. Files under out/bench. Without a GPU it measures the CPU, small, and says so.
#   bash scripts/bench_gpu.sh [more arguments of `python -m scripts.benchmarks`]
#   MUSETALK_DIR=~/MuseTalk bash scripts/bench_gpu.sh      the host is MuseTalk itself, with its weights
# The networks of a stand-in host come from diffusers where that is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh gfpgan bench
if "$PY" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    size=(--device cuda --batches 1,2,4,8,16,32,64 --faces 64 --reference-faces 8 --rounds 5 --dtypes fp32,bf16,fp16)
else
    echo "no GPU: the figures below are the CPU's" >&2
    size=(--device cpu --quick --dtypes fp32)
fi
host=(--host-loop)
[ -z "${MUSETALK_DIR:-}" ] || host+=(--musetalk "$MUSETALK_DIR")
exec "$PY" -m scripts.benchmarks --backends torch,onnx --regions full,lower "${size[@]}" "${host[@]}" "$@"
