"""The training loop trains every player of an objective, each as often as it says, and resumes all of them exactly."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pusa.errors import InputError, PusaError
from pusa.training.config.sections import TrainSettings
from pusa.training.objectives.base import BatchLosses, Player
from pusa.training.run_folder import read
from pusa.training.trainer import train
from tests.training import small
from tests.training.objectives.toy import OFTEN, TwoPlayers


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(out: Path, objective: Any = TwoPlayers, **changes: Any) -> Any:
    return train(
        small.config(**changes), out, components=small.components(), samples=small.Samples(), objective=objective
    )


def log(out: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def state(out: Path, step: int | None = None) -> dict[str, Any]:
    folder = out / "checkpoints"
    return read(max(folder.iterdir()) if step is None else folder / f"step_{step:06d}").state()


def test_the_critic_learns_five_times_as_often(tmp_path: Path) -> None:
    result = run(tmp_path, train={"steps": 10, "accumulate": 2, "warmup": 0}, save={"every": 1, "keep": None})
    records = log(tmp_path)
    assert [r["step"] for r in records if r["loss"] is not None] == [5, 10]
    assert all(r["players"]["critic"]["loss"] is not None for r in records)
    assert result.loss == records[-1]["loss"]

    def moved(player: str) -> list[int]:
        weights = [state(tmp_path, step)["players"][player]["weights"] for step in range(1, 11)]
        pairs = itertools.pairwise(weights)
        return [i for i, (a, b) in enumerate(pairs, 2) if any(not torch.equal(a[k], b[k]) for k in a)]

    assert moved("critic") == [*range(2, 11)]
    assert moved("generator") == [5, 10]
    written = load_file(result.output)["diffusion_model.blocks.1.self_attn.q.lora_B.weight"]
    average = state(tmp_path)["players"]["generator"]["averages"]["ema"]["blocks.1.attn1.to_q.lora_B.pusa.weight"]
    assert torch.equal(written, average), "the first player is written"


def test_each_player_has_its_own_settings(tmp_path: Path) -> None:
    run(tmp_path, train={"steps": 10, "lr": 1e-2, "warmup": 0, "schedule": "linear", "ema": None})
    first, *_, last = log(tmp_path)
    assert (first["lr"], last["lr"]) == pytest.approx((1e-2, 1e-3))
    assert {r["players"]["critic"]["lr"] for r in log(tmp_path)} == {3e-2}
    players = state(tmp_path)["players"]
    assert (list(players["generator"]["averages"]), list(players["critic"]["averages"])) == ([], ["ema"])
    steps = {name: {int(each["step"]) for each in player["optimiser"].values()} for name, player in players.items()}
    assert steps == {"generator": {10 // OFTEN}, "critic": {10}}


KILLS: list[float | str] = [4.5, "state", 6.3, "rename"]


def test_killed_and_started_again_both_players_end_the_same(tmp_path: Path) -> None:
    settings = {"train": {"steps": 30, "accumulate": 2, "batch": 1, "workers": 2}, "save": {"every": 3}}
    root = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": f"{root / 'src'}:{root}", "OMP_NUM_THREADS": "1"}
    given = [str(tmp_path), json.dumps(settings), json.dumps(KILLS), "tests.training.objectives.toy:TwoPlayers"]
    command = [sys.executable, "-m", "tests.training.killing", *given]
    subprocess.run(command, check=True, cwd=root, env=environment, timeout=3000)
    deaths = json.loads((tmp_path / "deaths.json").read_text())
    assert [signal for signal, _ in deaths] == [9] * len(KILLS) + [0]
    assert len({str(reached) for _, reached in deaths}) > 3, "the kills hit different stages"
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    assert log(killed) == log(whole)
    a, b = flat(state(killed)), flat(state(whole))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(name.startswith("/players/critic/optimiser") for name in a)
    lora = [load_file(each / "lora.safetensors") for each in (killed, whole)]
    assert all(torch.equal(lora[0][name], lora[1][name]) for name in lora[0])


def flat(tree: Any, name: str = "") -> dict[str, Tensor]:
    if isinstance(tree, dict):
        return {k: v for key, value in tree.items() for k, v in flat(value, f"{name}/{key}").items()}
    return {name: torch.as_tensor(tree)}


def test_a_checkpoint_of_two_players_is_not_resumed_by_one(tmp_path: Path) -> None:
    run(tmp_path, train={"steps": 4})
    with pytest.raises(InputError, match="has the players generator, critic, and this training has model"):
        train(small.config(train={"steps": 4}), tmp_path, components=small.components(), samples=small.Samples())


def test_losses_of_the_wrong_players_are_an_error(tmp_path: Path) -> None:
    class Forgetful(TwoPlayers):
        def losses(self, batch: Any, step: int) -> BatchLosses:
            found = super().losses(batch, step)
            return BatchLosses({"critic": found.by_player["critic"]}, found.figures)

    with pytest.raises(PusaError, match="losses for critic in step 5, in which generator, critic should learn"):
        run(tmp_path, Forgetful)


def test_a_loss_that_is_not_finite_changes_no_player(tmp_path: Path) -> None:
    class Diverging(TwoPlayers):
        def losses(self, batch: Any, step: int) -> BatchLosses:
            found = super().losses(batch, step)
            if step == 4:
                found.by_player["generator"].data.fill_(float("nan"))
            return found

    run(tmp_path, Diverging, train={"steps": 5, "on_nan": "skip"}, save={"every": 1, "keep": None})
    assert [r["step"] for r in log(tmp_path) if "skipped" in r] == [5]
    before, after = (flat(state(tmp_path, step)["players"]) for step in (4, 5))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_gradients_pass_through_a_frozen_player() -> None:
    layer = nn.Linear(3, 1)
    player = Player(layer, dict(layer.named_parameters()), TrainSettings())
    x = torch.ones(2, 3, requires_grad=True)
    with player.frozen():
        layer(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None and p.requires_grad for p in layer.parameters())
    with pytest.raises(InputError, match="at least 1"):
        Player(layer, dict(layer.named_parameters()), TrainSettings(), every=0)
