"""A timestep matrix as a picture with readable numbers."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pusa.core import TimestepMatrix

CELL = 44
_LEFT, _TOP = 76, 64
_TEXT, _SIZE = 13, 15


def drawn(matrix: TimestepMatrix) -> Tensor:
    """Return a heat map in ComfyUI's form of an IMAGE: float32 [1, H, W, 3] in [0, 1].

    Each row is a step, with the noise levels before it, and the last row is the result. Each column is a latent frame.
    """
    rows, frames = matrix.steps + 1, matrix.frames
    sigma = matrix.sigma.tolist()
    # `image` draws the rows before the steps; the result is one more step that holds every frame
    result = TimestepMatrix.from_sigma(torch.cat([matrix.sigma, matrix.sigma[-1:]]))
    heat = Image.fromarray(result.image(CELL).numpy())
    page = Image.new("RGB", (_LEFT + frames * CELL + 12, _TOP + rows * CELL + 12), "white")
    page.paste(heat, (_LEFT, _TOP))
    pen, font, small = ImageDraw.Draw(page), _font(_SIZE), _font(_TEXT)
    pen.text((12, 14), "latent frame", fill="black", font=font)
    for f in range(frames):
        pen.text((_LEFT + (f + 0.5) * CELL, _TOP - 12), str(f), fill="black", font=font, anchor="mm")
    for s in range(rows):
        middle = _TOP + (s + 0.5) * CELL
        name = f"step {s}" if s < matrix.steps else "result"
        pen.text((_LEFT - 12, middle), name, fill="black", font=font, anchor="rm")
        for f in range(frames):
            colour = "white" if sigma[s][f] > 0.6 else "black"
            at = (_LEFT + (f + 0.5) * CELL, middle)
            pen.text(at, f"{sigma[s][f]:.3f}", fill=colour, font=small, anchor="mm")
    return torch.from_numpy(np.asarray(page).astype(np.float32) / 255)[None]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
