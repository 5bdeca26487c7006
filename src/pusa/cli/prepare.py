"""`pusa prepare`: encode clips into latents and captions into contexts, once for all trainings."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from pusa.cli.check import HARMLESS, SHARED, settings_for
from pusa.cli.shared.options import Verbosity, Whole
from pusa.cli.shared.setting_options import with_settings
from pusa.cli.shared.terminal import Report, Terminal, clock, count, printable
from pusa.errors import InputError

if TYPE_CHECKING:
    from pusa.training.data.cache import Prepared
    from pusa.training.data.samples import Plan

MACHINES = Group.create_ordered("Several machines")


@with_settings(SHARED, several=True)
def prepare(
    data: str | None = None,
    *,
    preset: Annotated[str | None, Parameter(metavar="NAME")] = None,
    ray: Annotated[str | None, Parameter(group=MACHINES, metavar="ADDRESS")] = None,
    workers: Annotated[int | None, Whole, Parameter(group=MACHINES)] = None,
    verbosity: Verbosity = Verbosity(),
    **overrides: str | tuple[str, ...] | None,
) -> Report | None:
    """Encode the clips and captions of a folder once, for all trainings.

    After an interruption, or after you add clips, run the same command again. It encodes only what is missing. If you
    start it several times, or with torchrun, the processes share the work. At the end it lists the clips that it cannot
    encode, and the exit code is 1.

    Parameters
    ----------
    data
        A folder of clips with captions, a table of clips, or the hub id of a dataset; or a .yaml or .toml file of
        settings for pusa train.
    preset
        A preset of pusa train; the settings file and options override it. pusa train --presets lists all presets.
    ray
        Address of a Ray cluster (auto, HOST:PORT, ray://HOST:PORT), or local to start one. Needs pusa[cluster].
    workers
        Number of processes, with --ray. The default is one per GPU, else one per machine.
    """
    rank, world = _rank_and_world()
    terminal = Terminal(rank == 0 and verbosity.verbose)
    if workers is not None and (ray is None or workers < 1):
        raise InputError(f"--workers {workers}: give 1 or more, together with --ray.")
    if ray is not None and world > 1:
        raise InputError("--ray starts its own processes; run the command without torchrun.")
    from pusa.training.data import dataset

    config = settings_for(data, preset, overrides)
    for source in config.data.sources:
        dataset.check_place(source.path)  # before torch is imported
    cache = config.data.cache
    with terminal.status("Starting"):
        from pusa.files import make_folder
        from pusa.training import planning

        model = planning.model_plan(config)
    with terminal.counting() as progress:
        plan = planning.survey(
            config, model, progress=partial(progress, "Reading the clips"), workers=min(16, 2 * (os.cpu_count() or 1))
        )
    if ray is None:
        make_folder(cache, "the cache")
        prepared = _prepare_in_this_process(plan, config.model.source, cache, terminal, rank, world)
    else:
        from pusa.training.data import cluster

        with terminal.counting() as progress:
            prepared = cluster.prepare(plan, model.name, cache, ray, workers=workers, progress=progress)
    return _report(plan.source, cache, plan, prepared) if rank == 0 else None


def _rank_and_world() -> tuple[int, int]:
    """Return the rank and the number of processes that torchrun or accelerate set."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _prepare_in_this_process(
    plan: Plan, model: str, folder: Path, terminal: Terminal, rank: int, world: int
) -> Prepared:
    with terminal.status(f"Loading {model}", line=True):
        import torch

        from pusa.models.loading import checkpoints
        from pusa.training.data import cache

        local = os.environ.get("LOCAL_RANK")
        device = f"cuda:{local}" if local is not None and torch.cuda.is_available() else None
        encoders = checkpoints.load_encoders(model, device=device)
    with terminal.counting() as progress:
        return cache.prepare(plan, encoders, folder, progress=progress, rank=rank, world=world)


def _report(data: str, folder: Path, plan: Plan, prepared: Prepared) -> Report:
    problems = [*plan.problems, *prepared.failed]
    record: dict[str, Any] = {
        "data": data,
        "cache": str(folder),
        "samples": len(plan.cuts),
        "buckets": {str(bucket): count for bucket, count in plan.buckets.items()},
        "made": prepared.made,
        "kept": prepared.kept,
        "shared": prepared.shared,
        "failed": len(prepared.failed),
        "captions": prepared.captions,
        "bytes": prepared.bytes,
        "seconds": round(prepared.seconds, 3),
        "problems": [
            {"path": str(problem.path), "kind": problem.kind, "reason": problem.reason} for problem in problems
        ],
    }
    shared = f", {prepared.shared} encoded by other processes" if prepared.shared else ""
    summary = (
        f"{count(prepared.made, 'clip')} encoded, {prepared.kept} already in the cache{shared}, "
        f"{len(prepared.failed)} failed, "
        f"{sum(problem.kind not in HARMLESS for problem in plan.problems)} not used; "
        f"{count(prepared.captions, 'caption')} encoded; {prepared.bytes / 2**20:.1f} MiB in {folder}; "
        f"{clock(prepared.seconds)}"
    )
    lines = [*(printable(f"{problem.path} {problem.reason}") for problem in problems), summary]
    return Report(record, "\n".join(lines), exit_code=int(any(problem.kind not in HARMLESS for problem in problems)))
