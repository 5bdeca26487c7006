"""A unit is made once; errors are raised or collected; a killed owner loses its claim and its parts are removed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pusa.errors import InputError, PusaError
from pusa.work.units import WAITING, Unit, claim, make_units, open_claims


def unit(folder: Path, name: str, needs: tuple[str, ...] = (), error: Exception | None = None) -> Unit:
    """Writes its name into a file of that name, or raises `error`."""

    def make() -> None:
        if error:
            raise error
        (folder / name).write_text(name)

    return Unit(name, folder / name, make, tuple(folder / need for need in needs))


@pytest.fixture
def other_process(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """other_process(name): a process that has claimed a unit and keeps it until it is killed."""
    code = """
import sys
from pathlib import Path
from pusa.work.units import claim, open_claims
with open_claims(Path(sys.argv[1]), "the results") as descriptor, claim(descriptor, sys.argv[2]) as claimed:
    print(claimed, flush=True)
    sys.stdin.read()
"""
    started: list[subprocess.Popen[str]] = []

    def begin(name: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", code, str(tmp_path / "claims"), name]
        child = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        started.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "True\n"
        return child

    yield begin
    for child in started:
        child.kill()
        child.communicate()


def test_what_is_done_is_found_and_what_is_missing_is_made(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    outcome = make_units([unit(tmp_path, name) for name in "abc"], tmp_path / "claims", "the results")
    assert (outcome.made, outcome.found, outcome.failed) == (["b", "c"], ["a"], {})


def test_the_first_error_is_raised(tmp_path: Path) -> None:
    units = [unit(tmp_path, "a"), unit(tmp_path, "b", error=PusaError("no")), unit(tmp_path, "c")]
    with pytest.raises(PusaError, match="no"):
        make_units(units, tmp_path / "claims", "the results")
    assert (tmp_path / "a").exists()
    assert not (tmp_path / "c").exists()


def test_collected_errors_leave_the_others_and_fail_what_needs_the_unit(tmp_path: Path) -> None:
    error = PusaError("no")
    units = [unit(tmp_path, "c", ("b",)), unit(tmp_path, "a"), unit(tmp_path, "b", error=error), unit(tmp_path, "d")]
    seen: list[tuple[str, int, int]] = []
    outcome = make_units(
        units, tmp_path / "claims", "the results", lambda *state: seen.append(state), collect=(PusaError,)
    )
    assert outcome.made == ["a", "d"]
    assert outcome.failed == {"b": error, "c": error}
    assert error.__traceback__ is None, "it would keep what the unit had in memory"
    assert seen == [("Working", finished, 4) for finished in range(5)]
    with pytest.raises(ValueError, match="other"):
        make_units([unit(tmp_path, "e", error=ValueError("other"))], tmp_path / "claims", "x", collect=(PusaError,))


def test_a_claimed_unit_is_waited_for_and_made_when_its_owner_is_killed(
    tmp_path: Path, other_process: Callable[[str], subprocess.Popen[str]]
) -> None:
    child = other_process("first")
    half = tmp_path / ".first-0123abcd.part.mp4"
    half.write_text("half")
    seen: list[tuple[str, int, int]] = []

    def progress(*state: object) -> None:
        seen.append(state)  # type: ignore[arg-type]
        if state[0] == WAITING:
            assert half.exists()
            assert not (tmp_path / "first").exists()
            child.kill()
            child.wait()

    outcome = make_units(
        [unit(tmp_path, "first"), unit(tmp_path, "second")], tmp_path / "claims", "the results", progress
    )
    assert outcome.made == ["second", "first"]
    assert (WAITING, 1, 2) in seen
    assert not half.exists()


def test_a_unit_that_another_process_made_meanwhile_is_found(
    tmp_path: Path, other_process: Callable[[str], subprocess.Popen[str]]
) -> None:
    child = other_process("first")

    def progress(what: str, finished: int, total: int) -> None:
        if what == WAITING:
            (tmp_path / "first").touch()
            child.kill()
            child.wait()

    outcome = make_units([unit(tmp_path, "first")], tmp_path / "claims", "the results", progress)
    assert (outcome.made, outcome.found) == ([], ["first"])


def test_a_claim_is_of_one_name(tmp_path: Path, other_process: Callable[[str], subprocess.Popen[str]]) -> None:
    other_process("first")
    with open_claims(tmp_path / "claims", "the results") as descriptor:
        with claim(descriptor, "first") as claimed:
            assert claimed is False
        with claim(descriptor, "second") as claimed:
            assert claimed is True


def test_parts_are_removed_only_where_their_names_tell_whose_they_are(tmp_path: Path) -> None:
    long = "x" * 40
    units = [unit(tmp_path, name) for name in ("clip", f"{long}1", f"{long}2")]
    ours, shared = ".clip-0123abcd.part.mp4", f".{long}-0123abcd.part.mp4"
    others = (".clip2-0123abcd.part.mp4", ".clip-0123.mp4", "clip-0123abcd.part.mp4")
    for name in (ours, shared, *others):
        (tmp_path / name).touch()
    make_units(units, tmp_path / "claims", "the results")
    assert not (tmp_path / ours).exists()
    assert all((tmp_path / name).exists() for name in (shared, *others))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write the cache into .*file is not a folder; choose another folder"):
        make_units([unit(tmp_path, "a")], tmp_path / "file" / "claims", "the cache")
