"""The learning rate over a training, and which optimiser is built."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pusa.errors import InputError
from pusa.training import optimisers
from pusa.training.config.sections import TrainSettings
from pusa.training.optimisers import learning_rate


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


def test_eight_bits_need_a_gpu_and_whole_weights() -> None:
    parameters = {"w": nn.Parameter(torch.ones(2, 2))}
    settings = TrainSettings(optimiser="adamw8bit")
    with pytest.raises(InputError, match="CUDA"):
        optimisers.build(parameters, settings)
    with pytest.raises(InputError, match="sharded"):
        optimisers.build(parameters, settings, sharded=True)
