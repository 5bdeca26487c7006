"""`pusa prepare`: the clips of a folder as latents, their captions as contexts, once for all trainings."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from pusa.cli.check import HARMLESS, SAMPLES
from pusa.cli.shared.arguments import number
from pusa.cli.shared.options import MODEL, OUTPUT, File, Many, Talk, Whole, of_model
from pusa.cli.shared.terminal import Report, Terminal, clock, count, printable
from pusa.errors import InputError

if TYPE_CHECKING:
    from pusa.training.data.cache import Prepared
    from pusa.training.data.samples import Plan

MACHINES = Group.create_ordered("Several machines")


def prepare(
    data: str,
    *,
    buckets: Annotated[
        tuple[str, ...],
        Many,
        Parameter(name="--data.buckets", group=SAMPLES, metavar="WxHxF...", consume_multiple=True),
    ] = (),
    fps: Annotated[float | None, Parameter(name="--data.fps", group=SAMPLES, show_default=of_model)] = None,
    cut: Annotated[Literal["head", "uniform", "slide"], Parameter(name="--data.cut", group=SAMPLES)] = "head",
    model: Annotated[str, Parameter(name="--model.source", group=MODEL)] = "tiny-base",
    cache: Annotated[Path, File, Parameter(name="--data.cache", group=OUTPUT)] = Path("runs/cache"),
    ray: Annotated[str | None, Parameter(group=MACHINES, metavar="ADDRESS")] = None,
    workers: Annotated[int | None, Whole, Parameter(group=MACHINES)] = None,
    talk: Talk = Talk(),
) -> Report | None:
    """Encode the clips and captions of a folder once, for training.

    Run it again after an interruption, or after adding clips, and it goes on where it was; start it several times, or
    under torchrun, and the processes share the work. What cannot be encoded is named at the end (exit code 1).

    Parameters
    ----------
    data
        A folder of clips with captions, a table of them, or the hub id of a dataset.
    buckets
        Sizes and lengths of the samples, for example 832x480x81 480x832x81; by default the model's own.
    fps
        Frames per second that clips are resampled to.
    cut
        Samples of a longer clip: one from its head, as many as fit spread uniformly, or one every half length.
    model
        tiny-base, a diffusers folder or a hub id: whose autoencoder and text encoder are used.
    cache
        Folder of the encoded samples; several data sets and models may share one.
    ray
        Address of a Ray cluster (auto, HOST:PORT, ray://HOST:PORT), or local to start one; needs pusa[cluster].
    workers
        With --ray: number of processes. By default one per GPU, else one per machine.
    """
    rank, world = _place()
    terminal = Terminal(rank == 0 and talk.talkative)
    if fps is not None and not 0 < number(str(fps), "--data.fps", "frame rate") <= 1000:
        raise InputError(f"--data.fps {fps:g}: give a rate above 0 and at most 1000.")
    if workers is not None and (ray is None or workers < 1):
        raise InputError(f"--workers {workers}: it takes a number of 1 or more, and --ray with it.")
    if ray is not None and world > 1:
        raise InputError("--ray starts its own processes: run it without torchrun.")
    with terminal.status("Starting"):
        from pusa.files import make_folder
        from pusa.models.loading import checkpoints, sources
        from pusa.training.data import samples
        from pusa.training.estimate import sizes_for

        name, folder = sources.find(model, parts=())
        checkpoints.check(name, folder)
        wishes, (shape, sizes) = checkpoints.defaults_of(folder), sizes_for(name, folder, buckets)
    with terminal.counting() as progress:
        plan = samples.survey(
            data,
            sizes,
            fps or wishes.fps,
            shape.geometry,
            cut,
            progress=partial(progress, "Looking at the clips"),
            workers=min(16, 2 * (os.cpu_count() or 1)),
        )
    if ray is None:
        make_folder(cache, "the cache")
        prepared = _here(plan, model, cache, terminal, rank, world)
    else:
        from pusa.training.data import cluster

        with terminal.counting() as progress:
            prepared = cluster.prepare(plan, name, cache, ray, workers=workers, progress=progress)
    return _report(data, cache, plan, prepared) if rank == 0 else None


def _place() -> tuple[int, int]:
    """Rank and number of processes, as torchrun and accelerate say them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _here(plan: Plan, model: str, folder: Path, terminal: Terminal, rank: int, world: int) -> Prepared:
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
        "problems": [{"path": str(each.path), "kind": each.kind, "reason": each.reason} for each in problems],
    }
    shared = f", {prepared.shared} made by other processes" if prepared.shared else ""
    summary = (
        f"{count(prepared.made, 'clip')} encoded, {prepared.kept} kept{shared}, {len(prepared.failed)} failed, "
        f"{sum(each.kind not in HARMLESS for each in plan.problems)} not used; "
        f"{count(prepared.captions, 'caption')} encoded; {prepared.bytes / 2**20:.1f} MiB in {folder}; "
        f"{clock(prepared.seconds)}"
    )
    lines = [*(printable(f"{each.path} {each.reason}") for each in problems), summary]
    return Report(record, "\n".join(lines), exit_code=int(any(each.kind not in HARMLESS for each in problems)))
