"""Rough colours of latents, to show a video while it is made, and the small pictures of a finished one.

Decoding takes seconds on a large model, so a linear map from a latent to a colour is fitted once to what the model's
own autoencoder makes of random colours. It works for every autoencoder.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pusa.media.images import Frames, write_image
from pusa.models.backbone import Encoders

SIDE = 256
"""pixels of the longer side of a preview"""
_PATCHES = 8
"""random colours along a side of the clip that the map is fitted to"""
SPRITES = 16
"""pictures of a sprite sheet at most"""


class LatentColours:
    """The map: rgb = [z, 1] @ weights, [C + 1, 3]."""

    def __init__(self, backbone: Encoders) -> None:
        patch = 2 * backbone.geometry.multiple
        generator = np.random.default_rng(0)
        colours = generator.integers(0, 256, (_PATCHES, _PATCHES, 3), dtype=np.uint8)
        picture = np.kron(colours, np.ones((patch, patch, 1), dtype=np.uint8))
        frames = np.repeat(picture[None], 1 + backbone.geometry.frames_per_slot, axis=0)
        with torch.no_grad():
            z = backbone.encode(frames).float().cpu()[0]  # [C, 2, h, w]
        side = backbone.geometry.spatial
        height, width = z.shape[2:]
        means = picture.reshape(height, side, width, side, 3).mean((1, 3)) / 255
        inputs = torch.cat([z.flatten(1).T, torch.ones(z[0].numel(), 1)], dim=1)
        targets = torch.from_numpy(means.reshape(-1, 3)).float().repeat(z.shape[1], 1)
        self._weights = torch.linalg.lstsq(inputs, targets, driver="gelsd").solution

    def __call__(self, latents: Tensor) -> Frames:
        """Latents [1, C, F, h, w] as small frames, uint8 [F, h, w, 3]."""
        z = latents.detach()[0].float().cpu()
        rgb = torch.einsum("cfhw,cd->fhwd", z, self._weights[:-1]) + self._weights[-1]
        frames: Frames = (rgb.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        return frames


def animated(frames: Frames, milliseconds: float) -> bytes:
    """Frames uint8 [F, h, w, 3], enlarged to `SIDE` at most, as an animated WebP that repeats."""
    height, width = frames.shape[1:3]
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    pictures = [Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC) for frame in frames]
    out = io.BytesIO()
    pictures[0].save(
        out,
        "WEBP",
        save_all=True,
        append_images=pictures[1:],
        duration=round(milliseconds),
        loop=0,
        quality=70,
        method=0,
    )
    return out.getvalue()


def write_thumbnail(path: Path, frames: Frames) -> None:
    """The middle frame, at most `SIDE` pixels wide and high."""
    picture = Image.fromarray(frames[len(frames) // 2])
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    write_image(path, np.asarray(picture))


def write_spritesheet(path: Path, frames: Frames) -> None:
    """Up to `SPRITES` frames at equal distances, in rows of four, each at most `SIDE` pixels wide and high."""
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(SPRITES, len(frames))).round().astype(int))
    pictures = [Image.fromarray(frames[i]) for i in chosen]
    for picture in pictures:
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    width, height = pictures[0].size
    columns = min(4, len(pictures))
    sheet = Image.new("RGB", (columns * width, math.ceil(len(pictures) / columns) * height))
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * width, i // columns * height))
    write_image(path, np.asarray(sheet))
