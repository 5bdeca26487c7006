"""Train in processes of their own and kill them with SIGKILL, again and again, until one reaches the end.

    python -m tests.training.killing FOLDER SETTINGS_JSON KILLS_JSON [MODULE:OBJECTIVE]

KILLS_JSON is a list with one entry per process before the last: a number of steps past the checkpoint that it began
with, whose fraction is a wait of up to 20 ms more, or "state", "flush" or "rename", the place inside the writing of its
second checkpoint where it dies. Every process is forked from this one, which has done the slow imports, and runs the
same training in FOLDER/killed. One more trains in FOLDER/whole without a break. Writes FOLDER/deaths.json: for each
process but that, the signal that ended it and the last whole checkpoint that it left.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from pusa.training import run_folder
from pusa.training.trainer import train
from tests.training import small


def dying(place: str) -> None:
    """Arrange that the second checkpoint of this process ends it, halfway."""
    calls = 0

    def instead(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls < 2:
                return real(*args)
            if place == "state":  # half of state.pt is on the disk
                args[1].write(b"PK half a file")
                args[1].flush()
            return os.kill(os.getpid(), signal.SIGKILL)

        return call

    if place == "state":
        torch.save = instead(torch.save)
    elif place == "flush":
        run_folder._flush = instead(run_folder._flush)
    else:
        Path.rename = instead(Path.rename)  # type: ignore[method-assign]


def start(folder: Path, settings: dict[str, Any], place: str | None, options: dict[str, Any]) -> int:
    """Train in a forked process; returns its id."""
    if child := os.fork():
        return child
    code = 1
    try:
        if place:
            dying(place)
        samples = small.Samples(frames=(3, 2))
        train(small.config(**settings), folder, components=small.components(), samples=samples, **options)
        code = 0
    finally:
        os._exit(code)


def wait_for(log: Path, step: int, child: int) -> None:
    """Until `step` is in the log, or the process has ended."""
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if log.exists() and log.read_bytes().count(b"\n") >= step:
            return
        time.sleep(0.001)


def main() -> None:
    folder, settings, kills = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
    options = {}
    if len(sys.argv) > 4:
        module, _, name = sys.argv[4].partition(":")
        options["objective"] = getattr(import_module(module), name)
    killed = folder / "killed"
    torch.set_num_threads(1)
    small.pristine()
    deaths: list[Any] = []
    for kill in [*kills, None]:
        child = start(killed, settings, kill if isinstance(kill, str) else None, options)
        if isinstance(kill, float):
            begun = int(deaths[-1][1][0].removeprefix("step_")) if deaths and deaths[-1][1] else 0
            wait_for(killed / "log.jsonl", begun + int(kill), child)
            time.sleep(kill % 1 / 50)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        whole = sorted(p.name for p in (killed / "checkpoints").glob("step_*") if (p / run_folder.MANIFEST).is_file())
        deaths.append([os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status), whole[-1:]])
    _, status = os.waitpid(start(folder / "whole", settings, None, options), 0)
    assert status == 0
    (folder / "deaths.json").write_text(json.dumps(deaths))


if __name__ == "__main__":
    main()
