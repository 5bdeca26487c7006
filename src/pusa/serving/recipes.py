"""What a client learns about how a video was made: its sidecar without the paths of the server, and its matrix."""

from __future__ import annotations

import json
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
    """The sidecar of a completed video. Each path in it is the name of a file alone."""
    recipe: dict[str, Any] = json.loads(sidecar_path(clip).read_text(encoding="utf-8"))
    named: dict[str, Any] = _without_folders(recipe)
    return named


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: Path(each).name if key == "path" and isinstance(each, str) else _without_folders(each)
            for key, each in value.items()
        }
    return [_without_folders(each) for each in value] if isinstance(value, list) else value


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
