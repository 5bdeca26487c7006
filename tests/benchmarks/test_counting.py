"""The counter of operations and bytes that the performance benchmarks share, beside numbers that follow by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import workloads
from benchmarks.counting import KINDS, Counter, kind_in_wan
from pusa.models.wan.operations import StepCounter

SHAPE = (3, 16, 16)


def test_operations_and_bytes_of_a_matrix_product() -> None:
    a, b = torch.zeros(4, 8), torch.zeros(8, 2)
    counts = Counter().count(lambda: torch.mm(a, b)).total
    assert (counts.flops, counts.launches) == (2 * 4 * 8 * 2, 1)
    assert counts.allocated == 4 * (4 * 2)
    assert counts.moved == 4 * (4 * 8 + 8 * 2 + 4 * 2)
    assert counts.least == 4 * (4 * 8 + 8 * 2)


def test_a_view_costs_nothing_and_writing_in_place_allocates_nothing() -> None:
    x = torch.zeros(4, 8)
    assert Counter().count(lambda: x.view(8, 4).t()).total.launches == 0
    counts = Counter().count(lambda: x.add_(1)).total
    assert (counts.launches, counts.allocated, counts.moved) == (1, 0, 2 * 4 * 32)


def test_the_peak_is_that_of_tensors_that_live_together() -> None:
    def run() -> None:
        for _ in range(3):
            torch.zeros(1000)

    counter = Counter().count(run)
    assert counter.total.allocated == 3 * 4000
    assert counter.peak == 4000


def test_neighbours_of_one_part_are_one_pass() -> None:
    """x + 1 + 2 + 3, then a product: the sums read x and write one tensor, however many there are."""
    x, w = torch.zeros(4, 4), torch.zeros(4, 4)

    def part(_: object, operation: str) -> str:
        return "product" if "mm" in operation else "sums"

    parts = Counter(part_of=part).count(lambda: torch.mm(x + 1 + 2 + 3, w)).parts
    assert parts["sums"].least == 2 * 64
    assert parts["sums"].moved == 6 * 64
    assert parts["product"].least == 2 * 64


@pytest.mark.parametrize("learns", [False, True])
def test_attention_on_a_cpu_is_counted(learns: bool) -> None:
    """Forward 4·L·K·D for each head, backward 10·L·K·D."""
    query = torch.randn(1, 3, 5, 8, requires_grad=learns)
    key = torch.randn(1, 3, 7, 8, requires_grad=learns)

    def run() -> None:
        out = F.scaled_dot_product_attention(query, key, key)
        if learns:
            out.sum().backward()

    assert Counter().count(run).total.flops == (14 if learns else 4) * 3 * 5 * 7 * 8


def test_the_parts_of_a_denoising_step() -> None:
    model = workloads.embedded_transformer()
    counter = Counter(model, kind_in_wan).count(workloads.denoising_step(model, SHAPE))
    assert set(counter.parts) == set(KINDS)
    forward = StepCounter(model)(1, workloads.tokens(model, SHAPE), SHAPE[0]).forward
    assert counter.total.flops == forward
    assert counter.parts["rotary embedding"].flops == 0
    assert all(part.least <= part.moved for part in counter.parts.values())


def test_a_lora_step_has_the_operations_that_training_counts() -> None:
    model = workloads.embedded_transformer()
    step = workloads.lora_step(model, SHAPE, rank=4)
    counted = Counter().count(step).total.flops
    expected = StepCounter(model)(1, workloads.tokens(model, SHAPE), SHAPE[0])
    assert counted == pytest.approx(expected.forward + expected.backward, rel=0.01)


def test_hooks_are_gone_afterwards() -> None:
    layer = nn.Linear(2, 2)
    Counter(layer).count(lambda: layer(torch.zeros(1, 2)))
    assert not layer._forward_pre_hooks
    assert not layer._forward_hooks
