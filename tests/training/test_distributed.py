"""Two processes over gloo train what one process trains, and FSDP2 really divides the weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file
from torch import Tensor

from pusa import processes
from pusa.errors import InputError
from pusa.models.lora import runtime
from pusa.processes import ProcessGroup
from pusa.training.run_folder import read
from pusa.training.trainer import train
from tests.training import small, workers

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case in this one process."""
    folder = tmp_path_factory.mktemp("alone")
    for case in (*workers.CASES, *workers.PLAYERS):
        workers.one(case, folder / case, ProcessGroup())
    return folder


@pytest.fixture(scope="module")
def together(alone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case in two processes, and once more from the checkpoint that one process left halfway."""
    folder = tmp_path_factory.mktemp("together")
    cases = [*workers.CASES, *workers.PLAYERS]
    for case in cases:
        shutil.copytree(alone / case, folder / f"{case}-resumed")
        shutil.rmtree(folder / f"{case}-resumed" / "checkpoints" / "step_000006")
    cases += [*(f"{case}-resumed" for case in cases), "nan", "interrupted"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    environment |= {"GLOO_SOCKET_IFNAME": "lo", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    done = subprocess.run(
        [*command, "-m", "tests.training.workers", str(folder), *cases],
        cwd=ROOT, env=environment, timeout=3000, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def state(run: Path) -> dict[str, Any]:
    (player,) = read(run / "checkpoints" / "step_000006").state()["players"].values()
    return player


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


def flat(tree: Any, name: str = "") -> dict[str, Tensor]:
    if isinstance(tree, dict):
        return {k: v for key, value in tree.items() for k, v in flat(value, f"{name}/{key}").items()}
    return {name: torch.as_tensor(tree)}


def far(a: Any, b: Any) -> float:
    """The greatest difference between two trees of tensors with the same names and shapes."""
    a, b = flat(a), flat(b)
    assert {name: x.shape for name, x in a.items()} == {name: x.shape for name, x in b.items()}
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


@pytest.mark.parametrize("case", workers.CASES)
def test_two_processes_are_one(case: str, alone: Path, together: Path) -> None:
    assert losses(together / case) == pytest.approx(losses(alone / case), abs=1e-5)
    assert far(state(together / case), state(alone / case)) < 1e-5
    start = {n: p.detach() for n, p in small.components().transformer.named_parameters()}
    if case.endswith("full"):
        assert far(state(alone / case)["weights"], start) > 1e-3, "something was learnt"
    else:
        assert float(max(v.abs().max() for k, v in state(alone / case)["weights"].items() if "lora_B" in k)) > 1e-2


@pytest.mark.parametrize("case", workers.CASES)
def test_two_processes_go_on_where_one_stopped(case: str, alone: Path, together: Path) -> None:
    assert losses(together / f"{case}-resumed") == pytest.approx(losses(alone / case), abs=1e-5)
    assert far(state(together / f"{case}-resumed"), state(alone / case)) < 1e-5


@pytest.mark.parametrize("case", workers.PLAYERS)
def test_two_processes_train_two_players_as_one_process_does(case: str, alone: Path, together: Path) -> None:
    for name in (case, f"{case}-resumed"):
        one, two = (read(run / "checkpoints" / "step_000006").state() for run in (alone / case, together / name))
        assert far(one, two) < 1e-5
    records = [json.loads(line) for line in (together / case / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["loss"] is not None] == [5]
    assert all(r["players"]["critic"]["grad_norm"] > 0 for r in records)


@pytest.mark.parametrize("case", ["fsdp-lora", "fsdp-full"])
def test_one_process_goes_on_where_two_stopped(case: str, alone: Path, together: Path, tmp_path: Path) -> None:
    shutil.copytree(together / case, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_000006")
    workers.one(case, tmp_path / "run", ProcessGroup())
    assert far(state(tmp_path / "run"), state(alone / case)) < 1e-5


@pytest.mark.parametrize("case", workers.CASES)
def test_fsdp_holds_a_part_and_ddp_the_whole(case: str, together: Path) -> None:
    ranks = [json.loads((together / f"{case}.{rank}.json").read_text()) for rank in (0, 1)]
    sizes = [rank["shards"] for rank in ranks]
    assert sizes[0].keys() == sizes[1].keys()
    if case.startswith("ddp"):
        assert all(local == full for held in sizes for local, full in held.values())
        return
    assert all(rank["class"].startswith("FSDP") for rank in ranks)
    assert all(sizes[0][name][0] + sizes[1][name][0] == full for name, (_, full) in sizes[0].items())
    for held in sizes:
        assert sum(local for local, _ in held.values()) < 0.55 * sum(full for _, full in held.values())


@pytest.mark.parametrize("case", workers.CASES)
def test_what_comes_out_is_whole_and_loads(case: str, alone: Path, together: Path) -> None:
    if case.endswith("full"):
        stock = WanTransformer3DModel.from_pretrained(together / case / "transformer")
        other = WanTransformer3DModel.from_pretrained(alone / case / "transformer")
        assert far(stock.state_dict(), other.state_dict()) < 1e-5
        return
    path = together / case / "lora.safetensors"
    assert far(load_file(path), load_file(alone / case / "lora.safetensors")) < 1e-5
    assert runtime.load(small.components().transformer, path).modules == 6


def test_every_process_stops_at_a_clip_of_nans_and_names_it(together: Path) -> None:
    errors = [json.loads((together / f"nan.{rank}.json").read_text())["error"] for rank in (0, 1)]
    assert errors[0] == errors[1]
    assert "clip5.mp4 (caption 5)" in errors[0]


def test_a_signal_to_one_process_stops_all_after_the_same_step(together: Path) -> None:
    for rank in (0, 1):
        seen = json.loads((together / f"interrupted.{rank}.json").read_text())
        assert "after step 2 of 6, and a checkpoint is written" in seen["error"]
        assert seen["first"] == 2
    assert far(state(together / "interrupted"), state(together / "ddp-lora")) == 0


def test_a_launcher_that_says_half_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match="RANK, MASTER_ADDR, MASTER_PORT is not"), processes.join():
        pass


def test_a_changed_number_of_passes_is_refused(alone: Path, tmp_path: Path) -> None:
    shutil.copytree(alone / "ddp-lora", tmp_path / "run")
    settings = workers.settings("ddp-lora", 2)
    with pytest.raises(InputError, match=r"train\.accumulate x processes was 2 and is 1"):
        train(small.config(**settings), tmp_path / "run", components=small.components(), samples=workers.samples(""))
