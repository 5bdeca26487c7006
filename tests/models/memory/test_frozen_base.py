"""The frozen base of a training in less memory: the same loss and gradients, exactly or nearly."""

from __future__ import annotations

import importlib.util
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pusa.adapters.lora import Lora, casting_inputs
from pusa.errors import InputError
from pusa.models.memory import frozen_base, stored_weights
from pusa.models.memory.frozen_base import FrozenLinear
from pusa.models.memory.stored_weights import Stored
from tests.training import small

CPU = torch.device("cpu")
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
STORAGES = ["fp8", "int8", pytest.param("nf4", marks=needs_bitsandbytes)]


def step(
    *, storage: Any = None, swapped: int | None = None, kind: torch.dtype = torch.bfloat16, checkpointing: str = "none"
) -> tuple[dict[str, Tensor], frozen_base.Swap | None]:
    """The loss and the gradients of a step, and the swap. swapped: None for the ordinary base."""
    model = small.components().transformer
    if kind == torch.bfloat16:
        for name, p in model.named_parameters():
            p.data = p.data.to(kind) if name.endswith("weight") and p.ndim > 1 else p.data
    attached = Lora(2, ("to_q", "ffn.net.2")).attach(model, seed=0)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in attached.parameters.values():
            p.add_(0.1 * torch.randn(p.shape, generator=rng))
    swap = None
    if swapped is not None:
        swap = frozen_base.place(model, model.blocks, CPU, storage=storage, swapped=swapped)
    if checkpointing != "none":
        model.enable_gradient_checkpointing(frozen_base.offloading if checkpointing == "offloaded" else None)
    model.train()
    x, text = torch.randn(2, 4, 3, 4, 4, generator=rng), torch.randn(2, 4, 16, generator=rng)
    times = torch.tensor([[0.0, 400.0, 900.0], [10.0, 20.0, 30.0]])
    for _ in range(2):  # the second pass begins where the first has left the swap
        for p in attached.parameters.values():
            p.grad = None
        with torch.autocast("cpu", torch.bfloat16) if kind == torch.bfloat16 else nullcontext():
            loss = model(x, times, text, return_dict=False)[0].float().square().mean()
        loss.backward()
    return {"loss": loss.detach()} | {name: p.grad for name, p in attached.parameters.items()}, swap


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("checkpointing", ["none", "plain", "offloaded"])
def test_weights_and_checkpoints_that_only_move_change_no_bit(kind: torch.dtype, checkpointing: str) -> None:
    expected, _ = step(kind=kind)
    for swapped in (0, 1, 2):
        found, swap = step(swapped=swapped, kind=kind, checkpointing=checkpointing)
        assert same(found, expected)
        assert (swap is None) == (swapped == 0)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_stored_base_gives_nearly_the_same_gradients(storage: Any) -> None:
    expected, _ = step()
    found, _ = step(storage=storage, swapped=0)
    assert same(found, step(storage=storage, swapped=1, checkpointing="offloaded")[0]), "wherever it lies"
    a, b = (torch.cat([value.flatten() for value in values.values()]) for values in (found, expected))
    assert 0 < (a - b).norm() / b.norm() < {"fp8": 0.08, "int8": 0.03, "nf4": 0.2}[storage]


@pytest.mark.parametrize(("storage", "error"), [("fp8", 0.035), ("int8", 0.01)])
def test_the_error_and_the_size_of_a_stored_weight(storage: Any, error: float) -> None:
    rng = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 256, generator=rng) * torch.logspace(-6, 2, 64)[:, None]
    stored = Stored.of(weight, storage)
    rows = (stored.weight() - weight).norm(dim=1) / weight.norm(dim=1)
    assert rows.max() < error, "every row has its own scale"
    assert stored.nbytes < 0.27 * weight.nbytes
    assert Stored.of(torch.zeros(3, 5), storage).weight().abs().max() == 0
    half = weight.bfloat16()
    assert Stored.of(half, storage).weight().dtype == torch.bfloat16
    again = Stored.of(Stored.of(half, storage).weight(), storage).weight()
    assert torch.equal(again, Stored.of(half, storage).weight()) or storage == "int8", "fp8 is exact in bfloat16"


@needs_bitsandbytes
def test_four_bits_for_a_weight() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    stored = Stored.of(weight, "nf4")
    assert stored.nbytes == weight.numel() // 2 + weight.numel() // stored_weights.BLOCK * 4
    assert (stored.weight() - weight).float().norm() / weight.float().norm() < 0.12


def test_nf4_without_bitsandbytes_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(InputError, match=r"needs bitsandbytes: run pip install .* or set memory\.base to fp8"):
        Stored.of(torch.ones(4, 64), "nf4")
    with pytest.raises(InputError, match="needs bitsandbytes"):
        stored_weights.check("nf4")
    for storage in (None, "fp8", "int8"):
        stored_weights.check(storage)


def test_at_most_two_swapped_blocks_are_on_the_device() -> None:
    blocks = [[FrozenLinear.adopt(nn.Linear(4, 4), None, CPU)] for _ in range(5)]
    swap = frozen_base.Swap(blocks, CPU)
    assert all(layer.stored is None for block in blocks for layer in block)
    assert swap.on_device == ()
    seen = []
    for number in (0, 1, 2, 3, 4, 4, 3, 2, 1, 0, 0, 1):
        _ = blocks[number][0].weight
        seen.append(set(swap.on_device))
        assert len(swap.on_device) <= 2
        assert [block[0].stored is not None for block in blocks] == [i in swap.on_device for i in range(5)]
    assert seen == [{0, 1}, {1, 2}, {2, 3}, {3, 4}, {3, 4}, {3, 4}, {2, 3}, {1, 2}, {0, 1}, {0, 1}, {0, 1}, {1, 2}]
    assert swap.host_bytes == 5 * 16 * 4


def test_only_what_does_not_learn_is_stored() -> None:
    model = small.components().transformer
    attached = Lora(2, ("to_q",)).attach(model, seed=0)
    frozen_base.place(model, model.blocks, CPU, storage="fp8", swapped=0)
    names = {name for name, _ in model.named_parameters()}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(attached.parameters)
    assert all(p.dtype == torch.float32 for p in attached.parameters.values())
    assert "blocks.0.attn1.to_k.weight" not in names
    assert "proj_out.weight" in names, "what is outside the blocks stays"
    layer = model.blocks[0].attn1.to_q.base_layer
    assert isinstance(layer, FrozenLinear)
    assert layer.stored.codes.dtype == torch.float8_e4m3fn
    assert layer.weight.shape == (24, 24)


def test_inputs_are_not_copied_in_mixed_precision() -> None:
    model = small.components().transformer
    Lora(2, ("to_q",)).attach(model, seed=0)
    layer = model.blocks[0].attn1.to_q
    with casting_inputs(model, False):
        assert not layer.cast_input_dtype_enabled
        with casting_inputs(model, True):
            assert layer.cast_input_dtype_enabled
    assert layer.cast_input_dtype_enabled
