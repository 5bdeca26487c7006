"""Does the adapter make frames look at the given one? Attention to frame 0 with and without it, as Markdown.

    python benchmarks/inside.py [--scenes 8] [--each 2] [--figure docs/images/attention.png]

The embedded base and the base with its adapter make the same held-out scenes from the same first frame and noise. What
is compared is the share of the later latent frames' attention that goes to frame 0, at each of ten steps; intervals are
95 % bootstrap over scenes, one step at a time. Every clip has noise of its own: with noise that all scenes share, the
intervals would know nothing of noise. Two controls must show nothing: the base against itself with other noise, and an
adapter at strength 0. The official code's approximation stands beside the exact share.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import pusa
from pusa.evaluation import plots
from pusa.evaluation.inspect import attention
from pusa.evaluation.intervals import bootstrap
from pusa.evaluation.synthetic.tasks import TASKS, SceneTask

STEPS = 10
SHOWN = (0, 4, 9)
"""as in the paper's figure 5"""
Maps = NDArray[np.float64]
"""[clips, 2 (exact, approximated), steps, blocks, F, F], clips scene by scene"""


def both(query: Tensor, key: Tensor, frames: int) -> Tensor:
    """The exact map and the official code's."""
    exact = attention.between_frames(query, key, frames)
    return torch.stack([exact, attention.approximated(query, key, frames)])


def look(pipe: pusa.Pipeline, task: str, scenes: int, each: int, first_seed: int = 0) -> Maps:
    """The maps of `each` clips of every scene, whose noise has consecutive seeds."""
    blocks, made = range(len(pipe.transformer.blocks)), []
    for scene in range(scenes):
        entry = SceneTask(task, scene)
        given = TASKS[task].conditions(entry.truth())
        for i in range(each):
            seed = first_seed + each * scene + i
            with attention.recording({pipe.transformer: 2}, blocks, range(STEPS), both) as maps:
                pipe.generate(entry.scene.caption, given, steps=STEPS, seed=seed)
            made.append(torch.stack([torch.stack([maps[s, b] for b in blocks]) for s in range(STEPS)]))
    return torch.stack(made).permute(0, 3, 1, 2, 4, 5).double().numpy()


def first(maps: Maps, which: int = 0) -> Maps:
    """Share of frame 0 in the later frames' attention: [clips, steps, blocks]."""
    shares: Maps = maps[:, which, :, :, 1:, 0].mean(axis=-1)
    return shares


def own(maps: Maps) -> Maps:
    """Share of the later frames' attention that stays in the frame: [clips, steps, blocks]."""
    shares: Maps = np.diagonal(maps[:, 0], axis1=-2, axis2=-1)[..., 1:].mean(axis=-1)
    return shares


def line(name: str, values: Maps, groups: list[int], *, compared: bool) -> str:
    """A row of the table, for values [clips, steps]; a comparison says at how many steps the interval leaves out 0."""
    steps = [bootstrap(row, groups=groups) for row in values.T]
    cells = [f"{steps[s].text(1, 100)} %" for s in SHOWN]
    cells.append(f"{sum(one.low > 0 for one in steps)} / {sum(one.high < 0 for one in steps)}" if compared else "")
    return f"| {' | '.join([name, *cells])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--each", type=int, default=2, help="clips of a scene")
    parser.add_argument("--figure", type=Path, default=Path("docs/images/attention.png"))
    args = parser.parse_args()
    warnings.filterwarnings("ignore", "Some frames are given")
    groups = [scene for scene in range(args.scenes) for _ in range(args.each)]
    pipe = pusa.load("tiny")
    (adapter,) = pipe.loras
    adapted = look(pipe, "image-to-video", args.scenes, args.each)
    pipe.set_lora(adapter.name, 0.0)
    silent = look(pipe, "image-to-video", args.scenes, args.each)
    pipe = pusa.load("tiny-base")
    base = look(pipe, "image-to-video", args.scenes, args.each)
    again = look(pipe, "image-to-video", args.scenes, args.each, first_seed=len(groups))
    text = look(pipe, "text-to-video", args.scenes, args.each)
    for title, blocks in (("last block", lambda v: v[:, :, -1]), ("mean of all blocks", lambda v: v.mean(axis=2))):
        print(f"\n| {title} | {' | '.join(f'step {s}' for s in SHOWN)} | of 10 steps above / below 0 |")
        print(f"| --- | {' | '.join('---:' for _ in SHOWN)} | ---: |")
        for name, values, compared in (
            ("to frame 0: base, text to video", first(text), False),
            ("… base, first frame given", first(base), False),
            ("… adapted, first frame given", first(adapted), False),
            ("**adapted − base**", first(adapted) - first(base), True),
            ("adapted − base, text to video", first(adapted) - first(text), True),
            ("base, first frame given − text to video", first(base) - first(text), True),
            ("control: base, other noise − base", first(again) - first(base), True),
            ("control: adapter at strength 0 − base", first(silent) - first(base), True),
            ("official approximation: adapted", first(adapted, 1), False),
            ("official approximation: adapted − base", first(adapted, 1) - first(base, 1), True),
            ("to themselves: base, text to video", own(text), False),
            ("… base, first frame given", own(base), False),
            ("… adapted, first frame given", own(adapted), False),
        ):
            print(line(name, blocks(values), groups, compared=compared))
    shown = {"base,\ntext to video": text, "base,\nfirst frame given": base, "adapted,\nfirst frame given": adapted}
    plots.heat(
        args.figure,
        {(name, f"step {s}"): maps[:, 0, s, -1].mean(axis=0) for name, maps in shown.items() for s in SHOWN},
        label="share of attention",
        xlabel="to latent frame",
        ylabel="from",
    )


if __name__ == "__main__":
    main()
