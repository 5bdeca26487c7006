"""A timestep matrix as a picture with readable numbers."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pusa.core import TimestepMatrix

CELL = 44
LEFT, TOP = 76, 64
"""Pixels of a cell, and of the margins before the first one."""


def drawn(matrix: TimestepMatrix) -> Tensor:
    """Return a heat map in ComfyUI's form of an IMAGE: float32 [1, H, W, 3] in [0, 1].

    Each row is a step, with the noise levels before it, and the last row is the result. Each column is a latent frame.
    """
    rows, frames = matrix.steps + 1, matrix.frames
    sigma = matrix.sigma.tolist()
    # a matrix draws the rows before its steps, so the result becomes one more step, which holds every frame
    result = TimestepMatrix.from_sigma(torch.cat([matrix.sigma, matrix.sigma[-1:]]))
    heat = Image.fromarray(result.image(CELL).numpy())
    page = Image.new("RGB", (LEFT + frames * CELL + 12, TOP + rows * CELL + 12), "white")
    page.paste(heat, (LEFT, TOP))
    pen, font, small = ImageDraw.Draw(page), ImageFont.load_default(15), ImageFont.load_default(13)
    pen.text((12, 14), "latent frame", fill="black", font=font)
    for f in range(frames):
        pen.text((LEFT + (f + 0.5) * CELL, TOP - 12), str(f), fill="black", font=font, anchor="mm")
    for s in range(rows):
        middle = TOP + (s + 0.5) * CELL
        name = f"step {s}" if s < matrix.steps else "result"
        pen.text((LEFT - 12, middle), name, fill="black", font=font, anchor="rm")
        for f in range(frames):
            colour = "white" if sigma[s][f] > 0.6 else "black"
            at = (LEFT + (f + 0.5) * CELL, middle)
            pen.text(at, f"{sigma[s][f]:.3f}", fill=colour, font=small, anchor="mm")
    return torch.from_numpy(np.asarray(page).astype(np.float32) / 255)[None]
