#!/usr/bin/env bash
# From a real film to an adapter: fetch, cut, check, prepare, train, generate. Run it again to resume.
#   STEPS=180 bash recipes/big_buck_bunny/all.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=${RUNS:-runs/big_buck_bunny}
python recipes/big_buck_bunny/fetch.py --out "$runs"
python recipes/big_buck_bunny/dataset.py --film "$runs/big_buck_bunny.mp4" --out "$runs"
pusa check "$runs/dataset"
pusa prepare "$runs/dataset" --data.cache "$runs/cache" --data.cut uniform
pusa train --preset tiny --data "$runs/dataset" --data.cache "$runs/cache" --data.cut uniform \
    --out "$runs/train" --train.steps "${STEPS:-60}" --train.seed 0
pusa generate "$(cat "$runs/example.txt")" --image "$runs/example.png" --model tiny-base \
    --lora "$runs/train/lora.safetensors" --seed 0 --out "$runs/example.mp4" --overwrite
