"""Load the model of a training: whole, or part by part so that little is on the device at a time.

With settings `memory`, the encoders come first and fill the cache. The text encoder computes layer by layer from the
machine's memory, and leaves it before the transformer is loaded, unless previews need it. The transformer is loaded
into the machine's memory; `trainer.prepared` stores it and moves it to the device.
"""

from __future__ import annotations

from typing import cast

import torch
from diffusers.hooks import apply_group_offloading

from pusa import processes
from pusa.models.backbone import Backbone, Encoders
from pusa.models.loading import checkpoints
from pusa.training.config.tree import Config


def is_partial(config: Config) -> bool:
    """Return whether the parts of the model are loaded one after another."""
    memory = config.memory
    return memory.base is not None or bool(memory.swap) or memory.limit is not None


def encoders(config: Config) -> Encoders:
    """Load what fills the cache: the encoders, or the whole model onto the device."""
    device, dtype = _device_and_dtype()
    if not is_partial(config):
        return checkpoints.load(config.model.source, expert=config.model.expert, device=device)
    parts = checkpoints.load_encoders(config.model.source, device="cpu", dtype=dtype)
    parts.vae.to(device)
    if device.type != "cpu":
        apply_group_offloading(parts.text_encoder, device, offload_type="leaf_level")
    return parts


def model(config: Config, parts: Encoders) -> Backbone:
    """Return the model, after `parts` have filled the cache: load what is missing, and release what is not needed."""
    if not is_partial(config):
        whole = cast(Backbone, parts)
        if whole.vae.device.type == "cuda" and not config.preview.every:
            whole.vae.to("cpu")
            whole.text_encoder.to("cpu")
        return whole
    if config.preview.every:
        parts.vae.enable_tiling()
    else:
        parts.vae.to("cpu")
        parts.text_encoder = None
    _, dtype = _device_and_dtype()
    return checkpoints.load(config.model.source, expert=config.model.expert, device="cpu", dtype=dtype, encoders=parts)


def _device_and_dtype() -> tuple[torch.device, torch.dtype | None]:
    device = processes.local_device()
    return device, None if device.type == "cpu" else torch.bfloat16
