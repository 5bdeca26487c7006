"""How near accelerated clips come to the plain ones: each policy and its controls, at equal shares of computed blocks.

    python benchmarks/acceleration.py --json docs/results/performance/acceleration.json

The embedded model makes held-out clips of four tasks, first plainly, then with every policy at several settings. The
PSNR counts the frames that the sampler changes, and compares with the plain clip. Policies are compared at a share of
the blocks, by interpolation along the curve of each clip. Differences are paired, and their intervals are bootstrapped
over the clips. Times do not count here; `acceleration_time.py` measures them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import facts
from section import Section, Table

from pusa import Clip, Image, load
from pusa.acceleration import running
from pusa.acceleration.policy import Policy
from pusa.acceleration.reuse import Reuse
from pusa.core.timesteps import TimestepMatrix
from pusa.embedded import world
from pusa.evaluation.acceleration.proxies import Proxies
from pusa.evaluation.acceleration.tasks import computed, psnr
from pusa.evaluation.intervals import Interval, bootstrap
from pusa.evaluation.plots import curves
from pusa.files import write_json
from pusa.generation.pipeline import Pipeline

KNOWN = 9
"""pixel frames of an extension that are given: 3 of 5 latent frames"""
TEXT, IMAGE, EXTENSION, STAIRCASE = "text to video", "image to video", "extension", "staircase"
TASKS = (TEXT, IMAGE, EXTENSION, STAIRCASE)
SHARES = (0.4, 0.5, 0.6, 0.7)
Point = tuple[float, float]
"""the share of the blocks that was computed, and the PSNR in dB"""
Points = dict[str, dict[str, list[Point]]]
"""by task and arm: a point for each setting"""


@dataclass(frozen=True)
class Arm:
    """A policy at several settings. make: makes the policy of a clip instead of its name, for controls without one."""

    settings: Sequence[str]
    tasks: Sequence[str] = TASKS
    make: Callable[[Any, TimestepMatrix], Policy] | None = None


def apart(acceleration: Any, matrix: TimestepMatrix) -> Policy:
    """Reuse of steps in which each guidance branch decides for itself."""
    ((_, values),) = acceleration.parts
    return Reuse(values["threshold"], matrix.moves, values["first"], together=False)


def each(text: str, values: Sequence[float]) -> list[str]:
    return [text.format(value) for value in values]


_STEPS = each("steps,threshold={:g}", (0.05, 0.1, 0.15, 0.2, 0.3))
ARMS = {
    "steps": Arm(_STEPS),
    "steps, branches apart": Arm(_STEPS, TASKS[:3], apart),
    "frames": Arm(each("frames,threshold={:g}", (0.01, 0.02, 0.05, 0.1, 0.2, 0.3)), TASKS[1:]),
    "uniform": Arm(each("uniform,every={:g}", (2, 3, 5))),
    "steps and held": Arm(each("steps,threshold={:g}+held,every=4", (0.05, 0.1, 0.2)), TASKS[1:3]),
    "held": Arm(each("held,every={:g}", (2, 4, 8)), (EXTENSION, STAIRCASE)),
    "first-block": Arm(each("first-block,threshold={:g}", (0.1, 0.2, 0.3)), (TEXT, EXTENSION)),
}
COMPARED = (
    ("both branches decide together", "steps", "steps, branches apart", {TEXT: 0.5, IMAGE: 0.5, EXTENSION: 0.5}),
    ("frames decide for themselves", "frames", "steps", {IMAGE: 0.5, EXTENSION: 0.5, STAIRCASE: 0.7}),
    ("a look at the clip", "steps", "uniform", {TEXT: 0.5, IMAGE: 0.5, EXTENSION: 0.5}),
    ("a look at each frame", "frames", "uniform", {IMAGE: 0.5, EXTENSION: 0.5, STAIRCASE: 0.6}),
    ("given frames left out in three of four steps", "steps and held", "steps", {IMAGE: 0.5}),
    ("given frames left out alone", "held", "steps", {EXTENSION: 0.55}),
    ("against the cache of diffusers", "steps", "first-block", {TEXT: 0.5}),
)
"""what, ours, control, and the share of the blocks in each task at which both have clips"""


class Bench:
    """Clips of the embedded model in four tasks."""

    def __init__(self, steps: int, guidance: float) -> None:
        torch.set_num_threads(1)
        self.pipe: Pipeline = load("tiny", device="cpu")
        self.steps, self.guidance = steps, guidance

    def task(self, name: str, clip: int) -> tuple[str, dict[str, Any], slice]:
        """Return the caption, the options of `Pipeline.generate`, and the pixel frames that are not given."""
        scene = world.sample(clip, "heldout", "shape" if clip % 2 == 0 else "camera")
        truth = world.render(scene)
        options: dict[str, Any] = {"steps": self.steps, "guidance": self.guidance, "seed": clip}
        options["guidance_batch"] = "off"
        made = slice(None)
        if name == IMAGE:
            options["conditions"], made = [Image(truth[0])], slice(1, None)
        if name == EXTENSION:
            options["conditions"], made = [Clip(truth[:KNOWN])], slice(KNOWN, None)
        if name == STAIRCASE:
            options["schedule"] = f"staircase,block=1,delay={max(1, self.steps // 6)}"
        return scene.caption, options, made

    def points(self, clip: int, arms: Sequence[str]) -> Points:
        found: Points = {}
        for name in TASKS:
            caption, options, made = self.task(name, clip)
            plain = self.pipe.generate(caption, **options).frames
            for label in arms:
                arm = ARMS[label]
                if name not in arm.tasks:
                    continue
                with policies_from(arm.make):
                    clips = [self.pipe.generate(caption, **options, accelerate=text) for text in arm.settings]
                pairs = [(computed(one), psnr(one.frames, plain, made)) for one in clips]
                found.setdefault(name, {})[label] = pairs
        return found

    def correlations(self, clips: Sequence[int]) -> dict[str, float]:
        """The rank correlation of each sign of change, see `pusa.evaluation.acceleration.proxies`."""
        proxies = Proxies(self.pipe)
        for clip in clips:
            for name in TASKS[:3]:
                caption, options, _ = self.task(name, clip)
                with proxies.watching() as note:
                    self.pipe.generate(caption, **options, callback=note)
        return proxies.correlations()


@contextmanager
def policies_from(make: Callable[[Any, TimestepMatrix], Policy] | None) -> Iterator[None]:
    """Inside the context, `make` makes the policy of every clip."""
    usual = running.policy_of
    running.policy_of = make or usual
    try:
        yield
    finally:
        running.policy_of = usual


def measured(clip: int, folder: Path, steps: int, guidance: float, arms: Sequence[str]) -> Points:
    """The points of a clip, from its file if it is there."""
    path = folder / f"{clip:03d}.json"
    if path.is_file():
        read: Points = json.loads(path.read_text())
        return read
    found = Bench(steps, guidance).points(clip, arms)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    print(f"clip {clip}", flush=True)
    return found


def at(points: Sequence[Point], share: float) -> float:
    """The PSNR of a clip's curve at a share of the blocks, interpolated; NaN outside the curve."""
    curve = sorted({(x, y) for x, y in points})
    x, y = zip(*curve, strict=True)
    return float(np.interp(share, x, y)) if x[0] <= share <= x[-1] else float("nan")


def over(values: Sequence[float]) -> Interval:
    """The mean over the clips whose curve reaches the share; NaN if these are fewer than three quarters."""
    known = [value for value in values if not np.isnan(value)]
    return bootstrap(known) if len(known) >= 0.75 * len(values) else bootstrap([])


def cell(interval: Interval) -> str:
    return "–" if np.isnan(interval.value) else interval.text(1)


def tables(clips: Sequence[Points]) -> list[Table]:
    made = []
    for name in TASKS:
        labels = [label for label, arm in ARMS.items() if name in arm.tasks and label in clips[0][name]]
        rows = [
            [label, *(cell(over([at(clip[name][label], share) for clip in clips])) for share in SHARES)]
            for label in labels
        ]
        made.append(
            Table(["computed", *(f"{100 * share:g} %" for share in SHARES)], rows, f"{name}: dB to the plain clip")
        )
    rows = []
    for text, ours, control, shares in COMPARED:
        for name, share in shares.items():
            if {ours, control} <= set(clips[0][name]):
                gains = [at(clip[name][ours], share) - at(clip[name][control], share) for clip in clips]
                rows.append([text, f"{ours} − {control}", name, f"{100 * share:g} %", f"{cell(over(gains))} dB"])
    return [Table(["", "compared", "task", "computed", "gain"], rows, "Differences at the same share"), *made]


def held_row(clips: Sequence[Points], label: str = "held") -> list[list[str]]:
    """For each setting of an arm: its share and its PSNR in each task."""
    rows = []
    for index, text in enumerate(ARMS[label].settings):
        row = [text]
        for name in ARMS[label].tasks:
            pairs = [clip[name][label][index] for clip in clips]
            share = np.mean([pair[0] for pair in pairs])
            row.append(f"{100 * share:.0f} %, {cell(bootstrap([pair[1] for pair in pairs]))} dB")
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--runs", type=Path, default=Path("runs/acceleration"), help="a file for each clip, to resume")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--smoke", action="store_true", help="two clips with 6 steps and two arms")
    args = parser.parse_args()
    if args.smoke:
        args.clips, args.steps, args.arms, args.workers = 2, 6, ["steps", "held"], 1
    about = facts("cpu")
    work = partial(measured, folder=args.runs, steps=args.steps, guidance=args.guidance, arms=args.arms)
    if args.workers > 1:
        with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool:
            clips = list(pool.map(work, range(args.clips)))
    else:
        clips = [work(clip) for clip in range(args.clips)]
    proxies = Bench(args.steps, args.guidance).correlations(range(min(4, args.clips)))
    found = tables(clips)
    if "held" in args.arms:
        found.append(
            Table(["given frames", *ARMS["held"].tasks], held_row(clips), "Given frames in every n-th step alone")
        )
    found.append(
        Table(
            ["sign of change", "rank correlation"],
            [[name, f"{value:.2f}"] for name, value in proxies.items()],
            "What tells the change of the velocity best (Spearman)",
        )
    )
    section = Section(
        "Accelerations: how near the clips stay",
        "python benchmarks/acceleration.py --json docs/results/performance/acceleration.json",
        about,
        [
            f"The embedded model, {args.clips} held-out clips (shapes and photographs), {args.steps} steps, guidance "
            f"{args.guidance:g}. The numbers are the PSNR to the plain clip over the frames that the sampler changes, "
            "at equal shares of computed blocks, with 95 % bootstrap intervals over the clips. An extension has 9 of "
            "17 frames given. A dash means that the settings do not reach the share.",
        ],
        found,
        numbers={"proxies": proxies, "points": clips},
    )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        plots = []
        for name in (TEXT, EXTENSION):
            series = {
                label: np.mean([sorted(clip[name][label]) for clip in clips], axis=0).tolist()
                for label in clips[0][name]
                if label != "held"
            }
            plot = args.json.with_name(f"acceleration_{name.split()[0]}.png")
            curves(plot, series, xlabel="share of the blocks that is computed", ylabel="PSNR to the plain clip (dB)",
                   title=name)  # fmt: skip
            plots.append(plot.name)
        section.plots = plots
    section.write(args.json)


if __name__ == "__main__":
    main()
