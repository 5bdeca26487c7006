"""Training into a folder: what a run does around its steps, so that it can be ended at any moment and gone on with.

The algorithm is in learner.py. Everything random in it is a function of (seed, lane, step), see parallel.py for lanes;
nothing is drawn from a stream. So resuming is loading the trained numbers, the optimiser's moments and the averages,
and counting on: on one thread of a CPU, an interrupted training ends with the weights of an uninterrupted one, bit for
bit, and with its log.
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
from pusa.errors import Cancelled, InputError
from pusa.models.loading.checkpoints import Components
from pusa.models.wan.transformer import VectorWanTransformer3DModel
from pusa.processes import ProcessGroup
from pusa.training import interruption
from pusa.training.config.tree import Config
from pusa.training.data.batches import Batches
from pusa.training.learner import Learner
from pusa.training.objectives.base import MakeObjective, Setup
from pusa.training.objectives.flow_matching import FlowMatching
from pusa.training.run_folder import Run, writing
from pusa.training.weight_averages import write_snapshot


class Tracker(Protocol):
    """What shows and measures a training; on process 0 only."""

    def step(self, record: dict[str, Any]) -> None:
        """After every step, before its record is logged. It may add what it has measured to the record."""


@dataclass(frozen=True)
class Hook:
    """Something to do every `every` ≥ 1 steps and after the last one, on every process: validate, make previews.

    call: gets the number of steps done, the transformer with the weights that would be handed out now, and the run's
    folder. It leaves the weights as they are; random numbers it may draw as it likes.
    """

    every: int
    call: Callable[[int, VectorWanTransformer3DModel, Path], None]


@dataclass(frozen=True)
class Result:
    """A finished training.

    output: lora.safetensors, or the transformer folder. first: the step that was resumed at, 0 when none was. loss: of
    the last step. skipped: the steps, counted from 1, that this start of the run skipped for want of a finite loss.
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
    components: Components,
    samples: Any,
    held_out: Any = (),
    tracker: Tracker | None = None,
    hooks: Sequence[Hook] = (),
    objective: MakeObjective = FlowMatching,
    force: bool = False,
) -> Result:
    """Train `components.transformer` on `samples` into the folder `out`, going on where its last checkpoint was.

    samples: encoded clips, see `cache.Cached`. held_out: clips that must not be among them. Under torchrun or
    accelerate every process calls this. force: go on even though settings, model or clips have changed.

    Raises InputError for settings that cannot work, a held-out clip among the samples, a folder in use, a full disk,
    and, unless they are to be skipped, for clips that give no finite loss. Ctrl-C or SIGTERM on any process ends the
    step on all of them, and after a checkpoint `Cancelled` is raised; what was due after that step is left out.
    """
    if not len(samples):
        raise InputError("There is no clip to train on: see what `pusa check` says about the data.")
    if held_out and (leaked := sorted({*samples.keys} & {*held_out.keys})):
        raise InputError(f"{leaked[0]} is held out for validation and would be trained on too: keep it in one of them.")
    out, steps = Path(out), config.train.steps
    with processes.join() as group, ExitStack() as stack:
        run: Run | None = None  # on process 0

        def begin() -> int:
            nonlocal run
            run = stack.enter_context(Run.open(out, facts_of(config, group, components, samples), force=force))
            config.write(out / "config.yaml")
            return run.resumed.step if run.resumed else 0

        first = processes.from_rank_zero(group, begin)
        if first > steps:
            raise InputError(f"{out} is trained up to step {first} already, past train.steps = {steps}: raise it.")
        trained = stack.enter_context(prepared(components.transformer, config))
        learner = Learner(
            config.train, objective(Setup(config, components, trained, samples.empty_context, group)), group
        )
        writer = Writer(config, components.source, out, run, trained, learner)
        if first:
            learner.restore(run.resumed.state() if run and run.resumed else {})

        batches = stack.enter_context(Batches(samples, config.train, first=first, group=group))
        interrupted = stack.enter_context(interruption.listening(answer=group.is_rank_zero))
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
                if done % hook.every == 0 or done == steps:
                    with learner.showing_best():
                        hook.call(done, components.transformer, out)
            stop = done < steps and processes.any_rank(group, interrupted())
            due = done % config.save.every == 0 or done == steps
            if due or stop:
                writer.save(done, snapshot=due)
            if stop:
                raise Cancelled(
                    f"interrupted after step {done} of {steps}, with a checkpoint; the same command goes on from there."
                )
        return Result(out, writer.finish(), first, steps, loss, tuple(skipped))


@dataclass(frozen=True)
class Writer:
    """What is written of a training. Every process calls these methods; process 0, which has the `run`, writes."""

    config: Config
    base: str
    folder: Path
    run: Run | None
    trained: Attached
    learner: Learner

    def log(self, record: dict[str, Any], tracker: Tracker | None) -> None:
        """One line of the log."""
        if self.run:
            if tracker:
                tracker.step(record)
            self.run.log(record)

    def save(self, step: int, *, snapshot: bool) -> None:
        """A checkpoint, and with `snapshot` and post-hoc averaging a snapshot, which is kept for good."""
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
        """The finished weights, in the folder itself."""
        best, about = self.learner.best(), metadata_of(self.config, self.base, self.config.train.steps)

        def write() -> Path:
            with writing(f"the weights into {self.folder}"):
                return self.trained.save(self.folder, best, about)

        return processes.from_rank_zero(self.learner.group, write)


def facts_of(config: Config, group: ProcessGroup, components: Components, samples: Any) -> dict[str, Any]:
    """What decides the weights, and so must be the same when a run is resumed.

    Of passes and processes only the product counts, and sharding only divides the same numbers differently: a run may
    go on with twice the processes and half the passes, to the same weights but for rounding. Of the data counts what
    was read, not where it lies.
    """
    decisive = config.decisive()
    del decisive["train.accumulate"], decisive["train.parallel"], decisive["data.path"]
    passes = {"train.accumulate x processes": config.train.accumulate * group.size}
    clips = f"{len(samples)} samples with hash {samples.fingerprint[:16]}"
    return {**decisive, **passes, "model": components.fingerprint, "clips": clips}


def metadata_of(config: Config, base: str, step: int) -> dict[str, Any]:
    """What a LoRA file says about itself in its header."""
    tasks = config.sigma.tasks if config.sigma.pattern == "tasks" else None
    facts = {
        "base": base,
        "expert": config.model.expert,
        "pattern": config.sigma.pattern,
        "tasks": tasks and dict(tasks),
        "step": step,
        "config": config.fingerprint(),
    }
    return {f"pusa.{name}": value for name, value in facts.items() if value is not None}


@contextmanager
def prepared(transformer: VectorWanTransformer3DModel, config: Config) -> Iterator[Attached]:
    """The transformer made trainable for the block; afterwards it is frozen and in evaluation mode, as it came.

    In bf16 the time embedding stays exact: rounded to bf16, neighbouring timesteps would become one.
    """
    trained = adapters.from_settings(config.lora).attach(transformer, config.train.seed)
    if config.train.precision == "fp32":
        for p in transformer.parameters():
            p.data = p.data.float() if p.is_floating_point() else p.data
    embedder = transformer.condition_embedder.time_embedder
    embedder.forward = torch.autocast(transformer.device.type, enabled=False)(embedder.forward)
    if config.train.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    transformer.train()
    try:
        yield trained
    finally:
        del embedder.forward
        transformer.disable_gradient_checkpointing()
        transformer.eval().requires_grad_(False)
