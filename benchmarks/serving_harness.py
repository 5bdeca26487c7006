"""Start `pusa serve` as a user would, with a database of its own, and be its clients.

Everything is on this machine: servers listen on 127.0.0.1, files are in a temporary folder, and every process that is
started here ends with the block that started it.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

ENDED = ("completed", "failed")
JOB = {"prompt": "a red circle moves right", "num_frames": 5, "num_inference_steps": 2}
"""a video that takes a second"""
_START = 600.0
"""seconds that a server may take to start on a slow machine"""
_UNREACHABLE = (OSError, http.client.HTTPException)


class Server:
    """A process `pusa serve` and its workers. options: flags, without --data, --store and --port."""

    def __init__(self, folder: Path, *options: str, store: str | None = None, port: int | None = None) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.options = [*options, *(["--store", store] if store else [])]
        self.log = folder.with_name(f"{folder.name}-{self.port}.log")
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, *, wait: bool = True) -> Server:
        """Start it, and wait until it answers. Its workers may still load the model."""
        command = [sys.executable, "-m", "pusa", "serve", "--data", str(self.folder), "--port", str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *self.options], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        if wait:
            self.wait("/health")
        return self

    def wait(self, path: str) -> None:
        """Wait until a path answers with 200."""
        deadline = time.monotonic() + _START
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with code {self.process.returncode}:\n{self.said()}")
            with suppress(*_UNREACHABLE):
                if call(self.address, "GET", path)[0] == 200:
                    return
            time.sleep(0.1)
        raise RuntimeError(f"{self.address}{path} did not answer in {_START:.0f} s:\n{self.said()}")

    def workers(self) -> list[psutil.Process]:
        """The processes that make videos."""
        with suppress(psutil.NoSuchProcess):
            assert self.process is not None
            children = psutil.Process(self.process.pid).children()
            return [child for child in children if any("spawn_main" in word for word in _command(child))]
        return []

    def kill(self) -> None:
        """End the server as `kill -9` does; its workers see to themselves."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """End everything that is left of it."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def said(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def _command(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return []


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Postgres:
    """A PostgreSQL of its own in a folder, run by another user than root, with the programs of Debian or of PATH."""

    def __init__(self, folder: Path) -> None:
        self.data, self.port = folder / "postgresql", free_port()
        self._user = "nobody" if os.geteuid() == 0 else None
        found = shutil.which("initdb") or max(Path("/usr/lib/postgresql").glob("*/bin/initdb"), default=None)
        if found is None:
            raise RuntimeError("PostgreSQL is not installed: install the package postgresql")
        self._programs = Path(found).resolve().parent
        self.data.mkdir(parents=True)
        if self._user:
            folder.chmod(0o755)
            shutil.chown(self.data, self._user)
        self._run("initdb", "--auth=trust", "--username=pusa", "--no-sync", "--encoding=UTF8", "--locale=C")
        self.start()
        try:
            self._run("createdb", "--username=pusa", "--host=127.0.0.1", f"--port={self.port}", "pusa", data=False)
        except BaseException:
            self.stop("immediate")
            raise

    @property
    def address(self) -> str:
        return f"postgresql://pusa@127.0.0.1:{self.port}/pusa"

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.data}"
        self._run("pg_ctl", "start", "--wait", f"--log={self.data / 'log'}", f"--options={options}")

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "stop", "--wait", f"--mode={mode}")

    def _run(self, program: str, *arguments: str, data: bool = True) -> None:
        command = [str(self._programs / program), *arguments, *([f"--pgdata={self.data}"] if data else [])]
        done = subprocess.run(
            command, user=self._user, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stdout}{done.stderr}")


@contextmanager
def place() -> Iterator[Path]:
    """A temporary folder that other users may enter."""
    with tempfile.TemporaryDirectory(prefix="pusa-serving-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def database(kind: str, folder: Path) -> Iterator[Postgres | None]:
    """The database of a server: a PostgreSQL, or None for SQLite."""
    if kind == "sqlite":
        yield None
        return
    postgres = Postgres(folder)
    try:
        yield postgres
    finally:
        with suppress(RuntimeError):
            postgres.stop("immediate")


@contextmanager
def running(folder: Path, *options: str, store: str | None = None) -> Iterator[Server]:
    """A server whose workers are ready."""
    server = Server(folder, *options, store=store).start()
    try:
        server.wait("/ready")
        make(server.address)  # the first video may load more
        yield server
    finally:
        server.stop()


# ---------------------------------------------------------------------------------------------------------- clients


def call(address: str, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """Send one request over a connection of its own: the status, and the answer from JSON or as bytes."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    try:
        return ask(connection, method, path, body, **headers)
    finally:
        connection.close()


def ask(
    connection: http.client.HTTPConnection, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, Any]:
    """Send one request over an open connection."""
    data = None if body is None else json.dumps(body).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, data, {"Content-Type": "application/json", **names} if data else names)
    answer = connection.getresponse()
    content = answer.read()
    if (answer.getheader("Content-Type") or "").startswith("application/json"):
        return answer.status, json.loads(content)
    return answer.status, content


def make(address: str, **options: Any) -> dict[str, Any]:
    """Make a video and wait for it. Raises RuntimeError if it fails."""
    status, video = call(address, "POST", "/v1/videos", {**JOB, **options})
    if status != 200:
        raise RuntimeError(f"status {status}: {video}")
    video = wait_for(address, video["id"])
    if video["status"] != "completed":
        raise RuntimeError(f"the video failed: {video['error']}")
    return video


def wait_for(address: str, id: str, pause: float = 0.05) -> dict[str, Any]:
    """Ask until a video has ended."""
    while True:
        status, video = call(address, "GET", f"/v1/videos/{id}")
        if status != 200:
            raise RuntimeError(f"status {status}: {video}")
        if video["status"] in ENDED:
            return dict(video)
        time.sleep(pause)


@dataclass
class Client:
    """A client that asks for one video, and asks again whenever it gets no answer.

    video: its last answer. refused: statuses that are neither success nor "try again". asked: requests that it sent.
    """

    addresses: Sequence[str]
    number: int
    options: dict[str, Any]
    video: dict[str, Any] = field(default_factory=dict)
    refused: list[tuple[int, Any]] = field(default_factory=list)
    asked: int = 0
    interrupted: int = 0
    done: bool = False
    thread: threading.Thread | None = None

    def start(self) -> Client:
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        return self

    def _run(self) -> None:
        key = f"client-{self.number}"
        body = {**JOB, "seed": self.number, **self.options}
        self.video = self._until_answered("POST", "/v1/videos", body, Idempotency_Key=key)
        while self.video.get("status") not in (*ENDED, None):
            time.sleep(random.uniform(0.5, 1.5))
            self.video = self._until_answered("GET", f"/v1/videos/{self.video['id']}")
        self.done = True

    def _until_answered(self, method: str, path: str, body: Any = None, **headers: str) -> dict[str, Any]:
        while True:
            self.asked += 1
            try:
                status, answer = call(random.choice(self.addresses), method, path, body, **headers)
            except _UNREACHABLE:
                self.interrupted += 1
                time.sleep(random.uniform(0.5, 1.5))
                continue
            if status == 200:
                return dict(answer)
            if status not in (429, 503):
                self.refused.append((status, answer))
                return {}
            time.sleep(0.5)


def stored(address: str) -> list[dict[str, Any]]:
    """All videos that a server lists."""
    found: list[dict[str, Any]] = []
    while True:
        after = f"&after={found[-1]['id']}" if found else ""
        _, page = call(address, "GET", f"/v1/videos?limit=100&order=asc{after}")
        found += page["data"]
        if not page["has_more"]:
            return found


def events(address: str, id: str) -> Iterator[tuple[str, Any, float]]:
    """The events of a video: name, data, and the time at which each came."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=600)
    try:
        connection.request("GET", f"/v1/videos/{id}/events")
        answer = connection.getresponse()
        name = ""
        while line := answer.readline():
            if match := re.fullmatch(rb"(event|data): (.*)\n", line):
                if match[1] == b"event":
                    name = match[2].decode()
                else:
                    yield name, json.loads(match[2]), time.perf_counter()
    finally:
        connection.close()
