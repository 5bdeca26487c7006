"""The tracker: shows the progress of a training, sends numbers to loggers, and adds up the costs.

The record of a step has the keys step (from 1), loss, lr, grad_norm, clips, tokens, loss_by_sigma and frames_by_sigma.
If a step is repeated after a resume, these values are the same. The tracker adds two groups:

    flops, recomputed     operations of the forward and backward pass, and those of gradient checkpointing
    timing                {seconds, aside, validation, previews, clips_per_s, tokens_per_s, mfu, peak_memory}; these
                          differ each time. `aside` is the time between steps since the last record, in seconds;
                          `validation` and `previews` are parts of it

`run_folder.Run` then writes the record as one line of log.jsonl. If the training resumes, lines after the resumed step
are removed there, and `start` adds up the others. Without "timing", log.jsonl is equal to that of an uninterrupted
training, bit for bit.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from pusa.errors import first_line
from pusa.models.backbone import Backbone, Flops
from pusa.training.costs import Costs, device_name, matmul_rate, peak_memory
from pusa.training.loggers import LOGGERS, Logger, check

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LOG, COST = "log.jsonl", "cost.json"
SMOOTHING = 0.9
"""The decay of the smoothed loss in the progress bar."""
EVERY, LEAST = 30.0, 5.0
"""Without a bar, a line of progress is printed after EVERY seconds, or after LEAST at a new twentieth of the run."""
ASIDES = ("validation", "previews")


class Tracker:
    """Shows and measures one training, on rank 0. Use it as a context manager, and call `finish` inside.

    folder: of the run. backbone: its transformer is trained; the operations are counted at the first step.
    steps: of the training. dtype: of the arithmetic. devices: how many train together. clips: clips in the training
    set. price: money for one hour of one device. loggers: names, see `loggers.LOGGERS`. config: settings for loggers
    that show them. quiet: print nothing to stderr.

    Raises InputError if the package of a logger is missing.
    """

    def __init__(
        self,
        folder: Path,
        backbone: Backbone,
        *,
        steps: int,
        dtype: torch.dtype = torch.float32,
        devices: int = 1,
        clips: int | None = None,
        price: float | None = None,
        currency: str = "USD",
        loggers: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        quiet: bool = False,
    ) -> None:
        check(list(loggers))
        self.folder, self.backbone, self.steps, self.dtype = folder, backbone, steps, dtype
        self.transformer = backbone.transformer
        self.devices, self.clips, self.price, self.currency = devices, clips, price, currency
        self.config, self.quiet, self.wanted = dict(config or {}), quiet, list(loggers)
        self.drawing = not quiet and sys.stderr.isatty()
        self.totals: dict[str, float] = {}
        self.rate: float | None = None
        self._counter: Callable[[int, int, int], Flops] | None = None
        self._loggers: dict[str, Logger] = {}
        self._bar: tuple[Progress, TaskID] | None = None
        self._mean: float | None = None
        self._done = self._first = 0
        self._aside = dict.fromkeys(ASIDES, 0.0)
        self._paused = self._aside_total = 0.0
        self._aside_until = 0
        self._last = self._began = self._printed = time.perf_counter()
        self._part = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, step: int, steps: int) -> None:
        """Begin after `step` finished steps of `steps`; 0 is a new run. If you do not call this, `step` does."""
        self.steps, self._done, self._first = steps, step, step
        self.totals = _totals(self.folder / LOG, step)
        self.rate = matmul_rate(self.transformer.device, self.dtype)
        for name in self.wanted:
            self._loggers[name] = LOGGERS[name](self.folder, step, self.config)
        if self.drawing:
            self._bar = _bar(step, steps)
        elif step < steps:
            self.event(
                f"Training ({steps:,} steps)" if not step else f"Training resumes after step {step} of {steps:,}"
            )
        self._part = 20 * step // max(steps, 1)
        self._last = self._began = self._printed = time.perf_counter()

    def step(self, record: dict[str, Any]) -> None:
        """Add measurements to the record of a step, and show it. The key "seconds" is moved into "timing"."""
        if self.rate is None:
            now = time.perf_counter() - record.get("seconds", 0.0)
            self.start(record["step"] - 1, self.steps)
            self._last = self._began = now
        now = time.perf_counter()
        passed = now - self._last
        seconds = min(float(record.pop("seconds", passed)), passed)
        self._last, self._done = now, record["step"]
        if self._counter is None:
            self._counter = self.backbone.step_counter(self.transformer)
        flops = self._counter(record["clips"], record["tokens"], sum(record["frames_by_sigma"]))
        record |= {"flops": flops.model, "recomputed": flops.recomputed}
        assert self.rate is not None
        # Other work of the machine may have disturbed the measurement; the machine is at least as fast as this step.
        self.rate = max(self.rate, (flops.model + flops.recomputed) / seconds / self.devices)
        record["timing"] = {
            "seconds": seconds,
            "aside": passed - seconds,
            **self._aside,
            "clips_per_s": record["clips"] / seconds,
            "tokens_per_s": record["tokens"] / seconds,
            "mfu": flops.model / seconds / (self.rate * self.devices),
            "peak_memory": peak_memory(self.transformer.device),
        }
        self._aside = dict.fromkeys(ASIDES, 0.0)
        _add(self.totals, record)
        self._show(record)
        self.scalars(record["step"], _flat(record))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Send numbers to the loggers. If a logger fails, it is named and not used again, and training continues."""
        for name in list(self._loggers):
            try:
                self._loggers[name].log(values, step)
            except Exception as error:
                del self._loggers[name]
                self.event(f"{name} failed and is not used any more: {first_line(error)}")

    def event(self, text: str) -> None:
        """Print lines to stderr, above the progress bar."""
        if self._bar:
            self._bar[0].console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif not self.quiet:
            print(text, file=sys.stderr)

    @contextmanager
    def aside(self, text: str, kind: str) -> Iterator[None]:
        """Measure the time of other work than training inside the block, and show its name. kind: one of ASIDES."""
        if self._bar:
            self._bar[0].update(self._bar[1], description=text)
        else:
            self.event(f"{text} after step {self._done}")
        began = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - began
            self._aside[kind] += took
            if self.rate is not None:
                self._paused += took
            if self._done > self._first:
                self._aside_total, self._aside_until = self._aside_total + took, self._done
            if self._bar:
                self._bar[0].update(self._bar[1], description="Training")

    def finish(self) -> Costs:
        """Finish the training: write cost.json, print the cost sheet, and return the costs.

        If no step was left, the costs of the earlier start stay, with the present price, because the log does not
        contain the time after its last step.
        """
        if self.rate is None:
            self.start(self.steps, self.steps)
            if finished := self._finished():
                self.event(f"The training was finished before, after step {self.steps:,}. Its costs:")
                finished.write(self.folder / COST)
                self.event(str(finished))
                return finished
        sums = self.totals
        aside = sums.get("aside", 0.0) + time.perf_counter() - self._last
        costs = Costs(
            steps=int(sums.get("steps", 0)),
            samples=int(sums.get("clips", 0)),
            tokens=int(sums.get("tokens", 0)),
            flops=int(sums.get("flops", 0) + sums.get("recomputed", 0)),
            model_flops=int(sums.get("flops", 0)),
            seconds=sums.get("seconds", 0.0),
            aside=aside,
            **{kind: sums.get(kind, 0.0) + self._aside[kind] for kind in ASIDES},
            devices=self.devices,
            device=device_name(self.transformer.device),
            clips=self.clips,
            rate=self.rate,
            peak_memory=int(max(sums.get("peak_memory", 0), peak_memory(self.transformer.device))),
            price=self.price,
            currency=self.currency,
        )
        costs.write(self.folder / COST)
        self.event(str(costs))
        return costs

    def _finished(self) -> Costs | None:
        """Return the costs in cost.json, None if they are of another number of steps."""
        path = self.folder / COST
        costs = Costs.read(path) if path.is_file() else None
        if costs is None or costs.steps != int(self.totals.get("steps", 0)):
            return None
        return replace(costs, price=self.price, currency=self.currency)

    def close(self) -> None:
        """Remove the bar and close the loggers. Call this after an error too."""
        if self._bar:
            self._bar[0].stop()
            self._bar = None
        for name, logger in self._loggers.items():
            try:
                logger.close()
            except Exception as error:
                self.event(f"{name} could not be closed: {first_line(error)}")
        self._loggers = {}

    def _show(self, record: Mapping[str, Any]) -> None:
        loss = record["loss"]
        if loss is not None and loss - loss == 0:
            self._mean = loss if self._mean is None else SMOOTHING * self._mean + (1 - SMOOTHING) * loss
        timing = record["timing"]
        shown: dict[str, Any] = {
            "loss": "–" if self._mean is None else f"{self._mean:.4f}",
            "speed": f"{timing['clips_per_s']:.3g} clips/s",
            "left": f"{_clock(self._pace() * (self.steps - self._done))} left",
            "use": f"MFU {timing['mfu']:.0%}, {timing['peak_memory'] / 2**30:.1f} GiB",
        }
        if self._bar:
            self._bar[0].update(self._bar[1], completed=self._done, **shown)
        elif self._is_due():
            words = shown | {"loss": f"loss {shown['loss']}"}
            self.event(f"Training: step {self._done:,} of {self.steps:,}, {', '.join(words.values())}")

    def _pace(self) -> float:
        """Return the seconds of one step, including the time of validation and previews, divided over the steps.

        Validation before the first step happens once and is not included.
        """
        training = (self._last - self._began - self._paused) / (self._done - self._first)
        return training + (self._aside_total / (self._aside_until - self._first) if self._aside_total else 0.0)

    def _is_due(self) -> bool:
        """Return whether a line of progress is due. If so, it counts as printed."""
        passed, part = time.perf_counter() - self._printed, 20 * self._done // self.steps
        due = passed >= EVERY or (passed >= LEAST and part > self._part)
        if due:
            self._printed, self._part = time.perf_counter(), part
        return due


def _bar(step: int, steps: int) -> tuple[Progress, TaskID]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    columns = [TextColumn(f"{label}{{task.fields[{name}]}}") for name, label in (("loss", "loss "), ("speed", ""))]
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        *columns,
        TextColumn("[dim]{task.fields[left]}, {task.fields[use]}[/]"),
        console=Console(stderr=True),
        transient=True,
    )
    bar.start()
    return bar, bar.add_task("Training", total=steps, completed=step, loss="–", speed="–", left="–", use="–")


def _totals(log: Path, step: int) -> dict[str, float]:
    """Return the sums over the lines of a log up to `step`."""
    totals: dict[str, float] = {}
    if log.is_file():
        with log.open(encoding="utf-8") as file:
            for line in file:
                record = json.loads(line)
                if record["step"] <= step:
                    _add(totals, record)
    return totals


def _add(totals: dict[str, float], record: Mapping[str, Any]) -> None:
    """Add one record to the sums. `steps` is the number of records, and `peak_memory` the maximum."""
    timing = record.get("timing", {})
    totals["steps"] = totals.get("steps", 0) + 1
    for values, names in (
        (record, ("clips", "tokens", "flops", "recomputed")),
        (timing, ("seconds", "aside", *ASIDES)),
    ):
        for name in names:
            totals[name] = totals.get(name, 0) + (values.get(name) or 0)
    totals["peak_memory"] = max(totals.get("peak_memory", 0), timing.get("peak_memory", 0))


def _flat(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a record with names for a logger: train/loss, sigma/0.05, timing/clips_per_s."""
    values = {f"train/{name}": record[name] for name in ("loss", "lr", "grad_norm") if name in record}
    parts = record.get("loss_by_sigma", [])
    values |= {f"sigma/{(i + 0.5) / len(parts):.2f}": value for i, value in enumerate(parts)}
    values |= {f"timing/{name}": value for name, value in record["timing"].items()}
    return {name: float(value) for name, value in values.items() if value is not None}


def _clock(seconds: float) -> str:
    """Return seconds as `4:50` or `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
