"""A Ray cluster as this project uses it: connected for a block, its resources divided, its errors in one sentence.

Ray starts processes and brings their results back; who does what is settled between them by `claims` in the folder that
they fill, so that a node which is lost costs only what it was at. Ray is an extra: `pip install 'pusa[cluster]'`.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pusa.errors import InputError, PusaError

CONNECT = 10.0
"""seconds in which a cluster must answer"""


@dataclass(frozen=True)
class Layout:
    """How a cluster is used: so many processes with so many processor cores and GPUs each."""

    workers: int
    cpus: int
    gpus: float


def layout(nodes: list[dict[str, float]], workers: int | None) -> Layout:
    """Divide the resources ("CPU", "GPU") of the nodes among `workers`: by default one per GPU, else one per node."""
    cpus, gpus = (int(sum(node.get(kind, 0) for node in nodes)) for kind in ("CPU", "GPU"))
    workers = workers or gpus or len(nodes)
    smallest = int(min(node.get("CPU", 1) for node in nodes))
    return Layout(workers, max(1, min(cpus // workers, smallest)), min(1.0, gpus / workers))


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray, for the block; "local" starts it on this machine.

    Raises InputError without Ray and when there is no cluster at the address, PusaError when a node or the cluster
    fails; what a task raised of ours is raised here.
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
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"There is no Ray cluster at {address!r} ({reason}): run `ray start --head`, or give --ray local."
        ) from error
    try:
        yield ray
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PusaError):
            raise error.cause from error
        raise PusaError(f"A node of the cluster failed: {str(error.cause).splitlines()[0]}.") from error
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[0]
        raise PusaError(f"The Ray cluster failed ({reason}): run the same command again to go on.") from error
    finally:
        ray.shutdown()
