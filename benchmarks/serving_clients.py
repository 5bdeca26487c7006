"""Clients that are many, slow, gone or hostile, and a database that restarts: what the others notice of it."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import psutil
from machine import duration, facts
from section import Section, Table
from serving_harness import Client, Server, ask, call, database, make, place, running, stored

MEASURED = 20.0
"""seconds for which each kind of clients is there"""
LONG = {"num_frames": 17, "num_inference_steps": 20}


def measure(quick: bool) -> Section:
    """What a well-behaved client sees while others misbehave."""
    machine, span, many = facts(), *((2.0, 5) if quick else (MEASURED, 100))
    rows, numbers = [], {}
    with place() as folder, running(folder / "data") as server:
        process = psutil.Process(server.process.pid)  # type: ignore[union-attr]
        kinds: dict[str, Callable[[], Any]] = {
            "nobody else": lambda: _nothing(),
            f"{many} clients that poll every second": lambda: _pollers(server, many),
            f"{many} clients that send a form, one byte a second": lambda: _slow(server, many),
            f"{many} clients that send headers, one byte a second": lambda: _slow(server, many, headers=True),
            f"{many} clients that watch a video and go away": lambda: _gone(server, many),
            f"{many // 2} pictures that take long to open": lambda: _bombs(server, many // 2),
        }
        for name, others in kinds.items():
            before = process.num_fds()
            with others():
                time.sleep(0.5)
                found, failed = _polled(server, span)
            time.sleep(1.0)
            worst = max(found, default=float("inf"))
            rows.append(
                [
                    name,
                    str(len(found)),
                    str(failed),
                    duration(_middle(found)),
                    duration(worst),
                    f"{process.num_fds() - before:+d}",
                ]
            )
            numbers[name] = {"answers": len(found), "failed": failed, "median": _middle(found), "longest": worst}
        make(server.address)
    restart = _restart(2 if quick else 12, 1 if quick else 3)
    rows.append(["PostgreSQL restarts under load", *restart["row"]])
    numbers["restart"] = restart["numbers"]
    text = (
        f"A client asks for the state of a video ten times a second for {span:.0f} s, while others are there. The "
        "last column counts open files of the server that are left afterwards: the first crowd leaves the connections "
        "of the pool of the database. In the last line, PostgreSQL is stopped "
        f"for a second {restart['times']} times while {restart['jobs']} clients wait for a video each; all got one."
    )
    head = ["others", "answers", "without an answer", "median", "longest", "files left open"]
    return Section("Careless clients", "", machine, [text], [Table(head, rows)], numbers=numbers)


def _polled(server: Server, span: float) -> tuple[list[float], int]:
    """The times of the answers to a client that asks ten times a second, and how often there was none in 10 s."""
    id = call_until(server, "GET", "/v1/videos?limit=1")["data"][0]["id"]
    found, failed, end = [], 0, time.monotonic() + span
    while time.monotonic() < end:
        connection = http.client.HTTPConnection(urlsplit(server.address).netloc, timeout=10)
        begun = time.perf_counter()
        try:
            status, _ = ask(connection, "GET", f"/v1/videos/{id}")
            failed += status != 200
            found.append(time.perf_counter() - begun)
        except OSError:
            failed += 1
        connection.close()
        time.sleep(max(0.0, 0.1 - (time.perf_counter() - begun)))
    return found, failed


def call_until(server: Server, method: str, path: str) -> Any:
    """The answer to a request that is repeated until there is one."""
    while True:
        with suppress(OSError):
            status, answer = call(server.address, method, path)
            if status == 200:
                return answer
        time.sleep(0.2)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _threads(count: int, work: Callable[[int, threading.Event], None]) -> Iterator[None]:
    """Run `work` in many threads during the block; it ends soon after the event."""
    stop = threading.Event()
    threads = [threading.Thread(target=work, args=(number, stop), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    yield
    stop.set()
    for thread in threads:
        thread.join(60)


def _pollers(server: Server, count: int) -> Any:
    def work(number: int, stop: threading.Event) -> None:
        while not stop.wait(1.0):
            with suppress(OSError):
                call(server.address, "GET", "/v1/videos?limit=20")

    return _threads(count, work)


def _slow(server: Server, count: int, headers: bool = False) -> Any:
    form = b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 100000\r\n"

    def work(number: int, stop: threading.Event) -> None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", server.port), 10) as connection:
            connection.sendall(b"POST /v1/videos HTTP/1.1\r\nHost: x\r\n" + (b"" if headers else form + b"\r\n"))
            while not stop.wait(1.0):
                connection.sendall(b"x")

    return _threads(count, work)


def _gone(server: Server, count: int) -> Any:
    def work(number: int, stop: threading.Event) -> None:
        while not stop.wait(1.0):
            with suppress(OSError, KeyError):
                body = {"prompt": "a red circle", **LONG, "seed": number}
                _, video = call(server.address, "POST", "/v1/videos", body)
                with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
                    connection.sendall(f"GET /v1/videos/{video['id']}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                    connection.recv(100)
                call(server.address, "DELETE", f"/v1/videos/{video['id']}")

    return _threads(count, work)


def _bombs(server: Server, count: int) -> Any:
    """Clients that send an animated picture whose many large frames are equal, so that it is small and takes long."""
    bomb = _bomb(5000, 30)
    body = (
        b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na red circle\r\n'
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n' + bomb + b"\r\n--x--\r\n"
    )

    head = f"POST /v1/videos HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    request = head.encode() + b"Content-Type: multipart/form-data; boundary=x\r\n\r\n" + body

    def work(number: int, stop: threading.Event) -> None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", server.port), 60) as connection:
            connection.sendall(request)
            stop.wait()  # and hang up

    return _threads(count, work)


def _bomb(side: int, frames: int) -> bytes:
    rows = zlib.compress(bytes(side * (3 * side + 1)), 9)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"acTL", struct.pack(">II", frames, 0))]
    for n in range(frames):
        chunks.append((b"fcTL", struct.pack(">IIIIIHHBB", max(0, 2 * n - 1), side, side, 0, 0, 1, 10, 0, 0)))
        chunks.append((b"fdAT", struct.pack(">I", 2 * n) + rows) if n else (b"IDAT", rows))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in [*chunks, (b"IEND", b"")]
    )


def _restart(jobs: int, times: int) -> dict[str, Any]:
    """Stop and start PostgreSQL while clients wait for videos."""
    with place() as folder, database("postgresql", folder) as postgres:
        assert postgres is not None
        with running(folder / "data", store=postgres.address) as server:
            clients = [Client([server.address], number, LONG).start() for number in range(jobs)]
            for _ in range(times):
                time.sleep(5)
                postgres.stop()
                time.sleep(1)
                postgres.start()
            for client in clients:
                assert client.thread is not None
                client.thread.join(3600)
            made = sum(client.video.get("status") == "completed" for client in clients)
            again = sum(client.interrupted for client in clients)
            records = [record for record in stored(server.address) if record["num_frames"] == LONG["num_frames"]]
            if made != jobs or len(records) != jobs:
                raise RuntimeError(
                    f"{made} of {jobs} videos, {len(records)} records: {[c.video or c.refused for c in clients]}"
                )
    return {
        "row": [str(sum(client.asked for client in clients)), str(again), "", "", ""],
        "numbers": {"jobs": jobs, "completed": made, "asked": sum(c.asked for c in clients), "interrupted": again},
        "times": times,
        "jobs": jobs,
    }


def _middle(times: list[float]) -> float:
    return sorted(times)[len(times) // 2] if times else float("inf")
