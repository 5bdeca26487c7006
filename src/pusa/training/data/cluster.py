"""One cache, filled by many machines: `pusa prepare --ray ADDRESS` runs `cache.prepare` on every node of a Ray cluster.

Who encodes what is settled by the cache itself, as between processes of one machine. So the nodes need the clips, the
model and the cache folder under the same paths (a network file system).
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pusa.cluster import connected, layout
from pusa.errors import InputError
from pusa.models.loading import checkpoints
from pusa.training.data import cache
from pusa.training.data.cache import Prepared, Progress
from pusa.training.data.samples import Plan, VideoFile
from pusa.training.data.tensor_store import make_folder, unusable

POLL = 1.0
"""seconds between two looks at how far the cache has come"""


def prepare(
    plan: Plan,
    source: str,
    folder: Path,
    address: str,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """`cache.prepare` in `workers` processes of the Ray cluster at `address` ("local" starts one on this machine).

    source: the model, as `checkpoints.load` takes it. Raises InputError without Ray, when there is no cluster at the
    address, or when a node does not see the cache folder.
    """
    started = time.perf_counter()
    folder = folder.absolute()
    plan = replace(plan, cuts=tuple(replace(cut, file=_absolute(cut.file)) for cut in plan.cuts))
    token = folder / f".cluster-{secrets.token_hex(4)}"
    with connected(address) as ray:
        try:
            _touch(token)
            shape = layout([node["Resources"] for node in ray.nodes() if node["Alive"]], workers)
            task = ray.remote(_share).options(num_cpus=shape.cpus, num_gpus=shape.gpus, scheduling_strategy="SPREAD")
            shared = ray.put(plan)
            tally = ray.remote(_Tally).options(num_cpus=0).remote()
            running = [task.remote(shared, source, token, rank, shape.workers, tally) for rank in range(shape.workers)]
            waiting = running
            while waiting:
                _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=POLL)
                if progress and (state := ray.get(tally.read.remote())):
                    progress(*state)
            return together(ray.get(running), time.perf_counter() - started)
        finally:
            with suppress(OSError):
                token.unlink(missing_ok=True)


def _touch(token: Path) -> None:
    make_folder(token.parent, "the cache")
    try:
        token.touch()
    except OSError as error:
        raise unusable(token.parent, "the cache", error) from error


def _absolute(file: VideoFile) -> VideoFile:
    return replace(file, path=file.path.absolute())


class _Tally:
    """How far the processes are, together; an actor of the cluster."""

    def __init__(self) -> None:
        self.states: dict[int, tuple[str, int, int]] = {}

    def report(self, rank: int, what: str, done: int, total: int) -> None:
        self.states[rank] = what, done, total

    def read(self) -> tuple[str, int, int] | None:
        """What they are doing. Each counts what others made when it comes by, so towards the end the sum is high."""
        encoding = [state for state in self.states.values() if state[0] == cache.ENCODING]
        if not encoding:
            return max(self.states.values(), key=lambda state: state[1], default=None)
        total = max(state[2] for state in encoding)
        return cache.ENCODING, min(total, sum(state[1] for state in encoding)), total


def together(parts: Sequence[Prepared], seconds: float) -> Prepared:
    """The result of all processes. Each has tried every clip, so one has failed only where it failed everywhere."""
    made = sum(part.made for part in parts)
    everywhere = set.intersection(*({problem.path for problem in part.failed} for part in parts))
    fewest = min((part.failed for part in parts), key=len)
    failed = tuple(problem for problem in fewest if problem.path in everywhere)
    first = parts[0]
    clips = first.made + first.kept + first.shared + len(first.failed)
    captions, size = sum(part.captions for part in parts), max(part.bytes for part in parts)
    return Prepared(made, clips - made - len(failed), 0, failed, captions, size, seconds)


def _share(plan: Plan, source: str, token: Path, rank: int, world: int, tally: Any) -> Prepared:
    """What runs on a node."""
    if not token.exists():
        raise InputError(
            f"{socket.gethostname()} does not see the cache folder {token.parent}: put it on a file system that all "
            "nodes mount under this path."
        )
    last = 0.0

    def progress(what: str, done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last > POLL:
            last = time.monotonic()
            tally.report.remote(rank, what, done, total)

    encoders = checkpoints.load_encoders(source)
    return cache.prepare(plan, encoders, token.parent, progress=progress, rank=rank, world=world)
