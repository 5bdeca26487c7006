"""Averages of the weights over training: a plain exponential one, or EDM2's power functions to choose from afterwards.

An average of the last steps is better than the last step, but how long it should be is known only at the end. EDM2
(Karras et al., arXiv 2312.02696, section 3) averages with the power function

    θ̂_γ(t) = ((γ + 1) / t^(γ+1)) ∫ τ^γ θ(τ) dτ        β_γ(t) = (1 − 1/t)^(γ+1)

whose length is a fixed share of the training so far: σ_rel, its relative standard deviation. Two of them are kept
running (σ_rel 0.05 and 0.10) and written down from time to time; any other length is, to good accuracy, a weighted sum
of what was written down, and `reconstruct` finds the weights by least squares.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pusa.errors import InputError
from pusa.media import replacing

POST_HOC = (0.05, 0.10)
"""σ_rel of the two power functions that are tracked; the second is what a run hands out when nothing else is asked."""


def gamma(sigma_rel: float) -> float:
    """The exponent γ whose power function has the relative standard deviation `sigma_rel`, in (0, 0.28)."""
    if not 0 < sigma_rel < 0.28:
        raise InputError(f"sigma_rel is {sigma_rel}; give a share of the training between 0 and 0.28, such as 0.1")
    t = sigma_rel**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


class Averages:
    """Running averages of named parameters, float32, on the parameters' devices.

    kind: None (none are kept: the weights themselves are handed out), a decay in (0, 1), or "post-hoc".
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], kind: float | Literal["post-hoc"] | None) -> None:
        self.kind = kind
        names = () if kind is None else tuple(f"{s:.2f}" for s in POST_HOC) if kind == "post-hoc" else ("ema",)
        self.values: dict[str, dict[str, Tensor]] = {
            name: {key: p.detach().float().clone() for key, p in parameters.items()} for name in names
        }

    @torch.no_grad()
    def update(self, parameters: Mapping[str, nn.Parameter], step: int) -> None:
        """Take in the weights after `step` ≥ 1 steps. A plain average begins short: decay ≤ (1 + t) / (10 + t)."""
        for name, average in self.values.items():
            if self.kind == "post-hoc":
                decay = (1 - 1 / step) ** (gamma(float(name)) + 1)
            else:
                decay = min(float(self.kind or 0), (1 + step) / (10 + step))
            for key, p in parameters.items():
                average[key].lerp_(p.detach().float(), 1 - decay)

    def best(self, parameters: Mapping[str, nn.Parameter]) -> Mapping[str, Tensor]:
        """What a run hands out: the average, the longer of two, or the weights where none is kept."""
        return {key: p.detach() for key, p in parameters.items()} if not self.values else [*self.values.values()][-1]


def write_snapshot(path: Path, values: Mapping[str, Mapping[str, Tensor]], step: int) -> None:
    """Write the two power-function averages after `step` steps as one safetensors file, atomically."""
    tensors = {
        f"{name}/{key}": value.contiguous().cpu() for name, kept in values.items() for key, value in kept.items()
    }
    with replacing(path) as part:
        save_file(tensors, str(part), metadata={"step": str(step), "sigma_rel": json.dumps([float(n) for n in values])})


def reconstruct(snapshots: Sequence[Path], sigma_rel: float, step: int | None = None) -> dict[str, Tensor]:
    """The average of relative length `sigma_rel` at the end of `step` steps (default: of all), from snapshots.

    Returns float32 tensors by parameter name. The sum over snapshots runs in float64. InputError when there are none.
    """
    kept: list[tuple[Path, int, float]] = []
    for path in snapshots:
        with safe_open(str(path), "pt") as file:
            facts = file.metadata() or {}
        kept += [(path, int(facts["step"]), s) for s in json.loads(facts["sigma_rel"])]
    end = max((at for _, at, _ in kept), default=0) if step is None else step
    kept = [entry for entry in kept if entry[1] <= end]
    if not kept:
        raise InputError("There is no snapshot to make an average of: train with train.ema = post-hoc and save.every.")
    times = np.array([at for _, at, _ in kept], float)
    exponents = np.array([gamma(s) for _, _, s in kept])
    target_time, target_exponent = np.array([end], float), np.array([gamma(sigma_rel)])
    among = _overlap(times[:, None], exponents[:, None], times[None], exponents[None])
    wanted = _overlap(times[:, None], exponents[:, None], target_time[None], target_exponent[None])
    weights = np.linalg.lstsq(among, wanted, rcond=None)[0][:, 0]

    total: dict[str, Tensor] = {}
    for (path, _, s), weight in zip(kept, weights, strict=True):
        with safe_open(str(path), "pt") as file:
            prefix = f"{s:.2f}/"
            for name in file.keys():  # noqa: SIM118
                if name.startswith(prefix):
                    value = file.get_tensor(name).double() * weight
                    key = name.removeprefix(prefix)
                    total[key] = total[key] + value if key in total else value
    return {key: value.float() for key, value in total.items()}


Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def _overlap(t_a: Floats, g_a: Floats, t_b: Floats, g_b: Floats) -> Floats:
    """∫ p_a p_b of two power functions that end at t_a and t_b."""
    ratio = t_a / t_b
    exponent = np.where(t_a < t_b, g_b, -g_a)
    return np.asarray((g_a + 1) * (g_b + 1) * ratio**exponent / ((g_a + g_b + 1) * np.maximum(t_a, t_b)))
