"""LoRA and all weights behave as one interface says: what is written gives the trained model again, on the base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from pusa import adapters
from pusa.adapters.base import Adapter
from pusa.adapters.full import AllWeights
from pusa.adapters.lora import Lora
from pusa.errors import InputError
from pusa.training.config.sections import LoraSettings
from tests.training import small

TARGETS = ("to_q", "ffn.net.2")
ADAPTERS = [Lora(2, TARGETS), Lora(4, TARGETS, alpha=6.0, rslora=True), AllWeights()]
each_adapter = pytest.mark.parametrize("adapter", ADAPTERS, ids=["lora", "rslora", "full"])


def predicted(model: Any) -> Tensor:
    rng = torch.Generator().manual_seed(5)
    x, text = torch.randn(1, 4, 3, 4, 4, generator=rng), torch.randn(1, 4, 16, generator=rng)
    with torch.no_grad():
        return model(x, torch.tensor([[0.0, 400.0, 900.0]]), text, return_dict=False)[0]


def trained(adapter: Adapter, folder: Path) -> tuple[Any, Path]:
    """A model with changed weights, and where they were written."""
    model = small.components().transformer
    attached = adapter.attach(model, seed=1)
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in attached.parameters.values():
            p.add_(0.1 * torch.randn(p.shape, generator=rng))
    return model, attached.save(folder, {n: p.detach() for n, p in attached.parameters.items()}, {"about": 1})


@each_adapter
def test_what_is_written_is_the_trained_model(adapter: Adapter, tmp_path: Path) -> None:
    model, path = trained(adapter, tmp_path)
    assert path == tmp_path / adapter.output
    base = small.components().transformer
    before = predicted(base)
    with adapter.applied(base, tmp_path) as loaded:
        torch.testing.assert_close(predicted(loaded), predicted(model), atol=1e-5, rtol=1e-5)
        assert (predicted(loaded) - before).abs().max() > 1e-3
    assert torch.equal(predicted(base), before)
    base = small.components().transformer
    merged = adapter.merged(base, tmp_path)
    assert merged.keys() == dict(base.named_parameters()).keys()
    base.load_state_dict(merged, strict=False)
    torch.testing.assert_close(predicted(base), predicted(model), atol=1e-5, rtol=1e-5)


@each_adapter
def test_attaching_changes_no_prediction(adapter: Adapter) -> None:
    model = small.components().transformer
    before = predicted(model)
    attached = adapter.attach(model, seed=0)
    assert torch.equal(predicted(model), before)
    assert all(p.dtype == torch.float32 for p in attached.parameters.values())
    again = adapter.attach(small.components().transformer, seed=0).parameters
    assert all(torch.equal(p, again[name]) for name, p in attached.parameters.items())


def test_excluded_layers_get_no_factors() -> None:
    model = small.components().transformer
    adapter = Lora(2, TARGETS, exclude=(r"blocks\.0\.", "attn2"))
    attached = adapter.attach(model, seed=0)
    layers = {name.split(".lora_")[0] for name in attached.parameters}
    assert layers == {"blocks.1.attn1.to_q", "blocks.1.ffn.net.2"}
    sizes = {n: (m.in_features, m.out_features) for n, m in small.pristine().named_modules()
             if isinstance(m, torch.nn.Linear)}  # fmt: skip
    assert adapter.extra_parameters(sizes) == sum(p.numel() for p in attached.parameters.values())
    for pattern, sentence in (
        ("blocks", "matches every layer"),
        ("(", "damaged pattern"),
        ("attn3", "'attn3', which matches no layer of lora.targets: use a part of a name such as blocks.0.attn1.to_q."),
    ):
        with pytest.raises(InputError, match=sentence):
            Lora(2, TARGETS, exclude=("attn2", pattern)).attach(small.components().transformer, seed=0)


def test_a_normal_start_is_another_start_and_changes_no_prediction() -> None:
    drawn = []
    for gaussian in (False, True):
        model = small.components().transformer
        attached = Lora(8, TARGETS, gaussian=gaussian).attach(model, seed=0)
        assert torch.equal(predicted(model), predicted(small.components().transformer))
        drawn.append(attached.parameters["blocks.0.attn1.to_q.lora_A.pusa.weight"].detach())
    assert drawn[0].abs().max() <= 24**-0.5
    assert float(drawn[1].std()) == pytest.approx(1 / 8, rel=0.2)


@pytest.mark.parametrize("adapter", ADAPTERS[:2], ids=["lora", "rslora"])
def test_a_disabled_lora_leaves_the_base(adapter: Adapter, tmp_path: Path) -> None:
    model, _ = trained(adapter, tmp_path)
    learnt = predicted(model)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    with adapter.disabled(model):
        assert torch.equal(predicted(model), predicted(small.components().transformer))
        assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable
    assert torch.equal(predicted(model), learnt)
    assert adapter.keeps_base


def test_all_weights_keep_no_base_and_need_a_model_to_be_written(tmp_path: Path) -> None:
    adapter = AllWeights()
    assert (adapter.keeps_base, adapter.standalone, adapter.scalable) == (False, False, False)
    with pytest.raises(InputError, match="measure the base before training"):
        adapter.disabled(small.components().transformer)
    with pytest.raises(InputError, match="cannot be written"):
        adapter.write(tmp_path / "x.safetensors", {}, {})


def test_a_strength_multiplies_the_change(tmp_path: Path) -> None:
    adapter = ADAPTERS[0]
    trained(adapter, tmp_path)
    base = small.components().transformer
    name = "blocks.0.attn1.to_q.weight"
    weight = base.get_parameter(name)
    once, twice = (adapter.merged(base, tmp_path, strength)[name] - weight for strength in (1.0, 2.0))
    torch.testing.assert_close(twice, 2 * once)
    assert once.abs().max() > 1e-3
    with adapter.applied(base, tmp_path, 0.0) as loaded:
        assert torch.equal(predicted(loaded), predicted(small.components().transformer))


def test_the_parameters_that_a_lora_adds(tmp_path: Path) -> None:
    model = small.components().transformer
    layers = {n: (m.in_features, m.out_features) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    for adapter in ADAPTERS[:2]:
        attached = adapter.attach(small.components().transformer, seed=0)
        assert adapter.extra_parameters(layers) == sum(p.numel() for p in attached.parameters.values())
    assert AllWeights().extra_parameters(layers) == 0


def test_a_lora_is_written_without_a_model(tmp_path: Path) -> None:
    adapter = ADAPTERS[1]
    attached = adapter.attach(small.components().transformer, seed=1)
    weights = {name: p.detach() + 1 for name, p in attached.parameters.items()}
    attached.save(tmp_path, weights, {"a": "b"})
    adapter.write(tmp_path / "alone.safetensors", weights, {"a": "b"})
    with safe_open(tmp_path / "alone.safetensors", "pt") as one, safe_open(tmp_path / adapter.output, "pt") as other:
        assert one.metadata() == other.metadata()
        assert all(torch.equal(one.get_tensor(key), other.get_tensor(key)) for key in other.keys())  # noqa: SIM118


def test_settings_name_the_adapter() -> None:
    assert adapters.from_settings(None) == AllWeights()
    settings = LoraSettings(rank=4, alpha=2.0, targets=["to_q"], rslora=True)
    assert adapters.from_settings(settings) == Lora(4, ("to_q",), 2.0, True)


def test_a_model_that_has_a_lora_is_refused() -> None:
    model = small.components().transformer
    ADAPTERS[0].attach(model, seed=0)
    for adapter in ADAPTERS:
        with pytest.raises(InputError, match="has the LoRA pusa already"):
            adapter.attach(model, seed=0)
