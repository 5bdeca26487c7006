"""`pusa vbench generate`: make the videos of a manifest, with any number of processes; resume after an interruption."""

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
    SAMPLING_FIELDS,
    File,
    Model,
    SeedlessSampling,
    Verbosity,
    Whole,
    given_of,
    negative_of,
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
    verbosity: Verbosity = Verbosity(),
) -> Report:
    """Make the videos of a manifest. Each has its picture, prompt and seed, and is checked after it is written.

    To resume, run the same command again. To use several devices, start it once for each device; the processes share
    the work.

    Parameters
    ----------
    manifest
        A file that `pusa vbench manifest` wrote.
    images
        The folder of the official crops for the manifest's size.
    out
        Folder for videos/, recipes/ and run.json.
    noise
        Noise multiplier of the picture: 0 keeps it exactly, as in the paper's benchmark.
    limit
        Make at most this many of the missing videos.
    ray
        Share the work over a Ray cluster: its address, auto, or local to start one on this machine.
    workers
        Number of processes, with --ray. The default is one per GPU, else one per machine.
    """
    multiplier(str(noise or 0), "--noise")
    if workers is not None and (ray is None or workers < 1):
        raise InputError(f"--workers {workers}: give 1 or more, together with --ray.")
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}: give 1 or more.")
    model, sampling, noise = with_preset(model, sampling, noise)
    terminal = Terminal(verbosity.verbose)
    with terminal.status("Starting"):
        from pusa.cli.shared.batch import model_identity
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
        negative = {"negative_prompt": said} if (said := negative_of(model)) else {}
        identity = {**chosen, **negative, "noise": noise, "pictures": pictures, **model_identity(model)}
        verification.start_run(out, plan, identity)
        if unknown := verification.without_recipe(plan, out):
            raise InputError(
                f"{out / verification.VIDEOS / unknown[0]} was not made by this command, because it has no recipe; "
                "move it to another folder."
            )
    videos = out / verification.VIDEOS
    missing = [video.file for video in maker.ordered(plan) if not (videos / video.file).exists()]
    files = missing[:limit]
    terminal.note(f"{count(len(plan.videos), 'video')}, {len(plan.videos) - len(missing)} already there")
    started = time.monotonic()
    if files:
        _estimate(terminal, model, plan, len(files), chosen)
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
    next_step = f"{count(left, 'video')} left" if left else "to check them, run pusa vbench verify"
    elapsed = clock(time.monotonic() - started)
    return Report(record, f"{videos}: {count(len(plan.videos) - left, 'video')}, {elapsed}; {next_step}.")


def _estimate(terminal: Terminal, model: Model, plan: Manifest, left: int, chosen: dict[str, Any]) -> None:
    """Print the estimated time of the videos, computed like that of `pusa info --memory`."""
    import torch

    from pusa.cli.shared.memory_report import memory_report
    from pusa.models.loading import configurations, sources

    profile = "80gb" if torch.cuda.is_available() else "cpu"
    with terminal.status("Estimating"):
        report = memory_report(
            model, size=plan.size, frames=plan.frames, guidance=chosen.get("guidance"), profile=profile, rate=None
        )
        rows = report.record["profiles"]
        steps = chosen.get("steps") or configurations.defaults_of(sources.find(model.source, parts=())[1]).steps
    if limits := rows[0]["seconds_per_step"]:
        low, high = (clock(seconds * steps * left) for seconds in limits)
        terminal.note(f"{count(left, 'video')} of {steps} steps: {low} to {high} on one such device, without decoding")


def _video_maker(
    manifest: Path, images: Path, out: Path, model: Model, noise: float, chosen: dict[str, Any], terminal: Terminal
) -> VideoMaker:
    from pusa.cli.shared.clip_jobs import open_pipeline
    from pusa.evaluation.vbench import manifest as manifests
    from pusa.evaluation.vbench.maker import VideoMaker
    from pusa.generation.sampling import Sampling

    plan = manifests.read(manifest)
    pipe = open_pipeline(
        model,
        terminal,
        size=plan.size,
        frames=plan.frames,
        sampling=Sampling(**{name: value for name, value in chosen.items() if name in SAMPLING_FIELDS}),
    )
    return VideoMaker(pipe, plan, images, out, noise, chosen, negative_of(model))


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
    """Make the videos with these names, without those that other processes make."""
    from pusa.evaluation.results_folder import make_missing

    units = _video_maker(manifest, images, out, model, noise, chosen, terminal).units(files)
    make_missing(units, out, "Videos", worker.progress)
