"""The forms for inference give the bits of the stock operations, and need less memory."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.activations import GELU
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor, nn

from pusa.models.memory.tensor_tracker import rehearse
from pusa.models.wan import inference
from pusa.models.wan.transformer import VectorWanTransformer3DModel
from tests.models.wan_small import FRAMES, ROWS, agree, build, inputs, per_token, run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("width", [32, 44, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_every_width_of_heads_keeps_the_stock_bits(width: int, dtype: torch.dtype) -> None:
    stock = build(attention_head_dim=width, num_layers=1).to(dtype)
    vector = VectorWanTransformer3DModel.upgrade(copy.deepcopy(stock))
    assert torch.equal(run(vector, ROWS[:, 2]), run(stock, ROWS[:, 2]))


@pytest.mark.parametrize("is_exact", [True, False])
def test_both_forms_of_the_rotation_are_the_stock_rotation(monkeypatch: pytest.MonkeyPatch, is_exact: bool) -> None:
    stock = build(attention_head_dim=128, num_layers=1)
    vector = VectorWanTransformer3DModel.upgrade(copy.deepcopy(stock))
    asked: list[int] = []
    monkeypatch.setattr(inference, "complex_is_exact", lambda width: asked.append(width) or is_exact)
    agree(run(vector, ROWS[:, 2]), run(stock, ROWS[:, 2]), 2e-6 if is_exact else 0)
    assert asked == [128, 128]


def test_a_stored_output_of_attention_is_not_overwritten(vector: VectorWanTransformer3DModel) -> None:
    # Caches of diffusers return the output of a step again in later steps.
    stored: list[tuple[Tensor, Tensor]] = []
    for layer in (vector.blocks[0].attn1, vector.blocks[0].attn2, vector.blocks[0].ffn):
        layer.register_forward_hook(lambda _m, _a, out: stored.append((out, out.clone())))
    run(vector, ROWS)
    assert len(stored) == 3
    assert all(torch.equal(now, before) for now, before in stored)


def test_replaced_operations_stay(stock: WanTransformer3DModel) -> None:
    class Other(WanAttnProcessor):
        pass

    class OtherGELU(GELU):
        pass

    stock.blocks[0].attn1.set_processor(Other())
    stock.blocks[0].ffn.net[0].__class__ = OtherGELU
    vector = VectorWanTransformer3DModel.upgrade(stock)
    assert type(vector.blocks[0].attn1.processor) is Other
    assert type(vector.blocks[0].ffn.net[0]) is OtherGELU
    assert type(vector.blocks[1].ffn.net[0]) is inference.InPlaceGELU


def peak(network: nn.Module, timestep: Tensor) -> int:
    latents, text = (x.to("meta") for x in inputs(2))
    return rehearse(lambda: network(latents, timestep.to("meta"), text)).peak


def test_the_peak_is_below_that_of_the_stock_network_with_one_timestep() -> None:
    stock = build(ffn_dim=256, num_layers=2).to("meta")
    vector = VectorWanTransformer3DModel.upgrade(copy.deepcopy(stock))
    scalar = peak(stock, ROWS[:, 0])
    assert peak(vector, ROWS[:, 0]) < 0.75 * scalar
    rows = ROWS.to("meta")
    latents, text = (x.to("meta") for x in inputs(2))
    per_frame = rehearse(
        lambda: vector._forward_per_frame(latents, rows, text, None, return_dict=False, attention_kwargs=None)
    ).peak
    assert per_frame < 0.75 * scalar < peak(stock, per_token(ROWS))
    assert rows.shape == (2, FRAMES)
