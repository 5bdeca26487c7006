"""The last step of a video that takes long, kept in a file, so that another worker goes on behind it.

The continuation has the same bits: a step depends on the latents and the last prediction alone. A step of another model
or of other LoRAs is not used.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open

from pusa.core.sampler import Step
from pusa.files import replacing

NAME = "kept.safetensors"
"""of the file in the folder of a video"""
_TENSORS = ("sigma", "latents", "denoised", "sigma_before")


def made_by(recipe: dict[str, Any]) -> str:
    """What must be equal for a continuation, as a hash. recipe: what `Pipeline.recipe` returns."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def keep(path: Path, step: Step, maker: str) -> None:
    """Write a step. maker: what `made_by` returned."""
    tensors = {name: getattr(step, name).detach().cpu().contiguous() for name in _TENSORS}
    about = {"index": str(step.index), "steps": str(step.steps), "maker": maker}
    with replacing(path) as part:
        part.write_bytes(safetensors.torch.save(tensors, about))


def kept(path: Path, maker: str) -> Step | None:
    """The step in a file; None if there is none, if it is damaged, or if something else made it."""
    try:
        with safe_open(str(path), "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
        index, steps = int(about["index"]), int(about["steps"])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    return Step(index, steps, **tensors) if about.get("maker") == maker else None
