"""`pusa demo`: run every task on real input and write a page that shows each clip next to its timestep matrix.

Each task is an ordinary command line. It runs in this process through `pusa.cli.run`, like the console command, and the
page shows exactly this command line. The input is a photograph from the package and held-out scenes of the synthetic
world. For a scene, the page also shows its true frames.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from pusa.cli.shared.clip_jobs import open_pipeline
from pusa.cli.shared.options import MODEL, OUTPUT, File, Model, Verbosity
from pusa.cli.shared.terminal import Report, Terminal
from pusa.errors import InputError

if TYPE_CHECKING:
    from pusa.cli.demo.page import TaskResult
    from pusa.cli.demo.tasks import Task

MARKER = "demo.json"
"""A folder with this file was made by the demo, so the demo may overwrite it."""


def demo(
    *,
    out: Annotated[Path, File, Parameter(group=OUTPUT)] = Path("outputs/demo"),
    model: Annotated[str, Parameter(group=MODEL)] = "tiny",
    verbosity: Verbosity = Verbosity(),
) -> Report:
    """Run every task on real input and write an HTML page with the results.

    Parameters
    ----------
    out
        Folder for the clips (mp4), contact_sheet.png, matrix_beside_clip.png, matrix_above_clip.webp and index.html.
    model
        The model. It must make clips of 64x64.
    """
    terminal = Terminal(verbosity.verbose)
    prepare_folder(out)
    started = time.perf_counter()
    with terminal.status("Starting"):
        from pusa.cli.demo import pictures
        from pusa.cli.demo.page import page
        from pusa.cli.demo.tasks import tasks
        from pusa.files import replacing, write_json, write_text_atomic
        from pusa.media.images import write_image

        all_tasks = tasks(out / "inputs")
    open_pipeline(Model(model=model), terminal)
    results: list[TaskResult] = []
    width = max(len(task.title) for task in all_tasks)
    for number, task in enumerate(all_tasks, 1):
        name = f"{number:02}_{task.title.lower().replace(',', '').replace(' ', '_')}.mp4"
        options = [] if model == "tiny" else ["--model", model]
        results.append(_run(task, out / name, options))
        terminal.note(f"{number:2} of {len(all_tasks)}  {task.title:{width}} {results[-1].seconds:5.1f} s")
    write_image(out / "contact_sheet.png", pictures.contact_sheet(results))
    titles = ("Text to video", "Image to video", "Start and end, a photograph", "Completion")
    chosen = [result for result in results if result.title in titles]
    write_image(out / "matrix_beside_clip.png", pictures.matrix_beside_clip(chosen))
    with replacing(out / "matrix_above_clip.webp") as part:
        first, *others = pictures.animation(chosen)
        duration = [round(1000 / chosen[0].fps)] * len(others) + [1000]  # the last frame is shown for one second
        first.save(part, "WEBP", save_all=True, append_images=others, duration=duration, loop=0, lossless=True)
    seconds = time.perf_counter() - started
    write_text_atomic(out / "index.html", page(results, _run_notes(seconds)))
    clips = [
        {"task": x.title, "path": str(out / x.file), "command": x.command, "seconds": round(x.seconds, 2)}
        for x in results
    ]
    record = {"page": str(out / "index.html"), "seconds": round(seconds, 1), "clips": clips}
    write_json(out / MARKER, record)
    terminal.note(f"Total time: {seconds:.0f} s. Open this page in a browser:")
    return Report(record, str(out / "index.html"))


def _run(task: Task, path: Path, options: Sequence[str]) -> TaskResult:
    """Run the command line of a task. path: the clip. options: further options of the command."""
    from pusa.cli import run
    from pusa.cli.demo.page import Given, TaskResult

    command = [*task.tokens, *options]
    started = time.perf_counter()
    report = run([*command, "--out", str(path), "--overwrite", "--quiet"])
    seconds = time.perf_counter() - started
    assert report is not None
    clip = report.clips[0]
    return TaskResult(
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


def _run_notes(seconds: float) -> list[str]:
    """Return the lines about the run at the bottom of the page."""
    import os
    import platform

    import torch

    from pusa.versions import versions

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    software = ", ".join(f"{name} {number}" for name, number in versions().items())
    return [
        f"Total time: {seconds:.0f} s on {device} ({platform.machine()}); {software}.",
        "Every clip has a sidecar. To remake a clip from it, run: pusa generate --from CLIP.json --out COPY.mp4",
        "The photographs come from scikit-image: Chelsea the cat by Stefan van der Walt (CC0), a cup of coffee by "
        "Rachel Michetti (CC0), and a launch of a Falcon 9 by SpaceX (public domain). The model was not trained on "
        "them.",
    ]


def prepare_folder(out: Path) -> None:
    """Create the folder. Raises InputError if it contains files that the demo did not make."""
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise InputError(f"{out} contains other files; give a new folder with --out.")
    (out / "inputs").mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()
