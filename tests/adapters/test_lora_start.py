"""A LoRA of any program is the start of a training: the model begins as that program's model, and is trained on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pusa.adapters import lora_start
from pusa.adapters.lora import Lora
from pusa.errors import InputError
from pusa.models.lora import runtime
from pusa.training.config.sections import TARGETS
from tests.adapters.test_adapters import predicted
from tests.models import lora_files
from tests.models.lora_files import RANK
from tests.training import small


def layers() -> dict[str, tuple[int, int]]:
    return runtime.linears(small.pristine())


def lora_of(path: Path, **changes: Any) -> Lora:
    own = lora_start.settings_of(lora_start.read(path, layers()), layers(), TARGETS)
    return Lora(own["rank"], tuple(own["targets"]), own["alpha"], init=str(path), **changes)


@pytest.mark.parametrize("dialect", lora_files.PLAIN)
def test_the_model_begins_as_the_program_of_the_file_left_it(dialect: str, tmp_path: Path) -> None:
    factors, whole = lora_files.truth(small.pristine())
    path = lora_files.written(tmp_path, dialect, factors, whole)
    loaded = small.components().transformer
    runtime.load(loaded, path)
    adapter, trained = lora_of(path), small.components().transformer
    attached = adapter.attach(trained, seed=0)
    torch.testing.assert_close(predicted(trained), predicted(loaded), atol=1e-5, rtol=1e-5)
    assert (predicted(trained) - predicted(small.components().transformer)).abs().max() > 1e-3
    assert all(p.dtype == torch.float32 for p in attached.parameters.values())
    assert (adapter.rank, adapter.targets) == (RANK, TARGETS)
    scaling = {"kohya": 0.25, "videox-fun": 0.25, "peft": 2.0, "diffusers with metadata": 2.0}.get(dialect)
    scaling = 3.0 if "stabilised" in dialect else scaling or 1.0
    assert adapter.alpha == pytest.approx(scaling * RANK), "alpha of the file, and no alpha means B A"
    written = attached.save(tmp_path, {n: p.detach() for n, p in attached.parameters.items()}, {})
    again = small.components().transformer
    runtime.load(again, written)
    torch.testing.assert_close(predicted(again), predicted(loaded), atol=1e-5, rtol=1e-5)


def comfy(path: Path, ranks: dict[str, int], alphas: dict[str, float] | None = None) -> Path:
    """A file with these ranks and alphas."""
    rng, tensors = torch.Generator().manual_seed(3), {}
    for name, rank in ranks.items():
        inputs, outputs = layers()[name]
        stem = f"diffusion_model.{runtime.original_name(name)}"
        tensors[f"{stem}.lora_A.weight"] = torch.randn(rank, inputs, generator=rng)
        tensors[f"{stem}.lora_B.weight"] = torch.randn(outputs, rank, generator=rng)
        if alphas:
            tensors[f"{stem}.alpha"] = torch.tensor(alphas[name])
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("alphas", [None, {"blocks.0.attn1.to_q": 3.0, "proj_out": 1.0}])
def test_layers_of_different_rank_and_scaling_stay_as_they_are(alphas: dict[str, float] | None, tmp_path: Path) -> None:
    path = comfy(tmp_path / "x.safetensors", {"blocks.0.attn1.to_q": 6, "proj_out": 2}, alphas)
    adapter, model, loaded = lora_of(path), small.components().transformer, small.components().transformer
    assert (adapter.rank, adapter.alpha) == (6, 3.0 if alphas else 6.0)
    assert set(adapter.targets) == {"blocks.0.attn1.to_q", "proj_out"}
    attached = adapter.attach(model, seed=0)
    shapes = {name.split(".lora_")[0]: len(p) for name, p in attached.parameters.items() if ".lora_A." in name}
    assert shapes == {"blocks.0.attn1.to_q": 6, "proj_out": 2}
    runtime.load(loaded, path)
    torch.testing.assert_close(predicted(model), predicted(loaded), atol=1e-5, rtol=1e-5)
    written = attached.save(tmp_path, {n: p.detach() for n, p in attached.parameters.items()}, {})
    runtime.load(loaded, written, name="again")
    runtime.set_scale(loaded, "x", 0.0)
    torch.testing.assert_close(predicted(model), predicted(loaded), atol=1e-5, rtol=1e-5)


def test_different_scalings_are_multiplied_into_b(tmp_path: Path) -> None:
    names = {"blocks.0.attn1.to_q": 4, "blocks.1.attn1.to_q": 4}
    path = comfy(tmp_path / "x.safetensors", names, dict(zip(names, (4.0, 2.0), strict=True)))
    start = lora_start.read(path, layers())
    assert start.scaling == 1
    raw = load_file(path)["diffusion_model.blocks.1.self_attn.q.lora_B.weight"]
    assert torch.equal(start.factors["blocks.1.attn1.to_q"][1], raw * 0.5)
    assert lora_start.settings_of(start, layers(), TARGETS)["targets"] == ["attn1.to_q"]


def test_stabilised_training_continues_with_the_same_product(tmp_path: Path) -> None:
    factors, whole = lora_files.truth(small.pristine())
    path = lora_files.written(tmp_path, "kohya", factors, whole)
    own = lora_start.settings_of(lora_start.read(path, layers()), layers(), TARGETS, stabilised=True)
    assert own["alpha"] == 0.25 * RANK**0.5
    model, loaded = small.components().transformer, small.components().transformer
    Lora(RANK, TARGETS, own["alpha"], rslora=True, init=str(path)).attach(model, seed=0)
    runtime.load(loaded, path)
    torch.testing.assert_close(predicted(model), predicted(loaded), atol=1e-5, rtol=1e-5)


def test_other_settings_than_those_of_the_file_are_refused(tmp_path: Path) -> None:
    factors, whole = lora_files.truth(small.pristine())
    path = lora_files.written(tmp_path, "comfy", factors, whole)
    model = small.components().transformer
    for adapter, sentence in (
        (Lora(8, TARGETS, init=str(path)), f"lora.rank is 8, and the LoRA {path} has 4: leave lora.rank out"),
        (
            Lora(4, TARGETS, init=str(path), exclude=("attn2",)),
            f"lora.targets and lora.exclude select other layers than those of the LoRA {path}, which changes "
            "blocks.0.attn2.",
        ),
        (Lora(4, TARGETS, 2.0, init=str(path)), f"lora.alpha is 2, and the LoRA {path} needs 4: leave lora.alpha out"),
        (Lora(4, ("to_q",), init=str(path)), f"LoRA {path}, which changes blocks.0.attn1.to_k: leave lora.targets out"),
        (Lora(4, (*TARGETS, "proj_out"), init=str(path)), "which has no factors for proj_out: leave"),
    ):
        with pytest.raises(InputError) as caught:
            adapter.attach(copy.deepcopy(model), seed=0)
        assert sentence in str(caught.value)


def test_a_file_that_changes_more_than_linear_layers_is_refused(tmp_path: Path) -> None:
    path = lora_files.written(tmp_path, "lightx2v", *lora_files.truth(small.pristine(), whole=True))
    with pytest.raises(InputError, match=r"lora.init .* parameters as a whole .* start from another LoRA"):
        lora_start.read(path, layers())
