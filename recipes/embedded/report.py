"""Step 8 of the embedded base: write docs/results/embedded.md, the curves, the model card and the README's results.

    python recipes/embedded/report.py --runs runs/embedded

No number is typed by hand. Each comes from `numbers.json` or `strengths.json` (measure.py), or from a training's log or
cost sheet, and is copied into `history.json`, because run folders are not part of the repository. `former.json` has the
numbers of the model that this one replaced, measured on the same scenes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from safetensors import safe_open

from pusa import embedded
from pusa.evaluation.intervals import Interval, bootstrap

Json = dict[str, Any]
HERE = Path(__file__).parent
TINY = Path("src/pusa/embedded/tiny")
HISTORY, FORMER = HERE / "history.json", HERE / "former.json"
FOLDERS = ("vae", "transformer", "text_encoder")
DB = " dB"
PARTS = {"decoder": "decoder of the autoencoder", "base": "text-to-video base", "adapter": "adapter"}
CLIPS = {"decoder": 1.5, "base": 32, "adapter": 32}
"""Clips in a step of one process, on average."""


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def pooled(errors: np.ndarray) -> float:
    """PSNR in dB of the mean squared error over all scenes.

    A mean of PSNRs would be ruled by the clips in which nothing moves: repeating a frame is exact there.
    """
    return float(20 * np.log10(255) - 10 * np.log10(errors.mean()))


class Numbers:
    """What measure.py found: a number for each scene, and from them means and intervals over scenes."""

    def __init__(self, found: Json) -> None:
        self.found = found

    def values(self, row: str, arm: str, measure: str = "error") -> np.ndarray:
        return np.array(self.found["rows"][row][arm][measure])

    def psnr(self, row: str, arm: str) -> Interval:
        return bootstrap(self.values(row, arm), pooled)

    def over(self, row: str, arm: str = "adapted", other: str = "simple") -> Interval:
        """How many dB an arm is above another on the same scenes."""
        both = np.stack([self.values(row, arm), self.values(row, other)], 1)
        return bootstrap(both, lambda x: pooled(x[:, 0]) - pooled(x[:, 1]))

    def share(self, row: str, arm: str, measure: str) -> Interval:
        return bootstrap(self.values(row, arm, measure))

    def lost(self, measure: str) -> Interval:
        """What text-to-video loses by loading the adapter."""
        row = "shape text_to_video"
        return bootstrap(self.values(row, "base", measure) - self.values(row, "adapted", measure))


def in_db(found: Interval) -> str:
    return _with(found, 1, 2, DB)


def in_percent(found: Interval) -> str:
    return _with(found, 100, 1, " %")


def plain(found: Interval) -> str:
    return _with(found, 1, 3, "")


def levels(found: Interval) -> str:
    return _with(found, 1, 1, " of 255")


def _with(found: Interval, scale: float, digits: int, unit: str) -> str:
    value, low, high = (f"{scale * x:.{digits}f}" for x in (found.value, found.low, found.high))
    return f"{value}{unit} ({low} to {high})"


@dataclass(frozen=True)
class Target:
    """A number that the model is meant to reach. least: False if it should be below the target."""

    name: str
    number: Callable[[Numbers], Interval]
    goal: float
    show: Callable[[Interval], str]
    unit: str
    least: bool = True

    def line(self, new: Numbers, old: Numbers) -> list[str]:
        found = self.number(new)
        scale = 100 if self.unit == " %" else 1
        reached = found.value >= self.goal if self.least else found.value <= self.goal
        goal = f"{'at least' if self.least else 'at most'} {scale * self.goal:g}{self.unit}"
        return [self.name, self.show(self.number(old)), self.show(found), goal, "yes" if reached else "**no**"]


TARGETS = (
    Target("autoencoder, camera clips", lambda n: n.psnr("camera autoencoder", "through"), 29, in_db, DB),
    Target("autoencoder, photographs", lambda n: n.psnr("photograph autoencoder", "through"), 27, in_db, DB),
    Target("the given first frame, photographs: SSIM", lambda n: n.share("photograph given", "first", "ssim"), 0.85,
           plain, ""),
    Target("the given last frame, shapes", lambda n: n.psnr("shape given", "last"), 29, in_db, DB),
    Target("the given last frame, photographs", lambda n: n.psnr("photograph given", "last"), 29, in_db, DB),
    Target("image to video over repeating, photographs", lambda n: n.over("photograph image_to_video"), 3, in_db, DB),
    Target("camera direction right", lambda n: n.share("camera image_to_video", "adapted", "motion"), 0.85, in_percent,
           " %"),
    Target("image to video over repeating, shapes", lambda n: n.over("shape image_to_video"), 2, in_db, DB),
    Target("image to video: motion right, shapes", lambda n: n.share("shape image_to_video", "adapted", "motion"), 0.85,
           in_percent, " %"),
    Target("start and end over a cross-fade, shapes", lambda n: n.over("shape start_end"), 2, in_db, DB),
    Target("extension over freezing, shapes", lambda n: n.over("shape extension"), 3, in_db, DB),
    Target("text to video: motion lost by the adapter", lambda n: n.lost("motion"), 0.03, in_percent, " %", False),
    Target("noise 0.4: error of the clip's mean colour", lambda n: n.share("photograph noise", "adapted",
           "colour_error"), 8, levels, " of 255", False),
)  # fmt: skip

TASKS = (
    ("shape image_to_video", "image to video, shapes, frames 1–16", "first frame repeated"),
    ("photograph image_to_video", "image to video, photographs, frames 1–16", "first frame repeated"),
    ("camera image_to_video", "image to video, photographs and textures, frames 1–16", "first frame repeated"),
    ("shape start_end", "start and end, shapes, frames 4–12", "cross-fade"),
    ("photograph start_end", "start and end, photographs, frames 4–12", "cross-fade"),
    ("shape extension", "extension, shapes, frames 9–16 from 0–8", "frame 8 repeated"),
    ("photograph extension", "extension, photographs, frames 9–16 from 0–8", "frame 8 repeated"),
    ("shape completion", "completion, shapes, frames 5–12 from the others", "cross-fade"),
)

CONDITIONS = [
    "task",
    "with the adapter",
    "base alone",
    "simple baseline",
    "over it",
    "the truth through the autoencoder",
]


def results(new: Numbers, old: Numbers, history: Json) -> str:
    found, row = new.found, "shape text_to_video"
    order = [("truth", "rendered clips"), ("through", "rendered clips through the autoencoder")]
    order += [("base", "base"), ("adapted", "base with the adapter")]
    verdicts = [
        [title, *(in_percent(new.share(row, arm, key)) for key in ("colour", "shape", "motion"))]
        for arm, title in order
    ]
    for arm, title in (("base", "the former base"), ("adapted", "the former base with its adapter")):
        verdicts.append([title, *(in_percent(old.share(row, arm, key)) for key in ("colour", "shape", "motion"))])
    tasks = []
    for name, title, what in TASKS:
        adapted, base, simple, through = (
            in_db(new.psnr(name, arm)) for arm in ("adapted", "base", "simple", "through")
        )
        tasks.append([title, adapted, base, f"{simple}, {what}", in_db(new.over(name)), through])
    motions = [
        [title.rpartition(",")[0], *(in_percent(new.share(name, arm, "motion")) for arm in ("adapted", "base"))]
        for name, title, _ in TASKS[:3]
    ]
    encodings = [
        ["`repeat`: four copies, encoded after a fifth", in_db(new.psnr("shape start_end", "adapted"))],
        ["`single`: a one-frame latent, as in the official code", in_db(new.psnr("shape other_ends", "single"))],
        ["the latent of the true last four frames", in_db(new.psnr("shape other_ends", "true latent"))],
    ]
    given = [
        [f"{kind}s", in_db(new.psnr(f"{kind} given", "first")), plain(new.share(f"{kind} given", "first", "ssim")),
         in_db(new.psnr(f"{kind} given", "last"))]
        for kind in ("shape", "photograph")
    ]  # fmt: skip
    strengths = [
        [f"{x['strength']:g}", f"{x['shape_db']:.2f}{DB}", f"{100 * x['shape_motion']:.0f} %"]
        + [f"{x['camera_db']:.2f}{DB}", f"{100 * x['camera_motion']:.0f} %", f"{100 * x['t2v_motion']:.0f} %"]
        for x in history["strengths"]
    ]
    head = [
        "strength",
        "image to video, shapes",
        "motion",
        "image to video, cameras",
        "direction",
        "text to video: motion",
    ]
    compared = " ".join(f"{x['strength']:g}" for x in history["strengths"])
    return f"""# The embedded model

Each row was measured on {found["clips"]} held-out clips with {found["steps"]} steps, guidance {found["guidance"]:g} and
shift {found["shift"]:g}. Brackets contain 95 % bootstrap intervals over the clips. The photographs are chelsea, coffee
and rocket of scikit-image; nothing was trained on them. The first command measures the numbers. The second writes this
page:

```shell
python recipes/embedded/measure.py
python recipes/embedded/report.py
```

`src/pusa/embedded/tiny/README.md`, the model card, describes how the model was made, and
[the study](embedded_study.md) why in this way.

## Targets

The former model is that of version {next(iter(embedded.FORMER.values()))}, on the same clips.

{table(["", "the former model", "this model", "target", "reached"], [target.line(new, old) for target in TARGETS])}

## Text to video

The judge is a program that reads only the pixels of a clip (`src/pusa/embedded/judge.py`). The table shows the share of
shape clips in which the judge finds what the caption says:

{table(["", "colour", "shape", "motion"], verdicts)}

The former model draws shapes better: it had seen 857,600 clips of its latents, most of them shapes, and this one
{history["stages"]["base"]["clips"]:,}, half of them.

## Conditions

The table shows the PSNR to the truth, over the frames that were not given, pooled over all clips. Pooled means the PSNR
of the mean squared error. A mean of PSNRs would be dominated by the clips in which nothing moves. The first frame and
the caption of a shape clip determine all other frames. A moving camera shows new parts of the picture at a border, and
no model can know these. The last column is the truth, encoded and decoded: no model with this autoencoder can be much
better.

{table(CONDITIONS, tasks)}

The latents of the given frames are bit-identical in the results (`measure.py` stops if they are not). The judge finds
the right motion, or the right direction of the camera:

{table(["", "with the adapter", "base alone"], motions)}

## A picture that is given

| as the first frame and as the last, after decoding | first frame | SSIM of the first frame | last frame |
| --- | ---: | ---: | ---: |
{chr(10).join("| " + " | ".join(line) + " |" for line in given)}

A latent frame holds four pixel frames. Start and end of shapes, frames 4–12, with three encodings of the last picture:

{table(["encoding of the last picture", "with the adapter"], encodings)}

## Strength of the adapter

The adapter runs at strength {embedded.STRENGTH:g}. It was chosen on 32 shape clips and 32 camera clips that are used
for no other number (`measure.py --clips 32 --tune {compared}`). A higher strength helps image to video and harms
text to video:

{table(head, strengths)}

## Training curves

![Training curves](images/training.png)

The losses of base and adapter are the squared error of the velocity at the noise levels of training. All are means over
about 50 steps.
"""


def summary(n: Numbers, minutes: int) -> str:
    """The README's section: what the adapter gains in PSNR, and what text-to-video loses, in one table."""

    def row(name: str, title: str) -> list[str]:
        return [title, *(f"{n.psnr(name, arm).value:.2f}{DB}" for arm in ("adapted", "base", "simple"))]

    rows = [
        row("shape image_to_video", "image to video, shapes: frames 1–16"),
        row("photograph image_to_video", "image to video, photographs: frames 1–16"),
        row("shape start_end", "start and end, shapes: frames 4–12"),
        row("shape extension", "extension, shapes: frames 9–16 from 0–8"),
    ]
    for what in ("colour", "motion"):
        shares = [n.share("shape text_to_video", arm, what).value for arm in ("adapted", "base")]
        rows.append([f"text to video: right {what}", *(f"{100 * x:.1f} %" for x in shares), "–"])
    lines = [target.line(n, n) for target in TARGETS]
    missed = sum(line[-1] != "yes" for line in lines)
    what = f"misses {missed} of {len(lines)}" if missed else f"reaches all {len(lines)}"
    return f"""{table(["task", "with the adapter", "base alone", "repeated frame or cross-fade"], rows)}

The table is for the embedded model on {n.found["clips"]} held-out clips each. The first rows are the PSNR to the truth.
In the last two rows, a program, the judge, looks for the colour and the motion of the prompt.
`python recipes/embedded/measure.py` measures these numbers. The model was trained for {minutes} minutes on two CPU
cores, from the blocks of a former one. It {what} [targets](docs/results/embedded.md#targets).
[docs/results](docs/results/index.md) has all results."""


def card(n: Numbers, history: Json) -> str:
    stages = history["stages"]
    rows = []
    for name, title in PARTS.items():
        rows.append(
            [title, f"{stages[name]['steps']:,}", f"{stages[name]['clips']:,}", f"{stages[name]['minutes']} min"]
        )
    i2v, row = n.psnr("photograph image_to_video", "adapted").value, "photograph image_to_video"
    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-video
tags: [wan, pusa, vectorized-timestep-adaptation, image-to-video]
---

# tiny

A complete Wan pipeline that is small enough for a Python package: 64 x 64 pixels, 17 frames, 8 fps. Stock diffusers
loads the folder as it is (`WanPipeline.from_pretrained(folder)`). `pusa.safetensors` is the LoRA that vectorized
timestep adaptation trained on it. The model knows one small synthetic world (`pusa.embedded.world`): coloured shapes
that move over a grey background, and a camera that moves over a picture.

| part | class | parameters |
| --- | --- | ---: |
{parts()}

## Training

The encoder of the autoencoder is a principal component analysis in closed form. The transformer began with the blocks
of the former model (version 0.1.0), made wider, which had seen 857,600 clips.

{table(["part", "steps", "clips seen", "wall time"], rows)}

One thread of an x86_64 CPU that multiplies bfloat16, and two for the base from step 1,400 on. Every batch and every
noise is a function of (seed, step). The photographs are 192 free ones of Debian packages
(`recipes/embedded/pictures.py` lists them) and 12 of scikit-image. `recipes/embedded/all.sh` remakes all of it.

`docs/results/embedded.md` has all measurements, for example image to video on held-out photographs: {i2v:.2f} dB with
the adapter, {n.psnr(row, "base").value:.2f} dB without, {n.psnr(row, "simple").value:.2f} dB by repeating frame 0.

## Limits

* The model does not understand captions outside of its world.
* A photograph can be panned over or zoomed. Nothing inside of it moves. The frames that are made have less detail than
  the given one, plain areas get spots, and what comes into view at a border is made up.
* Shapes that are made have rough edges. The former model drew them more cleanly.
* Clips have 17 frames of 64 x 64 pixels. Longer clips are made by extension.
"""


def parts() -> str:
    """The rows of the card's first table, from the configurations and weights in the package."""
    vae, transformer, text = (json.loads((TINY / name / "config.json").read_text()) for name in FOLDERS)
    width = transformer["num_attention_heads"] * transformer["attention_head_dim"]
    factor, channels = vae["scale_factor_spatial"], vae["z_dim"]
    lines = [
        ["autoencoder", f"`AutoencoderKLWan`, {channels} latent channels, {factor} x in space", count(FOLDERS[0])],
        [
            "transformer",
            f"`WanTransformer3DModel`, {transformer['num_layers']} layers of width {width}",
            count(FOLDERS[1]),
        ],
        [
            "text encoder",
            f"`UMT5EncoderModel`, {text['num_layers']} layers of width {text['d_model']}",
            count(FOLDERS[2]),
        ],
        ["adapter", "LoRA, rank 32", count("pusa.safetensors")],
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def count(part: str) -> str:
    """The number of weights of a part, such as `6.5 M`."""
    path = TINY / part
    with safe_open(next(path.glob("*.safetensors")) if path.is_dir() else path, "np") as file:
        weights = sum(int(np.prod(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118
    return f"{weights / 1e6:.1f} M"


def log_of(folder: Path) -> list[Json]:
    """The lines of a training log; after a resume the later line of a step counts."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for _, line in sorted({line["step"]: line for line in lines}.items())]


def update(runs: Path) -> Json:
    """The history with what the logs in `runs` add, written back."""
    history: Json = json.loads(HISTORY.read_text())
    for name in PARTS:
        if (runs / name / "log.jsonl").is_file():
            lines = log_of(runs / name)
            steps, before = lines[-1]["step"] + 1, 0
            clips = 0.0
            for line in lines:  # each stands for the steps since the one before
                clips += CLIPS[name] * line.get("processes", 1) * (line["step"] + 1 - before)
                before = line["step"] + 1
            minutes = round(lines[-1]["seconds"] / 60)
            history["stages"][name] = {"steps": steps, "clips": round(clips), "minutes": minutes}
    if (found := runs / "strengths.json").is_file():
        history["strengths"] = json.loads(found.read_text())
    HISTORY.write_text(json.dumps(history, indent=1, ensure_ascii=False) + "\n")
    return history


def plot(runs: Path, path: Path) -> None:
    """The losses of the trained parts; only where the runs still exist."""
    if not all((runs / name / "log.jsonl").is_file() for name in PARTS):
        return
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.2))
    for axis, (name, title) in zip(axes, PARTS.items(), strict=True):
        lines = log_of(runs / name)
        axis.plot([line["step"] for line in lines], [line["mean"] for line in lines], color="#c05621")
        axis.set(title=title, xlabel=f"steps of {CLIPS[name]:g} clips", ylabel="loss", yscale="log")
        axis.grid(alpha=0.3, which="both")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/embedded"))
    args = parser.parse_args()
    new = Numbers(json.loads((args.runs / "numbers.json").read_text()))
    old = Numbers(json.loads(FORMER.read_text()))
    history = update(args.runs)
    plot(args.runs, Path("docs/results/images/training.png"))
    Path("docs/results/embedded.md").write_text(results(new, old, history))
    minutes = sum(stage["minutes"] for stage in history["stages"].values())
    before, rest = Path("README.md").read_text().split("<!-- results -->")
    after = rest.split("<!-- end of results -->")[1]
    Path("README.md").write_text(f"{before}<!-- results -->\n{summary(new, minutes)}\n<!-- end of results -->{after}")
    (TINY / "README.md").write_text(card(new, history))


if __name__ == "__main__":
    main()
