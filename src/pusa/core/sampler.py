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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from pusa.core.objectives import interpolate, per_frame
from pusa.core.timesteps import TimestepMatrix
from pusa.errors import Cancelled, InputError, PusaError

add_noise = interpolate  # the same path: give a condition frame the noise m with which its column starts


@dataclass(frozen=True)
class Call:
    """The place of one model call in a walk. Both tensors lie on the CPU, so reading them never waits for a device.

    Attributes:
        step, steps: the 0-based step of S.
        frames: int64 [V], the latent frames of the clip that the call sees, in ascending order.
        held: bool [B, V], the frames that this step does not change.
    """

    step: int
    steps: int
    frames: Tensor
    held: Tensor


Velocity = Callable[[Tensor, Tensor, Any, Call], Tensor]
"""velocity(latents [B, C, V, H, W], sigma float32 [B, V], context, call) -> [B, C, V, H, W], which predicts ε − x0."""


@dataclass(frozen=True)
class Step:
    """The clip after a step of a walk.

    Attributes:
        index, steps: the 0-based step of S.
        sigma: float32 [B, F], the noise levels that the latents carry now.
        latents: [B, C, F, H, W], float32 or float64.
        denoised: the step's prediction of the clean clip, like `latents`.
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
    """Take every step of `walk` and return the last latents in the dtype of `latents`; the input is not changed.

    callback: called after each step; returning False stops the run. The other arguments are those of `walk`.

    Raises:
        InputError, PusaError: as `walk`.
        Cancelled: the callback returned False.
    """
    x = latents
    for step in walk(velocity, latents, matrix, context, solver=solver, noise=noise):
        x = step.latents
        if callback and callback(step) is False:
            raise Cancelled(f"stopped after step {step.index + 1} of {step.steps}")
    return x.to(latents.dtype)


def walk(
    velocity: Velocity,
    latents: Tensor,
    matrix: TimestepMatrix | Sequence[TimestepMatrix],
    context: Any = None,
    *,
    solver: Literal["euler", "dpm++2m"] = "euler",
    noise: Callable[[int], Tensor] | None = None,
) -> Iterator[Step]:
    """Carry `latents` through the matrix; each item is the clip after one step. Leave the loop to stop the run.

    Args:
        velocity: the model; called once per step with the visible frames, in the dtype of `latents`. Clips of a batch
            that see different frames are called one group after the other.
        latents: [B, C, F, H, W], each frame at the noise level of the matrix's first row; never changed.
        matrix: one for all clips, or one per clip; they may differ in length and in the visible frames.
        context: passed to the model. Where clips of a batch are called in groups, tensors in it (alone, or in tuples,
            lists, dicts and dataclasses) are cut along their first dimension, which is B, or 1 for all.
        solver: "euler", or "dpm++2m", second order with a history per frame.
        noise: noise(step) -> [B, C, F, H, W], the fresh noise of a re-noising step.

    Held frames are bit-identical, whatever the model returns for them. The walk keeps float32 (float64 if given) and is
    differentiable; consume it in `torch.inference_mode()` to generate.

    Raises:
        InputError: the arguments do not fit together.
        PusaError: the model returned NaN or infinity for a frame that moves; the message names the step.
    """
    table = _Table.of(matrix, latents, solver)
    if noise is None and table.renoise.any():
        raise InputError("the matrix has re-noising steps; pass noise, a function from the step to fresh noise")
    return _steps(velocity, latents, table, context, noise)


def _steps(
    velocity: Velocity, latents: Tensor, table: _Table, context: Any, noise: Callable[[int], Tensor] | None
) -> Iterator[Step]:
    exact = torch.promote_types(latents.dtype, torch.float32)

    def wide(values: Tensor) -> Tensor:
        return per_frame(values).to(latents.device, exact if values.is_floating_point() else None)

    x = previous = latents.to(exact)
    for s in range(table.steps):
        now, then = table.sigma[s], table.sigma[s + 1]
        moves = wide(now != then)
        v = _visible_velocity(velocity, x.to(latents.dtype), table, s, context).to(exact)
        _check_finite(v, moves, s, table.steps)
        denoised = torch.where(moves, x - wide(now) * v, x)
        moved = x + wide(then - now) * v
        if table.correction[s].any():
            moved = moved + wide(table.correction[s]) * (denoised - previous)
        if noise is not None and table.renoise[s].any():
            fresh = wide(1 - then) * denoised + wide(then) * noise(s).to(x)
            moved = torch.where(wide(table.renoise[s]), fresh, moved)
        x, previous = torch.where(moves, moved, x), denoised
        yield Step(s, table.steps, then.float(), x, denoised)


def guided(velocity: Velocity, scale: float) -> Velocity:
    """Classifier-free guidance, v₋ + scale·(v₊ − v₋); the context becomes a pair (conditional, unconditional).

    Two calls of the model per step; scale 1 makes one call and ignores the second context.
    """
    if not math.isfinite(scale):
        raise InputError(f"guidance scale is {scale}; give a finite number, 1 for no guidance")

    def combined(latents: Tensor, sigma: Tensor, context: Any, call: Call) -> Tensor:
        given, empty = context
        towards = velocity(latents, sigma, given, call)
        if scale == 1:
            return towards
        away = velocity(latents, sigma, empty, call)
        exact = torch.promote_types(towards.dtype, torch.float32)
        return away.to(exact) + scale * (towards.to(exact) - away.to(exact))

    return combined


def by_noise(high: Velocity, low: Velocity, boundary: float) -> Velocity:
    """Two experts, as in Wan2.2 A14B: `high` serves a clip whose noisiest visible frame has σ >= boundary, else `low`.

    One expert serves all frames of a step, also the conditioned ones at low noise. Each clip of a batch has its own
    expert; an expert that no clip needs is not called.
    """
    if not 0 <= boundary <= 1:
        raise InputError(f"boundary is {boundary}; the noise level at which experts change lies between 0 and 1")

    def chosen(latents: Tensor, sigma: Tensor, context: Any, call: Call) -> Tensor:
        noisy = sigma.amax(dim=1) >= boundary
        if noisy.all():
            return high(latents, sigma, context, call)
        if not noisy.any():
            return low(latents, sigma, context, call)
        v = torch.empty_like(latents, dtype=torch.promote_types(latents.dtype, torch.float32))
        for expert, rows in ((high, noisy), (low, ~noisy)):
            clips = rows.nonzero()[:, 0]
            part = _each_tensor(partial(_cut, clips=clips, batch=len(latents)), context)
            own = replace(call, held=call.held[clips.to(call.held.device)])
            v[clips] = expert(latents[clips], sigma[clips], part, own).to(v.dtype)
        return v

    return chosen


@dataclass(frozen=True)
class _Table:
    """The matrices of a batch side by side, the shorter ones padded with steps in which nothing is visible."""

    sigma: Tensor  # float64 [S + 1, B, F]
    model_sigma: Tensor  # float32 [S, B, F]
    visible: Tensor  # bool [S, B, F]
    renoise: Tensor  # bool [S, B, F]
    correction: Tensor  # float64 [S, B, F], the factor of x̂ − x̂₋

    @property
    def steps(self) -> int:
        return self.model_sigma.shape[0]

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

        sigma = torch.stack([m.sigma[torch.arange(steps + 1).clamp(max=m.steps)] for m in matrices], dim=1)
        model_sigma, visible = side_by_side("model_sigma").float(), side_by_side("visible") & running
        renoise = (side_by_side("renoise")[..., None] & running).expand_as(model_sigma)
        correction = _second_order(sigma, renoise) if solver == "dpm++2m" else torch.zeros_like(sigma[1:])
        return cls(sigma, model_sigma, visible, renoise, correction)


def _second_order(sigma: Tensor, renoise: Tensor) -> Tensor:
    """(1 − σ'/σ) · h / 2h₋ where a frame goes on as it went in the ODE step before; elsewhere 0.

    Not where the step is over four times as long as that one, as when a buffer frame is released just below its level:
    extrapolating so far multiplies the model's error. The steps of a shifted grid grow by less than two.
    """
    log_snr = torch.log1p(-sigma) - torch.log(sigma)
    h = log_snr[1:] - log_snr[:-1]
    before = torch.cat([torch.full_like(h[:1], math.inf), torch.where(renoise, math.inf, h)[:-1]])
    known = torch.isfinite(h) & torch.isfinite(before) & (h * before > 0) & (h.abs() <= 4 * before.abs())
    return torch.where(known, (1 - sigma[1:] / sigma[:-1]) * h / (2 * before), 0)


def _visible_velocity(velocity: Velocity, x: Tensor, table: _Table, s: int, context: Any) -> Tensor:
    """The velocity of the visible frames, 0 for hidden ones; clips that see the same frames share a call."""
    sigma, visible, held = table.model_sigma[s], table.visible[s], table.sigma[s] == table.sigma[s + 1]
    if visible.all():
        call = Call(s, table.steps, torch.arange(x.shape[2]), held)
        return _checked(velocity, x, sigma.to(x.device), context, call)
    out = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
    rows = [tuple(row) for row in visible.tolist()]
    for seen in filter(any, dict.fromkeys(rows)):
        clips = torch.tensor([b for b, row in enumerate(rows) if row == seen])
        frames = torch.tensor(seen).nonzero()[:, 0]
        part = _each_tensor(partial(_cut, clips=clips, batch=len(rows)), context)
        call = Call(s, table.steps, frames, held[clips][:, frames])
        v = _checked(velocity, x[clips][:, :, frames], sigma[clips][:, frames].to(x.device), part, call)
        out[clips[:, None], :, frames] = v.to(out.dtype).transpose(1, 2)
    return out


def _checked(velocity: Velocity, x: Tensor, sigma: Tensor, context: Any, call: Call) -> Tensor:
    v = velocity(x, sigma, context, call)
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


def _each_tensor(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply `function` to the tensors of a tree of tuples, lists, dicts and dataclasses; the rest is left as it is."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: _each_tensor(function, part) for key, part in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(_each_tensor(function, part) for part in tree)
    if is_dataclass(tree) and not isinstance(tree, type):
        return replace(tree, **{part.name: _each_tensor(function, getattr(tree, part.name)) for part in fields(tree)})
    return tree
