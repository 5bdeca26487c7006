"""What the noise multiplier of a condition does, on held-out scenes of the embedded model.

    python benchmarks/choosing_noise.py

Image to video, start and end, and extension are made with several multipliers. Every clip of a scene starts from the
same noise. Multiplier 1 ignores the condition, so it is the control of every measure. The rows are kept in --work, so
that a run that was stopped goes on. The summary and the pictures are those of docs/choosing_noise.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.ticker import PercentFormatter

from pusa import Clip, Image, load
from pusa.embedded import judge, world
from pusa.evaluation import plots
from pusa.evaluation.clips.fidelity import compare
from pusa.evaluation.clips.seams import FLOORS, robust_z
from pusa.evaluation.intervals import Interval, bootstrap
from pusa.evaluation.synthetic.tasks import psnr_of
from pusa.files import write_json
from pusa.generation.pipeline import Pipeline
from pusa.media.images import Frames, write_image

ROOT = Path(__file__).parents[1]
LAST = world.FRAMES - 1
LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0)
PAIRS = ((0.0, 0.0), (0.0, 0.2), (0.0, 0.4), (0.2, 0.2), (0.2, 0.5), (0.4, 0.4), (1.0, 1.0))
NINE = ((0.0,) * 3, (0.3,) * 3, (0.5,) * 3, (0.0, 0.3, 0.5), (0.5, 0.3, 0.0), (1.0,) * 3)
"""one multiplier for each latent frame of 9 given frames"""
THIRTEEN = ((0.0,) * 4, (0.3,) * 4, (0.0, 0.3, 0.5, 0.7), (0.7, 0.5, 0.3, 0.0), (1.0,) * 4)
SHEET = (0.0, 0.2, 0.4, 0.6, 1.0)
SHOWN = (0, 4, 8, 12, 16)
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """Clips to make of every scene. noise: one multiplier for each condition, or for each latent frame of a clip."""

    task: str
    kind: str
    noise: tuple[float, ...]

    @property
    def given(self) -> int:
        """The number of given frames of an extension."""
        return 4 * len(self.noise) - 3

    def conditions(self, truth: Frames) -> list[Image | Clip]:
        if self.task == "extension":
            return [Clip(truth, frames=self.given, noise=self.noise)]
        places = (0, LAST)[: len(self.noise)]
        return [Image(truth[at], at, noise=noise) for at, noise in zip(places, self.noise, strict=True)]


CASES = [
    *(Case("image to video", kind, (level,)) for level in LEVELS for kind in ("shape", "camera")),
    *(Case("start and end", "shape", pair) for pair in PAIRS),
    *(Case("extension", "shape", ramp) for ramp in (*NINE, *THIRTEEN)),
]


def measured(pipe: Pipeline, case: Case, seed: int) -> Row:
    """Make one clip and measure it. Errors are mean squared errors, in levels² of 255."""
    scene = world.sample(seed, "heldout", case.kind)  # type: ignore[arg-type]
    truth = world.render(scene)
    clip = pipe.generate(scene.caption, case.conditions(truth), seed=seed)
    frames = clip.frames
    row: Row = {"task": case.task, "kind": case.kind, "noise": case.noise, "seed": seed}
    if case.task == "extension":
        new = slice(case.given, None)
        known = pipe.encode(truth[: case.given])
        joined = pipe.decode(torch.cat([known, clip.latents[:, :, len(case.noise) :]], dim=2))
        row |= {"error": error(joined, truth, new), "held": error(frames, truth, slice(0, case.given))}
        row |= {"seam": seam(joined, case.given), "seam_remade": seam(frames, case.given)}
        if case.given == 9:
            row |= {"motion": judge.judge(joined[new]).motion == scene.motion}
            row |= {"amount": moving(joined[new]), "amount_truth": moving(truth[new])}
        return row
    first = compare(frames[0], truth[0])
    row |= {"first_psnr": first["psnr"], "first_ssim": first["ssim"]}
    row |= {"amount": moving(frames[1:]), "amount_truth": moving(truth[1:])}
    if isinstance(scene, world.CameraScene):
        row["motion"] = judge.judge_camera(frames) == scene.motion
    else:
        row["motion"] = judge.judge(frames).motion == scene.motion
    if case.task == "image to video":
        return row | {"error": error(frames, truth, slice(1, None)), "seam": seam(frames, 1)}
    last = compare(frames[LAST], truth[LAST])
    row |= {"last_psnr": last["psnr"], "last_ssim": last["ssim"]}
    return row | {"error": error(frames, truth, slice(4, 13)), "seam": seam(frames, 13)}


def error(frames: Frames, truth: Frames, which: slice) -> float:
    return float(np.square(frames[which].astype(float) - truth[which]).mean())


def moving(frames: Frames) -> float:
    """The mean absolute difference of neighbouring frames, in levels of 255."""
    return float(np.abs(np.diff(frames.astype(float), axis=0)).mean())


def seam(frames: Frames, join: int) -> float:
    """How far the step to frame `join` stands out among the steps of the clip, see `pusa.evaluation.clips.seams`."""
    steps = np.abs(np.diff(frames.astype(float), axis=0)).mean(axis=(1, 2, 3))
    return robust_z(steps, join - 1, FLOORS["difference"])


# ------------------------------------------------------------------------------------------------------------- controls


def cuts(seeds: range) -> list[float]:
    """The seam of a hard cut: the first 9 frames of a scene and the last 8 of the next one."""
    clips = [world.render(world.sample(seed, "heldout", "shape")) for seed in (*seeds, seeds.stop)]
    return [seam(np.concatenate([a[:9], b[9:]]), 9) for a, b in itertools.pairwise(clips)]


def through(pipe: Pipeline, kind: str, seeds: range) -> list[float]:
    """The PSNR of each first frame after the autoencoder alone."""
    pictures = [world.render(world.sample(seed, "heldout", kind), 1) for seed in seeds]  # type: ignore[arg-type]
    return [compare(pipe.decode(pipe.encode(picture))[0], picture[0])["psnr"] for picture in pictures]


# ------------------------------------------------------------------------------------------------------------ summaries


def pooled(rows: Sequence[Row], key: str) -> Interval:
    """The PSNR of the mean squared error over clips."""
    return bootstrap([row[key] for row in rows], lambda errors: float(psnr_of(errors.mean())))


def mean(rows: Sequence[Row], key: str) -> Interval:
    return bootstrap([float(row[key]) for row in rows])


def middle(rows: Sequence[Row], key: str) -> Interval:
    return bootstrap([row[key] for row in rows], lambda values: float(np.median(values)))


def amount(rows: Sequence[Row], _: str) -> Interval:
    """The movement of all clips as a share of the true movement."""
    pairs = np.array([[row["amount"], row["amount_truth"]] for row in rows])
    return bootstrap(
        pairs, lambda values: float(values[:, 0].sum() / values[:, 1].sum()) if values[:, 1].any() else nan
    )


MEASURES: dict[str, Callable[[Sequence[Row], str], Interval]] = {
    "error": pooled,
    "held": pooled,
    "first_psnr": mean,
    "first_ssim": mean,
    "last_psnr": mean,
    "last_ssim": mean,
    "motion": mean,
    "amount": amount,
    "seam": middle,
    "seam_remade": middle,
}


def summary(case: Case, rows: Sequence[Row]) -> dict[str, Interval]:
    own = [row for row in rows if (row["task"], row["kind"], tuple(row["noise"])) == (case.task, case.kind, case.noise)]
    return {key: make(own, key) for key, make in MEASURES.items() if own and key in own[0]}


# ------------------------------------------------------------------------------------------------------------- pictures


def name(noise: Sequence[float]) -> str:
    if len(set(noise)) == 1:
        return f"{noise[0]:g}, all ignored" if noise[0] == 1 else f"{noise[0]:g} for all"
    return ", ".join(f"{value:g}" for value in noise)


def draw_levels(path: Path, found: dict[Case, dict[str, Interval]]) -> None:
    panels = (
        ("first_psnr", "PSNR of the given frame, dB"),
        ("error", "PSNR of frames 1 to 16, dB"),
        ("motion", "motion of the prompt"),
        ("amount", "movement, share of the true one"),
    )
    with plots.figure(path, 7.2, 5.0, nrows=2, ncols=2) as axes:
        for axis, (key, title) in zip(axes.flat, panels, strict=True):
            for colour, kind in zip(plots.COLOURS, ("shape", "camera"), strict=False):
                values = [found[Case("image to video", kind, (level,))][key] for level in LEVELS]
                value, low, high = (np.array([getattr(v, end) for v in values]) for end in ("value", "low", "high"))
                label = {"shape": "moving shapes", "camera": "moving camera"}[kind]
                axis.plot(LEVELS, value, marker="o", ms=3, color=colour, label=label)
                axis.fill_between(LEVELS, low, high, color=colour, alpha=0.15, lw=0)
            axis.set(title=title)
            if key in ("motion", "amount"):
                axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        for axis in axes[1]:
            axis.set_xlabel("noise multiplier of the picture")
        axes[0, 0].legend()


def draw_rows(
    path: Path, groups: Sequence[tuple[str, list[Case]]], found: dict[Case, dict[str, Interval]],
    panels: Sequence[tuple[str, str]],
) -> None:  # fmt: skip
    """A row of points with intervals for each case, and a panel for each measure."""
    heights = [len(cases) for _, cases in groups]
    grid: dict[str, Any] = dict(
        nrows=len(groups), ncols=len(panels), sharey="row", gridspec_kw={"height_ratios": heights}
    )
    with plots.figure(path, 2.2 + 1.9 * len(panels), 0.8 + 0.32 * sum(heights), **grid) as axes:
        for row, (title, cases) in zip(axes, groups, strict=True):
            places = np.arange(len(cases))[::-1]
            for axis, (key, label) in zip(row, panels, strict=True):
                if any(key not in found[case] for case in cases):
                    axis.set_axis_off()
                    continue
                values = [found[case][key] for case in cases]
                value, low, high = (np.array([getattr(v, end) for v in values]) for end in ("value", "low", "high"))
                spread = np.stack([value - low, high - value]).clip(min=0)
                axis.errorbar(value, places, xerr=spread, fmt="o", ms=4, color=plots.COLOURS[0], elinewidth=1.0)
                axis.set_title(label)
                axis.grid(axis="x", color="#dddddd", lw=0.5)
                if key in ("motion", "amount"):
                    axis.xaxis.set_major_formatter(PercentFormatter(1.0))
            row[0].set_yticks(places, [name(case.noise) for case in cases])
            row[0].set_ylabel(title)
            row[0].set_ylim(-0.6, len(cases) - 0.4)


def draw_sheet(path: Path, pipe: Pipeline, seed: int) -> None:
    """Frames of one scene, a row for the truth and for each multiplier."""
    scene = world.sample(seed, "heldout", "shape")
    truth = world.render(scene)
    clips = [truth]
    for level in SHEET:
        clips.append(pipe.generate(scene.caption, [Image(truth[0], noise=level)], seed=seed).frames)
    gap = 2
    rows = []
    for clip in clips:
        cells = [np.pad(clip[at], ((gap, gap), (gap, gap), (0, 0)), constant_values=255) for at in SHOWN]
        rows.append(np.concatenate(cells, axis=1))
    sheet = np.concatenate(rows, axis=0)
    write_image(path, sheet.repeat(2, axis=0).repeat(2, axis=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=28, help="held-out scenes of each kind")
    parser.add_argument("--work", type=Path, default=Path("runs/choosing_noise"), help="folder of the rows")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of results/ and images/")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="overlap|far from")
    pipe = load("tiny", device="cpu")
    seeds = range(options.scenes)
    rows = made(pipe, seeds, options.work / "rows.jsonl")
    found = {case: summary(case, rows) for case in CASES}

    images = options.out / "images"
    draw_levels(images / "noise_image_to_video.png", found)
    pairs = [case for case in CASES if case.task == "start and end"]
    draw_rows(
        images / "noise_start_end.png",
        [("start, end", pairs)],
        found,
        [
            ("first_psnr", "first frame, dB"),
            ("last_psnr", "last frame, dB"),
            ("error", "frames 4 to 12, dB"),
            ("motion", "motion right"),
            ("seam", "step to frame 13, z"),
        ],
    )
    extensions = [case for case in CASES if case.task == "extension"]
    draw_rows(
        images / "noise_extension.png",
        [(f"{given} given frames", [case for case in extensions if case.given == given]) for given in (9, 13)],
        found,
        [
            ("error", "new frames, dB"),
            ("motion", "motion right"),
            ("amount", "movement"),
            ("seam", "seam, given kept, z"),
            ("seam_remade", "seam, given remade, z"),
        ],
    )
    draw_sheet(images / "noise_sheet.png", pipe, 3)
    write_json(
        options.out / "results" / "choosing_noise.json",
        {
            "command": f"python benchmarks/choosing_noise.py --scenes {options.scenes}",
            "scenes": options.scenes,
            "autoencoder_psnr": {kind: float(np.mean(through(pipe, kind, seeds))) for kind in ("shape", "camera")},
            "seam_of_a_cut": bootstrap(cuts(seeds), lambda values: float(np.median(values))).record(),
            "cases": [
                {"task": case.task, "kind": case.kind, "noise": case.noise}
                | {key: value.record() for key, value in found[case].items()}
                for case in CASES
            ],
        },
    )


def made(pipe: Pipeline, seeds: range, file: Path) -> list[Row]:
    """The rows of all cases and scenes; those that the file has are not made again."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {(row["task"], row["kind"], tuple(row["noise"]), row["seed"]) for row in rows}
    with file.open("a") as log:
        for seed in seeds:
            for case in CASES:
                if (case.task, case.kind, case.noise, seed) not in done:
                    rows.append(json.loads(json.dumps(measured(pipe, case, seed))))
                    log.write(json.dumps(rows[-1]) + "\n")
                    log.flush()
            print(f"scene {seed + 1} of {len(seeds)}", flush=True)
    return [row for row in rows if row["seed"] in seeds]


if __name__ == "__main__":
    main()
