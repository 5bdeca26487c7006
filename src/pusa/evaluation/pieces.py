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

from pusa import claims
from pusa.files import write_json

Progress = Callable[[str, int, int], None]
POLL = 1.0
"""seconds between two looks at what others have finished"""


@dataclass(frozen=True)
class Piece:
    """Something to make. file: there when it is done; needs: files that must be there before; make: makes it."""

    name: str
    file: Path
    make: Callable[[], None]
    needs: tuple[Path, ...] = field(default=())

    @property
    def time_file(self) -> Path:
        """Where it is noted how long the piece took."""
        return self.file.with_name(f".{self.file.name}.seconds")


def make_all(pieces: Sequence[Piece], folder: Path) -> None:
    """Make what is missing; returns when every piece is there, whoever made it. An error of a piece is raised."""
    folder.mkdir(parents=True, exist_ok=True)
    with claims.opened(folder / ".claims") as descriptor:
        while left := [piece for piece in pieces if not piece.file.exists()]:
            if not any([_made(piece, descriptor) for piece in left]):
                time.sleep(POLL)


def _made(piece: Piece, descriptor: int) -> bool:
    """Make a piece if it can be made and nobody else is at it."""
    if not all(need.exists() for need in piece.needs):
        return False
    with claims.hold(descriptor, piece.name, wait=False) as held:
        if held is False or piece.file.exists():
            return False
        started = time.monotonic()
        piece.file.parent.mkdir(parents=True, exist_ok=True)
        piece.make()
        write_json(piece.time_file, {"piece": piece.name, "seconds": round(time.monotonic() - started, 1)})
        return True


def make_with(
    processes: int, work: Callable[[], None], pieces: Sequence[Piece], what: str, progress: Progress = lambda *_: None
) -> None:
    """Have `work`, which can be pickled and calls `make_all` on the same pieces, done in so many processes.

    progress: told what is done from here. With one process the work is done in it, without another.
    """
    if processes == 1 and all(piece.file.exists() for piece in pieces):
        return
    pool = ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), _share_cores, (processes, os.cpu_count() or 1)
    )
    try:
        running: list[Future[None]] = [pool.submit(work) for _ in range(processes)]
        while not all(one.done() for one in running):
            for one in running:
                if one.done():
                    one.result()
            progress(what, sum(piece.file.exists() for piece in pieces), len(pieces))
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


def seconds(pieces: Sequence[Piece]) -> float:
    """What the pieces took, added up over processes; those made before times were kept count 0."""
    files = [piece.time_file for piece in pieces]
    return float(sum(json.loads(file.read_text(encoding="utf-8"))["seconds"] for file in files if file.exists()))
