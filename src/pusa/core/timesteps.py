"""The central type: the noise level of every latent frame before every sampling step.

An ordinary video sampler walks a list of noise levels. Here the list is a matrix with one column per latent frame: each
row is a value of the vectorized timestep variable of arXiv 2507.16116. A task is a pattern in the matrix: a column of
zeros is a given frame, and a slanted band is a rolling window. `schedules` builds matrices, and `sampler` walks them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from pusa.errors import InputError

_FORMER_NAMES = {"state": "sigma", "told": "model_sigma"}


@dataclass(frozen=True, eq=False)
class TimestepMatrix:
    """Noise levels for S steps and F latent frames. A matrix is checked when it is built, and does not change later.

    Attributes:
        sigma: float64 [S + 1, F], the σ ∈ [0, 1] of each frame before step s. The last row is that of the result.
        model_sigma: float64 [S, F], the σ ∈ [0, 1] that the model receives. It equals `sigma[:-1]`, unless a method
            hides noise from the model.
        visible: bool [S, F], the frames that are in the sequence in step s. A hidden frame cannot change.
        renoise: bool [S]. False: step s follows the ODE, x + (σ' − σ) v. True: step s predicts x0 and adds new noise
            up to σ', for few-step distilled models.

    If a frame has the same σ before and after a step, the step *holds* it: it stays bit-identical. σ may also rise.
    """

    sigma: Tensor
    model_sigma: Tensor
    visible: Tensor
    renoise: Tensor

    def __post_init__(self) -> None:
        for field in fields(self):
            kind = torch.float64 if field.name in ("sigma", "model_sigma") else torch.bool
            values = getattr(self, field.name).detach().to("cpu", kind, copy=True)
            object.__setattr__(self, field.name, values)
        self._check_shapes()
        for name in ("sigma", "model_sigma"):
            values = getattr(self, name)
            if at := _first(~((values >= 0) & (values <= 1))):
                raise InputError(f"{name} is {values[at]:g} at {_where(*at)}; noise levels lie between 0 and 1")
        if at := _first(self.moves & ~self.visible):
            raise InputError(f"a frame changes while it is hidden, at {_where(*at)}; make it visible there or hold it")
        if at := _first(~self.visible.any(dim=1)):
            raise InputError(f"no frame is visible at step {at[0]}; leave that step out")
        if at := _first(~self.visible.any(dim=0)):
            raise InputError(f"frame {at[0]} is never visible; show it in at least one step or leave it out")

    def _check_shapes(self) -> None:
        if self.sigma.ndim != 2 or self.sigma.shape[0] < 2 or self.sigma.shape[1] < 1:
            raise InputError(
                f"sigma has shape {list(self.sigma.shape)}; give [S + 1, F], a row before each of S >= 1 steps and "
                "one after the last, and a column for each of F >= 1 latent frames"
            )
        steps, frames = self.sigma.shape[0] - 1, self.sigma.shape[1]
        for name, needed in (("model_sigma", [steps, frames]), ("visible", [steps, frames]), ("renoise", [steps])):
            if (shape := list(getattr(self, name).shape)) != needed:
                raise InputError(f"{name} has shape {shape}; with a sigma of {steps + 1} rows it must be {needed}")

    @classmethod
    def from_sigma(
        cls,
        sigma: Tensor,
        model_sigma: Tensor | None = None,
        visible: Tensor | None = None,
        renoise: Tensor | None = None,
    ) -> TimestepMatrix:
        """Return a matrix from the σ of the frames, [S + 1, F].

        By default the model receives these σ, all frames are visible, and every step follows the ODE.
        """
        rows = sigma[:-1] if sigma.ndim else sigma
        return cls(
            sigma=sigma,
            model_sigma=rows if model_sigma is None else model_sigma,
            visible=torch.ones_like(rows, dtype=torch.bool) if visible is None else visible,
            renoise=torch.zeros(rows.shape[:1], dtype=torch.bool) if renoise is None else renoise,
        )

    @property
    def steps(self) -> int:
        """S, the number of steps. The model runs once in each step, or twice with guidance."""
        return self.model_sigma.shape[0]

    @property
    def frames(self) -> int:
        """F, the number of latent frames."""
        return self.model_sigma.shape[1]

    @property
    def moves(self) -> Tensor:
        """bool [S, F]: the frames that step s changes."""
        return self.sigma[1:] != self.sigma[:-1]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TimestepMatrix):
            return NotImplemented
        return all(torch.equal(getattr(self, field.name), getattr(other, field.name)) for field in fields(self))

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, ready for JSON. Fields that have the default of `from_sigma` are left out."""
        plain = TimestepMatrix.from_sigma(self.sigma)
        return {
            field.name: getattr(self, field.name).tolist()
            for field in fields(self)
            if field.name == "sigma" or not torch.equal(getattr(self, field.name), getattr(plain, field.name))
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TimestepMatrix:
        """Return exactly the matrix that `to_dict` wrote. The field names of version 0.1 are accepted, too."""
        named = {_FORMER_NAMES.get(name, name): rows for name, rows in data.items()}
        known = {field.name for field in fields(cls)}
        if "sigma" not in named or not set(named) <= known or len(named) < len(data):
            raise InputError(
                f"a timestep matrix has 'sigma' and may have {sorted(known - {'sigma'})}; got {list(data)}"
            )
        try:
            arrays = {name: torch.tensor(rows, dtype=torch.float64) for name, rows in named.items()}
        except (TypeError, ValueError) as error:
            raise InputError(f"a timestep matrix has rows of numbers of equal length: {error}") from error
        return cls.from_sigma(**arrays)

    def __repr__(self) -> str:
        return f"TimestepMatrix({self.steps} steps, {self.frames} latent frames)"

    def __str__(self) -> str:
        """A table of noise levels. Neighbouring frames with equal columns share one column."""
        first = [f for f in range(self.frames) if f == 0 or not self._same_column(f - 1, f)]
        spans = list(zip(first, [f - 1 for f in first[1:]] + [self.frames - 1], strict=True))
        heads = [f"f{a}" if a == b else f"f{a}-{b}" for a, b in spans]
        lines = [
            [f"{s}{'~' if self.renoise[s] else ''}", *(self._cell(s, f) for f in first)] for s in range(self.steps)
        ]
        if len(lines) > 16:
            lines[8:-8] = [["..."] * (len(first) + 1)]
        lines = [["step", *heads], *lines, ["out", *(f"{self.sigma[-1, f]:.3f}" for f in first)]]
        widths = [max(len(line[i]) for line in lines) for i in range(len(heads) + 1)]
        table = ["  ".join(text.rjust(w) for text, w in zip(line, widths, strict=True)) for line in lines]
        legend = "(.) hidden, sigma/model_sigma, ~ predict and re-noise"
        return "\n".join([f"TimestepMatrix of {self.steps} steps and {self.frames} frames; {legend}", *table])

    def _same_column(self, a: int, b: int) -> bool:
        return all(torch.equal(x[:, a], x[:, b]) for x in (self.sigma, self.model_sigma, self.visible))

    def _cell(self, s: int, f: int) -> str:
        if not self.visible[s, f]:
            return "."
        carried, received = f"{self.sigma[s, f]:.3f}", f"{self.model_sigma[s, f]:.3f}"
        return carried if self.sigma[s, f] == self.model_sigma[s, f] else f"{carried}/{received}"

    def image(self, cell: int = 16) -> Tensor:
        """Return a heat map, uint8 [S·cell, F·cell, 3], with a row per step and a column per frame.

        Clean is pale, noise is dark, and hidden is grey. The middle of a cell shows `model_sigma`. cell: at least 4.
        """
        if cell < 4:
            raise InputError(f"cell is {cell} pixels; give at least 4")
        outer, middle = _colour(self.sigma[:-1]), _colour(self.model_sigma)
        for picture in (outer, middle):
            picture[~self.visible] = 0.82
        pixel = torch.arange(cell)
        inside, edge = (pixel >= cell // 4) & (pixel < cell - cell // 4), pixel == cell - 1
        big, big_middle = (x.repeat_interleave(cell, 0).repeat_interleave(cell, 1) for x in (outer, middle))
        at = inside.repeat(self.steps)[:, None] & inside.repeat(self.frames)
        big[at] = big_middle[at]
        big[edge.repeat(self.steps)[:, None] | edge.repeat(self.frames)] = 1.0
        return (big * 255).round().to(torch.uint8)


def _first(mistakes: Tensor) -> tuple[int, ...] | None:
    found = mistakes.nonzero()
    return tuple(found[0].tolist()) if len(found) else None


def _where(step: int, frame: int) -> str:
    return f"step {step}, frame {frame}"


def _colour(sigma: Tensor) -> Tensor:
    """Return colours in [0, 1], [..., 3], interpolated between pale, red and dark blue."""
    anchors = torch.tensor([[0.99, 0.95, 0.83], [0.93, 0.47, 0.36], [0.17, 0.10, 0.34]], dtype=torch.float64)
    below = (sigma * 2).floor().clamp(max=1)
    part = (sigma * 2 - below)[..., None]
    index = below.long()
    return anchors[index] * (1 - part) + anchors[index + 1] * part
