from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from pusa.errors import InputError
from pusa.evaluation import pieces
from pusa.evaluation.pieces import Piece


def piece(folder: Path, name: str, *needs: str) -> Piece:
    def make() -> None:
        assert all((folder / need).exists() for need in needs)
        (folder / name).write_text(name)

    return Piece(name, folder / name, make, tuple(folder / need for need in needs))


def make_some(folder: Path, told: pieces.Told) -> None:
    """What the processes of the test below run."""
    pieces.make_all([piece(folder, f"{i}") for i in range(6)], folder, told)


def test_pieces_wait_for_what_they_need_and_are_made_once(tmp_path: Path) -> None:
    wanted = [piece(tmp_path, "c", "b"), piece(tmp_path, "b", "a"), piece(tmp_path, "a")]
    told = []
    pieces.make_all(wanted, tmp_path, lambda: told.append(sum(one.file.exists() for one in wanted)))
    assert told == [0, 1, 2, 3]
    assert pieces.seconds(wanted, tmp_path) >= 0
    lines = (tmp_path / pieces.TIMES).read_text()
    pieces.make_all(wanted, tmp_path)
    assert (tmp_path / pieces.TIMES).read_text() == lines


@pytest.mark.parametrize("processes", [1, 2])
def test_processes_share_the_work(tmp_path: Path, processes: int) -> None:
    wanted = [piece(tmp_path, f"{i}") for i in range(6)]
    seen: list[tuple[str, int, int]] = []
    pieces.make_with(processes, partial(make_some, tmp_path), wanted, "Things", lambda *told: seen.append(told))
    assert all(one.file.exists() for one in wanted)
    assert len((tmp_path / pieces.TIMES).read_text().splitlines()) == 6
    assert seen[-1][0] == "Things"


def fail(folder: Path, told: pieces.Told) -> None:
    raise InputError(f"{folder.name} cannot be made")


def test_an_error_in_a_process_is_raised_here(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be made"):
        pieces.make_with(2, partial(fail, tmp_path), [piece(tmp_path, "a")], "Things")


def test_a_folder_belongs_to_the_settings_it_was_begun_with(tmp_path: Path) -> None:
    pieces.begun_with(tmp_path / "run", {"steps": 10, "seed": None})
    pieces.begun_with(tmp_path / "run", {"steps": 10, "seed": None})
    with pytest.raises(InputError, match="begun with steps 10 and not 20"):
        pieces.begun_with(tmp_path / "run", {"steps": 20, "seed": None})
    (tmp_path / "run" / pieces.RUN).write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        pieces.begun_with(tmp_path / "run", {})
