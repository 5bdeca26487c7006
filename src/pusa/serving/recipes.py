"""What a client learns about how a video was made: its sidecar without the paths of the server, and its matrix."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pusa.generation.given import Clip, Image, frame_index
from pusa.generation.limits import Limits
from pusa.generation.outputs import sidecar_path
from pusa.generation.placement import Span, place_clip
from pusa.generation.request import Extend, Generate, Transition
from pusa.generation.schedule import DEFAULT, Schedule
from pusa.serving.orders import Order
from pusa.serving.store import Video


def public_recipe(row: Video, clip: Path) -> dict[str, Any]:
    """The sidecar of a completed video. Each path in it is the name of a file alone, for sources the client's name."""
    recipe: dict[str, Any] = json.loads(sidecar_path(clip).read_text(encoding="utf-8"))
    names = {about["file"]: _client_name(about) for about in row.sources.values()}
    several = [name for name in names.values() if list(names.values()).count(name) > 1]
    names = {file: f"{Path(file).stem}-{name}" if name in several else name for file, name in names.items()}
    told: dict[str, Any] = _without_folders(recipe, names)
    return told


def _client_name(about: Mapping[str, Any]) -> str:
    """The name of a source's file as the client has it, or would have it."""
    if "video" in about and "frame" not in about:
        return f"{about['video']}.mp4"
    name = re.sub(r"[\x00-\x1f/\\\\:]", "_", str(about["filename"]).replace("\\", "/").rpartition("/")[2])
    return name if name.strip(". ") else str(about["file"])


def _without_folders(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {
            key: names.get(Path(each).name, Path(each).name)
            if key == "path" and isinstance(each, str)
            else _without_folders(each, names)
            for key, each in value.items()
        }
    return [_without_folders(each, names) for each in value] if isinstance(value, list) else value


def matrix_of(order: Order, limits: Limits) -> list[list[float]]:
    """σ of the sampled window of a checked request: rows are the steps and the result, columns the latent frames."""
    from pusa.core import schedules, sigmas  # torch, which the server needs for this alone

    request, settings, geometry = order.request, order.settings, limits.geometry
    slots = geometry.latent_frames(settings.frames)
    if isinstance(request, Generate) and (own := request.own_matrix()) is not None:
        return [[float(x) for x in row] for row in own.sigma.tolist()]
    grid = sigmas.grid(settings.steps, settings.shift, settings.strength)
    free = Schedule.parse(settings.schedule or DEFAULT).matrix(grid, slots)
    rows: list[list[float]] = schedules.conditioned(free, _levels(order, limits, slots)).sigma.tolist()
    return rows


def _levels(order: Order, limits: Limits, slots: int) -> dict[int, float]:
    """The noise multiplier of each latent frame that is given."""
    request, geometry = order.request, limits.geometry
    span = Span(order.settings.frames, limits.defaults.fps, geometry)
    by_path = {str(one.path): one.about for one in order.opened.values()}
    found: dict[int, float] = {}
    if isinstance(request, Generate):
        for one in request.conditions:
            if isinstance(one, Image):
                found[geometry.slot_of(frame_index(one.frame, span.frames, span.fps, ""))] = one.noise
            elif isinstance(one, Clip):
                about = by_path[str(one.src)]
                count = about["frames"] if about.get("video") else round(about["frames"] / about["fps"] * span.fps)
                place = place_clip(one, about["filename"], count, span)
                found |= dict(zip(place.slots, place.noise, strict=True))
        return found
    assert isinstance(request, Extend | Transition)
    clips = 1 if isinstance(request, Extend) else 2
    overlap, _ = limits.window(request.frames, request.overlap, clips=clips)
    given = geometry.latent_frames(overlap)
    noise = request.noise
    levels = list(noise) if isinstance(noise, tuple) else [noise] * given
    if isinstance(request, Extend) and request.direction == "forward":
        return dict(enumerate(levels))
    later = range(slots - (given - 1), slots)
    found = dict(zip(later, levels[-len(later) :], strict=True))
    return found if isinstance(request, Extend) else found | dict(enumerate(levels))
