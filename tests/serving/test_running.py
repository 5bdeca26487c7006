"""The server as a user starts it: real processes, killed and stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 300
"""seconds; a slow machine needs many of them to start a worker"""
PROMPT = "a red circle moves left on a black background"


class Process:
    """`pusa serve` on a free port."""

    def __init__(self, data: Path, *options: str) -> None:
        command = [sys.executable, "-m", "pusa", "serve", "--data", str(data), "--port", "0", *options]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        assert self.process.stderr is not None
        first = self.process.stderr.readline()
        self.address = next((word for word in first.split() if word.startswith("http")), "")
        self.said = first

    def call(self, path: str, body: Any = None, method: str | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"content-type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def until(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < end
            time.sleep(0.05)

    def status(self, video: str) -> str:
        return str(self.call(f"/v1/videos/{video}")["status"])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(*options: str) -> Process:
        started.append(Process(tmp_path / "data", *options))
        return started[-1]

    yield start
    for one in started:
        one.kill()


@pytest.mark.timeout(4 * PATIENCE)
def test_a_killed_server_loses_nothing(serve: Callable[..., Process], tmp_path: Path) -> None:
    server = serve()
    long = server.call("/v1/videos", {"prompt": PROMPT, "steps": 1000})["id"]
    queued = server.call("/v1/videos", {"prompt": PROMPT, "steps": 1})["id"]
    server.until(lambda: server.call(f"/v1/videos/{long}")["step"] > 0)
    server.kill()

    again = serve()
    again.until(lambda: again.call(f"/v1/videos/{long}")["attempts"] == 2)
    assert again.status(long) == "in_progress"
    again.call(f"/v1/videos/{long}", method="DELETE")
    again.until(lambda: again.status(queued) == "completed")

    taken = Process(tmp_path / "data")
    assert taken.process.wait(PATIENCE) == 2
    assert taken.said.startswith("pusa: Another server uses")
    again.process.send_signal(signal.SIGINT)
    assert again.process.wait(PATIENCE) == 0


def test_off_loopback_a_key_is_needed(tmp_path: Path) -> None:
    server = Process(tmp_path / "data", "--host", "0.0.0.0")

    assert server.process.wait(PATIENCE) == 2
    assert "--host 0.0.0.0 can be reached from other machines: give --api-keys FILE" in server.said
