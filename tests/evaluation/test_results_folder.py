"""Results are made once, by one or several processes, under one set of settings."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from pusa.errors import InputError, PusaError
from pusa.evaluation import results_folder
from pusa.work.units import Unit
from pusa.work.workers import Worker


def unit(folder: Path, name: str, *needs: str) -> Unit:
    def make() -> None:
        assert all((folder / need).exists() for need in needs)
        (folder / name).write_text(name)

    return Unit(name, folder / name, make, tuple(folder / need for need in needs))


def make_some(folder: Path, worker: Worker) -> None:
    """What the processes of the test below run."""
    results_folder.make_missing([unit(folder, f"{i}") for i in range(6)], folder, progress=worker.progress)


def test_units_wait_for_what_they_need_and_are_made_once(tmp_path: Path) -> None:
    wanted = [unit(tmp_path, "c", "b"), unit(tmp_path, "b", "a"), unit(tmp_path, "a")]
    seen = []
    results_folder.make_missing(wanted, tmp_path, progress=lambda _, finished, total: seen.append(finished))
    assert seen == [0, 1, 2, 3]
    assert results_folder.seconds(wanted, tmp_path) >= 0
    lines = (tmp_path / results_folder.TIMES).read_text()
    results_folder.make_missing(wanted, tmp_path)
    assert (tmp_path / results_folder.TIMES).read_text() == lines


@pytest.mark.parametrize("processes", [1, 2])
def test_processes_share_the_work(tmp_path: Path, processes: int) -> None:
    wanted = [unit(tmp_path, f"{i}") for i in range(6)]
    seen: list[tuple[str, int, int]] = []
    results_folder.make_in_processes(
        processes, partial(make_some, tmp_path), wanted, "Things", lambda *state: seen.append(state)
    )
    assert all(one.file.exists() for one in wanted)
    assert len((tmp_path / results_folder.TIMES).read_text().splitlines()) == 6
    assert seen[-1][0] == "Things"


def test_what_fails_is_named_and_the_others_are_made(tmp_path: Path) -> None:
    def fail() -> None:
        raise ZeroDivisionError("by zero")

    units = [unit(tmp_path, "a"), Unit("b", tmp_path / "b", fail), unit(tmp_path, "c"), unit(tmp_path, "d", "b")]
    with pytest.raises(PusaError) as caught:
        results_folder.make_missing(units, tmp_path)
    assert caught.value.exit_code == 1
    assert caught.value.summary.startswith("2 of 4 could not be made")
    assert [detail.split(" (")[0] for detail in caught.value.details] == [
        "b: ZeroDivisionError: by zero", "d: ZeroDivisionError: by zero",
    ]  # fmt: skip
    assert (tmp_path / "c").exists()


def fail(folder: Path, worker: Worker) -> None:
    raise InputError(f"{folder.name} cannot be made")


def test_an_error_in_a_process_is_raised_here(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be made"):
        results_folder.make_in_processes(2, partial(fail, tmp_path), [unit(tmp_path, "a")], "Things")


def test_times_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    (tmp_path / results_folder.TIMES).write_text('{"piece": "a", "seconds": 2.5}\n')
    assert results_folder.seconds([unit(tmp_path, "a"), unit(tmp_path, "b")], tmp_path) == 2.5


def test_a_folder_keeps_to_the_settings_of_its_results(tmp_path: Path) -> None:
    results_folder.keep_settings(tmp_path / "run", {"steps": 10, "seed": None})
    results_folder.keep_settings(tmp_path / "run", {"steps": 10, "seed": None})
    with pytest.raises(InputError, match="were made with steps 10, not 20"):
        results_folder.keep_settings(tmp_path / "run", {"steps": 20, "seed": None})
    (tmp_path / "run" / results_folder.SETTINGS).write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        results_folder.keep_settings(tmp_path / "run", {})
