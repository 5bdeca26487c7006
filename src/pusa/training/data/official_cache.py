"""The cache files of the official trainer, `CLIP.tensors.pth`: latents and a context that were made already.

Each holds `{"latents": [16, F, h, w], "prompt_emb": {"context": [1, 512, 4096]}, ...}` in bfloat16, normalised as here.
A pickle can run code when it is loaded; these are loaded as weights only, which refuses to.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pusa.errors import InputError
from pusa.models.wan.autoencoder import GEOMETRIES
from pusa.models.wan.text import TOKENS


def read_ready(path: Path) -> tuple[Tensor, Tensor]:
    """Latents float32 [C, F, h, w] and context [L, D] of an official `*.tensors.pth`, loaded as weights only.

    Raises InputError when it is damaged or holds something else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        z, context = content["latents"], content["prompt_emb"]["context"]
        z = z[0] if z.ndim == 5 else z
        context = context[0] if context.ndim == 3 else context
        assert z.ndim == 4
        assert context.ndim == 2
        assert len(context) <= TOKENS
    except OSError:
        raise
    except Exception as error:
        raise InputError(f"{path} is damaged or holds no latents and prompt_emb.context; make it again") from error
    return z.float().contiguous(), context.contiguous()


def size_of(path: Path) -> tuple[int, int, int]:
    """Frames, width and height of the clip that the latents of an official `*.tensors.pth` stand for."""
    z, _ = read_ready(path)
    channels, slots, height, width = z.shape
    geometry = GEOMETRIES.get(channels, GEOMETRIES[16])
    return geometry.pixel_frames(slots), width * geometry.spatial, height * geometry.spatial
