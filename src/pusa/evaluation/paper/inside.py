"""Inside the models (section 3.4 of the paper): who looks at the first frame, and which weights moved.

Image-to-video on held-out scenes; at each step and block, how much of the later frames' attention goes to frame 0.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pusa.evaluation.inspect import attention, weight_drift
from pusa.evaluation.intervals import Interval, crossed
from pusa.evaluation.paper.methods import METHODS, SEEDS, STRENGTH, scalable
from pusa.evaluation.paper.scoring import Job, Maker
from pusa.evaluation.paper.training import STEPS
from pusa.evaluation.pieces import Piece
from pusa.files import write_json

if TYPE_CHECKING:
    from pusa.evaluation.paper.experiments import Study

SCENES = 8
AT_STEPS = (0, 4, 9)
"""of 10, as the paper's figure 5"""
COMPARED = {"base": "the untouched base", "vta": "this method", "i2v": "image channels", "vta-full": "… all weights"}


def jobs(method: str) -> list[Job]:
    """One for each training, on single scenes; the base has one."""
    seeds = (0,) if method == "base" else SEEDS
    strength = STRENGTH if scalable(method) else 1.0
    trained = 0 if method == "base" else STEPS
    return [Job(method, seed, trained, strength=strength, scenes=range(SCENES)) for seed in seeds]


def pieces(study: Study) -> list[Piece]:
    """What is looked into, each model once."""
    return [
        Piece(f"inside {job.name}", file_of(study, job), partial(look, study, job), study.needs(job))
        for method in COMPARED
        for job in jobs(method)
    ]


def file_of(study: Study, job: Job) -> Path:
    """Where it is kept what was seen."""
    return study.folder / "inside" / f"{job.method}.{job.seed}.json"


def look(study: Study, job: Job) -> None:
    """Note the share of frame 0 [scenes, steps, blocks], the first scene's maps of the last block, and the drift."""
    maker = Maker(study.folder / "runs")
    shares, shown = [], {}
    with maker.network(job) as network:
        blocks = range(len(network.transformer.blocks))
        for scene in job.scenes:
            with attention.recording({network.transformer: 2}, blocks, AT_STEPS) as maps:
                maker.sample(network, job, [scene])
            shares.append([[attention.first_frame_share(maps[step, block]) for block in blocks] for step in AT_STEPS])
            if scene == job.scenes[0]:
                shown = {str(step): maps[step, len(blocks) - 1].tolist() for step in AT_STEPS}
    write_json(file_of(study, job), {"shares": shares, "last_block": shown, "drift": _drift(maker, job)})


def _drift(maker: Maker, job: Job) -> dict[str, float]:
    if job.method == "base":
        return {}
    merged = METHODS[job.method].adapter.merged(maker.base, maker.folder(job), job.strength)
    return weight_drift.of_models(maker.base, merged).of()[0]


def seen(study: Study, method: str) -> list[dict[str, Any]]:
    """What was seen in each training of a method."""
    return [json.loads(file_of(study, job).read_text(encoding="utf-8")) for job in jobs(method)]


def share(study: Study, method: str, step: int, blocks: Sequence[int] | None = None) -> Interval:
    """The share of frame 0 at a step of `AT_STEPS`, over blocks (all by default), trainings and scenes."""
    values = np.array([one["shares"] for one in seen(study, method)])[:, :, AT_STEPS.index(step)]
    chosen = values if blocks is None else values[..., list(blocks)]
    return crossed(chosen.mean(axis=-1)[..., None])


def more_than_base(study: Study, method: str, step: int) -> Interval:
    """How much more of it goes to frame 0 than in the base, on the same scenes, in the last block."""
    ours = np.array([one["shares"] for one in seen(study, method)])[:, :, AT_STEPS.index(step), -1]
    base = np.array([one["shares"] for one in seen(study, "base")])[:, :, AT_STEPS.index(step), -1]
    return crossed((ours - base)[..., None])


def moved(study: Study, method: str) -> dict[str, float]:
    """‖ΔW‖ / ‖W‖ by component, the mean over trainings."""
    each = [one["drift"] for one in seen(study, method)]
    return {component: float(np.mean([one[component] for one in each])) for component in each[0]}
