"""Open a file that a stranger sent, in a process of its own with limits of memory and time.

Decoders are large programs, and a file can be made to crash them, to fill the memory, or to keep them busy. Then the
process ends and the server goes on. The process does not get the server's environment, which may hold passwords.
A picture is decoded completely, and a copy of it with the same pixels is what later stages open. A video is decoded
completely too, and the file itself is kept. FFmpeg opens only formats that hold all of their data themselves, since a
playlist can name other files and addresses.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pusa.errors import InputError, PusaError

PICTURE, ANSWER = "picture.png", "answer.json"
"""the names of what the process leaves in its folder"""
TAKEN = "PNG, JPEG, WebP, AVIF, HEIC, TIFF or BMP, or mp4, mov, mkv, webm, avi, mpegts or gif"
_PROGRAM = (sys.executable, "-P", "-m", "pusa.serving.inspection_process")
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
_LONGEST_ANSWER = 65_536
_LONGEST_LABEL = 100


@dataclass(frozen=True)
class UploadLimits:
    """What an uploaded file may need.

    Attributes:
        bytes: the size of the file.
        pixels: of a picture, or of a frame.
        frames, seconds: of a video.
        memory: bytes that opening the file may need, besides the program itself.
        cpu_seconds: computing time of opening it.
        wall_seconds: time that passes meanwhile; it is longer, since other work may slow the machine down.
    """

    bytes: int = 256 * 2**20
    pixels: int = 50_000_000
    frames: int = 3_000
    seconds: float = 120.0
    memory: int = 4 * 2**30
    cpu_seconds: int = 60
    wall_seconds: int = 240


@dataclass(frozen=True)
class Inspected:
    """What an uploaded file is.

    Attributes:
        kind: "image" for one picture, "video" for several.
        width, height: the displayed size in pixels, with the stated rotation.
        frames: 1 for a picture.
        fps: frames per second, the average if the rate varies; 0 for a picture.
        path: the file that later stages open: a PNG copy of a picture, and a video itself.
        notes: what was changed to show it, one sentence each, such as the tone-mapping of HDR.
    """

    kind: Literal["image", "video"]
    width: int
    height: int
    frames: int
    fps: float
    path: Path
    notes: tuple[str, ...] = ()


def inspect(path: Path, folder: Path, limits: UploadLimits, label: str) -> Inspected:
    """Find out what an uploaded file is, and make a plain copy of a picture.

    It waits for a process. Several threads may call it at once; each call may need `limits.memory`.

    Args:
        path: the file.
        folder: where the copy `<stem of path>.png` is written. It replaces a file of that name.
        limits: what the file may need.
        label: the name of the file in messages; it may come from the stranger.

    Raises InputError with one sentence if the file is not a picture or a video that is taken, is damaged, or exceeds
    a limit, and PusaError if the process cannot do its work.
    """
    path, label = path.absolute(), shown(label)
    if (size := path.stat().st_size) > limits.bytes:
        raise InputError(f"{label} has {size:,} bytes, and {limits.bytes:,} are taken; give a smaller file")
    with tempfile.TemporaryDirectory(prefix=".inspection-", dir=folder) as name:
        place = Path(name)
        answer = _answer(path, place, limits, label)
        if answer["kind"] == "image":
            copy = folder / f"{path.stem}.png"
            os.replace(place / PICTURE, copy)
            path = copy
    notes = tuple(note.replace(name, label) for note in answer.pop("notes"))
    return Inspected(**answer, path=path, notes=notes)


def shown(label: str) -> str:
    """A name that a stranger chose, as it may stand in a message: one line of printable characters, not too long."""
    printable = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in label)
    return printable if len(printable) <= _LONGEST_LABEL else f"{printable[: _LONGEST_LABEL - 1]}…"


def _answer(path: Path, place: Path, limits: UploadLimits, label: str) -> dict[str, Any]:
    """Run the process in the folder `place`, and return the fields of `Inspected` but the path."""
    errors = place / "errors.txt"
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ} | _ONE_THREAD
    modules = os.pathsep.join(map(os.path.abspath, sys.path))
    with errors.open("wb") as file:
        process = subprocess.Popen(
            [*_PROGRAM, str(path), json.dumps(asdict(limits))],
            cwd=place,
            env=environment | {"PYTHONPATH": modules, "TMPDIR": str(place)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=file,
            start_new_session=True,
        )
    try:
        ended = process.wait(limits.wall_seconds)
    except subprocess.TimeoutExpired:
        ended = -signal.SIGALRM
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if ended < 0:
        raise InputError(_why(-ended, limits, label))
    if ended > 0:
        said = errors.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise PusaError(f"{label} could not be inspected: the process ended with code {ended}", [said])
    with (place / ANSWER).open("rb") as answer_file:
        answer: dict[str, Any] = json.loads(answer_file.read(_LONGEST_ANSWER))
    if error := answer.get("error"):
        raise InputError(str(error).replace(str(path), label))
    answer["notes"] = [note.replace(str(path), label) for note in answer["notes"]]
    return answer


def _why(number: int, limits: UploadLimits, label: str) -> str:
    """The sentence for a process that a signal ended."""
    if number == signal.SIGXCPU:
        return f"{label} needs more than {limits.cpu_seconds} s of computing to be opened; give a smaller file"
    if number == signal.SIGALRM:
        return f"{label} could not be opened in {limits.wall_seconds} s; try it again, or give a smaller file"
    cause = signal.strsignal(number) or f"signal {number}"
    return f"{label} stops the program that opens it ({cause}); save it again, as {TAKEN}"
