"""`pusa vbench score`: run the official code on the videos, one dimension after the other."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter

from pusa.cli.shared.options import OUTPUT, File, Many, Switch, Verbosity
from pusa.cli.shared.terminal import Report, Terminal
from pusa.errors import InputError

OFFICIAL = Group.create_ordered("The official code")


def score(
    manifest: Annotated[Path, File],
    folder: Annotated[Path, File],
    *,
    vbench: Annotated[Path, File, Parameter(group=OFFICIAL, metavar="CHECKOUT")],
    python: Annotated[str, Parameter(group=OFFICIAL, show_default=lambda _: "this one")] = sys.executable,
    dimensions: Annotated[tuple[str, ...], Many, Parameter(metavar="NAME...", consume_multiple=True)] = (),
    download: Annotated[bool, Switch, Parameter(group=OFFICIAL)] = False,
    legacy_antialias: Annotated[bool, Switch, Parameter(group=OFFICIAL)] = False,
    out: Annotated[Path | None, File, Parameter(group=OUTPUT, show_default=lambda _: "FOLDER/scores")] = None,
    verbosity: Verbosity = Verbosity(),
) -> Report:
    """Score the videos with a checkout of VBench, in its own Python environment.

    The command first looks for the code, the crops and the weight files. If a dimension cannot run, it is reported as
    unavailable with the reason, and the exit code is 1. To resume, run the same command again.

    Parameters
    ----------
    manifest
        The manifest that the videos were made from.
    folder
        The folder that `pusa vbench generate` filled.
    vbench
        A checkout of Vchitect/VBench, with the crops in vbench2_beta_i2v/data/crop.
    python
        The Python of the environment of VBench.
    dimensions
        Dimensions to score. The default is the nine dimensions of the total.
    download
        Let the official code download missing weights.
    legacy_antialias
        Resize without antialiasing, like torchvision before 0.17, with which the leaderboard was computed.
    out
        Folder of the results.
    """
    terminal = Terminal(verbosity.verbose)
    with terminal.status("Starting"):
        from pusa.evaluation.vbench import manifest as manifests
        from pusa.evaluation.vbench import scoring
        from pusa.evaluation.vbench.protocol import DIMENSIONS
        from pusa.files import write_json

    chosen = list(dict.fromkeys(dimensions)) or list(DIMENSIONS)
    if unknown := [name for name in chosen if name not in scoring.MODULES]:
        raise InputError(f"There is no dimension {unknown[0]!r}; give one of {', '.join(scoring.MODULES)}.")
    plan = manifests.read(manifest)
    place = out or folder / "scores"
    checkout = scoring.Checkout(vbench, python, download, legacy_antialias)
    with terminal.counting() as progress:
        found = scoring.score(checkout, plan, folder, place, chosen, progress)
    results = place / "results.json"
    write_json(results, found)
    scored = {name: result for name, result in found.items() if name in scoring.MODULES}
    missing = [name for name in chosen if isinstance(found[name], dict)]
    lines = [f"{name:24}{_result_text(result)}" for name, result in scored.items()]
    record: dict[str, Any] = {"results": str(results), "unavailable": {n: found[n]["unavailable"] for n in missing}}
    record |= {
        "scores": {name: result[0] for name, result in scored.items() if name not in missing},
        "settings": found["settings"],
    }
    return Report(record, "\n".join([*lines, str(results)]), exit_code=int(bool(missing)))


def _result_text(result: Any) -> str:
    return f"unavailable: {result['unavailable']}" if isinstance(result, dict) else f"{100 * result[0]:.2f}"
