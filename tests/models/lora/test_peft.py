"""Files that PEFT itself wrote, for a model with Wan's own names or those of diffusers: the same change of each weight.

The truth is PEFT's: `get_delta_weight`, or the weights after `merge_and_unload`.
"""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import WanTransformer3DModel
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from pusa.models.lora import dialects, runtime
from pusa.models.wan import weight_names
from pusa.models.wan.transformer import VectorWanTransformer3DModel
from tests.models.lora_files import LINEARS, every_block

OWN = every_block(LINEARS)
QUERIES = ["q", "k", "ffn.0"]


@pytest.fixture(scope="module")
def stock(tiny_folder):
    return WanTransformer3DModel.from_pretrained(tiny_folder, subfolder="transformer")


class Tree(nn.Module):
    """The linear layers of the model under Wan's own names."""

    def __init__(self, stock):
        super().__init__()
        for name, own in OWN.items():
            *parents, last = own.split(".")
            place = self
            for part in parents:
                if part not in place._modules:
                    place.add_module(part, nn.Module())
                place = place._modules[part]
            source = stock.get_submodule(name)
            layer = nn.Linear(source.in_features, source.out_features)
            layer.load_state_dict(source.state_dict())
            place.add_module(last, layer)


def saved(stock, config, folder):
    """Train nothing, but fill every factor; save as PEFT does. Return the folder and the change of each weight."""
    tree = Tree(stock)
    before = {own: tree.get_submodule(own).weight.detach().clone() for own in OWN.values()}
    model = get_peft_model(tree, config)
    rng = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.requires_grad:
                noise = torch.randn(value.shape, generator=rng)
                value.copy_(value * (1 + 0.3 * noise) if "magnitude" in name else 0.2 * noise)
    model.save_pretrained(folder)
    merged = model.merge_and_unload()
    return {name: merged.get_submodule(own).weight - before[own] for name, own in OWN.items()}


@torch.no_grad()
def change(model, stock, name, scale=1.0):
    layer, base = model.get_submodule(name), stock.get_submodule(name)
    eye, zero = torch.eye(base.in_features), torch.zeros(1, base.in_features)
    return ((layer(eye) - layer(zero)) - (base(eye) - base(zero))).T


def check(stock, folder, expected, scale=1.0):
    model = VectorWanTransformer3DModel.upgrade(WanTransformer3DModel.from_config(stock.config))
    model.load_state_dict(stock.state_dict())
    runtime.load(model.eval(), folder, scale)
    for name, difference in expected.items():
        far = (change(model, stock, name) - scale * difference).abs().max()
        assert far < 3e-6 + 3e-6 * difference.abs().max(), name
    assert max(difference.abs().max() for difference in expected.values()) > 0.02
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {"alpha_pattern": {"self_attn.q": 16, "ffn.0": 1}},
        {"alpha_pattern": {r"blocks\.1\..*\.k": 16, "k": 2}},
        {"alpha_pattern": {"^blocks.0.self_attn.q": 16, "blocks": 3, "attn.q": 2}},
        {"rank_pattern": {"self_attn.q": 2, r"cross_attn\.(q|k)": 8}},
        {"rank_pattern": {"self_attn.q": 2}, "alpha_pattern": {"self_attn.q": 6, "cross_attn.q": 9}},
        {"rank_pattern": {"self_attn.q": 2}, "alpha_pattern": {"self_attn.q": 6}, "use_rslora": True},
        {"use_rslora": True, "lora_alpha": 3},
        {"fan_in_fan_out": True, "alpha_pattern": {"k": 5}},
        {"exclude_modules": ["cross_attn.q"], "alpha_pattern": {"attn.q": 7}},
        {"use_dora": True, "alpha_pattern": {"self_attn.q": 16}},
    ],
    ids=lambda changes: "-".join(changes),
)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:alpha_pattern of the LoRA")
def test_patterns_of_peft_with_wans_own_names(changes, stock, tmp_path):
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": QUERIES, **changes})
    expected = saved(stock, config, tmp_path / "style")
    check(stock, tmp_path / "style", expected)


def test_a_key_of_a_pattern_that_matches_nothing_is_said(stock, tmp_path):
    config = LoraConfig(r=4, lora_alpha=8, target_modules=QUERIES, alpha_pattern={"blocks.0": 3, "q": 4})
    expected = saved(stock, config, tmp_path / "style")
    with pytest.warns(UserWarning, match="has blocks.0, which names no layer of the file"):
        check(stock, tmp_path / "style", expected)


def test_patterns_in_the_header_with_the_names_of_the_other_program(stock, tmp_path):
    """diffusers' metadata stays when a tool renames the keys to Wan's own, and the other way round."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=QUERIES, alpha_pattern={"self_attn.q": 16})
    expected = saved(stock, config, tmp_path / "peft")
    tensors = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    header = {"transformer.r": 4, "transformer.lora_alpha": 8}
    for prefix, names, pattern in (
        ("", dict(zip(OWN.values(), OWN.values(), strict=True)), "attn1.to_q"),
        ("transformer.", {own: name for name, own in OWN.items()}, "self_attn.q"),
    ):
        renamed = {}
        for key, value in tensors.items():
            module, _, side = key.removeprefix("base_model.model.").partition(".lora_")
            renamed[f"{prefix}{names[module]}.lora_{side}"] = value
        text = json.dumps(header | {"transformer.alpha_pattern": {pattern: 16}})
        save_file(renamed, tmp_path / "x.safetensors", {"lora_adapter_metadata": text})
        check(stock, tmp_path / "x.safetensors", expected)


def test_the_header_of_finetrainers(stock, tmp_path):
    expected = saved(stock, LoraConfig(r=4, lora_alpha=8, target_modules=QUERIES), tmp_path / "peft")
    tensors = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    header = {
        "lora_config": json.dumps({"r": 4, "lora_alpha": 8, "init_lora_weights": True, "target_modules": QUERIES})
    }
    save_file(tensors, tmp_path / "x.safetensors", header)
    check(stock, tmp_path / "x.safetensors", expected)
    save_file(tensors, tmp_path / "x.safetensors", {"lora_config": json.dumps({"rank": 4, "alpha": 8})})
    halves = {name: value / 2 for name, value in expected.items()}
    check(stock, tmp_path / "x.safetensors", halves)


@pytest.mark.parametrize("config", [
    LoHaConfig(r=4, alpha=6, target_modules=QUERIES),
    LoHaConfig(r=4, alpha=6, target_modules=QUERIES, alpha_pattern={"self_attn.q": 2}, rank_pattern={"k": 3}),
    LoKrConfig(r=2, alpha=6, target_modules=QUERIES, decompose_both=True, alpha_pattern={"self_attn.q": 3}),
    LoKrConfig(r=64, alpha=6, target_modules=QUERIES, rank_pattern={"self_attn.q": 32}),
], ids=["loha", "loha patterns", "lokr", "lokr whole"])  # fmt: skip
def test_loha_and_lokr_of_peft(config, stock, tmp_path):
    """PEFT divides alpha by r also where LoKr's two matrices are whole. LyCORIS takes 1 there."""
    expected = saved(stock, config, tmp_path / "style")
    check(stock, tmp_path / "style", expected, 0.5)
    read = dialects.read(tmp_path / "style", weight_names.parameter_shapes(stock))
    assert read.kinds in ("LoHa", "LoKr")


@pytest.mark.parametrize("scale", [1.0, 0.5, -1.0, 1.4])
def test_dora_goes_straight_from_the_base_to_the_trained_weight(scale, stock, tmp_path):
    expected = saved(stock, LoraConfig(r=4, lora_alpha=8, target_modules=QUERIES, use_dora=True), tmp_path / "style")
    model = check(stock, tmp_path / "style", expected, scale)
    runtime.set_scale(model, "style", 0.0)
    name = "blocks.0.attn1.to_q"
    x = torch.randn(2, 32)
    assert torch.equal(model.get_submodule(name)(x), stock.get_submodule(name)(x))
