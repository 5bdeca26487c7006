#!/usr/bin/env bash
# The paper's comparisons in miniature, from nothing to docs/results/paper.md.
set -euo pipefail
pusa reproduce --out runs/paper --workers "${WORKERS:-2}"
cp runs/paper/paper.md docs/results/paper.md
cp runs/paper/images/paper_*.png docs/results/images/
