#!/usr/bin/env bash
# The whole embedded model on one GPU: decoder, base, adapter and numbers in the minutes given (9).
# Needs torch, diffusers and transformers; photographs come as one file, $PICTURES (recipes/embedded/pictures.py).
# Interrupted, it goes on where it was: give the same command again. Everything lies under $OUT.
#
#     bash recipes/embedded/gpu.sh --minutes 9
#     bash recipes/embedded/gpu.sh --smoke          # two minutes on a CPU, toy size
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${OUT:-runs/embedded/gpu}
pictures=${PICTURES:-runs/embedded/pictures.zip}
export PYTHONPATH=src:recipes/embedded${PYTHONPATH:+:$PYTHONPATH}
[ -f "$pictures" ] && set -- --pictures "$pictures" "$@"
mkdir -p "$out"
${PYTHON:-python} -u recipes/embedded/gpu.py --out "$out" "$@" 2>&1 | tee -a "$out/gpu.log"
# Few and small files to carry home.
tar -C "$out/model" -cf "$out/parts.tar" --exclude transformer .
tar -C "$out/model" -cf "$out/transformer.tar" transformer
