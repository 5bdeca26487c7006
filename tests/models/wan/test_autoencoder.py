"""Latent geometry, and agreement with the stock autoencoder and text path."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, WanPipeline
from hypothesis import given
from hypothesis import strategies as st

from pusa.errors import InputError
from pusa.models.wan import autoencoder, text
from pusa.models.wan.geometry import GEOMETRIES

WAN = GEOMETRIES[16]


@pytest.mark.parametrize(("frames", "slots"), [(1, 1), (9, 3), (13, 4), (41, 11), (81, 21)])
def test_published_lengths(frames, slots):
    assert WAN.latent_frames(frames) == slots
    assert WAN.pixel_frames(slots) == frames


@pytest.mark.parametrize(("frames", "advice"), [(80, "77 or 81"), (2, "1 or 5"), (0, "use 1."), (-3, "use 1.")])
def test_other_lengths_name_the_nearest(frames, advice):
    with pytest.raises(InputError, match=advice):
        WAN.latent_frames(frames)


@given(st.integers(0, 10_000))
def test_every_frame_is_in_its_slot(frame):
    held = WAN.frames_of(WAN.slot_of(frame))
    assert frame in held
    assert len(held) == (1 if frame == 0 else 4)


def test_last_twelve_of_81_frames_are_slots_18_to_20():
    assert [WAN.slot_of(frame) for frame in range(69, 81)] == [18] * 4 + [19] * 4 + [20] * 4


def test_encoding_is_causal_and_normalised(tiny_pipe, noise_frames):
    vae, frames = tiny_pipe.vae, noise_frames(17)
    whole = autoencoder.encode(vae, frames)
    assert whole.shape == (1, 16, 5, 4, 4)
    assert whole.dtype == torch.float32
    assert torch.equal(autoencoder.encode(vae, frames[:1]), whole[:, :, :1])
    assert torch.equal(autoencoder.encode(vae, frames[:9]), whole[:, :, :3])
    pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    mode = vae.encode(pixels).latent_dist.mode()
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    torch.testing.assert_close(whole, (mode - mean) / std)


def test_decoding_rounds_and_undoes_the_normalisation(tiny_pipe, noise_frames):
    vae = tiny_pipe.vae
    z = autoencoder.encode(vae, noise_frames(5))
    frames = autoencoder.decode(vae, z)
    assert frames.shape == (5, 32, 32, 3)
    assert frames.dtype == np.uint8
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    exact = (vae.decode(z * std + mean).sample[0].permute(1, 2, 3, 0) + 1) * 127.5
    assert np.abs(frames - exact.numpy()).max() <= 0.501


def test_frames_that_the_autoencoder_would_drop_are_refused(tiny_pipe, noise_frames):
    with pytest.raises(InputError, match="5 or 9"):
        autoencoder.encode(tiny_pipe.vae, noise_frames(8))
    with pytest.raises(InputError, match="multiples of 8"):
        autoencoder.encode(tiny_pipe.vae, noise_frames(1)[:, :30])


def test_another_autoencoder(noise_frames):
    vae = AutoencoderKLWan(
        base_dim=16, z_dim=3, dim_mult=[1, 1, 1], num_res_blocks=1, temperal_downsample=[True, True], patch_size=2,
        in_channels=12, out_channels=12, latents_mean=[1.0, 2.0, 3.0], latents_std=[1.0, 2.0, 4.0],
    )  # fmt: skip
    z = autoencoder.encode(vae, noise_frames(5))
    assert z.shape == (1, 3, 2, 4, 4)
    assert autoencoder.decode(vae, z).shape == (5, 32, 32, 3)


def test_text_is_encoded_as_stock_does(tiny_folder, tiny_pipe):
    stock = WanPipeline.from_pretrained(tiny_folder)
    prompts = ["a red circle moves left", "", "  the &amp; quick\n brown   fox  "]
    ours = text.encode(tiny_pipe.text_encoder, tiny_pipe.tokenizer, prompts)
    assert ours.shape == (3, 512, 32)
    for row, prompt in zip(ours, prompts, strict=True):
        with torch.no_grad():
            expected = stock.encode_prompt(prompt, max_sequence_length=512)[0][0]
        assert torch.equal(row, expected)
        assert not row[100:].any()


def test_a_prompt_that_is_too_long_is_not_cut_in_silence(tiny_pipe):
    with pytest.warns(UserWarning, match=r"tokens and the model reads 512: the text from .* has no effect"):
        text.encode(tiny_pipe.text_encoder, tiny_pipe.tokenizer, ["a red circle " * 3000])
