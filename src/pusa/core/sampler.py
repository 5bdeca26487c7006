"""Walk a timestep matrix: from noise (and given frames) to a clip, with any velocity model.

One sampler serves every task, because the task is in the matrix. A step moves frame f from σ to σ' by

    Euler        x ← x + (σ' − σ) v                                  (arXiv 2507.16116, Algorithm 1)
    DPM++ 2M     x ← x + (σ' − σ) v + (1 − σ'/σ) (h / 2h₋) (x̂ − x̂₋)      (Lu et al., arXiv 2211.01095)
    re-noise     x ← (1 − σ') x̂ + σ' ε

with x̂ = x − σ v the predicted clean frame, h the step in log-SNR, and ₋ the step before. On the straight path the
first-order DPM-Solver++ is Euler, so the second-order one is Euler plus a correction, whose factor per step and frame
follows from the matrix alone: 0 in a frame's own first step, after a hold, and next to σ = 0 or 1 (h is infinite).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from pusa.core.objectives import Velocity, interpolate, per_frame
from pusa.core.timesteps import TimestepMatrix
from pusa.errors import Cancelled, InputError, PusaError

add_noise = interpolate  # the same path: give a condition frame the noise m with which its column starts


@dataclass(frozen=True)
class Step:
    """What a callback sees after a step: its 0-based `index` of `steps`, and the clip as it stands.

    `latents` [B, C, F, H, W] carry `sigma` [B, F]; `denoised` is the step's prediction of the clean clip.
    """

    index: int
    steps: int
    sigma: Tensor
    latents: Tensor
    denoised: Tensor


def sample(
    velocity: Velocity,
    latents: Tensor,
    matrix: TimestepMatrix | Sequence[TimestepMatrix],
    context: Any = None,
    *,
    solver: Literal["euler", "dpm++2m"] = "euler",
    noise: Callable[[int], Tensor] | None = None,
    callback: Callable[[Step], bool | None] | None = None,
) -> Tensor:
    """Carry `latents` through the matrix and return what comes out, in their dtype; the input is not changed.

    Args:
        velocity: the model; called once per step with the visible frames, in the dtype of `latents`.
        latents: [B, C, F, H, W], each frame at the noise level of the matrix's first row.
        matrix: one for all clips, or one per clip; they may differ in length and in what is visible.
        context: handed to the model. Where clips of a batch go separate ways, tensors in it (alone, or in tuples,
            lists and dicts) are cut along their first dimension, which is B, or 1 for all.
        solver: "euler", or "dpm++2m", second order with a history per frame.
        noise: noise(step) -> [B, C, F, H, W], the fresh noise of a re-noising step.
        callback: called after each step; returning False stops the run.

    Held frames are bit-identical, whatever the model says about them. The walk keeps float32 (float64 if given) and is
    differentiable; wrap it in `torch.inference_mode()` to generate.

    Raises:
        InputError: the arguments do not fit together.
        PusaError: the model returned NaN or infinity for a frame that moves; the message names the step.
        Cancelled: the callback returned False.
    """
    table = _Table.of(matrix, latents, solver)
    if noise is None and table.renoise.any():
        raise InputError("the matrix has re-noising steps; pass noise, a function from the step to fresh noise")
    exact = torch.promote_types(latents.dtype, torch.float32)

    def wide(values: Tensor) -> Tensor:
        return per_frame(values).to(latents.device, exact if values.is_floating_point() else None)

    x = previous = latents.to(exact)
    for s in range(table.steps):
        now, then = table.state[s], table.state[s + 1]
        moves = wide(now != then)
        v = _visible_velocity(velocity, x.to(latents.dtype), table.told[s], table.visible[s], context).to(exact)
        _check_finite(v, moves, s, table.steps)
        denoised = torch.where(moves, x - wide(now) * v, x)
        moved = x + wide(then - now) * v
        if table.correction[s].any():
            moved = moved + wide(table.correction[s]) * (denoised - previous)
        if noise is not None and table.renoise[s].any():
            fresh = wide(1 - then) * denoised + wide(then) * noise(s).to(x)
            moved = torch.where(wide(table.renoise[s]), fresh, moved)
        x, previous = torch.where(moves, moved, x), denoised
        if callback and callback(Step(s, table.steps, then.float(), x, denoised)) is False:
            raise Cancelled(f"stopped after step {s + 1} of {table.steps}")
    return x.to(latents.dtype)


def guided(velocity: Velocity, scale: float, *, batched: bool = False) -> Velocity:
    """Classifier-free guidance, v₋ + scale·(v₊ − v₋); the context becomes a pair (conditional, unconditional).

    Two calls of the model per step, or one with twice the batch; scale 1 makes one call and ignores the second.
    """
    if not math.isfinite(scale):
        raise InputError(f"guidance scale is {scale}; give a finite number, 1 for no guidance")

    def combined(latents: Tensor, sigma: Tensor, context: Any) -> Tensor:
        given, empty = context
        if scale == 1:
            return velocity(latents, sigma, given)
        if batched:
            both = _each_tensor(partial(_twice, batch=len(latents)), given, empty)
            towards, away = velocity(torch.cat([latents, latents]), torch.cat([sigma, sigma]), both).chunk(2)
        else:
            towards, away = velocity(latents, sigma, given), velocity(latents, sigma, empty)
        exact = torch.promote_types(towards.dtype, torch.float32)
        return away.to(exact) + scale * (towards.to(exact) - away.to(exact))

    return combined


def by_noise(high: Velocity, low: Velocity, boundary: float) -> Velocity:
    """Two experts, as Wan2.2 A14B has them: a clip whose noisiest frame is told σ >= boundary asks `high`, else `low`.

    That noise level is `TimestepMatrix.master`, so one expert serves all frames of a step, conditioned ones at low
    noise too. Of a batch each clip asks its own; an expert that no clip needs is not asked.
    """
    if not 0 <= boundary <= 1:
        raise InputError(f"boundary is {boundary}; the noise level at which experts change lies between 0 and 1")

    def chosen(latents: Tensor, sigma: Tensor, context: Any) -> Tensor:
        noisy = sigma.amax(dim=1) >= boundary
        if noisy.all():
            return high(latents, sigma, context)
        if not noisy.any():
            return low(latents, sigma, context)
        v = torch.empty_like(latents, dtype=torch.promote_types(latents.dtype, torch.float32))
        for expert, rows in ((high, noisy), (low, ~noisy)):
            clips = rows.nonzero()[:, 0]
            part = _each_tensor(partial(_cut, clips=clips, batch=len(latents)), context)
            v[clips] = expert(latents[clips], sigma[clips], part).to(v.dtype)
        return v

    return chosen


@dataclass(frozen=True)
class _Table:
    """The matrices of a batch side by side, the shorter ones padded with steps in which nothing is visible."""

    state: Tensor  # float64 [S + 1, B, F]
    told: Tensor  # float32 [S, B, F]
    visible: Tensor  # bool [S, B, F]
    renoise: Tensor  # bool [S, B, F]
    correction: Tensor  # float64 [S, B, F], the factor of x̂ − x̂₋

    @property
    def steps(self) -> int:
        return self.told.shape[0]

    @classmethod
    def of(cls, matrix: TimestepMatrix | Sequence[TimestepMatrix], latents: Tensor, solver: str) -> _Table:
        if latents.ndim != 5 or not latents.is_floating_point():
            raise InputError(f"latents are {latents.dtype} {list(latents.shape)}; give floating point [B, C, F, H, W]")
        batch, frames = latents.shape[0], latents.shape[2]
        matrices = [matrix] * batch if isinstance(matrix, TimestepMatrix) else list(matrix)
        if len(matrices) != batch:
            raise InputError(f"{len(matrices)} matrices for {batch} clips; give one for all or one per clip")
        for m in matrices:
            if m.frames != frames:
                raise InputError(f"the matrix has {m.frames} frames and the latents have {frames}; make them agree")
        if solver not in ("euler", "dpm++2m"):
            raise InputError(f"solver is {solver!r}; use 'euler' or 'dpm++2m'")
        steps = max(m.steps for m in matrices)
        row = torch.arange(steps)
        at = [row.clamp(max=m.steps - 1) for m in matrices]
        running = torch.stack([row < m.steps for m in matrices], dim=1)[..., None]

        def side_by_side(name: str) -> Tensor:
            return torch.stack([getattr(m, name)[i] for m, i in zip(matrices, at, strict=True)], dim=1)

        state = torch.stack([m.state[torch.arange(steps + 1).clamp(max=m.steps)] for m in matrices], dim=1)
        told, visible = side_by_side("told").float(), side_by_side("visible") & running
        renoise = (side_by_side("renoise")[..., None] & running).expand_as(told)
        correction = _second_order(state, renoise) if solver == "dpm++2m" else torch.zeros_like(state[1:])
        return cls(state, told, visible, renoise, correction)


def _second_order(state: Tensor, renoise: Tensor) -> Tensor:
    """(1 − σ'/σ) · h / 2h₋ where a frame goes on as it went in the ODE step before; elsewhere 0.

    Not where the step is over four times as long as that one, as when a buffer frame is released just below its level:
    extrapolating so far multiplies the model's error. The steps of a shifted grid grow by less than two.
    """
    log_snr = torch.log1p(-state) - torch.log(state)
    h = log_snr[1:] - log_snr[:-1]
    before = torch.cat([torch.full_like(h[:1], math.inf), torch.where(renoise, math.inf, h)[:-1]])
    known = torch.isfinite(h) & torch.isfinite(before) & (h * before > 0) & (h.abs() <= 4 * before.abs())
    return torch.where(known, (1 - state[1:] / state[:-1]) * h / (2 * before), 0)


def _visible_velocity(velocity: Velocity, x: Tensor, told: Tensor, visible: Tensor, context: Any) -> Tensor:
    """The velocity of the visible frames, 0 for hidden ones; clips that see the same frames share a call."""
    if visible.all():
        return _checked(velocity, x, told.to(x.device), context)
    out = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
    rows = [tuple(row) for row in visible.tolist()]
    for seen in filter(any, dict.fromkeys(rows)):
        clips = torch.tensor([b for b, row in enumerate(rows) if row == seen])
        frames = torch.tensor(seen).nonzero()[:, 0]
        part = _each_tensor(partial(_cut, clips=clips, batch=len(rows)), context)
        v = _checked(velocity, x[clips][:, :, frames], told[clips][:, frames].to(x.device), part)
        out[clips[:, None], :, frames] = v.to(out.dtype).transpose(1, 2)
    return out


def _checked(velocity: Velocity, x: Tensor, sigma: Tensor, context: Any) -> Tensor:
    v = velocity(x, sigma, context)
    if v.shape != x.shape:
        raise InputError(f"the velocity of latents {list(x.shape)} has shape {list(v.shape)}; they must agree")
    return v


def _check_finite(v: Tensor, moves: Tensor, step: int, steps: int) -> None:
    bad = ~torch.isfinite(v) & moves
    if bad.any():
        clip, _, frame, _, _ = bad.nonzero()[0].tolist()
        raise PusaError(
            f"the model returned NaN or infinity at step {step + 1} of {steps}, clip {clip}, latent frame {frame}; "
            "run it in bfloat16 or float32 rather than float16, and check its weights and the strengths of LoRAs"
        )


def _cut(values: Tensor, clips: Tensor, batch: int) -> Tensor:
    if len(clips) == batch or values.ndim == 0 or values.shape[0] == 1:
        return values
    if values.shape[0] != batch:
        raise InputError(
            f"context of shape {list(values.shape)} beside {batch} clips; its first dimension must be {batch}"
        )
    return values[clips.to(values.device)]


def _twice(given: Tensor, empty: Tensor, batch: int) -> Tensor:
    return torch.cat([half.expand(batch, *half.shape[1:]) for half in (given, empty)])


def _each_tensor(function: Callable[..., Any], *trees: Any) -> Any:
    """Apply `function` to the tensors of equally built trees of tuples, lists and dicts; the rest is left as it is."""
    first = trees[0]
    if isinstance(first, Tensor):
        return function(*trees)
    if isinstance(first, dict):
        return {key: _each_tensor(function, *(tree[key] for tree in trees)) for key in first}
    if isinstance(first, tuple | list):
        return type(first)(_each_tensor(function, *parts) for parts in zip(*trees, strict=True))
    return first
