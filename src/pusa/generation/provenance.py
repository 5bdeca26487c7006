"""Read the sidecar of a clip and make the clip again, bit-identical on the same machine with the same versions.

A source file, LoRA or checkpoint with another hash than the recorded one is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import torch

from pusa.core.timesteps import TimestepMatrix
from pusa.errors import InputError
from pusa.files import sha256
from pusa.generation.clip import GeneratedClip, latents_hash, read_latents
from pusa.generation.outputs import latents_path
from pusa.generation.pipeline import Callback, Pipeline, load
from pusa.generation.recipe import read, varied
from pusa.generation.request import Request
from pusa.models import kernels
from pusa.models.lora import runtime
from pusa.models.memory import profiles
from pusa.versions import versions

_ENTRIES = {
    "generate": ("conditions", "init", "own_matrix"),
    "extend": ("clip", "direction", "overlap", "noise"),
    "transition": ("a", "b", "overlap", "noise"),
}
"""The entries that each task needs besides."""


def regenerate(
    path: str | Path,
    pipe: Pipeline | None = None,
    *,
    changes: Mapping[str, Any] | None = None,
    share_tokens: bool = False,
    callback: Callback | None = None,
) -> GeneratedClip:
    """Make the clip of a recipe again, with its model (loaded unless given) and its sources, all of them checked.

    changes: fields of the request that get other values, such as {"seed": 5}. The clip is then a variant: its sidecar
    names the recipe and the changes as "variant_of".

    Raises InputError when a source is missing, has changed or was never a file, when the model or a LoRA is another
    than the recorded one, and when the recipe is damaged. Other versions of the software and another number of
    processes only cause a UserWarning. share_tokens: as for `load`.
    """
    recipe = read(path)
    try:
        if recipe["task"] not in _ENTRIES:
            raise InputError(f"{path} is the recipe of a {recipe['task']!r}, which this version cannot make.")
        for key in _ENTRIES[recipe["task"]]:
            _ = recipe[key]
        for record in _sources(recipe, without=changes or ()):
            _check_file(record)
        for record in recipe["loras"]:
            _check_lora(record)
        pipe = pipeline_of(recipe, share_tokens) if pipe is None else pipe
        _check_model(recipe, pipe)
        if not changes:
            return _as_recorded(Request.from_dict(recipe).run(pipe, callback), recipe, path)
        request, variant_of = varied(path, recipe, changes)
        clip = request.run(pipe, callback)
        clip.recipe["variant_of"] = variant_of
        return clip
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path} is a damaged recipe ({what}).") from error


def _as_recorded(clip: GeneratedClip, recipe: dict[str, Any], path: str | Path) -> GeneratedClip:
    """The clip, with a UserWarning if it differs from the result in the recipe."""
    result = recipe.get("result", {})
    if clip.matrix != TimestepMatrix.from_dict(recipe["matrix"]):
        own = '; to use the matrix, set "own_matrix" to true in it' if recipe["task"] == "generate" else ""
        warnings.warn(
            f"The timestep matrix in {path} is not the one that its settings give; the settings were used{own}.",
            stacklevel=3,
        )
    elif result.get("latents_sha256") not in (None, latents_hash(clip.latents)):
        warnings.warn(
            f"The clip is not bit-identical to the one of {path}: the recipe, the software or the machine has changed.",
            stacklevel=3,
        )
    return clip


def _sources(recipe: dict[str, Any], without: Container[str]) -> list[dict[str, Any]]:
    """The entries of everything that the clip was made from, except models and the entries `without`."""
    single = [recipe.get(key) for key in ("init", "clip", "a", "b") if key not in without]
    several = [] if "conditions" in without else recipe.get("conditions", [])
    return [*several, *(record for record in single if record)]


def _check_file(record: dict[str, Any]) -> None:
    if record["path"] is None:
        raise InputError(
            "This clip was made from pixels in memory, not from files, so its recipe cannot make it again."
        )
    path = Path(record["path"])
    kept = latents_path(path) if "latents_sha256" in record else None
    for file in (path, kept):
        if file is not None and not file.is_file():
            raise InputError(f"{file}, which the clip was made from, is missing: put it back.")
    if kept is None:
        same = sha256(path) == record["sha256"]
    else:  # the latents are the source; the video only has to belong to them
        latents, about = read_latents(kept)
        same = latents_hash(latents) == record["latents_sha256"] and about.get("video_sha256") == sha256(path)
    if not same:
        raise InputError(f"{path} has changed since the clip was made from it: restore the former file.")


def _check_lora(record: dict[str, Any]) -> None:
    path = Path(record["path"])
    if not path.is_file():
        raise InputError(f"The LoRA {path}, which the clip was made with, is missing: put it back.")
    if runtime.fingerprint(path) != record["sha256"]:
        raise InputError(f"The LoRA {path} has changed since the clip was made with it: restore the former file.")


def pipeline_of(recipe: dict[str, Any], share_tokens: bool = False) -> Pipeline:
    """Load the model that made a clip, with its LoRAs at their strengths. share_tokens: as for `load`."""
    model = recipe["model"]
    profile = model.get("memory")
    device = "cpu" if profile else model["device"]
    pipe = load(model["source"], **model.get("beside", {}), dtype=getattr(torch, model["dtype"]), device=device)
    for present in pipe.loras:  # the model's own LoRA may have had another strength, or was removed
        pipe.remove_lora(present.name)
    for record in recipe["loras"]:
        pipe.load_lora(record["path"], record["scale"], record["name"], record.get("expert"))
    if profile:
        pipe.lay_out(profiles.named(profile), model["device"])
    if share_tokens:
        pipe.share_tokens()
    pipe.use(model.get("attention", kernels.NATIVE), compiled=model.get("compiled", False))
    return pipe


def _check_model(recipe: dict[str, Any], pipe: Pipeline) -> None:
    now = pipe.recipe()
    then, source = recipe["model"], recipe["model"]["source"]
    places = {"source": None, "beside": None}
    if {**then, **places} != {**now["model"], **places}:
        differing = [key for key in then if key not in places and then[key] != now["model"].get(key)]
        raise InputError(f"The model {source} is not the one that made the clip: its {', '.join(differing)} differs.")
    then_on, now_on = (
        [(x["sha256"], x["scale"], x.get("expert")) for x in loras] for loras in (recipe["loras"], now["loras"])
    )
    if then_on != now_on:
        raise InputError("The loaded LoRAs are not those that the clip was made with.")
    count = recipe.get("processes", 1)
    if count != pipe.group.size:
        warnings.warn(
            f"The clip was made by {count} process{'es' * (count > 1)} and this one by {pipe.group.size}, so they may "
            "differ a little.",
            stacklevel=3,
        )
    other = [f"{k} {v} (here {versions()[k]})" for k, v in recipe["versions"].items() if versions().get(k, v) != v]
    if other:
        warnings.warn(f"The clip was made with {', '.join(other)}; this one may differ from it.", stacklevel=3)
