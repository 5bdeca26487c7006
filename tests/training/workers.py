"""One of the processes that torchrun starts for test_parallel.py: the trainings of CASES, in order.

torchrun --nproc-per-node 2 -m tests.training.workers FOLDER CASE...
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from pusa import processes
from pusa.errors import Cancelled, PusaError
from pusa.training import distributed
from pusa.training.objectives.flow_matching import FlowMatching
from pusa.training.trainer import Hook, train
from tests.training import small
from tests.training.objectives.toy import TwoPlayers

LORA = {"rank": 2, "targets": ["to_q", "ffn.net.2"]}
BASE: dict[str, Any] = {
    "steps": 6,
    "batch": 2,
    "clip": 0.05,
    "ema": 0.9,
    "lr": 1e-2,
    "schedule": "constant",
    "workers": 1,
}
CASES: dict[str, dict[str, Any]] = {
    f"{parallel}-{what}": {
        "lora": LORA if what == "lora" else None,
        "train": {**BASE, "parallel": parallel, "gradient_checkpointing": parallel == "fsdp", "lr": rate},
        "save": {"every": 3},
    }
    for parallel in ("ddp", "fsdp")
    for what, rate in (("lora", 1e-2), ("full", 1e-3))
}
CASES["ddp-lora-stored"] = CASES["ddp-lora"] | {"memory": {"base": "fp8", "swap": 1}}
PLAYERS = {f"{parallel}-players": CASES[f"{parallel}-lora"] for parallel in ("ddp", "fsdp")}
"""Trainings with two players."""


def samples(case: str) -> small.Samples:
    if case == "nan":
        return small.Samples(8, change=lambda i, x: x * float("nan") if i == 5 else x)
    return small.Samples(8, frames=(3, 2))


def settings(case: str, processes: int) -> dict[str, Any]:
    """The settings of a case such that a step has two micro-batches, on however many processes."""
    changes = CASES["ddp-lora"] if case in ("nan", "interrupted") else (CASES | PLAYERS)[case.removesuffix("-resumed")]
    return {**changes, "train": {**changes["train"], "accumulate": 2 // processes}}


def one(case: str, out: Path, group: processes.ProcessGroup) -> dict[str, Any]:
    """Train a case; what this process saw of it."""
    seen: dict[str, Any] = {}
    components = small.components()

    def look(step: int, transformer: Any, _: Path) -> None:
        seen["shards"] = distributed.shards(transformer)
        seen["class"] = type(transformer).__name__

    def interrupt(step: int, *_: Any) -> None:
        if step == 2 and group.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    hooks = [Hook(6, look), *([Hook(1, interrupt)] if case == "interrupted" else [])]
    try:
        result = train(
            small.config(**settings(case, group.size)),
            out,
            components=components,
            samples=samples(case),
            hooks=hooks,
            objective=TwoPlayers if "players" in case else FlowMatching,
        )
        seen["first"] = result.first
    except Cancelled as error:
        seen |= one(case, out, group) | {"error": str(error)}
    except PusaError as error:
        seen["error"] = str(error)
    return seen


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    with processes.join() as group:
        for case in sys.argv[2:]:
            seen = one(case, folder / case, group)
            (folder / f"{case}.{group.rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
