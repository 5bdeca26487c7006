"""The embedded model, which is trained, in ComfyUI's network and with ComfyUI's loading of its LoRA."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import pusa
from pusa.models.export import convert
from tests.comfyui import hosts
from tests.comfyui.conftest import Twins, Vae
from tests.comfyui.test_sampler import TOLERANCE, difference, matrix, picture, sampled

PROMPT = "a red circle moves right on a white background"
STEPS, SHIFT, GUIDANCE = 6, 3.0, 2.0


@pytest.mark.skipif(not hosts.REAL, reason="needs ComfyUI: set COMFYUI_PATH to a checkout of it")
def test_a_given_first_frame(tmp_path: Path, noise_frames: Any) -> None:
    import comfy.sd
    import comfy.utils

    pipe = pusa.load("tiny", device="cpu")
    (lora,) = pipe.loras
    convert(lora.path, tmp_path / "comfy.safetensors", "comfy")
    plain = hosts.model(pusa.load("tiny-base", device="cpu").transformer)
    plain.model.latent_format = SimpleNamespace(  # its autoencoder has 12 channels and no scale of its own
        process_in=lambda latent: latent,
        process_out=lambda latent: latent,
        latent_channels=12,
        latent_rgb_factors=None,
        taesd_decoder_name=None,
    )
    weights = comfy.utils.load_torch_file(str(tmp_path / "comfy.safetensors"))
    model, _ = comfy.sd.load_lora_for_models(plain, None, weights, lora.scale, 0)
    text = [hosts.conditioning(tokens[None]) for tokens in pipe.encode_text([PROMPT, ""]).tokens]
    vae = Vae(pipe, plain.model.latent_format)
    own, without = (Twins(pipe, one, None, vae, *text) for one in (model, plain))
    start = noise_frames(1, size=(64, 64))
    latent = picture(own, {"samples": torch.zeros(1, 12, 5, 16, 16)}, start, 0, 0.2)
    options: Any = {"walked": matrix(latent, STEPS, SHIFT), "cfg": GUIDANCE}
    request: Any = {"steps": STEPS, "shift": SHIFT, "guidance": GUIDANCE, "seed": 7, "size": (64, 64), "frames": 17}
    clip = pipe.generate(PROMPT, [pusa.Image(start[0], 0, 0.2)], **request)
    assert difference(own, sampled(own, latent, **options), clip) < TOLERANCE
    assert difference(without, sampled(without, latent, **options), clip) > 1e-1
