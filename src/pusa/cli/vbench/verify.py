"""`pusa vbench verify`: whether all videos are there and are what the manifest says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pusa.cli.shared.options import File, Talk
from pusa.cli.shared.terminal import Report, Terminal, count, printable
from pusa.errors import InputError

SHOWN = 20


def verify(manifest: Annotated[Path, File], folder: Annotated[Path, File], *, talk: Talk = Talk()) -> Report:
    """Name every video that is missing, damaged, duplicated, altered or of another length, size or frame rate.

    Each file is decoded whole. Exit code 1 when anything is wrong.

    Parameters
    ----------
    manifest
        The manifest that the videos were made from.
    folder
        The folder that `pusa vbench generate` filled; files by the official names in its videos/ will do.
    """
    terminal = Terminal(talk.talkative)
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
        lines.append(f"… and {len(found) - SHOWN} more; --json names all")
    counts = ", ".join(f"{len(files)} {kind}" for kind, files in kinds.items())
    lines.append(
        f"{good:,} of {count(len(plan.videos), 'video')} as they should be" + (f"; {counts}" if counts else "")
    )
    if unknown:
        lines.append(f"{count(len(unknown), 'video')} without a recipe: whether they were exchanged cannot be told")
    return Report(record, "\n".join(lines), exit_code=int(bool(found)))
