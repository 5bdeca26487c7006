"""The learning rate over a training, and which optimiser is built."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pusa.errors import Cancelled, InputError
from pusa.models.lora import runtime
from pusa.training import optimisers
from pusa.training.config.sections import TrainSettings
from pusa.training.config.tree import read
from pusa.training.optimisers import LIBRARIES, learning_rate
from pusa.training.trainer import Hook
from tests.training import small
from tests.training.test_trainer import curve, player, run, same, says, weights


def rates(schedule: str, steps: int = 100, warmup: int = 10) -> list[float]:
    return [learning_rate(step, steps, 2.0, warmup, schedule) for step in range(steps)]


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_it_rises_to_the_peak_and_never_above(schedule: str) -> None:
    values = rates(schedule)
    assert values[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert max(values) == values[10] == 2.0
    after = values[10:]
    assert after == sorted(after, reverse=True)
    assert after[45] == pytest.approx(2.0 if schedule == "constant" else 1.0)
    assert after[-1] > 0
    assert after[-1] < 0.05 or schedule == "constant"


def test_no_warmup_begins_at_the_peak() -> None:
    assert rates("cosine", warmup=0)[0] == 2.0


def test_only_matrices_decay() -> None:
    parameters = {"w": nn.Parameter(torch.ones(2, 2)), "b": nn.Parameter(torch.ones(2))}
    optimiser = optimisers.build(parameters, TrainSettings(lr=0.1, weight_decay=0.5, betas=(0.8, 0.95)))
    for p in parameters.values():
        p.grad = torch.zeros_like(p)
    optimiser.step()
    assert torch.equal(parameters["b"], torch.ones(2))
    assert parameters["w"].flatten().tolist() == pytest.approx([0.95] * 4)
    assert all(group["betas"] == (0.8, 0.95) for group in optimiser.param_groups)


def test_only_adamw_trains_sharded_weights() -> None:
    parameters = {"w": nn.Parameter(torch.ones(2, 2))}
    with pytest.raises(InputError, match="sharded"):
        optimisers.build(parameters, TrainSettings(optimiser="muon"), sharded=True)


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_missing_library_is_named_with_its_remedy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, LIBRARIES[name][0], None)
    with pytest.raises(InputError, match=rf"The optimiser {name} needs {LIBRARIES[name][0]}: run pip install 'pusa\["):
        optimisers.check(name)


def test_what_does_not_go_together_is_refused() -> None:
    for settings, sentence in (
        ({"optimiser": "prodigy"}, "prodigy multiplies the rate that it finds by it; give 1"),
        ({"optimiser": "prodigy", "lr": 1, "rates": "lora_B=16"}, "train.rates cannot be combined with prodigy"),
        ({"optimiser": "schedule-free", "schedule": "cosine"}, "set train.schedule to constant"),
        ({"optimiser": "schedule-free", "ema": 0.9}, "and train.ema to null"),
        ({"optimiser": "adamw-kahan"}, "set train.precision to bf16"),
        ({"optimiser": "muon", "parallel": "fsdp"}, "train.parallel fsdp needs train.optimiser adamw"),
        ({"rates": "lora_B=0"}, "train.rates.lora_B is 0 (the command line); give a number above 0"),
    ):
        with pytest.raises(InputError) as caught:
            read(None, None, {f"train.{name}": value for name, value in settings.items()})
        assert sentence in str(caught.value)
    vector = {"b": nn.Parameter(torch.ones(2))}
    with pytest.raises(InputError, match="Muon trains matrices only, and b is none"):
        optimisers.build(vector, TrainSettings(optimiser="muon"))


def test_rates_are_factors_by_pattern() -> None:
    names = ("blocks.0.to_q.lora_A.w", "blocks.0.to_q.lora_B.w", "blocks.1.to_q.lora_B.w")
    parameters = {name: nn.Parameter(torch.ones(2, 2)) for name in names}
    rates = read(None, None, {"train.rates": "lora_B=16,blocks.1=0.5"}).train.rates
    optimiser = optimisers.build(parameters, TrainSettings(lr=1.0, rates=rates))
    optimisers.set_rate(optimiser, 0.25)
    of = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    assert [of[id(p)] for p in parameters.values()] == [0.25, 4.0, 2.0]
    with pytest.raises(InputError, match=r"train\.rates has the pattern"):
        optimisers.build(parameters, TrainSettings(rates={"lora_C": 2.0}))


def installed(name: str) -> bool:
    return name not in LIBRARIES or importlib.util.find_spec(LIBRARIES[name][0]) is not None


OTHERS = [
    pytest.param(name, marks=pytest.mark.skipif(not installed(name), reason=f"{name} is not installed"))
    for name in ("adamw8bit", "adamw-kahan", "prodigy", "schedule-free", "muon")
]


def settings_of(name: str) -> dict[str, Any]:
    train: dict[str, Any] = {"steps": 6, "optimiser": name, "ema": None, "schedule": "constant"}
    train |= {"prodigy": {"lr": 1.0}, "adamw-kahan": {"precision": "bf16"}}.get(name, {})
    rank = 128 if name == "adamw8bit" else 2  # bitsandbytes keeps small tensors in 32 bits
    return {"train": train, "lora": {"rank": rank}, "save": {"every": 3}}


@pytest.mark.parametrize("name", OTHERS)
def test_every_optimiser_learns_and_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    settings, seen = settings_of(name), []

    def look(step: int, transformer: Any, folder: Path) -> None:
        seen.append(says(transformer))
        if folder.name == "a" and step == 4 and len(seen) == 4:
            raise Cancelled("stop")

    options = {"hooks": [Hook(1, look)]}
    with pytest.raises(Cancelled):
        run(tmp_path / "a", options=options, **settings)
    assert run(tmp_path / "a", options=options, **settings).first == 3
    run(tmp_path / "b", **settings)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert curve(tmp_path / "a") == curve(tmp_path / "b"), "looking changes nothing"
    a, b = (str(player(tmp_path / x / "checkpoints" / "step_000006")["optimiser"]) for x in "ab")
    assert a == b
    assert (seen[-1] - seen[0]).abs().max() > 0
    fresh = small.components().transformer
    runtime.load(fresh, tmp_path / "a" / "lora.safetensors")
    tolerance = 2e-2 if name == "adamw-kahan" else 1e-5
    torch.testing.assert_close(says(fresh), seen[-1], atol=tolerance, rtol=tolerance)


@pytest.mark.skipif(not installed("schedule-free"), reason="schedulefree is not installed")
def test_schedule_free_shows_and_writes_the_average(tmp_path: Path) -> None:
    import schedulefree

    torch.manual_seed(0)
    parameters = {"w": nn.Parameter(torch.randn(3, 3))}
    ours = optimisers.build(parameters, TrainSettings(optimiser="schedule-free", lr=0.1, weight_decay=0.0))
    other = nn.Parameter(parameters["w"].detach().clone())
    theirs = schedulefree.AdamWScheduleFree([other], lr=0.1, betas=(0.9, 0.999))
    theirs.train()
    for step in range(4):
        for p in (parameters["w"], other):
            p.grad = torch.full_like(p, float(step - 1))
        ours.step()
        theirs.step()
    trained = parameters["w"].detach().clone()
    best = optimisers.averaged(ours, parameters)["w"]
    assert torch.equal(parameters["w"], trained)
    theirs.eval()
    assert torch.equal(best, other)
    assert not torch.equal(best, trained)


def test_kahan_trains_and_writes_bfloat16(tmp_path: Path) -> None:
    pytest.importorskip("optimi")
    result = run(tmp_path, **settings_of("adamw-kahan"))
    assert {value.dtype for value in weights(tmp_path).values()} == {torch.bfloat16}
    assert {value.dtype for value in load_file(result.output).values()} == {torch.bfloat16}
    assert result.loss is not None
    state = next(iter(player(tmp_path / "checkpoints" / "step_000006")["optimiser"].values()))
    assert state["kahan_comp"].dtype == torch.bfloat16
