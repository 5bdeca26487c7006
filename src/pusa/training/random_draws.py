"""The random numbers of a training step: σ of each frame, noise, and dropped captions.

The noise levels are a function of (seed, lane, step). Noise and dropped captions are functions of (seed, lane, step, i)
for clip i of a batch. No stream of random numbers is consumed, so a resumed training draws the same numbers. A lane is
one micro-batch of a step: pass a of process r has lane a · processes + r.

σ of a clip has a pattern, a law and a range. The pattern says how the frames share levels (PTSS of arXiv 2507.16116
§2.3.2, and the tasks of inference). The law is the distribution of one level (`core.sigmas`). The range, low to high,
is that of the clip's noisiest frame, because at inference the noisiest frame decides which of two experts runs. A draw
has exactly the distribution of the pattern, under the condition that the noisiest frame is in the range. So the expert
for high noise is also trained on frames that are nearly clean or, as conditions, completely clean.

The draws are stratified over a batch: for B clips, [0, 1) has B equal parts, and the B quantiles of each frame fall
into different parts, in random order. The same holds for the levels and patterns of the clips. The distribution of one
clip is not changed, and its frames stay independent. The batch covers the levels more evenly, which reduces the
variance of the gradient.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pusa.core import schedules, sigmas
from pusa.errors import InputError
from pusa.training.config.sections import SigmaConfig

LEAST_FRAMES = {
    "text-to-video": 1,
    "independent": 1,
    "image-to-video": 2,
    "last-frame": 2,
    "staircase": 2,
    "start-end": 3,
    "keyframes": 3,
    "extension": 3,
    "backward-extension": 3,
    "completion": 5,
}
"""The least number of latent frames of a clip, for each task: at least one frame is left to generate."""
STAIRCASE_STEPS, STAIRCASE_DELAY = 30, 5
"""Rows are drawn from staircases with this number of sampling steps and a delay from 1 to this number of steps."""


class Draw(NamedTuple):
    """Noise levels. sigma: float32 [B, F], 0 to 1. kinds: the pattern or task of each clip."""

    sigma: Tensor
    kinds: list[str]


def generator(seed: int, lane: int, step: int, purpose: str) -> torch.Generator:
    """Return a generator on the CPU whose seed is a function of the arguments. (PyTorch uses 32 bits of a seed.)"""
    digest = hashlib.sha256(f"{seed} {lane} {step} {purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def noise_of(step: int, lane: int, shape: Sequence[int], seed: int) -> Tensor:
    """Return noise ε of `shape` [B, C, F, h, w], float32. The noise of clip i does not depend on the batch size."""
    each = [generator(seed, lane, step, f"noise {i}") for i in range(shape[0])]
    return torch.stack([torch.randn(list(shape[1:]), generator=rng) for rng in each])


def dropped(step: int, lane: int, batch: int, probability: float, seed: int) -> Tensor:
    """Return bool [B]: the clips whose caption is dropped. The value of clip i does not depend on the batch size."""
    each = [generator(seed, lane, step, f"caption {i}") for i in range(batch)]
    return torch.stack([torch.rand((), generator=rng) < probability for rng in each])


def sigmas_of(step: int, lane: int, batch: int, frames: int, config: SigmaConfig, seed: int) -> Draw:
    """Return the noise levels of a micro-batch of `batch` clips with `frames` latent frames; see the module docstring.

    Raises InputError if the clips are too short for the pattern, or if no level is in the range.
    """
    if batch < 1 or frames < 1:
        raise InputError(f"cannot draw noise levels for {batch} clips of {frames} frames; give at least 1 of each")
    rng = generator(seed, lane, step, "sigma")
    law, (low, high) = law_of(config), quantiles(config)
    part = _strata(batch, 3 + frames, rng)
    choice, level, place, own = part[:, 0], part[:, 1], part[:, 2], part[:, 3:]
    independent = law(_independent(own, level, place, low, high))
    clip_level = law(_below(low + (high - low) * level, high))
    shared = clip_level[:, None].expand(batch, frames)

    if config.pattern == "tasks":
        tasks, bounds = _mix(config, frames)
        kinds = [
            tasks[min(int(i), len(tasks) - 1)] for i in torch.searchsorted(bounds, choice.contiguous(), right=True)
        ]
        rows = [
            independent[i] if kind == "independent" else _row(kind, frames, clip_level[i], level[i], config, rng)
            for i, kind in enumerate(kinds)
        ]
        return Draw(torch.stack(rows).float(), kinds)
    if config.pattern == "first-clean":
        if frames < 2:
            raise InputError(
                "sigma.pattern first-clean leaves no frame to train in clips of 1 latent frame; use longer clips"
            )
        sigma = shared.clone()
        sigma[:, 0] = 0
        return Draw(sigma.float(), ["first-clean"] * batch)
    p = {"independent": 1.0, "shared": 0.0, "ptss": config.p}[config.pattern]
    is_independent = choice < p
    sigma = torch.where(is_independent[:, None], independent, shared)
    return Draw(sigma.float(), ["independent" if each else "shared" for each in is_independent.tolist()])


def law_of(config: SigmaConfig) -> sigmas.Law:
    """Return the quantile function of one σ."""
    if config.law == "shifted":
        return sigmas.shifted(config.shift, config.levels)
    return sigmas.logit_normal(config.mean, config.std) if config.law == "logit-normal" else sigmas.uniform


def quantiles(config: SigmaConfig) -> tuple[float, float]:
    """Return the part [a, b) of [0, 1) that the law maps to the range sigma.low to sigma.high."""
    low, high = _below_level(config, config.low), _below_level(config, config.high)
    if config.law == "shifted" and config.levels:
        n = config.levels  # the levels are those of k / n, k = 1 … n, each of the same probability
        first, last = max(1, math.ceil(low * n - 1e-9)), math.floor(high * n + 1e-9)
        low, high = (first - 1 + 1e-9) / n, (last - 1e-9) / n
    if low >= high:
        raise InputError(
            f"No noise level is between sigma.low {config.low:g} and sigma.high {config.high:g} under the law "
            f"{config.law}; widen the range or change the law."
        )
    return low, high


def _below_level(config: SigmaConfig, level: float) -> float:
    """Return the probability of a σ below `level`, for the continuous law."""
    if config.law == "shifted":
        return level / (config.shift - (config.shift - 1) * level)
    if config.law == "logit-normal" and 0 < level < 1:
        z = (math.log(level / (1 - level)) - config.mean) / config.std
        return 0.5 * math.erfc(-z / math.sqrt(2))
    return level


def _strata(batch: int, columns: int, rng: torch.Generator) -> Tensor:
    """Return float64 [B, columns] in [0, 1): rows are independent and uniform, and each column has one per B-th."""
    order = torch.stack([torch.randperm(batch, generator=rng) for _ in range(columns)], dim=1)
    return (order + torch.rand(batch, columns, dtype=torch.float64, generator=rng)) / batch


def _independent(own: Tensor, level: Tensor, place: Tensor, low: float, high: float) -> Tensor:
    """Return independent quantiles [B, F], under the condition that the greatest of each row is in [low, high).

    The greatest M has P(M ≤ m) = m^F and is equally likely at each place. The others are uniform below it.
    """
    if low == 0:
        return _below(own * high, high)
    frames = own.shape[1]
    greatest = (low**frames + level * (high**frames - low**frames)) ** (1 / frames)
    greatest = _below(greatest.clamp(min=low), high)[:, None]
    return (own * greatest).scatter(1, (place * frames).long()[:, None], greatest)


def _below(u: Tensor, bound: float) -> Tensor:
    """Keep quantiles below `bound`: rounding may reach it, and a law with discrete levels has a step there."""
    return u.clamp(max=math.nextafter(bound, 0))


def _mix(config: SigmaConfig, frames: int) -> tuple[list[str], Tensor]:
    """Return the tasks that are possible with clips of this length, and the end of each one's part of [0, 1)."""
    shares = {task: share for task, share in config.tasks.items() if share > 0 and frames >= LEAST_FRAMES[task]}
    if not shares:
        raise InputError(
            f"Clips of {frames} latent frames are too short for all tasks of sigma.tasks; add text-to-video."
        )
    ends = torch.tensor(list(shares.values()), dtype=torch.float64).cumsum(0)
    return list(shares), ends / ends[-1]


def _row(task: str, frames: int, level: Tensor, quantile: Tensor, config: SigmaConfig, rng: torch.Generator) -> Tensor:
    """Return float64 [F]: a row of the task's matrix at inference, with the generated frames at `level`."""
    if task == "staircase":
        delay = 1 + int(torch.randint(STAIRCASE_DELAY, (), generator=rng))
        levels = schedules.staircase(sigmas.grid(STAIRCASE_STEPS, config.shift), frames, delay=delay).model_sigma
        noisiest = levels.max(dim=1).values
        rows = levels[(noisiest >= config.low) & (noisiest <= config.high)]
        if not len(rows):
            raise InputError(
                f"No row of a staircase has its noisiest frame between sigma.low {config.low:g} and sigma.high "
                f"{config.high:g}; widen the range or remove staircase from sigma.tasks."
            )
        return rows[int(quantile * len(rows))]
    given = _given(task, frames, rng)
    noise = config.condition_noise * torch.rand(len(given), dtype=torch.float64, generator=rng)
    descent = torch.stack([level, torch.zeros_like(level)])
    matrix = schedules.conditioned(
        schedules.synchronous(descent, frames), dict(zip(given, noise.tolist(), strict=True))
    )
    return matrix.model_sigma[0]


def _given(task: str, frames: int, rng: torch.Generator) -> list[int]:
    """Return the given latent frames of a task. Where the task allows it, number and places are drawn uniformly."""

    def between(least: int, most: int) -> int:
        return least + int(torch.randint(max(1, most - least + 1), (), generator=rng))

    every = list(range(frames))
    match task:
        case "image-to-video":
            return [0]
        case "last-frame":
            return [frames - 1]
        case "start-end":
            return [0, frames - 1]
        case "keyframes":
            return sorted(torch.randperm(frames, generator=rng)[: between(2, min(4, frames - 1))].tolist())
        case "extension":
            return every[: between(2, frames // 2 + 1)]
        case "backward-extension":
            return every[-between(2, frames // 2 + 1) :]
        case "completion":
            return every[: between(2, frames // 4)] + every[-between(2, frames // 4) :]
    return []
