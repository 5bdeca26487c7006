"""The training loop that the three recipes share: resumable, seeded by (seed, step), logged as JSON lines.

Run a recipe again and it goes on where its last checkpoint was. Batches and noise are functions of (seed, step), so an
interrupted run and an uninterrupted one see the same data. Under `torchrun`, every process has a batch of its own, and
the mean of their gradients counts.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from muon import Muon, bfloat16
from torch import Tensor, nn

__all__ = ["bfloat16", "generator", "learning_rate", "save_atomic", "train"]


def generator(seed: int, step: int) -> torch.Generator:
    """Randomness as a function of (seed, step), never of a consumed stream."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1)[0]))


def join() -> tuple[int, int]:
    """(number of this process, number of all) under `torchrun`, else (0, 1)."""
    if "RANK" not in os.environ:
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return dist.get_rank(), dist.get_world_size()


def average_gradients(parameters: Iterable[nn.Parameter], processes: int) -> None:
    """The mean of every gradient over all processes, in one message."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    parts = (flat / processes).split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def save_atomic(value: object, path: Path) -> None:
    """`torch.save` that never leaves a half-written file under `path`."""
    partial = path.with_suffix(".partial")
    torch.save(value, partial)
    os.replace(partial, path)


def learning_rate(step: int, steps: int, peak: float, warmup: int, floor: float = 0.02) -> float:
    """Linear warm-up, then a cosine from `peak` to `floor * peak`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def train(
    out: Path,
    model: nn.Module,
    loss: Callable[[int, torch.Generator], Tensor],
    *,
    steps: int,
    lr: float,
    seed: int,
    parameters: Iterable[nn.Parameter] | None = None,
    warmup: int = 100,
    ema_decay: float = 0.998,
    weight_decay: float = 0.0,
    muon: Callable[[str], bool] = lambda name: False,
    muon_lr: float = 0.02,
    save_every: int = 100,
    after_save: Callable[[int, dict[str, Tensor]], None] | None = None,
) -> dict[str, Tensor]:
    """Minimise `loss(step, generator)` for `steps` and return the exponential moving average of the trained weights.

    `out` gets `state.pt` (weights, average, optimiser, step) and `log.jsonl` (step, loss, lr, seconds of work so far).
    The weight matrices whose names `muon` accepts are trained by Muon at `muon_lr`, the rest by AdamW at `lr`.
    `after_save(step, average)` runs at each checkpoint.
    """
    out.mkdir(parents=True, exist_ok=True)
    rank, processes = join()
    trained = set(map(id, parameters if parameters is not None else model.parameters()))
    named = {n: p for n, p in model.named_parameters() if id(p) in trained}
    hidden = [p for n, p in named.items() if muon(n) and p.ndim >= 2]
    others = [p for n, p in named.items() if not (muon(n) and p.ndim >= 2)]
    optimisers: list[torch.optim.Optimizer] = [Muon(hidden, muon_lr)] if hidden else []
    optimisers.append(torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.99), weight_decay=weight_decay))
    peaks = [optimiser.param_groups[0]["lr"] for optimiser in optimisers]
    average = {n: p.detach().clone() for n, p in named.items()}
    first, elapsed = 0, 0.0
    state_path = out / "state.pt"
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        first, elapsed = state["step"], state["elapsed"]
        with torch.no_grad():
            for n, p in named.items():
                p.copy_(state["weights"][n])
        average = state["average"]
        for optimiser, values in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(values)
        print(f"{out.name}: resuming at step {first} of {steps}", flush=True)
    log = (out / "log.jsonl").open("a")
    started, running = time.monotonic() - elapsed, None
    for step in range(first, steps):
        for optimiser, peak in zip(optimisers, peaks, strict=True):
            optimiser.param_groups[0]["lr"] = learning_rate(step, steps, peak, warmup)
        value = loss(step, generator(seed, step * processes + rank))
        value.backward()
        if processes > 1:
            average_gradients(named.values(), processes)
        norm = nn.utils.clip_grad_norm_(named.values(), 1.0)
        for optimiser in optimisers:
            if torch.isfinite(norm):
                optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            decay = min(ema_decay, (step + 1) / (step + 10))
            for n, p in named.items():
                average[n].lerp_(p, 1 - decay)
        item = float(value.detach())
        running = item if running is None else 0.98 * running + 0.02 * item
        elapsed = time.monotonic() - started
        if rank == 0 and (step % 20 == 0 or step == steps - 1):
            left = elapsed / (step + 1) * (steps - step - 1)
            line = {"step": step, "loss": item, "mean": running, "norm": float(norm), "seconds": round(elapsed, 1)}
            line |= {"processes": processes} if processes > 1 else {}
            print(json.dumps(line), file=log, flush=True)
            print(f"{out.name} {step}/{steps} loss {running:.5f} {elapsed:.0f}s, {left:.0f}s left", flush=True)
        if rank == 0 and ((step + 1) % save_every == 0 or step == steps - 1):
            weights = {n: p.detach() for n, p in named.items()}
            state = {"step": step + 1, "elapsed": elapsed, "weights": weights, "average": average}
            save_atomic(state | {"optimisers": [o.state_dict() for o in optimisers]}, state_path)
            if after_save is not None:
                after_save(step + 1, average)
    return average
