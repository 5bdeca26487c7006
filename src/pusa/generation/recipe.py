"""Read the recipe of a clip from its sidecar, and change it. `provenance` makes the clip. It imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from pusa import __version__, embedded
from pusa.errors import InputError
from pusa.generation.outputs import SUFFIXES, sidecar_path
from pusa.generation.request import Generate, Request, plain

_NEEDED = ("task", "prompt", "model", "loras", "versions", "size", "frames", "steps", "seed", "matrix")


def read(path: str | Path) -> dict[str, Any]:
    """The recipe of a clip, from its .json or from its .mp4."""
    path = Path(path)
    sidecar = sidecar_path(path) if path.suffix in SUFFIXES else path
    if not sidecar.is_file():
        raise InputError(f"There is no recipe {sidecar}: give the .json that was written next to a clip.")
    try:
        recipe = json.loads(sidecar.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{sidecar} is not the recipe of a clip: it cannot be read ({error}).") from error
    missing = [key for key in _NEEDED if key not in recipe] if isinstance(recipe, dict) else list(_NEEDED)
    if missing:
        raise InputError(f"{sidecar} is not the recipe of a clip: it lacks {', '.join(missing)}.")
    kinds: dict[str, Any] = {
        "prompt": str,
        "seed": int,
        "frames": int,
        "steps": int,
        "size": list,
        "loras": list,
        "model": dict,
    }
    wrong = [key for key, kind in kinds.items() if not isinstance(recipe[key], kind)]
    wrong += ["size"] * (not wrong and len(recipe["size"]) != 2)
    if wrong:
        raise InputError(f"{sidecar} is damaged: its {wrong[0]} is {recipe[wrong[0]]!r}; put the old file back.")
    _check_embedded(sidecar, recipe["model"])
    return dict(recipe)


def _check_embedded(sidecar: Path, model: Mapping[str, Any]) -> None:
    """Refuse a clip of an embedded model that this version of the package no longer has."""
    former = embedded.FORMER.get(str(model.get("fingerprint")))
    if former is not None and model.get("source") in embedded.NAMES:
        raise InputError(
            f"{sidecar} is the recipe of a clip of the embedded model of pusa {former}, and pusa {__version__} has "
            f"another: install that version to make the clip again."
        )


def varied(path: str | Path, recipe: Mapping[str, Any], changes: Mapping[str, Any]) -> tuple[Request, dict[str, Any]]:
    """The request of a recipe with other values for some fields, and the entry "variant_of" of its sidecar.

    path: the recipe's file. A matrix replaces the settings that decide about it. Raises InputError for a field that the
    task does not have, and for values that do not go together.
    """
    old = Request.from_dict(recipe)
    names = [one.name for one in fields(old)]  # type: ignore[arg-type]
    if unknown := [name for name in changes if name not in names]:
        raise InputError(
            f"{path} is the recipe of a clip of `pusa {old.task}`, which has no {unknown[0]} to change: leave it out."
        )
    instead: dict[str, Any] = {}
    if isinstance(old, Generate) and changes.get("matrix") is not None:
        instead = {"steps": None, "shift": None, "schedule": None, "strength": None}
    request: Request = replace(old, **{**instead, **changes})
    changed = {
        name: {"from": _short(getattr(old, name)), "to": _short(getattr(request, name))}
        for name in names
        if name not in instead and plain(getattr(old, name)) != plain(getattr(request, name))
    }
    result = recipe.get("result", {}).get("sha256")
    return request, {"path": str(Path(path).resolve()), "sha256": result, "changed": changed}


def _short(value: Any) -> Any:
    """A value for JSON. The rows of a matrix are left out."""
    value = plain(value)
    return "rows of σ" if isinstance(value, dict) and "sigma" in value else value
