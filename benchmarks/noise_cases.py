"""The clips of `choosing_noise.py`: what is given with which noise, what is measured, and how clips are summarised."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pusa import Clip, Image
from pusa.embedded import judge, world
from pusa.evaluation.clips.fidelity import compare
from pusa.evaluation.clips.seams import FLOORS, robust_z
from pusa.evaluation.intervals import Interval, bootstrap
from pusa.evaluation.synthetic.tasks import psnr_of
from pusa.generation.pipeline import Pipeline
from pusa.media.images import Frames

LAST = world.FRAMES - 1
LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0)
PAIRS = ((0.0, 0.0), (0.0, 0.2), (0.0, 0.4), (0.2, 0.2), (0.2, 0.5), (0.4, 0.4), (1.0, 1.0))
NINE = ((0.0,) * 3, (0.3,) * 3, (0.5,) * 3, (0.0, 0.3, 0.5), (0.5, 0.3, 0.0), (1.0,) * 3)
"""one multiplier for each latent frame of 9 given frames"""
THIRTEEN = ((0.0,) * 4, (0.3,) * 4, (0.0, 0.3, 0.5, 0.7), (0.7, 0.5, 0.3, 0.0), (1.0,) * 4)
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
