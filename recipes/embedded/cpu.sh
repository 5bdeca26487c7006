#!/usr/bin/env bash
# The embedded model by the recipe of docs/results/embedded_study.md, on CPU threads, from nothing.
# Interrupted, it goes on where it was: give the same command again. A GPU does all of it in minutes: gpu.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=${RUNS:-runs/embedded}
threads=${THREADS:-1}
pictures=$runs/pictures.zip
export PYTHONPATH=src:recipes/embedded${PYTHONPATH:+:$PYTHONPATH}
# Without these, large tensors go back to the system after each step and 17-frame clips take three times as long.
export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592
run() { ${PYTHON:-python} -u "recipes/embedded/$1" "${@:2}"; }

mkdir -p "$runs"
[ -f "$pictures" ] || run pictures.py --out "$pictures"
[ -f "$runs/linear/linear.pt" ] || run linear.py --pictures "$pictures" --out "$runs/linear"
run decoder.py --linear "$runs/linear" --pictures "$pictures" --out "$runs/decoder" --steps "${DECODER_STEPS:-320}" --threads "$threads"
run encode.py --linear "$runs/linear" --pictures "$pictures" --out "$runs/latents" --clips "${CLIPS:-18432}" --threads "$threads"
# Where a base of other latents is at hand, its blocks are a better beginning than none.
[ -d "$runs/adopted/tokenizer" ] || run adopt.py --linear "$runs/linear" --pictures "$pictures" --out "$runs/adopted"
run base.py --latents "$runs/latents" --init "$runs/adopted" --patch 4 --out "$runs/base" --batch 16 \
    --camera-share 0.5 --steps "${BASE_STEPS:-20000}" --no-compile --threads "$threads"
run assemble.py --vae "$runs/decoder/vae" --base "$runs/base/step_$(printf %06d "${BASE_STEPS:-20000}")" --out "$runs/tiny"
