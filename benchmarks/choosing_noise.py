"""What the noise multiplier of a condition does, on held-out scenes of the embedded model.

    python benchmarks/choosing_noise.py

Image to video, start and end, and extension are made with several multipliers. Every clip of a scene starts from the
same noise. Multiplier 1 ignores the condition, so it is the control of every measure. The rows are kept in --work, so
that a run that was stopped goes on. The summary and the pictures are those of docs/choosing_noise.md.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.ticker import MaxNLocator, PercentFormatter
from noise_cases import CASES, LEVELS, Case, Found, cuts, made, summary, through

from pusa import Image, load
from pusa.embedded import world
from pusa.evaluation import plots
from pusa.evaluation.intervals import Interval, bootstrap
from pusa.files import write_json
from pusa.generation.pipeline import Pipeline

ROOT = Path(__file__).parents[1]
SHEET = (0.0, 0.2, 0.4, 0.6, 1.0)
SHOWN = (0, 4, 8, 12, 16)


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


if __name__ == "__main__":
    main()
