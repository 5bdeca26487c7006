"""A process that took rights from itself has lost them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

START = """
import os, signal, socket, subprocess, sys
from pathlib import Path
from pusa.serving.confinement import reach_only, use_at_most

def refused(action):
    try:
        action()
    except OSError as error:
        return type(error) is PermissionError
    return False

"""
REACH = """
inside, outside, port, parent = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
if not reach_only([outside / "one.txt", sys.prefix, sys.base_prefix, "/nothing/is/here"], [inside]):
    sys.exit(77)
"""
USE = "use_at_most(memory=2**28, written=1000, cpu_seconds={cpu}, wall_seconds={wall}, processors=1)\n"
TRY = """
try:
    {action}
except {error}:
    sys.exit(0)
sys.exit(1)
"""


def outcome(program: str, *arguments: object) -> int:
    done = subprocess.run([sys.executable, "-c", START + program, *map(str, arguments)], timeout=3000)
    return done.returncode


@pytest.mark.parametrize(
    "fails",
    [
        'refused(lambda: (outside / "two.txt").read_text())',
        'refused(lambda: (outside / "one.txt").write_text("x"))',
        'refused(lambda: (outside / "new.txt").write_text("x"))',
        'refused(lambda: (outside / "one.txt").unlink())',
        "refused(lambda: os.listdir(outside))",
        'refused(lambda: Path("/etc/passwd").read_text())',
        'refused(lambda: Path(f"/proc/{parent}/environ").read_bytes())',
        'refused(lambda: subprocess.run(["/bin/true"]))',
        'refused(lambda: socket.create_connection(("127.0.0.1", port)))',
        "refused(lambda: os.kill(parent, 0))",
    ],
)
def test_what_is_outside_is_not_reached(tmp_path: Path, fails: str) -> None:
    assert reached(tmp_path, fails) == 0


def reached(folder: Path, check: str) -> int:
    """0 if the check holds in a process that can only reach some files; skips where the system cannot do that."""
    for name in ("inside", "outside"):
        (folder / name).mkdir()
    for name in ("one.txt", "two.txt"):
        (folder / "outside" / name).write_text(name)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = outcome(f"{REACH}sys.exit(not {check})", folder / "inside", folder / "outside", port, os.getpid())
    if code == 77:
        pytest.skip("this system has no Landlock")
    return code


def test_what_is_allowed_is_reached(tmp_path: Path) -> None:
    check = """(
        (outside / "one.txt").read_text() == "one.txt"
        and (inside / "a.txt").write_text("x") == 1
        and (inside / "a.txt").rename(inside / "b.txt").read_text() == "x"
    )"""
    assert reached(tmp_path, check) == 0


def test_resources_end(tmp_path: Path) -> None:
    assert outcome(USE.format(cpu=1, wall=3000) + "while True: pass") == -signal.SIGXCPU
    assert outcome(USE.format(cpu=3000, wall=1) + "signal.pause()") == -signal.SIGALRM
    large = USE.format(cpu=3000, wall=3000)
    assert outcome(large + "sys.exit(len(bytes(2**27)) != 2**27)") == 0
    assert outcome(large + TRY.format(action="bytes(2**29)", error="MemoryError")) == 0
    write = f"Path({str(tmp_path / 'a')!r}).write_bytes(bytes(1001))"
    assert outcome(large + TRY.format(action=write, error="OSError")) == 0
    assert outcome(large + "sys.exit(len(os.sched_getaffinity(0)) != 1)") == 0
