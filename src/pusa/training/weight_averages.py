"""Averages of the weights over a training: an exponential average, or the power-function averages of EDM2.

An average over the last steps is better than the weights of the last step. But the best length of the average is known
only at the end. EDM2 (Karras et al., arXiv 2312.02696, section 3) averages with the power function

    θ̂_γ(t) = ((γ + 1) / t^(γ+1)) ∫ τ^γ θ(τ) dτ        β_γ(t) = (1 − 1/t)^(γ+1)

whose length is a fixed share of the training so far: σ_rel, its relative standard deviation. Two such averages are
updated in each step (σ_rel 0.05 and 0.10) and written as snapshots from time to time. An average of another length is
nearly a weighted sum of the snapshots. `reconstruct` finds the weights of this sum by least squares.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pusa.errors import InputError
from pusa.files import replacing

POST_HOC = (0.05, 0.10)
"""σ_rel of the two averages that are updated in training; a run writes the weights of the second one."""
SNAPSHOTS = "snapshots"
"""The folder of the snapshots, inside the folder of a run."""
MISFIT = 0.25
"""The greatest allowed `Reconstruction.misfit`."""
LENGTHS = tuple(round(0.005 * i, 3) for i in range(1, 56))
"""Lengths σ_rel that are tried, to name the possible ones in an error message."""


def gamma(sigma_rel: float) -> float:
    """Return the exponent γ whose power function has the relative standard deviation `sigma_rel`, in (0, 0.28).

    Raises InputError outside this range.
    """
    if not 0 < sigma_rel < 0.28:
        raise InputError(f"sigma_rel is {sigma_rel}; give a share of the training between 0 and 0.28, such as 0.1")
    t = sigma_rel**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


class Averages:
    """Running averages of named parameters, float32, on the devices of the parameters.

    kind: None for no average, a decay in (0, 1) for an exponential average, or "post-hoc" for those of EDM2.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], kind: float | Literal["post-hoc"] | None) -> None:
        self.kind = kind
        names = () if kind is None else tuple(f"{s:.2f}" for s in POST_HOC) if kind == "post-hoc" else ("ema",)
        self.values: dict[str, dict[str, Tensor]] = {
            name: {key: p.detach().float().clone() for key, p in parameters.items()} for name in names
        }

    @torch.no_grad()
    def update(self, parameters: Mapping[str, nn.Parameter], step: int) -> None:
        """Include the weights after t = `step` ≥ 1 steps. An exponential average has a decay ≤ (1 + t) / (10 + t)."""
        for name, average in self.values.items():
            if self.kind == "post-hoc":
                decay = (1 - 1 / step) ** (gamma(float(name)) + 1)
            else:
                decay = min(float(self.kind or 0), (1 + step) / (10 + step))
            for key, p in parameters.items():
                average[key].lerp_(p.detach().float(), 1 - decay)

    def best(self, parameters: Mapping[str, nn.Parameter]) -> Mapping[str, Tensor]:
        """Return the weights that a run writes: the longest average, or the parameters if there is no average."""
        return {key: p.detach() for key, p in parameters.items()} if not self.values else [*self.values.values()][-1]


def write_snapshot(path: Path, values: Mapping[str, Mapping[str, Tensor]], step: int) -> None:
    """Write averages after `step` steps as one safetensors file, atomically. values: {σ_rel: {name: tensor}}."""
    tensors = {
        f"{name}/{key}": value.contiguous().cpu() for name, kept in values.items() for key, value in kept.items()
    }
    with replacing(path) as part:
        save_file(tensors, str(part), metadata={"step": str(step), "sigma_rel": json.dumps([float(n) for n in values])})


@dataclass(frozen=True)
class Reconstruction:
    """An average whose length was chosen after the training.

    weights: float32, by parameter name. step: the step at which the average ends. snapshots: the number of files in
    the sum. misfit: relative L2 distance between its weighting of the steps and that of the power function, at most
    MISFIT.
    """

    weights: Mapping[str, Tensor]
    step: int
    snapshots: int
    misfit: float


def snapshots_of(run: Path) -> dict[int, Path]:
    """Return the snapshots in the folder of a run, by step, in ascending order."""
    found = {int(path.stem.removeprefix("step_")): path for path in (run / SNAPSHOTS).glob("step_*.safetensors")}
    return dict(sorted(found.items()))


def reconstruct(snapshots: Sequence[Path], sigma_rel: float, step: int | None = None) -> Reconstruction:
    """Return the average of relative length `sigma_rel` at the end of `step` steps (default: all), from snapshots.

    The shares of the snapshots add up to 1 and are optimal in the sense of least squares. So a parameter that training
    did not change stays the same. The sum over snapshots is computed in float64. Raises InputError if there are no
    snapshots, none of `step`, if they are too far apart for this length, or if one cannot be read.
    """
    if not snapshots:
        raise InputError("There are no snapshots to average: train with train.ema = post-hoc and save.every.")
    exponent = gamma(sigma_rel)
    with ExitStack() as stack:
        kept = [average for path in snapshots for average in stack.enter_context(_opened(path))]
        steps = sorted({average.step for average in kept})
        end = steps[-1] if step is None else step
        if end not in steps:
            near = ", ".join(map(str, sorted(sorted(steps, key=lambda at: abs(at - end))[:3])))
            raise InputError(f"There is no snapshot of step {end}; the nearest are those of steps {near}.")
        kept = [average for average in kept if average.step <= end]
        times, exponents = np.array([a.step for a in kept], float), np.array([gamma(a.sigma_rel) for a in kept])
        shares, misfit = _shares(times, exponents, end, exponent)
        if misfit > MISFIT:
            good = [s for s in LENGTHS if _shares(times, exponents, end, gamma(s))[1] <= MISFIT]
            raise InputError(
                f"The snapshots are too few or too far apart for an average of relative length {sigma_rel:g}; they "
                f"allow {good[0]:g} to {good[-1]:g}."
            )
        names = kept[-1].names()
        if odd := [average for average in kept if average.names() != names]:
            raise InputError(f"The snapshot {odd[0].path} contains other parameters than the last one: remove it.")
        weights = {}
        for name in names:
            total = torch.zeros((), dtype=torch.float64)
            for average, share in zip(kept, shares.tolist(), strict=True):
                total = total + share * average.tensor(name).double()
            weights[name] = total.float()
    return Reconstruction(weights, end, len({average.path for average in kept}), misfit)


@dataclass(frozen=True)
class _Kept:
    """One average in an opened snapshot."""

    path: Path
    file: Any
    step: int
    sigma_rel: float

    @property
    def prefix(self) -> str:
        return f"{self.sigma_rel:.2f}/"

    def names(self) -> list[str]:
        return sorted(k.removeprefix(self.prefix) for k in self.file.keys() if k.startswith(self.prefix))  # noqa: SIM118

    def tensor(self, name: str) -> Tensor:
        value: Tensor = self.file.get_tensor(self.prefix + name)
        return value


@contextmanager
def _opened(path: Path) -> Iterator[list[_Kept]]:
    """Yield the averages in a snapshot. Raises InputError if it cannot be read."""
    try:
        file: Any = safe_open(str(path), "pt")
        about = file.metadata()
        kept = [_Kept(path, file, int(about["step"]), float(s)) for s in json.loads(about["sigma_rel"])]
    except Exception as error:
        raise InputError(f"The snapshot {path} is damaged: remove it to average the others.") from error
    with file:
        yield kept


Floats = NDArray[np.float64]


def _shares(times: Floats, exponents: Floats, end: float, exponent: float) -> tuple[Floats, float]:
    """Return the shares [N] of power functions that end at `times`, and the misfit.

    The shares add up to 1, and their sum is nearest to the power function with `exponent` that ends at `end`. They
    minimise wᵀ A w − 2 bᵀ w under 1ᵀ w = 1: A has the overlaps of the functions, b those with the target function.
    """
    among = _overlap(times[:, None], exponents[:, None], times[None], exponents[None])
    target = _overlap(times, exponents, np.array(end), np.array(exponent))
    itself = _overlap(np.array(end), np.array(exponent), np.array(end), np.array(exponent))
    ones = np.ones((len(times), 1))
    system = np.block([[among, ones], [ones.T, np.zeros((1, 1))]])
    shares = np.linalg.lstsq(system, np.append(target, 1.0), rcond=None)[0][:-1]
    rest = itself - 2 * shares @ target + shares @ among @ shares
    return shares, float(np.sqrt(max(0.0, rest / itself)))


def _overlap(t_a: Floats, g_a: Floats, t_b: Floats, g_b: Floats) -> Floats:
    """Return ∫ p_a p_b for two power functions that end at t_a and t_b."""
    ratio = t_a / t_b
    exponent = np.where(t_a < t_b, g_b, -g_a)
    return np.asarray((g_a + 1) * (g_b + 1) * ratio**exponent / ((g_a + g_b + 1) * np.maximum(t_a, t_b)))
