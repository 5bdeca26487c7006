"""Fill one cache with many machines: `pusa prepare --ray ADDRESS` runs `cache.prepare` on the nodes of a Ray cluster.

All nodes need the clips, the model and the cache folder under the same paths, for example on a network file system.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from pusa.models.loading import checkpoints
from pusa.training.data import cache
from pusa.training.data.cache import Prepared
from pusa.training.data.samples import Plan, VideoFile
from pusa.work.cluster import over_cluster
from pusa.work.units import Progress, no_progress
from pusa.work.workers import Worker


def prepare(
    plan: Plan,
    source: str,
    folder: Path,
    address: str,
    *,
    workers: int | None = None,
    progress: Progress = no_progress,
) -> Prepared:
    """Run `cache.prepare` in processes of a Ray cluster and return the combined result.

    source: the model, as `checkpoints.load` takes it. address: of the cluster; "local" starts one on this machine.
    workers: how many processes; None is one per GPU, else one per machine. Raises InputError if Ray is not installed,
    if there is no cluster at the address, or if a node does not see the cache folder.
    """
    started = time.perf_counter()
    folder = folder.absolute()
    plan = replace(plan, cuts=tuple(replace(cut, file=_absolute(cut.file)) for cut in plan.cuts))

    def watch(reports: Mapping[int, tuple[str, int, int]]) -> None:
        if reports:
            progress(*_combined_progress(list(reports.values())))

    parts = over_cluster(address, workers, partial(_on_node, plan, source, folder), folder, watch, "the cache")
    return combined_result(parts, time.perf_counter() - started)


def _absolute(file: VideoFile) -> VideoFile:
    return replace(file, path=file.path.absolute())


def _on_node(plan: Plan, source: str, folder: Path, worker: Worker) -> Prepared:
    encoders = checkpoints.load_encoders(source)
    return cache.prepare(plan, encoders, folder, progress=worker.progress, rank=worker.rank, world=worker.size)


def _combined_progress(states: Sequence[tuple[str, int, int]]) -> tuple[str, int, int]:
    """Return the progress of all processes. Each also counts entries that others made, so the sum is limited."""
    encoding = [state for state in states if state[0] == cache.ENCODING]
    if not encoding:
        return max(states, key=lambda state: state[1])
    total = max(state[2] for state in encoding)
    return cache.ENCODING, min(total, sum(state[1] for state in encoding)), total


def combined_result(parts: Sequence[Prepared], seconds: float) -> Prepared:
    """Combine the results of all processes. A clip has failed if it failed in all of them, since each has tried it.

    seconds: the time of the whole work.
    """
    made = sum(part.made for part in parts)
    everywhere = set.intersection(*({problem.path for problem in part.failed} for part in parts))
    fewest = min((part.failed for part in parts), key=len)
    failed = tuple(problem for problem in fewest if problem.path in everywhere)
    first = parts[0]
    clips = first.made + first.kept + first.shared + len(first.failed)
    captions, size = sum(part.captions for part in parts), max(part.bytes for part in parts)
    return Prepared(made, clips - made - len(failed), 0, failed, captions, size, seconds)
