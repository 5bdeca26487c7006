"""Longer clips from clips: what comes next, what came before, and what lies between two.

A window is generated in which the overlapping frames of the given clip are known, and the result is joined in latent
space: the given clip's latents, untouched, and the window's new ones, decoded together in one causal pass. Nothing of
the clip goes through the autoencoder again, so colours do not shift at the join.

Groups of four decide the geometry. Forward, the window begins with the clip's frame 4j, re-encoded alone because a
clip's first latent stands for one frame, followed by the clip's own latents; that re-encoded latent is context only.
Backward, and for the second clip of a transition, the clip's later latents end the window as they are, but its first
one stands for one frame and has no place inside a clip: its frame becomes the last of the group of four made before it.
That one frame is made by the model, between known neighbours; all others keep their latents. The first frames after
such a join also decode in new company, since the autoencoder now sees four frames before them where there was one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pusa.errors import InputError
from pusa.generation.clip import GeneratedClip
from pusa.generation.clip_sources import Footage, open_footage
from pusa.generation.conditions import Clip, Target, resolve
from pusa.generation.pipeline import Pipeline
from pusa.generation.settings import Callback, Settings, Solver, check_prompts, check_seed
from pusa.images import Fit, Frames
from pusa.images import fit as fit_frames
from pusa.models.wan.latents import FRAMES_PER_SLOT

Direction = Literal["forward", "backward"]
Source = str | Path | Frames | GeneratedClip


def extend(
    pipe: Pipeline,
    clip: Source,
    prompt: str,
    *,
    frames: int | None = None,
    overlap: int | None = None,
    direction: Direction = "forward",
    noise: float | Sequence[float] = 0.0,
    negative_prompt: str = "",
    size: tuple[int, int] | None = None,
    fit: Fit = "crop",
    steps: int | None = None,
    guidance: float | None = None,
    guidance_2: float | None = None,
    boundary: float | None = None,
    shift: float | None = None,
    seed: int = 0,
    solver: Solver = "euler",
    callback: Callback | None = None,
) -> GeneratedClip:
    """Continue a clip, or make what came before it; returns the given clip and the new frames as one.

    Args:
        clip: a generated clip, a video file (with its latents where they were saved) or uint8 [N, H, W, 3]. Frames
            beyond 4n+1 are left out at the end away from the join, and a UserWarning says so.
        frames: how many frames to add, a multiple of 4; by default what the model makes at once, less the overlap.
        overlap: how many frames of the clip the model sees, 4m+1; by default a quarter of a window, at most 13.
        noise: multiplier of the overlap, in [0, 1], one or one per latent frame; the clip itself stays as it is.
        size: (width, height); by default that of the clip, or the model's where the clip's cannot be made.

    The other arguments are those of `Pipeline.generate`. Raises InputError when they do not fit together.
    """
    if direction not in ("forward", "backward"):
        raise InputError(f"The direction {direction!r} is unknown: choose forward or backward.")
    forward = direction == "forward"
    overlap = _overlap(pipe, overlap)
    frames = _added(frames, pipe.defaults.frames - overlap)
    settings = pipe.limits.settings(
        frames=overlap + frames,
        size=size,
        steps=steps,
        guidance=guidance,
        guidance_2=guidance_2,
        boundary=boundary,
        shift=shift,
        solver=solver,
    )
    given, settings = _open(pipe, clip, size, settings, fit, overlap, cut="start" if forward else "end")
    condition = _ending(given, overlap, noise) if forward else _beginning(given, overlap, settings.frames, noise)
    new = frames // FRAMES_PER_SLOT

    def join(z: Tensor) -> Tensor:
        parts = [_latents(given), z[:, :, -new:]] if forward else [z[:, :, : new + 1], _latents(given)[:, :, 1:]]
        return torch.cat(parts, dim=2)

    task = {
        "task": "extend",
        "clip": given.record,
        "direction": direction,
        "frames": frames,
        "overlap": overlap,
        "noise": condition.noise,
    }
    return _make(pipe, [condition], settings, fit, prompt, negative_prompt, seed, callback, join, task)


def transition(
    pipe: Pipeline,
    a: Source,
    b: Source,
    prompt: str,
    *,
    frames: int | None = None,
    overlap: int | None = None,
    noise: float = 0.0,
    negative_prompt: str = "",
    size: tuple[int, int] | None = None,
    fit: Fit = "crop",
    steps: int | None = None,
    guidance: float | None = None,
    guidance_2: float | None = None,
    boundary: float | None = None,
    shift: float | None = None,
    seed: int = 0,
    solver: Solver = "euler",
    callback: Callback | None = None,
) -> GeneratedClip:
    """Join two clips by `frames` new ones; returns a, the new frames and b as one clip.

    frames: a multiple of 4, the last of them standing for b's first frame (see the module), so the result has
    len(a) + frames + len(b) - 1; by default the model's length, less both overlaps. overlap: frames of either clip that
    the model sees, 4m+1. noise: multiplier of both overlaps, in [0, 1]. size: by default that of a, or the model's
    where that cannot be made. The rest as for `extend`.
    """
    overlap = _overlap(pipe, overlap)
    frames = _added(frames, pipe.defaults.frames - 2 * overlap + 1)
    window = frames + 2 * overlap - 1
    settings = pipe.limits.settings(
        frames=window,
        size=size,
        steps=steps,
        guidance=guidance,
        guidance_2=guidance_2,
        boundary=boundary,
        shift=shift,
        solver=solver,
    )
    first, settings = _open(pipe, a, size, settings, fit, overlap, cut="start")
    second, settings = _open(pipe, b, settings.size, settings, fit, overlap, cut="end")
    conditions = [_ending(first, overlap, noise), _beginning(second, overlap, window, noise)]
    known = overlap // FRAMES_PER_SLOT

    def join(z: Tensor) -> Tensor:
        return torch.cat([_latents(first), z[:, :, known + 1 : -known], _latents(second)[:, :, 1:]], dim=2)

    task = {
        "task": "transition",
        "a": first.record,
        "b": second.record,
        "frames": frames,
        "overlap": overlap,
        "noise": noise,
    }
    return _make(pipe, conditions, settings, fit, prompt, negative_prompt, seed, callback, join, task)


def _overlap(pipe: Pipeline, overlap: int | None) -> int:
    if overlap is None:
        return min(13, pipe.defaults.frames // 16 * FRAMES_PER_SLOT + 1)
    if overlap < 5 or overlap % FRAMES_PER_SLOT != 1:
        raise InputError(f"overlap is {overlap} frames: give 4m+1 of them, such as 5, 9 or 13.")
    return overlap


def _added(frames: int | None, default: int) -> int:
    frames = max(FRAMES_PER_SLOT, default) if frames is None else frames
    if frames < FRAMES_PER_SLOT or frames % FRAMES_PER_SLOT:
        below = max(FRAMES_PER_SLOT, frames // FRAMES_PER_SLOT * FRAMES_PER_SLOT)
        raise InputError(
            f"{frames} frames cannot be added, groups of four are: use {below} or {below + FRAMES_PER_SLOT}."
        )
    return frames


def _ending(clip: Footage, overlap: int, noise: float | Sequence[float]) -> Clip:
    """The clip's last frames at the beginning of the window."""
    return Clip(clip, at=0, start=clip.count - overlap, frames=overlap, noise=noise)


def _beginning(clip: Footage, overlap: int, window: int, noise: float | Sequence[float]) -> Clip:
    """The clip's frames 1 ... overlap - 1 at the end of the window."""
    return Clip(clip, at=window - overlap + 1, start=1, frames=overlap - 1, noise=noise)


def _open(
    pipe: Pipeline,
    src: Source,
    size: tuple[int, int] | None,
    settings: Settings,
    mode: Fit,
    overlap: int,
    cut: Literal["start", "end"],
) -> tuple[Footage, Settings]:
    """The source with latents at the size that is made, and the settings with that size."""
    footage = open_footage(src, pipe.defaults.fps, pipe.vae)
    extra = (footage.count - 1) % FRAMES_PER_SLOT
    if footage.count < overlap:
        longest = footage.count - extra
        better = f"an overlap of at most {longest}" if longest > FRAMES_PER_SLOT else "a clip of 5 frames or more"
        raise InputError(
            f"{footage.label} has {footage.count} frames, fewer than the overlap of {overlap}: give {better}."
        )
    if size is None and not any(side % pipe.components.multiple for side in footage.size):
        settings = pipe.limits.settings(**(vars(settings) | {"size": footage.size}))
    if footage.latents is not None and settings.size == footage.size:
        return footage, settings
    if extra:
        warnings.warn(
            f"{footage.label} has {footage.count} frames and a clip has 4n+1: {extra} at its {cut} left out.",
            stacklevel=3,
        )
    kept = footage.frames[extra:] if cut == "start" else footage.frames[: footage.count - extra]
    encoded = pipe.encode(fit_frames(kept, settings.size, mode))
    return Footage(footage.label, footage.record, pipe.vae, latents=encoded), settings


def _latents(footage: Footage) -> Tensor:
    assert footage.latents is not None
    return footage.latents


def _make(
    pipe: Pipeline,
    conditions: Sequence[Clip],
    settings: Settings,
    mode: Fit,
    prompt: str,
    negative_prompt: str,
    seed: int,
    callback: Callback | None,
    join: Callable[[Tensor], Tensor],
    task: dict[str, Any],
) -> GeneratedClip:
    """Sample the window, join its latents to the given ones and decode all of them."""
    prompts = check_prompts(prompt, negative_prompt)
    check_seed(seed)
    known, _ = resolve(conditions, Target(settings.frames, settings.size, pipe.defaults.fps, mode, pipe.vae))
    pipe.advise(settings, given=True)
    matrix = pipe.matrix(settings, known)
    text = pipe.encode_text([*prompts, negative_prompt])
    z = join(pipe.sample(matrix, (text[:1], text[1:]), settings, known=known, seed=seed, callback=callback))
    recipe = {
        **pipe.recipe(),
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        **settings.record(),
        "fit": mode,
        "seed": seed,
        "matrix": matrix.to_dict(),
        **task,
    }
    return GeneratedClip(pipe.decode(z), z, pipe.defaults.fps, matrix, recipe, prompt)
