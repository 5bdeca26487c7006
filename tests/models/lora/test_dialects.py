"""Every dialect against the exact change: files are written from known factors, loaded, and compared with the sum.

What is compared is the change of each weight (what a layer says with the LoRA, less what it says without, to a unit
matrix) and of the model's output.
"""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file

from pusa.errors import InputError
from pusa.models.lora import dialects, header, runtime
from pusa.models.wan import weight_names
from pusa.models.wan.transformer import VectorWanTransformer3DModel
from tests.models.lora_files import BLOCKS, DIALECTS, LINEARS, PLAIN, RANK, WHOLE, every_block, merged, truth, written

KEPT = {"kijai": (torch.bfloat16, torch.bfloat16), "fp8": (torch.float8_e4m3fn, torch.bfloat16)}
"""files that keep fewer digits: the types of A and B, to which the truth is rounded beforehand"""


@pytest.fixture
def stock(tiny_folder):
    return WanTransformer3DModel.from_pretrained(tiny_folder, subfolder="transformer")


@pytest.fixture
def model(tiny_folder):
    stock = WanTransformer3DModel.from_pretrained(tiny_folder, subfolder="transformer")
    return VectorWanTransformer3DModel.upgrade(stock).eval()


def say(model):
    rng = torch.Generator().manual_seed(2)
    x, text = torch.randn(1, 16, 3, 4, 4, generator=rng), torch.randn(1, 8, 32, generator=rng)
    model = VectorWanTransformer3DModel.upgrade(model).eval()
    with torch.no_grad():
        return model(x, torch.tensor([[0.0, 500.0, 900.0]]), text, return_dict=False)[0]


@torch.no_grad()
def weight(model, module):
    """The weight and bias that a linear layer acts as, whatever is added to what it says."""
    layer = model.get_submodule(module)
    zero = layer(torch.zeros(1, layer.in_features))
    return (layer(torch.eye(layer.in_features)) - zero).T, zero[0]


def parts(dialect, model, seed=1):
    distilled = dialect.startswith("lightx2v")
    factors, whole = truth(model, outer=distilled, whole=distilled, seed=seed)
    kinds = KEPT.get(dialect, (torch.float32, torch.float32))
    rounded = {
        name: tuple(value.to(kind).float() for value, kind in zip(pair, kinds, strict=True))
        for name, pair in factors.items()
    }
    return rounded, whole


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_change_of_every_weight_is_the_exact_one(dialect, model, stock, tmp_path):
    factors, whole = parts(dialect, stock)
    path = written(tmp_path, dialect, factors, whole)
    before = {name: (*weight(model, name),) for name in factors}
    own = {name: value.clone() for name, value in stock.named_parameters()}
    loaded = runtime.load(model, path, 1.4)
    assert (loaded.name, loaded.modules, loaded.ranks) == ("style", len(factors), (RANK,))
    assert loaded.differences == len(whole)
    for name, (a, b) in factors.items():
        after, bias = weight(model, name)
        exact = 1.4 * (b.double() @ a.double())
        far = (after.double() - before[name][0] - exact).abs().max() / exact.abs().max()
        assert far < 2e-6, name
        exact_bias = before[name][1].double() + 1.4 * whole.get(f"{name}.bias", torch.zeros(1)).double()
        torch.testing.assert_close(bias.double(), exact_bias, atol=1e-6, rtol=1e-6)
    for name, difference in whole.items():
        value = model.get_parameter(name) if name.rpartition(".")[0] not in factors else None
        if value is not None:
            assert torch.equal(value, own[name] + 1.4 * difference), name
    torch.testing.assert_close(say(model), say(merged(stock, factors, whole, 1.4)), atol=5e-6, rtol=2e-5)


@pytest.mark.parametrize("dialect", ["kohya", "videox-fun", "peft", "peft rank-stabilised", "diffusers with metadata"])
def test_another_alpha_is_another_change(dialect, model, stock, tmp_path):
    """The negative control: this comparison sees an alpha that is twice the right one."""
    factors, whole = parts(dialect, stock)
    right = {"kohya": 1.0, "videox-fun": 1.0, "peft rank-stabilised": 6.0}.get(dialect, 2.0 * RANK)
    before, _ = weight(model, "blocks.0.attn1.to_q")
    runtime.load(model, written(tmp_path, dialect, factors, whole, alpha=2 * right))
    after, _ = weight(model, "blocks.0.attn1.to_q")
    a, b = factors["blocks.0.attn1.to_q"]
    by = 2 * right / RANK if dialect in ("kohya", "videox-fun") else 2.0
    torch.testing.assert_close(after - before, by * b @ a, atol=2e-6, rtol=1e-5)
    assert (after - before - b @ a).abs().max() > 0.01


@pytest.mark.parametrize("dialect", DIALECTS)
def test_no_key_can_be_left_out_or_added_unseen(dialect, model, stock, tmp_path):
    """Without any one of its tensors a file is refused, or changes less than it did; with one more it is refused."""
    factors, whole = parts(dialect, stock)
    path = header.file_of(written(tmp_path, dialect, factors, whole))
    content = torch.load(path) if path.suffix == ".pt" else load_file(path)
    full = dialects.read(path, weight_names.parameter_shapes(stock))
    keys = list(content)

    def put(tensors):
        file = path.with_name("adapter_model.safetensors" if dialect.startswith("peft") else "odd.safetensors")
        save_file(tensors, file)
        return file

    for key in (keys[0], keys[-1], keys[len(keys) // 2]):
        rest = {k: v for k, v in content.items() if k != key}
        if key.endswith(".alpha") or ".diff" in key:
            less = dialects.read(put(rest), weight_names.parameter_shapes(stock))
            assert (
                len(less.differences) < len(full.differences)
                or any(not torch.equal(less.factors[m][1], full.factors[m][1]) for m in full.factors)
                or dialect == "fp8"
            )
        else:
            with pytest.raises(InputError, match="incomplete"):
                dialects.read(put(rest), weight_names.parameter_shapes(stock))
    for extra in (
        "blocks.0.self_attn.q.lora_C.weight",
        "blocks.0.self_attn.norm_q.lora_A.weight",
        "vace_blocks.0.diff",
    ):
        with pytest.raises(InputError, match=re.escape(extra)):
            dialects.read(put({**content, extra: torch.ones(2, 2)}), weight_names.parameter_shapes(stock))


@pytest.mark.parametrize("dialect", DIALECTS)
def test_names_are_known_without_a_model(dialect, stock, tmp_path):
    factors, whole = parts(dialect, stock)
    changes = dialects.read(written(tmp_path, dialect, factors, whole))
    assert changes.factors.keys() == factors.keys()
    assert changes.differences.keys() == whole.keys()


@pytest.mark.parametrize("dialect", PLAIN)
def test_factors_alone_can_be_read_for_another_file(dialect, stock, tmp_path):
    factors, whole = parts(dialect, stock)
    path = written(tmp_path, dialect, factors, whole)
    for layers in (None, runtime.linears(stock)):
        read, _ = runtime.read(path, layers)
        assert read.keys() == factors.keys()


def test_more_than_factors_is_not_half_read(stock, tmp_path):
    path = written(tmp_path, "lightx2v", *parts("lightx2v", stock))
    for layers in (None, runtime.linears(stock)):
        with pytest.raises(
            InputError, match=rf"changes {len(every_block(WHOLE))} parameters as a whole \(such as blocks"
        ):
            runtime.read(path, layers)


@pytest.mark.parametrize(
    ("down", "up"),
    [(".lora_A", ".lora_B"), ("_lora.down.weight", "_lora.up.weight"), (".lora.down.weight", ".lora.up.weight"),
     (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"), (".lora_A.default", ".lora_B.default")],
)  # fmt: skip
@pytest.mark.parametrize("prefix", ["diffusion_model.", "transformer."])
def test_older_spellings_of_the_factors(down, up, prefix, model, stock, tmp_path):
    factors, _ = truth(stock)
    own = every_block(LINEARS)
    tensors = {}
    for name, (a, b) in factors.items():
        stem = prefix + (own[name] if prefix == "diffusion_model." else name)
        tensors |= {stem + down: a, stem + up: b}
    save_file(tensors, tmp_path / "x.safetensors")
    read = dialects.read(tmp_path / "x.safetensors", weight_names.parameter_shapes(stock))
    assert read.factors.keys() == factors.keys()
    assert all(torch.equal(x, y) for name in factors for x, y in zip(read.factors[name], factors[name], strict=True))


def test_attention_processors_of_old_diffusers(stock, tmp_path):
    a, b = torch.randn(4, 32), torch.randn(32, 4)
    stem = "blocks.0.attn1.processor.to_out_lora"
    save_file({f"{stem}.down.weight": a, f"{stem}.up.weight": b}, tmp_path / "x.safetensors")
    assert torch.equal(dialects.read(tmp_path / "x.safetensors").factors["blocks.0.attn1.to_out.0"][1], b)


@pytest.mark.parametrize(
    "change",
    [
        lambda key: f"base_model.model._orig_mod.{key}",
        lambda key: f"module.{key}",
        lambda key: f"dit.{key}",
        lambda key: f"model.{key}",
        lambda key: f"generator_ema.model._fsdp_wrapped_module.{key}",
        lambda key: key.replace("blocks.0.", "blocks.0._orig_mod.").replace("attn.", "attn.module."),
        lambda key: "lora_unet__orig_mod_" + re.sub(r"\.(?=.*\.lora_)", "_", key),
    ],
)  # fmt: skip
def test_names_of_wrappers_and_trainers(change, stock, good, tmp_path):
    plain = {key.removeprefix("diffusion_model."): value for key, value in good.items()}
    save_file({change(key): value for key, value in plain.items()}, tmp_path / "x.safetensors")
    read = dialects.read(tmp_path / "x.safetensors", weight_names.parameter_shapes(stock))
    assert read.factors.keys() == truth(stock)[0].keys()


def test_a_file_for_two_experts(model, stock, good, tmp_path):
    plain = {key.removeprefix("diffusion_model."): value for key, value in good.items()}
    low = {key: 2 * value for key, value in plain.items()}
    ways = {
        "ai-toolkit": ("diffusion_model.transformer_1.", "diffusion_model.transformer_2."),
        "diffusers": ("transformer.", "transformer_2."),
        "diffsynth": ("pipe.dit.", "pipe.dit2."),
        "folders": ("high_noise_model.", "low_noise_model."),
    }
    for name, (first, second) in ways.items():
        path = tmp_path / f"{name}.safetensors"
        both = {first + key: value for key, value in plain.items()} | {second + key: v for key, v in low.items()}
        save_file(both, path)
        refused(model, path, "is for both experts of Wan2.2, with changes for each")
        assert header.is_for_both(path)
        for expert, expected in (("high", plain), ("low", low)):
            factors = dialects.read(path, weight_names.parameter_shapes(stock), expert).factors
            assert torch.equal(factors["blocks.0.attn1.to_q"][0], expected["blocks.0.self_attn.q.lora_A.weight"]), name
    save_file({f"transformer_2.{key}": value for key, value in low.items()}, tmp_path / "one.safetensors")
    assert header.expert_for(tmp_path / "one.safetensors") == "low"
    assert runtime.load(model, tmp_path / "one.safetensors").modules == 20


def test_flattened_factors_and_differences_of_the_patch_embedding(model, stock, tmp_path):
    down, up = torch.randn(3, 16, 1, 2, 2), torch.randn(32, 3)
    stem = "diffusion_model.patch_embedding"
    added = torch.einsum("or,rikhw->oikhw", up, down)
    ways = [
        {f"{stem}.lora_A.weight": down.flatten(1), f"{stem}.lora_B.weight": up},
        {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up},
        {f"{stem}.lora_A.weight": down.flatten(1), f"{stem}.lora_B.weight": up[:, :, None, None, None].contiguous()},
        {f"{stem}.diff": added.flatten(1)},
    ]
    for tensors in ways:
        save_file(tensors, tmp_path / "x.safetensors")
        changes = dialects.read(tmp_path / "x.safetensors", weight_names.parameter_shapes(stock))
        torch.testing.assert_close(changes.differences["patch_embedding.weight"], added, atol=2e-6, rtol=1e-5)
        dialects.read(tmp_path / "x.safetensors")  # sizes of the model unknown
    wrong = {f"{stem}.lora_A.weight": torch.zeros(3, 65), f"{stem}.lora_B.weight": up}
    save_file(wrong, tmp_path / "x.safetensors")
    refused(model, tmp_path / "x.safetensors", "patch_embedding is 32x65 in the LoRA and 32x16x1x2x2 in the model")


def test_the_bias_of_a_peft_lora_has_its_scaling(model, stock, tmp_path):
    a, b = truth(stock)[0]["blocks.0.ffn.net.2"]
    bias = torch.randn(len(b))
    stem = "transformer.blocks.0.ffn.net.2"
    tensors = {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b, f"{stem}.lora_B.bias": bias}
    config = json.dumps({"transformer.r": RANK, "transformer.lora_alpha": 2.0, "transformer.lora_bias": True})
    save_file(tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": config})
    before = weight(model, "blocks.0.ffn.net.2")
    runtime.load(model, tmp_path / "x.safetensors", 3.0)
    after = weight(model, "blocks.0.ffn.net.2")
    torch.testing.assert_close(after[0] - before[0], 3.0 * 0.5 * b @ a, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(after[1] - before[1], 3.0 * 0.5 * bias, atol=2e-6, rtol=1e-5)


def test_factors_of_the_patch_embedding_are_a_convolution(model, stock, tmp_path):
    down, up = torch.randn(3, 16, 1, 2, 2), torch.randn(32, 3, 1, 1, 1)
    tensors = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(1.5)}
    save_file({f"diffusion_model.patch_embedding.{k}": v for k, v in tensors.items()}, tmp_path / "x.safetensors")
    runtime.load(model, tmp_path / "x.safetensors", 2.0)
    with torch.no_grad():
        layer, x = stock.patch_embedding, torch.randn(1, 16, 2, 4, 4)
        added = torch.nn.functional.conv3d(torch.nn.functional.conv3d(x, down, stride=(1, 2, 2)), up)
        torch.testing.assert_close(model.patch_embedding(x), layer(x) + added, atol=2e-5, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------- bad input


def refused(model, path, match):
    before = say(model)
    with pytest.raises(InputError, match=match) as error:
        runtime.load(model, path)
    assert str(error.value).endswith(".")
    assert runtime.names(model) == ()
    assert torch.equal(say(model), before)


@pytest.fixture
def good(stock, tmp_path):
    """A right file's tensors, of ComfyUI's dialect."""
    return load_file(written(tmp_path, "comfy", *truth(stock)))


def test_a_lora_for_another_width_is_named_with_its_base(model, tmp_path):
    size = {"lora_A": (RANK, 5120), "lora_B": (5120, RANK)}
    tensors = {
        f"diffusion_model.blocks.{i}.self_attn.q.{side}.weight": torch.zeros(shape)
        for i in range(40)
        for side, shape in size.items()
    }
    save_file(tensors, tmp_path / "x.safetensors")
    refused(
        model, tmp_path / "x.safetensors", r"another size: .* maps 5120 to 5120 features in the LoRA \(as in Wan 14B\)"
    )
    save_file({"diffusion_model.patch_embedding.diff": torch.zeros(32, 36, 1, 2, 2)}, tmp_path / "x.safetensors")
    refused(
        model,
        tmp_path / "x.safetensors",
        "patch_embedding.weight is 32x36x1x2x2 in the LoRA and 32x16x1x2x2 in the model",
    )
    save_file({"diffusion_model.blocks.0.diff_m": torch.zeros(1, 6, 64)}, tmp_path / "x.safetensors")
    refused(
        model, tmp_path / "x.safetensors", "blocks.0.scale_shift_table is 1x6x64 in the LoRA and 1x6x32 in the model"
    )


def test_a_lora_with_more_blocks(model, good, tmp_path):
    more = {key.replace(f"blocks.{BLOCKS - 1}.", "blocks.39."): value.clone() for key, value in good.items()}
    save_file({**good, **more}, tmp_path / "x.safetensors")
    refused(model, tmp_path / "x.safetensors", rf"larger model: 20 of its 60 keys .* up to 39 .* has {BLOCKS}, 0 to 1")


@pytest.mark.parametrize(
    "key",
    [
        "img_emb.proj.1.diff_b",
        "blocks.0.cross_attn.k_img.lora_down.weight",
        "blocks.1.cross_attn.v_img.diff_b",
        "blocks.0.cross_attn.norm_k_img.diff",
    ],
)
def test_a_lora_for_image_to_video(key, model, good, tmp_path):
    save_file({**good, f"diffusion_model.{key}": torch.zeros(4, 32)}, tmp_path / "x.safetensors")
    refused(
        model, tmp_path / "x.safetensors", f"image-to-video model: 1 of its 41 keys .*{key}.* text-to-video version"
    )


@pytest.mark.parametrize(
    ("key", "kind"),
    [("oft_blocks", "OFT or BOFT"), ("a1.weight", "GLoRA"), ("on_input", "IA3"), ("dyn_up", "DyLoRA"),
     ("reshape_weight", "changes the size of a layer"), ("set_weight", "replaced weights"), ("lora_E", "AdaLoRA")],
)  # fmt: skip
def test_other_kinds_of_adapter_are_called_by_their_name(key, kind, model, good, tmp_path):
    for rest in (good, {}):
        save_file({**rest, f"lora_unet_blocks_0_self_attn_q.{key}": torch.zeros(4)}, tmp_path / "x.safetensors")
        refused(model, tmp_path / "x.safetensors", f"is a .*{kind}.*{key}.*is not supported")


def test_damaged_files(model, good, tmp_path):
    path = tmp_path / "x.safetensors"
    save_file(good, path)
    whole = path.read_bytes()
    for length in (4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(model, path, "x.safetensors is damaged or not a LoRA .*copy it again")
    path.write_bytes(b"")
    refused(model, path, "empty")
    save_file({}, path)
    refused(model, path, "no tensors")
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    refused(model, path, "is a Git LFS pointer")
    save_file({"blocks.0.self_attn.q.weight": torch.zeros(4, 4)}, path)
    refused(model, path, "is not a LoRA: its 1 keys .* are those of a network; give a network with --model")
    pickled = tmp_path / "x.pt"
    torch.save(good, pickled)
    pickled.write_bytes(pickled.read_bytes()[:1000])
    refused(model, pickled, "is not a LoRA")


class Code:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_with_code_is_not_run(model, good, tmp_path):
    ran = tmp_path / "ran"
    torch.save({**good, "x": Code(ran)}, tmp_path / "x.pt")
    refused(model, tmp_path / "x.pt", "could run code, so it is not opened: get it as a .safetensors")
    (tmp_path / "y.bin").write_bytes(pickle.dumps(Code(ran)))
    refused(model, tmp_path / "y.bin", "could run code")
    assert not ran.exists()
    torch.save([1, 2], tmp_path / "z.ckpt")
    refused(model, tmp_path / "z.ckpt", "is not a dictionary of tensors")
    torch.save({"generator_lora": good, "step": 3}, tmp_path / "z.ckpt")
    assert runtime.load(model, tmp_path / "z.ckpt").modules == len(good) // 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite(value, model, stock, good, tmp_path):
    for name, tensors in (("comfy", good), ("alpha", {"blocks.0.self_attn.q.alpha": torch.tensor(value)})):
        key = next(iter(tensors))
        tensors = {k: v.clone() for k, v in tensors.items()}
        tensors[key].view(-1)[-1] = value
        save_file({**good, **tensors}, tmp_path / f"{name}.safetensors")
        refused(model, tmp_path / f"{name}.safetensors", f"{re.escape(key)} has values that are not finite")


def test_types_may_be_mixed_but_must_be_numbers_of_a_lora(model, good, tmp_path):
    kinds = (torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2)
    mixed = {key: value.to(kinds[i % len(kinds)]) for i, (key, value) in enumerate(good.items())}
    save_file(mixed, tmp_path / "x.safetensors")
    assert runtime.load(model, tmp_path / "x.safetensors").modules == len(good) // 2
    for key, value in mixed.items():
        module = key.removeprefix("diffusion_model.").removesuffix(".weight")
        if "blocks.0.self_attn.q" in module:
            side = module.rpartition(".")[2]
            now = getattr(model.get_submodule("blocks.0.attn1.to_q"), side)["x"].weight
            assert torch.equal(now, value.float())
    runtime.remove(model, "x")
    key = next(iter(good))
    save_file({**good, key: torch.zeros(good[key].shape, dtype=torch.int8)}, tmp_path / "x.safetensors")
    refused(model, tmp_path / "x.safetensors", "as torch.int8")


def test_the_same_layer_twice(model, good, tmp_path):
    key = next(iter(good))
    for twin in (
        key.replace("lora_A", "lora_down"),
        key.removeprefix("diffusion_model."),
        key.replace(".weight", ".b.weight"),
    ):
        save_file({**good, twin: good[key].clone()}, tmp_path / "x.safetensors")
        refused(model, tmp_path / "x.safetensors", r"names blocks.0.attn\d.to_. twice \(.*lora_")


def test_peft_folders(model, good, stock, tmp_path):
    refused(model, tmp_path, "is a folder without adapter_model.safetensors")
    folder = written(tmp_path, "peft", *truth(stock))
    config = folder / "adapter_config.json"
    for change, says in (
        ({"use_dora": True}, "is a DoRA without magnitudes"),
        ({"peft_type": "VERA"}, "is a VERA"),
        ({"use_qalora": True}, "has use_qalora in its configuration"),
        ({"modules_to_save": ["head.head"]}, "trained whole layers"),
        ({"bias": "lora_only"}, "trained biases"),
        ({"init_lora_weights": "pissa_niter_4"}, "initialised with pissa_niter_4"),
        ({"lora_alpha": "much"}, "damaged configuration"),
        ({"alpha_pattern": {"(": 3}}, "damaged configuration"),
    ):
        config.write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 8, **change}))
        refused(model, folder, says)
    config.write_text("{")
    refused(model, folder, "damaged configuration")


def test_alphas_of_single_layers_in_a_peft_folder(model, stock, tmp_path):
    factors, whole = truth(stock)
    folder = written(tmp_path, "peft", factors, whole)
    pattern = {"attn1.to_q": 1.0}
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "alpha_pattern": pattern}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    factors = {n: (a, b * (1 / (2 * RANK) if n.endswith("attn1.to_q") else 1)) for n, (a, b) in factors.items()}
    runtime.load(model, folder)
    torch.testing.assert_close(say(model), say(merged(stock, factors, whole, 1)), atol=5e-6, rtol=2e-5)


def test_the_fingerprint_sees_the_configuration(stock, tmp_path):
    folder = written(tmp_path, "peft", *truth(stock))
    file = header.file_of(folder)
    before = runtime.fingerprint(file)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 1}))
    assert runtime.fingerprint(file) != before
