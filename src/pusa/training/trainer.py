"""The training loop: steps, checkpoints, hooks, and the finished weights, in the folder of a run.

learner.py takes a step, and an objective computes its losses. Everything random in a step is a function of the seed,
the lane and the step (see distributed.py for lanes). No stream of random numbers is consumed. To resume, the loop loads
weights, optimiser and averages, and continues to count. On one CPU thread, an interrupted training ends with the same
weights and the same log as an uninterrupted one, bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from pusa import adapters, processes
from pusa.adapters.base import Attached
from pusa.adapters.lora import casting_inputs
from pusa.errors import Cancelled, InputError
from pusa.models.backbone import Backbone
from pusa.models.lora import header, runtime
from pusa.models.memory import frozen_base
from pusa.processes import ProcessGroup
from pusa.training import interruption
from pusa.training.config.intervals import is_due
from pusa.training.config.tree import Config
from pusa.training.data.batches import Batches
from pusa.training.learner import Learner
from pusa.training.objectives.base import MakeObjective, Setup
from pusa.training.objectives.flow_matching import FlowMatching
from pusa.training.run_folder import Run, writing
from pusa.training.weight_averages import write_snapshot


class Tracker(Protocol):
    """Shows and measures a training, on rank 0."""

    def step(self, record: dict[str, Any]) -> None:
        """Called after every step, before the record is logged. It may add measurements to the record."""


@dataclass(frozen=True)
class Hook:
    """A callback, on every process. It validates or makes previews.

    every: how often, see `config.intervals`; it is also called after the last step. call: gets the number of finished
    steps, the transformer with the weights that a training would write now, and the folder of the run. It must not
    change the weights. It may draw random numbers.
    """

    every: int | str
    call: Callable[[int, Any, Path], None]


@dataclass(frozen=True)
class Result:
    """A finished training.

    output: the written weights, a file or a folder. first: the number of steps that were done before this call, 0 for a
    new run. steps: the number of all steps. loss: the last loss of the main player; None if no step was left. skipped:
    the steps (from 1) that this call skipped, because a loss or a gradient was not finite.
    """

    folder: Path
    output: Path
    first: int
    steps: int
    loss: float | None
    skipped: tuple[int, ...]


def train(
    config: Config,
    out: str | Path,
    *,
    components: Backbone,
    samples: Any,
    held_out: Any = (),
    tracker: Tracker | None = None,
    hooks: Sequence[Hook] = (),
    objective: MakeObjective = FlowMatching,
    force: bool = False,
) -> Result:
    """Train `components.transformer` on `samples`. Write the run into `out`, or resume from its last checkpoint.

    Under torchrun or accelerate, every process calls this.

    Args:
        samples: encoded clips, see `cache.CachedSamples`.
        held_out: encoded clips that must not be among the samples.
        tracker: on rank 0, shows and measures the training.
        hooks: callbacks between steps.
        objective: makes the losses and their players. Default: flow matching.
        force: resume even if settings, model or clips have changed.

    Raises InputError for settings that cannot work, for a held-out clip among the samples, for a folder in use and for
    a full disk. Raises it also for clips without a finite loss, unless train.on_nan is "skip". If any process gets
    Ctrl-C or SIGTERM, all processes finish the step and write a checkpoint. They do not call the hooks. Then
    `Cancelled` is raised.
    """
    if not len(samples):
        raise InputError("There are no clips to train on: run `pusa check` to see what is wrong with the data.")
    if held_out and (leaked := sorted({*samples.keys} & {*held_out.keys})):
        raise InputError(
            f"{leaked[0]} is both held out for validation and among the training clips: remove it from one of the two."
        )
    out, steps = Path(out), config.train.steps
    with processes.join() as group, ExitStack() as stack:
        run: Run | None = None  # on rank 0

        def begin() -> int:
            nonlocal run
            run = stack.enter_context(Run.open(out, facts_of(config, group, components, samples), force=force))
            config.write(out / "config.yaml")
            return run.resumed.step if run.resumed else 0

        first = processes.from_rank_zero(group, begin)
        if first > steps:
            raise InputError(
                f"{out} is already trained to step {first}, beyond train.steps = {steps}: set train.steps higher."
            )
        trained = stack.enter_context(prepared(components, config))
        setup = Setup(config, components, trained, samples.empty_context, group)
        learner = Learner(config.train, objective(setup), group)
        due = partial(is_due, clips=config.clips_per_step * group.size, samples=len(samples))
        writer = Writer(config, components.source, out, run, trained, learner)
        if first:
            learner.restore(run.resumed.state() if run and run.resumed else {})

        batches = stack.enter_context(Batches(samples, config.train, first=first, group=group))
        interrupted = stack.enter_context(interruption.catching(announce=group.is_rank_zero))
        loss, skipped = None, []
        for step in range(first, steps):
            began, done = time.perf_counter(), step + 1
            record = learner.step(step, [next(batches) for _ in range(config.train.accumulate)])
            record["seconds"] = time.perf_counter() - began
            loss = loss if record["loss"] is None else record["loss"]
            skipped += [done] * ("skipped" in record)
            writer.log(record, tracker)
            stop = done < steps and processes.any_rank(group, interrupted())
            for hook in () if stop else hooks:
                if due(hook.every, done) or done == steps:
                    with learner.showing_best(), casting_inputs(components.transformer, True):
                        hook.call(done, components.transformer, out)
            stop = done < steps and processes.any_rank(group, interrupted())
            saving = due(config.save.every, done) or done == steps
            if saving or stop:
                writer.save(done, snapshot=saving)
            if stop:
                raise Cancelled(
                    f"interrupted after step {done} of {steps}, and a checkpoint is written; rerun the command to "
                    "resume."
                )
        return Result(out, writer.finish(), first, steps, loss, tuple(skipped))


@dataclass(frozen=True)
class Writer:
    """Writes the log, the checkpoints and the finished weights. Every process calls the methods, and rank 0 writes.

    base: the name of the base model. run: the opened folder, on rank 0.
    """

    config: Config
    base: str
    folder: Path
    run: Run | None
    trained: Attached
    learner: Learner

    def log(self, record: dict[str, Any], tracker: Tracker | None) -> None:
        """Give the record of a step to the tracker, then append it to the log."""
        if self.run:
            if tracker:
                tracker.step(record)
            self.run.log(record)

    def save(self, step: int, *, snapshot: bool) -> None:
        """Write a checkpoint. With `snapshot` and post-hoc averages, write a snapshot too, which is never removed."""
        state, best = self.learner.state(), self.learner.best()
        main = next(iter(state["players"]))

        def write() -> None:
            assert self.run
            if snapshot and self.learner.main.averages.kind == "post-hoc":
                path = self.folder / "snapshots" / f"step_{step:06d}.safetensors"
                with writing(str(path)):
                    path.parent.mkdir(exist_ok=True)
                    write_snapshot(path, state["players"][main]["averages"], step)
            about = metadata_of(self.config, self.base, step)
            weights = partial(self.trained.save, weights=best, metadata=about)
            self.run.save(step, state, weights, self.config.save.keep)

        processes.from_rank_zero(self.learner.group, write)

    def finish(self) -> Path:
        """Write the finished weights into the folder of the run, and return their path."""
        best, about = self.learner.best(), metadata_of(self.config, self.base, self.config.train.steps)

        def write() -> Path:
            with writing(f"the weights into {self.folder}"):
                return self.trained.save(self.folder, best, about)

        return processes.from_rank_zero(self.learner.group, write)


def facts_of(config: Config, group: ProcessGroup, components: Backbone, samples: Any) -> dict[str, Any]:
    """Return what determines the trained weights. It must be the same when a run is resumed.

    Only the product of passes and processes counts: a run may resume with twice the processes and half the passes, and
    the weights are the same up to rounding. Sharding does not count. The content of the clips and of a LoRA to start
    from counts, and not their location.
    """
    decisive = config.decisive()
    del decisive["train.accumulate"], decisive["train.parallel"], decisive["data.path"]
    decisive.pop("data.folders", None)
    passes = {"train.accumulate x processes": config.train.accumulate * group.size}
    clips = f"{len(samples)} samples with hash {samples.fingerprint[:16]}"
    if config.lora and config.lora.init:
        decisive["lora.init"] = runtime.fingerprint(header.file_of(config.lora.init))[:16]
    return {**decisive, **passes, "model": components.fingerprint, "clips": clips}


def metadata_of(config: Config, base: str, step: int) -> dict[str, Any]:
    """Return the metadata for the header of a LoRA file."""
    tasks = config.sigma.tasks if config.sigma.pattern == "tasks" else None
    facts = {
        "base": base,
        "expert": config.model.expert,
        "pattern": config.sigma.pattern,
        "tasks": tasks and dict(tasks),
        "init": config.lora and config.lora.init and Path(config.lora.init).name,
        "step": step,
        "config": config.fingerprint(),
    }
    return {f"pusa.{name}": value for name, value in facts.items() if value is not None}


@contextmanager
def prepared(backbone: Backbone, config: Config) -> Iterator[Attached]:
    """Attach the adapter, and set precision and training mode. After the block the model is frozen, in evaluation mode.

    With settings `memory`, the base is stored as they say, also after the block, and moved to the device.
    The backbone's exact modules (Wan's time embedding) compute in float32 even with bf16: rounding to bf16 would make
    neighbouring timesteps equal.
    """
    transformer = backbone.transformer
    trained = adapters.from_settings(config.lora).attach(transformer, config.train.seed)
    if config.train.precision == "fp32":
        for p in transformer.parameters():
            p.data = p.data.float() if p.is_floating_point() else p.data
    if config.train.optimiser == "adamw-kahan":
        for p in trained.parameters.values():
            p.data = p.data.bfloat16()
    exact = backbone.exact_modules(transformer)
    for module in exact:
        module.forward = torch.autocast(transformer.device.type, enabled=False)(module.forward)
    memory = config.memory
    if memory.base is not None or memory.swap:
        blocks, device = backbone.blocks(transformer), processes.local_device()
        frozen_base.place(transformer, blocks, device, storage=memory.base, swapped=memory.swap or 0)
    if config.train.gradient_checkpointing:
        transformer.enable_gradient_checkpointing(frozen_base.offloading if memory.offload else None)
    transformer.train()
    try:
        with casting_inputs(transformer, config.train.precision != "bf16"):
            yield trained
    finally:
        for module in exact:
            del module.forward
        transformer.disable_gradient_checkpointing()
        transformer.eval().requires_grad_(False)
