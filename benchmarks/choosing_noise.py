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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pusa import Clip, Image, load
from pusa.embedded import judge, world
from pusa.evaluation import plots
from pusa.evaluation.clips.fidelity import compare
from pusa.evaluation.clips.seams import FLOORS, robust_z
from pusa.evaluation.intervals import Interval, bootstrap
from pusa.evaluation.synthetic.tasks import psnr_of
from pusa.files import write_json
from pusa.generation.pipeline import Pipeline
from pusa.media.images import Frames

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
Found = dict["Case", dict[str, Interval]]


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
        return row
    first = compare(frames[0], truth[0])
    row |= {"first_psnr": first["psnr"], "first_ssim": first["ssim"]}
    if isinstance(scene, world.CameraScene):
        row |= {"amount": moving(frames[1:]), "amount_truth": moving(truth[1:])}
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
    """The mean absolute difference of neighbouring frames, in levels of 255.

    It is measured where the whole picture moves. Around a small shape, the flicker of the autoencoder is larger.
    """
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
    return bootstrap(pairs, lambda values: float(values[:, 0].sum() / values[:, 1].sum()))


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


def gain(rows: Sequence[Row], clean: Sequence[Row]) -> Interval:
    """The PSNR of clips above that of the clips of the same scenes with multiplier 0; the scenes are drawn in pairs."""
    errors = {row["seed"]: row["error"] for row in clean}
    pairs = np.array([[row["error"], errors[row["seed"]]] for row in rows])
    return bootstrap(pairs, lambda values: float(psnr_of(values[:, 0].mean()) - psnr_of(values[:, 1].mean())))


def summary(case: Case, rows: Sequence[Row]) -> dict[str, Interval]:
    def of(noise: tuple[float, ...]) -> list[Row]:
        return [row for row in rows if (row["task"], row["kind"], tuple(row["noise"])) == (case.task, case.kind, noise)]

    own = of(case.noise)
    found = {key: make(own, key) for key, make in MEASURES.items() if key in own[0]}
    return found | {"gain": gain(own, of((0.0,) * len(case.noise)))}


# ------------------------------------------------------------------------------------------------------------- pictures


def name(noise: Sequence[float]) -> str:
    if len(set(noise)) == 1:
        return f"{noise[0]:g}" + (" (ignored)" if noise[0] == 1 else "")
    return ", ".join(f"{value:g}" for value in noise)


def draw_levels(path: Path, found: Found) -> None:
    panels = (
        ("first_psnr", "PSNR of the given frame, dB"),
        ("error", "PSNR of frames 1 to 16, dB"),
        ("gain", "the same, against noise 0"),
        ("motion", "motion of the prompt"),
        ("amount", "movement, share of the true one"),
    )
    with plots.figure(path, 8.2, 4.8, nrows=2, ncols=3) as axes:
        for axis, (key, title) in zip(axes.flat, panels, strict=False):
            for colour, kind in zip(plots.COLOURS, ("shape", "camera"), strict=False):
                cases = [Case("image to video", kind, (level,)) for level in LEVELS]
                cases = [case for case in cases if key in found[case] and not (key == "gain" and is_control(case))]
                if not cases:
                    continue
                levels = [case.noise[0] for case in cases]
                value, low, high = ends([found[case][key] for case in cases])
                label = {"shape": "moving shapes", "camera": "moving camera"}[kind]
                axis.plot(levels, value, marker="o", ms=3, color=colour, label=label)
                axis.fill_between(levels, low, high, color=colour, alpha=0.15, lw=0)
            axis.set(title=title, xlabel="noise multiplier of the picture")
            if key in ("motion", "amount"):
                axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes[1, 2].set_axis_off()
        axes[1, 2].legend(*axes[0, 0].get_legend_handles_labels(), loc="center left")


def draw_rows(
    path: Path, groups: Sequence[tuple[str, list[Case]]], found: Found, panels: Sequence[tuple[str, str]]
) -> None:
    """A row of points with intervals for each case, and a panel for each measure."""
    heights = [len(cases) for _, cases in groups]
    grid: dict[str, Any] = dict(
        nrows=len(groups), ncols=len(panels), sharey="row", gridspec_kw={"height_ratios": heights}
    )
    with plots.figure(path, 2.2 + 1.9 * len(panels), 0.8 + 0.32 * sum(heights), **grid) as axes:
        for row, (title, cases) in zip(axes, groups, strict=True):
            places = {case: len(cases) - 1 - place for place, case in enumerate(cases)}
            for axis, (key, label) in zip(row, panels, strict=True):
                shown = [case for case in cases if key in found[case] and not (key == "gain" and is_control(case))]
                if not shown:
                    axis.set_axis_off()
                    continue
                value, low, high = ends([found[case][key] for case in shown])
                spread = np.stack([value - low, high - value]).clip(min=0)
                heights_of = [places[case] for case in shown]
                axis.errorbar(value, heights_of, xerr=spread, fmt="o", ms=4, color=plots.COLOURS[0], elinewidth=1.0)
                axis.set_title(label)
                axis.grid(axis="x", color="#dddddd", lw=0.5)
                axis.xaxis.set_major_locator(MaxNLocator(4))
                if key == "motion":
                    axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            row[0].set_yticks(list(places.values()), [name(case.noise) for case in places])
            row[0].set_ylabel(title)
            row[0].set_ylim(-0.6, len(cases) - 0.4)


def is_control(case: Case) -> bool:
    """Whether the conditions are ignored. The difference to noise 0 would then hide all others."""
    return set(case.noise) == {1.0}


def ends(values: Sequence[Interval]) -> tuple[Any, Any, Any]:
    value, low, high = (np.array([getattr(v, end) for v in values]) for end in ("value", "low", "high"))
    return value, low, high


def draw_sheet(path: Path, pipe: Pipeline, seed: int) -> None:
    """Frames of one scene, a row for the truth and for each multiplier."""
    scene = world.sample(seed, "heldout", "shape")
    truth = world.render(scene)
    clips = {"truth": truth}
    for level in SHEET:
        made = pipe.generate(scene.caption, [Image(truth[0], noise=level)], seed=seed)
        clips[f"noise {level:g}"] = made.frames
    gap, side = 2, world.SIZE
    rows = []
    for clip in clips.values():
        cells = [np.pad(clip[at], ((gap, gap), (gap, gap), (0, 0)), constant_values=255) for at in SHOWN]
        rows.append(np.concatenate(cells, axis=1))
    with plots.figure(path, 4.6, 5.2) as axes:
        axis = axes[0, 0]
        axis.imshow(np.concatenate(rows, axis=0), interpolation="nearest")
        middles = (side + 2 * gap) * (np.arange(max(len(clips), len(SHOWN))) + 0.5)
        axis.set_yticks(middles[: len(clips)], list(clips))
        axis.set_xticks(middles[: len(SHOWN)], [f"frame {at}" for at in SHOWN])
        axis.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
        axis.spines[:].set_visible(False)


# --------------------------------------------------------------------------------------------------------------- tables


def tables(record: Mapping[str, Any]) -> str:
    """The tables of docs/choosing_noise.md, from what this program wrote."""
    cases = {(one["task"], one["kind"], tuple(one["noise"])): one for one in record["cases"]}

    def cell(case: Case, key: str) -> str:
        one = cases[case.task, case.kind, case.noise][key]
        if key == "gain":
            value, low, high = (f"{round(one[end], 1) + 0:+.1f}" for end in ("value", "low", "high"))
            return "–" if set(case.noise) == {0.0} else f"{value} ({low} to {high})"
        if key in ("motion", "amount"):
            return f"{one['value']:.0%}"
        return f"{one['value']:.3f}" if "ssim" in key else f"{one['value']:.1f}"

    def row(case: Case, *keys: str) -> list[str]:
        return [name(case.noise), *(cell(case, key) for key in keys)]

    def of(task: str) -> list[Case]:
        return [case for case in CASES if case.task == task]

    pictures = [
        [*row(case, "first_psnr", "first_ssim", "error", "gain", "motion"), cell(case, "amount") if camera else "–"]
        for camera in (False, True)
        for case in of("image to video")
        if (case.kind == "camera") is camera
    ]
    kinds = ["shapes"] * len(LEVELS) + ["camera"] * len(LEVELS)
    levels = [[kind, *cells] for kind, cells in zip(kinds, pictures, strict=True)]
    pairs = [row(case, "first_psnr", "last_psnr", "error", "gain", "motion", "seam") for case in of("start and end")]
    ramps = [[str(case.given), *row(case, "error", "gain", "held", "seam", "seam_remade")] for case in of("extension")]
    return "\n".join(
        [
            _table(
                "scenes | noise | given frame, dB | its SSIM | frames 1–16, dB | against noise 0, dB | motion right | "
                "movement",
                levels,
            ),
            _table(
                "noise of start, end | first frame, dB | last frame, dB | frames 4–12, dB | against noise 0, dB | "
                "motion right | step to frame 13, z",
                pairs,
            ),
            _table(
                "given frames | noise of their latent frames | new frames, dB | against noise 0, dB | "
                "given frames as remade, dB | seam, given frames kept, z | seam, given frames remade, z",
                ramps,
            ),
        ]
    )


def _table(head: str, rows: Sequence[Sequence[str]]) -> str:
    columns = head.count("|") + 1
    lines = [f"| {head} |", "|" + " ---: |" * columns, *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


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
            ("gain", "against noise 0, dB"),
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
            ("gain", "against noise 0, dB"),
            ("seam", "seam, given kept, z"),
            ("seam_remade", "seam, given remade, z"),
        ],
    )
    draw_sheet(images / "noise_sheet.png", pipe, 3)
    record = {
        "command": f"python benchmarks/choosing_noise.py --scenes {options.scenes}",
        "scenes": options.scenes,
        "autoencoder_psnr": {kind: float(np.mean(through(pipe, kind, seeds))) for kind in ("shape", "camera")},
        "seam_of_a_cut": bootstrap(cuts(seeds), lambda values: float(np.median(values))).record(),
        "cases": [
            {"task": case.task, "kind": case.kind, "noise": case.noise}
            | {key: value.record() for key, value in found[case].items()}
            for case in CASES
        ],
    }
    (options.out / "results").mkdir(parents=True, exist_ok=True)
    write_json(options.out / "results" / "choosing_noise.json", record)
    print(tables(json.loads(json.dumps(record))))


def made(pipe: Pipeline, seeds: range, file: Path) -> list[Row]:
    """The rows of all cases and scenes; those that the file has are not made again."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = file.read_text() if file.exists() else ""
    whole = text[: text.rfind("\n") + 1]  # without a line that a stopped run did not end
    file.write_text(whole)
    rows = [json.loads(line) for line in whole.splitlines()]
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
