"""The whole of `pusa train`: read the clips, hold some out, encode those that are not cached, train, and monitor.

Under torchrun or accelerate every process runs this. Rank 0 reads the clips, and all processes encode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from pusa import processes
from pusa.errors import InputError
from pusa.files import make_folder
from pusa.media.images import read_image
from pusa.models.memory import stored_weights
from pusa.training import fitting, loading, loggers, optimisers, planning, starting
from pusa.training.config.tree import Config
from pusa.training.data import split
from pusa.training.data.cache import Cache, CachedSamples, prepare
from pusa.training.data.dataset import Problem
from pusa.training.data.fingerprints import fingerprint
from pusa.training.data.samples import Bucket, Cut, Plan
from pusa.training.monitoring import Monitor
from pusa.training.planning import ModelPlan
from pusa.training.run_folder import lock
from pusa.training.trainer import Result, train

NOTED = 5
"""So many unused clips are named, and the others are counted. `pusa check` names all."""


class Terminal(Protocol):
    """Where progress and notes are printed; see `cli.shared.terminal.Terminal`."""

    @property
    def verbose(self) -> bool: ...
    def note(self, text: str) -> None: ...
    def status(self, text: str, *, line: bool = False) -> AbstractContextManager[None]: ...
    def counting(self) -> AbstractContextManager[Callable[[str, int, int], None]]: ...


@dataclass(frozen=True)
class Outcome:
    """A finished training.

    samples: the number of training samples. held_out: the number of held-out samples. problems: unused clips, and why.
    """

    result: Result
    samples: int
    held_out: int
    problems: tuple[Problem, ...]


def run(
    config: Config, out: Path, *, resume_from: Path | None = None, force: bool = False, terminal: Terminal
) -> Outcome:
    """Train with the settings `config` into the folder `out`, or resume there.

    Clips that cannot be used are named on the terminal and in the outcome. resume_from: a checkpoint of another run to
    begin with, see `starting.branch`. force: resume even if settings, model or clips have changed. Raises InputError
    if no clip can be used, and where `trainer.train`, `checkpoints.load` and `starting` raise it.
    """
    with processes.join() as group:
        processes.from_rank_zero(group, lambda: loggers.check(list(config.track.loggers)))
        processes.from_rank_zero(group, lambda: optimisers.check(config.train.optimiser))
        processes.from_rank_zero(group, partial(stored_weights.check, config.memory.base))
        if not force:
            processes.from_rank_zero(group, partial(starting.check_result, config, out))
        for path in config.preview.pictures or ():
            read_image(path)
        with terminal.status("Reading the configuration of the model"):
            model = planning.model_plan(config)
            if len(model.kinds) > 1:
                raise InputError(
                    f"{model.name} has two experts, which are trained one at a time: set model.expert to high or low."
                )
            config = starting.with_lora(config, model.sizes.layers)
        if resume_from is not None:
            processes.from_rank_zero(group, partial(starting.branch, resume_from, out))
        plan = processes.from_rank_zero(group, lambda: survey(config, model, terminal))
        if not any((out / "checkpoints").glob("step_*")):
            _check_previews(config, split.hold_out(plan, config.data.held_out)[1])
        config = _fitted(config, model, [*plan.buckets], terminal)
        processes.from_rank_zero(group, partial(_writable, config.data.cache, out))
        with terminal.status(f"Loading {config.model.source}", line=True):
            parts = loading.encoders(config)
        with terminal.counting() as progress:
            made = prepare(plan, parts, config.data.cache, progress=progress, rank=group.rank, world=group.size)
        key = fingerprint(parts, plan.fps)
        plan = processes.from_rank_zero(
            group, lambda: without(plan, Cache(config.data.cache, key).missing(plan), made.failed)
        )
        _note(plan, terminal)
        training_part, held_out_part = processes.from_rank_zero(group, partial(_parts, plan, config, out, force))
        _check_previews(config, held_out_part)
        if not held_out_part.cuts and config.validate_.every:
            terminal.note("There is no validation, because no clip is held out; set data.held_out to hold clips out.")
        with terminal.status("Loading the transformer", line=loading.is_partial(config)):
            components = loading.model(config, parts)
        samples, others = (CachedSamples(part, key, config.data.cache) for part in (training_part, held_out_part))
        with Monitor(config, out, components, samples, others, group, quiet=not terminal.verbose) as monitor:
            result = train(
                config,
                out,
                components=components,
                samples=samples,
                held_out=others,
                tracker=monitor.tracker,
                hooks=monitor.hooks,
                force=force,
            )
            monitor.finish()
    return Outcome(result, len(samples), len(others), plan.problems)


def _check_previews(config: Config, held_out: Plan) -> None:
    """Raise InputError if previews have nothing to show."""
    if config.preview.every and not held_out.cuts and not config.preview.pictures:
        raise InputError(
            "Previews need held-out clips, and there are none: set data.held_out to 1 or more, give preview.prompts "
            "with preview.pictures, or set preview.every to 0."
        )


def _fitted(config: Config, model: ModelPlan, buckets: Sequence[Bucket], terminal: Terminal) -> Config:
    """Choose memory.swap for memory.limit, and print the prediction. A machine without a GPU has no such limit."""
    if config.memory.limit is None or processes.local_device().type == "cpu":
        return config
    needs, blocks = fitting.predicted(config, model, buckets)
    terminal.note(fitting.sentence(needs, blocks))
    return config.model_copy(update={"memory": config.memory.model_copy(update={"swap": needs.swapped})})


def _writable(cache: Path, out: Path) -> None:
    """Raise InputError if a folder cannot be created or is in use. Encoding, which follows, may take hours."""
    make_folder(cache, "the cache")
    lock(out).close()


def survey(config: Config, model: ModelPlan, terminal: Terminal) -> Plan:
    """Return the plan: the clips, and the samples that are cut from them. InputError if there are no samples."""
    with terminal.counting() as progress:
        plan = planning.survey(config, model, progress=partial(progress, "Reading the clips"))
    _something_left(plan)
    return plan


def without(plan: Plan, lost: Sequence[Cut], reasons: Sequence[Problem]) -> Plan:
    """Return the plan without the files that could not be encoded. Its problems name them."""
    if not lost:
        return plan
    why = {str(problem.path): problem for problem in reasons}
    files = dict.fromkeys(cut.file.path for cut in lost)
    named = [why.get(str(file), Problem(file, "unreadable", "could not be encoded")) for file in files]
    cuts = tuple(cut for cut in plan.cuts if cut.file.path not in files)
    plan = replace(plan, cuts=cuts, problems=(*plan.problems, *named))
    _something_left(plan)
    return plan


def _parts(plan: Plan, config: Config, out: Path, force: bool) -> tuple[Plan, Plan]:
    """Divide the plan into the training part and the held-out part, and write both into the folder of the run.

    A run that is resumed keeps its parts and the order of its clips. InputError names the clips that have changed in
    the training part, unless `force` is given.
    """
    data = config.data
    settings: dict[str, Any] = {"buckets": data.buckets, "fps": plan.fps, "cut": data.cut, "held_out": data.held_out}
    settings |= {"captions": data.captions, "prefix": data.prefix, "uncaptioned": data.uncaptioned}
    seen = split.SeenClips(settings, ())
    if not any((out / "checkpoints").glob("step_*")):
        parts = split.hold_out(plan, data.held_out)
    elif (recorded := split.read(out)) is None:
        parts = split.hold_out(plan, data.held_out, split.before_clips_were_written(plan, data.held_out))
    elif recorded.settings != settings:
        parts = split.hold_out(recorded.in_order(plan), data.held_out)
        if not force:
            return parts  # the run names the settings that differ
    else:
        parts = split.hold_out(recorded.in_order(plan), data.held_out, recorded.parts)
        if (changes := recorded.changes(parts[0])) and not force:
            raise InputError(
                f"{out} was trained on other clips ({split.listed(changes)}): restore them, choose another --out, or "
                "add --overwrite to go on with the present clips."
            )
        seen = recorded
    seen.with_parts(*parts).write(out)
    return parts


def _something_left(plan: Plan) -> None:
    if not plan.cuts:
        first = f"{plan.problems[0].path} {plan.problems[0].reason}" if plan.problems else "it contains no clips"
        more = f", and {len(plan.problems) - 1} more" if len(plan.problems) > 1 else ""
        raise InputError(f"No clip in {plan.source} can be used ({first}{more}): run `pusa check {plan.source}`.")


def _note(plan: Plan, terminal: Terminal) -> None:
    """Print the names of unused clips."""
    for problem in plan.problems[:NOTED]:
        terminal.note(f"{problem.path} {problem.reason}")
    if len(plan.problems) > NOTED:
        terminal.note(f"... and {len(plan.problems) - NOTED} more; `pusa check {plan.source}` names them all.")
