"""Train one method for one seed: the random draws, batches and optimiser of `pusa train`, in one loop for all methods.

This loop also trains models with image channels, as in Wan-I2V, which `pusa train` does not. If a run is interrupted,
it resumes from its last checkpoint and ends with the same weights.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pusa.core.objectives import flow_matching_loss
from pusa.embedded import world
from pusa.evaluation.paper.networks import Network, with_image_channels
from pusa.evaluation.paper.training_methods import BATCH, Method
from pusa.files import replacing, write_json
from pusa.models.loading import checkpoints, sources
from pusa.training import adaptation, optimisers, random_draws
from pusa.training.config.sections import LoraSettings, TrainSettings
from pusa.training.data.batches import Batch, Batches
from pusa.training.weight_averages import Averages

CLIPS, PART = 2048, 128
"""training clips, and how many of them are in one file"""
FIRST_SEED = 2_000_000
"""The training clips are those of the embedded adapter. Held-out scenes have other seeds."""
CAPTION_DROPOUT = 0.1


@dataclass(frozen=True)
class _Sample:
    latents: Tensor
    context: Tensor
    caption: str
    origin: str


class Clips:
    """The training clips: half have a moving shape, half a moving camera.

    values: latents, float32 [N, C, 5, 8, 8]. texts: the context of each caption, [captions, 512, D]; the first is that
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


def network(method: Method, seed: int) -> tuple[Network, adaptation.Adaptation]:
    """The network that a method trains, with the weights of the base model, and what of it is trained."""
    transformer = checkpoints.load(sources.TINY_BASE).transformer
    if method.image_channels:
        transformer = with_image_channels(transformer)
    chosen = None if method.rank is None else LoraSettings(rank=method.rank)
    adapted = adaptation.adapt(transformer, chosen, seed)
    return Network(transformer), adapted


def loss_of(method: Method, model: Network, batch: Batch, empty: Tensor, seed: int) -> Tensor:
    """The flow-matching loss of a micro-batch, a scalar. Its random draws are functions of (seed, lane, step).

    empty: the context of the empty caption, [L, D].
    """
    size, _, frames, _, _ = batch.latents.shape
    noise = random_draws.noise_of(batch.step, batch.lane, batch.latents.shape, seed)
    sigma, _ = random_draws.sigmas_of(batch.step, batch.lane, size, frames, method.sigma, seed)
    silent = random_draws.dropped(batch.step, batch.lane, size, CAPTION_DROPOUT, seed)
    text = torch.where(silent[:, None, None], empty, batch.context)
    return flow_matching_loss(model, batch.latents, noise, sigma, (text, batch.latents[:, :, :1]))


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
    model, adapted = network(method, seed)
    parameters = adapted.parameters
    optimiser, averages = optimisers.build(parameters, chosen), Averages(parameters, chosen.ema)
    first, seconds = _resume(folder / "state.pt", parameters, optimiser, averages)
    folder.mkdir(parents=True, exist_ok=True)
    started, log = time.monotonic() - seconds, (folder / "log.jsonl").open("a", encoding="utf-8")
    for batch in Batches(clips, chosen, first=first):
        step = batch.step + 1
        for group in optimiser.param_groups:
            group["lr"] = optimisers.learning_rate(batch.step, steps, chosen.lr, chosen.warmup, chosen.schedule)
        optimiser.zero_grad(set_to_none=True)
        loss = loss_of(method, model, batch, clips.empty, seed)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
        optimiser.step()
        averages.update(parameters, step)
        if step % 10 == 0 or step == steps:
            print(json.dumps({"step": step, "loss": loss.item()}), file=log, flush=True)
        if step in checkpoints_at:
            adapted.write(_new_folder(folder / f"step_{step:06d}"), averages.best(parameters), {"method": folder.name})
            _save_state(folder / "state.pt", step, time.monotonic() - started, parameters, optimiser, averages)
    write_json(folder / "done.json", {"steps": steps, "seconds": round(time.monotonic() - started, 1)})


def _new_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _save_state(
    file: Path,
    step: int,
    seconds: float,
    parameters: dict[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    averages: Averages,
) -> None:
    state: dict[str, Any] = {
        "step": step,
        "seconds": seconds,
        "weights": {name: p.detach() for name, p in parameters.items()},
        "average": averages.values,
        "optimiser": optimiser.state_dict(),
    }
    with replacing(file) as part:
        torch.save(state, part)


def _resume(
    file: Path, parameters: dict[str, nn.Parameter], optimiser: torch.optim.Optimizer, averages: Averages
) -> tuple[int, float]:
    """Restore the state of an interrupted run; returns the steps that are done and the seconds that they took."""
    if not file.exists():
        return 0, 0.0
    state = torch.load(file, weights_only=True)
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(state["weights"][name])
    optimiser.load_state_dict(state["optimiser"])
    averages.values = state["average"]
    return int(state["step"]), float(state["seconds"])
