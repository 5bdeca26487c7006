"""Several processes on this machine that do one job together."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pusa.work.units import Progress, no_progress

POLL = 1.0
"""seconds between two calls of `watch`"""

T = TypeVar("T")


@dataclass(frozen=True)
class Worker:
    """The process that a job runs in: `rank` of `size`. progress: reports to the process that started the workers."""

    rank: int = 0
    size: int = 1
    progress: Progress = no_progress


Job = Callable[[Worker], T]
"""What each worker calls. It must be picklable; in it, the workers share units by `units.make_units`."""
Watch = Callable[[Mapping[int, tuple[str, int, int]]], None]
"""Called repeatedly by the process that started the workers, with the last progress of each rank that reported one."""


def watch_files(files: Sequence[Path], label: str, progress: Progress) -> Watch:
    """A `Watch` that calls `progress` with the number of files that exist, whichever process made them."""
    return lambda reports: progress(label, sum(file.exists() for file in files), len(files))


def in_processes(processes: int, job: Job[T], watch: Watch) -> list[T]:
    """Call `job` in that many new processes, which divide the CPU cores; with 1, in this process.

    Returns the results by rank. The first error of a worker is raised here and ends the others. These workers report no
    progress of their own.
    """
    if processes == 1:
        return [job(Worker(progress=lambda *_: watch({})))]
    pool = ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), _limit_threads, (processes, os.cpu_count() or 1)
    )
    try:
        running: list[Future[T]] = [pool.submit(job, Worker(rank, processes)) for rank in range(processes)]
        while not all(one.done() for one in running):
            for one in running:
                if one.done():
                    one.result()
            watch({})
            time.sleep(POLL)
        return [one.result() for one in running]
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _limit_threads(processes: int, cores: int) -> None:
    import torch

    torch.set_num_threads(max(1, cores // processes))
