"""Encode pixels to latents and decode latents to pixels.

Wan's autoencoder is causal in time and makes one latent frame of four pixel frames: slot 0 encodes pixel frame 0, and
slot k >= 1 encodes pixel frames 4k-3 to 4k. So a clip has 4n+1 frames, and the latents of its beginning are the
beginning of its latents, bit for bit. Scale factors and normalisation come from the configuration of the autoencoder,
so every `AutoencoderKLWan` works: that of Wan2.1, that of Wan2.2 with 48 channels, and the embedded one.

A clip goes through the autoencoder one slot at a time. The result is bit-identical to that of the whole clip at once,
and the memory does not grow with the length of the clip. With `vae.enable_tiling()`, the memory does not grow with the
size, either. The causal state is stored on the module, so encode or decode one clip at a time.

The loader replaces two kinds of layers (`autoencoder_layers.py`). So "the autoencoder" below means the loaded one. On a
CPU, its latents and pixels differ by rounding from those of diffusers' layers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import numpy as np
import torch
from diffusers import AutoencoderKLWan

# The code below repeats the private methods _encode and _decode of AutoencoderKLWan slot by slot, with their helpers
# patchify and unpatchify and their state (_enc_feat_map, _enc_conv_idx, _feat_map, _conv_idx).
# test_slot_by_slot_is_bit_identical_to_the_whole (tests/models/memory/test_profiles.py) fails when they change.
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify, unpatchify
from torch import Tensor

from pusa.errors import InputError
from pusa.media.images import Frames
from pusa.models.backbone import Geometry
from pusa.models.wan.geometry import geometry_of


@torch.no_grad()
def encode(vae: AutoencoderKLWan, frames: Frames) -> Tensor:
    """Encode uint8 frames [N, H, W, 3] to normalised latents, float32 [1, C, F, h, w] on the autoencoder's device.

    The result is the mode of the posterior, not a sample. Raises InputError unless N is 4n+1 and H and W are multiples
    of the spatial factor. (The autoencoder itself would drop the other frames without a message.)
    """
    count, height, width = frames.shape[:3]
    geometry = geometry_of(vae.config, (1, 1, 1))
    geometry.latent_frames(count)
    factor = geometry.spatial
    if height % factor or width % factor:
        raise InputError(
            f"Frames of {width}x{height} pixels cannot be encoded: both sides must be multiples of {factor}."
        )
    moments = _encode_whole(vae, frames) if _tiles(vae, height, width) else _encode_slots(vae, frames, geometry)
    latents = moments.chunk(2, dim=1)[0].float()
    mean, std = _statistics(vae, latents)
    normalised: Tensor = (latents - mean) / std
    return normalised


def _encode_whole(vae: AutoencoderKLWan, frames: Frames) -> Tensor:
    """Return mean and log-variance of the latents, [1, 2C, F, h, w]."""
    parameters: Tensor = vae.encode(_pixels(vae, frames)).latent_dist.parameters
    return parameters


def _encode_slots(vae: AutoencoderKLWan, frames: Frames, geometry: Geometry) -> Tensor:
    """Return the same as `_encode_whole`. Only the pixels of one slot are on the device at a time."""
    vae.clear_cache()
    try:
        slots = []
        for span in map(geometry.frames_of, range(geometry.latent_frames(len(frames)))):
            pixels = _pixels(vae, frames[span.start : span.stop])
            if vae.config.patch_size is not None:
                pixels = patchify(pixels, patch_size=vae.config.patch_size)
            vae._enc_conv_idx = [0]
            slots.append(vae.encoder(pixels, feat_cache=vae._enc_feat_map, feat_idx=vae._enc_conv_idx))
        moments: Tensor = vae.quant_conv(torch.cat(slots, dim=2))
    finally:
        vae.clear_cache()
    return moments


def _pixels(vae: AutoencoderKLWan, frames: Frames) -> Tensor:
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).to(vae.device).permute(3, 0, 1, 2).unsqueeze(0)
    return (pixels.float() / 127.5 - 1).to(vae.dtype)


@torch.no_grad()
def decode(vae: AutoencoderKLWan, latents: Tensor) -> Frames:
    """Decode normalised latents [1, C, F, h, w] to uint8 frames [4(F-1)+1, H, W, 3], rounded to the nearest level.

    The pixels are those of `vae.decode` of the same autoencoder, bit for bit. Each slot leaves the device when it is
    decoded. With tiling, the tiles are joined on the CPU, which takes 21 bytes of its memory for each colour value.
    """
    latents = latents.to(vae.device, torch.float32)
    mean, std = _statistics(vae, latents)
    geometry = geometry_of(vae.config, (1, 1, 1))
    count, height, width = geometry.pixel_frames(latents.shape[2]), *(n * geometry.spatial for n in latents.shape[3:])
    frames = np.empty((count, height, width, 3), np.uint8)
    done = 0
    for pixels in decoded(vae, (latents * std + mean).to(vae.dtype)):
        levels = ((pixels[0].float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        frames[done : done + levels.shape[1]] = levels.permute(1, 2, 3, 0).cpu().numpy()
        done += levels.shape[1]
        del pixels, levels
    return frames


def decoded(vae: AutoencoderKLWan, z: Tensor) -> Iterator[Tensor]:
    """Yield the pixels of `vae.decode(z)` in [-1, 1] slot by slot, [1, 3, 1 or 4, H, W]; with tiling all at once."""
    if _tiles(vae, z.shape[3] * vae.spatial_compression_ratio, z.shape[4] * vae.spatial_compression_ratio):
        to_cpu = vae.decoder.register_forward_hook(lambda module, arguments, tile: tile.cpu())
        try:
            yield vae.decode(z, return_dict=False)[0]
        finally:
            to_cpu.remove()
        return
    vae.clear_cache()
    try:
        x = vae.post_quant_conv(z)
        for slot in range(x.shape[2]):
            vae._conv_idx = [0]
            pixels = vae.decoder(
                x[:, :, slot : slot + 1], feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=slot == 0
            )
            if vae.config.patch_size is not None:
                pixels = unpatchify(pixels, patch_size=vae.config.patch_size)
            yield pixels.clamp(-1, 1)
            del pixels
    finally:
        vae.clear_cache()


def _tiles(vae: AutoencoderKLWan, height: int, width: int) -> bool:
    """Return whether frames of this size are cut into tiles."""
    large = width > vae.tile_sample_min_width or height > vae.tile_sample_min_height
    return bool(vae.use_tiling) and large


def _statistics(vae: AutoencoderKLWan, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each latent channel, [1, C, 1, 1, 1]."""
    config = vae.config
    mean, std = (like.new_tensor(x).view(1, -1, 1, 1, 1) for x in (config.latents_mean, config.latents_std))
    return mean, std


def fingerprint(vae: AutoencoderKLWan) -> str:
    """Return a short hash of the configuration and the outer convolutions, 16 hexadecimal digits."""
    config = {key: value for key, value in vae.config.items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for layer in (vae.encoder.conv_in, vae.quant_conv, vae.post_quant_conv, vae.decoder.conv_out):
        digest.update(layer.weight.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
