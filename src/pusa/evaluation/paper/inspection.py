"""Inspect the models of the study: attention to the first frame, and weight drift (section 3.4 of the paper).

For image-to-video on held-out scenes, at each sampling step and block: the share of the later frames' attention that
goes to latent frame 0.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pusa.evaluation.inspect import attention, weight_drift
from pusa.evaluation.intervals import Interval, bootstrap_crossed
from pusa.evaluation.paper.experiments import Experiment, scalable
from pusa.evaluation.paper.scoring import ClipMaker
from pusa.evaluation.paper.study_folder import StudyFolder
from pusa.evaluation.paper.training_methods import METHODS, SEEDS, STEPS, STRENGTH
from pusa.files import write_json

SCENES = 8
AT_STEPS = (0, 4, 9)
"""of 10 sampling steps, as in figure 5 of the paper"""
TITLES = {
    "base": "the untrained base",
    "vta": "this method",
    "i2v": "image channels",
    "vta-full": "this method, all weights",
}
"""the methods whose models are inspected"""


def experiments_of(method: str) -> list[Experiment]:
    """One for each training of a method, and one for the base model."""
    seeds = (0,) if method == "base" else SEEDS
    strength = STRENGTH if scalable(method) else 1.0
    steps = 0 if method == "base" else STEPS
    return [Experiment(method, seed, steps, strength=strength, scenes=range(SCENES)) for seed in seeds]


def experiments() -> list[Experiment]:
    """Those of every method that is inspected."""
    return [experiment for method in TITLES for experiment in experiments_of(method)]


def inspect(folder: StudyFolder, experiment: Experiment) -> None:
    """Write the inspection of an experiment's model.

    "shares" [scenes, steps, blocks]: the share of latent frame 0, 0 to 1. "last_block": the attention map of the last
    block [F, F] for the first scene, by step. "drift": ‖ΔW‖ / ‖W‖ by component.
    """
    maker = ClipMaker(folder.runs)
    shares, last_block = [], {}
    with maker.network(experiment) as network:
        blocks = range(len(network.transformer.blocks))
        for scene in experiment.scenes:
            with attention.recording({network.transformer: 2}, blocks, AT_STEPS) as maps:
                maker.sample(network, experiment, [scene])
            shares.append([[attention.first_frame_share(maps[step, block]) for block in blocks] for step in AT_STEPS])
            if scene == experiment.scenes[0]:
                last_block = {str(step): maps[step, len(blocks) - 1].tolist() for step in AT_STEPS}
    drift = _drift(maker, experiment)
    write_json(folder.inspection(experiment), {"shares": shares, "last_block": last_block, "drift": drift})


def _drift(maker: ClipMaker, experiment: Experiment) -> dict[str, float]:
    if experiment.method == "base":
        return {}
    adapter = METHODS[experiment.method].adapter
    merged = adapter.merged(maker.base, maker.weights(experiment), experiment.strength)
    return weight_drift.of_models(maker.base, merged).of()[0]


def read(folder: StudyFolder, method: str) -> list[dict[str, Any]]:
    """What `inspect` wrote, for each training of a method."""
    return [json.loads(folder.inspection(one).read_text(encoding="utf-8")) for one in experiments_of(method)]


def share(folder: StudyFolder, method: str, step: int, blocks: Sequence[int] | None = None) -> Interval:
    """The share of frame 0 at a step of `AT_STEPS`, the mean over blocks (by default all), trainings and scenes."""
    values = _shares(folder, method, step)
    chosen = values if blocks is None else values[..., list(blocks)]
    return bootstrap_crossed(chosen.mean(axis=-1)[..., None])


def more_than_base(folder: StudyFolder, method: str, step: int) -> Interval:
    """The share of frame 0 in the last block, minus that of the base model on the same scenes."""
    ours, base = _shares(folder, method, step)[..., -1], _shares(folder, "base", step)[..., -1]
    return bootstrap_crossed((ours - base)[..., None])


def _shares(folder: StudyFolder, method: str, step: int) -> NDArray[np.float64]:
    """[trainings, scenes, blocks]"""
    values: NDArray[np.float64] = np.array([one["shares"] for one in read(folder, method)])
    return values[:, :, AT_STEPS.index(step)]


def drift(folder: StudyFolder, method: str) -> dict[str, float]:
    """‖ΔW‖ / ‖W‖ by component, the mean over trainings."""
    each = [one["drift"] for one in read(folder, method)]
    return {component: float(np.mean([one[component] for one in each])) for component in each[0]}
