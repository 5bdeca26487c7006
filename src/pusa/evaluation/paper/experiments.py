"""The experiments of each table: the model, its sampling, the task, the scenes. Tables share experiments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pusa.errors import InputError
from pusa.evaluation.paper.training_methods import METHODS, MIXTURES, SEEDS, STEPS, STRENGTH, STRENGTHS

CHECKPOINTS = (50, 100, 200, 400)
"""training steps after which weights are kept"""
LONG_CHECKPOINTS = (400, 800, 1600)
"""the same for the method that is trained longer"""
NOISES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
ZERO_SHOT = ("start-end", "extension", "completion", "transition")
"""tasks that no method is trained for"""
PTSS = ("ptss-0.2", "ptss-0.5", "ptss-0.8")
RANKS = ("rank-4", "rank-16", "vta", "rank-64")
MIXED = ("vta", *(f"mixed-{share:g}" for share in MIXTURES), "tasks")
MIXED_TASKS = ("image-to-video", "start-end", "extension", "text-to-video", "completion", "transition")
"""of these, training with rows of tasks has all but the last two"""
SAMPLING_STEPS = 10
TABLES: dict[str, str] = {
    "a": "training methods, at equal steps",
    "b": "training steps × LoRA strength",
    "c": "sampling steps",
    "d": "LoRA rank",
    "e": "text-to-video before and after training",
    "f": "tasks that no method is trained for",
    "g": "noise on the given frame",
    "h": "noise levels in training: uniform, or those of the official code",
    "i": "training with image channels until it reaches the adapter",
    "j": "attention to the first frame, and weight drift",
    "k": "independent levels, rows of tasks, and mixtures of both",
}


@dataclass(frozen=True)
class Experiment:
    """Clips of one task on some scenes, made by one trained model with one setting of the sampler.

    method, seed, training_steps: the training and its checkpoint; the method "base" is the base model, untrained.
    strength: of the LoRA; 1 for a method that trains all weights. noise: the noise multiplier of every condition.
    scenes: seeds of held-out scenes.
    """

    method: str
    seed: int
    training_steps: int
    task: str = "image-to-video"
    strength: float = 1.0
    sampling_steps: int = SAMPLING_STEPS
    noise: float = 0.0
    scenes: range = range(32)

    @property
    def name(self) -> str:
        """The name of its files; it contains everything that decides the result."""
        model = f"{self.method}.{self.seed}.{self.training_steps:06d}"
        sampling = f"s{self.strength:g}.n{self.sampling_steps}.m{self.noise:g}"
        return f"{model}.{self.task}.{sampling}.{self.scenes.start}-{self.scenes.stop}"


def scalable(method: str) -> bool:
    """Whether the strength of what a method trained can be chosen. The method "base" trains nothing."""
    return method in METHODS and METHODS[method].adapter.scalable


def checkpoint_steps(method: str) -> Sequence[int]:
    """The training steps after which a method's weights are kept."""
    return LONG_CHECKPOINTS if METHODS[method].constant else CHECKPOINTS


def over_seeds(
    method: str, strength: float = 1.0, training_steps: int = STEPS, **changes: Any
) -> tuple[Experiment, ...]:
    """The experiments of all trainings of a method, on the same scenes. changes: other fields of `Experiment`."""
    strength = strength if scalable(method) else 1.0
    return tuple(Experiment(method, seed, training_steps, strength=strength, **changes) for seed in SEEDS)


def experiments_of(table: str) -> list[Experiment]:
    """The experiments that a table is computed from. Raises InputError if there is no such table."""
    ours = over_seeds("vta", STRENGTH)
    base = Experiment("base", 0, 0)

    def at_strengths(
        method: str, strengths: Iterable[float] = STRENGTHS[:3], training_steps: int = STEPS
    ) -> list[Experiment]:
        every = tuple(strengths) if scalable(method) else (1.0,)
        return [Experiment(method, seed, training_steps, strength=s) for seed in SEEDS for s in every]

    if table == "a":
        methods = ("vta", "vta-full", "first-clean", *PTSS, "i2v")
        return [base, *(one for method in methods for one in at_strengths(method))]
    if table == "b":
        return [base, *(one for steps in CHECKPOINTS for one in at_strengths("vta", STRENGTHS, steps))]
    if table == "c":
        return [replace(one, sampling_steps=n) for one in ours for n in (2, 5, 10, 20)]
    if table == "d":
        return [one for method in RANKS for one in at_strengths(method)]
    if table == "e":
        weak = [replace(one, strength=1.0) for one in ours]
        return [replace(one, task="text-to-video") for one in (base, *weak, *ours)]
    if table == "f":
        clean = [replace(one, method="first-clean") for one in ours]
        return [replace(one, task=task) for task in ZERO_SHOT for one in (base, *ours, *clean)]
    if table == "g":
        return [replace(one, noise=m) for one in ours for m in NOISES]
    if table == "h":
        return [one for method in ("vta", "vta-shifted") for one in at_strengths(method)]
    if table == "i":
        return [*ours, *(one for n in LONG_CHECKPOINTS for one in at_strengths("i2v-long", training_steps=n))]
    if table == "k":
        every = [replace(one, method=method) for method in MIXED for one in ours]
        return [replace(one, task=task) for task in MIXED_TASKS for one in every]
    if table == "j":
        return []
    raise InputError(f"There is no table {table!r}: choose among {', '.join(TABLES)}.")
