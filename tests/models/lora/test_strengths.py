"""Strengths at run time: several LoRAs stacked, changed and removed, over weights in any form, never added twice."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.hooks import apply_layerwise_casting
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from pusa.errors import InputError
from pusa.models.loading import checkpoints
from pusa.models.lora import runtime
from pusa.models.wan.transformer import VectorWanTransformer3DModel
from tests.models.lora_files import merged, truth, written

WHOLE_CLIP = torch.tensor([[0.0, 500.0, 900.0]])


@pytest.fixture(scope="module")
def base(tiny_folder):
    return WanTransformer3DModel.from_pretrained(tiny_folder, subfolder="transformer").eval()


@pytest.fixture
def model(base):
    return VectorWanTransformer3DModel.upgrade(copy.deepcopy(base))


@pytest.fixture(scope="module")
def files(base, tmp_path_factory):
    """Two LoRAs that change everything there is, and the truth of each: {name: (path, factors, whole)}."""
    made = {}
    for name, seed in (("one", 1), ("two", 5)):
        changes = truth(base, outer=True, whole=True, seed=seed, size=0.1)
        made[name] = (written(tmp_path_factory.mktemp(name), "lightx2v", *changes), *changes)
    return made


def say(model, dtype=torch.float32):
    rng = torch.Generator().manual_seed(2)
    x, text = torch.randn(1, 16, 3, 4, 4, generator=rng), torch.randn(1, 8, 32, generator=rng)
    with torch.no_grad():
        return model(x.to(dtype), WHOLE_CLIP, text.to(dtype), return_dict=False)[0].float()


def sum_of(base, files, **scales):
    model = copy.deepcopy(base)
    for name, scale in scales.items():
        merged(model, *files[name][1:], scale)
    return VectorWanTransformer3DModel.upgrade(model)


def close(a, b):
    torch.testing.assert_close(a, b, atol=5e-6, rtol=2e-5)


def state(model):
    """The base model's own parameters, by their own names."""
    return {k.replace(".base_layer", ""): v.clone() for k, v in model.state_dict().items() if ".lora_" not in k}


def test_strengths_change_without_loading_and_never_add_up(base, model, files):
    plain, before = say(model), state(model)
    for name in files:
        runtime.load(model, files[name][0], 1.0, name)
    close(say(model), say(sum_of(base, files, one=1.0, two=1.0)))
    for one, two in ((1.4, 0.5), (1.4, 0.5), (-0.7, 2.0), (0.0, 1.0), (1.4, 0.0), (1.0, 1.0)):
        runtime.set_scale(model, "one", one)
        runtime.set_scale(model, "two", two)
        close(say(model), say(sum_of(base, files, one=one, two=two)))
    runtime.set_scale(model, "one", 0.0)
    runtime.set_scale(model, "two", 0.0)
    assert torch.equal(say(model), plain)
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["load", "scale", "remove"]),
            st.sampled_from(["one", "two"]),
            st.sampled_from([0.0, 0.5, 1.0, 1.4, -1.0]),
        ),
        max_size=8,
    )
)
def test_any_history_comes_to_the_last_strengths(base, files, steps):
    model, there = VectorWanTransformer3DModel.upgrade(copy.deepcopy(base)), {}
    before = state(model)
    for step, name, scale in steps:
        if step == "load":
            runtime.load(model, files[name][0], scale, name)
            there[name] = scale
        elif step == "scale" and name in there:
            runtime.set_scale(model, name, scale)
            there[name] = scale
        elif step == "remove":
            runtime.remove(model, name)
            there.pop(name, None)
    assert set(runtime.names(model)) == set(there)
    close(say(model), say(sum_of(base, files, **there)))
    for name in tuple(there):
        runtime.remove(model, name)
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())
    assert torch.equal(say(model), say(VectorWanTransformer3DModel.upgrade(copy.deepcopy(base))))


def test_a_wrong_strength_is_seen(base, model, files):
    """The negative control of `close`: 2 % of a strength is far outside the rounding."""
    runtime.load(model, files["one"][0], 1.4, "one")
    with pytest.raises(AssertionError):
        close(say(model), say(sum_of(base, files, one=1.43)))


@pytest.mark.parametrize("kind", ["factors", "whole"])
def test_merged_and_unmerged_agree_in_bfloat16(kind, base, files):
    """To bfloat16's rounding: as far from the exact sum in float32 as the merged bfloat16 weights are, or nearer."""
    path, factors, whole = files["one"]
    exact = say(sum_of(base, files, one=1.4))
    half = copy.deepcopy(base).to(torch.bfloat16)
    together = VectorWanTransformer3DModel.upgrade(merged(copy.deepcopy(half), factors, whole, 1.4))
    model = VectorWanTransformer3DModel.upgrade(half)
    plain = say(model, torch.bfloat16)
    runtime.load(model, path, 1.4, "one")
    if kind == "whole":  # what is no layer's factor is the merged value bit for bit
        values = dict(together.named_parameters())
        assert all(
            torch.equal(model.get_parameter(name), values[name])
            for name in whole
            if "norm" in name or "table" in name or "patch" in name
        )
    apart, merge = say(model, torch.bfloat16), say(together, torch.bfloat16)
    noise = (merge - exact).abs().mean()
    assert (apart - exact).abs().mean() < 1.5 * noise
    assert (apart - plain).abs().mean() > 10 * noise
    runtime.set_scale(model, "one", 0.0)
    assert torch.equal(say(model, torch.bfloat16), plain)


def test_the_embedded_model_with_its_adapter_merged(tmp_path):
    """The same on trained weights: tiny's transformer with its adapter beside its weights and in them."""
    parts = checkpoints.load("tiny")
    (adapter,) = parts.loras
    model = parts.transformer
    factors, _ = runtime.read(adapter.path, runtime.linears(model))
    stock = checkpoints.load("tiny-base").transformer
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(1, model.config.in_channels, 5, 8, 8, generator=rng)
    text = torch.randn(1, 8, model.config.text_dim, generator=rng)
    sigma = torch.tensor([[0.0, 300.0, 600.0, 900.0, 1000.0]])

    def run(network):
        with torch.no_grad():
            return network(x, sigma, text, return_dict=False)[0]

    plain = run(stock)
    assert (run(model) - plain).abs().max() > 1e-3
    for scale in (1.0, 1.4):
        runtime.set_scale(model, adapter.name, scale)
        together = merged(copy.deepcopy(stock), factors, {}, scale)
        torch.testing.assert_close(run(model), run(together), atol=2e-5, rtol=1e-4)
    runtime.set_scale(model, adapter.name, 0.0)
    assert torch.equal(run(model), plain)


# -------------------------------------------------------------------------------------- weights that are not plain


def test_over_weights_stored_in_fp8(base, model, files):
    """Layerwise casting: the sum is that of the fp8 weights as they are computed with, and the LoRA's, unrounded."""
    apply_layerwise_casting(
        model, torch.float8_e4m3fn, torch.float32, ("patch_embedding", "condition_embedder", "norm")
    )
    cast = copy.deepcopy(base)
    for name, value in cast.named_parameters():
        if model.get_parameter(name).dtype == torch.float8_e4m3fn:
            value.data = value.data.to(torch.float8_e4m3fn).float()
    plain = say(model)
    assert torch.equal(plain, say(VectorWanTransformer3DModel.upgrade(copy.deepcopy(cast))))
    runtime.load(model, files["one"][0], 1.4, "one")
    close(say(model), say(sum_of(cast, files, one=1.4)))
    runtime.set_scale(model, "one", 0.25)
    close(say(model), say(sum_of(cast, files, one=0.25)))
    assert model.get_submodule("blocks.0.attn1.to_q").get_base_layer().weight.dtype == torch.float8_e4m3fn
    runtime.remove(model, "one")
    assert torch.equal(say(model), plain)


def test_over_gguf(base, model, files):
    gguf = pytest.importorskip("gguf")
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter, dequantize_gguf_tensor

    kind = gguf.GGMLQuantizationType.Q8_0
    dequantised = copy.deepcopy(base)
    for name, layer in list(model.blocks.named_modules()):
        if type(layer) is not torch.nn.Linear:
            continue
        packed = torch.from_numpy(gguf.quants.quantize(layer.weight.detach().numpy(), kind))
        replacement = GGUFLinear(layer.in_features, layer.out_features, True, compute_dtype=torch.float32)
        replacement.weight, replacement.bias = GGUFParameter(packed, quant_type=kind), layer.bias
        parent, _, last = name.rpartition(".")
        setattr(model.blocks.get_submodule(parent), last, replacement)
        dequantised.blocks.get_submodule(name).weight.data = dequantize_gguf_tensor(replacement.weight).float()
    plain = say(model)
    close(plain, say(VectorWanTransformer3DModel.upgrade(copy.deepcopy(dequantised))))
    loaded = runtime.load(model, files["one"][0], 1.4, "one")
    assert loaded.modules == len(files["one"][1])
    close(say(model), say(sum_of(dequantised, files, one=1.4)))
    runtime.set_scale(model, "one", -0.5)
    close(say(model), say(sum_of(dequantised, files, one=-0.5)))
    runtime.remove(model, "one")
    assert torch.equal(say(model), plain)


def test_over_torchao_int8(base, model, files):
    torchao = pytest.importorskip("torchao.quantization")
    torchao.quantize_(model.blocks, torchao.Int8WeightOnlyConfig())
    dequantised = copy.deepcopy(base)
    for name, layer in model.blocks.named_modules():
        if isinstance(layer, torch.nn.Linear):
            dequantised.blocks.get_submodule(name).weight.data = layer.weight.dequantize()
    plain = say(model)
    runtime.load(model, files["one"][0], 1.4, "one")
    torch.testing.assert_close(say(model), say(sum_of(dequantised, files, one=1.4)), atol=1e-4, rtol=1e-3)
    runtime.remove(model, "one")
    assert torch.equal(say(model), plain)


def test_over_a_model_that_is_offloaded_in_groups(base, model, files):
    """Loaded after offloading was enabled: the new factors join the groups, and whole differences stay."""
    plain = say(model)
    place = torch.device("cpu")
    model.enable_group_offload(place, place, offload_type="block_level", num_blocks_per_group=1)
    runtime.load(model, files["one"][0], 1.4, "one")
    for scale in (1.4, 0.25):
        runtime.set_scale(model, "one", scale)
        close(say(model), say(sum_of(base, files, one=scale)))
    runtime.remove(model, "one")
    assert torch.equal(say(model), plain)


def test_a_parameter_that_cannot_be_added_to_is_named(model, files):
    model.patch_embedding.to(torch.float8_e4m3fn)
    with pytest.raises(InputError, match=r"patch_embedding\.weight is stored as float8_e4m3fn"):
        runtime.load(model, files["one"][0])
    assert runtime.names(model) == ()


# --------------------------------------------------------------------------------------------------- whole weights


def test_whole_differences_of_a_linear_layer_leave_its_weight_alone(base, model, tmp_path):
    rng = torch.Generator().manual_seed(3)
    sizes = {"weight": (64, 32), "bias": (64,)}
    change = {f"blocks.0.ffn.net.0.proj.{k}": torch.randn(size, generator=rng) for k, size in sizes.items()}
    keys = zip(("blocks.0.ffn.0.diff", "blocks.0.ffn.0.diff_b"), change.values(), strict=True)
    save_file({f"diffusion_model.{key}": value for key, value in keys}, tmp_path / "x.safetensors")
    before = state(model)
    loaded = runtime.load(model, tmp_path / "x.safetensors", 0.3)
    assert (loaded.modules, loaded.ranks, loaded.differences) == (0, (), 2)
    close(say(model), say(VectorWanTransformer3DModel.upgrade(merged(copy.deepcopy(base), {}, change, 0.3))))
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())
    with pytest.raises(InputError, match="no LoRA to write"):
        runtime.save(model, tmp_path / "y.safetensors")


def test_what_cannot_be_written_is_not_written_in_part(model, files, tmp_path):
    runtime.load(model, files["one"][0], name="one")
    with pytest.raises(InputError, match="more than factors"):
        runtime.save(model, tmp_path / "y.safetensors")


def test_a_copied_model_has_strengths_of_its_own(base, model, files):
    runtime.load(model, files["one"][0], 1.0, "one")
    other = copy.deepcopy(model)
    runtime.set_scale(other, "one", 0.25)
    close(say(model), say(sum_of(base, files, one=1.0)))
    close(say(other), say(sum_of(base, files, one=0.25)))
    runtime.remove(other, "one")
    close(say(model), say(sum_of(base, files, one=1.0)))


def test_a_model_that_moves_to_another_type_takes_its_lora_along(base, model, files):
    runtime.load(model, files["one"][0], 1.0, "one")
    model.to(torch.float64)
    exact = sum_of(copy.deepcopy(base).double(), files, one=0.5)
    runtime.set_scale(model, "one", 0.5)
    torch.testing.assert_close(say(model, torch.float64), say(exact, torch.float64), atol=5e-6, rtol=2e-5)


def test_unknown_names_and_strengths(model, files):
    with pytest.raises(InputError, match="no LoRA 'one': it has none"):
        runtime.set_scale(model, "one", 1.0)
    runtime.load(model, files["one"][0], name="one")
    with pytest.raises(InputError, match="no LoRA 'two': it has one"):
        runtime.set_scale(model, "two", 1.0)
    with pytest.raises(InputError, match="finite"):
        runtime.set_scale(model, "one", float("inf"))


def test_stacking_names_and_twins(model, files, tmp_path):
    (tmp_path / "a").mkdir()
    paths = [tmp_path / "style.safetensors", tmp_path / "a" / "style.safetensors", tmp_path / "copy.safetensors"]
    for path, name in zip(paths, ("one", "two", "one"), strict=True):
        path.write_bytes(files[name][0].read_bytes())
    one = runtime.load(model, paths[0], 1.0, runtime.choose_name((), paths[0]))
    two = runtime.load(model, paths[1], 0.5, runtime.choose_name([one], paths[1]))
    assert [one.name, two.name] == ["style", "style_2"]
    assert runtime.choose_name([one, two], paths[0]) == "style"
    one = runtime.load(model, paths[0], 0.25, "style")
    for name in (None, "other"):
        with pytest.raises(InputError, match=r"copy\.safetensors is there already, as 'style'"):
            runtime.choose_name([one, two], paths[2], name)
    assert runtime.names(model) == ("style_2", "style")
