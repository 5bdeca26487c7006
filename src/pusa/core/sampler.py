"""Walk a timestep matrix from noise and given frames to a clip, with any velocity model.

There is one sampler for every task, because the matrix contains the task. A step changes a frame from σ to σ':

    Euler        x ← x + (σ' − σ) v                                  (arXiv 2507.16116, Algorithm 1)
    DPM++ 2M     x ← x + (σ' − σ) v + (1 − σ'/σ) (h / 2h₋) (x̂ − x̂₋)      (Lu et al., arXiv 2211.01095)
    re-noise     x ← (1 − σ') x̂ + σ' ε

Here x̂ = x − σ v is the predicted clean frame, h is the step in log-SNR, and ₋ marks the step before. On the straight
path, DPM-Solver++ of first order is Euler, so DPM++ 2M is Euler plus a correction. The factor of the correction depends
on the matrix only. It is 0 in the first step of a frame, after a step that holds it, and at σ = 0 or 1, where h is
infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from pusa.core.objectives import interpolate, per_frame
from pusa.core.timesteps import TimestepMatrix
from pusa.errors import Cancelled, InputError, PusaError

add_noise = interpolate  # mixes a condition with noise of level m, see `schedules.conditioned`


@dataclass(frozen=True)
class Call:
    """Where in a walk the model is called. Both tensors are on the CPU, so reading them does not wait for a GPU.

    Attributes:
        step, steps: the step, from 0, and the number of steps.
        frames: int64 [V], the latent frames of the clip that are visible, in ascending order.
        held: bool [B, V], the frames that this step does not change.
    """

    step: int
    steps: int
    frames: Tensor
    held: Tensor


Velocity = Callable[[Tensor, Tensor, Any, Call], Tensor]
"""velocity(latents [B, C, V, H, W], sigma float32 [B, V], context, call) -> [B, C, V, H, W], which predicts ε − x0."""
Both = Callable[[Tensor, Tensor, Any, Call], tuple[Tensor, Tensor]]
"""The same for a pair of contexts: the velocities v₊ and v₋."""


@dataclass(frozen=True)
class Step:
    """The clip after a step of a walk.

    Attributes:
        index, steps: the step, from 0, and the number of steps.
        sigma: float32 [B, F], the noise levels after the step.
        latents: [B, C, F, H, W], float32 or float64. A value that is written into this tensor is where the next step
            starts.
        denoised: the prediction of the clean clip in this step, in the shape and type of `latents`.
        sigma_before: float32 [B, F], the noise levels before the step.
    """

    index: int
    steps: int
    sigma: Tensor
    latents: Tensor
    denoised: Tensor
    sigma_before: Tensor

    def __repr__(self) -> str:
        return f"Step({self.index + 1} of {self.steps})"


def sample(
    velocity: Velocity,
    latents: Tensor,
    matrix: TimestepMatrix | Sequence[TimestepMatrix],
    context: Any = None,
    *,
    solver: Literal["euler", "dpm++2m"] = "euler",
    noise: Callable[[int], Tensor] | None = None,
    callback: Callable[[Step], bool | None] | None = None,
    after: Step | None = None,
) -> Tensor:
    """Take all steps of `walk` and return the last latents, in the dtype of `latents`.

    callback: called after each step. If it returns False, sampling stops. The other arguments are those of `walk`.

    Raises:
        InputError, PusaError: see `walk`.
        Cancelled: the callback returned False.
    """
    x = latents if after is None else after.latents.to(latents.device)
    for step in walk(velocity, latents, matrix, context, solver=solver, noise=noise, after=after):
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
    after: Step | None = None,
) -> Iterator[Step]:
    """Walk through the matrix; each item is the clip after one step. To stop, leave the loop.

    Frames that a step holds stay bit-identical, whatever the model returns for them. The walk computes in float32 (in
    float64 for float64 latents) and is differentiable. To generate, iterate inside `torch.inference_mode()`.

    Args:
        velocity: the model. It is called once per step with the visible frames, in the dtype of `latents`. If the
            clips of a batch have different visible frames, it is called once for each group of clips.
        latents: [B, C, F, H, W], each frame at the noise level of the matrix's first row. They are not changed.
        matrix: one for all clips, or one for each clip. They may differ in steps and in visible frames.
        context: passed to the model. When it is called for some clips of a batch, each tensor of the context is cut
            to these clips along its first dimension, which is B, or 1 for a tensor that all clips share. The context
            is a tensor, or a tuple, list, dict or dataclass of them.
        solver: "euler", or "dpm++2m", which is of second order and keeps a history for each frame.
        noise: noise(step) -> [B, C, F, H, W], the new noise for a re-noising step.
        after: a step of an earlier walk with the same arguments. The walk goes on behind it, with the same bits; of
            `latents`, only the shape, the type and the device are used.

    Raises:
        InputError: the arguments do not fit together.
        PusaError: the model returned NaN or infinity for a frame that changes. The message names step and frame.
    """
    table = _Table.of(matrix, latents, solver)
    if noise is None and table.renoise.any():
        raise InputError("the matrix has re-noising steps; pass noise, a function from the step to new noise")
    if after is not None and (after.steps != table.steps or after.latents.shape != latents.shape):
        raise InputError(
            f"the walk has {table.steps} steps of latents {list(latents.shape)}, and cannot go on after {after!r} of "
            f"latents {list(after.latents.shape)}; give a step of the same walk"
        )
    return _steps(velocity, latents, table, context, noise, after)


def _steps(
    velocity: Velocity,
    latents: Tensor,
    table: _Table,
    context: Any,
    noise: Callable[[int], Tensor] | None,
    last: Step | None,
) -> Iterator[Step]:
    dtype = torch.promote_types(latents.dtype, torch.float32)

    def wide(values: Tensor) -> Tensor:
        return per_frame(values).to(latents.device, dtype if values.is_floating_point() else None)

    x = previous = latents.to(dtype)
    first = 0
    if last is not None:  # what a step depends on: the latents, and for DPM++ 2M the last prediction
        x, previous = (each.to(latents.device, dtype) for each in (last.latents, last.denoised))
        first = last.index + 1
    for s in range(first, table.steps):
        now, after = table.sigma[s], table.sigma[s + 1]
        moves = wide(now != after)
        v = _visible_velocity(velocity, x.to(latents.dtype), table, s, context).to(dtype)
        _check_finite(v, moves, s, table.steps)
        denoised = torch.where(moves, x - wide(now) * v, x)
        moved = x + wide(after - now) * v
        if table.correction[s].any():
            moved = moved + wide(table.correction[s]) * (denoised - previous)
        if noise is not None and table.renoise[s].any():
            renoised = wide(1 - after) * denoised + wide(after) * noise(s).to(x)
            moved = torch.where(wide(table.renoise[s]), renoised, moved)
        x, previous = torch.where(moves, moved, x), denoised
        yield Step(s, table.steps, after.float(), x, denoised, now.float())


def guided(
    velocity: Velocity, scale: float, *, interval: tuple[float, float] | None = None, both: Both | None = None
) -> Velocity:
    """Classifier-free guidance: return the velocity v₋ + scale·(v₊ − v₋), whose context is a pair (positive, negative).

    It calls the model twice per step. With a scale of 1 it calls the model once and ignores the negative context.

    interval: guide a clip only if the σ of its noisiest updating frame is in this interval, both ends included
    (arXiv 2404.07724). Elsewhere the velocity is v₊, and if no clip of the batch is guided, the model is called once.
    both: computes v₊ and v₋ instead of two calls of `velocity`.
    """
    if not math.isfinite(scale):
        raise InputError(f"guidance scale is {scale}; give a finite number, 1 for no guidance")
    if interval is not None and not 0 <= interval[0] <= interval[1] <= 1:
        raise InputError(f"guidance interval is {interval}; give two noise levels from 0 to 1, the lower one first")

    def combined(latents: Tensor, sigma: Tensor, context: Any, call: Call) -> Tensor:
        chosen = None if interval is None else _inside(interval, sigma, call.held)
        if scale == 1 or (chosen is not None and not chosen.any()):
            return velocity(latents, sigma, context[0], call)
        if both is not None:
            v_positive, v_negative = both(latents, sigma, context, call)
        else:
            v_positive, v_negative = (velocity(latents, sigma, branch, call) for branch in context)
        dtype = torch.promote_types(v_positive.dtype, torch.float32)
        v = v_negative.to(dtype) + scale * (v_positive.to(dtype) - v_negative.to(dtype))
        return v if chosen is None or chosen.all() else torch.where(per_frame(chosen[:, None]), v, v_positive.to(dtype))

    return combined


def _inside(interval: tuple[float, float], sigma: Tensor, held: Tensor) -> Tensor:
    """Return bool [B], whether the greatest σ of the frames that a step changes is in the interval."""
    greatest = sigma.masked_fill(held.to(sigma.device), 0).amax(dim=1)
    return (greatest >= interval[0]) & (greatest <= interval[1])


def by_noise(high: Velocity, low: Velocity, boundary: float) -> Velocity:
    """Return the velocity of two experts, as in Wan2.2 A14B.

    If the greatest σ of a clip's visible frames is at least `boundary` (in [0, 1]), the expert `high` computes all
    frames of the clip, otherwise the expert `low`. Clips of a batch can have different experts. An expert that no clip
    needs is not called.
    """
    if not 0 <= boundary <= 1:
        raise InputError(f"boundary is {boundary}; the noise level at which experts change lies between 0 and 1")

    def combined(latents: Tensor, sigma: Tensor, context: Any, call: Call) -> Tensor:
        is_high = sigma.amax(dim=1) >= boundary
        if is_high.all():
            return high(latents, sigma, context, call)
        if not is_high.any():
            return low(latents, sigma, context, call)
        v = torch.empty_like(latents, dtype=torch.promote_types(latents.dtype, torch.float32))
        for expert, chosen in ((high, is_high), (low, ~is_high)):
            clips = chosen.nonzero()[:, 0]
            their_call = replace(call, held=call.held[clips.to(call.held.device)])
            their_context = _of_clips(context, clips, len(latents))
            v[clips] = expert(latents[clips], sigma[clips], their_context, their_call).to(v.dtype)
        return v

    return combined


@dataclass(frozen=True)
class _Table:
    """The matrices of a batch, stacked. Shorter ones are padded with steps in which no frame is visible."""

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
    """Return the factor (1 − σ'/σ) · h / 2h₋, or 0 unless the step before moved the frame along the ODE the same way.

    The factor is also 0 where |h| > 4 |h₋|, because such an extrapolation multiplies the model's error. For example,
    the first step of a released buffer frame can be very short. In a shifted grid, |h| grows by a factor below 2.
    """
    log_snr = torch.log1p(-sigma) - torch.log(sigma)
    h = log_snr[1:] - log_snr[:-1]
    before = torch.cat([torch.full_like(h[:1], math.inf), torch.where(renoise, math.inf, h)[:-1]])
    usable = torch.isfinite(h) & torch.isfinite(before) & (h * before > 0) & (h.abs() <= 4 * before.abs())
    return torch.where(usable, (1 - sigma[1:] / sigma[:-1]) * h / (2 * before), 0)


def _visible_velocity(velocity: Velocity, x: Tensor, table: _Table, s: int, context: Any) -> Tensor:
    """Return the velocity, 0 for hidden frames. Clips with the same visible frames share a call."""
    sigma, visible, held = table.model_sigma[s], table.visible[s], table.sigma[s] == table.sigma[s + 1]
    if visible.all():
        call = Call(s, table.steps, torch.arange(x.shape[2]), held)
        return _checked(velocity, x, sigma.to(x.device), context, call)
    out = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
    rows = [tuple(row) for row in visible.tolist()]
    for group in filter(any, dict.fromkeys(rows)):
        clips = torch.tensor([b for b, row in enumerate(rows) if row == group])
        frames = torch.tensor(group).nonzero()[:, 0]
        their_context = _of_clips(context, clips, len(rows))
        call = Call(s, table.steps, frames, held[clips][:, frames])
        v = _checked(velocity, x[clips][:, :, frames], sigma[clips][:, frames].to(x.device), their_context, call)
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


def _of_clips(context: Any, clips: Tensor, batch: int) -> Any:
    """Return the context of some clips of a batch: each of its tensors is cut, and other values stay as they are."""
    if isinstance(context, Tensor):
        if len(clips) == batch or context.ndim == 0 or context.shape[0] == 1:
            return context
        if context.shape[0] != batch:
            shape = list(context.shape)
            raise InputError(f"context of shape {shape} for {batch} clips; its first dimension must be {batch}")
        return context[clips.to(context.device)]
    if isinstance(context, dict):
        return {key: _of_clips(value, clips, batch) for key, value in context.items()}
    if isinstance(context, tuple | list):
        return type(context)(_of_clips(value, clips, batch) for value in context)
    if is_dataclass(context) and not isinstance(context, type):
        return replace(context, **{f.name: _of_clips(getattr(context, f.name), clips, batch) for f in fields(context)})
    return context
