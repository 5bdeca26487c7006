"""What an autoencoder's shape allows, without training one: linear floors on held-out clips.

    python recipes/embedded/floors.py --pictures runs/embedded/pictures.zip

First table: the principal components of blocks of 4 x 4 or 8 x 8 pixels and 4 frames (1 at the start), fitted on
training clips, inverted exactly. Second table: what of that is left when the inverse has to pass stock decoder layers,
convolutions of 3 x 3 after nearest upsampling, each fitted by least squares to what the one before really gives.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from data import Pictures, clips, heldout
from linear import apply, fit, gather, principal, rows, tensor, upsampled
from torch import Tensor

SHAPES = ((4, 8), (4, 12), (4, 16), (8, 24), (8, 32), (8, 48))
"""Factor in space and channels."""


def db(error: Tensor) -> float:
    return float(-10 * torch.log10((error / 2).square().mean()))


def blocks(x: Tensor, factor: int, first: bool) -> Tensor:
    """Blocks as channels: of the first frame, or of every four frames after it."""
    x = x[:, :, :1] if first else torch.cat([x[:, :, 1 + k :: 4] for k in range(4)], 1)
    while factor > 1:
        x, factor = gather(x), factor // 2
    return x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--clips", type=int, default=320)
    parser.add_argument("--count", type=int, default=24)
    args = parser.parse_args()
    torch.set_num_threads(1)
    x = tensor(clips(range(args.clips), Pictures(args.pictures))[0])
    held = {kind: tensor(heldout(kind, args.count)[0]) for kind in ("shape", "camera", "photograph")}
    print("| factor, channels | frames | " + " | ".join(held) + " |\n| --- | --- |" + " ---: |" * len(held))
    for factor, channels in SHAPES:
        for first in (True, False):
            mean, directions = principal(rows(blocks(x, factor, first)), channels)
            cells = []
            for clip in held.values():
                centred = rows(blocks(clip, factor, first)) - mean
                cells.append(f"{db(centred - centred @ directions.T @ directions):.2f}")
            print(
                f"| {factor} x, {channels} | {'first' if first else '1-16'} | " + " | ".join(cells) + " |", flush=True
            )
    print("\n| first frame, by stock layers | to half the factor | to pixels |\n| --- | ---: | ---: |")
    for factor, channels in SHAPES:
        mean, directions = principal(rows(blocks(x, factor, True)), channels)
        few = x[:: max(1, args.clips // 120)]
        at = [apply(directions, blocks(part, factor, True), -directions @ mean) for part in (few, held["photograph"])]
        cells = []
        size = factor // 2
        # At 8 x the last halving is a patch of 2 x 2, which is exact.
        while size >= (1 if factor == 4 else 2):
            goal = [blocks(part, size, True) if size > 1 else part[:, :, :1] for part in (few, held["photograph"])]
            weight, bias = fit([upsampled(at[0])], [rows(goal[0])])
            t, h, w = goal[1].shape[2:]
            at = [
                (upsampled(a) @ weight.T + bias).view(len(g), t, h, w, -1).movedim(-1, 1)
                for a, g in zip(at, goal, strict=True)
            ]
            cells.append(f"{db(at[1] - goal[1]):.2f}")
            size //= 2
        print(f"| {factor} x, {channels} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
