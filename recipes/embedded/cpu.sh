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
base=$runs/base/step_$(printf %06d "${BASE_STEPS:-20000}")
run assemble.py --vae "$runs/decoder/vae" --base "$base" --out "$runs/plain"

# The adapter, by the ordinary trainer; the first seed is shipped.
[ -f "$runs/clips/metadata.csv" ] || run clips.py --pictures "$pictures" --out "$runs/clips"
for seed in ${SEEDS:-0 1 2}; do
    ${PYTHON:-python} -m pusa train recipes/embedded/adapter_mixed.yaml --model.source "$runs/plain" \
        --data "$runs/clips" --data.cache "$runs/cache" --out "$runs/adapter$seed" --train.seed "$seed"
done

# The strength is the best of these, on scenes that are used for nothing else.
adapted=(--model "$runs/plain" --lora "$runs/adapter0/lora.safetensors" --threads "$threads")
run measure.py "${adapted[@]}" --clips 32 --tune 1.0 1.2 1.4 1.6 --out "$runs/strengths.json"
run measure.py "${adapted[@]}" --base "$runs/plain" --strength "${STRENGTH:-1.0}" --out "$runs/numbers.json"
