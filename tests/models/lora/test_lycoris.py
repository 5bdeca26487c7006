"""LoHa, LoKr and DoRA against the package of LyCORIS: files of its modules change each layer as the modules do."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.hooks import apply_layerwise_casting
from safetensors.torch import save_file
from torch import nn

from pusa.errors import InputError
from pusa.models.lora import dialects, runtime
from pusa.models.wan.transformer import VectorWanTransformer3DModel
from tests.models.lora_files import LINEARS, every_block

pytest.importorskip("lycoris")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from lycoris.modules.full import FullModule
    from lycoris.modules.locon import LoConModule
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule
    from lycoris.modules.norms import NormModule

OWN = every_block(LINEARS) | {"patch_embedding": "patch_embedding"}
LINEAR = ("blocks.0.attn1.to_q", "blocks.1.ffn.net.0.proj", "blocks.0.ffn.net.2")
DORA = {"weight_decompose": True}
IN = {"weight_decompose": True, "wd_on_out": False}
KINDS = {
    "lora": (LoConModule, {}),
    "lora rank-stabilised": (LoConModule, {"rs_lora": True}),
    "loha": (LohaModule, {}),
    "loha rank-stabilised": (LohaModule, {"rs_lora": True}),
    "lokr": (LokrModule, {"lora_dim": 2}),
    "lokr both": (LokrModule, {"lora_dim": 1, "decompose_both": True}),
    "lokr whole": (LokrModule, {"full_matrix": True}),
    "lokr factor": (LokrModule, {"lora_dim": 2, "factor": 4}),
    "dora": (LoConModule, DORA),
    "dora of columns": (LoConModule, IN),
    "loha dora": (LohaModule, DORA),
    "loha dora of columns": (LohaModule, IN),
    "lokr dora": (LokrModule, {"lora_dim": 2, **DORA}),
    "lokr whole dora of columns": (LokrModule, {"full_matrix": True, **IN}),
}
CONVOLUTIONS = {
    "lora": (LoConModule, {}),
    "lora tucker": (LoConModule, {"use_tucker": True}),
    "loha": (LohaModule, {}),
    "loha tucker": (LohaModule, {"use_tucker": True}),
    "lokr": (LokrModule, {"lora_dim": 2}),
    "lokr tucker": (LokrModule, {"lora_dim": 2, "use_tucker": True}),
    "lokr whole": (LokrModule, {"full_matrix": True}),
    "dora": (LoConModule, DORA),
    "loha dora of columns": (LohaModule, IN),
}


@pytest.fixture(scope="module")
def stock(tiny_folder):
    return WanTransformer3DModel.from_pretrained(tiny_folder, subfolder="transformer").eval()


def module_of(kind, layer, seed=0, **options):
    """A module of LyCORIS on a copy of a layer, with random values, as after a training."""
    torch.manual_seed(seed)
    defaults = {"multiplier": 1.0, "lora_dim": 4, "alpha": 3.0}
    made = kind("x", copy.deepcopy(layer).requires_grad_(False), **{**defaults, **options})
    with torch.no_grad():
        for name, value in made.named_parameters():
            noise = torch.randn(value.shape)
            value.copy_(value * (1 + 0.3 * noise) if "dora" in name else 0.2 * noise)
    return made.eval()


def write(path, modules, prefix="lora_unet_"):
    tensors = {}
    for name, made in modules.items():
        stem = OWN[name] if prefix == "diffusion_model." else OWN[name].replace(".", "_")
        for key, value in made.state_dict().items():
            tensors[f"{prefix}{stem}.{key}"] = value.detach().clone().contiguous()
    save_file(tensors, path)
    return path


@torch.no_grad()
def effect(layer, x):
    return layer(x)


def upgraded(stock):
    return VectorWanTransformer3DModel.upgrade(copy.deepcopy(stock)).eval()


@torch.no_grad()
def close(ours, theirs, tolerance=5e-6):
    assert (ours - theirs).abs().max() <= tolerance * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [*((kind, "lora_unet_") for kind in KINDS), ("lokr", "lycoris_"), ("loha dora", "diffusion_model.")],
)
def test_linear_layers_change_as_with_lycoris(kind, prefix, stock, tmp_path):
    cls, options = KINDS[kind]
    modules = {name: module_of(cls, stock.get_submodule(name), seed, **options) for seed, name in enumerate(LINEAR)}
    assert all("columns" not in kind or made.dora_scale.shape[0] == 1 for made in modules.values())
    path = write(tmp_path / "style.safetensors", modules, prefix)
    model = upgraded(stock)
    loaded = runtime.load(model, path)
    assert loaded.modules == len(LINEAR)
    for scale in (1.0, 0.5, -0.7, 1.4):
        runtime.set_scale(model, "style", scale)
        for name, made in modules.items():
            base, x = stock.get_submodule(name), torch.randn(3, stock.get_submodule(name).in_features)
            trained = effect(made, x)
            assert (trained - effect(base, x)).abs().max() > 0.01
            close(effect(model.get_submodule(name), x), effect(base, x) + scale * (trained - effect(base, x)))
    runtime.set_scale(model, "style", 0.0)
    assert all(torch.equal(effect(model.get_submodule(name), x), effect(stock.get_submodule(name), x))
               for name in LINEAR for x in [torch.randn(2, stock.get_submodule(name).in_features)])  # fmt: skip


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_the_patch_embedding_changes_as_with_lycoris(kind, stock, tmp_path):
    cls, options = CONVOLUTIONS[kind]
    made = module_of(cls, stock.patch_embedding, **options)
    path = write(tmp_path / "style.safetensors", {"patch_embedding": made})
    model, x = upgraded(stock), torch.randn(1, 16, 2, 4, 4)
    runtime.load(model, path, 0.5)
    base = effect(stock.patch_embedding, x)
    close(effect(model.patch_embedding, x), base + 0.5 * (effect(made, x) - base))
    runtime.remove(model, "style")
    assert torch.equal(model.patch_embedding.weight, stock.patch_embedding.weight)
    dialects.read(path)  # sizes of the model unknown


def test_whole_weights_and_norms_of_lycoris(stock, tmp_path):
    name, norm = "blocks.0.attn1.to_q", "blocks.0.norm2"
    whole = module_of(FullModule, stock.get_submodule(name))
    weight, bias = torch.randn(32, 32), torch.randn(32)
    norms = module_of(NormModule, stock.get_submodule(norm))
    tensors = {"lora_unet_blocks_0_self_attn_q.diff": weight, "lora_unet_blocks_0_self_attn_q.diff_b": bias}
    assert {"diff", "diff_b"} >= {key for key in whole.state_dict() if key.startswith("diff")}
    tensors |= {f"lora_unet_blocks_0_norm3.{key}": value.clone() for key, value in norms.state_dict().items()}
    assert {key.rpartition(".")[2] for key in tensors} == {"diff", "diff_b", "w_norm", "b_norm"}
    save_file(tensors, tmp_path / "style.safetensors")
    model = upgraded(stock)
    runtime.load(model, tmp_path / "style.safetensors", 2.0)
    x, base = torch.randn(3, 32), stock.get_submodule(name)
    close(effect(model.get_submodule(name), x), effect(base, x) + 2 * (x @ weight.T + bias))
    close(model.get_submodule(norm).weight, stock.get_submodule(norm).weight + 2 * norms.w_norm)
    close(model.get_submodule(norm).bias, stock.get_submodule(norm).bias + 2 * norms.b_norm)


@pytest.mark.parametrize("kind", ["dora", "dora of columns", "loha", "lokr dora"])
@pytest.mark.parametrize("storage", ["fp8", "gguf"])
def test_over_weights_in_fp8_and_gguf(kind, storage, stock, tmp_path):
    """The truth is LyCORIS's on the weights that the layer computes with."""
    name = LINEAR[1]
    model, layer = upgraded(stock), copy.deepcopy(stock.get_submodule(name))
    if storage == "fp8":
        apply_layerwise_casting(model, torch.float8_e4m3fn, torch.float32, ("patch_embedding", "condition", "norm"))
        for value in layer.parameters():
            value.data = value.data.to(torch.float8_e4m3fn).float()
    else:
        gguf = pytest.importorskip("gguf")
        from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter, dequantize_gguf_tensor

        q8 = gguf.GGMLQuantizationType.Q8_0
        packed = torch.from_numpy(gguf.quants.quantize(layer.weight.detach().numpy(), q8))
        quantised = GGUFLinear(layer.in_features, layer.out_features, True, compute_dtype=torch.float32)
        quantised.weight, quantised.bias = GGUFParameter(packed, quant_type=q8), layer.bias
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, quantised)
        layer.weight.data = dequantize_gguf_tensor(quantised.weight).float()
    cls, options = KINDS[kind]
    made = module_of(cls, layer, **options)
    runtime.load(model, write(tmp_path / "style.safetensors", {name: made}), 0.5)
    x = torch.randn(3, layer.in_features)
    base = effect(layer, x)
    close(effect(model.get_submodule(name), x), base + 0.5 * (effect(made, x) - base))


def test_together_with_a_lora_on_the_same_layer(stock, tmp_path):
    """Every change is to the base: the sum of both, in any order, and one can go."""
    name = LINEAR[0]
    made = {kind: module_of(KINDS[kind][0], stock.get_submodule(name), seed, **KINDS[kind][1])
            for seed, kind in enumerate(("dora", "lokr", "lora"))}  # fmt: skip
    model, x = upgraded(stock), torch.randn(3, 32)
    for kind, module in made.items():
        runtime.load(model, write(tmp_path / f"{kind}.safetensors", {name: module}), 0.5)
    base = effect(stock.get_submodule(name), x)
    steps = {kind: effect(module, x) - base for kind, module in made.items()}
    close(effect(model.get_submodule(name), x), base + 0.5 * sum(steps.values()))
    runtime.remove(model, "dora")
    close(effect(model.get_submodule(name), x), base + 0.5 * (steps["lokr"] + steps["lora"]))


def test_the_model_with_such_an_adapter_in_bfloat16(stock, tmp_path):
    """As near to the exact weight as a merged bfloat16 weight is."""
    name = LINEAR[1]
    half = copy.deepcopy(stock).to(torch.bfloat16)
    exact = copy.deepcopy(half).float().get_submodule(name)
    for kind in ("loha", "lokr dora", "dora of columns"):
        made = module_of(KINDS[kind][0], exact, **KINDS[kind][1])
        model = VectorWanTransformer3DModel.upgrade(copy.deepcopy(half))
        runtime.load(model, write(tmp_path / "style.safetensors", {name: made}))
        x = torch.randn(64, exact.in_features).bfloat16()
        truth = effect(made, x.float())
        rounded = nn.Linear(exact.in_features, exact.out_features).to(torch.bfloat16)
        change = effect(made, torch.eye(exact.in_features)) - made.org_module[0].bias
        rounded.weight.data, rounded.bias.data = change.T.bfloat16(), exact.bias.bfloat16()
        noise = (effect(rounded, x).float() - truth).abs().mean()
        assert (effect(model.get_submodule(name), x).float() - truth).abs().mean() < 2.5 * noise


def test_incomplete_and_wrong_files_are_named(stock, tmp_path):
    path, name = tmp_path / "x.safetensors", LINEAR[0]
    model, stem = upgraded(stock), "lora_unet_blocks_0_self_attn_q."
    whole = {kind: {stem + key: value.detach().clone() for key, value in
                    module_of(KINDS[kind][0], stock.get_submodule(name), **KINDS[kind][1]).state_dict().items()}
             for kind in ("loha", "lokr both", "dora", "lokr whole")}  # fmt: skip

    def refused(tensors, says):
        save_file({key: value.contiguous() for key, value in tensors.items()}, path)
        with pytest.raises(InputError, match=says) as error:
            runtime.load(model, path)
        assert "\n" not in str(error.value)
        assert runtime.names(model) == ()

    for kind, tensors in whole.items():
        for key in tensors:
            if not key.endswith((".alpha", "dora_scale")):
                refused({k: v for k, v in tensors.items() if k != key}, "is incomplete: blocks.0.attn1.to_q has only")
        if kind == "loha":
            odd = {k: v[:3] if k.endswith("w1_b") else v for k, v in tensors.items()}
            refused(odd, "the factors of blocks.0.attn1.to_q do not multiply")
            wide = {k: v.repeat(1, 2) if k.endswith("_b") else v for k, v in tensors.items()}
            refused(wide, "made for a model of another size: blocks.0.attn1.to_q maps 64 to 32 features")
    refused({**whole["dora"], stem + "dora_scale": torch.ones(7, 1)}, "the magnitude of blocks.0.attn1.to_q is 7x1")
    refused({stem + "dora_scale": torch.ones(32, 1)}, "has only .*dora_scale")
    other = {k.replace("blocks_0_self_attn_q", "double_blocks_0_img_attn_qkv"): v for k, v in whole["loha"].items()}
    refused(other, "Nothing in the LoRA .* fits the model")
    image = {k.replace("self_attn_q", "cross_attn_k_img"): v for k, v in whole["loha"].items()}
    refused(image, "is for an image-to-video model")
    both = whole["loha"] | whole["dora"]
    refused({k: v for k, v in both.items() if "dora_scale" not in k}, "names blocks.0.attn1.to_q twice")


def test_what_has_no_two_factors_is_not_written_as_a_lora(stock, tmp_path):
    for kind, says in (("loha", "is a LoHa"), ("lokr dora", "is a LoKr and DoRA"), ("dora", "is a LoRA and DoRA")):
        made = module_of(KINDS[kind][0], stock.get_submodule(LINEAR[0]), **KINDS[kind][1])
        path = write(tmp_path / "x.safetensors", {LINEAR[0]: made})
        with pytest.raises(InputError, match=says):
            runtime.read(path)
