"""`pusa physics-iq generate`: make five seconds of every scene, from a picture or from the three seconds before."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from pusa.cli.shared.options import (
    OUTPUT,
    SAMPLING,
    File,
    Model,
    SeedlessSampling,
    Switch,
    Verbosity,
    Whole,
    given_of,
    negative_of,
    with_preset,
)
from pusa.cli.shared.terminal import Report, Terminal, count


def generate(
    descriptions: Annotated[Path, File],
    *,
    data: Annotated[Path, File],
    out: Annotated[Path, File, Parameter(group=OUTPUT)],
    track: Literal["i2v", "v2v"] = "i2v",
    model: Model = Model(),
    sampling: SeedlessSampling = SeedlessSampling(),
    seed: Annotated[int, Whole, Parameter(group=SAMPLING)] = 0,
    dry_run: Annotated[bool, Switch] = False,
    verbosity: Verbosity = Verbosity(),
) -> Report:
    """Make the videos of a track in the official layout: exactly five seconds each, with the official names.

    To resume, run the same command again. To use several devices, start it once for each device; the processes share
    the work.

    Parameters
    ----------
    descriptions
        The official descriptions CSV. Its first takes are made.
    data
        The folder of the Physics-IQ dataset.
    out
        Folder for videos/, recipes/ and run.json.
    track
        i2v: from the picture at which the video begins; v2v: from the three seconds before it.
    seed
        Seed of the run. The seed of a video is computed from it and the scene.
    dry_run
        Check that all input files exist, and make no video.
    """
    model, sampling, _ = with_preset(model, sampling, 0.0)
    terminal = Terminal(verbosity.verbose)
    with terminal.status("Starting"):
        from pusa.cli.shared.batch import model_identity
        from pusa.cli.shared.clip_jobs import limits_of, open_pipeline
        from pusa.evaluation.physics_iq.dataset import Dataset, scenes
        from pusa.evaluation.physics_iq.maker import VIDEOS, VideoMaker, check
        from pusa.evaluation.results_folder import keep_settings, make_missing

        chosen_scenes, dataset = scenes(descriptions), Dataset(data)
    chosen = given_of(sampling) | ({"negative_prompt": negative} if (negative := negative_of(model)) else {})
    check(dataset, chosen_scenes, track, limits_of(model, terminal), chosen)
    record = {"videos": len(chosen_scenes), "track": track, "folder": str(out / VIDEOS)}
    if dry_run:
        return Report(record, f"All input files for {count(len(chosen_scenes), 'video')} exist.")
    keep_settings(out, {"track": track, "seed": seed, **chosen, **model_identity(model)})
    pipe = open_pipeline(model, terminal, sampling=sampling)
    maker = VideoMaker(pipe, dataset, chosen_scenes, out, track, seed, chosen)
    with terminal.counting() as progress:
        make_missing(maker.units(), out, "Videos", progress)
    made = count(len(chosen_scenes), "video")
    return Report(record, f"{out / VIDEOS}: {made}. To score the videos, run pusa physics-iq score.")
