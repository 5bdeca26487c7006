"""One process's part of shared work: claim a unit, make it, and wait for units that other processes make.

A claim is a lock on one byte of a file, at a position that the unit's name decides. If a process dies, the kernel
releases its claims, so that another process can take the unit at once. On a file system without locks, every process
gets every claim: the result is still right, because files are replaced atomically, but two processes may make the same
unit.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from pusa.errors import STOPS
from pusa.files import make_folder, part_prefix, remove_parts, unwritable_folder

POLL = 0.5
"""seconds between two attempts to claim units that another process has claimed"""
WAITING = "Waiting for another process"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

E = TypeVar("E", bound=BaseException)
Progress = Callable[[str, int, int], None]
"""Called with what is going on, how many units are finished, and how many there are."""


def no_progress(what: str, finished: int, total: int) -> None:
    """The callback of a caller that shows no progress."""


@dataclass(frozen=True)
class Unit:
    """A file to make.

    name: unique in its claims file, and the same in every process. make: makes the file; the file's folder exists when
    it is called. needs: files that must exist before. also: other files that `make` writes. is_done: whether the result
    is complete; by default, whether `file` exists.
    """

    name: str
    file: Path
    make: Callable[[], None]
    needs: tuple[Path, ...] = ()
    also: tuple[Path, ...] = ()
    is_done: Callable[[], bool] | None = None

    def done(self) -> bool:
        """Whether the result is complete. Without a claim, another process may complete it at any time."""
        return self.is_done() if self.is_done else self.file.exists()

    @property
    def parts(self) -> dict[Path, Path]:
        """The files that `make` writes, by `files.part_prefix`; files with one prefix are one entry."""
        return {part_prefix(file): file for file in (self.file, *self.also)}


@dataclass
class Outcome(Generic[E]):
    """What `make_units` did, by the names of units.

    made: by this process. found: done before, or made by another process. failed: the errors of units that this process
    could not make.
    """

    made: list[str] = field(default_factory=list)
    found: list[str] = field(default_factory=list)
    failed: dict[str, E] = field(default_factory=dict)


def make_units(
    units: Sequence[Unit],
    claims: Path,
    contents: str,
    progress: Progress = no_progress,
    *,
    label: str = "Working",
    collect: tuple[type[E], ...] = (),
) -> Outcome[E]:
    """Make the units that no other process makes; return when every unit is done or has failed in this process.

    claims: a file in the folder that the processes fill; it is created if it is missing. contents: what that folder
    contains, for error messages, such as "the cache". label: what `progress` is called with while units are made.
    collect: errors of a unit after which the other units are still made; any other error, and each of `errors.STOPS`,
    is raised. If another process fails to make a unit, this process tries it, too. Half-written files that a killed
    process left are removed.

    Raises InputError if the folder cannot be written.
    """
    outcome: Outcome[E] = Outcome()
    lost: dict[Path, E] = {}
    prefixes = Counter(prefix for unit in units for prefix in unit.parts)
    make_folder(claims.parent, contents)

    def attempt(unit: Unit) -> bool:
        """Finish a unit; False if another process has claimed it or a file that it needs is missing."""
        if missing := [need for need in unit.needs if not need.exists()]:
            if error := next((lost[need] for need in missing if need in lost), None):
                lost[unit.file] = outcome.failed[unit.name] = error
            return error is not None
        with claim(descriptor, unit.name) as claimed:
            if claimed is False:
                return False
            try:
                if unit.done():
                    outcome.found.append(unit.name)
                    return True
                if claimed:
                    for prefix, file in unit.parts.items():
                        if prefixes[prefix] == 1:
                            remove_parts(file)
                make_folder(unit.file.parent, contents)
                unit.make()
                outcome.made.append(unit.name)
            except STOPS:
                raise
            except collect as error:
                # The frames of a traceback would keep the arrays of every failed unit in memory.
                error.__traceback__ = error.__cause__ = error.__context__ = None
                lost[unit.file] = outcome.failed[unit.name] = error
        return True

    with open_claims(claims, contents) as descriptor:
        left = []
        for unit in units:
            with suppress(*collect):  # it is asked again below, where its error counts as a failure of the unit
                if unit.done():
                    outcome.found.append(unit.name)
                    continue
            left.append(unit)
        finished = len(units) - len(left)
        progress(label, finished, len(units))
        while left:
            later = []
            for unit in left:
                if attempt(unit):
                    finished += 1
                    progress(label, finished, len(units))
                else:
                    later.append(unit)
            if len(later) == len(left):
                progress(WAITING, finished, len(units))
                time.sleep(POLL)
            left = later
    return outcome


@contextmanager
def open_claims(file: Path, contents: str) -> Iterator[int]:
    """The descriptor of a claims file, for one process. Raises InputError if the file cannot be opened.

    Open it once in a process: if a process closes any descriptor of the file, it loses all its claims.
    """
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise unwritable_folder(file.parent, contents, error) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def claim(descriptor: int, name: str) -> Iterator[bool | None]:
    """Claim a name for the block.

    Yields True; False if another process has claimed the name; None if the file system has no locks.
    """
    position = int(hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:15], 16)
    claimed: bool | None = True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, position)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN, *_NO_LOCKS):
            raise
        claimed = None if error.errno in _NO_LOCKS else False
    try:
        yield claimed
    finally:
        if claimed:
            fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, position)
