"""Tasks as matrices: each function is one short expression that returns a `TimestepMatrix`.

Text to video, every frame together:            synchronous(grid(30), 21)
Image to video, first latent frame given:       conditioned(synchronous(grid(30), 21), {0: 0.0})
Start and end, each a little free:              conditioned(synchronous(grid(30), 21), {0: 0.2, 20: 0.4})
Later frames denoised later:                    staircase(grid(30), 21, block=3, delay=5)
The same, starting from an image:               conditioned(staircase(grid(30), 21, 3, 5), {0: 0.0})
Chunk after chunk, seeing only what exists:     chunked(grid(4), 21, block=3)
A window that rolls over a long clip:           sliding_window(grid(20), 81, window=15, block=3, context=6)

`sigmas` is always a descent [S + 1] such as `sigmas.grid` returns.
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
    """All frames together, the ordinary text-to-video schedule; S steps."""
    return staircase(sigmas, frames, delay=0)


def conditioned(matrix: TimestepMatrix, multipliers: Mapping[int, float]) -> TimestepMatrix:
    """Scale the columns of given frames: {latent frame: m ∈ [0, 1]} (arXiv 2507.16116, Algorithm 1 and App. B).

    m = 0 holds the frame clean, bit for bit. Between, it starts at m·σ_0 (give it that noise once, with `add_noise`),
    carries m·σ, which is also what the model receives, and ends at the model's own reconstruction. m = 1 leaves the
    frame unconditioned.
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
    """The same levels, each step predicting x0 and adding fresh noise: for few-step distilled models."""
    return replace(matrix, renoise=torch.ones_like(matrix.renoise))


def staircase(sigmas: Tensor, frames: int, block: int = 1, delay: int = 1) -> TimestepMatrix:
    """Each block of frames starts `delay` steps after the one before; waiting blocks are visible as noise.

    S + (blocks − 1)·delay steps. When `block` does not divide `frames` the last block is shorter; no frame is lost.
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
    """Given frames, a ramp of buffer frames, then the frames to make, in one sequence (TIC-FT, arXiv 2506.00996).

    The given frames are held clean. Buffer b of B is held at σ = b / (B + 1) while the targets descend; when they reach
    its level it is released and descends with them, or with `release=False` it stays held and comes out noisy.
    `model_sigma="scalar"` passes the targets' σ to the model for every frame, as a model with one timestep per clip
    expects.
    """
    if given < 0 or buffers < 0 or targets < 1:
        counts = f"{given} given, {buffers} buffer and {targets} target frames"
        raise InputError(f"an in-context schedule of {counts}; give at least 1 target and no negative counts")
    frames = given + buffers + targets
    descent = synchronous(sigmas, frames).sigma
    ramp = torch.arange(1, buffers + 1, dtype=torch.float64) / (buffers + 1)
    cap = torch.cat([torch.zeros(given), ramp, torch.ones(targets)])
    carried = torch.minimum(descent, cap)
    if not release:
        carried[:, given : given + buffers] = ramp
    return TimestepMatrix.from_sigma(carried, model_sigma=descent[:-1] if model_sigma == "scalar" else None)


def chunked(sigmas: Tensor, frames: int, block: int, context: int | None = None) -> TimestepMatrix:
    """Autoregressive: a chunk of `block` frames finishes before the next starts. S·chunks steps.

    A chunk sees itself and the last `context` finished frames (None: all of them); later chunks do not exist yet.
    """
    return sliding_window(sigmas, frames, window=block, block=block, context=context)


def sliding_window(sigmas: Tensor, frames: int, window: int, block: int = 1, context: int | None = 0) -> TimestepMatrix:
    """A window of at most `window` frames rolls over the clip: clean ones leave, pure noise enters, block by block.

    The blocks in the window stand at evenly spaced levels. The last `context` finished frames stay visible behind it
    (None: all of them); frames ahead of it do not exist yet. `window` is a multiple of `block`.
    """
    if block < 1 or window < block or window % block:
        raise InputError(f"a window of {window} frames in blocks of {block}; make the window a multiple of the block")
    if context is not None and context < 0:
        raise InputError(f"context is {context} frames; give 0 or more, or None to keep every finished frame")
    steps = len(sigmas) - 1
    clock = _clock(sigmas, frames, block, delay=-(-steps // (window // block)))
    begun, done = clock[:-1] >= 0, clock[:-1] >= steps
    oldest = done.sum(dim=1, keepdim=True) - (frames if context is None else context)
    visible = begun & (~done | (torch.arange(frames) >= oldest))
    return TimestepMatrix.from_sigma(sigmas[clock.clamp(0, steps)], visible=visible)


def _clock(sigmas: Tensor, frames: int, block: int, delay: int) -> Tensor:
    """int64 [rows, frames]: how many of its own steps each frame has taken; below 0 waiting, from S on done."""
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise InputError(
            f"sigmas has shape {list(sigmas.shape)}; give a list of at least two noise levels, such as grid(30)"
        )
    if frames < 1 or block < 1 or delay < 0:
        raise InputError(f"{frames} frames in blocks of {block} with delay {delay}; give at least 1 frame, 1 and 0")
    start = torch.arange(frames) // block * delay
    return torch.arange(int(start[-1]) + len(sigmas))[:, None] - start
