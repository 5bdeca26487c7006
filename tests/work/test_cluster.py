"""How a cluster is divided; and with Ray installed, what its workers return, report and raise."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest

from pusa.errors import InputError
from pusa.work.cluster import Layout, layout, over_cluster
from pusa.work.units import Unit, make_units
from pusa.work.workers import Worker


def test_a_process_per_gpu_or_per_node_or_the_number_given() -> None:
    big, small, plain = {"CPU": 64.0, "GPU": 8.0}, {"CPU": 16.0, "GPU": 2.0}, {"CPU": 16.0}
    assert layout([big, small], None) == Layout(10, 8, 1.0)
    assert layout([plain, plain, plain], None) == Layout(3, 16, 0.0)
    assert layout([plain], 4) == Layout(4, 4, 0.0)
    assert layout([plain], 40) == Layout(40, 1, 0.0)
    assert layout([big], 16) == Layout(16, 4, 0.5)
    assert layout([{"CPU": 1.0}, plain], None) == Layout(2, 1, 0.0)


def _share(folder: Path, worker: Worker) -> tuple[int, int, list[str]]:
    files = [folder / f"{i}" for i in range(8)]
    units = [Unit(file.name, file, partial(file.write_text, "done")) for file in files]  # type: ignore[arg-type]
    made = make_units(units, folder / ".claims", "the results", worker.progress).made
    return worker.rank, worker.size, made


def _fail(folder: Path, worker: Worker) -> None:
    raise InputError(f"worker {worker.rank} cannot read {folder.name}")


@pytest.mark.slow
def test_workers_share_units_and_report_their_progress(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    seen: list[Mapping[int, tuple[str, int, int]]] = []
    results = over_cluster("local", 2, partial(_share, tmp_path), tmp_path, seen.append)
    assert [(rank, size) for rank, size, _ in results] == [(0, 2), (1, 2)]
    assert sorted(name for *_, made in results for name in made) == [f"{i}" for i in range(8)]
    assert seen[-1] == {0: ("Working", 8, 8), 1: ("Working", 8, 8)}
    assert not list(tmp_path.glob(".cluster-*"))


@pytest.mark.slow
def test_the_error_of_a_worker_is_raised_here(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(InputError, match="worker 0 cannot read"):
        over_cluster("local", 1, partial(_fail, tmp_path), tmp_path, lambda reports: None)
    assert not list(tmp_path.glob(".cluster-*"))
