"""Take rights from this process for as long as it lives: how much it may use, and what it can reach.

Limits of resources are those of POSIX. What it can reach is limited with Landlock, which Linux offers to every process
since version 5.13, and which needs no rights. A decoder that a file has taken over then finds no files of others, no
passwords and no network.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

_CREATE, _ADD, _RESTRICT = 444, 445, 446
"""the system calls of Landlock, which have the same numbers on all processors in use"""
_GET_VERSION, _BENEATH = 1, 1
_NO_NEW_PRIVILEGES = 38
_READ_FILE, _READ_FOLDER = 1 << 2, 1 << 3
_ALL_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""{version of Landlock: rights to files that it can take}"""
_OF_FILES = 0b111 | 1 << 14 | 1 << 15
"""the rights that a file can have, and not only a folder"""
_TCP, _OTHERS = 0b11, 0b11
"""to bind and connect, since version 4; abstract sockets and signals to processes outside, since version 6"""


def use_at_most(*, memory: int, written: int, cpu_seconds: int, wall_seconds: int, processors: int) -> None:
    """Limit what this process can use. It is ended if it exceeds a time, and gets an error if it exceeds the others.

    Args:
        memory: bytes that it may ask for, besides what it has. Linux only.
        written: bytes of the longest file that it may write.
        cpu_seconds, wall_seconds: computing time, and time that passes; signals SIGXCPU and SIGALRM end it.
        processors: how many it may run on; libraries start a thread for each. Linux only.
    """
    signal.alarm(wall_seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (written, written))
    if sys.platform == "linux":
        has = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (has + memory, has + memory))
        own = sorted(os.sched_getaffinity(0))
        start = os.getpid() % len(own)  # several such processes do not all take the same ones
        os.sched_setaffinity(0, (own + own)[start : start + processors])


def reach_only(read: Iterable[str | Path], write: Iterable[str | Path]) -> bool:
    """Let this thread and those that it starts reach only some files, no TCP port, and no other process.

    Args:
        read: files, and folders with all that is in them, that may be read. Those that do not exist are left out.
        write: the same, for reading and writing.

    Returns False if the system has no Landlock. Then Linux only rules out new privileges.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    version = libc.syscall(_CREATE, None, 0, _GET_VERSION)
    if version < 1:
        return False
    rights = _ALL_RIGHTS[max(known for known in _ALL_RIGHTS if known <= version)]
    taken = struct.pack("QQQ", rights, _TCP, _OTHERS)[: 8 if version < 4 else 16 if version < 6 else 24]
    rules = _checked(libc.syscall(_CREATE, taken, len(taken), 0))
    for paths, given in ((read, _READ_FILE | _READ_FOLDER), (write, rights)):
        for path in filter(os.path.exists, paths):
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            kept = given if os.path.isdir(path) else given & _OF_FILES
            _checked(libc.syscall(_ADD, rules, _BENEATH, struct.pack("=Qi", kept, place), 0))
            os.close(place)
    _checked(libc.syscall(_RESTRICT, rules, 0))
    os.close(rules)
    return True


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
