"""Which processes of the server live, so that the work of a dead one goes back to the queue exactly once.

Each server and worker has a row with a number that grows, its beat, and on its own machine a file that it keeps locked.
The operating system frees the lock at the moment of death. On other machines a process is dead if its beat has stood
still for `SILENT` seconds of the observer's monotonic clock, which nobody sets back, while the database answered.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

import sqlalchemy as sa

from pusa.serving.tables import PROCESSES

SILENT = 30.0
"""seconds without a beat after which a process on another machine is dead"""
PACE = 2.0
"""seconds between two beats"""


class Presence:
    """The row and the lock of this process. parent: the id of the server, for a worker."""

    def __init__(self, engine: sa.Engine, locks: Path, kind: str, parent: str | None = None) -> None:
        self.engine = engine
        self.id = f"{kind}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        locks.mkdir(parents=True, exist_ok=True)
        self.lock = locks / f"{self.id}.lock"
        self._held = self.lock.open("w")
        fcntl.flock(self._held, fcntl.LOCK_EX)
        row = {"id": self.id, "parent": parent, "host": this_machine(), "lock": str(self.lock.absolute()), "beat": 0}
        with engine.begin() as connection:
            connection.execute(sa.insert(PROCESSES), row)

    def beat(self) -> bool:
        """Say that the process lives. False if others have declared it dead, so that its work is no longer its own."""
        mine = (PROCESSES.c.id == self.id) & PROCESSES.c.ended.is_(None)
        with self.engine.begin() as connection:
            return connection.execute(sa.update(PROCESSES).where(mine).values(beat=PROCESSES.c.beat + 1)).rowcount == 1

    def children(self) -> int:
        """How many workers of this server have loaded the model and live."""
        mine = (PROCESSES.c.parent == self.id) & PROCESSES.c.ended.is_(None)
        with self.engine.connect() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(PROCESSES).where(mine)).scalar_one()

    def leave(self) -> None:
        """Say that the process ends as it should, and free the lock."""
        with suppress(sa.exc.SQLAlchemyError), self.engine.begin() as connection:
            mine = (PROCESSES.c.id == self.id) & PROCESSES.c.ended.is_(None)
            connection.execute(sa.update(PROCESSES).where(mine).values(ended="stopped"))
        self.lock.unlink(missing_ok=True)
        self._held.close()


class Observer:
    """Finds the processes that have died. clock: monotonic seconds."""

    def __init__(self, engine: sa.Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self.engine, self.clock = engine, clock
        self._host = socket.gethostname()
        self._moved: dict[str, tuple[int, float]] = {}  # {id: (beat, when it was first seen)}
        self._looked = clock()

    def dead(self) -> dict[str, str]:
        """The workers that have ended: {id: how}, which is "stopped", "alone" or "with its server".

        Many processes may ask at once. Raises the error of a database that does not answer; the silence that an
        observer could not hear then counts for nobody.
        """
        now = self.clock()
        if now - self._looked > SILENT / 2:  # this process or the database slept
            self._moved = {}
        with self.engine.connect() as connection:
            rows = connection.execute(sa.select(PROCESSES)).all()
        self._looked = now
        gone = {row.id for row in rows if row.ended is not None or self._is_dead(row, now)}
        living = {row.id for row in rows} - gone
        for row in rows:
            if row.id in gone and row.ended is None:
                word = "alone" if row.parent in living else "with its server"
                unmarked = (PROCESSES.c.id == row.id) & PROCESSES.c.ended.is_(None)
                with self.engine.begin() as connection:
                    connection.execute(sa.update(PROCESSES).where(unmarked).values(ended=word))
        with self.engine.connect() as connection:  # what the first observer to mark it said
            said = dict(connection.execute(sa.select(PROCESSES.c.id, PROCESSES.c.ended)).all())
        return {row.id: said[row.id] for row in rows if row.id in gone and row.parent is not None and said.get(row.id)}

    def forget(self, workers: Iterable[str]) -> None:
        """Remove the rows of workers whose work is back in the queue, and of servers that have ended and have none."""
        parents = sa.select(PROCESSES.c.parent).where(PROCESSES.c.parent.is_not(None)).scalar_subquery()
        servers = PROCESSES.c.parent.is_(None) & PROCESSES.c.ended.is_not(None) & PROCESSES.c.id.not_in(parents)
        for gone in (PROCESSES.c.id.in_(list(workers)), servers):
            with self.engine.begin() as connection:
                locks = connection.execute(sa.delete(PROCESSES).where(gone).returning(PROCESSES.c.lock)).scalars().all()
            for lock in locks:
                Path(lock).unlink(missing_ok=True)

    def _is_dead(self, row: sa.Row[tuple[object, ...]], now: float) -> bool:
        if row.host == this_machine() and (locked := _is_locked(Path(row.lock))) is not None:
            return not locked
        beat, since = self._moved.get(row.id, (None, now))
        if beat != row.beat:
            self._moved[row.id] = row.beat, now
            return False
        return now - since > SILENT


@cache
def this_machine() -> str:
    """This machine since it was started, as far as a process in a container can tell."""
    with suppress(OSError):
        return f"{socket.gethostname()} {Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
    return socket.gethostname()


def _is_locked(path: Path) -> bool | None:
    """Whether a process holds the file locked. None if there is no such file, as in another container."""
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return True
    return False
