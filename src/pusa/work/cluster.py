"""Several processes on the machines of a Ray cluster that do one job together.

Ray starts the processes and returns their results. The processes share units by `units.make_units`, as on one machine,
so that the loss of a node costs only the units that it was making. All nodes need the folder, the sources and the model
under the same paths, for instance on a network file system. Ray is an extra: `pip install 'pusa[cluster]'`.
"""

from __future__ import annotations

import logging
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pusa.errors import InputError, PusaError, first_line
from pusa.files import make_folder, unwritable_folder
from pusa.work.workers import POLL, Job, Watch, Worker

CONNECT = 10.0
"""seconds in which a cluster must accept a connection"""

T = TypeVar("T")


@dataclass(frozen=True)
class Layout:
    """How the cluster is divided: the number of worker processes, and the CPU cores and GPUs of each."""

    workers: int
    cpus: int
    gpus: float


def layout(nodes: list[dict[str, float]], workers: int | None) -> Layout:
    """Divide the resources ("CPU", "GPU") of the nodes among `workers`: by default one per GPU, else one per node."""
    cpus, gpus = (int(sum(node.get(kind, 0) for node in nodes)) for kind in ("CPU", "GPU"))
    workers = workers or gpus or len(nodes)
    smallest = int(min(node.get("CPU", 1) for node in nodes))
    return Layout(workers, max(1, min(cpus // workers, smallest)), min(1.0, gpus / workers))


def over_cluster(
    address: str, workers: int | None, job: Job[T], folder: Path, watch: Watch, contents: str = "the results"
) -> list[T]:
    """Call `job` in the worker processes of the cluster at `address` ("local" starts a cluster on this machine).

    folder: an absolute path; every node must see it. contents: what the folder contains, for error messages. Returns
    the results by rank. Raises InputError if Ray is not installed, if there is no cluster at the address, or if a node
    does not see the folder; PusaError if a node or the cluster fails. A PusaError of a worker is raised here.
    """
    token = folder / f".cluster-{secrets.token_hex(4)}"
    with connected(address) as ray:
        try:
            make_folder(folder, contents)
            try:
                token.touch()
            except OSError as error:
                raise unwritable_folder(folder, contents, error) from error
            shape = layout([node["Resources"] for node in ray.nodes() if node["Alive"]], workers)
            task = ray.remote(_on_node).options(num_cpus=shape.cpus, num_gpus=shape.gpus, scheduling_strategy="SPREAD")
            reports = ray.remote(_Reports).options(num_cpus=0).remote()
            shared = ray.put(job)
            running = [task.remote(shared, token, rank, shape.workers, reports) for rank in range(shape.workers)]
            waiting = running
            while waiting:
                _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=POLL)
                watch(ray.get(reports.read.remote()))
            results: list[T] = ray.get(running)
            return results
        finally:
            with suppress(OSError):
                token.unlink(missing_ok=True)


class _Reports:
    """The last progress of each worker; an actor of the cluster."""

    def __init__(self) -> None:
        self.last: dict[int, tuple[str, int, int]] = {}

    def write(self, rank: int, what: str, finished: int, total: int) -> None:
        self.last[rank] = what, finished, total

    def read(self) -> Mapping[int, tuple[str, int, int]]:
        return self.last


def _on_node(job: Job[T], token: Path, rank: int, size: int, reports: Any) -> T:
    if not token.exists():
        raise InputError(
            f"{socket.gethostname()} does not see the folder {token.parent}: put it on a file system that all nodes "
            "mount under this path."
        )
    last = 0.0

    def progress(what: str, finished: int, total: int) -> None:
        nonlocal last
        if finished == total or time.monotonic() - last > POLL:
            last = time.monotonic()
            reports.write.remote(rank, what, finished, total)

    return job(Worker(rank, size, progress))


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """The module `ray`, connected to the cluster at `address` for the block; "local" starts a cluster on this machine.

    Raises InputError if Ray is not installed or there is no cluster at the address, and PusaError if a node or the
    cluster fails. If a task raised a PusaError, that error is raised here.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "--ray needs Ray, which is not installed: run `pip install 'pusa[cluster]'`, or leave --ray out."
        ) from error
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    try:
        if colon and port.isdigit():
            socket.create_connection((host, int(port)), CONNECT).close()  # Ray itself would try for minutes
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except (OSError, ValueError, RuntimeError) as error:
        reason = first_line(error)
        raise InputError(
            f"There is no Ray cluster at {address!r} ({reason}): run `ray start --head`, or give --ray local."
        ) from error
    try:
        yield ray
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PusaError):
            raise error.cause from error
        raise PusaError(f"A node of the cluster failed: {first_line(error.cause)}.") from error
    except ray.exceptions.RayError as error:
        reason = first_line(error)
        raise PusaError(
            f"The Ray cluster failed ({reason}): run the same command again; it makes what is missing."
        ) from error
    finally:
        ray.shutdown()
