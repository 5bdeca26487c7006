#!/usr/bin/env bash
# The embedded model from nothing, on CPU threads: the whole truth. If it is interrupted, run the same command again.
# The steps, run one by one, took two hours together, on one thread of a CPU that multiplies bfloat16 (AMX). Without
# that, the trainings of the base and of the adapter take three to four times as long. A GPU does all of it in minutes: gpu.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=${RUNS:-runs/embedded}
threads=${THREADS:-1}
pictures=$runs/pictures.zip
tiny=src/pusa/embedded/tiny
export PYTHONPATH=src:recipes/embedded${PYTHONPATH:+:$PYTHONPATH}
# Without these, large tensors go back to the system after each step and 17-frame clips take three times as long.
export MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592
run() { ${PYTHON:-python} -u "recipes/embedded/$1" "${@:2}"; }

mkdir -p "$runs"
[ -f "$pictures" ] || run pictures.py --out "$pictures"
[ -f "$runs/linear/linear.pt" ] || run linear.py --pictures "$pictures" --out "$runs/linear"
run decoder.py --linear "$runs/linear" --pictures "$pictures" --out "$runs/decoder" --threads "$threads"
run encode.py --linear "$runs/linear" --pictures "$pictures" --out "$runs/latents"
# The base begins with the blocks of the former model, whose own all.sh (at this commit) makes it from nothing in 8 hours.
former=$runs/former/$tiny
[ -d "$former" ] || { mkdir -p "$runs/former" && git archive 2a7efb8 "$tiny" | tar -x -C "$runs/former"; }
[ -d "$runs/adopted/tokenizer" ] || run adopt.py --old "$former" --linear "$runs/linear" --pictures "$pictures" --out "$runs/adopted"
run base.py --init "$runs/adopted" --latents "$runs/latents" --out "$runs/base" --threads "$threads"
base=$(ls -d "$runs"/base/step_* | tail -1)

# The adapter learns from clips that the base has not seen.
run encode.py --linear "$runs/linear" --pictures "$pictures" --out "$runs/latents_adapter" --first-seed 2000000 --clips 6144
run adapter.py --base "$base" --latents "$runs/latents_adapter" --out "$runs/adapter" --threads "$threads"
run assemble.py --vae "$runs/decoder/vae" --base "$base" --adapter "$runs/adapter/lora.safetensors" --out "$tiny"

# The strength, `STRENGTH` in src/pusa/embedded/__init__.py, is chosen among these, on scenes used for nothing else.
run measure.py --clips 32 --tune 1 1.2 1.4 1.8 --out "$runs/strengths.json" --threads "$threads"
run measure.py --out "$runs/numbers.json" --threads "$threads"
run report.py --runs "$runs"
