"""Finding and loading models, and the sentences for everything that is none."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import UMT5EncoderModel

from pusa import embedded
from pusa.errors import InputError
from pusa.models.backbone import Defaults
from pusa.models.loading import checkpoints, configurations
from pusa.models.lora import runtime
from pusa.models.wan.transformer import VectorWanTransformer3DModel


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy that may be spoilt."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_diffusers_folder(tiny_folder):
    parts = checkpoints.load(tiny_folder, device="cpu")
    assert isinstance(parts.transformer, VectorWanTransformer3DModel)
    assert isinstance(parts.text_encoder, UMT5EncoderModel)
    assert parts.source == str(tiny_folder)
    assert parts.defaults == Defaults(8, 17, (32, 32), 2, 2.0, 5.0)
    assert parts.geometry.multiple == 16
    assert parts.loras == ()
    assert not any(p.requires_grad for p in parts.transformer.parameters())


def test_half_precision_spares_the_autoencoder(tiny_folder):
    parts = checkpoints.load(tiny_folder, device="cpu", dtype=torch.bfloat16)
    assert parts.transformer.dtype == parts.text_encoder.dtype == torch.bfloat16
    assert parts.vae.dtype == torch.float32


def test_the_embedded_model_comes_with_its_adapter(tiny_folder, tmp_path, monkeypatch):
    plain = checkpoints.load(tiny_folder, device="cpu").transformer
    plain.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"]))
    runtime.save(plain, tmp_path / "pusa.safetensors")
    monkeypatch.setattr("pusa.embedded.folder", lambda: tiny_folder)
    monkeypatch.setattr("pusa.embedded.adapter", lambda: tmp_path / "pusa.safetensors")
    tiny = checkpoints.load("tiny", device="cpu")
    assert [(x.name, x.scale, x.modules) for x in tiny.loras] == [("pusa", embedded.STRENGTH, 4)]
    assert tiny.source == "tiny"
    base = checkpoints.load("tiny-base", device="cpu")
    assert base.loras == ()
    assert not hasattr(base.transformer, "peft_config")


def test_an_installation_without_the_embedded_model(tmp_path, monkeypatch):
    monkeypatch.setattr("pusa.embedded.folder", lambda: tmp_path / "tiny")
    refused("tiny", "not part of this installation")


def test_defaults_are_those_of_the_family(folder):
    (folder / "pusa.json").unlink()
    wan21 = configurations.defaults_of(folder)
    assert (wan21.fps, wan21.frames, wan21.size, wan21.shift) == (16, 81, (832, 480), 5.0)
    edit(folder / "vae" / "config.json", z_dim=48)
    assert configurations.defaults_of(folder).fps == 24


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"speed": 3}, "unknown key 'speed'"), ({"fps": "8"}, "'8' for 'fps': write a number"),
     ({"frames": 16}, "13 or 17"), ({"size": [64]}, r"write \[width, height\]")],
)  # fmt: skip
def test_wrong_settings(folder, settings, sentence):
    (folder / "pusa.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match=sentence):
        configurations.defaults_of(folder)


def test_the_fingerprint_knows_other_weights(folder):
    before = configurations.fingerprint(folder)
    weights = next((folder / "transformer").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert configurations.fingerprint(folder) != before


def refused(source, match):
    with pytest.raises(InputError, match=match):
        checkpoints.load(source, device="cpu")


def test_image_to_video_checkpoints_name_the_right_one(folder):
    edit(folder / "transformer" / "config.json", in_channels=36)
    refused(folder, r"image-to-video checkpoint \(36 input channels\).*Wan-AI/Wan2.2-T2V-A14B-Diffusers")
    edit(folder / "transformer" / "config.json", in_channels=36, image_dim=1280)  # only Wan2.1 embeds the picture
    refused(folder, r"image-to-video checkpoint \(36 input channels\).*Wan-AI/Wan2.1-T2V-14B-Diffusers")
    edit(folder / "model_index.json", transformer_2=["diffusers", "WanTransformer3DModel"])
    refused(folder, "Wan-AI/Wan2.2-T2V-A14B-Diffusers")


def test_unsupported_kinds(folder):
    edit(folder / "model_index.json", transformer_2=["diffusers", "WanTransformer3DModel"])
    refused(folder, "no transformer_2/config.json")
    edit(
        folder / "model_index.json", transformer=["diffusers", "WanVACETransformer3DModel"], transformer_2=[None, None]
    )
    refused(folder, "WanVACETransformer3DModel")
    edit(folder / "model_index.json", transformer=["diffusers", "WanTransformer3DModel"])
    edit(folder / "transformer" / "config.json", in_channels=20)
    refused(folder, "it takes 20 channels and makes 16, and a text-to-video model takes what it makes")


def test_folders_that_are_no_model(folder, tmp_path):
    (tmp_path / "photos").mkdir()
    refused(tmp_path / "photos", "model_index.json .* and it is empty")
    (tmp_path / "photos" / "cat.png").touch()
    refused(tmp_path / "photos", "it contains cat.png")
    refused(tmp_path / "photos" / "cat.png", "is not a file of weights")
    shutil.rmtree(folder / "vae")
    refused(folder, "no vae/config.json")
    (folder / "model_index.json").write_text("{")
    refused(folder, "damaged")


def test_damaged_weights(folder):
    weights = next((folder / "text_encoder").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(folder, "text_encoder/model.safetensors is cut off in its header")


@pytest.mark.parametrize("kind", ["transformer", "vae", "text_encoder"])
def test_missing_weights_are_not_made_up(kind, folder):
    path = next((folder / kind).glob("*.safetensors"))
    tensors = load_file(path)
    lost = sorted(tensors)[0]
    del tensors[lost]
    save_file(tensors, path, metadata={"format": "pt"})
    refused(folder, f"The {kind} of .* is incomplete: it has no {lost}")


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    """A hub that holds one checkpoint; the patterns that were fetched from it."""
    fetched = []

    def snapshot_download(repo_id, allow_patterns):
        fetched.append(allow_patterns)
        for path in folder.rglob("*"):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and any(fnmatch(name, pattern) for pattern in allow_patterns):
                (tmp_path / "cache" / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, tmp_path / "cache" / name)
        return str(tmp_path / "cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return fetched


def test_a_hub_id(hub):
    parts = checkpoints.load("someone/tiny-wan", device="cpu")
    assert parts.source == "someone/tiny-wan"
    assert parts.defaults.frames == 17


def test_the_encoders_alone_need_no_transformer(hub, folder, tmp_path):
    whole = checkpoints.load(folder, device="cpu")
    parts = checkpoints.load_encoders("someone/tiny-wan", device="cpu")
    assert parts.source == "someone/tiny-wan"
    for kind in ("vae", "text_encoder"):
        ours, others = getattr(parts, kind), getattr(whole, kind)
        assert not ours.training
        assert all(
            torch.equal(a, b) and not a.requires_grad
            for a, b in zip(ours.parameters(), others.parameters(), strict=True)
        )
    assert parts.tokenizer("red").input_ids == whole.tokenizer("red").input_ids
    assert [p.name for p in (tmp_path / "cache" / "transformer").iterdir()] == ["config.json"]


def test_the_wrong_hub_id_costs_no_download(hub, folder, tmp_path):
    edit(folder / "transformer" / "config.json", in_channels=36)
    refused("someone/wan-i2v", "image-to-video checkpoint")
    assert len(hub) == 1
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_names_that_lead_nowhere(tmp_path, monkeypatch):
    refused("tinny", "did you mean 'tiny'")
    refused(str(tmp_path / "nowhere"), "give 'tiny', a folder, a file or a hub id")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused("nobody/nothing-of-that-name", "cannot be reached")
    refused(str(tmp_path / "wan.safetensors"), "There is no file")
