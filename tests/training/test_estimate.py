"""The estimate is the count: parameters exactly, operations as counted layer by layer on the model itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig

from pusa.adapters.full import AllWeights
from pusa.adapters.lora import Lora
from pusa.models.wan.operations import StepCounter
from pusa.models.wan.sizes import WanSizes
from pusa.training.data.samples import Bucket
from pusa.training.estimate import estimate

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
SMALL = Bucket(64, 64, 17)


def load(folder: Path) -> tuple[WanSizes, WanTransformer3DModel]:
    transformer, vae = (json.loads((folder / part / "config.json").read_text()) for part in ("transformer", "vae"))
    with torch.device("meta"):
        network = WanTransformer3DModel.from_config(transformer)
    return WanSizes.of(transformer, vae), network


def test_parameters_are_exact(tiny_folder: Path) -> None:
    model, network = load(tiny_folder)
    assert model.parameters == sum(p.numel() for p in network.parameters())
    network.requires_grad_(False)
    network.add_adapter(LoraConfig(r=5, target_modules=list(TARGETS)))
    assert Lora(5, TARGETS).extra_parameters(model.layers) == sum(
        p.numel() for p in network.parameters() if p.requires_grad
    )


@pytest.mark.parametrize("rank", [0, 8])
def test_operations_agree_with_the_count_over_layers(rank: int) -> None:
    config = {"num_attention_heads": 4, "attention_head_dim": 64, "ffn_dim": 1024, "num_layers": 6, "text_dim": 64}
    with torch.device("meta"):
        network = WanTransformer3DModel(**config)
    if rank:
        network.requires_grad_(False)
        network.add_adapter(LoraConfig(r=rank, target_modules=list(TARGETS)))
    model = WanSizes.of(config, {})
    tokens, frames = model.tokens(33, (320, 192)), model.geometry.latent_frames(33)
    assert tokens == 9 * 20 * 12
    counted = StepCounter(network)(1, tokens, frames).model
    adapter = Lora(rank, TARGETS) if rank else AllWeights()
    extra = adapter.extra_parameters(model.layers)
    operations = model.step(tokens, keeps_base=adapter.keeps_base, extra=extra, checkpointing=False)
    assert operations == pytest.approx(counted, rel=0.1)


def test_longer_samples_and_checkpointing(tiny_folder: Path) -> None:
    model, _ = load(tiny_folder)
    plain = estimate(model, {SMALL: 3}, steps=10, batch=2, adapter=Lora(4, TARGETS), rate=1e9, price=3.6)
    assert plain is not None
    assert plain.samples == 20
    assert plain.epochs == pytest.approx(20 / 3)
    assert plain.memory_checkpointed < plain.memory
    assert plain.cost == pytest.approx((plain.seconds[0] / 1000, plain.seconds[1] / 1000))
    longer = estimate(model, {SMALL: 3, Bucket(64, 64, 33): 3}, steps=10, batch=2, adapter=Lora(4, TARGETS), rate=1e9)
    assert longer is not None
    assert longer.seconds[0] > plain.seconds[0]
    assert longer.activations > plain.activations
    assert estimate(model, {}, steps=10, batch=2, adapter=Lora(4, TARGETS), rate=1e9) is None
