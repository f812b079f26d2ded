#!/usr/bin/env bash
# The demo on a fresh machine: a soft talking head in, a sharper one out, files under out/demo/. No GPU, no
# download but the packages. Arguments go to examples/demo.py: bash scripts/demo.sh --seconds 8 --out out/long
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh demo
# as `python examples/demo.py`, but that Ctrl-C while torch is imported is one line, too
"$PY" -c '
import runpy, sys
sys.argv[0] = "examples/demo.py"
sys.path[0] = "examples"
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except KeyboardInterrupt:
    sys.exit("demo: interrupted, nothing was written")' "$@"
