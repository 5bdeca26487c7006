#!/usr/bin/env bash
# Remake the embedded base. Interrupted, it goes on where it was: give the same command again.
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=runs/embedded
python recipes/embedded/vae.py --out $runs/vae
python recipes/embedded/encode.py --vae $runs/vae/vae --out $runs/latents
python recipes/embedded/base.py --latents $runs/latents --out $runs/base
base=$(ls -d $runs/base/step_* | tail -n 1)
python recipes/embedded/adapter.py --base "$base" --latents $runs/latents --out $runs/adapter
adapter=$(ls $runs/adapter/pusa_*.safetensors | tail -n 1)
python recipes/embedded/assemble.py --vae $runs/vae/vae --base "$base" --adapter "$adapter"
python recipes/embedded/measure.py
python recipes/embedded/measure.py --clips 24 --curve $runs/adapter/pusa_*.safetensors
python recipes/embedded/measure.py --clips 24 --snapshots $runs/base/step_*
python recipes/embedded/report.py
