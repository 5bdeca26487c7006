"""`pusa train`: train an adapter on a folder of clips. Every setting is an option, see `shared.setting_options`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pusa.cli.shared.options import OUTPUT, File, Switch, Verbosity
from pusa.cli.shared.setting_options import given, with_settings
from pusa.cli.shared.terminal import Report, Terminal
from pusa.errors import Cancelled, InputError


@with_settings()
def train(
    config: Annotated[Path | None, File, Parameter(metavar="CONFIG")] = None,
    *,
    preset: Annotated[str | None, Parameter(metavar="NAME")] = None,
    presets: Annotated[bool, Switch] = False,
    data: Annotated[str | None, Parameter(metavar="DIR")] = None,
    resume_from: Annotated[Path | None, File, Parameter(metavar="CHECKPOINT")] = None,
    out: Annotated[
        Path | None, File, Parameter(group=OUTPUT, show_default=lambda _: "runs/ and the name of CONFIG or preset")
    ] = None,
    overwrite: Annotated[bool, Switch, Parameter(group=OUTPUT)] = False,
    verbosity: Verbosity = Verbosity(),
    **overrides: str | None,
) -> Report | None:
    """Train an adapter on a folder of clips. It gives a text-to-video model one timestep per frame.

    If training is interrupted, run the same command again. It resumes from the last checkpoint. To use several devices,
    start it with torchrun -m pusa train or accelerate launch -m pusa train, with the same options.

    Parameters
    ----------
    config
        A .yaml or .toml file of settings. Options such as --train.lr override it.
    preset
        A named set of settings; CONFIG and options override it. --presets lists all presets.
    presets
        List the presets with their memory and time, and exit.
    data
        A folder of clips with captions, a table of clips, or the hub id of a dataset.
    resume_from
        Begin with a checkpoint of another run, such as runs/first/checkpoints/step_000300. Give a new --out; the other
        run does not change.
    out
        Folder of the run.
    overwrite
        Continue in a folder that was trained with other settings.
    """
    if presets:
        return _presets()
    is_rank_zero = os.environ.get("RANK", "0") == "0"
    terminal = Terminal(is_rank_zero and verbosity.verbose)
    named = given(overrides)
    if data is not None and named.setdefault("data.path", data) != data:
        raise InputError("--data and --data.path are the same option and have different values; give one of them.")
    with terminal.status("Starting"):
        from pusa.training.config.tree import read
        from pusa.training.data import dataset

        chosen = read(config, preset, named)
        if not chosen.data.sources:
            raise InputError("There are no clips to train on; give --data DIR, or data.path in the settings.")
        for source in chosen.data.sources:
            dataset.check_place(source.path)  # before torch is imported

        from pusa.training.run import run
    name = config.stem if config else preset or "tiny-base"
    try:
        outcome = run(chosen, out or Path("runs") / name, resume_from=resume_from, force=overwrite, terminal=terminal)
    except Cancelled as error:
        if is_rank_zero:
            raise
        raise SystemExit(error.exit_code) from error
    if not is_rank_zero:
        return None
    result = outcome.result
    record = {
        "folder": str(result.folder),
        "output": str(result.output),
        "first": result.first,
        "steps": result.steps,
        "loss": result.loss,
        "skipped": list(result.skipped),
        "samples": outcome.samples,
        "held_out": outcome.held_out,
        "unused": [{"path": str(one.path), "kind": one.kind, "reason": one.reason} for one in outcome.problems],
    }
    return Report(record, str(result.output))


def _presets() -> Report:
    from pusa.training.config.presets import PRESETS

    record = {
        name: {"memory": preset.memory, "time": preset.time, "note": preset.note} for name, preset in PRESETS.items()
    }
    width = max(map(len, PRESETS))
    lines = [
        line
        for name, preset in PRESETS.items()
        for line in (f"{name:{width}}  {preset.note}", f"{'':{width}}  {preset.memory}; {preset.time}")
    ]
    return Report({"presets": record}, "\n".join(lines))
