"""The default settings of a clip: per family, changed by a checkpoint's own `pusa.json`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pusa.errors import InputError
from pusa.models.backbone import Defaults
from pusa.models.wan.autoencoder import GEOMETRIES

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
        GEOMETRIES[16].latent_frames(wishes["frames"])
    if "boundary" in wishes and not 0 <= wishes["boundary"] <= 1:
        raise InputError(f"{path} has the boundary {wishes['boundary']}: it lies between 0 and 1.")
    if "size" in wishes:
        if len(wishes["size"]) != 2:
            raise InputError(f"{path} has {wishes['size']!r} for 'size': write [width, height].")
        wishes = wishes | {"size": tuple(wishes["size"])}
    if "per_frame" in wishes:
        wishes = wishes | {"per_frame": tuple(map(str, wishes["per_frame"]))}
    return replace(family, **wishes)
