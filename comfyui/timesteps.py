"""One timestep per latent frame for ComfyUI's Wan network, and the models for which this works.

ComfyUI's Wan takes timesteps [B, F] and shares a row of modulation among the tokens of a latent frame. Its sampling
code passes one timestep per clip. A wrapper of the network replaces it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.ldm.wan.model
from torch import Tensor

from pusa.errors import InputError

KEY = "pusa"
"""The name of the wrappers in ComfyUI's tables."""


def per_frame(rows: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """Return a wrapper of the network that replaces its timesteps [N] by rows(timesteps), [N, F]."""

    def wrapper(executor: Any, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        frames = rows(timestep)
        if frames.shape[1] != x.shape[2]:
            raise InputError(
                f"The network was called for {x.shape[2]} of {frames.shape[1]} latent frames: remove nodes that cut a "
                "clip into context windows, or connect the latent for which the noise was set."
            )
        predicted: Tensor = executor(x, frames, *args, **kwargs)
        return predicted

    return wrapper


def check_model(model: Any) -> None:
    """Raise InputError unless a MODEL is a Wan whose network takes timesteps per frame and no picture channels."""
    network = model.get_model_object("diffusion_model")
    network = getattr(network, "_orig_mod", network)  # of a compiled network
    if type(network) is not comfy.ldm.wan.model.WanModel:
        raise InputError(
            f"The model is a {type(network).__name__}, which takes one timestep per clip: load a text-to-video model "
            "of Wan2.1 or Wan2.2."
        )
    takes, has = network.patch_embedding.weight.shape[1], model.get_model_object("latent_format").latent_channels
    if takes != has:
        raise InputError(
            f"The model takes {takes} channels, of which {takes - has} are for a picture: load a text-to-video model, "
            "whose frames are given by noise levels."
        )
    if hasattr(model.get_model_object("model_sampling"), "frame_multipliers"):
        raise InputError("The model has noise levels per frame already: connect the model before that node.")
