"""Every memory profile, on the embedded model where it is there: what runs on a CPU runs, and gives the same clip."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.hooks import apply_group_offloading

from pusa import embedded
from pusa.errors import InputError
from pusa.generation.given import Image
from pusa.generation.pipeline import Pipeline, load
from pusa.models.memory import profiles
from pusa.models.memory.profiles import PROFILES, Profile
from pusa.models.wan import autoencoder

OPTIONS = {"frames": 9, "size": (32, 32), "steps": 2, "seed": 3}


@pytest.fixture(scope="module")
def source(tiny_folder: Path) -> str:
    return "tiny" if embedded.adapter().is_file() else str(tiny_folder)


def make(pipe: Pipeline, picture: np.ndarray) -> np.ndarray:
    """A clip with a timestep per frame: its first frame is given, with some noise."""
    return pipe.generate("a red circle", [Image(picture, noise=0.3)], **OPTIONS).latents.numpy()


@pytest.fixture(scope="module")
def plain(source: str) -> np.ndarray:
    return make(load(source, device="cpu"), picture())


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


@pytest.mark.parametrize("name", [name for name, profile in PROFILES.items() if not profile.fp8])
def test_profiles_that_only_move_weights_change_no_bit(name: str, source: str, plain: np.ndarray) -> None:
    assert np.array_equal(make(load(source, device="cpu", memory=name), picture()), plain)


@pytest.mark.parametrize("name", [name for name, profile in PROFILES.items() if profile.fp8])
def test_profiles_that_store_fp8_stay_near(name: str, source: str, plain: np.ndarray) -> None:
    pipe = load(source, device="cpu", memory=name)
    made = make(pipe, picture())
    assert not np.array_equal(made, plain)
    assert np.sqrt(np.mean((made - plain) ** 2)) < 0.15 * plain.std()
    assert pipe.loras == load(source, device="cpu").loras


def test_fp8_halves_and_more_and_keeps_what_is_delicate(source: str) -> None:
    transformer = load(source, device="cpu", memory="24gb").transformer
    block = transformer.blocks[0]
    kinds = {name: p.dtype for name, p in block.named_parameters()}
    assert any(kind == profiles.FP8 for kind in kinds.values())
    assert all(kind == torch.float32 for name, kind in kinds.items() if "norm" in name or "lora_" in name)
    assert transformer.dtype == torch.float32


@pytest.mark.parametrize("place", ["host", "disk"])
def test_offloading_block_by_block_changes_no_bit(place: str, source: str, plain: np.ndarray, tmp_path: Path) -> None:
    """From memory to memory: what a GPU's profile does, but for the device."""
    pipe = load(source, device="cpu")
    apply_group_offloading(
        pipe.transformer,
        torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        offload_to_disk_path=str(tmp_path) if place == "disk" else None,
    )
    apply_group_offloading(pipe.text_encoder, torch.device("cpu"), offload_type="leaf_level")
    apply_group_offloading(pipe.vae, torch.device("cpu"), offload_type="leaf_level")
    assert np.array_equal(make(pipe, picture()), plain)


def test_weights_on_disk_take_no_memory_and_no_lora(source: str, plain: np.ndarray) -> None:
    pipe = load(source, device="cpu")
    pipe.lay_out(Profile("on disk", None, transformer="disk"), "cpu")
    assert np.array_equal(make(pipe, picture()), plain)
    with pytest.raises(InputError, match="on the disk"):
        pipe.load_lora("a.safetensors")


def test_a_released_text_encoder_comes_back(source: str) -> None:
    pipe = load(source, device="cpu", memory="cpu")
    first = pipe.encode_text(["a red circle"])
    assert pipe.backbone.text_encoder is None
    assert torch.equal(pipe.encode_text(["a red circle"]).tokens, first.tokens)


def test_a_clip_says_its_profile_and_is_remade_with_it(source: str, tmp_path: Path) -> None:
    from pusa.generation.provenance import regenerate

    clip = load(source, device="cpu", memory="24gb").generate("a red circle", [], **OPTIONS)
    clip.save(tmp_path / "a.mp4")
    again = regenerate(tmp_path / "a.json")
    assert again.recipe["model"]["memory"] == "24gb"
    assert np.array_equal(again.frames, clip.frames)


def test_unknown_profiles_are_refused(source: str) -> None:
    with pytest.raises(InputError, match="choose one of 80gb"):
        load(source, device="cpu", memory="9gb")


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name in PROFILES if name != "cpu"])
def test_profiles_on_a_gpu(name: str, source: str) -> None:
    reference = make(load(source, device="cuda", dtype=torch.float32), picture())
    made = make(load(source, device="cuda", dtype=torch.float32, memory=name), picture())
    assert np.sqrt(np.mean((made - reference) ** 2)) < (0.15 if PROFILES[name].fp8 else 1e-3) * reference.std()


# -------------------------------------------------------------------------------------------- a slot at a time


def small_vae(**changes: object) -> AutoencoderKLWan:
    torch.manual_seed(0)
    config = {"base_dim": 16, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    return AutoencoderKLWan(**(config | changes)).eval()


WAN22 = {"z_dim": 48, "is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12,
         "decoder_base_dim": 16, "scale_factor_spatial": 16, "latents_mean": [0.0] * 48,
         "latents_std": [1.0] * 48}  # fmt: skip


@pytest.mark.parametrize(("changes", "tiled"), [({}, False), ({}, True), (WAN22, False)])
@torch.no_grad()
def test_slot_by_slot_is_bit_identical_to_the_whole(changes: dict[str, object], tiled: bool) -> None:
    vae = small_vae(**changes)
    if tiled:
        vae.enable_tiling(32, 32, 24, 24)
    frames = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), np.uint8)
    z = autoencoder.encode(vae, frames)
    pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    assert torch.equal(z, (vae.encode(pixels).latent_dist.mode() - mean) / std)
    whole = ((vae.decode(z * std + mean).sample + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    assert np.array_equal(autoencoder.decode(vae, z), whole[0].permute(1, 2, 3, 0).numpy())


@pytest.mark.slow
def test_memory_of_decoding_does_not_grow_with_the_clip() -> None:
    code = """
import resource, sys, torch
from diffusers import AutoencoderKLWan
from pusa.models.wan import autoencoder
torch.manual_seed(0)
vae = AutoencoderKLWan(base_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()
autoencoder.decode(vae, torch.randn(1, 16, int(sys.argv[1]), 32, 32))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
    short, long = (
        int(subprocess.run([sys.executable, "-c", code, str(slots)], capture_output=True, text=True, check=True).stdout)
        for slots in (5, 33)
    )
    frames = 112 * 256 * 256 * 3
    assert long - short < frames + 30e6
