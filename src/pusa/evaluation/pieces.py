"""Long work as pieces that are files: made once, by any of several processes, and never again.

A piece is there or it is not, since files are written beside themselves and renamed. So a run that was killed goes on
where it was when the same command is given again, a second process beside it takes what nobody has begun, and a process
that dies gives its piece back.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pusa import claims
from pusa.cluster import connected, layout
from pusa.errors import InputError
from pusa.files import write_json
from pusa.training.data.tensor_store import make_folder

Progress = Callable[[str, int, int], None]
Told = Callable[[], None]
"""called at the beginning and after each piece that was made"""
TIMES = ".times.jsonl"
"""in the folder of the work: how long each piece took"""
RUN = "run.json"
"""in the folder of the work: the settings that it was begun with"""
POLL = 1.0
"""seconds between two looks at what others have finished"""


@dataclass(frozen=True)
class Piece:
    """Something to make. file: there when it is done; needs: files that must be there before; make: makes it."""

    name: str
    file: Path
    make: Callable[[], None]
    needs: tuple[Path, ...] = field(default=())


def untold() -> None:
    """Nobody listens."""


def make_all(pieces: Sequence[Piece], folder: Path, told: Told = untold) -> None:
    """Make what is missing; returns when every piece is there, whoever made it. An error of a piece is raised."""
    told()
    make_folder(folder, "the results")
    with claims.opened(folder / ".claims") as descriptor:
        while left := [piece for piece in pieces if not piece.file.exists()]:
            made = 0
            for piece in left:
                if _made(piece, descriptor, folder / TIMES):
                    made += 1
                    told()
            if not made:
                time.sleep(POLL)


def _made(piece: Piece, descriptor: int, times: Path) -> bool:
    """Make a piece if it can be made and nobody else is at it."""
    if not all(need.exists() for need in piece.needs):
        return False
    with claims.hold(descriptor, piece.name, wait=False) as held:
        if held is False or piece.file.exists():
            return False
        started = time.monotonic()
        piece.file.parent.mkdir(parents=True, exist_ok=True)
        piece.make()
        line = json.dumps({"piece": piece.name, "seconds": round(time.monotonic() - started, 1)})
        with times.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        return True


def make_with(
    processes: int,
    work: Callable[[Told], None],
    pieces: Sequence[Piece],
    what: str,
    progress: Progress = lambda *_: None,
) -> None:
    """Have `work`, which can be pickled and calls `make_all` on the same pieces, done in so many processes, or in this.

    Several share the cores. progress: told here how many pieces are there. The first error of a process is raised, and
    ends the others.
    """

    def count() -> None:
        progress(what, sum(piece.file.exists() for piece in pieces), len(pieces))

    if all(piece.file.exists() for piece in pieces):
        return
    if processes == 1:
        work(count)
        return
    pool = ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), _share_cores, (processes, os.cpu_count() or 1)
    )
    try:
        running: list[Future[None]] = [pool.submit(work, untold) for _ in range(processes)]
        while not all(one.done() for one in running):
            for one in running:
                if one.done():
                    one.result()
            count()
            time.sleep(POLL)
        for one in running:
            one.result()
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _share_cores(processes: int, cores: int) -> None:
    import torch

    torch.set_num_threads(max(1, cores // processes))


def begun_with(folder: Path, settings: dict[str, Any]) -> None:
    """Make the folder one of these settings, or see that it is; InputError for one that was begun with others."""
    file = folder / RUN
    if not file.exists():
        make_folder(folder, "the results")
        write_json(file, settings)
        return
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        odd = [key for key in dict.fromkeys([*known, *settings]) if known.get(key) != settings.get(key)]
    except (ValueError, TypeError) as error:
        raise InputError(f"{file} is damaged; put it back, or take an empty folder.") from error
    if odd:
        raise InputError(
            f"{folder} was begun with {odd[0]} {known.get(odd[0])!r} and not {settings.get(odd[0])!r}; take another "
            "folder, or the same settings."
        )


def over_cluster(
    address: str,
    workers: int | None,
    work: Callable[[Told], None],
    pieces: Sequence[Piece],
    what: str,
    progress: Progress = lambda *_: None,
) -> None:
    """`make_with` for the processes of a Ray cluster, which see folder, sources and model under the same paths."""
    with connected(address) as ray:
        shape = layout([node["Resources"] for node in ray.nodes() if node["Alive"]], workers)
        task = ray.remote(lambda: work(untold)).options(
            num_cpus=shape.cpus, num_gpus=shape.gpus, scheduling_strategy="SPREAD"
        )
        waiting = running = [task.remote() for _ in range(shape.workers)]
        while waiting:
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=POLL)
            progress(what, sum(piece.file.exists() for piece in pieces), len(pieces))
        ray.get(running)


def seconds(pieces: Sequence[Piece], folder: Path) -> float:
    """What the pieces took when they were made, added up over processes."""
    file = folder / TIMES
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    took = {row["piece"]: row["seconds"] for row in map(json.loads, lines)}
    return float(sum(took.get(piece.name, 0.0) for piece in pieces))
