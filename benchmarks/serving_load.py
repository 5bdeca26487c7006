"""What a server costs: requests per second, slower videos, the first preview, a second worker, and memory."""

from __future__ import annotations

import http.client
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import psutil
import sqlalchemy as sa
from machine import duration, durations, facts, in_turns, ratio, ratio_text
from section import Section, Table
from serving_harness import Server, ask, call, events, make, place, running, wait_for

from pusa.serving.tables import VIDEOS, open_database

PATHS = {"retrieve": "/v1/videos/{id}", "list of 20": "/v1/videos?limit=20", "list of 100": "/v1/videos?limit=100"}
LONG = {"num_frames": 17, "num_inference_steps": 20}
RATE = 20.0
"""requests per second of clients that poll, while a video is made"""


def requests(quick: bool) -> Section:
    """Requests per second with many stored videos, idle and while a video is made, and how much they slow it down."""
    machine, count, span, pairs = facts(), *((200, 1.0, 1) if quick else (10_000, 10.0, 6))
    with place() as folder, running(folder / "data") as server:
        ids = _fill(server, count)
        rows, numbers = [], {}
        for state in ("idle", "while a video is made"):
            for name, path in PATHS.items():
                with _busy(server, state != "idle"):
                    found = _hammer(server.address, path, ids, span)
                rows.append([f"{name}, {state}", f"{len(found) / span:.0f}", *_percentiles(found)])
                numbers[f"{name}, {state}"] = {
                    "per_second": len(found) / span,
                    "p50": _at(found, 50),
                    "p99": _at(found, 99),
                }
        slowed = in_turns(
            {
                "alone": lambda: make(server.address, **LONG),
                "with requests": lambda: _while_polling(server, ids, lambda: make(server.address, **LONG)),
            },
            pairs,
        )
    slower = ratio(slowed["with requests"], slowed["alone"])
    text = (
        f"{count:,} finished videos are stored, in SQLite. One client on the same machine sends one request after the "
        f"other. A video of {LONG['num_inference_steps']} steps takes {durations(slowed['alone'])} alone; with "
        f"{RATE:.0f} requests per second it takes {ratio_text(slower)} times as long (pairs in turns)."
    )
    head = ["", "requests per second", "half are faster than", "99 % are faster than"]
    return Section("Requests", "", machine, [text], [Table(head, rows)], numbers={**numbers, "slower": slower})


def preview(quick: bool) -> Section:
    """The time from a request to its first news and to its first preview."""
    machine, count = facts(), 2 if quick else 10
    told: dict[str, list[float]] = {"accepted": [], "first event": [], "first preview": [], "finished": []}
    with place() as folder, running(folder / "data") as server:
        for seed in range(count):
            begun = time.perf_counter()
            _, video = call(server.address, "POST", "/v1/videos", {**LONG, "prompt": "a red circle", "seed": seed})
            times = {"accepted": time.perf_counter()}
            for name, _data, when in events(server.address, video["id"]):
                times.setdefault("first preview" if name == "preview" else "first event", when)
                times["finished"] = when
            for name, values in told.items():
                values.append(times[name] - begun)
    text = (
        f"{count} videos of {LONG['num_inference_steps']} steps, one after the other, on an idle server whose model is "
        "loaded. A client watches the events of its video."
    )
    rows = [[name, durations(values)] for name, values in told.items()]
    return Section("First preview", "", machine, [text], [Table(["since the request", "time"], rows)], numbers=told)


def workers(quick: bool) -> Section:
    """Videos per minute with one worker and with two."""
    machine, jobs, turns = facts(), *((2, 1) if quick else (12, 3))
    with place() as folder:
        taken: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(turns):
            for count, times in taken.items():
                with running(folder / f"data-{count}-{len(times)}", "--workers", str(count)) as server:
                    _until(server, count)
                    times.append(_batch(server, jobs))
    faster = ratio(taken[1], taken[2])
    rows = [
        [str(count), durations(times), f"{60 * jobs / statistics.median(times):.1f}"] for count, times in taken.items()
    ]
    text = (
        f"{jobs} videos of {LONG['num_inference_steps']} steps are requested at once. Two workers are "
        f"{ratio_text(faster)} times as fast as one. On a machine without GPUs, each uses its share of the cores, "
        "where one worker uses all."
    )
    return Section("Workers", "", machine, [text], [Table(["workers", "time", "videos per minute"], rows)], numbers={
        "one": taken[1], "two": taken[2], "faster": faster})  # fmt: skip


def memory(quick: bool, many: int = 1000) -> Section:
    """The memory of the server and of its worker after few and after many videos."""
    machine, few, many = facts(), *((2, 6) if quick else (10, many))
    with place() as folder, running(folder / "data", "--max-queued", str(many)) as server:
        (worker,) = server.workers()
        assert server.process is not None
        processes = {"server": psutil.Process(server.process.pid), "worker": worker}
        made, seen = 0, {}
        for count in (few, many):
            _batch(server, count - made, num_frames=5, num_inference_steps=1)
            made = count
            call(server.address, "GET", "/v1/videos?limit=100")
            seen[count] = {name: _unique(process) for name, process in processes.items()}
            seen[count]["database"] = sum(file.stat().st_size for file in folder.glob("data/pusa.sqlite*"))
    rows = [
        [name, *(f"{seen[count][name] / 2**20:.0f} MiB" for count in seen)] for name in ("server", "worker", "database")
    ]
    grown = (seen[many]["server"] - seen[few]["server"]) / (many - few)
    text = (
        f"The memory that only this process has, after {few} and after {many:,} small videos. The server grows by "
        f"{grown / 1024:.1f} KiB for each video."
    )
    head = ["", *(f"after {count:,} videos" for count in seen)]
    return Section(
        "Memory of a server", "", machine, [text], [Table(head, rows)], numbers={str(k): v for k, v in seen.items()}
    )


# ------------------------------------------------------------------------------------------------------------- parts


def _fill(server: Server, count: int) -> list[str]:
    """Store copies of one finished video, and return the ids of all."""
    first = make(server.address)
    engine = open_database(f"sqlite:///{server.folder / 'pusa.sqlite'}")
    with engine.begin() as connection:
        row = connection.execute(sa.select(VIDEOS).where(VIDEOS.c.id == first["id"])).one()._asdict()
        del row["number"]
        copies = [row | {"id": f"video_{number:032x}"} for number in range(count)]
        connection.execute(sa.insert(VIDEOS), copies)
    engine.dispose()
    return [first["id"], *(copy["id"] for copy in copies)]


def _hammer(address: str, path: str, ids: Sequence[str], span: float) -> list[float]:
    """Send one request after the other for `span` seconds, and return how long each took."""
    connection, found = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60), []
    chance, end = random.Random(0), time.perf_counter() + span
    while (begun := time.perf_counter()) < end:
        status, answer = ask(connection, "GET", path.format(id=chance.choice(ids)))
        assert status == 200, answer
        found.append(time.perf_counter() - begun)
    connection.close()
    return found


@contextmanager
def _busy(server: Server, busy: bool) -> Iterator[None]:
    """Make videos one after the other in the block."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            make(server.address, **LONG)

    thread = threading.Thread(target=work)
    if busy:
        thread.start()
        time.sleep(0.5)
    yield
    stop.set()
    if busy:
        thread.join()


def _while_polling(server: Server, ids: Sequence[str], run: Callable[[], Any]) -> None:
    stop = threading.Event()

    def poll() -> None:
        connection = http.client.HTTPConnection(urlsplit(server.address).netloc, timeout=60)
        chance = random.Random(0)
        while not stop.wait(1 / RATE):
            ask(connection, "GET", f"/v1/videos/{chance.choice(ids)}")
        connection.close()

    thread = threading.Thread(target=poll)
    thread.start()
    run()
    stop.set()
    thread.join()


def _batch(server: Server, jobs: int, **options: Any) -> float:
    """Ask for videos at once, and return the seconds until all are ready."""
    begun = time.perf_counter()
    body = {"prompt": "a red circle", **LONG, **options}
    ids = [call(server.address, "POST", "/v1/videos", body | {"seed": seed})[1]["id"] for seed in range(jobs)]
    for id in ids:
        video = wait_for(server.address, id, pause=0.2)
        assert video["status"] == "completed", video
    return time.perf_counter() - begun


def _until(server: Server, count: int) -> None:
    """Wait until each of several workers has loaded the model, and has been seen to work."""
    while server.log.read_text().count("is ready") < count:
        time.sleep(0.2)
    _batch(server, 2 * count, num_inference_steps=2)


def _unique(process: psutil.Process) -> int:
    """The bytes that a process does not share."""
    return int(process.memory_full_info().uss)


def _at(times: Sequence[float], percent: int) -> float:
    return statistics.quantiles(times, n=100)[percent - 1] if len(times) > 1 else times[0]


def _percentiles(times: Sequence[float]) -> list[str]:
    return [duration(_at(times, percent)) for percent in (50, 99)]
