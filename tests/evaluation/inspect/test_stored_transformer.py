"""Transformers as they lie in files are compared in every layout, and by task, without being run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file

from pusa import embedded
from pusa.errors import InputError
from pusa.evaluation.inspect import weight_drift
from pusa.evaluation.inspect.stored_transformer import StoredTransformer
from pusa.models.loading import checkpoints
from tests.models import layouts
from tests.models.hub_server import serving


@pytest.fixture(scope="module")
def base(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return layouts.build(tmp_path_factory.mktemp("base") / "wan", tiny_folder)


@pytest.fixture(scope="module")
def original(base: Path) -> layouts.State:
    """The transformer's tensors in Wan's own names."""
    return layouts.wan_transformer(layouts.state(base, "transformer"))


def between(before: Path, after: Path) -> weight_drift.Drift:
    return weight_drift.of_models(StoredTransformer.find(before), StoredTransformer.find(after))


def largest(found: weight_drift.Drift) -> float:
    return max(found.of()[0].values())


def test_the_same_weights_in_every_layout_have_not_moved(base: Path, original: layouts.State, tmp_path: Path) -> None:
    wans = layouts.write_original(base, tmp_path / "wans", shards=3)
    save_file(original, tmp_path / "one.safetensors")
    torch.save(original, tmp_path / "one.pth")
    save_file({f"model.diffusion_model.{n}": t for n, t in original.items()}, tmp_path / "comfy.safetensors")
    for other in (base / "transformer", wans, *(tmp_path / f"{n}" for n in ("one.safetensors", "one.pth"))):
        found = between(base, other)
        assert largest(found) == 0, other
        assert not found.notes
    assert largest(between(wans, tmp_path / "comfy.safetensors")) == 0
    assert set(found.of()[0]) == set(weight_drift.COMPONENTS)


def test_less_precision_is_a_small_change_of_the_layers_that_have_it(
    base: Path, original: layouts.State, tmp_path: Path
) -> None:
    save_file(layouts.fp8_scaled(original), tmp_path / "scaled.safetensors")
    layouts.write_gguf(original, tmp_path / "q8.gguf")
    for name, most in (("scaled.safetensors", 0.05), ("q8.gguf", 0.01)):
        components = between(base, tmp_path / name).of()[0]
        assert 0.001 < components["self-attention"] < most
        assert components["patch embedding"] == 0
    unscaled = layouts.fp8_scaled(original)
    save_file(
        {n: t for n, t in unscaled.items() if "scale" not in n and n != "scaled_fp8"}, tmp_path / "lost.safetensors"
    )
    with pytest.raises(InputError, match="scaled fp8 without its scales"):
        between(base, tmp_path / "lost.safetensors")


def test_files_say_what_models_in_memory_say(base: Path, tmp_path: Path) -> None:
    model = WanTransformer3DModel.from_pretrained(base / "transformer")
    other = WanTransformer3DModel.from_pretrained(base / "transformer")
    with torch.no_grad():
        for name, value in other.named_parameters():
            if ".attn2.to_k." in name or name.startswith("blocks.1.ffn."):
                value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    other.save_pretrained(tmp_path / "other", max_shard_size="1MB")
    assert len(list((tmp_path / "other").glob("*.safetensors"))) > 2
    found = between(base, tmp_path / "other")
    in_memory = weight_drift.of_models(model, other)
    assert found.of()[0] == pytest.approx(in_memory.of()[0], rel=1e-6)
    layers = found.by(lambda group: (group.component, group.layer))
    assert layers["cross-attention", "k"] > 0.5
    assert layers["cross-attention", "v"] == 0
    assert layers["feed-forward", "in"] > 0
    assert found.of()[1][1] > found.of()[1][0] > 0
    shares = found.shares()
    assert shares["cross-attention"] + shares["feed-forward"] == pytest.approx(1)


def test_a_lora_on_files_moves_what_it_does_on_a_loaded_model() -> None:
    stored = weight_drift.of_lora(StoredTransformer.find("tiny-base"), embedded.adapter(), embedded.STRENGTH)
    loaded = weight_drift.of_lora(checkpoints.load("tiny-base").transformer, embedded.adapter(), embedded.STRENGTH)
    assert stored.of()[0] == pytest.approx(loaded.of()[0], rel=1e-9)
    doubled = weight_drift.of_lora(StoredTransformer.find("tiny-base"), embedded.adapter(), 2 * embedded.STRENGTH)
    assert doubled.of()[0]["self-attention"] == pytest.approx(2 * stored.of()[0]["self-attention"])


def test_an_image_to_video_model_is_compared_on_what_both_have(base: Path, tmp_path: Path) -> None:
    config = layouts.TRANSFORMER | {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 256}
    wider = WanTransformer3DModel(**config).to(torch.bfloat16)
    shared = load_file(next((base / "transformer").glob("*.safetensors")))
    state = wider.state_dict()
    with torch.no_grad():
        for name, value in shared.items():
            if name == "patch_embedding.weight":
                state[name][:, :16] = value
            else:
                state[name].copy_(value)
    wider.save_pretrained(tmp_path / "i2v")
    found = between(base, tmp_path / "i2v")
    assert largest(found) == 0
    channels, rest = found.notes
    assert channels == f"20 input channels are only in {tmp_path / 'i2v'}; the first 16 are compared"
    assert "parameters are only in" in rest
    save_file(layouts.wan_transformer(shared), tmp_path / "own.safetensors")
    back = between(tmp_path / "i2v", tmp_path / "own.safetensors")
    assert largest(back) == 0
    assert back.notes[0].startswith(f"20 input channels are only in {tmp_path / 'i2v'}")


@pytest.mark.parametrize("layout", ["diffusers", "wans"])
def test_of_a_hub_id_only_the_transformer_is_fetched(
    layout: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = base if layout == "diffusers" else layouts.write_original(base, tmp_path / "wans")
    with serving(folder, "someone/wan") as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.endpoint)
        template = f"{server.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        found = StoredTransformer.find("someone/wan")
        fetched = [path for path, _ in server.gets if path.endswith((".safetensors", ".pth"))]
    assert [Path(path).name for path in fetched] == ["diffusion_pytorch_model.safetensors"]
    assert largest(weight_drift.of_models(StoredTransformer.find(base), found)) == 0


def test_what_cannot_be_compared_is_said(base: Path, tiny_folder: Path, tmp_path: Path, experts_folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty has no Wan transformer"):
        StoredTransformer.find(tmp_path / "empty")
    with pytest.raises(InputError, match=r"pusa\.safetensors is a LoRA; give it with --lora"):
        StoredTransformer.find(embedded.adapter())
    with pytest.raises(InputError, match="no Wan transformer"):
        StoredTransformer.find(base / "vae" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(InputError, match="There is no model"):
        StoredTransformer.find(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"compare models of the same size"):
        between(base, embedded.folder())
    longer = WanTransformer3DModel(**(layouts.TRANSFORMER | {"num_layers": 3}))
    longer.save_pretrained(tmp_path / "longer")
    with pytest.raises(InputError, match=r"has 2 blocks and .*longer 3; compare models of the same size"):
        between(base, tmp_path / "longer")
    assert StoredTransformer.find(experts_folder).experts == 2
    assert largest(between(experts_folder, experts_folder / "transformer_2")) > 0.5
