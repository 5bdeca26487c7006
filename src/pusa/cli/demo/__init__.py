"""`pusa demo`: run every task on real input and write a page that shows matrix and clip side by side.

Each task is an ordinary command line, run in this process through the door that the console command uses; the page
shows the very tokens that were run. The given pictures and clips are a photograph that ships with the package and
held-out scenes of the embedded world, whose truth is shown next to the result.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from pusa.cli.shared.clip_jobs import open_pipeline
from pusa.cli.shared.options import MODEL, OUTPUT, File, Model, Talk
from pusa.cli.shared.terminal import Report, Terminal
from pusa.errors import InputError

if TYPE_CHECKING:
    from pusa.cli.demo.page import Exhibit
    from pusa.cli.demo.tasks import Task

MARK = "demo.json"
"""The file by which a folder is known as the demo's own, which a second run may make again."""


def demo(
    *,
    out: Annotated[Path, File, Parameter(group=OUTPUT)] = Path("outputs/demo"),
    model: Annotated[str, Parameter(group=MODEL)] = "tiny",
    talk: Talk = Talk(),
) -> Report:
    """Run every task on real input and write a page that shows them.

    Parameters
    ----------
    out
        Folder for the clips (mp4), contact_sheet.png, matrix_beside_clip.png, matrix_above_clip.gif and index.html.
    model
        Another model than the embedded one; it must make clips of 64x64.
    """
    terminal = Terminal(talk.talkative)
    claim(out)
    started = time.perf_counter()
    with terminal.status("Starting"):
        from pusa.cli.demo import pictures
        from pusa.cli.demo.page import page
        from pusa.cli.demo.tasks import tasks
        from pusa.files import replacing, write_json, write_text_atomic
        from pusa.images import write_image

        todo = tasks(out / "inputs")
    open_pipeline(Model(model=model), terminal)
    exhibits: list[Exhibit] = []
    for number, task in enumerate(todo, 1):
        name = f"{number:02}_{task.title.lower().replace(',', '').replace(' ', '_')}.mp4"
        options = [] if model == "tiny" else ["--model", model]
        exhibits.append(_run(task, out / name, options))
        terminal.note(f"{number:2} of {len(todo)}  {task.title:24} {exhibits[-1].seconds:5.1f} s")
    write_image(out / "contact_sheet.png", pictures.contact_sheet(exhibits))
    picked = ("Text to video", "Image to video, a shape", "Start and end", "Completion")
    chosen = [x for x in exhibits if x.title in picked]
    write_image(out / "matrix_beside_clip.png", pictures.matrix_beside_clip(chosen))
    with replacing(out / "matrix_above_clip.gif") as part:
        first, *others = pictures.animation(chosen)
        duration = [round(1000 / chosen[0].fps)] * len(others) + [1000]  # the last frame stays for a second
        first.save(part, "GIF", save_all=True, append_images=others, duration=duration, loop=0)
    seconds = time.perf_counter() - started
    write_text_atomic(out / "index.html", page(exhibits, _facts(seconds)))
    clips = [
        {"task": x.title, "path": str(out / x.file), "command": x.command, "seconds": round(x.seconds, 2)}
        for x in exhibits
    ]
    record = {"page": str(out / "index.html"), "seconds": round(seconds, 1), "clips": clips}
    write_json(out / MARK, record)
    terminal.note(f"{seconds:.0f} s in all; open the page in a browser:")
    return Report(record, str(out / "index.html"))


def _run(task: Task, path: Path, options: Sequence[str]) -> Exhibit:
    """Run a task's command line and put it on show."""
    from pusa.cli import run
    from pusa.cli.demo.page import Exhibit, Given

    command = [*task.tokens, *options]
    started = time.perf_counter()
    report = run([*command, "--out", str(path), "--overwrite", "--quiet"])
    seconds = time.perf_counter() - started
    assert report is not None
    clip = report.clips[0]
    return Exhibit(
        title=task.title,
        explanation=task.explanation,
        prompt=clip.prompt,
        command=shlex.join(["pusa", *command]).replace("'", '"'),
        file=path.name,
        seconds=seconds,
        fps=clip.fps,
        frames=clip.frames,
        matrix=clip.matrix,
        given={column: Given(frames, caption) for column, (frames, caption) in task.given.items()},
        first_slot=task.first_slot,
        truth=task.truth,
    )


def _facts(seconds: float) -> list[str]:
    """Lines about the run for the foot of the page."""
    import os
    import platform

    import torch

    from pusa.generation.model import versions

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    software = ", ".join(f"{name} {number}" for name, number in versions().items())
    return [
        f"{seconds:.0f} s in all on {device} ({platform.machine()}); {software}.",
        "Every clip has a sidecar that makes it again: pusa generate --from CLIP.json --out AGAIN.mp4",
        "The photograph is Chelsea the cat by Stefan van der Walt, CC0, from scikit-image.",
    ]


def claim(out: Path) -> None:
    """Make the folder; one that holds something else than an earlier demo is left alone."""
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).is_file():
        raise InputError(f"{out} holds other files; give --out a new folder.")
    (out / "inputs").mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()
