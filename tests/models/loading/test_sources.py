"""Every layout that Wan is passed around in gives the same model; what is broken or mixed up is named."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pusa.errors import InputError
from pusa.models import weight_files
from pusa.models.loading import checkpoints, configurations, sources
from pusa.models.wan import original_layout, recognise
from tests.models import layouts
from tests.models.hub_server import serving

TEXT, TOKENIZER, VAE = "models_t5_umt5-xxl-enc-bf16.pth", Path("google", "umt5-xxl"), "Wan2.1_VAE.pth"


@pytest.fixture(scope="module")
def base(tiny_folder, tmp_path_factory):
    """The diffusers folder that all the others hold the weights of."""
    return layouts.build(tmp_path_factory.mktemp("base") / "wan", tiny_folder)


@pytest.fixture(scope="module")
def wans(base, tmp_path_factory):
    """Wan's own layout of it."""
    return layouts.write_original(base, tmp_path_factory.mktemp("original") / "Wan2.1-T2V-1.3B")


@pytest.fixture(scope="module")
def transformer(base):
    """Its transformer in Wan's own names, bfloat16."""
    return layouts.wan_transformer(layouts.state(base, "transformer"))


@pytest.fixture
def file(transformer, tmp_path):
    save_file(transformer, tmp_path / "wan.safetensors")
    return tmp_path / "wan.safetensors"


def outputs(model):
    """What the three networks make of the same inputs."""
    torch.manual_seed(0)
    latents, text = torch.randn(1, 16, 3, 4, 4), torch.randn(1, 7, 32)
    levels, pixels = torch.tensor([[0.0, 500.0, 900.0]]), torch.rand(1, 3, 5, 16, 16) * 2 - 1
    ids = model.tokenizer("a red circle", return_tensors="pt").input_ids
    with torch.no_grad():
        dtype = model.transformer.dtype
        return (
            model.transformer(latents.to(dtype), levels, text.to(dtype)).sample,
            model.vae.encode(pixels).latent_dist.mode(),
            model.text_encoder(ids).last_hidden_state,
        )


def run(network, dtype=torch.float32):
    torch.manual_seed(0)
    latents, text = torch.randn(1, 16, 3, 4, 4), torch.randn(1, 7, 32)
    with torch.no_grad():
        return network(latents.to(dtype), torch.tensor([700.0]), text.to(dtype)).sample.float()


def loaded(file, dtype=torch.float32):
    return original_layout.network(original_layout.from_files("transformer", file, [file]), dtype)


# ------------------------------------------------------------------------------------------------------------- parity


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_wans_own_layout_and_a_single_file_are_the_diffusers_folder_bit_for_bit(base, wans, file, dtype):
    expected = list(outputs(checkpoints.load(base, device="cpu", dtype=dtype)))
    ours = list(outputs(checkpoints.load(wans, device="cpu", dtype=dtype)))
    beside = {"vae": wans / VAE, "text_encoder": wans / TEXT}
    single = list(outputs(checkpoints.load(file, **beside, device="cpu", dtype=dtype)))
    for a, b, c in zip(expected, ours, single, strict=True):
        assert a.abs().max() > 0
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_names_of_a_transformer_are_converted_as_diffusers_converts_them():
    from diffusers import WanTransformer3DModel
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    with torch.device("meta"):
        state = WanTransformer3DModel(num_layers=11).state_dict()
    of_images = [f"img_emb.proj.{i}.{leaf}" for i in (0, 1, 3, 4) for leaf in ("weight", "bias")]
    of_images += [f"blocks.10.cross_attn.{name}.weight" for name in ("k_img", "v_img", "norm_k_img")]
    names = [*layouts.wan_transformer(state), *of_images]
    ours = recognise.canonical(recognise.TRANSFORMER, {name: name for name in names})
    assert ours == convert_wan_transformer_to_diffusers({name: name for name in names})
    assert set(state) < set(ours)


@pytest.mark.parametrize("index", [True, False])
def test_shards_with_and_without_their_index(base, wans, transformer, tmp_path, index):
    layouts.write_shards(transformer, tmp_path, 3, index)
    shutil.copy(wans / "config.json", tmp_path)
    ours = original_layout.network(original_layout.in_folder("transformer", tmp_path), torch.float32)
    theirs = original_layout.network(original_layout.in_folder("transformer", wans), torch.float32)
    assert torch.equal(run(ours), run(theirs))


@pytest.mark.parametrize("index", [True, False])
def test_a_folder_of_lightx2v_with_a_file_for_each_block(wans, transformer, tmp_path, index):
    layouts.write_blocks(transformer, tmp_path, index=index)
    shutil.copy(wans / "config.json", tmp_path)
    ours = original_layout.network(original_layout.in_folder("transformer", tmp_path), torch.float32)
    theirs = original_layout.network(original_layout.in_folder("transformer", wans), torch.float32)
    assert torch.equal(run(ours), run(theirs))
    for name in ("high_noise_model", "low_noise_model"):
        (tmp_path / "experts" / name).mkdir(parents=True)
        layouts.write_blocks(transformer, tmp_path / "experts" / name, index=index)
    assert original_layout.is_original(tmp_path / "experts")
    assert len(sources.experts_of(tmp_path / "experts")) == 2
    (tmp_path / "block_1.safetensors").unlink()
    says = "block_1.safetensors of its 3 files of weights is missing" if index else "weights have 1 blocks, .* says 2"
    beside = {"vae": wans, "text_encoder": wans}
    refused(tmp_path, says, **beside)


def test_every_precision_of_a_file_within_its_rounding(transformer, file, tmp_path):
    exact = run(loaded(file))
    made = {
        "fp16": {name: tensor.half() for name, tensor in transformer.items()},
        "fp32": {name: tensor.float() for name, tensor in transformer.items()},
        "fp8": layouts.fp8(transformer),
        "scaled": layouts.fp8_scaled(transformer, prefix="model.diffusion_model."),
        "scaled_2025": layouts.fp8_scaled(transformer, spelling="weight_scale"),
    }
    errors = {}
    for name, tensors in made.items():
        path = tmp_path / f"{name}.safetensors"
        save_file(tensors, path)
        errors[name] = (run(loaded(path)) - exact).abs().max() / exact.abs().max()
    assert errors["fp32"] == 0
    assert errors["fp16"] < 1e-5  # the weights of a bfloat16 file below float16's smallest numbers are rounded
    assert 1e-4 < errors["fp8"] < 0.02
    assert 1e-4 < errors["scaled"] < 0.02
    assert errors["scaled_2025"] == errors["scaled"]


def test_fp8_weights_are_widened_exactly(transformer, tmp_path):
    save_file(layouts.fp8(transformer), tmp_path / "fp8.safetensors")
    network = loaded(tmp_path / "fp8.safetensors", torch.bfloat16)
    expected = transformer["blocks.0.self_attn.q.weight"].to(torch.float8_e4m3fn).to(torch.bfloat16)
    assert torch.equal(network.blocks[0].attn1.to_q.weight, expected)
    assert network.scale_shift_table.dtype == torch.float32


def test_scales_are_applied_per_tensor_and_per_row(transformer, tmp_path):
    tensors = layouts.fp8_scaled(transformer)
    rows = torch.rand(256, 1) + 0.5
    weight = tensors["blocks.1.ffn.2.weight"].float()
    tensors["blocks.1.ffn.2.scale_weight"] = rows
    save_file(tensors, tmp_path / "rows.safetensors")
    network = loaded(tmp_path / "rows.safetensors")
    assert torch.equal(network.blocks[1].ffn.net[2].weight, weight * rows)
    original_weight = transformer["blocks.0.cross_attn.v.weight"].float()
    restored = network.blocks[0].attn2.to_v.weight
    assert (restored - original_weight).abs().max() <= original_weight.abs().max() / 16


@pytest.mark.parametrize(("kind", "bound"), [("Q8_0", 0.003), ("Q4_0", 0.05)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gguf_runs_as_diffusers_runs_it(transformer, file, tmp_path, kind, bound, dtype):
    pytest.importorskip("gguf")
    path = layouts.write_gguf(transformer, tmp_path / "wan.gguf", kind)
    exact = run(loaded(file))
    network = loaded(path, dtype)
    assert network.blocks[0].attn1.to_q.weight.dtype == torch.uint8  # still quantised
    error = (run(network, dtype) - exact).abs().max() / exact.abs().max()
    assert error < bound + (0.01 if dtype == torch.bfloat16 else 0)


@pytest.mark.parametrize(("kind", "dtype"), [("BF16", torch.float32), ("Q8_0", torch.bfloat16)])
def test_gguf_that_quantises_more_than_linear_layers(transformer, tmp_path, kind, dtype):
    """Of bfloat16 or blocks everywhere: the same as with plain numbers there, and linear layers stay quantised."""
    pytest.importorskip("gguf")
    path = layouts.write_gguf(transformer, tmp_path / "wan.gguf", "Q8_0", others=kind)
    network = loaded(path, dtype)
    assert network.blocks[0].attn1.to_q.weight.dtype == torch.uint8
    kept = {name: value for name, value in network.state_dict().items() if value.dtype != torch.uint8}
    exact = loaded(layouts.write_gguf(transformer, tmp_path / "plain.gguf")).state_dict()
    assert {
        "patch_embedding.weight",
        "scale_shift_table",
        "blocks.0.attn1.norm_q.weight",
        "blocks.1.ffn.net.2.bias",
    } < set(kept)
    for name, value in kept.items():
        assert value.dtype == (
            torch.float32 if "table" in name or "norm2" in name or "time_embedder" in name else dtype
        )
        far = (value.float() - exact[name].float()).abs().max() / exact[name].float().abs().max().clamp(min=1e-6)
        assert far <= (0.01 if kind == "Q8_0" or dtype == torch.bfloat16 else 0), name
    assert run(network, dtype).isfinite().all()


def test_wan22_with_its_autoencoder(tiny_folder, tmp_path):
    folder = layouts.build(tmp_path / "5b", tiny_folder, wan22=True)
    own = layouts.write_original(folder, tmp_path / "Wan2.2-TI2V-5B", vae="Wan2.2_VAE.pth")
    loaded = checkpoints.load(own, device="cpu")
    vae, theirs = loaded.vae, checkpoints.load(folder, device="cpu").vae
    assert {k: v for k, v in vae.config.items() if not k.startswith("_")} == {
        k: v for k, v in theirs.config.items() if not k.startswith("_")
    }
    pixels = torch.rand(1, 3, 5, 32, 32)
    with torch.no_grad():
        assert torch.equal(vae.encode(pixels).latent_dist.mode(), theirs.encode(pixels).latent_dist.mode())
    assert loaded.geometry.multiple == 32
    assert loaded.defaults.fps == 24


def test_parts_beside_a_source(base, wans, file, tmp_path):
    for vae, text in ((base, base), (base / "vae", base / "text_encoder"), (wans, wans)):
        model = checkpoints.load(file, vae=vae, text_encoder=text, device="cpu")
        assert model.beside == {"vae": str(vae), "text_encoder": str(text)}
        assert model.source == str(file)
    lone = shutil.copy(wans / TEXT, tmp_path / "umt5.pth")
    shutil.copytree(base / "tokenizer", tmp_path / "tokenizer")
    assert checkpoints.load_encoders(file, vae=wans / VAE, text_encoder=lone, device="cpu").tokenizer("red")
    before = configurations.fingerprint(file, {"vae": wans / VAE, "text_encoder": wans / TEXT})
    assert before != configurations.fingerprint(file, {"vae": base, "text_encoder": wans / TEXT})


def test_one_file_with_everything(base, wans, transformer, tmp_path):
    parts = {
        "model.diffusion_model.": transformer,
        "vae.": layouts.wan_vae(layouts.state(base, "vae")),
        "text_encoders.umt5xxl.transformer.": {
            k: v for k, v in layouts.state(base, "text_encoder").items() if k != "encoder.embed_tokens.weight"
        },
    }
    whole = {start + name: tensor for start, tensors in parts.items() for name, tensor in tensors.items()}
    save_file(whole, tmp_path / "rapid.safetensors")
    shutil.copytree(base / "tokenizer", tmp_path / "tokenizer")
    ours = list(outputs(checkpoints.load(tmp_path / "rapid.safetensors", device="cpu")))
    assert all(torch.equal(a, b) for a, b in zip(ours, outputs(checkpoints.load(wans, device="cpu")), strict=True))


@pytest.mark.parametrize("layout", ["diffusers", "wan"])
def test_either_layout_from_a_hub(base, wans, tmp_path, monkeypatch, layout):
    folder = base if layout == "diffusers" else wans
    with serving(folder, "someone/wan") as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.endpoint)
        template = f"{server.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        name, configs = sources.find("someone/wan", parts=())
        configurations.check(name, configs)
        assert not [path for path, _ in server.gets if path.endswith((".safetensors", ".pth"))]
        model = checkpoints.load("someone/wan", device="cpu")
        vae = checkpoints.load_encoders(folder, vae="someone/wan", device="cpu").vae
    assert model.source == "someone/wan"
    assert all(torch.equal(a, b) for a, b in zip(outputs(model), outputs(checkpoints.load(folder, device="cpu")),
                                                 strict=True))  # fmt: skip
    assert torch.equal(vae.quant_conv.weight, model.vae.quant_conv.weight)


def test_a_clip_from_a_file_is_made_again(base, wans, file, tmp_path):
    import pusa
    from pusa.generation.provenance import regenerate

    pipe = pusa.load(file, vae=wans / VAE, text_encoder=wans / TEXT, device="cpu")
    clip = pipe.generate("a red circle", frames=5, size=(16, 16), steps=1, guidance=1)
    clip.save(tmp_path / "clip.mp4")
    again = regenerate(tmp_path / "clip.json")
    assert torch.equal(again.latents, clip.latents)


# ------------------------------------------------------------------------------------------------------ which one it is


@pytest.mark.parametrize(
    ("width", "layers", "channels", "ffn", "name"),
    [(1536, 30, 16, 8960, "Wan2.1 T2V 1.3B"), (5120, 40, 16, 13824, "Wan2.1 T2V 14B"),
     (3072, 30, 48, 14336, "Wan2.2 TI2V 5B")],
)  # fmt: skip
def test_the_families_by_their_true_shapes(width, layers, channels, ffn, name):
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        model = WanTransformer3DModel(
            num_attention_heads=width // 128, ffn_dim=ffn, num_layers=layers, in_channels=channels,
            out_channels=channels,
        )  # fmt: skip
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    config = recognise.transformer_config("x", shapes)
    assert config | {"patch_size": (1, 2, 2)} == {key: model.config[key] for key in config}
    assert recognise.family(config).name.startswith(name)
    assert recognise.family(config).licence == "Apache-2.0"
    assert recognise.family(recognise.transformer_config("x", shapes) | {"num_layers": 3}).licence == "unknown"


@pytest.mark.parametrize(
    ("name", "expert"),
    [("wan2.2_t2v_high_noise_14B_fp8_scaled", "high"), ("Wan2.2-T2V-A14B-LowNoise-Q4_K_M", "low"),
     ("wan22-HighNoise-anime", "high"), ("wan2.1_t2v_14B_bf16", None), ("lowvram-wan", None), ("wan22-yellow", None),
     ("Wan2.2_low_angle_shot", None), ("wan22-high-detail", None), ("Wan2_2-T2V-A14B-LOW_fp8_scaled_KJ", None)],
)  # fmt: skip
def test_experts_are_known_by_noise_in_their_names(name, expert):
    assert recognise.expert_of(name) == expert


@pytest.mark.parametrize(
    ("name", "expert"),
    [("Wan2_2-T2V-A14B-LOW_fp8_scaled_KJ", "low"), ("wan22-high-detail", "high"), ("wan22_style_HN", "high"),
     ("wan2.2_t2v_high_noise", None), ("wan22-yellow", None), ("highlight-wan21", None), ("highway_wan22", None)],
)  # fmt: skip
def test_names_that_may_mean_an_expert_are_only_noted(name, expert, wans, file, tmp_path):
    assert recognise.maybe_expert(name) == expert
    path = shutil.copy(file, tmp_path / f"{name}.safetensors")
    if expert:
        with pytest.warns(UserWarning, match=f"may be the expert of Wan2.2 for {expert} noise, and it is used alone"):
            assert checkpoints.load(path, vae=wans, text_encoder=wans, device="cpu").transformer_2 is None


def refused(source, match, **beside):
    with pytest.raises(InputError, match=match) as caught:
        checkpoints.load(source, device="cpu", **beside)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def experts(base, wans, transformer, tmp_path_factory):
    """Two experts, whose weights differ, in three layouts: diffusers' folder, Wan's own, and a file each."""
    root = tmp_path_factory.mktemp("experts")
    second = {name: -value if name == "head.head.weight" else value for name, value in transformer.items()}
    diffusers, own = root / "Wan2.2-T2V-A14B-Diffusers", root / "Wan2.2-T2V-A14B"
    shutil.copytree(base, diffusers)
    shutil.copytree(base / "transformer", diffusers / "transformer_2")
    weights_2 = layouts.state(base, "transformer") | {
        "proj_out.weight": -layouts.state(base, "transformer")["proj_out.weight"]
    }
    for old in (diffusers / "transformer_2").glob("*.safetensors*"):
        old.unlink()
    save_file(weights_2, diffusers / "transformer_2" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    index = json.loads((diffusers / "model_index.json").read_text())
    index |= {"transformer_2": ["diffusers", "WanTransformer3DModel"], "boundary_ratio": 0.9}
    (diffusers / "model_index.json").write_text(json.dumps(index))
    shutil.copytree(wans, own, ignore=shutil.ignore_patterns("diffusion_pytorch_model*", "config.json"))
    files = {}
    for name, tensors in (("high_noise", transformer), ("low_noise", second)):
        (own / f"{name}_model").mkdir()
        layouts.write_shards(tensors, own / f"{name}_model", 2)
        shutil.copy(wans / "config.json", own / f"{name}_model")
        files[name] = root / f"wan2.2_t2v_{name}_14B.safetensors"
        save_file(tensors, files[name])
    return {"diffusers": diffusers, "own": own, **files}


def beside_file(wans, experts, high="high_noise", low="low_noise"):
    return {"source": experts[high], "transformer_2": experts[low], "vae": wans / VAE, "text_encoder": wans / TEXT}


def test_two_experts_load_the_same_from_every_layout(wans, experts):
    ways = {"diffusers": {"source": experts["diffusers"]}, "own": {"source": experts["own"]}}
    ways["files"] = beside_file(wans, experts)
    ways["folder beside a file"] = {**ways["files"], "transformer_2": experts["own"] / "low_noise_model"}
    loaded = {name: checkpoints.load(device="cpu", dtype=torch.bfloat16, **way) for name, way in ways.items()}
    states = {name: (m.transformer.state_dict(), m.transformer_2.state_dict()) for name, m in loaded.items()}
    first, second = states["diffusers"]
    assert torch.equal(first["proj_out.weight"], -second["proj_out.weight"])
    for name, pair in states.items():
        for one, same in zip(pair, (first, second), strict=True):
            assert one.keys() == same.keys()
            assert all(torch.equal(one[key], same[key]) for key in one), name
    assert [m.defaults.boundary for m in loaded.values()] == [0.9, 0.875, 0.875, 0.875]
    assert checkpoints.load_encoders(loaded["files"].source, **loaded["files"].beside, device="cpu").vae is not None
    assert set(sources.contents(experts["own"])) == {"transformer", "transformer_2", "vae", "text_encoder"}
    for way in ("diffusers", "own"):
        alone = checkpoints.load(experts[way], expert="low", device="cpu", dtype=torch.bfloat16)
        assert alone.transformer_2 is None
        assert torch.equal(alone.transformer.state_dict()["proj_out.weight"], second["proj_out.weight"])
        assert alone.fingerprint != loaded[way].fingerprint


def test_experts_that_are_missing_or_mixed_up(wans, experts, file, base, tmp_path):
    files = beside_file(wans, experts)
    parts = {"vae": files["vae"], "text_encoder": files["text_encoder"]}
    refused(experts["low_noise"], "one expert of two, for low noise: .* --transformer-2", **parts)
    refused(experts["low_noise"], "swapped: .*low_noise.* is the one for low noise", **parts, transformer_2=file)
    refused(file, "swapped: .*high_noise.* is the one for high noise", **parts, transformer_2=experts["high_noise"])
    refused(experts["low_noise"], "is the low-noise expert: give the high-noise", **parts, expert="high")
    refused(base, "one transformer and no high-noise expert", expert="high")
    half = tmp_path / "half"
    shutil.copytree(experts["own"], half, ignore=shutil.ignore_patterns("low_noise_model"))
    refused(half, "low_noise_model is incomplete")
    assert checkpoints.load(half, expert="high", device="cpu").transformer_2 is None
    narrow = {name: value for name, value in load_file(file).items() if not name.startswith("blocks.1.")}
    save_file(narrow, tmp_path / "other.safetensors")
    refused(
        file,
        "is not the second expert .* have 2 and 1 as num_layers",
        **parts,
        transformer_2=tmp_path / "other.safetensors",
    )


def with_image(transformer, last=False):
    """An image-to-video transformer: 36 channels and, in Wan2.1, the embedding of a picture."""
    tensors = transformer | {
        "patch_embedding.weight": torch.zeros(256, 36, 1, 2, 2),
        "img_emb.proj.0.weight": torch.zeros(1280),
        "blocks.0.cross_attn.k_img.weight": torch.zeros(256, 256),
    }
    return tensors | ({"img_emb.emb_pos": torch.zeros(1, 514, 1280)} if last else {})


def test_image_to_video_files_name_the_right_one(transformer, tmp_path):
    path = tmp_path / "wan.safetensors"
    save_file(with_image(transformer), path)
    refused(path, r"image-to-video checkpoint \(36 input channels\).*Wan2.1-T2V-14B")
    save_file(with_image(transformer, last=True), path)
    refused(path, "first-and-last-frame checkpoint.*Wan2.1-T2V-14B")
    save_file(transformer | {"patch_embedding.weight": torch.zeros(256, 36, 1, 2, 2)}, path)
    refused(path, "image-to-video checkpoint.*Wan2.2-T2V-A14B")
    save_file(transformer | {"vace_blocks.0.before_proj.weight": torch.zeros(4, 4)}, path)
    refused(path, "VACE.*use a text-to-video model")
    for name, task in (("blocks.0.cam_encoder.weight", "camera-control"), ("pose_patch_embedding.bias", "Animate"),
                       ("blocks.1.audio_cross_attn.proj.weight", "speech-to-video")):  # fmt: skip
        save_file(transformer | {name: torch.zeros(4)}, path)
        refused(path, f"for another task .{task}.")


@pytest.mark.parametrize(
    ("given", "made"), [(48, 16), (52, 16), (32, 16), (96, 48), (100, 48), (148, 48)], ids=lambda n: f"{n}"
)
def test_variants_with_more_channels_are_refused_by_file_and_by_config(transformer, wans, tmp_path, given, made):
    changes = {"patch_embedding.weight": torch.zeros(256, given, 1, 2, 2)}
    changes |= {"head.head.weight": torch.zeros(4 * made, 256), "head.head.bias": torch.zeros(4 * made)}
    save_file(transformer | changes, tmp_path / "wan.safetensors")
    right = "TI2V-5B" if made == 48 else "T2V-A14B"
    refused(tmp_path / "wan.safetensors", f"takes {given} channels and makes {made}, .*{right}")
    own = json.loads((wans / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(own | {"in_dim": given, "out_dim": made}))
    refused(tmp_path, f"takes {given} channels and makes {made}")
    assert recognise.family(
        {"num_attention_heads": 24, "num_layers": 30, "in_channels": given, "out_channels": made}
    ) == (recognise.Family(f"Wan of 30 layers, 3072 wide, {given} channels in and {made} out", "unknown"))


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "dit.", "model.", "model.module.", "pipe.dit.",
                                    "generator_ema.model._fsdp_wrapped_module."])  # fmt: skip
def test_names_of_wrappers_and_trainers(transformer, file, tmp_path, prefix):
    inside = {re.sub(r"^(blocks\.\d+)\.", r"\1._orig_mod.", name): value for name, value in transformer.items()}
    save_file({prefix + name: value for name, value in inside.items()}, tmp_path / "wrapped.safetensors")
    assert torch.equal(run(loaded(tmp_path / "wrapped.safetensors")), run(loaded(file)))


def test_the_average_of_a_checkpoint_of_a_training(transformer, file, tmp_path):
    average = {f"model.{name}": value for name, value in transformer.items()}
    last = {name: torch.zeros_like(value) for name, value in average.items()}
    optimiser = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-5}]}
    path = tmp_path / "model.pt"
    torch.save({"generator": last, "critic": last, "generator_ema": average, "optimizer": optimiser, "step": 9}, path)
    assert torch.equal(run(loaded(path)), run(loaded(file)))
    torch.save({"generator": average, "critic": last, "step": 9}, path)
    assert torch.equal(run(loaded(path)), run(loaded(file)))
    torch.save({"high_noise_model": average, "low_noise_model": last}, path)
    refused(path, r"contains 2 transformers \(high_noise_model.model and low_noise_model.model\).*--transformer-2")
    both = {f"transformer_{i}.{name}": value.clone() for i in (1, 2) for name, value in transformer.items()}
    save_file(both, tmp_path / "both.safetensors")
    refused(tmp_path / "both.safetensors", r"2 transformers \(transformer_1 and transformer_2\)")


def test_wans_own_config_refuses_before_any_weight_is_there(wans, tmp_path):
    own = json.loads((wans / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(own | {"in_dim": 36, "model_type": "i2v"}))
    refused(tmp_path, "image-to-video checkpoint")
    (tmp_path / "config.json").write_text(json.dumps(own | {"in_dim": 36, "model_type": "flf2v"}))
    refused(tmp_path, "first-and-last-frame")


# ------------------------------------------------------------------------------------------------ broken files


def test_what_is_mixed_up_is_named(base, wans, file, transformer, tmp_path):
    beside = {"vae": wans / VAE, "text_encoder": wans / TEXT}
    refused(wans / TEXT, "is a text encoder, not a transformer: give it with --text-encoder")
    refused(wans / VAE, "is an autoencoder, not a transformer: give it with --vae")
    refused(file, "is a transformer, not an autoencoder: give it with --model", **(beside | {"vae": file}))
    refused(file, "has no autoencoder: give .* --vae and --text-encoder")
    save_file({"blocks.0.self_attn.q.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "lora.safetensors")
    refused(tmp_path / "lora.safetensors", "is a LoRA: give it with --lora")
    save_file({"lycoris_blocks_0_self_attn_q.lokr_w1": torch.zeros(2, 2)}, tmp_path / "lokr.safetensors")
    refused(tmp_path / "lokr.safetensors", "is a LoRA: give it with --lora")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    refused(tmp_path / "other.safetensors", "is not a transformer of Wan")
    save_file(transformer | {"blocks.0.extra.weight": torch.zeros(2)}, tmp_path / "more.safetensors")
    refused(tmp_path / "more.safetensors", "has blocks.0.extra.weight, which is not part of a Wan", **beside)
    refused(base.parent, "needs a model_index.json")


def test_an_autoencoder_of_the_wrong_kind(tiny_folder, wans, file, tmp_path):
    large = layouts.build(tmp_path / "5b", tiny_folder, wan22=True)
    torch.save(layouts.wan_vae(layouts.state(large, "vae")), tmp_path / "Wan2.2_VAE.pth")
    save_file(layouts.wan_transformer(layouts.state(large, "transformer")), tmp_path / "5b.safetensors")
    refused(
        file,
        "needs the autoencoder of Wan2.1 with 16 channels .* has 48",
        vae=tmp_path / "Wan2.2_VAE.pth",
        text_encoder=wans,
    )
    refused(
        tmp_path / "5b.safetensors",
        "needs the autoencoder of Wan2.2 with 48 channels .* has 16",
        vae=wans,
        text_encoder=wans,
    )


def test_a_text_encoder_of_another_kind(base, wans, file, tmp_path):
    tensors = layouts.state(base, "text_encoder")
    plain = {k: v for k, v in tensors.items() if not ("block.1" in k and "relative_attention_bias" in k)}
    save_file(plain, tmp_path / "t5xxl.safetensors")
    refused(file, "is a T5 encoder, and Wan needs UMT5", vae=wans, text_encoder=tmp_path / "t5xxl.safetensors")


def test_a_cut_off_file_says_which_tensor(file, wans):
    whole = file.read_bytes()
    offsets = {k: v["data_offsets"] for k, v in json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")]).items()
               if k != "__metadata__"}  # fmt: skip
    last = max(offsets, key=lambda name: offsets[name][0])
    file.write_bytes(whole[:-10])
    refused(file, f"{file.name} is cut off: {last} is incomplete; copy")
    file.write_bytes(whole[: len(whole) // 2])
    refused(file, "is cut off: .* and .* more tensors are incomplete")
    file.write_bytes(whole[:200])
    refused(file, "cut off in its header")
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    refused(file, "is a Git LFS pointer")
    file.write_bytes(b"")
    refused(file, "is empty")


def test_a_flipped_bit_says_which_tensor_where_it_can_be_known(file, wans, transformer):
    data = bytearray(file.read_bytes())
    data[20] ^= 0x80
    file.write_bytes(data)
    refused(file, "its header cannot be read|is incomplete|is damaged")
    name = "blocks.1.ffn.0.weight"
    broken = transformer[name].clone().view(torch.int16)
    broken[3, 3] |= 0x7F80  # one exponent of ones is no number
    save_file(transformer | {name: broken.view(torch.bfloat16)}, file)
    refused(file, "blocks.1.ffn.net.0.proj.weight contains NaN or infinity", vae=wans, text_encoder=wans)


def test_damage_in_a_diffusers_folder_names_file_and_tensor(base, tmp_path):
    folder = shutil.copytree(base, tmp_path / "wan")
    path = next((folder / "transformer").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-4])
    refused(folder, f"{path.name} is cut off: .* incomplete")


class Code:
    """Would make the folder `ran` if its pickle were run."""

    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return os.mkdir, (self.place,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("new", [True, False])
def test_a_pickle_with_code_is_refused(wans, file, tmp_path, new):
    path = tmp_path / "Wan2.1_VAE.pth"
    if new:
        torch.save({"encoder.conv1.weight": torch.zeros(1), "x": Code(tmp_path / "ran")}, path)
    else:
        path.write_bytes(pickle.dumps({"x": Code(tmp_path / "ran")}))
    refused(file, "is not opened: it (is damaged or )?contains code", vae=path, text_encoder=wans)
    assert not (tmp_path / "ran").exists()


def test_a_damaged_pickle(wans, file, tmp_path):
    path = tmp_path / "Wan2.1_VAE.pth"
    path.write_bytes((wans / VAE).read_bytes()[:5000])
    refused(file, "Wan2.1_VAE.pth is cut off, damaged or not a file of weights", vae=path, text_encoder=wans)
    torch.save([1, 2], path)
    refused(file, "does not contain a dictionary of tensors", vae=path, text_encoder=wans)


@pytest.mark.parametrize("index", [True, False])
def test_missing_shards(wans, transformer, tmp_path, index):
    folder = shutil.copytree(wans, tmp_path / "wan")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    lost = layouts.write_shards(transformer, folder, 3, index)[1]
    lost.unlink()
    refused(folder, f"is incomplete: {lost.name} of its 3 files of weights is missing")


def test_a_half_downloaded_folder(wans, base, tmp_path):
    folder = shutil.copytree(wans, tmp_path / "wan")
    (folder / VAE).unlink()
    refused(folder, "the weights of its vae are missing")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    refused(folder, "the weights of its transformer are missing")
    (folder / "config.json").unlink()
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    refused(folder, "is damaged")
    plain = shutil.copytree(base, tmp_path / "diffusers")
    next((plain / "text_encoder").glob("*.safetensors")).unlink()
    refused(plain, "The text_encoder of .* has no weights: copy or download")
    (plain / "text_encoder" / "pytorch_model.bin").write_bytes(b"x")
    refused(plain, "has only pytorch_model.bin, a pickle, which is not supported")
    refused(base, "is not an autoencoder: give the folder", vae=base / "text_encoder")
    refused(base, "is not a text encoder: give the folder", text_encoder=base / "vae")


def test_missing_tensors_and_other_shapes(wans, file, transformer):
    beside = {"vae": wans, "text_encoder": wans}
    name = "blocks.1.cross_attn.norm_k.weight"
    save_file({k: v for k, v in transformer.items() if k != name}, file)
    refused(file, "it has no blocks.1.attn2.norm_k.weight;", **beside)
    save_file(transformer | {name: torch.zeros(3)}, file)
    refused(file, f"{name} has the shape \\[3\\] instead of \\[256\\]", **beside)


def test_fp8_scaled_without_its_scales(wans, file, transformer):
    beside = {"vae": wans, "text_encoder": wans}
    tensors = layouts.fp8_scaled(transformer)
    one = "blocks.0.self_attn.k.scale_weight"
    save_file({k: v for k, v in tensors.items() if k != one}, file)
    refused(file, "is scaled fp8, and blocks.0.self_attn.k.weight has no scale", **beside)
    bare = {k: v for k, v in tensors.items() if not k.endswith(("scale_weight", "scale_input", "scaled_fp8"))}
    save_file(bare, file)
    refused(file, "is scaled fp8 without its scales", **beside)
    save_file(tensors | {one: torch.ones(7, 7)}, file)
    refused(file, "an unsupported quantisation", **beside)


def test_a_broken_gguf(transformer, tmp_path):
    pytest.importorskip("gguf")
    path = layouts.write_gguf(transformer, tmp_path / "wan.gguf")
    path.write_bytes(path.read_bytes()[:-1000])
    refused(path, "cut off, damaged or not GGUF")


def test_headers_are_read_without_the_weights(file, transformer):
    """A file of holes: terabytes by its length, nothing on the disk."""
    found = weight_files.listing(file)
    assert {name: one.shape for name, one in found.items()} == {k: tuple(v.shape) for k, v in transformer.items()}
    hollow = {"dtype": "BF16", "shape": [1 << 40], "data_offsets": [0, 2 << 40]}
    header = json.dumps({"patch_embedding.weight": hollow})
    with file.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header.encode())
        stream.truncate(8 + len(header) + (2 << 40))
    assert weight_files.listing(file)["patch_embedding.weight"].count == 1 << 40


def test_names_are_wans(transformer, base):
    """Against slips in the tests' own renaming: names as they are in the published files."""
    assert {
        "blocks.0.self_attn.norm_q.weight", "blocks.1.cross_attn.o.bias", "blocks.0.norm3.weight",
        "blocks.0.modulation", "blocks.1.ffn.2.weight", "head.head.weight", "head.modulation", "patch_embedding.weight",
        "time_embedding.2.bias", "time_projection.1.weight", "text_embedding.0.weight",
    } <= set(transformer)  # fmt: skip
    assert {
        "encoder.conv1.weight", "encoder.downsamples.0.residual.0.gamma", "encoder.downsamples.5.time_conv.weight",
        "encoder.middle.1.to_qkv.weight", "encoder.head.0.gamma", "conv1.weight", "conv2.bias",
        "decoder.upsamples.4.shortcut.weight", "decoder.upsamples.11.resample.1.weight", "decoder.head.2.weight",
    } <= set(layouts.wan_vae(layouts.state(base, "vae")))  # fmt: skip
    assert {
        "token_embedding.weight", "blocks.0.attn.q.weight", "blocks.1.pos_embedding.embedding.weight",
        "blocks.0.ffn.gate.0.weight", "blocks.0.ffn.fc1.weight", "blocks.0.norm2.weight", "norm.weight",
    } == {k for k in layouts.wan_text_encoder(load_file(next((base / "text_encoder").glob("*.safetensors"))))
          if k in ("token_embedding.weight", "norm.weight") or k.startswith(("blocks.0.attn.q", "blocks.1.pos",
          "blocks.0.ffn.gate", "blocks.0.ffn.fc1", "blocks.0.norm2"))}  # fmt: skip
