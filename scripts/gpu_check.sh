#!/usr/bin/env bash
# Everything that only a GPU can show, in at most 9 minutes and without a network: the tests marked gpu, and a
# benchmark sized for the card. Prints one table; out/gpu_check/gpu_check.json has the figures.
#   bash scripts/gpu_check.sh [--cpu] [--wheels DIR] [--checks FILE] [--minutes 9] [--out DIR]
# --cpu is a dry run. PYTHON is the interpreter with torch, else python3. Packages that are missing are named with the
# command that collects their wheels on another machine; --wheels installs them from there, beside the interpreter's own.
# --checks runs one more script of checks, by default gpu_check.py of a folder shared/tools beside the checkout.
set -euo pipefail
cd "$(dirname "$0")/.."
export MUSETALK_ENHANCE_CACHE="${MUSETALK_ENHANCE_CACHE:-$(mktemp -d)}" PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" scripts/gpu_check.py "$@"
