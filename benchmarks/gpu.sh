#!/usr/bin/env bash
# Every table about a GPU in at most eight minutes on one card: $OUT/summary.md, and $OUT/NAME.json for each part.
# Needs torch, diffusers and transformers, and no downloads; a part that needs more says so in the summary.
# A part that fails or takes too long is a line in the summary, and the others run.
#
#     bash benchmarks/gpu.sh
#     bash benchmarks/gpu.sh --parts step attention
#     bash benchmarks/gpu.sh --smoke          # a minute on a CPU, toy size
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-runs/gpu}
export PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1
export PYTORCH_NVML_BASED_CUDA_CHECK=1 # asking whether there is a card must not start it before the parts are forked
mkdir -p "$out"
exec ${PYTHON:-python} -u benchmarks/gpu.py --out "$out" "$@"
