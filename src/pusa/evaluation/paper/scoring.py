"""Make clips of held-out scenes with a trained method, sixteen at a time, and score them.

What a task is and how a clip of it is scored is `evaluation.world`'s. The noise of a scene is the pipeline's own for
that seed, so `pusa generate` with the same weights makes the same clips up to rounding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from pusa.core import sampler
from pusa.core.sampler import add_noise
from pusa.embedded import world
from pusa.evaluation.paper.methods import METHODS
from pusa.evaluation.paper.networks import Network
from pusa.evaluation.synthetic.tasks import TASKS, Entry, score
from pusa.files import write_json
from pusa.generation.conditions import Target, resolve
from pusa.generation.pipeline import Pipeline, load
from pusa.models.loading import checkpoints

TOGETHER = 16
INFERENCE_STEPS = 10


@dataclass(frozen=True)
class Job:
    """Clips of one task on the scenes of `seeds`, made by one trained model in one way.

    method, seed, trained: a method's run and the step of its checkpoint; "base" is the untouched model. strength: of a
    LoRA. steps: of sampling. noise: the multiplier of every condition.
    """

    method: str
    seed: int
    trained: int
    task: str = "image-to-video"
    strength: float = 1.0
    steps: int = INFERENCE_STEPS
    noise: float = 0.0
    scenes: range = range(32)

    @property
    def name(self) -> str:
        """Its file's name, which says everything that decides its result."""
        return (
            f"{self.method}.{self.seed}.{self.trained:06d}.{self.task}.s{self.strength:g}.n{self.steps}."
            f"m{self.noise:g}.{self.scenes.start}-{self.scenes.stop}"
        )


class Maker:
    """The loaded base, on which the trained models take turns."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self.pipe: Pipeline = load(checkpoints.TINY_BASE)
        self.base = self.pipe.transformer
        self._known = lru_cache(maxsize=None)(self._encoded)

    def run(self, job: Job, file: Path) -> None:
        """Make and score the clips of a job, and write its rows."""
        frames = self.make(job)
        entries = [Entry(job.task, seed) for seed in job.scenes]
        rows = [score(entry, clip) for entry, clip in zip(entries, frames, strict=True)]
        write_json(file, {"job": dataclasses.asdict(job) | {"scenes": list(job.scenes)}, "rows": rows})

    @torch.no_grad()
    def make(self, job: Job) -> list[world.Frames]:
        """The clips of a job, uint8 [17, 64, 64, 3] each."""
        clips: list[world.Frames] = []
        with self.network(job) as network:
            for first in range(job.scenes.start, job.scenes.stop, TOGETHER):
                seeds = range(first, min(first + TOGETHER, job.scenes.stop))
                clips += [self.pipe.decode(z[None]) for z in self.sample(network, job, seeds)]
        return clips

    def folder(self, job: Job) -> Path:
        """Where the weights of a job are."""
        return self.runs / f"{job.method}.{job.seed}" / f"step_{job.trained:06d}"

    @contextmanager
    def network(self, job: Job) -> Iterator[Network]:
        """Yield the trained model of a job. It may be the base with a LoRA, which is removed after the block."""
        if job.method == "base":
            yield Network(self.base)
            return
        with METHODS[job.method].adapter.applied(self.base, self.folder(job), job.strength) as trained:
            yield Network(trained)

    @torch.no_grad()
    def sample(self, network: Network, job: Job, seeds: Sequence[int]) -> Tensor:
        """Latents of a clip for each scene, [B, C, 5, 8, 8]."""
        settings = self.pipe.limits.settings(steps=job.steps)
        each = [self._known(job.task, seed) for seed in seeds]
        slots = sorted(each[0])
        first = torch.cat([known.get(0, torch.zeros(1)) for known in each]) if slots else torch.zeros(len(seeds))
        if network.takes_image_channels:
            slots = []
        template = {slot: (torch.zeros(0), job.noise) for slot in slots}
        matrix = self.pipe.matrix(settings, template)
        noise = torch.cat([self.pipe.noise(seed, settings) for seed in seeds])
        clean = torch.zeros_like(noise)
        for i, known in enumerate(each):
            for slot in slots:
                clean[i, :, slot] = known[slot][0, :, 0]
        x = add_noise(clean, noise, matrix.state[0].float().expand(len(seeds), -1))
        captions = [Entry(job.task, seed).scene.caption for seed in seeds]
        text, empty = self.pipe.encode_text(captions), self.pipe.encode_text([""]).expand(len(seeds), -1, -1)
        velocity = sampler.guided(network, settings.guidance)
        return sampler.sample(velocity, x, matrix, ((text, first), (empty, first)))

    def _encoded(self, task: str, seed: int) -> dict[int, Tensor]:
        """The latents that a scene's task gives, by slot."""
        target = Target(world.FRAMES, (world.SIZE, world.SIZE), float(world.FPS), "crop", self.pipe.vae)
        conditions = TASKS[task].conditions(Entry(task, seed).truth())
        return {slot: latent for slot, (latent, _) in resolve(conditions, target)[0].items()}
