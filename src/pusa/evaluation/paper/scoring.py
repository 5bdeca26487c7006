"""Make clips of held-out scenes with a trained model, sixteen at a time, and score them.

The tasks and their scores are those of `evaluation.synthetic`. The noise of a scene is the pipeline's noise for its
seed, so `pusa generate` with the same weights makes the same clips, up to rounding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from pusa.core import sampler
from pusa.core.sampler import add_noise
from pusa.embedded import world
from pusa.evaluation.paper.experiments import Experiment
from pusa.evaluation.paper.networks import Network
from pusa.evaluation.paper.training_methods import METHODS
from pusa.evaluation.synthetic.tasks import TASKS, SceneTask, score
from pusa.files import write_json
from pusa.generation.conditions import Target, resolve
from pusa.generation.pipeline import Pipeline, load
from pusa.media.images import Frames
from pusa.models.loading import sources

BATCH = 16
"""clips that are sampled at once"""


class ClipMaker:
    """Makes the clips of experiments: the base model, on which the LoRAs take turns, or a model with trained weights.

    runs: the folder of the trainings.
    """

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self.pipe: Pipeline = load(sources.TINY_BASE)
        self.base = self.pipe.transformer
        self._known_latents = lru_cache(maxsize=None)(self._encode_conditions)

    def score(self, experiment: Experiment, file: Path) -> None:
        """Make the clips of an experiment, score them, and write one row for each scene."""
        frames = self.make(experiment)
        entries = [SceneTask(experiment.task, seed) for seed in experiment.scenes]
        rows = [score(entry, clip) for entry, clip in zip(entries, frames, strict=True)]
        about = dataclasses.asdict(experiment) | {"scenes": list(experiment.scenes)}
        write_json(file, {"experiment": about, "rows": rows})

    @torch.no_grad()
    def make(self, experiment: Experiment) -> list[Frames]:
        """The clips of an experiment, uint8 [17, 64, 64, 3] each."""
        clips: list[Frames] = []
        scenes = experiment.scenes
        with self.network(experiment) as network:
            for first in range(scenes.start, scenes.stop, BATCH):
                seeds = range(first, min(first + BATCH, scenes.stop))
                clips += [self.pipe.decode(z[None]) for z in self.sample(network, experiment, seeds)]
        return clips

    def weights(self, experiment: Experiment) -> Path:
        """The folder of the weights that an experiment uses."""
        return self.runs / f"{experiment.method}.{experiment.seed}" / f"step_{experiment.training_steps:06d}"

    @contextmanager
    def network(self, experiment: Experiment) -> Iterator[Network]:
        """The model of an experiment. It may be the base model with an adapter, which is removed after the block."""
        if experiment.method == "base":
            yield Network(self.base)
            return
        adapter = METHODS[experiment.method].adapter
        with adapter.applied(self.base, self.weights(experiment), experiment.strength) as trained:
            yield Network(trained)

    @torch.no_grad()
    def sample(self, network: Network, experiment: Experiment, seeds: Sequence[int]) -> Tensor:
        """The latents of one clip for each scene, [B, C, 5, h, w]."""
        task = experiment.task
        settings = self.pipe.limits.settings(steps=experiment.sampling_steps)
        each = [self._known_latents(task, seed) for seed in seeds]
        slots = sorted(each[0])
        first = torch.cat([known.get(0, torch.zeros(1)) for known in each]) if slots else torch.zeros(len(seeds))
        if network.takes_image_channels:
            slots = []
        template = {slot: (torch.zeros(0), experiment.noise) for slot in slots}
        matrix = self.pipe.matrix(settings, template)
        noise = torch.cat([self.pipe.noise(seed, settings) for seed in seeds])
        clean = torch.zeros_like(noise)
        for i, known in enumerate(each):
            for slot in slots:
                clean[i, :, slot] = known[slot][0, :, 0]
        x = add_noise(clean, noise, matrix.sigma[0].float().expand(len(seeds), -1))
        captions = [SceneTask(task, seed).scene.caption for seed in seeds]
        text, empty = self.pipe.encode_text(captions).tokens, self.pipe.encode_text([""]).expand(len(seeds)).tokens
        velocity = sampler.guided(network, settings.guidance)
        return sampler.sample(velocity, x, matrix, ((text, first), (empty, first)))

    def _encode_conditions(self, task: str, seed: int) -> dict[int, Tensor]:
        """The latents of the frames that the task gives of a scene, [1, C, 1, h, w] each, by latent frame."""
        target = Target(world.FRAMES, (world.SIZE, world.SIZE), float(world.FPS), "crop", self.pipe.backbone)
        conditions = TASKS[task].conditions(SceneTask(task, seed).truth())
        return {slot: latent for slot, (latent, _) in resolve(conditions, target)[0].items()}
