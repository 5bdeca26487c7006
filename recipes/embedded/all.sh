#!/usr/bin/env bash
# Remake the embedded base. If it is interrupted, run the same command again: it resumes.
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=runs/embedded
tiny=src/pusa/embedded/tiny

# The autoencoder, with 32 latent channels, and two stages of the base on its latents.
python recipes/embedded/vae.py --out $runs/vae
python recipes/embedded/vae.py --decoder-of $runs/vae/vae --out $runs/decoder --steps 1800 --first-seed 200000 --muon-lr 0.01
python recipes/embedded/encode.py --vae $runs/vae/vae --out $runs/latents
python recipes/embedded/base.py --latents $runs/latents --out $runs/base
python recipes/embedded/base.py --latents $runs/latents --out $runs/base2 --init $runs/base/step_004500 --steps 8800

# Twelve channels carry everything: the third stage has only those.
python recipes/embedded/reduce.py --vae $runs/decoder/vae --latents $runs/latents --base $runs/base2/step_008800 --out $runs/reduced
python recipes/embedded/base.py --latents $runs/reduced/latents --out $runs/base3 --init $runs/reduced/base \
    --steps 7000 --camera-share 0.35

# The fourth stage has other clips.
python recipes/embedded/encode.py --vae $runs/reduced/vae --first-seed 3000000 --out $runs/latents4
python recipes/embedded/base.py --latents $runs/latents4 --out $runs/base4 --init $runs/base3/step_007000 \
    --steps 6500 --camera-share 0.25
base=$runs/base4/step_006500

# The adapter, by the ordinary trainer; the first seed is shipped.
python recipes/embedded/clips.py --out $runs/clips
python recipes/embedded/assemble.py --vae $runs/reduced/vae --base $base --out $tiny
for seed in 0 1 2; do
    pusa train recipes/embedded/adapter.yaml --out $runs/adapter$seed --train.seed $seed
done
python recipes/embedded/assemble.py --vae $runs/reduced/vae --base $base --adapter $runs/adapter0/lora.safetensors --out $tiny

# The strength at which the adapter runs, `STRENGTH` in src/pusa/embedded/__init__.py, is the best of these.
python recipes/embedded/measure.py --clips 32 --tune 1.0 1.2 1.3 1.4 1.6

python recipes/embedded/measure.py
python recipes/embedded/measure.py --clips 24 --curve $runs/adapter{0,1,2}
python recipes/embedded/measure.py --clips 24 --vae $runs/decoder/vae \
    --snapshots $runs/base/step_00{1000,2000,3000,4500} $runs/base2/step_00{2000,4500,6500,8800}
python recipes/embedded/measure.py --clips 24 --snapshots $runs/base3/step_00{2500,5000,7000} \
    $runs/base4/step_00{2500,5000,6500}
python recipes/embedded/report.py
