"""`pusa generate --from CLIP.json`: remake a clip from its sidecar, or make variants of it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pusa.cli.shared.arguments import default_name, extension_name, slug, transition_name
from pusa.cli.shared.clip_jobs import check_paths, make, opened
from pusa.cli.shared.options import Output
from pusa.cli.shared.terminal import Report, Terminal
from pusa.errors import InputError
from pusa.generation.outputs import sidecar_path
from pusa.generation.recipe import read, varied
from pusa.generation.request import Extend, Generate, Request, Transition

if TYPE_CHECKING:
    from pusa.generation.clip import GeneratedClip
    from pusa.generation.pipeline import Pipeline

IN_NAME = ("steps", "guidance", "shift", "solver", "fit", "strength")
"""The options of a variant that its default name contains, besides prompt, seed, length and size."""
IN_NAME_OF_JOINED = ("prompt", "frames", "overlap", "size", "noise", *IN_NAME)
"""The same for an extension or a transition, which is named after its clips and the seed."""


def remake(recipe: Path, changes: Mapping[str, Any], count: int, output: Output, terminal: Terminal) -> Report:
    """Remake the clip of a sidecar; with changes or a count, make variants with consecutive seeds.

    changes: values for fields of its request. Raises InputError, before the model is loaded, for changes that the task
    or the model does not take, and for paths that cannot be written.
    """
    if count < 1:
        raise InputError(f"--count {count}: give 1 or more.")
    old = read(recipe)
    first = changes.get("seed", old["seed"])
    several = [{**changes, "seed": first + i} for i in range(count)] if count > 1 else [dict(changes)]
    jobs: dict[Path, dict[str, Any]] = {}
    notes: dict[str, None] = {}
    for one in several:
        request, about = varied(recipe, old, one)
        shape = old["frames"], old["size"]
        if one:
            shape, told = _checked(opened(request, terminal), old, terminal)
            notes |= dict.fromkeys(told)
        stem, end = _name(request, about["changed"], shape)
        jobs[output.path(stem, end, seed=request.seed if count > 1 else None)] = one
    replaces = None if any(several) else sidecar_path(recipe)
    check_paths(jobs, output, [*([recipe] if any(several) else [])], replaces=replaces)
    for note in notes:
        terminal.note(f"pusa: {note}")
    with terminal.status("Starting"):
        from pusa.generation.provenance import pipeline_of, regenerate
        from pusa.processes import current_group

    share_tokens = current_group().size > 1
    loaded: list[Pipeline] = []

    def job(one: dict[str, Any], callback: Any) -> GeneratedClip:
        if count > 1 and not loaded:
            loaded.append(pipeline_of(old, share_tokens))
        pipe = loaded[0] if loaded else None
        return regenerate(recipe, pipe, changes=one, share_tokens=share_tokens, callback=callback)

    named = {path: partial(job, one) for path, one in jobs.items()}
    return make(named, output, terminal, replaces=replaces, notes=list(notes))


def _name(
    request: Request, changed: Mapping[str, Mapping[str, Any]], shape: tuple[int, tuple[int, int]]
) -> tuple[str, str]:
    """Return the default name of the clip of its task and of the changes, as its stem and its end."""
    options: tuple[str, ...] = IN_NAME_OF_JOINED
    match request:
        case Extend(clip=str() | Path() as clip):
            stem, end = extension_name(Path(clip), request.seed, backward=request.direction == "backward")
        case Transition(a=str() | Path() as a, b=str() | Path() as b):
            stem, end = transition_name(Path(a), Path(b), request.seed)
        case _:
            stem, end = default_name(str(getattr(request, "prompt", "")), request.seed, *shape)
            options = IN_NAME
    for name in options:
        if name in changed:
            end += _in_name(name, changed[name]["to"])
    return stem, end


def _in_name(option: str, value: Any) -> str:
    if option == "prompt":
        return f"_{slug(value, 30)}"
    if option == "size" and value is not None:
        return f"_{value[0]}x{value[1]}"
    return f"_{option}{value:g}" if isinstance(value, float) else f"_{option}{value}"


def _checked(
    request: Request, old: Mapping[str, Any], terminal: Terminal
) -> tuple[tuple[int, tuple[int, int]], list[str]]:
    """Return the frames and the size of a variant, checked against the configuration of the model, and its notes."""
    from pusa.generation.limits import Limits
    from pusa.models.loading import sources

    with terminal.status(f"Reading the configuration of {old['model']['source']}"):
        name, folder = sources.find(old["model"]["source"], ())
        limits = Limits.of(name, folder, old["model"].get("beside", {}))
        settings = request.check(limits)
        notes = request.notes(limits)
    frames = settings.frames if isinstance(request, Generate) else old["frames"]
    return (frames, settings.size), notes
