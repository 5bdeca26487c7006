#!/usr/bin/env bash
# Remake the embedded base. Interrupted, it goes on where it was: give the same command again.
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=runs/embedded
python recipes/embedded/vae.py --out $runs/vae
python recipes/embedded/vae.py --decoder-of $runs/vae/vae --out $runs/decoder --steps 1800 --first-seed 200000 --muon-lr 0.01
python recipes/embedded/encode.py --vae $runs/vae/vae --out $runs/latents
python recipes/embedded/base.py --latents $runs/latents --out $runs/base
python recipes/embedded/base.py --latents $runs/latents --out $runs/base2 --init $runs/base/step_004500 --steps 8800
base=$runs/base2/step_008800
python recipes/embedded/adapter.py --base $base --latents $runs/latents --out $runs/adapter
adapter=$(ls $runs/adapter/pusa_*.safetensors | tail -n 1)
python recipes/embedded/assemble.py --vae $runs/decoder/vae --base $base --adapter "$adapter"
python recipes/embedded/measure.py
python recipes/embedded/measure.py --clips 24 --curve $runs/adapter/pusa_*.safetensors
python recipes/embedded/measure.py --clips 24 --snapshots $runs/base/step_00{1000,2000,3000,4500} \
    $runs/base2/step_00{2000,4500,6500,8800}
python recipes/embedded/report.py
