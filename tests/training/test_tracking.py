"""The tracker measures every step, leaves the rest of the log as it was, and says in the end what it cost."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import time
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig
from safetensors.torch import load_file

from pusa.errors import InputError
from pusa.models.wan.backbone import WanBackbone
from pusa.models.wan.operations import StepCounter
from pusa.processes import ProcessGroup
from pusa.training import tracking, validation
from pusa.training.costs import Costs
from pusa.training.monitoring import Monitor
from pusa.training.run_folder import Run
from pusa.training.tracking import Tracker
from pusa.training.trainer import train
from tests.training import small


@pytest.fixture
def model() -> WanBackbone:
    backbone: WanBackbone = small.components()
    backbone.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), "pusa")
    return backbone


@pytest.fixture(autouse=True)
def _quick_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pusa.training.tracking.matmul_rate", lambda device, dtype: 1e13)


def record(step: int, **changes: Any) -> dict[str, Any]:
    given = {"step": step, "loss": 1 / step, "lr": 1e-3, "grad_norm": 0.5, "clips": 2, "tokens": 24,
             "loss_by_sigma": [None, 0.25], "frames_by_sigma": [0, 6], "seconds": 1e-4}  # fmt: skip
    return given | changes


def test_a_record_gets_its_measurements_and_keeps_the_rest(tmp_path: Path, model: Any) -> None:
    with Tracker(tmp_path, model, steps=2, devices=2, quiet=True) as tracker:
        tracker.start(0, 2)
        mine = record(1)
        tracker.step(mine)
        mine_later = record(2)
        tracker.step(mine_later)
    assert {k: v for k, v in mine.items() if k in record(1)} == {k: v for k, v in record(1).items() if k != "seconds"}
    flops = StepCounter(model.transformer)(2, 24, 6)
    assert (mine["flops"], mine["recomputed"]) == (flops.model, 0)
    timing = mine_later["timing"]
    assert timing["seconds"] == 1e-4
    assert timing["aside"] > 0
    assert timing["clips_per_s"] == pytest.approx(2e4)
    assert timing["tokens_per_s"] == pytest.approx(24e4)
    assert timing["mfu"] == pytest.approx(flops.model / 1e-4 / 2e13)
    assert timing["peak_memory"] > 2**20
    json.dumps(mine, allow_nan=False)


def test_a_step_that_is_faster_than_the_measured_rate_corrects_the_rate(
    tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that is busy while the rate is measured gave an MFU of several hundred percent."""
    monkeypatch.setattr("pusa.training.tracking.matmul_rate", lambda device, dtype: 1.0)
    with Tracker(tmp_path, model, steps=3, quiet=True) as tracker:
        tracker.start(0, 3)
        given = [record(1), record(2, seconds=1e-5), record(3)]
        for each in given:
            tracker.step(each)
        costs = tracker.finish()
    assert [each["timing"]["mfu"] <= 1 for each in given] == [True] * 3
    assert costs.rate == pytest.approx(max(each["flops"] / each["timing"]["seconds"] for each in given))
    assert costs.mfu is not None
    assert 0 < costs.mfu <= 1


def written(folder: Path) -> list[bytes]:
    """The lines of the log without what was measured by a clock."""
    lines = (json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines())
    return [json.dumps({k: v for k, v in line.items() if k != "timing"}).encode() for line in lines]


def some_steps(folder: Path, model: Any, last: int, checkpoint: int | None = None) -> Tracker:
    """Train a little: from where the folder stands to `last`, with a checkpoint after step `checkpoint`."""
    with Run.open(folder, {}) as run, Tracker(folder, model, steps=6, price=3600.0, clips=4, quiet=True) as tracker:
        first = run.resumed.step if run.resumed else 0
        tracker.start(first, 6)
        for step in range(first + 1, last + 1):
            line = record(step)
            tracker.step(line)
            run.log(line)
            if step == checkpoint:
                run.save(step, {}, lambda place: None, None)
    return tracker


def test_the_log_of_a_resumed_run_is_that_of_an_uninterrupted_one(tmp_path: Path, model: Any) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    some_steps(whole, model, 6)
    some_steps(cut, model, 5, checkpoint=3)  # killed after step 5, goes on from 3
    assert len(written(cut)) == 5
    tracker = some_steps(cut, model, 6)
    assert written(cut) == written(whole)
    costs = tracker.finish()  # of both starts
    assert (costs.steps, costs.samples, costs.tokens) == (6, 12, 144)
    lines = [json.loads(line)["timing"] for line in (cut / "log.jsonl").read_text().splitlines()]
    assert costs.seconds == pytest.approx(sum(line["seconds"] for line in lines))
    step = StepCounter(model.transformer)(2, 24, 6)
    assert costs.flops == 6 * (step.model + step.recomputed)
    assert costs.money == pytest.approx(costs.device_hours * 3600)
    assert Costs.read(cut / "cost.json") == costs


def test_nothing_is_drawn_where_stderr_is_no_terminal(
    tmp_path: Path, model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with Tracker(tmp_path, model, steps=2) as tracker:
        tracker.step(record(1))
        tracker.step(record(2))
        assert capsys.readouterr() == ("", "Training (2 steps)\n")
        tracker.event("something happened")
        assert capsys.readouterr() == ("", "something happened\n")
        tracker.finish()
    out, err = capsys.readouterr()
    assert out == ""
    assert "3,860" in err
    with Tracker(tmp_path, model, steps=2, quiet=True) as tracker:
        tracker.event("something happened")
        tracker.finish()
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_lines_say_now_and_then_how_far_it_is(
    tmp_path: Path, model: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "LEAST", 0.0)
    with Tracker(tmp_path, model, steps=40) as tracker:
        tracker.start(10, 40)
        for step in (11, 12, 13):
            tracker.step(record(step, loss=0.125))
        with tracker.aside("Validating", "validation"):
            pass
    begin, line, aside = capsys.readouterr().err.splitlines()
    assert begin == "Training resumes after step 10 of 40"
    assert line.startswith("Training: step 12 of 40, loss 0.1250, ")
    assert " left, MFU " in line
    assert aside == "Validating after step 13"


def test_validation_does_not_throw_the_time_left_off(
    tmp_path: Path, model: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(tracking, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(tracking, "EVERY", 0.0)
    with Tracker(tmp_path, model, steps=1000) as tracker:
        tracker.start(0, 1000)
        with tracker.aside("Validating", "validation"):
            now[0] += 60  # before the first step: it comes once
        for step in range(1, 202):
            now[0] += 1
            tracker.step(record(step) | {"seconds": 1.0})
            if step in (100, 200):
                with tracker.aside("Validating", "validation"):
                    now[0] += 60
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Training: step ")]
    left = {int(line.split()[2]): line.split(", ")[3] for line in lines}
    assert left[1] == "16:39 left"  # 999 steps of a second
    assert left[100] == "15:00 left"
    assert left[101] == "23:58 left"  # and nine validations, that of the last step among them: 899 + 540 seconds
    assert left[200] == "21:20 left"
    assert left[201] == "21:18 left"


def test_the_cost_sheet_says_what_validation_and_previews_took(tmp_path: Path, model: Any) -> None:
    with Tracker(tmp_path, model, steps=2, quiet=True) as tracker:
        tracker.step(record(1))
        with tracker.aside("Validating", "validation"):
            time.sleep(0.05)
        second = record(2)
        tracker.step(second)
        with tracker.aside("Making previews", "previews"):
            time.sleep(0.02)
        costs = tracker.finish()
    assert second["timing"]["validation"] >= 0.05
    assert second["timing"]["previews"] == 0
    assert costs.validation == second["timing"]["validation"]
    assert costs.previews >= 0.02
    assert costs.aside >= costs.validation + costs.previews


def test_starting_a_finished_run_again_keeps_what_it_cost(
    tmp_path: Path, model: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with Run.open(tmp_path, {}) as run, Tracker(tmp_path, model, steps=1, quiet=True) as tracker:
        tracker.step(stepped := record(1))
        run.log(stepped)
        with tracker.aside("Validating", "validation"):
            time.sleep(0.05)
        costs = tracker.finish()
    with Tracker(tmp_path, model, steps=1, price=3.0) as tracker:
        again = tracker.finish()
    assert again == dataclasses.replace(costs, price=3.0) == Costs.read(tmp_path / "cost.json")
    assert "The training was finished before, after step 1." in capsys.readouterr().err


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_progress(tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    with Tracker(tmp_path, model, steps=40) as tracker:
        tracker.start(10, 40)
        tracker.step(record(11, loss=0.125))
        tracker.event("[bold]as it is[/bold]")
        with tracker.aside("Validating", "validation"):
            tracker._bar[0].refresh()  # type: ignore[index]
        tracker._bar[0].refresh()  # type: ignore[index]
    seen = screen.getvalue()
    for part in ("11/40", "loss 0.1250", "clips/s", "left", "MFU", "GiB", "[bold]as it is[/bold]", "Validating"):
        assert part in seen


# -------------------------------------------------------------------------------------------------------------- loggers


class Writer:
    """Stands in for TensorBoard's SummaryWriter, and for a run of trackio or wandb."""

    made: list[Writer] = []

    def __init__(self, **options: Any) -> None:
        self.options, self.seen, self.open = options, {}, True
        print("a banner")
        Writer.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.seen[name, step] = value

    def log(self, values: dict[str, float], step: int) -> None:
        self.seen |= {(name, step): value for name, value in values.items()}

    def close(self) -> None:
        self.open = False

    finish = close


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> list[Writer]:
    Writer.made = []
    board, others = types.ModuleType("board"), types.ModuleType("others")
    board.SummaryWriter = others.init = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setitem(sys.modules, "trackio", others)
    monkeypatch.setitem(sys.modules, "wandb", others)
    return Writer.made


def test_every_logger_gets_the_numbers(tmp_path: Path, model: Any, stand_ins: list[Writer], capsys: Any) -> None:
    names = ["tensorboard", "trackio", "wandb"]
    with Tracker(tmp_path / "run7", model, steps=9, loggers=names, config={"train": {"lr": 1}}, quiet=True) as tracker:
        assert stand_ins == []  # nothing is opened before the training
        tracker.start(4, 9)
        tracker.step(record(5))
        tracker.scalars(5, {"validation/text-to-video": 0.3})
    assert len(stand_ins) == 3
    for writer in stand_ins:
        assert writer.seen["train/loss", 5] == pytest.approx(0.2)
        assert writer.seen["sigma/0.75", 5] == 0.25
        assert ("sigma/0.25", 5) not in writer.seen
        assert writer.seen["validation/text-to-video", 5] == 0.3
        assert writer.seen["timing/mfu", 5] > 0
        assert not writer.open
    assert stand_ins[0].options == {"log_dir": str(tmp_path / "run7" / "tensorboard"), "purge_step": 5}
    assert stand_ins[1].options["name"] == stand_ins[2].options["name"] == "run7"
    assert stand_ins[2].options["resume"] == "allow"
    assert stand_ins[2].options["config"] == {"train": {"lr": 1}}
    assert "banner" not in capsys.readouterr().out.replace("a banner\n", "", 1)  # only TensorBoard's, which has none


def test_a_logger_that_fails_does_not_end_the_training(
    tmp_path: Path, model: Any, stand_ins: list[Writer], capsys: pytest.CaptureFixture[str]
) -> None:
    with Tracker(tmp_path, model, steps=3, loggers=["trackio", "tensorboard"]) as tracker:
        tracker.step(record(1))

        def fail(values: Any, step: int) -> None:
            raise OSError("no route to host")

        stand_ins[0].log = fail  # type: ignore[method-assign]
        tracker.step(record(2))
        tracker.step(record(3))
    assert ("train/loss", 3) in stand_ins[1].seen
    assert capsys.readouterr().err.count("trackio failed and is not used any more: no route to host") == 1


@pytest.mark.parametrize(("name", "how"), [("tensorboard", "pusa[train]"), ("trackio", "trackio"), ("wandb", "wandb")])
def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch, name: str, how: str
) -> None:
    for module in ("torch.utils.tensorboard", "tensorboard", "trackio", "wandb"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError) as caught:
        Tracker(tmp_path, model, steps=1, loggers=[name])
    message = str(caught.value)
    assert name in message
    assert f"pip install {how}" in message.replace("'", "")
    assert "\n" not in message


def test_real_tensorboard_files(tmp_path: Path, model: Any) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Tracker(tmp_path, model, steps=2, loggers=["tensorboard"], quiet=True) as tracker:
        tracker.step(record(1))
        tracker.step(record(2))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.value for e in events.Scalars("train/loss")] == pytest.approx([1.0, 0.5])
    assert "sigma/0.75" in events.Tags()["scalars"]


def test_a_real_trackio_run(tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    with Tracker(tmp_path / "named", model, steps=2, loggers=["trackio"], quiet=True) as tracker:
        tracker.step(record(1))
        tracker.step(record(2))
    runs = trackio.Api().runs("pusa")
    assert "named" in [run.name for run in runs]


# ------------------------------------------------------------------------------- with the trainer, from end to end


def watched(out: Path, config: Any, **options: Any) -> tuple[Any, Costs | None]:
    components, samples, held_out = small.components(), small.Samples(), list(small.Samples(2))
    with Monitor(config, out, components, samples, held_out, ProcessGroup(0, 1), quiet=True) as monitor:
        result = train(
            config, out, components=components, samples=samples, tracker=monitor.tracker,
            hooks=monitor.hooks, **options,
        )  # fmt: skip
        return result, monitor.finish()


@pytest.mark.parametrize("lora", [{}, None])
def test_a_watched_training_leaves_log_validation_costs_and_card(tmp_path: Path, lora: dict[str, Any] | None) -> None:
    config = small.config(
        lora=lora, validate={"every": 6, "sigmas": [0.3, 0.8]}, track={"price": 2.0}, train={"steps": 8}
    )
    _, costs = watched(tmp_path / "seen", config)
    history = validation.read(tmp_path / "seen" / "validation.jsonl")
    assert [v.step for v in history] == [6, 8]
    assert history[0].base is not None
    assert history[1].base is not None
    assert history[0].base.total.equal(history[1].base.total)
    assert not history[0].losses.total.equal(history[1].losses.total)
    lines = [json.loads(line) for line in (tmp_path / "seen" / "log.jsonl").read_text().splitlines()]
    assert all(line["timing"]["seconds"] > 0 and "seconds" not in line for line in lines)
    assert costs is not None
    assert (costs.steps, costs.samples, costs.clips) == (8, 16, 8)
    assert costs.aside > 0
    card = ModelCard.load(tmp_path / "seen" / "README.md")
    assert "| steps | 8 |" in card.text
    assert "## Validation" in card.text
    assert ("lora" in card.data.tags) == (lora is not None)

    train(config, tmp_path / "unseen", components=small.components(), samples=small.Samples())
    name = "lora.safetensors" if lora is not None else "transformer/diffusion_pytorch_model.safetensors"
    seen, unseen = (load_file(tmp_path / run / name) for run in ("seen", "unseen"))
    assert seen.keys() == unseen.keys()
    assert all(torch.equal(seen[key], unseen[key]) for key in seen)


def test_validation_starts_from_the_base(tmp_path: Path) -> None:
    """Before anything is learnt the trained model is the base: lr so small that nothing moves."""
    config = small.config(validate={"every": 1, "sigmas": [0.5]}, train={"steps": 1, "lr": 1e-30, "ema": None})
    watched(tmp_path, config)
    (only,) = validation.read(tmp_path / "validation.jsonl")
    assert only.base is not None
    torch.testing.assert_close(only.losses.total, only.base.total)
