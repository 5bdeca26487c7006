"""Tasks as matrices: each function returns a `TimestepMatrix`.

Text to video, all frames together:             synchronous(grid(30), 21)
Image to video, the first latent frame given:   conditioned(synchronous(grid(30), 21), {0: 0.0})
Start and end, both of them may change a bit:   conditioned(synchronous(grid(30), 21), {0: 0.2, 20: 0.4})
Later frames start later:                       staircase(grid(30), 21, block=3, delay=5)
The same with a given first frame:              conditioned(staircase(grid(30), 21, 3, 5), {0: 0.0})
One chunk after another:                        chunked(grid(4), 21, block=3)
A window that rolls over a long clip:           sliding_window(grid(20), 81, window=15, block=3, context=6)

`sigmas` is a descent of S steps, [S + 1], as `sigmas.grid` returns it. `frames` is the number of latent frames. Values
out of range raise InputError.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from pusa.core.timesteps import TimestepMatrix
from pusa.errors import InputError


def synchronous(sigmas: Tensor, frames: int) -> TimestepMatrix:
    """All frames have the same σ in each step, as in ordinary text-to-video. The matrix has S steps."""
    return staircase(sigmas, frames, delay=0)


def conditioned(matrix: TimestepMatrix, multipliers: Mapping[int, float]) -> TimestepMatrix:
    """Multiply the columns of given frames by noise multipliers (arXiv 2507.16116, Algorithm 1 and appendix B).

    multipliers: {latent frame: m ∈ [0, 1]}. With m = 0 the frame stays clean and bit-identical. With 0 < m < 1 the
    frame has m·σ in each step, the model receives m·σ, and the result is the model's reconstruction of the frame; mix
    the given latents with noise of level m·σ_0 once, before sampling (see `add_noise`). With m = 1 the frame is not
    conditioned.
    """
    scale = torch.ones(matrix.frames, dtype=torch.float64)
    for frame, multiplier in multipliers.items():
        if not 0 <= frame < matrix.frames:
            raise InputError(f"condition on latent frame {frame}; the clip has latent frames 0 to {matrix.frames - 1}")
        if not 0 <= multiplier <= 1:
            raise InputError(f"noise multiplier {multiplier} on latent frame {frame}; give a number between 0 and 1")
        scale[frame] = multiplier
    return replace(matrix, sigma=matrix.sigma * scale, model_sigma=matrix.model_sigma * scale)


def renoising(matrix: TimestepMatrix) -> TimestepMatrix:
    """The same noise levels, but each step predicts x0 and adds new noise, for few-step distilled models."""
    return replace(matrix, renoise=torch.ones_like(matrix.renoise))


def staircase(sigmas: Tensor, frames: int, block: int = 1, delay: int = 1) -> TimestepMatrix:
    """Each block of `block` frames starts `delay` steps after the block before it. Waiting blocks are visible as noise.

    The matrix has S + (blocks − 1)·delay steps. If `block` does not divide `frames`, the last block is shorter.
    """
    clock = _clock(sigmas, frames, block, delay)
    return TimestepMatrix.from_sigma(sigmas[clock.clamp(0, len(sigmas) - 1)])


def in_context(
    sigmas: Tensor,
    given: int,
    buffers: int,
    targets: int,
    *,
    release: bool = True,
    model_sigma: Literal["frame", "scalar"] = "frame",
) -> TimestepMatrix:
    """Given frames, buffer frames at rising noise levels, and target frames (TIC-FT, arXiv 2506.00996).

    The given frames stay clean. Buffer b of B (from 1) is held at σ = b / (B + 1) until the targets reach this σ, and
    descends with them from there. With `release=False` it is held in all steps, and is noisy in the result. With
    `model_sigma="scalar"` the model receives the σ of the targets for every frame, for a model with one timestep per
    clip.
    """
    if given < 0 or buffers < 0 or targets < 1:
        counts = f"{given} given, {buffers} buffer and {targets} target frames"
        raise InputError(f"an in-context schedule has {counts}; give at least 1 target and no negative counts")
    frames = given + buffers + targets
    descent = synchronous(sigmas, frames).sigma
    ramp = torch.arange(1, buffers + 1, dtype=torch.float64) / (buffers + 1)
    highest = torch.cat([torch.zeros(given), ramp, torch.ones(targets)])
    sigma = torch.minimum(descent, highest)
    if not release:
        sigma[:, given : given + buffers] = ramp
    return TimestepMatrix.from_sigma(sigma, model_sigma=descent[:-1] if model_sigma == "scalar" else None)


def chunked(sigmas: Tensor, frames: int, block: int, context: int | None = None) -> TimestepMatrix:
    """Autoregressive: a chunk of `block` frames is finished before the next chunk starts. It has S·chunks steps.

    context: the number of finished frames that stay visible, None for all. Later chunks are hidden.
    """
    return sliding_window(sigmas, frames, window=block, block=block, context=context)


def sliding_window(sigmas: Tensor, frames: int, window: int, block: int = 1, context: int | None = 0) -> TimestepMatrix:
    """A window of at most `window` frames rolls over the clip, block by block: noise enters, and clean frames leave.

    The blocks in the window are about S·block/window steps apart. window: a multiple of `block`. context: the number
    of finished frames that stay visible behind the window, None for all. Frames ahead of the window are hidden.
    """
    if block < 1 or window < block or window % block:
        raise InputError(f"a window of {window} frames in blocks of {block}; make the window a multiple of the block")
    if context is not None and context < 0:
        raise InputError(f"context is {context} frames; give 0 or more, or None to keep every finished frame")
    steps = len(sigmas) - 1
    clock = _clock(sigmas, frames, block, delay=-(-steps // (window // block)))
    started, finished = clock[:-1] >= 0, clock[:-1] >= steps
    oldest = finished.sum(dim=1, keepdim=True) - (frames if context is None else context)
    visible = started & (~finished | (torch.arange(frames) >= oldest))
    return TimestepMatrix.from_sigma(sigmas[clock.clamp(0, steps)], visible=visible)


def _clock(sigmas: Tensor, frames: int, block: int, delay: int) -> Tensor:
    """Return int64 [rows, frames], the steps that each frame has taken: below 0 it waits, from S on it is finished."""
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise InputError(
            f"sigmas has shape {list(sigmas.shape)}; give a list of at least two noise levels, such as grid(30)"
        )
    for name, value, least in (("frames", frames, 1), ("block", block, 1), ("delay", delay, 0)):
        if value < least:
            raise InputError(f"{name} is {value}; give at least {least}")
    start = torch.arange(frames) // block * delay
    return torch.arange(int(start[-1]) + len(sigmas))[:, None] - start
