"""Kill servers and workers at random while clients wait, and count what became of the videos.

No video may be lost: each client's question ends. No video may be made twice: there are as many records as requests,
each with the files of one attempt, and the clip is bit for bit the one that an undisturbed server makes.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from machine import facts
from section import Section, Table
from serving_harness import ENDED, Client, Server, call, database, make, place, stored

STORES = ("sqlite", "postgresql")
PAUSE = 3.0
"""seconds at most from the moment that a video is in progress to a kill"""
_EARLY = 0.2
"""the share of kills that do not wait for that, and so meet processes that start"""
LONG = {"num_frames": 17, "num_inference_steps": 10}
"""a video that takes some seconds, so that many kills meet one"""
_CERTAINLY_OVER = 3600.0
"""seconds after which a video counts as lost"""
_CHECKED = 5
"""clips that are made again"""


@dataclass
class Outcome:
    """What happened to the videos of one run.

    Attributes:
        store: the database.
        jobs: requests that clients made.
        servers, workers: how many were killed.
        completed: videos that were made. given_up: that failed because two workers died while they made them.
        lost: clients whose question did not end, and accepted videos without a record.
        doubled: records beyond one for each client, and videos with the files of several attempts.
        failed: videos that failed in another way, and requests that were refused, with the reason.
        different: clips, of those that were made again, whose bytes differ.
        interrupted: requests that got no answer and were sent again.
        begun: how often a video was begun.
        seconds: of the whole run.
    """

    store: str
    jobs: int
    servers: int = 0
    workers: int = 0
    completed: int = 0
    given_up: int = 0
    lost: int = 0
    doubled: int = 0
    failed: tuple[str, ...] = ()
    different: int = 0
    interrupted: int = 0
    begun: int = 0
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        return not (self.lost or self.doubled or self.failed or self.different)


def measure(quick: bool) -> Section:
    machine = facts()
    found = [run(store, *((6, 3) if quick else (50, 20)), seed=0) for store in STORES]
    rows = [
        [
            *(one.store, f"{one.servers} + {one.workers}", str(one.jobs), str(one.completed), str(one.given_up)),
            *(str(one.lost), str(one.doubled), str(one.different), str(one.interrupted), str(one.begun)),
        ]
        for one in found
    ]
    head = ["", "servers + workers killed", "videos", "made", "given up", "lost", "doubled", "different"]
    text = (
        f"{found[0].jobs} clients ask for a video each and wait, while {found[0].servers + found[0].workers} times a "
        "server or a worker is killed (SIGKILL), most often while a video is made. With SQLite, a server with two "
        "workers is started again after each kill; with PostgreSQL, there are two servers with a worker each. A client "
        f"that gets no answer asks again. {_CHECKED} clips are made again without kills and compared byte by byte. "
        '"Given up" are videos whose worker died twice.'
    )
    return Section(
        "Killed servers and workers",
        "",
        machine,
        [text],
        [Table([*head, "requests without an answer", "beginnings"], rows)],
        numbers={one.store: vars(one) for one in found},
    )


def run(store: str, jobs: int, kills: int, seed: int) -> Outcome:
    """Make `jobs` videos while `kills` processes are killed."""
    outcome, chance, begun = Outcome(store, jobs), random.Random(seed), time.monotonic()
    with place() as folder, database(store, folder) as postgres:
        address = postgres.address if postgres else None
        servers = (
            [Server(folder / "data", "--workers", "2")]
            if postgres is None
            else [Server(folder / "data", "--workers", "1", store=address) for _ in range(2)]
        )
        try:
            for server in servers:
                server.start()
                server.wait("/ready")
            clients = [Client([one.address for one in servers], number, LONG).start() for number in range(jobs)]
            for _ in range(kills):
                if chance.random() > _EARLY:
                    _until_in_progress(servers)
                time.sleep(chance.uniform(0, PAUSE))
                _kill(servers, chance, outcome)
            deadline = time.monotonic() + _CERTAINLY_OVER
            for client in clients:
                assert client.thread is not None
                client.thread.join(max(0.0, deadline - time.monotonic()))
            _count(outcome, clients, stored(servers[0].address), folder / "data")
            outcome.different = _different(servers[0].address, clients)
        finally:
            for server in servers:
                server.stop()
    outcome.seconds = time.monotonic() - begun
    return outcome


def _until_in_progress(servers: Sequence[Server]) -> None:
    """Wait until a video is seen to advance, or none waits any more. The record of a dead worker stands still."""
    first: dict[str, tuple[int, int]] = {}
    while True:
        records = [record for record in stored(servers[0].address) if record["status"] not in ENDED]
        moving = [record for record in records if record["status"] == "in_progress"]
        states = {record["id"]: (record["attempts"], record["step"]) for record in moving}
        if not records or any(first.setdefault(id, state) != state for id, state in states.items()):
            return
        time.sleep(0.2)


def _kill(servers: Sequence[Server], chance: random.Random, outcome: Outcome) -> None:
    """Kill a random server or worker; a server is started again at once, as a supervisor of services would."""
    server = chance.choice(servers)
    workers = server.workers()
    if workers and chance.random() < 0.6:
        with suppress(psutil.NoSuchProcess):
            chance.choice(workers).kill()
            outcome.workers += 1
            return
    server.kill()
    outcome.servers += 1
    server.start()


def _count(outcome: Outcome, clients: Sequence[Client], records: list[dict[str, Any]], data: Path) -> None:
    ids = {record["id"] for record in records}
    failed = []
    for client in clients:
        outcome.interrupted += client.interrupted
        error = client.video.get("error") or {}
        failed += [f"status {status}: {answer}" for status, answer in client.refused]
        if not client.done or (client.video and client.video["id"] not in ids):
            outcome.lost += 1
        elif client.video.get("status") == "completed":
            outcome.completed += 1
        elif error.get("code") == "worker_died":
            outcome.given_up += 1
        elif error:
            failed.append(f"{error['code']}: {error['message']}")
    outcome.failed = tuple(failed)
    outcome.begun = sum(record["attempts"] for record in records)
    attempts = [len(list((data / "videos" / id).glob("attempt-*"))) for id in ids]
    outcome.doubled = max(0, len(records) - len(clients)) + sum(count > 1 for count in attempts)


def _different(address: str, clients: Sequence[Client]) -> int:
    """How many of some clips are not those that a server makes that nobody kills."""
    made = [client for client in clients if client.video.get("status") == "completed"][:_CHECKED]
    return sum(
        _content(address, client.video["id"]) != _content(address, make(address, **LONG, seed=client.number)["id"])
        for client in made
    )


def _content(address: str, id: str) -> str:
    status, content = call(address, "GET", f"/v1/videos/{id}/content")
    assert status == 200, content
    return hashlib.sha256(content).hexdigest()
