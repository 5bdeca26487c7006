"""The run folder: one owner, whole checkpoints, a log that fits them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pusa.errors import InputError
from pusa.training import run_folder
from pusa.training.run_folder import Run

FACTS = {"train.lr": 0.1, "lora.targets": ["to_q"], "model": "abc"}


def weights(folder: Path) -> None:
    (folder / "transformer").mkdir()
    (folder / "transformer" / "config.json").write_text("{}")


def write(run: Run, step: int, keep: int | None = None) -> Path:
    return run.save(step, {"step": step, "x": torch.full((4,), float(step))}, weights, keep)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "a"


def test_what_is_saved_comes_back(folder: Path) -> None:
    with Run.open(folder, FACTS) as run:
        assert run.resumed is None
        place = write(run, 900)
    assert place == folder / "checkpoints" / "step_000900"
    assert (place / "transformer" / "config.json").is_file()
    with Run.open(folder, FACTS) as run:
        assert run.resumed is not None
        assert (run.resumed.step, run.resumed.facts) == (900, FACTS)
        assert torch.equal(run.resumed.state()["x"], torch.full((4,), 900.0))


def test_the_newest_are_kept(folder: Path) -> None:
    with Run.open(folder, FACTS) as run:
        for step in (5, 10, 100, 20_000_000):
            write(run, step, keep=2)
        assert [p.name for p in run.checkpoints] == ["step_000100", "step_20000000"]
        write(run, 20_000_001, keep=None)
        assert len(run.checkpoints) == 3


DAMAGE = {
    "half a file": lambda p: os.truncate(p / "state.pt", 100),
    "a flipped bit": lambda p: (p / "state.pt").write_bytes(bytes([1]) + (p / "state.pt").read_bytes()[1:]),
    "a missing file": lambda p: (p / "transformer" / "config.json").unlink(),
    "no manifest": lambda p: (p / "checkpoint.json").unlink(),
    "an empty manifest": lambda p: (p / "checkpoint.json").write_text(""),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(damage: str, folder: Path) -> None:
    with Run.open(folder, FACTS) as run:
        write(run, 1)
        DAMAGE[damage](write(run, 2))
    with pytest.warns(UserWarning, match=r"step_000002 is damaged: .* Training resumes from step 1\."):
        run = Run.open(folder, FACTS)
    with run:
        assert run.resumed is not None
        assert run.resumed.step == 1
        write(run, 2, keep=1)
        assert run_folder.read(run.checkpoints[-1]).step == 2
    DAMAGE[damage](folder / "checkpoints" / "step_000002")
    with pytest.raises(InputError, match="All 1 checkpoints"):
        Run.open(folder, FACTS)


def test_a_damaged_future_does_not_push_out_a_good_past(folder: Path) -> None:
    with Run.open(folder, FACTS) as run:
        write(run, 10)
        DAMAGE["half a file"](write(run, 20))
    with pytest.warns(UserWarning, match="step_000020"):
        run = Run.open(folder, FACTS)
    with run:
        write(run, 15, keep=1)
        assert run_folder.read(folder / "checkpoints" / "step_000015").step == 15


def test_other_facts_are_refused_by_name_unless_forced(folder: Path) -> None:
    with Run.open(folder, FACTS) as run:
        write(run, 3)
    other = {**FACTS, "train.lr": 0.2, "clips": "xyz"}
    with pytest.raises(
        InputError, match=r"step 3 with other settings \(train\.lr was 0\.1 and is 0\.2; clips was null"
    ):
        Run.open(folder, other)
    Run.open(folder, other, force=True).close()
    with Run.open(folder, FACTS) as run:  # nothing was saved with the others
        assert run.resumed is not None


def test_a_folder_has_one_owner(folder: Path) -> None:
    with Run.open(folder, FACTS), pytest.raises(InputError, match=rf"in use by process {os.getpid()} on "):
        Run.open(folder, FACTS)
    Run.open(folder, FACTS).close()


def test_a_dead_owner_owns_nothing(folder: Path) -> None:
    script = (
        "import sys, time; from pusa.training.run_folder import Run; "
        "run = Run.open(sys.argv[1], {}); print('mine', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"mine\n"
        with pytest.raises(InputError, match=f"in use by process {owner.pid} on "):
            Run.open(folder, {})
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    Run.open(folder, {}).close()


def test_the_log_is_cut_back_to_the_checkpoint(folder: Path) -> None:
    with Run.open(folder, FACTS) as run:
        for step in (1, 2, 3, 4):
            run.log({"step": step, "loss": 0.1 * step, "list": [float("nan"), 1]})
            if step == 2:
                write(run, step)
        with (folder / "log.jsonl").open("a") as file:
            file.write('{"step": 5, "lo')
    with Run.open(folder, FACTS) as run:
        run.log({"step": 3, "loss": 3.0})
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 0.1, "list": [None, 1]}, {"step": 2, "loss": 0.2, "list": [None, 1]},
                     {"step": 3, "loss": 3.0}]  # fmt: skip


def test_snapshots_after_the_checkpoint_are_taken_back(folder: Path) -> None:
    def snapshot(step: int) -> None:
        (folder / "snapshots").mkdir(exist_ok=True)
        (folder / "snapshots" / f"step_{step:06d}.safetensors").touch()

    with Run.open(folder, FACTS) as run:
        for step in (2, 4):
            write(run, step)
            snapshot(step)
        snapshot(6)
    Run.open(folder, FACTS).close()
    assert sorted(p.name for p in (folder / "snapshots").iterdir()) == [f"step_{s:06d}.safetensors" for s in (2, 4)]
    shutil.rmtree(folder / "checkpoints")
    Run.open(folder, FACTS).close()
    assert not list((folder / "snapshots").iterdir())


def test_a_run_that_never_saved_begins_anew(folder: Path) -> None:
    with Run.open(folder, FACTS) as run:
        run.log({"step": 1})
    with Run.open(folder, {"other": 1}) as run:
        assert run.resumed is None
    assert (folder / "log.jsonl").read_text() == ""


def test_an_unfinished_write_is_swept_away(folder: Path) -> None:
    with Run.open(folder, FACTS) as run:
        write(run, 1)
        torn = folder / "checkpoints" / ".step_000002-00000000.part"
        torn.mkdir()
        (torn / "state.pt").write_bytes(b"half")
    with Run.open(folder, FACTS) as run:
        assert not torn.exists()
        assert [p.name for p in run.checkpoints] == ["step_000001"]


@pytest.mark.parametrize("who", ["state", "weights"])
def test_a_full_disk_leaves_the_last_checkpoint_usable(who: str, small_disk: Path) -> None:
    from safetensors.torch import save_file

    big = {"x": torch.zeros(300_000)}
    what = (big, weights) if who == "state" else ({}, lambda folder: save_file(big, folder / "lora.safetensors"))
    with Run.open(small_disk / "run", FACTS) as run:
        write(run, 1)
        with pytest.raises(
            InputError, match=r"step_000002 \(the last good checkpoint is step_000001\): the disk is full"
        ) as caught:
            run.save(2, *what, 1)
        assert str(caught.value).count(". ") == 0
    with Run.open(small_disk / "run", FACTS) as run:
        assert run.resumed is not None
        assert run.resumed.step == 1
        write(run, 2)


def test_a_full_disk_is_known_by_whatever_name_it_comes(folder: Path) -> None:
    def full(_: Path) -> None:
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904, as torch does it

    with Run.open(folder, FACTS) as run:
        with pytest.raises(InputError, match=r"there is no checkpoint yet\): the disk is full"):
            run.save(1, {}, full, 1)
        assert list((folder / "checkpoints").iterdir()) == []


@pytest.mark.slow
def test_killed_while_writing_twenty_times(folder: Path) -> None:
    script = """if True:
        import sys, torch
        from pusa.training.run_folder import Run
        run = Run.open(sys.argv[1], {})
        at = run.resumed.step if run.resumed else 0
        if at:
            assert torch.equal(run.resumed.state()["x"], torch.full((300_000,), float(at)))
        print(at, flush=True)
        while True:
            at += 1
            run.save(at, {"x": torch.full((300_000,), float(at))}, lambda folder: None, 2)
    """
    reached, delays = [], torch.rand(20, generator=torch.Generator().manual_seed(0)).tolist()
    for delay in delays:
        with subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            reached.append(int(writer.stdout.readline()))
            time.sleep(0.3 * delay)
            writer.kill()
    assert reached == sorted(reached)
    assert reached[-1] > 20
