"""The default settings of a clip, for each family. The `pusa.json` of a checkpoint overrides them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pusa.errors import InputError
from pusa.models.backbone import Defaults
from pusa.models.wan.geometry import GEOMETRIES

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

MAX_FPS = 1000
"""the highest rate at which a clip can be written"""
_KIND_NAMES = {int: "a whole number", float: "a number", list: "a list"}
WAN21 = Defaults()
WAN22_A14B = Defaults(boundary=0.875)
WAN22_5B = Defaults(fps=24, frames=121, size=(1280, 704))


def override(family: Defaults, path: Path, settings: dict[str, Any]) -> Defaults:
    """Return the defaults of a family with `settings`, which were read from `path`. InputError for wrong settings."""
    for key, value in settings.items():
        if key not in _KINDS:
            raise InputError(f"{path} has the unknown key {key!r}: it may have {', '.join(_KINDS)}.")
        if not isinstance(value, _KINDS[key]) or isinstance(value, bool):
            raise InputError(f"{path} has {value!r} for {key!r}: write {_KIND_NAMES[_KINDS[key][-1]]}.")
    if "frames" in settings:
        GEOMETRIES[16].latent_frames(settings["frames"])
    if "fps" in settings and not 0 < settings["fps"] <= MAX_FPS:
        raise InputError(f"{path} has {settings['fps']} fps: write a number above 0 and at most {MAX_FPS}.")
    if "boundary" in settings and not 0 <= settings["boundary"] <= 1:
        raise InputError(f"{path} has the boundary {settings['boundary']}: write a number from 0 to 1.")
    if "size" in settings:
        if len(settings["size"]) != 2:
            raise InputError(f"{path} has {settings['size']!r} for 'size': write [width, height].")
        settings = settings | {"size": tuple(settings["size"])}
    if "per_frame" in settings:
        settings = settings | {"per_frame": tuple(map(str, settings["per_frame"]))}
    return replace(family, **settings)
