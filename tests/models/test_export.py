"""A LoRA in other dialects, at lower ranks and in the weights means what it meant before."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pusa.errors import InputError
from pusa.files import sha256
from pusa.models import export
from pusa.models.loading import checkpoints, configurations
from pusa.models.lora import runtime
from pusa.models.wan.transformer import VectorWanTransformer3DModel

NAMES = {
    "attn1.to_q": "self_attn.q",
    "attn1.to_k": "self_attn.k",
    "attn1.to_v": "self_attn.v",
    "attn1.to_out.0": "self_attn.o",
    "attn2.to_q": "cross_attn.q",
    "attn2.to_k": "cross_attn.k",
    "attn2.to_v": "cross_attn.v",
    "attn2.to_out.0": "cross_attn.o",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}
GLOBAL = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "proj_out": "head.head",
}
BLOCKS = {f"blocks.{i}.{ours}": f"blocks.{i}.{wan}" for i in range(2) for ours, wan in NAMES.items()}
RANK = 4


def transformer(folder: Path) -> WanTransformer3DModel:
    return WanTransformer3DModel.from_pretrained(folder, subfolder="transformer").eval()


@pytest.fixture(scope="module")
def layers(tiny_folder):
    return runtime.linears(transformer(tiny_folder))


def factors(layers, modules, rank=RANK, dtype=torch.float32, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return {
        module: (
            (torch.randn(rank, layers[module][0], generator=rng) * 0.2).to(dtype),
            (torch.randn(layers[module][1], rank, generator=rng) * 0.2).to(dtype),
        )
        for module in modules
    }


def comfy(path, pairs, *, alpha=None, metadata=None):
    """A file as ComfyUI names it, with alpha keys on request."""
    tensors = {}
    for module, (down, up) in pairs.items():
        stem = f"diffusion_model.{({**BLOCKS, **GLOBAL})[module]}"
        tensors |= {f"{stem}.lora_A.weight": down.clone(), f"{stem}.lora_B.weight": up.clone()}
        if alpha is not None:
            tensors[f"{stem}.alpha"] = torch.tensor(float(alpha))
    save_file(tensors, path, metadata=metadata)
    return path


def same(a, b):
    one, two = load_file(a), load_file(b)
    return (
        one.keys() == two.keys()
        and all(one[k].dtype == two[k].dtype for k in one)
        and all(torch.equal(one[k], two[k]) for k in one)
    )


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def run(model):
    rng = torch.Generator().manual_seed(2)
    x, text = torch.randn(1, 16, 3, 4, 4, generator=rng), torch.randn(1, 8, 32, generator=rng)
    with torch.no_grad():
        return model(x, torch.tensor([625.0]), text, return_dict=False)[0]


def with_lora(tiny_folder, path, scale=1.0):
    """What pusa says with the file loaded at run time."""
    model = VectorWanTransformer3DModel.upgrade(transformer(tiny_folder))
    runtime.load(model, path, scale)
    return run(model)


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_round_trip_through_every_dialect_is_bit_equal(dtype, layers, tmp_path):
    pairs = factors(layers, {**BLOCKS, **GLOBAL}, dtype=dtype)
    pairs["proj_out"] = tuple(t.contiguous() for t in (pairs["proj_out"][0][:2], pairs["proj_out"][1][:, :2]))
    source = comfy(tmp_path / "a.safetensors", pairs, metadata={"format": "pt", "pusa.tasks": "first"})
    done = export.convert(source, tmp_path / "b.safetensors", "diffusers")
    assert (done.modules, done.ranks, done.dtypes) == (26, (2, 4), (str(dtype).removeprefix("torch."),))
    export.convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors", "kohya")
    export.convert(tmp_path / "c.safetensors", tmp_path / "d.safetensors", "comfy")
    assert same(source, tmp_path / "d.safetensors")
    assert metadata(tmp_path / "d.safetensors") == {"format": "pt", "pusa.tasks": "first"}
    between, kohya = load_file(tmp_path / "b.safetensors"), load_file(tmp_path / "c.safetensors")
    assert {key.split(".lora_")[0] for key in between} == {f"transformer.{m}" for m in pairs}
    assert "lora_unet_blocks_1_self_attn_q.lora_up.weight" in kohya
    assert kohya["lora_unet_head_head.alpha"] == 2
    assert kohya["lora_unet_blocks_0_ffn_2.alpha"] == 4


@pytest.mark.parametrize("alpha", [2.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_alpha_keeps_its_meaning_in_every_dialect(alpha, dtype, layers, tiny_folder, tmp_path):
    source = comfy(tmp_path / "a.safetensors", factors(layers, BLOCKS, dtype=dtype), alpha=alpha)
    expected = with_lora(tiny_folder, source)
    previous = source
    folded = tmp_path / "folded.safetensors"
    export.convert(source, folded, "comfy")
    for to in ("diffusers", "kohya", "comfy"):
        path = tmp_path / f"{to}.safetensors"
        done = export.convert(previous, path, to)
        assert torch.equal(with_lora(tiny_folder, path), expected)
        previous = path
    # 2 / 4 is exact in every type; 3 / 4 is not in bfloat16, and B is then float32
    exact = dtype == torch.float32 or alpha == 2
    assert done.dtypes == ((str(dtype).removeprefix("torch."),) if exact else ("bfloat16", "float32"))
    assert same(folded, previous)


def test_every_dialect_that_is_read_is_exported(layers, tiny_folder, tmp_path):
    pairs = factors(layers, BLOCKS)
    expected = with_lora(tiny_folder, comfy(tmp_path / "comfy.safetensors", pairs))
    named = {
        "peft": lambda module: f"base_model.model.{module}",
        "official": lambda module: f"{BLOCKS[module]}",
        "pipe.dit": lambda module: f"pipe.dit.{BLOCKS[module]}",
    }
    for dialect, name in named.items():
        tensors = {
            f"{name(module)}.lora_{side}.default.weight": value
            for module, pair in pairs.items()
            for side, value in zip("AB", pair, strict=True)
        }
        torch.save(tensors, tmp_path / f"{dialect}.pt")
        export.convert(tmp_path / f"{dialect}.pt", tmp_path / "out.safetensors", "comfy")
        assert same(tmp_path / "out.safetensors", tmp_path / "comfy.safetensors"), dialect
        assert torch.equal(with_lora(tiny_folder, tmp_path / "out.safetensors"), expected)


def test_alpha_of_a_peft_folder_is_folded_once(layers, tiny_folder, tmp_path):
    pairs = factors(layers, BLOCKS)
    tensors = {
        f"base_model.model.{module}.lora_{side}.weight": value
        for module, pair in pairs.items()
        for side, value in zip("AB", pair, strict=True)
    }
    (tmp_path / "peft").mkdir()
    source = tmp_path / "peft" / "adapter_model.safetensors"
    save_file(tensors, source)
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 12}))
    done = export.convert(source, tmp_path / "out.safetensors", "diffusers")
    assert done.stale == ("adapter_config",)
    close(with_lora(tiny_folder, tmp_path / "out.safetensors"), with_lora(tiny_folder, source))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"alpha from the adapter_config\.json in its folder"):
        export.convert(source, tmp_path / "other" / "adapter_model.safetensors", "diffusers")


def test_metadata_that_would_lie_is_left_out_and_named(layers, tmp_path):
    said = {"lora_adapter_metadata": json.dumps({"transformer.r": RANK, "transformer.lora_alpha": 8}), "title": "x"}
    pairs = factors(layers, ["blocks.0.attn1.to_q"])
    tensors = {
        f"transformer.blocks.0.attn1.to_q.lora_{side}.weight": value
        for side, value in zip("AB", pairs["blocks.0.attn1.to_q"], strict=True)
    }
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt", **said})
    done = export.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "diffusers")
    assert done.stale == ("lora_adapter_metadata",)
    assert metadata(tmp_path / "b.safetensors") == {"format": "pt", "title": "x"}
    up = load_file(tmp_path / "b.safetensors")["transformer.blocks.0.attn1.to_q.lora_B.weight"]
    assert torch.equal(up, pairs["blocks.0.attn1.to_q"][1] * 2)


@pytest.mark.parametrize("to", ["diffusers", "comfy", "kohya"])
def test_stock_diffusers_loads_it_and_says_the_same(to, layers, tiny_folder, tmp_path):
    modules = BLOCKS if to == "kohya" else {**BLOCKS, **GLOBAL}  # diffusers' reader of kohya files knows only blocks
    pairs = factors(layers, modules)
    source = comfy(tmp_path / "a.safetensors", pairs, alpha=2 if to == "kohya" else None)
    expected = with_lora(tiny_folder, source)
    export.convert(source, tmp_path / "b.safetensors", to)
    pipe = WanPipeline.from_pretrained(tiny_folder)
    pipe.load_lora_weights(str(tmp_path / "b.safetensors"))
    close(run(pipe.transformer.eval()), expected)
    if to == "diffusers":
        model = transformer(tiny_folder)
        model.load_lora_adapter(str(tmp_path / "b.safetensors"), prefix="transformer")
        close(run(model.eval()), expected)
    assert (expected - run(transformer(tiny_folder))).abs().max() > 1e-3


def test_stock_diffusers_takes_layers_of_different_rank(layers, tiny_folder, tmp_path):
    pairs = factors(layers, BLOCKS)
    for module in list(BLOCKS)[:3]:
        down, up = pairs[module]
        pairs[module] = down[:1].contiguous(), up[:, :1].contiguous()
    source = comfy(tmp_path / "a.safetensors", pairs)
    expected = with_lora(tiny_folder, source)
    for to in ("diffusers", "comfy"):
        export.convert(source, tmp_path / f"{to}.safetensors", to)
        pipe = WanPipeline.from_pretrained(tiny_folder)
        pipe.load_lora_weights(str(tmp_path / f"{to}.safetensors"))
        close(run(pipe.transformer.eval()), expected)


@given(
    rows=st.integers(1, 24),
    columns=st.integers(1, 24),
    stored=st.integers(1, 30),
    true=st.integers(1, 8),
    rank=st.integers(1, 30),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_a_lower_rank_is_the_best_one_and_its_energy_is_true(rows, columns, stored, true, rank, seed):
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(stored, true, generator=rng, dtype=torch.float64)
    down = mix @ torch.randn(true, columns, generator=rng, dtype=torch.float64)
    up = torch.randn(rows, stored, generator=rng, dtype=torch.float64)
    new_down, new_up, kept, there = export.reduce(down, up, rank)
    product = up @ down
    s = torch.linalg.svdvals(product)
    assert math.isclose(there, s.square().sum().item(), rel_tol=1e-9)
    assert math.isclose(kept, there if rank >= stored else s[:rank].square().sum().item(), rel_tol=1e-9)
    assert len(new_down) == new_up.shape[1] <= max(1, min(rank, stored))
    error = (new_up @ new_down - product).square().sum().item()
    assert math.isclose(error, there - kept, rel_tol=1e-6, abs_tol=1e-9 * there)
    if rank >= true:
        assert math.isclose(kept, there, rel_tol=1e-12)
    if rank >= stored:
        assert new_down is down
        assert new_up is up


def test_a_lower_rank_in_a_file(layers, tiny_folder, tmp_path):
    modules = [*BLOCKS, "proj_out"]
    wide = factors(layers, modules, rank=12)
    wide["blocks.0.ffn.net.2"] = tuple(torch.zeros_like(t) for t in wide["blocks.0.ffn.net.2"])
    narrow = factors(layers, ["blocks.1.ffn.net.2"], rank=2)
    source = comfy(tmp_path / "a.safetensors", {**wide, **narrow})
    for rank in (3, 12, 40):
        done = export.convert(source, tmp_path / "b.safetensors", "comfy", rank=rank)
        assert done.energy is not None
        assert done.energy.modules["blocks.0.ffn.net.2"] == done.energy.modules["blocks.1.ffn.net.2"] == 1
        assert (done.energy.total == 1) == (rank >= 12) == same(source, tmp_path / "b.safetensors")
        assert metadata(tmp_path / "b.safetensors")["pusa.kept_energy"] == f"{done.energy.total:.6f}"
    done = export.convert(source, tmp_path / "b.safetensors", "comfy", rank=3)
    assert done.ranks == (2, 3)
    products = {module: (up @ down).double() for module, (down, up) in runtime.read(source)[0].items()}
    cut = {module: (up @ down).double() for module, (down, up) in runtime.read(done.path)[0].items()}
    lost = sum((products[m] - cut[m]).square().sum().item() for m in products)
    all_of_it = sum(p.square().sum().item() for p in products.values())
    assert math.isclose(1 - lost / all_of_it, done.energy.total, rel_tol=1e-5)
    worst = min(
        products, key=lambda m: 1 - (products[m] - cut[m]).square().sum() / (products[m].square().sum() + 1e-30)
    )
    assert done.energy.least[0] == worst
    assert done.energy.least[1] <= done.energy.median <= 1


def test_dtype(layers, tmp_path):
    source = comfy(tmp_path / "a.safetensors", factors(layers, BLOCKS))
    assert export.convert(source, tmp_path / "b.safetensors", "comfy", dtype="bfloat16").dtypes == ("bfloat16",)
    original = load_file(source)
    for key, value in load_file(tmp_path / "b.safetensors").items():
        assert torch.equal(value, original[key].bfloat16())
    huge = factors(layers, ["proj_out"])
    huge["proj_out"][1][0, 0] = 1e30
    comfy(source, huge)
    with pytest.raises(InputError, match=r"proj_out .* too large for float16"):
        export.convert(source, tmp_path / "c.safetensors", "comfy", dtype="float16")
    assert not (tmp_path / "c.safetensors").exists()


@pytest.mark.parametrize("scale", [1.0, -0.4])
def test_a_merged_checkpoint_is_the_lora_at_run_time(scale, layers, tiny_folder, tmp_path):
    source = comfy(tmp_path / "a.safetensors", factors(layers, {**BLOCKS, **GLOBAL}), alpha=3)
    done = export.merge(source, tiny_folder, tmp_path / "merged", scale=scale)
    assert done.path == tmp_path / "merged"
    pipe = WanPipeline.from_pretrained(tmp_path / "merged")
    close(run(pipe.transformer.eval()), with_lora(tiny_folder, source, scale))
    ours = checkpoints.load(tmp_path / "merged", device="cpu")
    mine, stock = ours.transformer.state_dict(), pipe.transformer.state_dict()
    assert mine.keys() == stock.keys()
    assert all(torch.equal(mine[key], stock[key]) for key in mine)
    close(run(ours.transformer), run(pipe.transformer))  # mapped weights may be unaligned and round otherwise
    assert ours.defaults == configurations.defaults_of(tiny_folder)
    assert sha256(source) in (tmp_path / "merged" / "README.md").read_text()
    before, after = (
        load_file(f / "transformer" / "diffusion_pytorch_model.safetensors") for f in (tiny_folder, done.path)
    )
    changed = {key.removesuffix(".weight") for key in before if not torch.equal(before[key], after[key])}
    assert changed == {*BLOCKS, *GLOBAL}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "merged"]


def test_experts_get_their_own_adapters_one_after_the_other(layers, tiny_folder, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_folder, base)
    shutil.copytree(base / "transformer", base / "transformer_2")
    index = json.loads((base / "model_index.json").read_text())
    index |= {"transformer_2": ["diffusers", "WanTransformer3DModel"], "boundary_ratio": 0.875}
    (base / "model_index.json").write_text(json.dumps(index))

    def weights(folder, kind):
        return load_file(folder / kind / "diffusion_pytorch_model.safetensors")

    def moved(folder, kind):
        old, new = weights(base, kind), weights(folder, kind)
        return {key.removesuffix(".weight") for key in old if not torch.equal(old[key], new[key])}

    high = comfy(tmp_path / "high_noise.safetensors", factors(layers, BLOCKS))
    low = comfy(tmp_path / "low_noise.safetensors", factors(layers, GLOBAL))
    export.merge(high, base, tmp_path / "one", expert="high")
    export.merge(low, tmp_path / "one", tmp_path / "two", expert="low")
    assert (moved(tmp_path / "two", "transformer"), moved(tmp_path / "two", "transformer_2")) == (
        set(BLOCKS),
        set(GLOBAL),
    )
    assert "of its low-noise expert" in (tmp_path / "two" / "README.md").read_text()
    assert configurations.defaults_of(tmp_path / "two").per_frame == ()
    pusa = Path(shutil.copy(high, tmp_path / "high_noise_pusa.safetensors"))
    export.merge(pusa, base, tmp_path / "three", expert="high")
    assert configurations.defaults_of(tmp_path / "three").per_frame == ("transformer",)
    export.merge(shutil.copy(low, tmp_path / "low_noise_pusa.safetensors"), tmp_path / "three", tmp_path / "four",
                 expert="low")  # fmt: skip
    assert configurations.defaults_of(tmp_path / "four").per_frame == ("transformer", "transformer_2")
    either = comfy(tmp_path / "a.safetensors", factors(layers, BLOCKS))
    export.merge(either, base, tmp_path / "both")
    assert moved(tmp_path / "both", "transformer") == moved(tmp_path / "both", "transformer_2") == set(BLOCKS)
    with pytest.raises(InputError, match="for the low-noise expert: give --expert low"):
        export.merge(low, base, tmp_path / "no")
    pair = tmp_path / "pair.safetensors"
    save_file({f"transformer_{i}.{key}": value for i, path in ((1, high), (2, low)) for key, value in
               load_file(path).items()}, pair)  # fmt: skip
    export.merge(pair, base, tmp_path / "of a pair")
    for kind in ("transformer", "transformer_2"):
        one, other = weights(tmp_path / "of a pair", kind), weights(tmp_path / "two", kind)
        assert all(torch.equal(one[key], other[key]) for key in other)
    export.convert(pair, tmp_path / "out.safetensors", "comfy", expert="low")
    assert load_file(tmp_path / "out.safetensors").keys() == load_file(low).keys()
    with pytest.raises(InputError, match="for both experts"):
        export.convert(pair, tmp_path / "again.safetensors", "comfy")
    with pytest.raises(InputError, match="has one transformer and no low-noise expert"):
        export.merge(either, tiny_folder, tmp_path / "no", expert="low")


def test_merging_into_sharded_weights_of_another_type(layers, tiny_folder, tmp_path):
    model = WanTransformer3DModel.from_pretrained(tiny_folder, subfolder="transformer", torch_dtype=torch.bfloat16)
    base = tmp_path / "base"
    WanPipeline.from_pretrained(tiny_folder, transformer=model).save_pretrained(base)
    (base / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    model.save_pretrained(base / "transformer", max_shard_size="40KB")
    assert len(list((base / "transformer").glob("*.safetensors"))) > 1
    pairs = factors(layers, {**BLOCKS, **GLOBAL})
    export.merge(comfy(tmp_path / "a.safetensors", pairs), base, tmp_path / "merged")
    merged = WanTransformer3DModel.from_pretrained(
        tmp_path / "merged", subfolder="transformer", torch_dtype=model.dtype
    )
    for module, (down, up) in pairs.items():
        old, new = model.get_submodule(module).weight, merged.get_submodule(module).weight
        assert old.dtype == new.dtype
        assert torch.equal(new, (old.float() + up @ down).to(old.dtype))
    export.merge(tmp_path / "a.safetensors", base, tmp_path / "wide", dtype="float32")
    wide = WanTransformer3DModel.from_pretrained(tmp_path / "wide", subfolder="transformer")
    for module, (down, up) in pairs.items():
        if "time_embedder" not in module:  # which diffusers keeps in float32, and this base in bfloat16
            exact = model.get_submodule(module).weight.float() + up @ down
            torch.testing.assert_close(wide.get_submodule(module).weight, exact, rtol=1e-6, atol=1e-6)
    export.merge(tmp_path / "a.safetensors", tiny_folder, tmp_path / "half", dtype="bfloat16")
    half = load_file(tmp_path / "half" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert half["blocks.0.attn1.to_q.weight"].dtype == torch.bfloat16
    assert half["blocks.0.scale_shift_table"].dtype == torch.float32


@pytest.mark.parametrize("kind", ["loha", "lokr", "dora", "lokr dora of columns", "lightx2v"])
def test_every_kind_of_change_is_merged_as_it_runs(kind, layers, tiny_folder, tmp_path):
    rng = torch.Generator().manual_seed(3)
    path = tmp_path / "style.safetensors"
    if kind == "lightx2v":
        from tests.models.lora_files import truth, written

        path = written(tmp_path, kind, *truth(transformer(tiny_folder), outer=True, whole=True))
    else:
        shapes = {
            "loha": {"hada_w1_a": (32, 3), "hada_w1_b": (3, 32), "hada_w2_a": (32, 3), "hada_w2_b": (3, 32)},
            "lokr": {"lokr_w1": (4, 8), "lokr_w2_a": (8, 2), "lokr_w2_b": (2, 4)},
            "dora": {"lora_down.weight": (3, 32), "lora_up.weight": (32, 3), "dora_scale": (32, 1)},
            "lokr dora of columns": {"lokr_w1": (4, 8), "lokr_w2": (8, 4), "dora_scale": (1, 32)},
        }[kind]
        stems = ("lora_unet_blocks_0_self_attn_q", "lora_unet_blocks_1_cross_attn_v")
        keys = [(f"{stem}.{key}", shape) for stem in stems for key, shape in shapes.items()]
        save_file({key: torch.randn(shape, generator=rng) for key, shape in keys}, path)
    merged = export.merge(path, tiny_folder, tmp_path / "merged", scale=0.7)
    assert merged.modules >= 2
    plain, running = run(transformer(tiny_folder)), with_lora(tiny_folder, path, 0.7)
    close(run(transformer(tmp_path / "merged")), running)
    assert (running - plain).abs().max() > 1e-3
    with pytest.raises(InputError, match="cannot lower its rank"):
        export.merge(path, tiny_folder, tmp_path / "again", rank=1)


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(layers, tiny_folder, tmp_path):
    source = comfy(tmp_path / "a.safetensors", factors(layers, BLOCKS))
    good = load_file(source)
    content = source.read_bytes()
    there = sorted(tmp_path.rglob("*"))

    def refused(match, call):
        with pytest.raises(InputError, match=match) as error:
            call()
        assert "\n" not in str(error.value)
        assert sorted(tmp_path.rglob("*")) == there

    (tmp_path / "link.safetensors").symlink_to(source)
    there = sorted(tmp_path.rglob("*"))
    out = tmp_path / "b.safetensors"
    refused("is the LoRA that is read", lambda: export.convert(source, source, "kohya"))
    refused("is the LoRA that is read", lambda: export.convert(source, tmp_path / "link.safetensors", "kohya"))
    refused("must end in", lambda: export.convert(source, tmp_path / "b.pt", "kohya"))
    refused("leaves nothing", lambda: export.convert(source, out, "kohya", rank=0))
    refused("no folder", lambda: export.convert(source, tmp_path / "none" / "b.safetensors", "kohya"))
    refused("not a dialect", lambda: export.convert(source, out, "webui"))
    refused("not a dtype", lambda: export.convert(source, out, "kohya", dtype="int8"))
    refused("does not exist", lambda: export.convert(tmp_path / "x.safetensors", out, "kohya"))
    refused("give tiny-base", lambda: export.merge(source, "tiny", tmp_path / "m"))
    refused("finite number", lambda: export.merge(source, tiny_folder, tmp_path / "m", scale=float("nan")))
    refused("empty folder", lambda: export.merge(source, tiny_folder, tmp_path))
    assert source.read_bytes() == content

    key = "diffusion_model.blocks.0.self_attn.q.lora_A.bias"
    save_file({**good, key: torch.ones(2)}, source)
    refused(f"1 of its 41 keys match no layer .*{key}", lambda: export.convert(source, out, "diffusers"))
    save_file({**good, "diffusion_model.blocks.0.self_attn.norm_q.diff": torch.ones(2)}, source)
    refused("more than factors .*blocks.0.attn1.norm_q.weight", lambda: export.convert(source, out, "diffusers"))
    bad = dict(good)
    bad["diffusion_model.blocks.1.ffn.0.lora_B.weight"] = (
        good["diffusion_model.blocks.1.ffn.0.lora_B.weight"] * math.nan
    )
    save_file(bad, source)
    refused(
        r"blocks\.1\.ffn\.0\.lora_B\.weight has values that are not",
        lambda: export.convert(source, out, "comfy"),
    )
    deeper = {key.replace("blocks.1.", "blocks.7."): value for key, value in good.items()}
    save_file(deeper, source)
    refused("made for a larger model", lambda: export.merge(source, tiny_folder, tmp_path / "m"))
    wider = {**good, "diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.ones(RANK, 48)}
    save_file(wider, source)
    refused("another size", lambda: export.merge(source, tiny_folder, tmp_path / "m"))
