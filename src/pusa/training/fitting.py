"""How much memory a training needs, and how many blocks of the base must leave the device for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pusa.errors import InputError
from pusa.models.backbone import Geometry
from pusa.models.loading import sources
from pusa.models.memory.step_estimate import StepNeeds, StepRehearsal
from pusa.training.config.tree import Config
from pusa.training.data.samples import Bucket
from pusa.training.optimisers import state_bytes
from pusa.training.planning import ModelPlan


def predicted(config: Config, model: ModelPlan, buckets: Sequence[Bucket]) -> tuple[StepNeeds, int]:
    """Return what a training of a LoRA needs, and the number of blocks of the base. InputError: see `needs_of`."""
    transformer = sources.config(model.name, model.folder, model.kinds[0])
    needs = needs_of(config, transformer, model.sizes.geometry, buckets)
    return needs, int(transformer.get("num_layers", 40))


def needs_of(
    config: Config, transformer: Mapping[str, Any], geometry: Geometry, buckets: Sequence[Bucket]
) -> StepNeeds:
    """Return what a training of a LoRA needs for its largest bucket.

    transformer: its configuration. If memory.swap is not given, as few blocks as possible are in the machine's memory.
    Raises InputError if the training does not fit in memory.limit.
    """
    rehearsal, lora = rehearsed(config, transformer, geometry, buckets), config.lora
    state = state_bytes(config.train)
    assert lora is not None
    if config.memory.swap is not None or config.memory.limit is None:
        return rehearsal.needs(min(config.memory.swap or 0, len(rehearsal.blocks)), state)
    fitting = rehearsal.fitting(config.memory.limit * 1e9, state)
    if fitting is None:
        least, largest = rehearsal.needs(len(rehearsal.blocks), state), _largest(buckets)
        raise InputError(
            f"The training needs at least {least.device / 1e9:.1f} GB of the device, of which "
            f"{least.activations / 1e9:.1f} GB are for one block with {config.train.batch} clip"
            f"{'s' if config.train.batch > 1 else ''} of {largest}, and memory.limit is {config.memory.limit:g} GB: "
            "give smaller or shorter data.buckets, a smaller train.batch or lora.rank, or a smaller model."
        )
    return fitting


def rehearsed(
    config: Config, transformer: Mapping[str, Any], geometry: Geometry, buckets: Sequence[Bucket]
) -> StepRehearsal:
    """Return a rehearsed step of the largest bucket, in the precision of the settings."""
    lora, largest = config.lora, _largest(buckets)
    assert lora is not None
    channels, size = int(transformer.get("in_channels", 16)), (largest.width, largest.height)
    _, *latents = geometry.latent_shape(channels, largest.frames, size)
    return StepRehearsal.of(
        transformer,
        (config.train.batch, *latents),  # type: ignore[arg-type]
        rank=lora.rank,
        targets=lora.targets,
        storage=config.memory.base,
        checkpointing=config.train.gradient_checkpointing,
        offload=config.memory.offload,
        dtype=torch.bfloat16 if config.train.precision == "bf16" else torch.float32,
    )


def _largest(buckets: Sequence[Bucket]) -> Bucket:
    return max(buckets, key=lambda bucket: bucket.width * bucket.height * bucket.frames)


def sentence(needs: StepNeeds, blocks: int) -> str:
    """Return the prediction as a line for the terminal. blocks: those of the base."""
    parts = (("base", needs.weights), ("LoRA with gradients", needs.adapter + needs.gradients),
             ("optimiser", needs.optimiser), ("step", needs.activations))  # fmt: skip
    where = f"; {needs.swapped} of {blocks} blocks are in the machine's memory" if needs.swapped else ""
    return (
        f"Predicted memory: {needs.device / 1e9:.1f} GB of the device ("
        + ", ".join(f"{name} {size / 1e9:.1f}" for name, size in parts)
        + f"), {needs.host / 1e9:.1f} GB of the machine{where}"
    )
