"""The operation count against torch's own counter, and the cost sheet."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from pusa.models.wan.operations import StepCounter
from pusa.models.wan.transformer import VectorWanTransformer3DModel
from pusa.training.costs import Costs, matmul_rate, peak_memory, scaled

aten = torch.ops.aten
FUSED_ON_CPU = {  # torch counts the fused attention of a GPU; the CPU's is the same sum
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}
BATCH, FRAMES, HEIGHT, WIDTH, TEXT = 2, 5, 12, 8, 16
TOKENS = BATCH * FRAMES * HEIGHT * WIDTH // 4


def small(lora: list[str] | None = None, *, checkpointing: bool = False) -> VectorWanTransformer3DModel:
    torch.manual_seed(0)
    model = VectorWanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4,
        text_dim=20, freq_dim=64, ffn_dim=96, num_layers=3, rope_max_seq_len=32,
    )  # fmt: skip
    if lora is not None:
        model.requires_grad_(False)
        model.add_adapter(LoraConfig(r=8, lora_alpha=8, target_modules=lora), "pusa")
    if checkpointing:
        model.enable_gradient_checkpointing()
    return model.train()


def counted(model: VectorWanTransformer3DModel) -> tuple[int, int]:
    """Operations of forward and backward (with what is recomputed) as torch counts them."""
    latents, text = torch.randn(BATCH, 4, FRAMES, HEIGHT, WIDTH), torch.randn(BATCH, TEXT, 20)
    timestep = torch.rand(BATCH, FRAMES) * 1000
    with FlopCounterMode(display=False, custom_mapping=FUSED_ON_CPU) as forward:
        loss = model(latents, timestep, text, return_dict=False)[0].square().mean()
    with FlopCounterMode(display=False, custom_mapping=FUSED_ON_CPU) as backward:
        loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "lora", [None, ATTENTION, ["ffn.net.0.proj", "ffn.net.2"], ["attn2.to_q"], ["blocks.2.attn1.to_v"], ["time_proj"]]
)
def test_operations_are_those_that_torch_counts(lora: list[str] | None, checkpointing: bool) -> None:
    model = small(lora, checkpointing=checkpointing)
    mine = StepCounter(model)(BATCH, TOKENS, BATCH * FRAMES, text=TEXT)
    forward, backward = counted(model)
    assert mine.forward == pytest.approx(forward, rel=0.001)
    assert mine.backward + mine.recomputed == pytest.approx(backward, rel=0.01)
    assert bool(mine.recomputed) == checkpointing


def test_a_step_can_be_counted_before_weights_are_read() -> None:
    """The paper's own shape, without its memory: 14B at 720p, 81 frames, is about 4·10¹⁶ a pass (2·14B·75,600 tokens
    and as much again for attention)."""
    with torch.device("meta"):
        model = VectorWanTransformer3DModel(num_layers=40)
    tokens = 21 * 45 * 80
    flops = StepCounter(model)(1, tokens, 21)
    linear, attention = 2 * 14.0e9 * tokens, 40 * 4 * tokens**2 * 5120
    assert flops.forward == pytest.approx(linear + attention, rel=0.05)
    assert flops.backward == pytest.approx(2 * linear + 2.5 * attention, rel=0.05)


def test_per_frame_modulation_is_next_to_nothing() -> None:
    model = small(ATTENTION)
    one, each = (StepCounter(model)(1, 1200, frames, text=TEXT).model for frames in (1, 5))
    assert 1 < each / one < 1.02


def test_a_frozen_model_has_no_backward() -> None:
    flops = StepCounter(small().requires_grad_(False))(1, 96, 4)
    assert flops.backward == flops.recomputed == 0 < flops.forward


def test_the_rate_is_measured_and_leaves_the_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    assert matmul_rate("cpu", torch.float32, seconds=0.05) > 1e8
    assert torch.equal(before, torch.get_rng_state())
    assert peak_memory("cpu") > 50 * 2**20


COSTS = Costs(
    steps=900, samples=7200, tokens=10**6, flops=4 * 10**17, model_flops=3 * 10**17, seconds=3000.0, aside=600.0,
    devices=2, device="H100", clips=3860, rate=1e14, peak_memory=5 * 2**30, price=2.5,
    validation=360.0, previews=180.0,
)  # fmt: skip


def test_sums_of_the_cost_sheet() -> None:
    assert COSTS.device_hours == pytest.approx(2.0)  # an hour in all on two devices
    assert COSTS.money == pytest.approx(5.0)
    assert COSTS.mfu == pytest.approx(3e17 / (3000 * 1e14 * 2))


def test_the_cost_sheet_stands_beside_the_paper_and_returns_from_its_file(tmp_path: Path) -> None:
    text = str(COSTS)
    for part in ("3,860", "$5.00", "about $500", "2 × H100", "400 PFLOP", "50.0%", "5.00 GiB", "$2.5 an hour",
                 "1.7 h (83%)", "12.0 min (10%)", "6.0 min (5%)", "2.0 min (2%)"):  # fmt: skip
        assert part in text
    COSTS.write(tmp_path / "cost.json")
    data = json.loads((tmp_path / "cost.json").read_text())
    assert data["paper"]["clips"] == 3860
    assert data["money"] == pytest.approx(5.0)
    assert Costs.read(tmp_path / "cost.json") == COSTS


def test_what_is_not_known_is_said() -> None:
    text = str(Costs(1, 1, 1, 1, 1, 0.5, 0.0, 1, "CPU, 1 thread"))
    assert "no price given" in text
    assert "–" in text
    assert scaled(1.234e15, "FLOP") == "1.23 PFLOP"
