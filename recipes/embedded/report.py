"""Step 7 of the embedded base: write docs/results.md, the curves, the model card and the README's results.

    python recipes/embedded/report.py --runs runs/embedded

Nothing is typed by hand: every number comes from `numbers.json`, `curve.json`, `snapshots.json` (measure.py) or from a
training's log or cost sheet.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

Json = dict[str, Any]
TINY = Path("src/pusa/embedded/tiny")
STAGES = {
    "vae": "autoencoder",
    "decoder": "its decoder, further",
    "base": "text-to-video base, first stage",
    "base2": "second stage",
    "base3": "third stage, 12 latent channels",
}
CLIPS = {"vae": 2.25, "decoder": 2.25, "base": 32, "base2": 32, "base3": 32}
"""Clips in a step, on average."""
CHANNELS = {"base": 32, "base2": 32, "base3": 12}
"""Latent channels, over which the losses are means; only their sums can be compared."""
SHIPPED = "adapter0"
"""The run of the adapter that is shipped; its sisters differ in their seed."""


def read_log(path: Path) -> list[Json]:
    """The lines of a training log; after a resume the later line of a step counts."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for _, line in sorted({line["step"]: line for line in lines}.items())]


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def db(value: float) -> str:
    return f"{value:.2f} dB"


def targets(n: Json) -> list[list[str]]:
    """What the embedded model is meant to reach, beside what it reaches."""
    t2v, i2v, ends, ext = n["text_to_video"], n["image_to_video"], n["start_end"]["repeat"], n["extension"]
    lost = max(t2v["base"][k] - t2v["adapted"][k] for k in ("colour", "motion"))
    over_repeat = i2v["adapted"]["db"] - i2v["first_frame_repeated"]["db"]
    over_base = i2v["adapted"]["db"] - i2v["base"]["db"]
    over_fade = ends["adapted"]["db"] - n["start_end"]["cross_fade"]["db"]
    over_frozen = ext["adapted"]["db"] - ext["frozen"]["db"]
    goals = [
        ("autoencoder, held-out shape clips", n["vae"]["shapes_db"], 30.0, db),
        ("text-to-video, base: colour", t2v["base"]["colour"], 0.95, percent),
        ("text-to-video, base: motion", t2v["base"]["motion"], 0.85, percent),
        ("text-to-video: lost by loading the adapter", -lost, -0.03, lambda x: percent(-x)),
        ("image-to-video: motion", i2v["adapted"]["motion"], 0.85, percent),
        ("image-to-video, over repeating the first frame", over_repeat, 3.0, db),
        ("image-to-video, over the base alone", over_base, 3.0, db),
        ("start–end, over a cross-fade", over_fade, 2.0, db),
        ("extension, over freezing", over_frozen, 3.0, db),
    ]
    return [
        [
            name,
            show(value),
            ("at most " if goal < 0 else "at least ") + show(goal),
            "yes" if value >= goal else "**no**",
        ]
        for name, value, goal, show in goals
    ]


def results(n: Json, curve: list[Json], snapshots: list[Json], logs: dict[str, list[Json]]) -> str:
    t2v, i2v, ends = n["text_to_video"], n["image_to_video"], n["start_end"]
    ext, com, cam, vae = n["extension"], n["completion"], n["camera_image_to_video"], n["vae"]
    order = [("truth", "rendered clips"), ("truth_through_vae", "rendered clips through the VAE")]
    order += [("base", "base"), ("adapted", "base with the adapter")]
    verdicts = [[title, *(percent(t2v[key][k]) for k in ("colour", "shape", "motion"))] for key, title in order]
    plain = ext["frozen"]["db"], ends["cross_fade"]["db"], com["cross_fade"]["db"]
    tasks = [
        ["image-to-video, frames 1–16", "first frame repeated", i2v["first_frame_repeated"]["db"], i2v],
        ["start–end, frames 4–12", "cross-fade", plain[1], ends["repeat"]],
        ["extension, 9 frames given, frames 9–16", "last given frame repeated", plain[0], ext],
        ["completion, first 5 and last 4 given, frames 5–12", "cross-fade", plain[2], com],
        ["image-to-video, moving camera, frames 1–16", "first frame repeated", cam["first_frame_repeated"]["db"], cam],
    ]
    rows = [
        [name, db(row["adapted"]["db"]), db(row["base"]["db"]), f"{db(simple)} ({what})"]
        for name, what, simple, row in tasks
    ]
    encodings = [
        [title, db(ends[key]["adapted"]["db"])]
        for key, title in (
            ("repeat", "`repeat`: four copies, in causal context"),
            ("single", "`single`: a one-frame latent, as the official code"),
            ("true_latent", "the latent of the true last four frames"),
        )
    ]
    text = f"""# Results

Measured on {n["clips"]} held-out clips a row, {n["steps"]} steps, guidance {n["guidance"]:g}, shift {n["shift"]:g}.
One command measures them, another writes this page:

```shell
python recipes/embedded/measure.py
python recipes/embedded/report.py
```

What a training step costs is in [benchmarks.md](benchmarks.md).

The model is the embedded one; how it was made is in [its model card](../src/pusa/embedded/tiny/README.md). The
autoencoder reconstructs held-out shape clips with {db(vae["shapes_db"])} and camera clips with {db(vae["cameras_db"])}
PSNR. No later number can be much better than that.

## Text-to-video

The judge sees pixels only. The share of clips in which it finds what the caption says:

{table(["", "colour", "shape", "motion"], verdicts)}

## Conditions

The first frame and the caption of a shape clip determine all the rest, so the truth is known. PSNR against it, over the
frames that were not given and pooled over all clips (the PSNR of the mean squared error; a mean of PSNRs would be ruled
by the clips in which nothing moves):

{table(["task", "with the adapter", "base alone", "simple baseline"], rows)}

The rendered truth, encoded and decoded, reaches {db(i2v["truth_through_vae"]["db"])} on frames 1–16: the ceiling of the
first row. In image-to-video the judge finds the motion right in {percent(i2v["adapted"]["motion"])} of the clips with
the adapter and in {percent(i2v["base"]["motion"])} without, the colour in {percent(i2v["adapted"]["colour"])} and
{percent(i2v["base"]["colour"])}. The conditioned latent comes out bit-identical: {i2v["adapted"]["held"]}.
With a moving camera the direction is right in {percent(cam["adapted"]["motion"])} with the adapter,
{percent(cam["base"]["motion"])} without.

## How a picture fills a four-frame slot

Start–end, frames 4–12, with the last picture encoded in three ways:

{table(["encoding of the last picture", "with the adapter"], encodings)}
"""
    text += f"""
## Against the targets

{table(["", "measured", "target", "reached"], targets(n))}
"""
    if snapshots:
        before = {"base": 0, "base2": logs["base"][-1]["step"] + 1}
        before["base3"] = before["base2"] + logs["base2"][-1]["step"] + 1
        rates = [
            [f"{before[p['run']] + p['step']:,}", *(percent(p[k]) for k in ("colour", "shape", "motion"))]
            for p in snapshots
        ]
        text += f"""
The base over its steps of 32 clips each, text-to-video on 24 held-out scenes (`measure.py --clips 24 --snapshots`):

{table(["steps of the base", "colour", "shape", "motion"], rates)}

Each of its stages ends with a learning rate near zero. The third begins after `reduce.py` took the 20 latent channels
out that carry nothing.
"""
    if curve:
        first, share = early_share(curve)
        text += f"""
## How little adaptation it takes

`pusa train` with three seeds, measured on 24 held-out scenes (`measure.py --clips 24 --curve`): the mean over the
seeds, and the least and the greatest.

{adaptation_table(curve)}

{percent(share)} of the gain in PSNR is there after the first {first:,} clips. More clips
for the adapter add little: what limits image-to-video is the base.

![Training curves](images/training.png)
"""
    return text


def early_share(curve: list[Json]) -> tuple[int, float]:
    """The clips seen at the first checkpoint, and the share of the final gain in PSNR that was there."""
    counts = sorted({point["samples"] for point in curve})
    base, early, late = (
        np.mean([point["i2v_db"] for point in curve if point["samples"] == count])
        for count in (counts[0], counts[1], counts[-1])
    )
    return counts[1], float((early - base) / (late - base))


def adaptation_table(curve: list[Json]) -> str:
    """A row for each number of clips seen: mean and range over the seeds."""
    columns = {"i2v_db": db, "i2v_motion": percent, "t2v_motion": percent, "t2v_colour": percent}
    rows = []
    for samples in sorted({point["samples"] for point in curve}):
        here = [point for point in curve if point["samples"] == samples]
        row = [f"{samples:,}"]
        for key, show in columns.items():
            values = [point[key] for point in here]
            mean = show(sum(values) / len(values))
            row.append(f"{mean} ({show(min(values))} to {show(max(values))})" if len(values) > 1 else mean)
        rows.append(row)
    head = ["clips seen by the adapter", "image-to-video, frames 1–16", "motion", "text-to-video: motion", "colour"]
    return table(head, rows)


def summary(n: Json) -> str:
    """The README's section: the claim of the method, in four lines of a table."""
    i2v, ends, ext, t2v = n["image_to_video"], n["start_end"], n["extension"], n["text_to_video"]
    rows = [
        ["image to video: frames 1–16", i2v["adapted"]["db"], i2v["base"]["db"], i2v["first_frame_repeated"]["db"]],
        ["start and end: frames 4–12", ends["repeat"]["adapted"]["db"], ends["repeat"]["base"]["db"]]
        + [ends["cross_fade"]["db"]],
        ["extension: frames 9–16 from 0–8", ext["adapted"]["db"], ext["base"]["db"], ext["frozen"]["db"]],
    ]
    goals = targets(n)
    missed = sum(row[-1] != "yes" for row in goals)
    head = ["PSNR to the truth", "adapted", "base model alone", "repeated frame or cross-fade"]
    return f"""{table(head, [[name, *(db(x) for x in values)] for name, *values in rows])}

The embedded model on {n["clips"]} held-out clips, where first frame and caption determine the rest. Text-to-video is
nearly kept: the judge finds the right colour in {percent(t2v["base"]["colour"])} of the base's clips and
{percent(t2v["adapted"]["colour"])} of the adapted model's, the right motion in {percent(t2v["base"]["motion"])} and
{percent(t2v["adapted"]["motion"])}. `python recipes/embedded/measure.py` measures it;
[docs/results.md](docs/results.md) has all numbers, the controls, and the {missed} of {len(goals)} targets that this
model, trained for a few hours on one CPU thread, still misses."""


def card(n: Json, logs: dict[str, list[Json]], cost: Json) -> str:
    rows = []
    for name, title in STAGES.items():
        if log := logs.get(name):
            steps = log[-1]["step"] + 1
            rows.append([title, f"{steps:,}", f"{steps * CLIPS[name]:,.0f}", f"{log[-1]['seconds'] / 60:.0f} min"])
    if cost:
        rows.append(["adapter", f"{cost['steps']:,}", f"{cost['samples']:,}", f"{cost['seconds'] / 60:.0f} min"])
    t2v, i2v = n["text_to_video"], n["image_to_video"]
    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-video
tags: [wan, pusa, vectorized-timestep-adaptation, image-to-video]
---

# tiny

A complete Wan pipeline small enough to live in a Python package: 64 x 64 pixels, 17 frames, 8 fps. Stock diffusers
loads the folder as it is (`WanPipeline.from_pretrained(folder)`); `pusa.safetensors` is the LoRA that vectorized
timestep adaptation put on top. It knows one small synthetic world (`pusa.embedded.world`) and nothing else.

| part | class | parameters |
| --- | --- | ---: |
| autoencoder | `AutoencoderKLWan`, 12 latent channels | 2.7 M |
| transformer | `WanTransformer3DModel`, 8 layers of width 192 | 4.5 M |
| text encoder | `UMT5EncoderModel`, 2 layers of width 64 | 0.1 M |
| adapter | LoRA, rank 32 | 1.2 M |

## Training

{table(["part", "steps", "clips seen", "wall time"], rows)}

One {platform.machine()} CPU thread, shared with other work; seeds 1, 2 and 0. Every batch and every noise is a function
of (seed, step); some learning rate schedules were changed on the way, which `recipes/embedded/README.md` tells.
`recipes/embedded/` remakes each part; what it measures is in `docs/results.md`:

* text-to-video, base: colour {percent(t2v["base"]["colour"])}, motion {percent(t2v["base"]["motion"])};
  with the adapter: colour {percent(t2v["adapted"]["colour"])}, motion {percent(t2v["adapted"]["motion"])}.
* image-to-video: {db(i2v["adapted"]["db"])} with the adapter, {db(i2v["base"]["db"])} without,
  {db(i2v["first_frame_repeated"]["db"])} by repeating the first frame.

## Limits

Captions outside the world mean nothing to it. A photograph dissolves into texture after a few frames.
"""


def plot(logs: dict[str, list[Json]], curve: list[Json], path: Path) -> None:
    figure, axes = plt.subplots(1, 3 if curve else 2, figsize=(12, 3.2))
    for axis, (title, stages) in zip(
        axes,
        {
            "autoencoder: loss": ("vae", "decoder"),
            "base: squared error, summed over channels": ("base", "base2", "base3"),
        }.items(),
        strict=False,
    ):
        done = 0
        for stage, colour in zip(stages, ("#2b6cb0", "#63a4e0", "#c05621"), strict=False):
            if log := logs.get(stage):
                scale = CHANNELS.get(stage, 1)
                axis.plot([done + x["step"] for x in log], [scale * x["mean"] for x in log], color=colour, label=stage)
                done += log[-1]["step"] + 1
        axis.set(title=title, xlabel="step", yscale="log")
        axis.grid(alpha=0.3)
        axis.legend()
    if curve:
        for seed, colour in zip(sorted({c["seed"] for c in curve}), ("#c05621", "#dd9452", "#7b341e"), strict=False):
            points = [c for c in curve if c["seed"] == seed or c["samples"] == 0]
            samples, values = [c["samples"] for c in points], [c["i2v_db"] for c in points]
            axes[2].plot(samples, values, "o-", color=colour, label=f"seed {seed}")
        axes[2].set(title="adapter: image-to-video PSNR", xlabel="clips seen", ylabel="dB")
        axes[2].grid(alpha=0.3)
        axes[2].legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/embedded"))
    args = parser.parse_args()

    def read(path: Path, otherwise: Any) -> Any:
        return json.loads(path.read_text()) if path.exists() else otherwise

    numbers = json.loads((args.runs / "numbers.json").read_text())
    curve, snapshots = read(args.runs / "curve.json", []), read(args.runs / "snapshots.json", [])
    cost = read(args.runs / SHIPPED / "cost.json", {})
    logs = {name: read_log(path) for name in STAGES if (path := args.runs / name / "log.jsonl").exists()}
    plot(logs, curve, Path("docs/images/training.png"))
    Path("docs/results.md").write_text(results(numbers, curve, snapshots, logs))
    before, rest = Path("README.md").read_text().split("<!-- results -->")
    after = rest.split("<!-- end of results -->")[1]
    text = f"{before}<!-- results -->\n{summary(numbers)}\n<!-- end of results -->{after}"
    Path("README.md").write_text(text)
    (TINY / "README.md").write_text(card(numbers, logs, cost))


if __name__ == "__main__":
    main()
