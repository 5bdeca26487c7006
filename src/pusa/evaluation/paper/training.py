"""Train one method for one seed, with the random draws, the batches and the learner of `pusa train`.

The objective here also trains models with image channels, as in Wan-I2V, which `pusa train` does not. If a run is
interrupted, rerun it: it resumes from its last checkpoint and ends with the same weights.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pusa.adapters.base import Attached
from pusa.core.objectives import flow_matching_loss
from pusa.embedded import world
from pusa.errors import InputError
from pusa.evaluation.paper.networks import Network, with_image_channels
from pusa.evaluation.paper.training_methods import BATCH, Method
from pusa.files import replacing, write_json
from pusa.models.loading import checkpoints, sources
from pusa.processes import ProcessGroup
from pusa.training import random_draws
from pusa.training.config.sections import TrainSettings
from pusa.training.data.batches import Batch, Batches
from pusa.training.learner import Learner
from pusa.training.objectives.base import BatchLosses, Player

CLIPS, PART = 2048, 128
"""training clips, and how many of them are in one file"""
FIRST_SEED = 2_000_000
"""the seed of the first training clip, a scene of the world; held-out scenes have other seeds"""
CAPTION_DROPOUT = 0.1


@dataclass(frozen=True)
class _Sample:
    latents: Tensor
    context: Tensor
    caption: str
    origin: str


class Clips:
    """The training clips: half have a moving shape, half a moving camera.

    values: latents, float32 [N, C, 5, h, w]. texts: the context of each caption, [captions, 512, D]; the first is that
    of the empty caption. which: the index of each clip's caption, [N].
    """

    def __init__(self, values: Tensor, texts: Tensor, captions: Sequence[str], which: Sequence[int]) -> None:
        self.values, self.texts, self.captions, self.which = values, texts, captions, which
        self.buckets = ["64x64x17"] * len(values)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int, /) -> _Sample:
        text = self.which[index]
        return _Sample(self.values[index], self.texts[text], self.captions[text], f"scene {FIRST_SEED + index}")

    @property
    def empty(self) -> Tensor:
        """The context of the empty caption, [L, D]."""
        return self.texts[0]


def parts(folder: Path) -> list[Path]:
    """The files with the latents of the training clips, `PART` clips each."""
    return [folder / f"{first:05d}.safetensors" for first in range(0, CLIPS, PART)]


def _scene(index: int) -> world.Scene:
    return world.sample(FIRST_SEED + index, kind="camera" if index % 2 else "shape")


def prepare(file: Path) -> None:
    """Encode the clips of one file of `parts`."""
    encoders = checkpoints.load_encoders(sources.TINY_BASE)
    first = int(file.stem)
    encoded = [encoders.encode(world.render(_scene(index)))[0] for index in range(first, first + PART)]
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as part:
        save_file({"latents": torch.stack(encoded)}, str(part))


def prepare_captions(file: Path) -> None:
    """Encode the captions of all clips, and the empty caption."""
    encoders = checkpoints.load_encoders(sources.TINY_BASE)
    named = [_scene(index).caption for index in range(CLIPS)]
    captions = list(dict.fromkeys(["", *named]))
    texts = encoders.encode_text(captions).tokens
    which = torch.tensor([captions.index(caption) for caption in named])
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as part:
        metadata = {"captions": json.dumps(captions)}
        save_file({"texts": texts.contiguous(), "which": which}, str(part), metadata=metadata)


def load(captions_file: Path) -> Clips:
    """The clips that `prepare` and `prepare_captions` wrote into one folder."""
    tensors = load_file(captions_file)
    with safe_open(captions_file, "pt") as opened:
        captions = json.loads(opened.metadata()["captions"])
    values = torch.cat([load_file(part)["latents"] for part in parts(captions_file.parent)])
    return Clips(values, tensors["texts"], captions, tensors["which"].tolist())


def settings(method: Method, seed: int, steps: int) -> TrainSettings:
    """The settings of recipes/embedded/adapter.yaml, with the method's learning rate."""
    return TrainSettings(
        steps=steps,
        batch=BATCH,
        lr=method.rate,
        warmup=10,
        schedule="constant" if method.constant else "cosine",
        betas=(0.9, 0.99),
        weight_decay=0.0,
        ema=0.985,
        caption_dropout=CAPTION_DROPOUT,
        workers=0,
        seed=seed,
    )


def network(method: Method, seed: int) -> tuple[Network, Attached]:
    """Return the untrained model of a method, and its adapter."""
    transformer = checkpoints.load(sources.TINY_BASE).transformer
    if method.image_channels:
        transformer = with_image_channels(transformer)
    return Network(transformer), method.adapter.attach(transformer, seed)


class MethodObjective:
    """The flow-matching loss of a method; everything random is a function of the seed, the lane and the step.

    model, trained: as `network` returns them. empty: the text of the empty caption, [L, D].
    """

    def __init__(self, method: Method, model: Network, trained: Attached, empty: Tensor, chosen: TrainSettings) -> None:
        self.method, self.model, self.empty, self.seed = method, model, empty, chosen.seed
        self.players = {"model": Player(model, trained.parameters, chosen)}

    def losses(self, batch: Batch, step: int) -> BatchLosses:
        """Compute the loss of a micro-batch."""
        size, _, frames, _, _ = batch.latents.shape
        noise = random_draws.noise_of(step, batch.lane, batch.latents.shape, self.seed)
        sigma, _ = random_draws.sigmas_of(step, batch.lane, size, frames, self.method.sigma, self.seed)
        dropped = random_draws.dropped(step, batch.lane, size, CAPTION_DROPOUT, self.seed)
        text = torch.where(dropped[:, None, None], self.empty, batch.context)
        context = text, batch.latents[:, :, :1]
        return BatchLosses({"model": flow_matching_loss(self.model, batch.latents, noise, sigma, context)})

    def record(self, figures: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return nothing: the log has the loss only."""
        return {}

    def state(self) -> dict[str, Any]:
        """Return nothing: the loss has no memory."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Do nothing; see `state`."""


def train(
    method: Method,
    seed: int,
    clips: Clips,
    folder: Path,
    *,
    checkpoints_at: Sequence[int],
) -> None:
    """Train until the last of `checkpoints_at` (steps). Write the averaged weights of each into folder/step_NNNNNN/."""
    steps = max(checkpoints_at)
    chosen = settings(method, seed, steps)
    model, trained = network(method, seed)
    learner = Learner(chosen, MethodObjective(method, model, trained, clips.empty, chosen), ProcessGroup())
    first, seconds = _resume(folder / "state.pt", learner)
    folder.mkdir(parents=True, exist_ok=True)
    started, log = time.monotonic() - seconds, (folder / "log.jsonl").open("a", encoding="utf-8")
    for batch in Batches(clips, chosen, first=first):
        record = learner.step(batch.step, [batch])
        step = record["step"]
        if step % 10 == 0 or step == steps:
            print(json.dumps({"step": step, "loss": record["loss"]}), file=log, flush=True)
        if step in checkpoints_at:
            target = folder / f"step_{step:06d}"
            target.mkdir(parents=True, exist_ok=True)
            trained.save(target, learner.best(), {"method": folder.name})
            state = {"step": step, "seconds": time.monotonic() - started, "learner": learner.state()}
            with replacing(folder / "state.pt") as part:
                torch.save(state, part)
    write_json(folder / "done.json", {"steps": steps, "seconds": round(time.monotonic() - started, 1)})


def _resume(file: Path, learner: Learner) -> tuple[int, float]:
    """Restore the last checkpoint; return the number of steps that are done, and the seconds that they took."""
    if not file.exists():
        return 0, 0.0
    state = torch.load(file, weights_only=True)
    if "learner" not in state:
        raise InputError(f"{file} was written by an earlier version: remove {file.parent} to train this method again.")
    learner.restore(state["learner"])
    return int(state["step"]), float(state["seconds"])
