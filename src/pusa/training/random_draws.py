"""What is random in a training step: σ for every frame, noise, dropped captions. All of it functions of what is named.

A draw is determined by (seed, lane, step), and noise and captions by (seed, lane, step, i) for clip i of a batch; no
stream is consumed, so that resuming is counting on. A *lane* is one micro-batch of an optimiser step: pass a of process
r has lane a · processes + r.

σ of a clip has a pattern (how its frames share levels; PTSS of arXiv 2507.16116 §2.3.2 and the tasks of inference), a
law (how one level is distributed; `core.sigmas`) and a range. The range, low to high, is that of the clip's *noisiest
frame*, because that is what decides at inference which expert of a model with two is asked. A draw is the pattern's own
draw under the condition that its noisiest frame lies in the range, exactly: so the expert for high noise still sees
frames that are nearly or, as conditions, wholly clean.

Over a batch the draws are stratified: with B clips, every frame's B quantiles (and the clips' levels and patterns) fall
one each into B equal parts of [0, 1), in an order of its own. Each clip alone is distributed exactly as without it, its
frames independent as before; only the batch as a whole is more even, which makes the gradient less noisy.
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
"""The latent frames that a clip must have for a task to leave one to make."""
STAIRCASE_STEPS, STAIRCASE_DELAY = 30, 5
"""Rows are drawn from staircases over a grid of so many steps whose delay is 1 up to this."""


class Draw(NamedTuple):
    """sigma: float32 [B, F]. kinds: of each clip, the pattern or task that it was drawn as."""

    sigma: Tensor
    kinds: list[str]


def generator(seed: int, lane: int, step: int, purpose: str) -> torch.Generator:
    """Randomness as a function of its arguments, on the CPU. (PyTorch uses 32 bits of a seed: 4·10⁹ streams.)"""
    digest = hashlib.sha256(f"{seed} {lane} {step} {purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def noise_of(step: int, lane: int, shape: Sequence[int], seed: int) -> Tensor:
    """ε for a batch of `shape` [B, C, F, h, w], float32; clip i's is the same in a batch of any size."""
    each = [generator(seed, lane, step, f"noise {i}") for i in range(shape[0])]
    return torch.stack([torch.randn(list(shape[1:]), generator=rng) for rng in each])


def dropped(step: int, lane: int, batch: int, probability: float, seed: int) -> Tensor:
    """bool [B]: which clips are trained without their caption; clip i's is the same in a batch of any size."""
    each = [generator(seed, lane, step, f"caption {i}") for i in range(batch)]
    return torch.stack([torch.rand((), generator=rng) < probability for rng in each])


def sigmas_of(step: int, lane: int, batch: int, frames: int, config: SigmaConfig, seed: int) -> Draw:
    """The noise levels of a micro-batch of `batch` clips with `frames` latent frames; see the module's text.

    Raises InputError when the clips are too short for the pattern, or no level lies in the range.
    """
    if batch < 1 or frames < 1:
        raise InputError(f"cannot draw noise levels for {batch} clips of {frames} frames; give at least 1 of each")
    rng = generator(seed, lane, step, "sigma")
    law, (low, high) = law_of(config), quantiles(config)
    part = _strata(batch, 3 + frames, rng)
    choice, level, place, own = part[:, 0], part[:, 1], part[:, 2], part[:, 3:]
    apart = law(_apart(own, level, place, low, high))
    clip_level = law(_below(low + (high - low) * level, high))
    together = clip_level[:, None].expand(batch, frames)

    if config.pattern == "tasks":
        tasks, bounds = _mix(config, frames)
        kinds = [
            tasks[min(int(i), len(tasks) - 1)] for i in torch.searchsorted(bounds, choice.contiguous(), right=True)
        ]
        rows = [
            apart[i] if kind == "independent" else _row(kind, frames, clip_level[i], level[i], config, rng)
            for i, kind in enumerate(kinds)
        ]
        return Draw(torch.stack(rows).float(), kinds)
    if config.pattern == "first-clean":
        if frames < 2:
            raise InputError(
                "sigma.pattern first-clean leaves nothing to make in clips of 1 latent frame; use longer ones"
            )
        sigma = together.clone()
        sigma[:, 0] = 0
        return Draw(sigma.float(), ["first-clean"] * batch)
    p = {"independent": 1.0, "shared": 0.0, "ptss": config.p}[config.pattern]
    is_apart = choice < p
    sigma = torch.where(is_apart[:, None], apart, together)
    return Draw(sigma.float(), ["independent" if a else "shared" for a in is_apart.tolist()])


def law_of(config: SigmaConfig) -> sigmas.Law:
    """The quantile function of one σ."""
    if config.law == "shifted":
        return sigmas.shifted(config.shift, config.levels)
    return sigmas.logit_normal(config.mean, config.std) if config.law == "logit-normal" else sigmas.uniform


def quantiles(config: SigmaConfig) -> tuple[float, float]:
    """The part [a, b) of [0, 1) that the law maps to sigma.low … sigma.high."""
    low, high = _below_level(config, config.low), _below_level(config, config.high)
    if config.law == "shifted" and config.levels:
        n = config.levels  # the levels are those of k / n, k = 1 … n, each of the same probability
        first, last = max(1, math.ceil(low * n - 1e-9)), math.floor(high * n + 1e-9)
        low, high = (first - 1 + 1e-9) / n, (last - 1e-9) / n
    if low >= high:
        raise InputError(
            f"No noise level lies between sigma.low {config.low:g} and sigma.high {config.high:g} under the law "
            f"{config.law}; widen the range or change the law."
        )
    return low, high


def _below_level(config: SigmaConfig, level: float) -> float:
    """The probability of a σ below `level` under the (continuous) law."""
    if config.law == "shifted":
        return level / (config.shift - (config.shift - 1) * level)
    if config.law == "logit-normal" and 0 < level < 1:
        z = (math.log(level / (1 - level)) - config.mean) / config.std
        return 0.5 * math.erfc(-z / math.sqrt(2))
    return level


def _strata(batch: int, columns: int, rng: torch.Generator) -> Tensor:
    """float64 [B, columns] in [0, 1): each column has one number in each B-th, each row is independent and uniform."""
    order = torch.stack([torch.randperm(batch, generator=rng) for _ in range(columns)], dim=1)
    return (order + torch.rand(batch, columns, dtype=torch.float64, generator=rng)) / batch


def _apart(own: Tensor, level: Tensor, place: Tensor, low: float, high: float) -> Tensor:
    """Independent quantiles [B, F] under the condition that the greatest of each row lies in [low, high).

    The greatest M has P(M ≤ m) = m^F, is equally likely in each place, and the others are uniform below it.
    """
    if low == 0:
        return _below(own * high, high)
    frames = own.shape[1]
    greatest = (low**frames + level * (high**frames - low**frames)) ** (1 / frames)
    greatest = _below(greatest.clamp(min=low), high)[:, None]
    return (own * greatest).scatter(1, (place * frames).long()[:, None], greatest)


def _below(u: Tensor, bound: float) -> Tensor:
    """Rounding may reach the open end of an interval; the law's steps are taken just before it."""
    return u.clamp(max=math.nextafter(bound, 0))


def _mix(config: SigmaConfig, frames: int) -> tuple[list[str], Tensor]:
    """The tasks that clips of this length allow, and where each one's part of [0, 1) ends."""
    shares = {task: share for task, share in config.tasks.items() if share > 0 and frames >= LEAST_FRAMES[task]}
    if not shares:
        raise InputError(
            f"No task of sigma.tasks leaves anything to make in clips of {frames} latent frames; add text-to-video."
        )
    ends = torch.tensor(list(shares.values()), dtype=torch.float64).cumsum(0)
    return list(shares), ends / ends[-1]


def _row(task: str, frames: int, level: Tensor, quantile: Tensor, config: SigmaConfig, rng: torch.Generator) -> Tensor:
    """float64 [F]: a row of the matrix that the task has at inference, with its free frames at `level`."""
    if task == "staircase":
        delay = 1 + int(torch.randint(STAIRCASE_DELAY, (), generator=rng))
        told = schedules.staircase(sigmas.grid(STAIRCASE_STEPS, config.shift), frames, delay=delay).told
        noisiest = told.max(dim=1).values
        rows = told[(noisiest >= config.low) & (noisiest <= config.high)]
        if not len(rows):
            raise InputError(
                f"No row of a staircase has its noisiest frame between sigma.low {config.low:g} and sigma.high "
                f"{config.high:g}; widen the range or take staircase out of sigma.tasks."
            )
        return rows[int(quantile * len(rows))]
    given = _given(task, frames, rng)
    noise = config.condition_noise * torch.rand(len(given), dtype=torch.float64, generator=rng)
    descent = torch.stack([level, torch.zeros_like(level)])
    matrix = schedules.conditioned(
        schedules.synchronous(descent, frames), dict(zip(given, noise.tolist(), strict=True))
    )
    return matrix.told[0]


def _given(task: str, frames: int, rng: torch.Generator) -> list[int]:
    """The latent frames that the task is given; how many, and which, is drawn evenly where the task leaves it open."""

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
