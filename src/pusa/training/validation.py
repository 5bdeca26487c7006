"""Validation: the loss on held-out clips at fixed σ and fixed noise, for each task.

A training loss does not show progress well, because every step has another σ and another noise. Here each validation
uses the same σ and the same noise for a clip, for the trained model and for the base. The table has one cell for each
task, level of σ and latent frame: the mean squared error of the velocity (arXiv 2507.16116, eq. 10) in this frame.

Each task uses rows of its matrix at inference. In text-to-video all frames have one σ, in image-to-video frame 0 is
clean, and so on. Given frames are input and are not counted. In `independent` each frame has its own level, and over
the rows of the table each frame has each level once. Noise and this order are functions of the seed and the clip's key
only. So other clips and the size of a forward pass do not change them.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from pusa.core import schedules
from pusa.core.objectives import Predictor, interpolate
from pusa.errors import InputError
from pusa.files import lines_of, replacing, write_text_atomic
from pusa.training.random_draws import LEAST_FRAMES

TASKS = ("text-to-video", "image-to-video", "start-end", "extension", "independent")
LEVELS = tuple(round(0.05 + 0.1 * i, 2) for i in range(10))
"""The centres of ten equal parts of [0, 1]."""


class Sample(Protocol):
    """A held-out clip, such as a `cache.Sample`: latents [C, F, h, w], context [L, D]."""

    @property
    def key(self) -> str: ...
    @property
    def latents(self) -> Tensor: ...
    @property
    def context(self) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Losses:
    """The table of one model.

    total, count: float64 [tasks, levels, frames]: the sum of the losses in a cell, and the number of clips in the sum.
    The count is 0 for given frames and for tasks that need longer clips. levels: σ, 0 to 1.
    """

    tasks: tuple[str, ...]
    levels: tuple[float, ...]
    total: Tensor
    count: Tensor

    def mean(self, *axes: str) -> Tensor:
        """Return the mean over the axes that are not named; NaN for no clip. axes: of "task", "sigma", "frame"."""
        away = [i for i, name in enumerate(("task", "sigma", "frame")) if name not in axes]
        return self.total.sum(away) / self.count.sum(away) if away else self.total / self.count

    def record(self) -> dict[str, Any]:
        """Return for JSON, for each task: the mean loss, the losses by σ and by frame, and all cells."""
        by_task, by_sigma, by_frame = self.mean("task"), self.mean("task", "sigma"), self.mean("task", "frame")
        return {
            task: {
                "loss": _plain(by_task[i]),
                "by_sigma": _plain(by_sigma[i]),
                "by_frame": _plain(by_frame[i]),
                "total": self.total[i].tolist(),
                "count": self.count[i].tolist(),
            }
            for i, task in enumerate(self.tasks)
        }

    @classmethod
    def from_record(cls, levels: Sequence[float], record: dict[str, Any]) -> Losses:
        """Return the table that `record` was called on, exactly."""
        total, count = (
            torch.tensor([cells[name] for cells in record.values()], dtype=torch.float64) for name in ("total", "count")
        )
        return cls(tuple(record), tuple(levels), total, count)


@dataclass(frozen=True, eq=False)
class Validation:
    """The losses after `step` steps on `clips` clips. base: those of the base model, None if they are unknown."""

    step: int
    clips: int
    losses: Losses
    base: Losses | None

    def scalars(self) -> dict[str, float]:
        """Return the mean losses for a logger: `validation/TASK` and `validation/base/TASK`."""
        values: dict[str, float] = {}
        for name, losses in (("validation", self.losses), ("validation/base", self.base)):
            if losses is not None:
                means = losses.mean("task").tolist()
                values |= {f"{name}/{t}": m for t, m in zip(losses.tasks, means, strict=True) if m == m}
        return values

    def record(self) -> dict[str, Any]:
        """Return one line of validation.jsonl."""
        return {
            "step": self.step,
            "clips": self.clips,
            "levels": list(self.losses.levels),
            "tasks": self.losses.record(),
            "base": None if self.base is None else self.base.record(),
        }

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Validation:
        """Return the validation that `record` was called on."""
        base = record["base"] and Losses.from_record(record["levels"], record["base"])
        losses = Losses.from_record(record["levels"], record["tasks"])
        return cls(int(record["step"]), int(record["clips"]), losses, base or None)

    def write(self, path: Path) -> None:
        """Append a line to validation.jsonl. Lines of this and later steps, from before a resume, are removed."""
        kept = [v for v in read(path) if v.step < self.step]
        lines = [json.dumps(v.record(), allow_nan=False) for v in (*kept, self)]
        write_text_atomic(path, "".join(f"{line}\n" for line in lines))

    def __str__(self) -> str:
        """Return a table with one row for each task: loss, loss of the base, change; then by σ and by latent frame."""
        shown = _spread(self.losses.total.shape[2], 7)
        heads = [f"{level:.2f}".removeprefix("0") for level in self.losses.levels], [f"f{frame}" for frame in shown]
        loss = self.losses.mean("task").tolist()
        base = [float("nan")] * len(loss) if self.base is None else self.base.mean("task").tolist()
        by_sigma, by_frame = self._beside("task", "sigma"), self._beside("task", "frame")[:, shown]
        rows = [["", "loss", "base", "change", "", *heads[0], "", *heads[1]]]
        for i, task in enumerate(self.losses.tasks):
            numbers = _shown(loss[i], ".4f"), _shown(base[i], ".4f"), _shown(loss[i] / base[i] - 1, "+.1%")
            rows.append([task, *numbers, "", *self._cells(by_sigma[i]), "", *self._cells(by_frame[i])])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["".join(f"{cell:>{width}} " for cell, width in zip(row[1:], widths[1:], strict=True)) for row in rows]
        what = "loss" if self.base is None else "change from the base"
        clips = f"{self.clips} clip{'' if self.clips == 1 else 's'}"
        head = f"Validation after step {self.step} on {clips}; right: {what} by σ and by latent frame"
        body = [f"{row[0]:{widths[0]}} {line}".rstrip() for row, line in zip(rows, lines, strict=True)]
        return "\n".join([head, *body])

    def _beside(self, *axes: str) -> Tensor:
        mean = self.losses.mean(*axes)
        return mean if self.base is None else mean / self.base.mean(*axes) - 1

    def _cells(self, values: Tensor) -> list[str]:
        return [_shown(x, ".3f" if self.base is None else "+.1%") for x in values.tolist()]


def validate(
    velocity: Predictor,
    samples: Iterable[Sample],
    *,
    base: Predictor | Losses | None = None,
    step: int = 0,
    tasks: Sequence[str] = TASKS,
    sigmas: Sequence[float] = LEVELS,
    seed: int = 0,
    batch: int = 1,
    device: torch.device | str = "cpu",
) -> Validation:
    """Compute the losses of `velocity` on the samples, and those of `base` if it is a model too.

    base: the model without its adapter, or its earlier losses. sigmas: the levels of the generated frames, in (0, 1].
    seed: of the noise. batch: rows of one clip in a forward pass; it changes only rounding. One clip is in memory at a
    time. Raises InputError if there is no clip, if a level is outside (0, 1], or if a task is unknown.
    """
    if unknown := [task for task in tasks if task not in LEAST_FRAMES or task == "staircase"]:
        raise InputError(f"The validation task {unknown[0]!r} does not exist: choose from {', '.join(TASKS)}.")
    if not sigmas or not all(0 < level <= 1 for level in sigmas):
        raise InputError(f"The levels for validation are {list(sigmas)}: give numbers above 0 and at most 1.")
    models = [velocity, base] if callable(base) else [velocity]
    sums = [_Sums(tuple(tasks), tuple(sigmas)) for _ in models]
    clips = 0
    for sample in samples:
        clips += 1
        for model, sum_ in zip(models, sums, strict=True):
            sum_.add(model, sample, seed, batch, torch.device(device))
    if not clips:
        raise InputError("There are no held-out clips for validation: set data.held_out, or set validate.every to 0.")
    losses = [sum_.losses() for sum_ in sums]
    if isinstance(base, Losses):
        losses.append(base)
    return Validation(step, clips, losses[0], losses[1] if len(losses) > 1 else None)


class _Sums:
    """Sums up a table clip by clip. The number of frames grows with the longest clip."""

    def __init__(self, tasks: tuple[str, ...], levels: tuple[float, ...]) -> None:
        self.tasks, self.levels = tasks, levels
        self.total = self.count = torch.zeros(len(tasks), len(levels), 0, dtype=torch.float64)

    @torch.no_grad()
    def add(self, velocity: Predictor, sample: Sample, seed: int, batch: int, device: torch.device) -> None:
        frames = sample.latents.shape[1]
        if frames > self.total.shape[2]:
            more = frames - self.total.shape[2]
            self.total, self.count = (nn.functional.pad(cells, (0, more)) for cells in (self.total, self.count))
        x0 = sample.latents.float()[None].to(device)
        noise = torch.randn(sample.latents.shape, generator=generator(seed, sample.key, "noise"))[None].to(device)
        context = sample.context[None].to(device)
        for i, task in enumerate(self.tasks):
            if frames < LEAST_FRAMES[task]:
                continue
            rows = sigma_rows(task, frames, self.levels, generator(seed, sample.key, task))
            generated = rows > 0
            for begin in range(0, len(rows), batch):
                sigma = rows[begin : begin + batch].to(device, torch.float32)
                n = len(sigma)
                wide, eps = x0.expand(n, *x0.shape[1:]), noise.expand(n, *noise.shape[1:])
                v = velocity(interpolate(wide, eps, sigma), sigma, context.expand(n, *context.shape[1:]))
                error = (v.float() - (eps - wide)).double().square().mean(dim=(1, 3, 4)).cpu()
                for row, loss in enumerate(error, begin):
                    cell = torch.arange(frames)[generated[row]]
                    level = self._level_of(rows[row, cell]) if task == "independent" else torch.full_like(cell, row)
                    self.total[i, level, cell] += loss[cell]
                    self.count[i, level, cell] += 1

    def _level_of(self, sigma: Tensor) -> Tensor:
        levels = torch.tensor(self.levels, dtype=torch.float64)
        return (sigma[:, None] - levels).abs().argmin(dim=1)

    def losses(self) -> Losses:
        return Losses(self.tasks, self.levels, self.total, self.count)


def sigma_rows(task: str, frames: int, levels: Sequence[float], rng: torch.Generator) -> Tensor:
    """Return the rows of σ at which a clip is validated, float64 [levels, F]; 0 marks a given frame."""
    rows = torch.tensor(levels, dtype=torch.float64)
    if task == "independent":
        order = torch.stack([torch.randperm(len(rows), generator=rng) for _ in range(frames)], dim=1)
        return rows[order]
    descent, back = rows.sort(descending=True)
    matrix = schedules.synchronous(torch.cat([descent, torch.zeros(1, dtype=torch.float64)]), frames)
    row = schedules.conditioned(matrix, dict.fromkeys(given(task, frames), 0.0)).model_sigma
    return row[back.argsort()]


def given(task: str, frames: int) -> list[int]:
    """Return the given latent frames of a task in validation and previews, for a clip of `frames` latent frames."""
    every = list(range(frames))
    return {
        "image-to-video": [0],
        "last-frame": [frames - 1],
        "start-end": [0, frames - 1],
        "keyframes": [0, frames // 2],
        "extension": every[: max(2, frames // 3)],
        "backward-extension": every[-max(2, frames // 3) :],
        "completion": every[: max(2, frames // 5)] + every[-max(2, frames // 5) :],
    }.get(task, [])


def generator(seed: int, key: str, purpose: str) -> torch.Generator:
    """Return a generator on the CPU whose seed is a function of the arguments."""
    digest = hashlib.sha256(f"validation {seed} {key} {purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def read(path: Path) -> list[Validation]:
    """Return the lines of validation.jsonl, oldest first; [] if the file does not exist."""
    if not path.is_file():
        return []
    try:
        return [Validation.from_record(json.loads(line)) for line in lines_of(path.read_text(encoding="utf-8"))]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}): remove it and validate again.") from error


# ------------------------------------------------------------------------------------ the model during the training


@contextmanager
def undisturbed(*modules: nn.Module) -> Iterator[None]:
    """Use evaluation mode without gradients inside the block. Then restore all modes and all states of generators."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    python, numpy = random.getstate(), np.random.get_state()
    devices = {p.device for module in modules for p in module.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=list(devices)), torch.no_grad():
            for module in modules:
                module.eval()
            yield
    finally:
        for part, mode in modes:
            part.training = mode
        random.setstate(python)
        np.random.set_state(numpy)


# ------------------------------------------------------------------------------------------------------- the figure


def plot(history: Sequence[Validation], path: Path) -> bool:
    """Draw validation.png: the loss over steps, by σ and by latent frame. Return False if matplotlib is missing."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        return False
    last, colours = history[-1], matplotlib.colormaps["tab10"]
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    over, sigma, frame = figure.subplots(1, 3)
    for i, task in enumerate(last.losses.tasks):
        style: dict[str, Any] = {"color": colours(i % 10), "lw": 1.5}
        alike = [v for v in history if task in v.losses.tasks]
        steps = [v.step for v in alike]
        means = [float(v.losses.mean("task")[v.losses.tasks.index(task)]) for v in alike]
        if last.base is not None and steps[0] > 0:  # an untrained model is the base
            steps, means = [0, *steps], [float(last.base.mean("task")[i]), *means]
        over.plot(steps, means, marker=".", label=task, **style)
        for losses, dash in ((last.losses, "-"), (last.base, "--")):
            if losses is not None:
                sigma.plot(losses.levels, losses.mean("task", "sigma")[i].tolist(), dash, **style)
                frame.plot(losses.mean("task", "frame")[i].tolist(), dash, marker=".", **style)
                if dash == "--":
                    over.axhline(float(losses.mean("task")[i]), ls=dash, **style)
    over.set(xlabel="step", ylabel="loss", title="held-out loss (dashed: base)")
    sigma.set(xlabel="σ", title=f"by σ, step {last.step}")
    frame.set(xlabel="latent frame", title=f"by latent frame, step {last.step}")
    for axes, last_tick in ((over, last.step), (frame, last.losses.total.shape[2] - 1)):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlim(-0.04 * max(last_tick, 1), 1.04 * max(last_tick, 1))
    figure.legend(*over.get_legend_handles_labels(), loc="outside lower center", ncols=len(last.losses.tasks))
    with replacing(path) as part:
        figure.savefig(part, dpi=110, format="png")
    return True


def _plain(values: Tensor) -> Any:
    """Return numbers for JSON; NaN becomes null."""
    items = values.tolist()
    return [x if x == x else None for x in items] if isinstance(items, list) else items if items == items else None


def _shown(value: float, style: str) -> str:
    """Return the number in this format, or a dash for NaN."""
    return format(value, style) if value == value else "–"


def _spread(count: int, most: int) -> list[int]:
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most)).tolist()})
