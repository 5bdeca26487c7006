"""Pixels to latents and back.

Wan's autoencoder is causal in time and compresses it by four: latent slot 0 is pixel frame 0, slot k >= 1 is pixel
frames 4k-3 ... 4k. Hence the first latent of a clip is the latent of its first picture bit for bit, the latents of a
clip's beginning are the beginning of its latents, and a clip has 4n+1 frames. Scale factors and normalisation come from
the autoencoder's own config, so every AutoencoderKLWan works (Wan2.1, the 48-channel one of Wan2.2, the embedded one).

Clips go through the autoencoder a slot at a time and only what is asked for is kept, so the memory that it takes does
not grow with their length, bit for bit as if they went through in one piece; `vae.enable_tiling()` makes it independent
of the size too. It keeps its causal state on the module while it works: one encode or decode at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify, unpatchify
from torch import Tensor

from pusa.errors import InputError
from pusa.images import Frames
from pusa.models.backbone import Geometry

FRAMES_PER_SLOT = 4
GEOMETRIES = {16: Geometry(FRAMES_PER_SLOT, 8, (1, 2, 2)), 48: Geometry(FRAMES_PER_SLOT, 16, (1, 2, 2))}
"""By latent channels: the geometry of the models with Wan2.1's autoencoder and of those with Wan2.2's."""


def geometry_of(vae: Mapping[str, Any], patch: tuple[int, int, int]) -> Geometry:
    """From the autoencoder's configuration and the transformer's patch size."""
    return Geometry(FRAMES_PER_SLOT, int(vae.get("scale_factor_spatial") or 8), patch)


@torch.no_grad()
def encode(vae: AutoencoderKLWan, frames: Frames) -> Tensor:
    """Encode uint8 frames [N, H, W, 3] to normalised latents, float32 [1, C, F, h, w] on the autoencoder's device.

    The mode of the posterior, not a draw. N must be 4n+1 (the autoencoder would drop the rest unsaid), H and W
    multiples of its spatial factor; InputError otherwise.
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
    """Mean and log-variance of the latents, [1, 2C, F, h, w]."""
    parameters: Tensor = vae.encode(_pixels(vae, frames)).latent_dist.parameters
    return parameters


def _encode_slots(vae: AutoencoderKLWan, frames: Frames, geometry: Geometry) -> Tensor:
    """`_encode_whole` with one slot's pixels on the device at a time."""
    vae.clear_cache()
    try:
        slots = []
        for held in map(geometry.frames_of, range(geometry.latent_frames(len(frames)))):
            pixels = _pixels(vae, frames[held.start : held.stop])
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

    What `vae.decode` gives, bit for bit. Its frames leave the device as they come; with tiling on they are put together
    from tiles on the CPU, which takes 21 bytes for each of a pixel's three colours there.
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
    """The pixels of `vae.decode(z)` in [-1, 1], slot after slot: [1, 3, 1 or 4, H, W]; all in one piece with tiling."""
    if _tiles(vae, z.shape[3] * vae.spatial_compression_ratio, z.shape[4] * vae.spatial_compression_ratio):
        gather = vae.decoder.register_forward_hook(lambda module, given, tile: tile.cpu())
        try:
            yield vae.decode(z, return_dict=False)[0]
        finally:
            gather.remove()
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
    """Whether pictures of this size are cut into tiles."""
    large = width > vae.tile_sample_min_width or height > vae.tile_sample_min_height
    return bool(vae.use_tiling) and large


def _statistics(vae: AutoencoderKLWan, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per latent channel, [1, C, 1, 1, 1]."""
    mean, std = (like.new_tensor(values).view(1, -1, 1, 1, 1) for values in _configured(vae))
    return mean, std


def _configured(vae: AutoencoderKLWan) -> tuple[Sequence[float], Sequence[float]]:
    return vae.config.latents_mean, vae.config.latents_std


def fingerprint(vae: AutoencoderKLWan) -> str:
    """A short hash that tells autoencoders apart: config and outer convolutions."""
    config = {key: value for key, value in vae.config.items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for layer in (vae.encoder.conv_in, vae.quant_conv, vae.post_quant_conv, vae.decoder.conv_out):
        digest.update(layer.weight.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
