"""From a request to a plan: what is known of the window that is sampled, and what becomes of its latents.

A clip that is generated is one window. An extension or a transition samples a window in which the overlapping frames of
the given clips are known, and joins the result in latent space: the latents of the given clips, unchanged, and the new
ones of the window are decoded together in one causal pass. The given clip does not go through the autoencoder again,
so colours do not shift at the join.

Groups of four frames (one latent frame) decide the geometry of an extension. Forward, the window begins with frame 4j
of the clip, which is encoded again alone because the first latent of a clip stands for one frame; the latents of the
clip follow it. That first latent is context only. Backward, and for the second clip of a transition, the later latents
of the clip end the window as they are. The first latent of the clip stands for one frame and has no place inside a
clip: its frame becomes the last one of the group of four that is made before it. The model makes that one frame,
between known neighbours; all other frames keep their latents. The first frames after such a join also decode
differently, because the autoencoder now sees four frames before them where it saw one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from pusa.core.timesteps import TimestepMatrix
from pusa.generation.conditions import Known, Target, place, resolve
from pusa.generation.footage import joined_size
from pusa.generation.given import Clip
from pusa.generation.model import Model
from pusa.generation.placement import Span, check_overlap, edited_part
from pusa.generation.request import Extend, Generate, Request, Transition
from pusa.generation.settings import Settings
from pusa.generation.sources import ClipSource, open_clip
from pusa.media.images import fit as fit_frames


def _unchanged(z: Tensor) -> Tensor:
    return z


@dataclass(frozen=True)
class Plan:
    """A window that is ready to be sampled.

    Attributes:
        settings: how it is sampled.
        known: the latents and noise multipliers of its known latent frames.
        record: the task's own entries in the sidecar.
        init: latents of the whole window, float32 [1, C, F, h, w], for editing.
        matrix: the user's own matrix; None builds it from settings and known.
        join: from the latents of the window to those of the finished clip.
    """

    settings: Settings
    known: Known
    record: dict[str, Any]
    init: Tensor | None = None
    matrix: TimestepMatrix | None = None
    join: Callable[[Tensor], Tensor] = _unchanged


def opened(model: Model, request: Generate) -> Generate:
    """The request with its pictures decoded, its clips read, and `frames` known for an edited clip."""
    request = request.opened()
    conditions = tuple(_opened(model, one) if isinstance(one, Clip) else one for one in request.conditions)
    request = replace(request, conditions=conditions)
    if request.init is None:
        return request
    init = _opened(model, request.init)
    span = Span(0, model.defaults.fps, model.backbone.geometry)
    start, count = edited_part(init, request.frames, init.src.label, init.src.count, span)
    return replace(request, frames=count, init=replace(init, frames=count, start=start))


def _opened(model: Model, clip: Clip) -> Clip:
    return replace(clip, src=open_clip(clip.src, clip.fps(model.defaults.fps), model.backbone))


def generate(model: Model, request: Generate) -> Plan:
    """The plan of a clip from a prompt and conditions."""
    request = opened(model, request)
    settings = request.check(model.limits)
    target = Target(settings.frames, settings.size, model.defaults.fps, request.fit, model.backbone)
    edited = None if request.init is None else place(request.init, target)
    known, records = resolve(request.conditions, target)
    matrix = request.own_matrix()
    if matrix is not None:
        _warn_of_unused(matrix, known, edited is not None)
    record = {
        "conditions": records,
        "init": None if edited is None else edited.record,
        "own_matrix": matrix is not None,
    }
    return Plan(settings, known, record, None if edited is None else edited.encode(), matrix)


def _warn_of_unused(matrix: TimestepMatrix, known: Known, edited: bool) -> None:
    """Warn if the user's matrix starts a given frame, or every frame of an edited clip, as noise."""
    noisy = (matrix.sigma[0] == 1).tolist()
    if unused := [slot for slot in known if noisy[slot]]:
        warnings.warn(
            f"The matrix starts latent frame {unused[0]} at σ = 1, so the condition on this frame has no effect: lower "
            "the column of the frame, or leave the condition out.",
            stacklevel=6,
        )
    elif edited and all(noisy):
        warnings.warn(
            "The matrix starts every frame at σ = 1, so the clip to edit has no effect: lower the columns, or leave "
            "the clip out.",
            stacklevel=6,
        )


def extend(model: Model, request: Extend) -> Plan:
    """The plan of a longer clip."""
    forward = request.direction == "forward"
    overlap, added = model.limits.window(request.frames, request.overlap, clips=1)
    source, settings = _open(
        model, request, request.clip, request.check(model.limits), cut="start" if forward else "end"
    )
    condition = (
        _ending(source, overlap, request.noise)
        if forward
        else _beginning(source, overlap, settings.frames, request.noise)
    )
    known, _ = resolve([condition], _target(model, settings, request))
    new = added // model.backbone.geometry.frames_per_slot

    def join(z: Tensor) -> Tensor:
        parts = [_latents(source), z[:, :, -new:]] if forward else [z[:, :, : new + 1], _latents(source)[:, :, 1:]]
        return torch.cat(parts, dim=2)

    record = {
        "clip": source.record,
        "direction": request.direction,
        "frames": added,
        "overlap": overlap,
        "noise": list(request.noise) if isinstance(request.noise, tuple) else request.noise,
    }
    return Plan(settings, known, record, join=join)


def transition(model: Model, request: Transition) -> Plan:
    """The plan of a clip that joins two."""
    overlap, added = model.limits.window(request.frames, request.overlap, clips=2)
    first, settings = _open(model, request, request.a, request.check(model.limits), cut="start")
    second, settings = _open(model, replace(request, size=settings.size), request.b, settings, cut="end")
    conditions = [
        _ending(first, overlap, request.noise),
        _beginning(second, overlap, settings.frames, request.noise),
    ]
    known, _ = resolve(conditions, _target(model, settings, request))
    shared = overlap // model.backbone.geometry.frames_per_slot

    def join(z: Tensor) -> Tensor:
        return torch.cat([_latents(first), z[:, :, shared + 1 : -shared], _latents(second)[:, :, 1:]], dim=2)

    record = {"a": first.record, "b": second.record, "frames": added, "overlap": overlap, "noise": request.noise}
    return Plan(settings, known, record, join=join)


def _target(model: Model, settings: Settings, request: Request) -> Target:
    return Target(settings.frames, settings.size, model.defaults.fps, request.fit, model.backbone)


def _ending(clip: ClipSource, overlap: int, noise: float | tuple[float, ...]) -> Clip:
    """The clip's last frames at the beginning of the window."""
    return Clip(clip, at=0, start=clip.count - overlap, frames=overlap, noise=noise)


def _beginning(clip: ClipSource, overlap: int, window: int, noise: float | tuple[float, ...]) -> Clip:
    """The clip's frames 1 ... overlap - 1 at the end of the window."""
    return Clip(clip, at=window - overlap + 1, start=1, frames=overlap - 1, noise=noise)


def _open(
    model: Model, request: Extend | Transition, src: Any, settings: Settings, cut: Literal["start", "end"]
) -> tuple[ClipSource, Settings]:
    """The source with latents at the size that is made, and the settings with that size."""
    source = open_clip(src, model.defaults.fps, model.backbone)
    clips = 1 if isinstance(request, Extend) else 2
    overlap, _ = model.limits.window(request.frames, request.overlap, clips=clips)
    geometry = model.backbone.geometry
    extra = source.count - geometry.whole(source.count)
    check_overlap(source.label, source.count, overlap, geometry)
    size = joined_size(request.size, [src], overlap, model.limits)
    settings = settings if size is None else replace(settings, size=model.limits.check_size(size))
    if source.latents is not None and settings.size == source.size:
        return source, settings
    kept = source.frames[extra:] if cut == "start" else source.frames[: source.count - extra]
    encoded = model.encode(fit_frames(kept, settings.size, request.fit))
    return ClipSource(source.label, source.record, model.backbone, latents=encoded), settings


def _latents(source: ClipSource) -> Tensor:
    assert source.latents is not None
    return source.latents
