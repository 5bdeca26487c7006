"""`pusa train` from one end to the other: look at the clips, keep some apart, encode what is missing, train, watch.

Under torchrun or accelerate every process runs this; process 0 looks at the clips and all of them encode.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from pusa import processes
from pusa.errors import InputError
from pusa.files import make_folder
from pusa.models.loading import checkpoints, sources
from pusa.training import loggers
from pusa.training.config.tree import Config
from pusa.training.data import samples
from pusa.training.data.cache import Cache, Cached, prepare
from pusa.training.data.dataset import Problem
from pusa.training.data.fingerprints import fingerprint
from pusa.training.data.samples import Bucket, Cut, Plan
from pusa.training.estimate import sizes_for
from pusa.training.monitoring import Watch
from pusa.training.run_folder import take
from pusa.training.trainer import Result, train

MOST_HELD_OUT = 16
NOTED = 5
"""So many unused clips are named before the rest is only counted; `pusa check` names all."""


class Terminal(Protocol):
    """Where progress is shown: `cli.terminal.Terminal`."""

    @property
    def talkative(self) -> bool: ...
    def note(self, text: str) -> None: ...
    def status(self, text: str, *, line: bool = False) -> AbstractContextManager[None]: ...
    def counting(self) -> AbstractContextManager[Callable[[str, int, int], None]]: ...


@dataclass(frozen=True)
class Outcome:
    """A finished training and what it was trained on. problems: what was not used, and why."""

    result: Result
    samples: int
    held_out: int
    problems: tuple[Problem, ...]


def run(config: Config, out: Path, *, force: bool = False, terminal: Terminal) -> Outcome:
    """Train as `config` says into the folder `out`, or go on there.

    Clips that cannot be used are named on the terminal and in the outcome, and the others are trained on. Raises
    InputError when none is left, and for everything that `trainer.train` and `checkpoints.load` refuse.
    """
    with processes.join() as group:
        processes.from_rank_zero(group, lambda: loggers.check(list(config.track.loggers)))
        with terminal.status("Looking at the model"):
            name, folder = sources.find(config.model.source, parts=())
            kinds = checkpoints.check(name, folder, expert=config.model.expert)
            if len(kinds) > 1:
                raise InputError(f"{name} has two experts, trained one at a time: set model.expert to high or low.")
            wishes, (_, buckets) = checkpoints.defaults_of(folder), sizes_for(name, folder, config.data.buckets or ())
        plan = processes.from_rank_zero(group, lambda: survey(config, buckets, wishes.fps, terminal))
        processes.from_rank_zero(group, lambda: _writable(config.data.cache, out))
        with terminal.status(f"Loading {config.model.source}", line=True):
            components = checkpoints.load(
                config.model.source, expert=config.model.expert, device=processes.local_device()
            )
        with terminal.counting() as progress:
            made = prepare(plan, components, config.data.cache, progress=progress, rank=group.rank, world=group.size)
        key = fingerprint(components, plan.fps)
        plan = processes.from_rank_zero(
            group, lambda: without(plan, Cache(config.data.cache, key).missing(plan), made.failed)
        )
        _note(plan, terminal)
        learnt, kept_apart = hold_out(plan, config.data.held_out)
        if not kept_apart.cuts and config.preview.every:
            raise InputError(
                "Previews need a held-out clip and none is: set data.held_out to 1 or more, or preview.every to 0."
            )
        if not kept_apart.cuts and config.validate_.every:
            terminal.note("No clip is held out, so nothing is validated; data.held_out says how many are.")
        if components.vae.device.type == "cuda" and not config.preview.every:
            components.vae.to("cpu")
            components.text_encoder.to("cpu")
        samples, others = (Cached(part, key, config.data.cache) for part in (learnt, kept_apart))
        with Watch(config, out, components, samples, others, group, quiet=not terminal.talkative) as watch:
            result = train(
                config,
                out,
                components=components,
                samples=samples,
                held_out=others,
                tracker=watch.tracker,
                hooks=watch.hooks,
                force=force,
            )
            watch.finish()
    return Outcome(result, len(samples), len(others), plan.problems)


def _writable(cache: Path, out: Path) -> None:
    """Find out before the hours of encoding that a folder cannot be made or is in use."""
    make_folder(cache, "the cache")
    take(out).close()


def survey(config: Config, buckets: Sequence[Bucket], fps: float, terminal: Terminal) -> Plan:
    """What the data holds and what becomes of it; InputError when nothing of it can be trained on."""
    source = config.data.path
    if source is None:
        raise InputError("There is no data to train on; give --data FOLDER, or data.path in the settings.")
    with terminal.counting() as progress:
        looking = partial(progress, "Looking at the clips")
        plan = samples.survey(source, buckets, config.data.fps or fps, config.data.cut, progress=looking)
    _something_left(plan)
    return plan


def without(plan: Plan, lost: Sequence[Cut], reasons: Sequence[Problem]) -> Plan:
    """The plan without the files that could not be encoded, which are named among its problems."""
    if not lost:
        return plan
    why = {str(problem.path): problem for problem in reasons}
    files = dict.fromkeys(cut.file.path for cut in lost)
    named = [why.get(str(file), Problem(file, "unreadable", "could not be encoded")) for file in files]
    cuts = tuple(cut for cut in plan.cuts if cut.file.path not in files)
    plan = replace(plan, cuts=cuts, problems=(*plan.problems, *named))
    _something_left(plan)
    return plan


def hold_out(plan: Plan, clips: int | None) -> tuple[Plan, Plan]:
    """What is trained on, and `clips` files with all their cuts that are not (None: 10 %, at most 16).

    Which ones depends on the content of each file alone: where it lies and what stands beside it change nothing.
    """
    files = {cut.file.sha256 for cut in plan.cuts}
    count = held_out(len(files)) if clips is None else clips
    if count >= len(files):
        raise InputError(f"data.held_out is {count} of {len(files)}; leave at least one clip to train on.")
    apart = set(sorted(files, key=lambda content: hashlib.sha256(f"held out {content}".encode()).digest())[:count])
    parts = [tuple(cut for cut in plan.cuts if (cut.file.sha256 in apart) is held) for held in (False, True)]
    return replace(plan, cuts=parts[0]), replace(plan, cuts=parts[1])


def held_out(files: int) -> int:
    """How many files are kept apart when nothing is said: a tenth, rounded down."""
    return min(MOST_HELD_OUT, files // 10)


def _something_left(plan: Plan) -> None:
    if not plan.cuts:
        first = f"{plan.problems[0].path} {plan.problems[0].reason}" if plan.problems else "there is no clip in it"
        more = f", and {len(plan.problems) - 1} more" if len(plan.problems) > 1 else ""
        raise InputError(f"Nothing in {plan.source} can be trained on ({first}{more}); see `pusa check {plan.source}`.")


def _note(plan: Plan, terminal: Terminal) -> None:
    """Name what is not used."""
    for problem in plan.problems[:NOTED]:
        terminal.note(f"{problem.path} {problem.reason}")
    if len(plan.problems) > NOTED:
        terminal.note(f"... and {len(plan.problems) - NOTED} more; `pusa check {plan.source}` names them all.")
