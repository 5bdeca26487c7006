"""`pusa vbench generate`: the videos of a manifest, by any number of processes, taken up again where they were."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from pusa.cli.shared.arguments import multiplier
from pusa.cli.shared.options import (
    MANY,
    OUTPUT,
    SAMPLING,
    File,
    Model,
    SeedlessSampling,
    Talk,
    Whole,
    given_of,
    with_preset,
)
from pusa.cli.shared.terminal import Report, Terminal, clock, count
from pusa.errors import InputError

if TYPE_CHECKING:
    from pusa.evaluation.vbench.maker import VideoMaker
    from pusa.evaluation.vbench.manifest import Manifest
    from pusa.work.workers import Worker


def generate(
    manifest: Annotated[Path, File],
    *,
    images: Annotated[Path, File],
    out: Annotated[Path, File, Parameter(group=OUTPUT)],
    model: Model = Model(),
    sampling: SeedlessSampling = SeedlessSampling(),
    noise: Annotated[float | None, Parameter(group=SAMPLING, show_default=lambda _: "0")] = None,
    limit: Annotated[int | None, Whole, Parameter(group=MANY, show_default=lambda _: "all")] = None,
    ray: Annotated[str | None, Parameter(group=MANY, metavar="ADDRESS")] = None,
    workers: Annotated[int | None, Whole, Parameter(group=MANY)] = None,
    talk: Talk = Talk(),
) -> Report:
    """Make the videos of a manifest: each from its picture and prompt, with its own seed, checked once it is written.

    Run the same command again to go on, or several times at once, with one device each, to share the work.

    Parameters
    ----------
    manifest
        A file of `pusa vbench manifest`.
    images
        The folder of the official crops that suit the manifest's size.
    out
        Folder for videos/, recipes/ and run.json.
    noise
        Noise multiplier of the picture: 0 keeps it exactly, as the paper's benchmark does.
    limit
        At most so many of the videos that are not there yet.
    ray
        Share the work over a Ray cluster: its address, or local.
    workers
        Processes on the cluster; by default one per GPU, else one per node.
    """
    multiplier(str(noise or 0), "--noise")
    if workers is not None and (ray is None or workers < 1):
        raise InputError(f"--workers {workers}: it takes a number of 1 or more, and --ray with it.")
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}: it takes a number of 1 or more.")
    model, sampling, noise = with_preset(model, sampling, noise)
    terminal = Terminal(talk.talkative)
    with terminal.status("Starting"):
        from pusa.cli.shared.batch import about
        from pusa.cli.shared.clip_jobs import limits_of
        from pusa.evaluation.vbench import maker, verification
        from pusa.evaluation.vbench import manifest as manifests
        from pusa.work.cluster import over_cluster
        from pusa.work.workers import Worker, watch_files

        plan = manifests.read(manifest)
        maker.check_images(plan, images)
        chosen = given_of(sampling)
        limits_of(model, terminal).settings(size=plan.size, frames=plan.frames, **chosen)
        pictures = maker.content_of(plan, images)
        verification.start_run(out, plan, {**chosen, "noise": noise, "pictures": pictures, **about(model)})
        if strange := verification.without_recipe(plan, out):
            raise InputError(
                f"{out / verification.VIDEOS / strange[0]} was not made here: it has no recipe; move it away."
            )
    videos = out / verification.VIDEOS
    missing = [video.file for video in maker.ordered(plan) if not (videos / video.file).exists()]
    files = missing[:limit]
    terminal.note(f"{count(len(plan.videos), 'video')}, {len(plan.videos) - len(missing)} there already")
    started = time.monotonic()
    if files:
        _foretell(terminal, model, plan, len(files), chosen)
        with terminal.counting() as progress:
            if ray:
                manifest, images, folder = manifest.absolute(), images.absolute(), out.absolute()
                job = partial(_make, manifest, images, folder, model, noise, chosen, files, Terminal(False))
                watch = watch_files([videos / file for file in files], "Videos", progress)
                over_cluster(ray, workers, job, folder, watch)
            else:
                _make(manifest, images, out, model, noise, chosen, files, terminal, Worker(progress=progress))
    left = len(missing) - len(files)
    record = {"videos": len(plan.videos), "made": len(files), "left": left, "folder": str(out)}
    then = f"{count(left, 'video')} left" if left else "check them with pusa vbench verify"
    took = clock(time.monotonic() - started)
    return Report(record, f"{videos}: {count(len(plan.videos) - left, 'video')}, {took}; {then}.")


def _foretell(terminal: Terminal, model: Model, plan: Manifest, left: int, chosen: dict[str, Any]) -> None:
    """What the videos will take, by the arithmetic of `pusa info --memory`."""
    import torch

    from pusa.cli.shared.memory_report import outlook
    from pusa.models.loading import checkpoints, sources

    profile = "80gb" if torch.cuda.is_available() else "cpu"
    with terminal.status("Estimating"):
        told = outlook(
            model, size=plan.size, frames=plan.frames, guidance=chosen.get("guidance"), profile=profile, rate=None
        )
        rows = told.record["profiles"]
        steps = chosen.get("steps") or checkpoints.defaults_of(sources.find(model.source, parts=())[1]).steps
    if seconds := rows[0]["seconds_per_step"]:
        low, high = (clock(each * steps * left) for each in seconds)
        terminal.note(f"{count(left, 'video')} of {steps} steps: {low} to {high} of one such device, decoding aside")


def _video_maker(
    manifest: Path, images: Path, out: Path, model: Model, noise: float, chosen: dict[str, Any], terminal: Terminal
) -> VideoMaker:
    from pusa.cli.shared.clip_jobs import open_pipeline
    from pusa.evaluation.vbench import manifest as manifests
    from pusa.evaluation.vbench.maker import VideoMaker

    plan = manifests.read(manifest)
    pipe = open_pipeline(model, terminal, size=plan.size, frames=plan.frames, guidance=chosen.get("guidance"))
    return VideoMaker(pipe, plan, images, out, noise, chosen)


def _make(
    manifest: Path,
    images: Path,
    out: Path,
    model: Model,
    noise: float,
    chosen: dict[str, Any],
    files: Sequence[str],
    terminal: Terminal,
    worker: Worker,
) -> None:
    """Make the videos of these names that no other process makes."""
    from pusa.evaluation.results_folder import make_missing

    units = _video_maker(manifest, images, out, model, noise, chosen, terminal).units(files)
    make_missing(units, out, "Videos", worker.progress)
