"""Who is making what, among processes that fill one folder: byte locks on one file, which the kernel takes back.

A process that dies gives up its claims with its life, so nothing is left to clean up and nobody waits for it. On a file
system without locks everybody is let through, and two processes may make the same thing.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def opened(file: Path) -> Iterator[int]:
    """The descriptor of a file of claims, made if it is not there, for one process; raises OSError."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def hold(descriptor: int, name: str, *, wait: bool) -> Iterator[bool | None]:
    """Claim a name for the block: True, False when another process has it and `wait` is False, None without locks."""
    place = int(hashlib.sha256(name.encode()).hexdigest()[:15], 16)
    held: bool | None = True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, place)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN, *_NO_LOCKS):
            raise
        held = None if error.errno in _NO_LOCKS else False
    try:
        yield held
    finally:
        if held:
            fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, place)
