"""Read the cache files of the official trainer, `CLIP.tensors.pth`, which contain latents and a context.

A file contains `{"latents": [16, F, h, w], "prompt_emb": {"context": [1, 512, 4096]}, ...}` in bfloat16, with the
normalisation of this package. A pickle can run code when it is loaded, so the files are loaded with `weights_only`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pusa.errors import InputError
from pusa.models.wan.geometry import GEOMETRIES
from pusa.models.wan.text import TOKENS


def read_tensors(path: Path) -> tuple[Tensor, Tensor]:
    """Return the latents, float32 [C, F, h, w], and the context, [L, D], of an official `*.tensors.pth`.

    Raises InputError if the file is damaged or has other contents.
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
        raise InputError(
            f"{path} is damaged or does not contain latents and prompt_emb.context; make the file again"
        ) from error
    return z.float().contiguous(), context.contiguous()


def clip_shape(path: Path) -> tuple[int, int, int]:
    """Return the frames, width and height, in pixels, of the clip that was encoded into an official `*.tensors.pth`."""
    z, _ = read_tensors(path)
    channels, slots, height, width = z.shape
    geometry = GEOMETRIES.get(channels, GEOMETRIES[16])
    return geometry.pixel_frames(slots), width * geometry.spatial, height * geometry.spatial
