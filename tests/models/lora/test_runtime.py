"""LoRA dialects, strength and the errors that keep a file from being half used."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import WanTransformer3DModel
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pusa.errors import InputError
from pusa.models.lora import runtime
from pusa.models.wan.transformer import VectorWanTransformer3DModel

RANK = 4
MODULES = {
    "blocks.0.attn1.to_q": "blocks.0.self_attn.q",
    "blocks.0.attn1.to_out.0": "blocks.0.self_attn.o",
    "blocks.1.attn2.to_v": "blocks.1.cross_attn.v",
    "blocks.1.ffn.net.0.proj": "blocks.1.ffn.0",
    "blocks.1.ffn.net.2": "blocks.1.ffn.2",
    "condition_embedder.time_proj": "time_projection.1",
    "proj_out": "head.head",
}


@pytest.fixture
def model(tiny_folder):
    stock = WanTransformer3DModel.from_pretrained(tiny_folder, subfolder="transformer")
    return VectorWanTransformer3DModel.upgrade(stock).eval()


@pytest.fixture
def factors(model):
    """{module: (A [r, in], B [out, r])}"""
    rng = torch.Generator().manual_seed(1)
    sizes = {name: model.get_submodule(name) for name in MODULES}
    return {
        name: (
            torch.randn(RANK, layer.in_features, generator=rng) * 0.2,
            torch.randn(layer.out_features, RANK, generator=rng) * 0.2,
        )
        for name, layer in sizes.items()
    }


def run(model):
    rng = torch.Generator().manual_seed(2)
    x, text = torch.randn(1, 16, 3, 4, 4, generator=rng), torch.randn(1, 8, 32, generator=rng)
    with torch.no_grad():
        return model(x, torch.tensor([[0.0, 500.0, 900.0]]), text, return_dict=False)[0]


def merged(tiny_folder, factors, scale):
    """What the model with W + scale * B A in its weights says."""
    model = WanTransformer3DModel.from_pretrained(tiny_folder, subfolder="transformer")
    for name, (a, b) in factors.items():
        model.get_submodule(name).weight.data += scale * b @ a
    return run(VectorWanTransformer3DModel.upgrade(model).eval())


def write(path, factors, key, *, sides=("lora_A", "lora_B"), alpha=None):
    tensors = {}
    for name, (a, b) in factors.items():
        stem = key.format(diffusers=name, wan=MODULES[name], kohya=MODULES[name].replace(".", "_"))
        middle = ".default" if "{default}" in stem else ""
        stem = stem.replace("{default}", "")
        tensors |= {f"{stem}.{sides[0]}{middle}.weight": a.clone(), f"{stem}.{sides[1]}{middle}.weight": b.clone()}
        if alpha is not None:
            tensors[f"{stem}.alpha"] = torch.tensor(float(alpha))
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    return path


DIALECTS = {
    "diffusers": ("transformer.{diffusers}", ("lora_A", "lora_B"), None),
    "peft": ("base_model.model.{diffusers}{{default}}", ("lora_A", "lora_B"), None),
    "comfy": ("diffusion_model.{wan}", ("lora_A", "lora_B"), None),
    "comfy with alpha": ("diffusion_model.{wan}", ("lora_down", "lora_up"), 2.0),
    "official": ("{wan}{{default}}", ("lora_A", "lora_B"), None),
    "kohya": ("lora_unet_{kohya}", ("lora_down", "lora_up"), 2.0),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialects_mean_the_same_sum(dialect, model, factors, tiny_folder, tmp_path):
    key, sides, alpha = DIALECTS[dialect]
    path = write(tmp_path / "x.safetensors", factors, key, sides=sides, alpha=alpha)
    before = run(model)
    loaded = runtime.load(model, path, scale=1.4)
    assert (loaded.modules, loaded.ranks, loaded.scale) == (len(MODULES), (RANK,), 1.4)
    expected = merged(tiny_folder, factors, 1.4 * (alpha or RANK) / RANK)
    torch.testing.assert_close(run(model), expected, atol=2e-6, rtol=1e-5)
    assert (run(model) - before).abs().max() > 1e-3


def test_the_official_pickle_of_tensors(model, factors, tiny_folder, tmp_path):
    runtime.load(model, write(tmp_path / "pusa_v1.pt", factors, "{wan}{{default}}"))
    torch.testing.assert_close(run(model), merged(tiny_folder, factors, 1), atol=2e-6, rtol=1e-5)


def test_the_same_name_replaces_and_other_names_add(model, factors, tiny_folder, tmp_path):
    path = write(tmp_path / "a.safetensors", factors, "diffusion_model.{wan}")
    plain = run(model)
    for scale in (2.0, 0.5, 1.5):
        runtime.load(model, path, scale)
    torch.testing.assert_close(run(model), merged(tiny_folder, factors, 1.5), atol=2e-6, rtol=1e-5)
    runtime.load(model, path, 0.25, name="again")
    torch.testing.assert_close(run(model), merged(tiny_folder, factors, 1.75), atol=3e-6, rtol=1e-5)
    runtime.load(model, path, 0.0)
    runtime.load(model, path, 0.0, name="again")
    assert torch.equal(run(model), plain)


def test_a_sleeping_adapter_stays_asleep(model, factors, tiny_folder, tmp_path):
    path = write(tmp_path / "a.safetensors", factors, "diffusion_model.{wan}")
    runtime.load(model, path, 1.0, name="one")
    runtime.load(model, path, 0.5, name="two")
    model.set_adapter("two")
    runtime.load(model, path, 0.25, name="three")
    torch.testing.assert_close(run(model), merged(tiny_folder, factors, 0.75), atol=2e-6, rtol=1e-5)


def test_ranks_may_differ_from_layer_to_layer(model, factors, tiny_folder, tmp_path):
    a, b = factors["proj_out"]
    factors["proj_out"] = (a[:2], b[:, :2])
    loaded = runtime.load(model, write(tmp_path / "x.safetensors", factors, "diffusion_model.{wan}"))
    assert loaded.ranks == (2, 4)
    torch.testing.assert_close(run(model), merged(tiny_folder, factors, 1), atol=2e-6, rtol=1e-5)


def test_alpha_from_a_peft_config(model, factors, tiny_folder, tmp_path):
    path = write(tmp_path / "adapter_model.safetensors", factors, "base_model.model.{diffusers}")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 8, "use_rslora": False}))
    runtime.load(model, path)
    torch.testing.assert_close(run(model), merged(tiny_folder, factors, 2), atol=2e-6, rtol=1e-5)


def test_a_rank_stabilised_lora_divides_by_the_root_of_its_rank(model, factors, tiny_folder, tmp_path):
    path = write(tmp_path / "adapter_model.safetensors", factors, "base_model.model.{diffusers}")
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({"r": RANK, "lora_alpha": 6, "use_rslora": True}))
    runtime.load(model, path)
    torch.testing.assert_close(run(model), merged(tiny_folder, factors, 6 / RANK**0.5), atol=2e-6, rtol=1e-5)
    config.write_text(json.dumps({"r": RANK, "lora_alpha": 6, "use_dora": True}))
    with pytest.raises(InputError, match="DoRA"):
        runtime.load(model, path)


def test_a_trained_rank_stabilised_lora_is_saved_folded(model, tmp_path):
    model.add_adapter(LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules=["to_q"]), "mine")
    torch.manual_seed(3)
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            weight.data.normal_(std=0.1)
    trained = run(model)
    runtime.save(model, tmp_path / "mine.safetensors")
    runtime.load(model, tmp_path / "mine.safetensors", name="mine")
    torch.testing.assert_close(run(model), trained, atol=2e-6, rtol=1e-5)


def test_other_weights_may_be_written_in_place_of_the_own(model, tmp_path):
    model.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=["to_q"]), "mine")
    own = {name: weight.clone() for name, weight in model.named_parameters() if ".lora_" in name}
    runtime.save(model, tmp_path / "x.safetensors", weights={name: torch.ones_like(w) for name, w in own.items()})
    for key, value in load_file(tmp_path / "x.safetensors").items():
        assert torch.equal(value, torch.full_like(value, 2.0 if "lora_B" in key else 1.0))
    assert all(torch.equal(weight, own[name]) for name, weight in model.named_parameters() if name in own)


def test_a_trained_adapter_is_saved_for_everybody(model, tmp_path):
    model.add_adapter(LoraConfig(r=3, lora_alpha=6, target_modules=["to_q", "proj_out"]), "mine")
    torch.manual_seed(3)
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            weight.data.normal_(std=0.1)
    trained = run(model)
    path = tmp_path / "mine.safetensors"
    runtime.save(model, path, {"pusa.steps": 12, "title": "mine"})
    keys = load_file(path)
    assert "diffusion_model.blocks.1.self_attn.q.lora_A.weight" in keys
    assert "diffusion_model.head.head.lora_B.weight" in keys
    assert len(keys) == 2 * (4 + 1)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "pusa.steps": "12", "title": "mine"}
    runtime.load(model, path, name="mine")
    torch.testing.assert_close(run(model), trained, atol=2e-6, rtol=1e-5)


def test_stock_diffusers_reads_what_is_saved(model, factors, tiny_folder, tmp_path):
    from diffusers import WanPipeline

    rng = torch.Generator().manual_seed(4)
    full = {
        name: (torch.randn(2, m.in_features, generator=rng) * 0.1, torch.randn(m.out_features, 2, generator=rng) * 0.1)
        for name, m in model.named_modules()
        if name.startswith("blocks.") and isinstance(m, torch.nn.Linear)
    }
    tensors = {f"transformer.{n}.lora_{s}.weight": t for n, p in full.items() for s, t in zip("AB", p, strict=True)}
    save_file(tensors, tmp_path / "all.safetensors")
    runtime.load(model, tmp_path / "all.safetensors")
    runtime.save(model, tmp_path / "ours.safetensors")
    stock = WanPipeline.from_pretrained(tiny_folder)
    stock.load_lora_weights(str(tmp_path / "ours.safetensors"))
    stock.transformer.eval()
    torch.testing.assert_close(
        run(VectorWanTransformer3DModel.upgrade(stock.transformer)), run(model), atol=2e-6, rtol=1e-5
    )


def refused(model, path, match, **options):
    before = run(model)
    with pytest.raises(InputError, match=match):
        runtime.load(model, path, **options)
    assert not getattr(model, "peft_config", {})
    assert torch.equal(run(model), before)


def test_files_that_do_not_fit_are_refused_and_change_nothing(model, factors, tmp_path):
    path = tmp_path / "x.safetensors"
    refused(model, tmp_path / "none.safetensors", "does not exist")
    refused(model, tmp_path, "is a folder")
    path.write_bytes(b"")
    refused(model, path, "damaged")
    save_file({"unet.down.0.lora_A.weight": torch.ones(2, 2)}, path)
    refused(model, path, r"Nothing in the LoRA .*\(such as unet.down.0")
    write(path, factors, "diffusion_model.{wan}")
    good = load_file(path)
    for extra in ("diffusion_model.blocks.9.self_attn.q.lora_A.weight", "diffusion_model.blocks.0.norm1.diff"):
        save_file({**good, extra: torch.ones(2, 2)}, path)
        refused(model, path, f"1 of its 15 keys .*{extra}")
    save_file({k: v for k, v in good.items() if "head.head.lora_B" not in k}, path)
    refused(model, path, "incomplete: proj_out")
    other = {**good, "diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.ones(RANK, 5120)}
    save_file(other, path)
    refused(
        model, path, "another size: blocks.0.attn1.to_q maps 5120 to 32 features in the LoRA .as in Wan 14B. and 32"
    )
    save_file({**good, "blocks.0.self_attn.q.lora_A.weight": torch.ones(RANK, 32)}, path)
    refused(model, path, "names blocks.0.attn1.to_q twice")
    save_file(good, path)
    refused(model, path, "finite", scale=float("nan"))
    refused(model, path, "letters", name="a.b")


def test_nothing_to_save_is_an_error(model, tmp_path):
    with pytest.raises(InputError, match="no LoRA to write"):
        runtime.save(model, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=r"must end in \.safetensors"):
        runtime.write(tmp_path / "x.pt", {})
