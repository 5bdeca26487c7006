"""`pusa physics-iq generate`: five seconds of every scene, from a picture or from three seconds before."""

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
    Talk,
    Whole,
    given_of,
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
    talk: Talk = Talk(),
) -> Report:
    """Make the videos of a track in the official layout: exactly five seconds each, by the official names.

    Run the same command again to go on, or several times at once, with one device each, to share the work.

    Parameters
    ----------
    descriptions
        The official descriptions CSV; its first takes are made.
    data
        The folder of the Physics-IQ dataset.
    out
        Folder for videos/, recipes/ and run.json.
    track
        i2v: from the picture at the moment it begins; v2v: from the three seconds before it.
    seed
        Of the run; a video's own seed follows from it and the scene.
    dry_run
        Look whether everything is there, and make nothing.
    """
    model, sampling, _ = with_preset(model, sampling, 0.0)
    terminal = Terminal(talk.talkative)
    with terminal.status("Starting"):
        from pusa.cli.shared.batch import about
        from pusa.cli.shared.clip_jobs import open_pipeline
        from pusa.evaluation.physics_iq.dataset import Dataset, scenes
        from pusa.evaluation.physics_iq.maker import VIDEOS, VideoMaker
        from pusa.evaluation.results_folder import keep_settings, make_missing

        wanted, dataset = scenes(descriptions), Dataset(data)
    chosen = given_of(sampling)
    pipe = open_pipeline(model, terminal, guidance=sampling.guidance)
    maker = VideoMaker(pipe, dataset, wanted, out, track, seed, chosen)
    record = {"videos": len(wanted), "track": track, "folder": str(out / VIDEOS)}
    if dry_run:
        return Report(record, f"{count(len(wanted), 'video')} could be made; everything is there.")
    keep_settings(out, {"track": track, "seed": seed, **chosen, **about(model)})
    with terminal.counting() as progress:
        make_missing(maker.units(), out, "Videos", progress)
    return Report(record, f"{out / VIDEOS}: {count(len(wanted), 'video')}; score them with pusa physics-iq score.")
