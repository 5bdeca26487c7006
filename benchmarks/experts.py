"""Which expert of Wan2.2 A14B makes which steps: a table in Markdown, and the picture of docs/two_experts.md.

    python benchmarks/experts.py

The sampler walks each matrix with two experts that only count their calls. A clip has 81 frames, which are 21 latent
frames. Nothing is loaded.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from matplotlib.patches import Patch, Rectangle

from pusa.core import sampler, schedules, sigmas
from pusa.core.timesteps import TimestepMatrix
from pusa.evaluation import plots
from pusa.models.wan.defaults import WAN22_A14B

FRAMES = 21
SHIFT = WAN22_A14B.shift
BOUNDARY = WAN22_A14B.boundary or 0.0


def synchronous(steps: int, shift: float = SHIFT, strength: float = 1.0) -> TimestepMatrix:
    return schedules.synchronous(sigmas.grid(steps, shift, strength), FRAMES)


GRID = sigmas.grid(30, SHIFT)
CASES = {
    "4 steps": synchronous(4),
    "10 steps": synchronous(10),
    "30 steps": synchronous(30),
    "30 steps, first frame given, noise 0": schedules.conditioned(synchronous(30), {0: 0.0}),
    "30 steps, start and end, noise 0.2 and 0.5": schedules.conditioned(synchronous(30), {0: 0.2, 20: 0.5}),
    "40 steps, shift 12": synchronous(40, 12.0),
    "30 steps, editing, strength 0.6": synchronous(30, strength=0.6),
    "30 steps, editing, strength 0.5": synchronous(30, strength=0.5),
    "staircase,block=3,delay=5": schedules.staircase(GRID, FRAMES, 3, 5),
    "chunked,block=3": schedules.chunked(GRID, FRAMES, 3),
    "sliding-window,window=6,block=3": schedules.sliding_window(GRID, FRAMES, 6, 3),
}
DRAWN = {
    "image to video": CASES["30 steps, first frame given, noise 0"],
    "start and end, 0.2 and 0.5": CASES["30 steps, start and end, noise 0.2 and 0.5"],
    "staircase,block=3,delay=5": CASES["staircase,block=3,delay=5"],
}


def experts(matrix: TimestepMatrix, boundary: float = BOUNDARY) -> list[str]:
    """Return the expert of each step, as the sampler calls them."""
    called: list[str] = []

    def expert(name: str) -> sampler.Velocity:
        def velocity(latents: Any, *_: Any) -> Any:
            called.append(name)
            return torch.zeros_like(latents)

        return velocity

    both = sampler.by_noise(expert("high"), expert("low"), boundary)
    for _ in sampler.walk(both, torch.zeros(1, 1, matrix.frames, 1, 1), matrix):
        pass
    return called


def draw(path: Path) -> None:
    colours = {"high": plots.COLOURS[1], "low": plots.COLOURS[0]}
    with plots.figure(path, 7.4, 3.2, ncols=len(DRAWN)) as axes:
        for axis, (title, matrix) in zip(axes[0], DRAWN.items(), strict=True):
            picture = matrix.image(16).numpy()
            axis.imshow(picture, extent=(0, matrix.frames, matrix.steps, 0), aspect="auto", interpolation="nearest")
            for step, name in enumerate(experts(matrix)):
                axis.add_patch(_bar(step, colours[name]))
            axis.set(title=title, xlabel="latent frame", xlim=(-1.6, matrix.frames))
            axis.set_xticks([0.5, 10.5, 20.5], ["0", "10", "20"])
        axes[0, 0].set_ylabel("sampling step")
        handles = [Patch(color=colours[name], label=f"{name}-noise expert") for name in ("high", "low")]
        axes[0, 0].figure.legend(handles=handles, loc="outside lower center", ncols=2)


def _bar(step: int, colour: str) -> Any:
    return Rectangle((-1.6, step), 1.2, 1, color=colour, lw=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    images = Path(__file__).parents[1] / "docs" / "images"
    parser.add_argument("--image", type=Path, default=images / "two_experts.png", help="the picture to write")
    options = parser.parse_args()
    print("| matrix | steps of the high-noise expert | of the low-noise expert | changes |")
    print("| --- | ---: | ---: | ---: |")
    for title, matrix in CASES.items():
        order = experts(matrix)
        changes = sum(a != b for a, b in pairwise(order))
        print(f"| {title} | {order.count('high')} | {order.count('low')} | {changes} |")
    draw(options.image)


if __name__ == "__main__":
    main()
