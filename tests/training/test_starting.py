"""A training starts from a LoRA file or from a checkpoint of another run, and resumes exactly from both."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pusa.errors import Cancelled, InputError
from pusa.models.lora import runtime
from pusa.training import starting
from pusa.training.config.sections import TARGETS
from pusa.training.config.tree import read
from pusa.training.trainer import Hook
from tests.models import lora_files
from tests.training import small
from tests.training.test_trainer import curve, log, run, same, says, weights

LAYERS = runtime.linears(small.pristine())


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """A LoRA as the published Pusa LoRA: Wan's own names, no alpha."""
    return lora_files.written(tmp_path, "official pusa safetensors", *lora_files.truth(small.pristine(), size=0.05))


def started(path: Path, **changes: Any) -> dict[str, Any]:
    """The sections of a training that starts from a LoRA, with the settings of its file."""
    config = read(None, None, {"lora.init": str(path), **changes})
    return {"lora": starting.with_lora(config, LAYERS).lora.model_dump(), "train": {"ema": None}}


def test_rank_alpha_and_targets_come_from_the_file(official: Path) -> None:
    lora = started(official)["lora"]
    assert (lora["rank"], lora["alpha"], lora["targets"]) == (lora_files.RANK, lora_files.RANK, list(TARGETS))
    config = read(None, "wan21-14b", {"lora.init": str(official)})
    assert starting.with_lora(config, LAYERS).lora.rank == lora_files.RANK, "a preset does not decide the rank"
    config = read(None, "wan21-14b", {"lora.init": str(official), "lora.rank": 7})
    assert starting.with_lora(config, LAYERS).lora.rank == 7, "what the user gives is compared when it is attached"
    assert read(None, "wan21-14b", {}).lora.rank == 128


def test_the_training_goes_on_from_the_file(official: Path, tmp_path: Path) -> None:
    fresh, trained = small.components().transformer, small.components()
    settings = started(official)
    seen = []

    def look(step: int, transformer: Any, folder: Path) -> None:
        seen.append(says(transformer))

    settings["train"] |= {"lr": 1e-7, "steps": 1, "schedule": "constant"}
    result = run(tmp_path / "a", components=trained, options={"hooks": [Hook(1, look)]}, **settings)
    bare = says(fresh)
    runtime.load(fresh, official)
    torch.testing.assert_close(seen[0], says(fresh), atol=1e-5, rtol=1e-5)
    assert (says(fresh) - bare).abs().max() > 1e-3
    assert [record["step"] for record in log(tmp_path / "a")] == [1]
    again = small.components().transformer
    runtime.load(again, result.output)
    torch.testing.assert_close(says(again), says(fresh), atol=1e-5, rtol=1e-5)


def test_it_resumes_exactly_and_the_content_of_the_file_counts(official: Path, tmp_path: Path) -> None:
    settings = started(official)
    settings["save"] = {"every": 3}

    def stop(step: int, *_: Any) -> None:
        if step == 5:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        run(tmp_path / "a", options={"hooks": [Hook(1, stop)]}, **settings)
    moved = official.with_name("moved.safetensors")
    shutil.copy(official, moved)
    settings["lora"]["init"] = str(moved)
    assert run(tmp_path / "a", **settings).first == 3
    run(tmp_path / "b", **settings)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    save_file({name: 2 * value for name, value in load_file(moved).items()}, moved)
    with pytest.raises(InputError, match=r"with other settings \(lora\.init was "):
        run(tmp_path / "a", **settings)


def test_a_lora_for_the_other_expert_is_refused(official: Path, tmp_path: Path) -> None:
    path = official.rename(tmp_path / "pusa_high_noise.safetensors")
    config = read(None, None, {"lora.init": str(path), "model.expert": "low"})
    with pytest.raises(InputError, match=r"is for the high-noise expert, and model\.expert is low"):
        starting.with_lora(config, LAYERS)
    with pytest.raises(InputError, match=r"no\.safetensors does not exist"):
        starting.with_lora(read(None, None, {"lora.init": "no.safetensors"}), LAYERS)


# -------------------------------------------------------------------------------------------- a chosen checkpoint

SETTINGS: dict[str, Any] = {"train": {"ema": "post-hoc"}, "save": {"every": 4, "keep": None}}


def test_a_run_that_begins_with_a_checkpoint_ends_as_the_other_run(tmp_path: Path) -> None:
    run(tmp_path / "a", **SETTINGS)
    before = sorted(p.name for p in (tmp_path / "a").rglob("*"))
    starting.branch(tmp_path / "a" / "checkpoints" / "step_000004", tmp_path / "b")
    assert len(log(tmp_path / "b")) == 4
    assert run(tmp_path / "b", **SETTINGS).first == 4
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    a, b = ({p.name: load_file(p) for p in (tmp_path / name / "snapshots").iterdir()} for name in "ab")
    assert a.keys() == b.keys()
    assert all(same(a[name], b[name]) for name in a)
    assert sorted(p.name for p in (tmp_path / "a").rglob("*")) == before
    facts = json.loads((tmp_path / "b" / starting.ORIGIN).read_text())
    assert facts["checkpoint"] == str(tmp_path / "a" / "checkpoints" / "step_000004")


def test_the_same_command_goes_on_and_another_one_is_refused(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    run(a, **SETTINGS)
    chosen = a / "checkpoints" / "step_000004"
    starting.branch(chosen, b)
    run(b, **SETTINGS)
    shutil.rmtree(a)
    starting.branch(chosen, b)
    assert run(b, **SETTINGS).first == 12, "the same command resumes, also without the other run"
    with pytest.raises(InputError, match="has checkpoints of its own: give another --out"):
        starting.branch(tmp_path / "c", b)


def test_other_settings_are_refused_as_for_every_resume(tmp_path: Path) -> None:
    run(tmp_path / "a", **SETTINGS)
    starting.branch(tmp_path / "a" / "checkpoints" / "step_000004", tmp_path / "b")
    other = {**SETTINGS, "train": {"ema": "post-hoc", "lr": 1e-3}}
    with pytest.raises(InputError, match=r"step 4 with other settings \(train\.lr was 0\.01 and is 0\.001\)"):
        run(tmp_path / "b", **other)
    assert run(tmp_path / "b", **other, options={"force": True}).first == 4


def test_the_newest_checkpoint_of_a_run_and_what_is_none(tmp_path: Path) -> None:
    run(tmp_path / "a", **SETTINGS)
    starting.branch(tmp_path / "a", tmp_path / "b")
    assert [p.name for p in (tmp_path / "b" / "checkpoints").iterdir()] == ["step_000012"]
    with pytest.raises(
        InputError, match="is not a checkpoint; its run has step_000004, step_000008, step_000012: give"
    ):
        starting.branch(tmp_path / "a" / "checkpoints" / "step_000005", tmp_path / "c")
    with pytest.raises(InputError, match=r"no is not a checkpoint: give a folder such as"):
        starting.branch(tmp_path / "no", tmp_path / "c")
    assert not (tmp_path / "c").exists()
    (tmp_path / "a" / "checkpoints" / "step_000008" / "state.pt").write_bytes(b"")
    with pytest.raises(InputError, match="step_000008 is damaged"):
        starting.branch(tmp_path / "a" / "checkpoints" / "step_000008", tmp_path / "c")


def test_checkpoints_and_hooks_by_epoch(tmp_path: Path) -> None:
    seen: list[int] = []
    options = {"hooks": [Hook("2 epochs", lambda step, *_: seen.append(step))]}
    run(tmp_path, options=options, samples=small.Samples(5), save={"every": "epoch", "keep": None})
    steps = [int(p.name.removeprefix("step_")) for p in sorted((tmp_path / "checkpoints").iterdir())]
    assert steps == [3, 5, 8, 10, 12], "two clips a step of five, and the last step"
    assert seen == [5, 10, 12]
