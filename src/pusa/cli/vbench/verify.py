"""`pusa vbench verify`: check that all videos exist and agree with the manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pusa.cli.shared.options import File, Verbosity
from pusa.cli.shared.terminal import Report, Terminal, count, printable
from pusa.errors import InputError

SHOWN = 20


def verify(
    manifest: Annotated[Path, File], folder: Annotated[Path, File], *, verbosity: Verbosity = Verbosity()
) -> Report:
    """List every video that is missing, damaged, duplicated, altered, or of another length, size or frame rate.

    Each file is decoded completely. The exit code is 1 if there is a problem.

    Parameters
    ----------
    manifest
        The manifest that the videos were made from.
    folder
        The folder that `pusa vbench generate` filled, or any folder with files of the official names in videos/.
    """
    terminal = Terminal(verbosity.verbose)
    with terminal.status("Starting"):
        from pusa.evaluation.vbench import manifest as manifests
        from pusa.evaluation.vbench import verification

    plan = manifests.read(manifest)
    if not (folder / verification.VIDEOS).is_dir():
        raise InputError(f"{folder} has no folder {verification.VIDEOS}; give the --out of pusa vbench generate.")
    with terminal.counting() as progress:
        found = verification.problems(plan, folder, lambda done, total: progress("Decoding", done, total))
    unknown = verification.without_recipe(plan, folder)
    good = len(plan.videos) - sum(problem.kind != "foreign" for problem in found)
    kinds = verification.summary(found)
    record = {
        "videos": len(plan.videos),
        "good": good,
        "without_recipe": len(unknown),
        "problems": [{"kind": p.kind, "file": p.file, "what": p.what} for p in found],
    }
    lines = [f"{p.kind:10} {printable(p.file)} {p.what}" for p in found[:SHOWN]]
    if len(found) > SHOWN:
        lines.append(f"… and {len(found) - SHOWN} more; --json lists all")
    counts = ", ".join(f"{len(files)} {kind}" for kind, files in kinds.items())
    lines.append(
        f"{good:,} of {count(len(plan.videos), 'video')} without a problem" + (f"; {counts}" if counts else "")
    )
    if unknown:
        lines.append(f"{count(len(unknown), 'video')} without a recipe: whether a file was replaced cannot be checked")
    return Report(record, "\n".join(lines), exit_code=int(bool(found)))
