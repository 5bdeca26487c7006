"""What is seen of a training while it runs, and what it cost when it is done.

A record of a step is a dict with the keys step (counted from 1), loss, lr, grad_norm, clips, tokens, loss_by_sigma and
frames_by_sigma, all of which are the same whenever the step is taken again. The tracker adds two groups:

    flops, recomputed     operations of the step's forward and backward pass, and of gradient checkpointing
    timing                {seconds, aside, validation, previews, clips_per_s, tokens_per_s, mfu, peak_memory}: another
                          each time; validation and previews are what they took of `aside`, since the last record

The record is then written to log.jsonl by whoever owns that file (`state.Run`), one JSON object per line in the order
of the steps; on resuming, lines after the resumed step are cut off there, and `start` adds up what is left. Without
"timing", log.jsonl is bit for bit that of a training that was never interrupted.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from diffusers import WanTransformer3DModel

from pusa.training.costs import Costs, StepCounter, device_name, matmul_rate, peak_memory
from pusa.training.loggers import LOGGERS, Logger, check

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LOG, COST = "log.jsonl", "cost.json"
SMOOTHING = 0.9
"""of the loss that the progress bar shows"""
EVERY, LEAST = 30.0, 5.0
"""Where no bar is drawn, a line comes every so many seconds, or every twentieth of the run that takes the second."""
ASIDES = ("validation", "previews")


class Tracker:
    """Shows and measures one training; on process 0 only. Use it as a context manager, and call `finish` inside.

    folder: of the run. transformer: what is trained; its operations are counted at the first step, adapters and all.
    dtype: of its arithmetic. devices: how many train together. clips: distinct ones in the training set. price: for an
    hour of one device. config: shown by loggers that can. quiet: write nothing to stderr.

    Raises InputError where the package of a logger is missing.
    """

    def __init__(
        self,
        folder: Path,
        transformer: WanTransformer3DModel,
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
        self.folder, self.transformer, self.steps, self.dtype = folder, transformer, steps, dtype
        self.devices, self.clips, self.price, self.currency = devices, clips, price, currency
        self.config, self.quiet, self.wanted = dict(config or {}), quiet, list(loggers)
        self.drawing = not quiet and sys.stderr.isatty()
        self.totals: dict[str, float] = {}
        self.rate: float | None = None
        self._counter: StepCounter | None = None
        self._loggers: dict[str, Logger] = {}
        self._bar: tuple[Progress, TaskID] | None = None
        self._mean: float | None = None
        self._done = self._first = 0
        self._aside = dict.fromkeys(ASIDES, 0.0)
        self._paused = self._watched = 0.0
        self._watched_until = 0
        self._last = self._began = self._told = time.perf_counter()
        self._part = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, step: int, steps: int) -> None:
        """Training goes on after `step` steps, of `steps` in all; 0 begins. `step` calls it where nobody did."""
        self.steps, self._done, self._first = steps, step, step
        self.totals = _totals(self.folder / LOG, step)
        self.rate = matmul_rate(self.transformer.device, self.dtype)
        for name in self.wanted:
            self._loggers[name] = LOGGERS[name](self.folder, step, self.config)
        if self.drawing:
            self._bar = _bar(step, steps)
        elif step < steps:
            self.event(
                f"Training ({steps:,} steps)" if not step else f"Training goes on after step {step} of {steps:,}"
            )
        self._part = 20 * step // max(steps, 1)
        self._last = self._began = self._told = time.perf_counter()

    def step(self, record: dict[str, Any]) -> None:
        """Add to the record of a step what was measured, and show it. A key "seconds" is moved into "timing"."""
        if self.rate is None:
            now = time.perf_counter() - record.get("seconds", 0.0)
            self.start(record["step"] - 1, self.steps)
            self._last = self._began = now
        now = time.perf_counter()
        passed = now - self._last
        seconds = min(float(record.pop("seconds", passed)), passed)
        self._last, self._done = now, record["step"]
        if self._counter is None:
            self._counter = StepCounter(self.transformer)
        flops = self._counter(record["clips"], record["tokens"], sum(record["frames_by_sigma"]))
        record |= {"flops": flops.model, "recomputed": flops.recomputed}
        assert self.rate is not None
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
        """Hand numbers to the loggers. One that fails is named and left out from then on; training goes on."""
        for name in list(self._loggers):
            try:
                self._loggers[name].log(values, step)
            except Exception as error:
                del self._loggers[name]
                self.event(f"{name} failed and is left out from now on: {str(error).splitlines()[0]}")

    def event(self, text: str) -> None:
        """Lines for people on stderr, above the progress bar."""
        if self._bar:
            self._bar[0].console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif not self.quiet:
            print(text, file=sys.stderr)

    @contextmanager
    def aside(self, text: str, kind: str) -> Iterator[None]:
        """While something else than training goes on, the bar or a line says what: "Validating". kind: of ASIDES."""
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
                self._watched, self._watched_until = self._watched + took, self._done
            if self._bar:
                self._bar[0].update(self._bar[1], description="Training")

    def finish(self) -> Costs:
        """Training is done: write cost.json, show the sheet, and return it.

        Where no step was left to take, the sheet of the start that finished the run stays, at the price of today: the
        log does not know what came after its last step.
        """
        if self.rate is None:
            self.start(self.steps, self.steps)
            if finished := self._finished():
                self.event(f"Nothing is left to train after step {self.steps:,}; this is what the run took:")
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
        """What cost.json says, if it is of this many steps."""
        path = self.folder / COST
        costs = Costs.read(path) if path.is_file() else None
        if costs is None or costs.steps != int(self.totals.get("steps", 0)):
            return None
        return replace(costs, price=self.price, currency=self.currency)

    def close(self) -> None:
        """Take the bar away and close the loggers; also after an error."""
        if self._bar:
            self._bar[0].stop()
            self._bar = None
        for name, logger in self._loggers.items():
            try:
                logger.close()
            except Exception as error:
                self.event(f"{name} could not be closed: {str(error).splitlines()[0]}")
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
        """Seconds a step, with what validation and previews take: that is spread over the steps that came before it.

        What was watched before the first step comes once and is left out.
        """
        training = (self._last - self._began - self._paused) / (self._done - self._first)
        return training + (self._watched / (self._watched_until - self._first) if self._watched else 0.0)

    def _is_due(self) -> bool:
        """Whether a line about the progress is due; it then counts as told."""
        passed, part = time.perf_counter() - self._told, 20 * self._done // self.steps
        due = passed >= EVERY or (passed >= LEAST and part > self._part)
        if due:
            self._told, self._part = time.perf_counter(), part
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
    """The sums over the lines of a log up to `step`."""
    totals: dict[str, float] = {}
    if log.is_file():
        with log.open(encoding="utf-8") as file:
            for line in file:
                record = json.loads(line)
                if record["step"] <= step:
                    _add(totals, record)
    return totals


def _add(totals: dict[str, float], record: Mapping[str, Any]) -> None:
    """Take one record into the sums; `steps` counts them and `peak_memory` is the greatest."""
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
    """The numbers of a record under names for a logger: train/loss, sigma/0.05, timing/clips_per_s."""
    values = {f"train/{name}": record[name] for name in ("loss", "lr", "grad_norm") if name in record}
    parts = record.get("loss_by_sigma", [])
    values |= {f"sigma/{(i + 0.5) / len(parts):.2f}": value for i, value in enumerate(parts)}
    values |= {f"timing/{name}": value for name, value in record["timing"].items()}
    return {name: float(value) for name, value in values.items() if value is not None}


def _clock(seconds: float) -> str:
    """`4:50` or `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
