"""What a model is asked for when the user says nothing: per family, and as a checkpoint's own `pusa.json` wishes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pusa.errors import InputError
from pusa.models.wan.latents import latent_frames

_KINDS: dict[str, tuple[type, ...]] = {
    "fps": (int, float),
    "frames": (int,),
    "size": (list,),
    "steps": (int,),
    "guidance": (int, float),
    "shift": (int, float),
    "boundary": (int, float),
    "per_frame": (list,),
}


@dataclass(frozen=True)
class Defaults:
    """fps, pixel frames (4n+1), (width, height) and sampling.

    boundary: the noise level in [0, 1] from which on the first of two experts is asked; None where there is one model.
    per_frame: of `transformer` and `transformer_2`, those that take a timestep per frame by their own weights, as a
    merged adapter has them.
    """

    fps: float = 16
    frames: int = 81
    size: tuple[int, int] = (832, 480)
    steps: int = 10
    guidance: float = 3.0
    shift: float = 5.0
    boundary: float | None = None
    per_frame: tuple[str, ...] = ()


WAN21 = Defaults()
WAN22_A14B = Defaults(boundary=0.875)
WAN22_5B = Defaults(fps=24, frames=121, size=(1280, 704))


def changed(family: Defaults, path: Path, wishes: dict[str, Any]) -> Defaults:
    """The defaults of a family, changed by the wishes that were read from `path`; InputError for impossible ones."""
    for key, value in wishes.items():
        if key not in _KINDS:
            raise InputError(f"{path} has the unknown key {key!r}: it may have {', '.join(_KINDS)}.")
        if not isinstance(value, _KINDS[key]) or isinstance(value, bool):
            raise InputError(f"{path} has {value!r} for {key!r}, which is not of the right kind.")
    if "frames" in wishes:
        latent_frames(wishes["frames"])
    if "boundary" in wishes and not 0 <= wishes["boundary"] <= 1:
        raise InputError(f"{path} has the boundary {wishes['boundary']}: it lies between 0 and 1.")
    if "size" in wishes:
        if len(wishes["size"]) != 2:
            raise InputError(f"{path} has {wishes['size']!r} for 'size': write [width, height].")
        wishes = wishes | {"size": tuple(wishes["size"])}
    if "per_frame" in wishes:
        wishes = wishes | {"per_frame": tuple(map(str, wishes["per_frame"]))}
    return replace(family, **wishes)
