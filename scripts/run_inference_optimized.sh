#!/usr/bin/env bash
# MuseTalk's own inference script, unmodified, with its faces restored.
#
#   run_inference_optimized.sh v1|v1.5 normal|realtime [arguments of MuseTalk's script, or --gfpgan_...]
#
#   cd ~/MuseTalk && bash /path/to/run_inference_optimized.sh v1.5 normal
#   MUSETALK_DIR=~/MuseTalk bash run_inference_optimized.sh v1.5 realtime --fps 25 --gfpgan_model gfpgan-1.4
#
# What you give comes last and wins, over the flags below too; paths are relative to MuseTalk's folder. In a YAML
# section `gfpgan:` everything counts but the flags below: give those here (--gfpgan_region mouth).
#
# MUSETALK_DIR  MuseTalk's folder; the current one where it is not set
# PYTHON        the python of MuseTalk's environment, with musetalk_enhance installed; python, else python3
# FFMPEG_PATH   the folder of ffmpeg, as MuseTalk's README has it; handed on as --ffmpeg_path
# CUDA_VISIBLE_DEVICES, MUSETALK_ENHANCE_CACHE and all others reach both as they are.
set -euo pipefail

fail() {
    echo "run_inference_optimized.sh: $1" >&2
    exit 2
}

usage="usage: run_inference_optimized.sh v1|v1.5 normal|realtime [arguments of MuseTalk's script, or --gfpgan_...]"
[ "$#" -ge 2 ] || fail "$usage"
case $1 in
    v1 | v1.0) model=(--version v1 --unet_model_path models/musetalk/pytorch_model.bin --unet_config models/musetalk/musetalk.json) ;;
    v1.5 | v15) model=(--version v15 --unet_model_path models/musetalkV15/unet.pth --unet_config models/musetalkV15/musetalk.json) ;;
    *) fail "got version $1; $usage" ;;
esac
case $2 in
    normal) script=scripts/inference.py task=(--inference_config configs/inference/test.yaml --result_dir results/test) ;;
    realtime) script=scripts/realtime_inference.py task=(--inference_config configs/inference/realtime.yaml --result_dir results/realtime) ;;
    *) fail "got mode $2; $usage" ;;
esac
shift 2
[ -z "${FFMPEG_PATH:-}" ] || task+=(--ffmpeg_path "$FFMPEG_PATH")

# --enable_gfpgan                   without it nothing is restored
# --gfpgan_region lower             speed: MuseTalk keeps only the lower part of a face; rows above are not computed
# --gfpgan_output_size native       detail: MuseTalk scales what it gets to the face box itself, so 256 px are no stop
# --gfpgan_mode memory              safety: MuseTalk's networks share the GPU; batches are measured and planned for half
#                                   of what is free, and when not even one face fits, it goes on with the CPU
# --gfpgan_on_error passthrough     safety: a frame that cannot be restored goes on as it came; MuseTalk would lose it
ours=(--enable_gfpgan --gfpgan_region lower --gfpgan_output_size native --gfpgan_mode memory --gfpgan_on_error passthrough)

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "${MUSETALK_DIR:-.}" 2> /dev/null || fail "MUSETALK_DIR=${MUSETALK_DIR:-.} is no folder"
[ -f "$script" ] || fail "no $script in $PWD; go to MuseTalk's folder, or set MUSETALK_DIR"

python=${PYTHON:-}
[ -n "$python" ] || python=$(command -v python || command -v python3) || fail "no python; set PYTHON to that of MuseTalk's environment"
command -v "$python" > /dev/null || fail "PYTHON=$python cannot be run"
"$python" -c 'import musetalk_enhance' 2> /dev/null ||
    fail "$python has no musetalk_enhance; install it: $python -m pip install '$here'"

exec "$python" -m musetalk_enhance run "$script" "${ours[@]}" "${model[@]}" "${task[@]}" "$@"
