"""The monitor of a training: tracker, validation, previews and model card, made from the settings.

    monitor = Monitor(config, out, components, samples, held_out, group, quiet=...)
    with monitor:
        train(config, out, ..., tracker=monitor.tracker, hooks=monitor.hooks)
        monitor.finish()

Make it on every process, before the training begins: if all weights are trained, the base must be validated before.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from pusa import adapters
from pusa.core.objectives import Predictor
from pusa.models.backbone import Backbone, Text
from pusa.processes import ProcessGroup
from pusa.training import model_card, previews, validation
from pusa.training.config.tree import Config
from pusa.training.costs import Costs
from pusa.training.precision import autocast_of
from pusa.training.tracking import Tracker
from pusa.training.trainer import Hook
from pusa.training.validation import Losses, undisturbed, validate

VALIDATION, PLOT, PREVIEWS = "validation.jsonl", "validation.png", "previews"


class Monitor:
    """The tracker and the hooks of a training.

    config: all settings. out: the folder of the run. components: the loaded model. samples, held_out: encoded clips,
    see `cache.CachedSamples`. quiet: print nothing to stderr. Attributes: tracker, on rank 0 and None on other
    processes; hooks, for `trainer.train`.
    """

    def __init__(
        self,
        config: Config,
        out: Path,
        components: Backbone,
        samples: Any,
        held_out: Sequence[Any],
        group: ProcessGroup,
        *,
        quiet: bool = False,
    ) -> None:
        self.config, self.out, self.components = config, out, components
        self.samples, self.held_out = samples, held_out
        self.adapter = adapters.from_settings(config.lora)
        self.tracker = self._tracker(group, quiet) if group.is_rank_zero else None
        self.hooks: list[Hook] = []
        self._base: Losses | None = None
        if held_out and config.validate_.every:
            if not self.adapter.keeps_base:
                self._base = self._validate(0, components.transformer).losses
            self.hooks.append(Hook(config.validate_.every, self.validate))
        self.shown = held_out
        if config.preview.every and config.preview.pictures:
            buckets = list(dict.fromkeys(samples.buckets))
            self.shown = previews.clips_of(components, config.preview.pictures, config.preview.prompts or [], buckets)
        if self.shown and config.preview.every:
            self.hooks.append(Hook(config.preview.every, self.preview))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.tracker:
            self.tracker.close()

    def validate(self, step: int, transformer: Any, folder: Path) -> None:
        """Validate after `step` steps: add to validation.jsonl and validation.png, and print the table."""
        with self.tracker.aside("Validating", "validation") if self.tracker else nullcontext():
            result = self._validate(step, transformer)
            self._base = result.base
            if self.tracker:
                result.write(folder / VALIDATION)
                validation.plot(validation.read(folder / VALIDATION), folder / PLOT)
                self.tracker.event(str(result))
                self.tracker.scalars(step, result.scalars())

    def preview(self, step: int, transformer: Any, folder: Path) -> None:
        """Generate the previews after `step` steps, in previews/step_000900/ of `folder`."""
        place = folder / PREVIEWS / f"step_{step:06d}"
        with self.tracker.aside("Making previews", "previews") if self.tracker else nullcontext():
            previews.make(
                self.components,
                self.shown,
                step,
                place,
                self.config.preview,
                empty_context=self.samples.empty_context,
                write=self.tracker is not None,
            )
            if self.tracker:
                self.tracker.event(f"Previews after step {step}: {place / previews.SHEET}")

    def finish(self) -> Costs | None:
        """Write cost.json and README.md after the training. Return the costs on rank 0, None elsewhere."""
        if not self.tracker:
            return None
        costs = self.tracker.finish()
        history = validation.read(self.out / VALIDATION)
        model_card.write(self.out, self._facts(), costs, history[-1] if history else None)
        return costs

    def _tracker(self, group: ProcessGroup, quiet: bool) -> Tracker:
        config = self.config
        return Tracker(
            self.out,
            self.components,
            steps=config.train.steps,
            dtype=torch.bfloat16 if config.train.precision == "bf16" else torch.float32,
            devices=group.size,
            clips=len(self.samples),
            price=config.track.price,
            currency=config.track.currency,
            loggers=config.track.loggers,
            config=config.plain(),
            quiet=quiet,
        )

    def _validate(self, step: int, transformer: Any) -> validation.Validation:
        config, device = self.config, transformer.device

        def velocity(x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
            text = Text.padded(context)
            return self.components.velocity(transformer, x, sigma, text, autocast=autocast_of(config))

        def bare(x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
            with self.adapter.disabled(transformer):
                return velocity(x, sigma, context)

        base: Predictor | Losses | None = self._base
        if base is None and self.adapter.keeps_base:
            base = bare
        clips = (self.held_out[i] for i in range(min(config.validate_.clips, len(self.held_out))))
        with undisturbed(transformer):
            return validate(velocity, clips, base=base, step=step, sigmas=config.validate_.sigmas, device=device)

    def _facts(self) -> model_card.Facts:
        config, train = self.config, self.config.train
        law = config.sigma.law if config.sigma.law != "shifted" else f"shifted by {config.sigma.shift:g}"
        settings = {
            "noise levels of the frames": config.sigma.pattern,
            "tasks": config.sigma.tasks if config.sigma.pattern == "tasks" else None,
            "their law": law,
            "weighting": config.sigma.weighting,
            "steps": train.steps,
            "clips per step": config.clips_per_step * (self.tracker.devices if self.tracker else 1),
            "learning rate": f"{train.lr:g}, {train.schedule}, {train.warmup} steps of warm-up",
            "caption dropout": train.caption_dropout,
            "average of the weights": train.ema,
            "precision": train.precision,
            "sizes": sorted({str(bucket) for bucket in self.samples.buckets}),
            "seed": train.seed,
        }
        newest = max(self.out.glob(f"{PREVIEWS}/step_*"), default=None)
        shown = sorted(newest.glob("*.mp4"))[:8] if newest else []
        prompts = self.config.preview.prompts or [clip.caption for clip in self.held_out[: previews.CLIPS]]
        return model_card.Facts(
            name=self.out.resolve().name,
            base=self.components.source,
            output=self.adapter.output,
            card=self.adapter.card,
            names=self.components.hub_names,
            expert=config.model.expert,
            samples=len(self.samples),
            held_out=len(self.held_out),
            settings=settings,
            previews=[
                (prompts[int(p.stem.rpartition("_")[2]) % len(prompts)], p.relative_to(self.out).as_posix())
                for p in shown
            ],
        )
