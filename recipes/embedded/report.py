"""Step 7 of the embedded base: write docs/results/embedded.md, the curves, the model card and the README's results.

    python recipes/embedded/report.py --runs runs/embedded

No number is typed by hand. Each comes from `numbers.json`, `curve.json` or `snapshots.json` (measure.py), or from a
training's log or cost sheet. For stages whose runs no longer exist, it comes from `history.json`.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import history
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import NullLocator

from pusa import embedded

Json = dict[str, Any]
TINY = Path("src/pusa/embedded/tiny")
STAGES = {
    "vae": "autoencoder",
    "decoder": "its decoder, further",
    "base": "text-to-video base, first stage",
    "base2": "second stage",
    "base3": "third stage, 12 latent channels",
    "base4": "fourth stage, other clips",
}
CLIPS = {"vae": 2.25, "decoder": 2.25} | dict.fromkeys(history.BASES, history.BATCH)
"""Clips in a step, on average."""
SHIPPED = "adapter0"
"""The run of the adapter that is shipped; its sisters differ in their seed."""


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def db(value: float) -> str:
    return f"{value:.2f} dB"


def gains(n: Json) -> Json:
    """What the targets are about, by the names that the history has for it."""
    t2v, i2v, ends, ext = n["text_to_video"], n["image_to_video"], n["start_end"], n["extension"]
    return {
        "t2v_motion": t2v["base"]["motion"],
        "i2v_motion": i2v["adapted"]["motion"],
        "i2v_over_repeat": i2v["adapted"]["db"] - i2v["first_frame_repeated"]["db"],
        "i2v_over_base": i2v["adapted"]["db"] - i2v["base"]["db"],
        "ends_over_fade": ends["repeat"]["adapted"]["db"] - ends["cross_fade"]["db"],
        "extension_over_frozen": ext["adapted"]["db"] - ext["frozen"]["db"],
    }


def targets(n: Json) -> list[list[str]]:
    """What the embedded model is meant to reach, beside what it reaches."""
    t2v, gain = n["text_to_video"], gains(n)
    lost = max(t2v["base"][k] - t2v["adapted"][k] for k in ("colour", "motion"))
    goals = [
        ("autoencoder, held-out shape clips", n["vae"]["shapes_db"], 30.0, db),
        ("text-to-video, base: colour", t2v["base"]["colour"], 0.95, percent),
        ("text-to-video, base: motion", gain["t2v_motion"], 0.85, percent),
        ("text-to-video: lost by loading the adapter", -lost, -0.03, lambda x: percent(-x)),
        ("image-to-video: motion", gain["i2v_motion"], 0.85, percent),
        ("image-to-video, over repeating the first frame", gain["i2v_over_repeat"], 3.0, db),
        ("image-to-video, over the base alone", gain["i2v_over_base"], 3.0, db),
        ("start–end, over a cross-fade", gain["ends_over_fade"], 2.0, db),
        ("extension, over freezing", gain["extension_over_frozen"], 3.0, db),
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


FIGURES = [
    ("i2v_motion", "image-to-video: motion", 0.85, percent),
    ("i2v_over_repeat", "over repeating the first frame", 3.0, db),
    ("ends_over_fade", "start–end, over a cross-fade", 2.0, db),
    ("extension_over_frozen", "extension, over freezing", 3.0, db),
]
"""The targets that depend on how much the base has seen."""


def outlook(past: Json) -> str:
    """The curve of the targets over the stages of the base, and what reaching them would take."""
    rows = [
        [f"{history.BATCH * row['steps']:,}", *(show(row[key]) for key, _, _, show in FIGURES)]
        for row in past["measured"]
    ]
    rates = {key: history.clips_for(past, key, goal) for key, _, goal, _ in FIGURES}
    points = [
        f"{100 * rates[key][0]:.0f} points" if show is percent else db(rates[key][0]) for key, _, _, show in FIGURES
    ]
    rows += [["a doubling adds", *points], ["target", *(show(goal) for _, _, goal, show in FIGURES)]]
    rows.append(["reached at", *(f"{rates[key][1] / 1e6:,.1f} M clips" for key, *_ in FIGURES)])
    bases = [past["stages"][name] for name in history.BASES if name in past["stages"]]
    seen, minutes = history.BATCH * sum(b["steps"] for b in bases), sum(b["minutes"] for b in bases)
    most = max(rates[key][1] for key, *_ in FIGURES)
    hours = most / seen * minutes / 60
    return f"""
## How the targets depend on the base

The adapter cannot exceed the base by much. This table repeats the numbers above after each stage of the base, on the
same clips:

{table(["clips that the base saw", *(title for _, title, _, _ in FIGURES)], rows)}

The last line extrapolates a straight line over the logarithm of the clips. The line has {len(rows) - 3} points of one
seed each, so the result is a guess. If the curve flattens, the guess is too optimistic. The CPU thread that took
{minutes / 60:.1f} hours for {seen:,} clips would take {hours:,.0f} hours for {most / 1e6:,.0f} M clips. A large GPU
at a hundred times its speed would take {hours / 100:,.1f} hours. Two more things changed between the stages: the
autoencoder at the second stage (29.2 to 30.5 dB), and the strength of the adapter at the fourth stage (1 to
{embedded.STRENGTH:g}).
"""


def results(n: Json, curve: list[Json], past: Json) -> str:
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
            ("repeat", "`repeat`: four copies, encoded after a fifth"),
            ("single", "`single`: a one-frame latent, as in the official code"),
            ("true_latent", "the latent of the true last four frames"),
        )
    ]
    text = f"""# The embedded model

Each row was measured on {n["clips"]} held-out clips with {n["steps"]} steps, guidance {n["guidance"]:g} and
shift {n["shift"]:g}. The first command measures the numbers. The second writes this page:

```shell
python recipes/embedded/measure.py
python recipes/embedded/report.py
```

`src/pusa/embedded/tiny/README.md`, the model card, describes how the model was made. The autoencoder reconstructs
held-out shape clips with {db(vae["shapes_db"])} PSNR and camera clips with {db(vae["cameras_db"])} PSNR. The other
numbers cannot be much better than that.

## Text-to-video

The judge is a program that reads only the pixels of a clip (`src/pusa/embedded/judge.py`). The table shows the share of
clips in which the judge finds what the caption says:

{table(["", "colour", "shape", "motion"], verdicts)}

## Conditions

The first frame and the caption of a shape clip determine all other frames, so the truth is known. The table shows the
PSNR to the truth, over the frames that were not given, pooled over all clips. Pooled means the PSNR of the mean squared
error. A mean of PSNRs would be dominated by the clips in which nothing moves.

{table(["task", "with the adapter", "base alone", "simple baseline"], rows)}

* The rendered truth, encoded and decoded, reaches {db(i2v["truth_through_vae"]["db"])} on frames 1–16. No model with
  this autoencoder can be much better in the first row.
* In image-to-video, the judge finds the right motion in {percent(i2v["adapted"]["motion"])} of the clips with the
  adapter and in {percent(i2v["base"]["motion"])} without it. It finds the right colour in
  {percent(i2v["adapted"]["colour"])} and {percent(i2v["base"]["colour"])}.
* The latent of the given frame is {"" if i2v["adapted"]["held"] else "**not** "}bit-identical in the result.
* With a moving camera, the direction is right in {percent(cam["adapted"]["motion"])} of the clips with the adapter
  and in {percent(cam["base"]["motion"])} without it.

## How a picture fills a latent frame of four pixel frames

Start–end, frames 4–12, with three encodings of the last picture:

{table(["encoding of the last picture", "with the adapter"], encodings)}
"""
    text += f"""
## Targets

{table(["", "measured", "target", "reached"], targets(n))}
"""
    text += outlook(past)
    rates = [
        [f"{steps:,}", *(percent(row[k]) for k in ("colour", "shape", "motion"))]
        for steps, row in history.snapshots(past)
    ]
    text += f"""
This table shows text-to-video of the base during its training, in steps of {history.BATCH} clips, on 24 held-out clips
(`python recipes/embedded/measure.py --clips 24 --snapshots FOLDER ...`):

{table(["steps of the base", "colour", "shape", "motion"], rates)}

Each stage ends with a learning rate near zero. Before the third stage, `reduce.py` removed the 20 latent channels
that carry no information. The fourth stage has new clips.
"""
    strengths = [
        [f"{row['strength']:g}", db(row["i2v_db"]), percent(row["i2v_motion"]), percent(row["t2v_motion"])]
        for row in past["strengths"]
    ]
    text += f"""
## Strength of the adapter

The adapter runs at strength {embedded.STRENGTH:g}. W + s·B·A with s above 1 extrapolates beyond the trained adapter.
The paper does the same, with 2 after 150 steps and 1.4 after 900 (its Table 4c). The strength was chosen on 32 clips
that are used for no other number (`python recipes/embedded/measure.py --clips 32 --tune 1.0 1.2 1.4 1.6`):

{table(["strength", "image-to-video, frames 1–16", "motion", "text-to-video: motion"], strengths)}
"""
    if curve:
        first, share = early_share(curve)
        text += f"""
## Length of the adaptation

`pusa train` was run with three seeds. The adapters were measured on 24 held-out clips
(`python recipes/embedded/measure.py --clips 24 --curve FOLDER ...`). The table shows the mean over the seeds, and in
brackets the smallest and the largest value.

{adaptation_table(curve)}

The adapter reaches {percent(share)} of its gain in PSNR after the first {first:,} clips. More clips for the adapter add
little, because the base limits image-to-video. All rows use strength {embedded.STRENGTH:g}.

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
    """The README's section: what the adapter gains in PSNR, and what text-to-video loses, in one table."""
    i2v, ends, ext, t2v = n["image_to_video"], n["start_end"], n["extension"], n["text_to_video"]
    rows = [
        ["image to video: frames 1–16", i2v["adapted"]["db"], i2v["base"]["db"], i2v["first_frame_repeated"]["db"]],
        ["start and end: frames 4–12", ends["repeat"]["adapted"]["db"], ends["repeat"]["base"]["db"]]
        + [ends["cross_fade"]["db"]],
        ["extension: frames 9–16 from 0–8", ext["adapted"]["db"], ext["base"]["db"], ext["frozen"]["db"]],
    ]
    goals = targets(n)
    missed = sum(row[-1] != "yes" for row in goals)
    head = ["task", "with the adapter", "base alone", "repeated frame or cross-fade"]
    shown = [[name, *(db(x) for x in values)] for name, *values in rows]
    shown += [
        [f"text to video: right {what}", percent(t2v["adapted"][what]), percent(t2v["base"][what]), "–"]
        for what in ("colour", "motion")
    ]
    lost = max(t2v["base"][k] - t2v["adapted"][k] for k in ("colour", "motion"))
    kept = "stays within 3 points" if lost <= 0.03 else "becomes worse"
    return f"""{table(head, shown)}

The table is for the embedded model on {n["clips"]} held-out clips. In these clips, the first frame and the caption
determine all other frames. The first three rows are the PSNR to the truth. In the last two rows, a program, the judge,
looks for the colour and the motion of the prompt. There, text-to-video {kept} with the adapter.
`python recipes/embedded/measure.py` measures these numbers. This model was trained for a few hours on one CPU thread.
It misses {missed} of {len(goals)} [targets](docs/results/embedded.md#targets).
[docs/results](docs/results/index.md) has all results."""


def card(n: Json, past: Json, cost: Json) -> str:
    rows = []
    for name, title in STAGES.items():
        if stage := past["stages"].get(name):
            steps = stage["steps"]
            rows.append([title, f"{steps:,}", f"{steps * CLIPS[name]:,.0f}", f"{stage['minutes']} min"])
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

A complete Wan pipeline that is small enough for a Python package: 64 x 64 pixels, 17 frames, 8 fps. Stock diffusers
loads the folder as it is (`WanPipeline.from_pretrained(folder)`). `pusa.safetensors` is the LoRA that vectorized
timestep adaptation trained on it. The model knows one small synthetic world (`pusa.embedded.world`) and nothing else.

| part | class | parameters |
| --- | --- | ---: |
| autoencoder | `AutoencoderKLWan`, 12 latent channels | 2.7 M |
| transformer | `WanTransformer3DModel`, 8 layers of width 192 | 4.5 M |
| text encoder | `UMT5EncoderModel`, 2 layers of width 64 | 0.1 M |
| adapter | LoRA, rank 32 | 1.2 M |

## Training

{table(["part", "steps", "clips seen", "wall time"], rows)}

One {platform.machine()} CPU thread, shared with other work; seeds 1, 2 and 0. Every batch and every noise is a function
of (seed, step). Some learning rate schedules were changed during training: see `recipes/embedded/README.md`.
`recipes/embedded/` remakes each part. `docs/results/embedded.md` has all measurements, for example:

* text-to-video, base: colour {percent(t2v["base"]["colour"])}, motion {percent(t2v["base"]["motion"])};
  with the adapter: colour {percent(t2v["adapted"]["colour"])}, motion {percent(t2v["adapted"]["motion"])}.
* image-to-video: {db(i2v["adapted"]["db"])} with the adapter, {db(i2v["base"]["db"])} without,
  {db(i2v["first_frame_repeated"]["db"])} by repeating the first frame.

## Limits

The model does not understand captions outside this world. A photograph turns into texture after a few frames.
"""


def plot(past: Json, curve: list[Json], path: Path) -> None:
    figure, axes = plt.subplots(1, 3 if curve else 2, figsize=(12, 3.4))
    shown = history.snapshots(past)
    for key, colour in {"colour": "#a0aec0", "shape": "#63a4e0", "motion": "#c05621"}.items():
        axes[0].plot([steps for steps, _ in shown], [100 * row[key] for _, row in shown], "o-", color=colour, label=key)
    axes[0].set(title="base: right in text-to-video, %", xlabel="steps of 32 clips")
    clips = [history.BATCH * row["steps"] for row in past["measured"]]
    for (key, title, goal, show), colour in zip(FIGURES[1:], ("#2b6cb0", "#c05621", "#7b341e"), strict=True):
        axes[1].plot(clips, [row[key] for row in past["measured"]], "o-", color=colour, label=f"{title} ({show(goal)})")
    axes[1].axhline(0, color="#718096", linewidth=0.8)
    axes[1].set(title="adapted: dB over the simple baseline (target)", xlabel="clips that the base saw", xscale="log")
    axes[1].set_xticks(clips, [f"{count // 1000} k" for count in clips], fontsize=8)
    axes[1].xaxis.set_minor_locator(NullLocator())
    if curve:
        for seed, colour in zip(sorted({c["seed"] for c in curve}), ("#c05621", "#dd9452", "#7b341e"), strict=False):
            points = [c for c in curve if c["seed"] == seed or c["samples"] == 0]
            samples, values = [c["samples"] for c in points], [c["i2v_db"] for c in points]
            axes[2].plot(samples, values, "o-", color=colour, label=f"seed {seed}")
        axes[2].set(title="adapter: image-to-video PSNR", xlabel="clips seen", ylabel="dB")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/embedded"))
    args = parser.parse_args()

    def read(path: Path, otherwise: Any) -> Any:
        return json.loads(path.read_text()) if path.exists() else otherwise

    numbers, curve = json.loads((args.runs / "numbers.json").read_text()), read(args.runs / "curve.json", [])
    cost = read(args.runs / SHIPPED / "cost.json", {})
    past = history.update(args.runs, gains(numbers))
    plot(past, curve, Path("docs/results/images/training.png"))
    Path("docs/results/embedded.md").write_text(results(numbers, curve, past))
    before, rest = Path("README.md").read_text().split("<!-- results -->")
    after = rest.split("<!-- end of results -->")[1]
    text = f"{before}<!-- results -->\n{summary(numbers)}\n<!-- end of results -->{after}"
    Path("README.md").write_text(text)
    (TINY / "README.md").write_text(card(numbers, past, cost))


if __name__ == "__main__":
    main()
