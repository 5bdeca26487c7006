"""A denoising step, a decode and a training step do not grow: their operations and bytes are on record.

Counts do not depend on what else the machine does, as times do. After a deliberate change, record them again with
`UPDATE_COUNTS=1 python -m pytest tests/benchmarks/test_counts_recorded.py` and read the diff. Times of two commits are
compared by `python benchmarks/compare.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import workloads
from benchmarks.counting import Counter
from benchmarks.true_size import WAN_13B

RECORD = Path(__file__).with_name("counts.json")
GROWTH = 1.1
CLIP = (5, 16, 16)


def one_block() -> Callable[[], Any]:
    """A transformer with one block of Wan2.1 1.3B's dimensions; its weights are zero, which saves drawing them."""
    with torch.device("meta"):
        model = workloads.VectorWanTransformer3DModel(**WAN_13B | {"num_layers": 1})
    model = model.to_empty(device="cpu").eval().requires_grad_(False)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.zero_()
    return workloads.denoising_step(model, (3, 16, 16))


CASES: dict[str, Callable[[], Callable[[], Any]]] = {
    "denoising step of the embedded model": lambda: workloads.denoising_step(workloads.embedded_transformer(), CLIP),
    "decode of the embedded model": lambda: workloads.decode(workloads.embedded_autoencoder(), CLIP),
    "LoRA step of the embedded model": lambda: workloads.lora_step(workloads.embedded_transformer(), CLIP),
    "denoising step of one block of 1.3B": one_block,
}


def measured(case: str) -> dict[str, int]:
    run = CASES[case]()
    run()  # the first step of an optimiser also makes its state
    counter = Counter().count(run)
    total = counter.total
    return {"flops": total.flops, "operations": total.launches, "allocated": total.allocated, "peak": counter.peak}


@pytest.mark.parametrize("case", CASES)
def test_a_step_does_not_grow(case: str) -> None:
    found = measured(case)
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    if os.environ.get("UPDATE_COUNTS"):
        record |= {"torch": torch.__version__, case: found}
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    grown = {
        name: f"{value:,} instead of {record[case][name]:,}"
        for name, value in found.items()
        if value > GROWTH * record[case][name]
    }
    assert not grown, f"{grown}; recorded with torch {record['torch']}, and this is {torch.__version__}"


def test_twice_the_work_is_noticed() -> None:
    case = "denoising step of the embedded model"
    run = CASES[case]()
    twice = Counter().count(lambda: (run(), run())).total
    assert twice.flops > GROWTH * json.loads(RECORD.read_text(encoding="utf-8"))[case]["flops"]
