"""One text-to-video model, one timestep per frame: text-to-video, image-to-video, keyframes, extension, transitions.

    pipe = pusa.load("tiny")
    clip = pipe.generate("a red circle moves right", conditions=[pusa.Image("start.png")])
    clip.save("circle.mp4")

All of them are the same call with a different `TimestepMatrix`: the noise level of every frame at every step.
Names load on first use, so that `import pusa` (and `pusa --help`) does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pusa.core.sampler import Step as Step
    from pusa.core.timesteps import TimestepMatrix as TimestepMatrix
    from pusa.errors import Cancelled as Cancelled
    from pusa.errors import InputError as InputError
    from pusa.errors import PusaError as PusaError
    from pusa.generation.clip import GeneratedClip as GeneratedClip
    from pusa.generation.given import Clip as Clip
    from pusa.generation.given import Image as Image
    from pusa.generation.pipeline import Pipeline as Pipeline
    from pusa.generation.pipeline import extend as extend
    from pusa.generation.pipeline import load as load
    from pusa.generation.pipeline import transition as transition
    from pusa.models.lora.header import LoraFile as LoraFile

__version__ = "0.2.0"

_HOMES = {
    "Cancelled": "pusa.errors",
    "Clip": "pusa.generation.given",
    "GeneratedClip": "pusa.generation.clip",
    "Image": "pusa.generation.given",
    "InputError": "pusa.errors",
    "LoraFile": "pusa.models.lora.header",
    "Pipeline": "pusa.generation.pipeline",
    "PusaError": "pusa.errors",
    "Step": "pusa.core.sampler",
    "TimestepMatrix": "pusa.core.timesteps",
    "extend": "pusa.generation.pipeline",
    "load": "pusa.generation.pipeline",
    "transition": "pusa.generation.pipeline",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'pusa' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
