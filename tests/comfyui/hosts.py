"""The program that runs the nodes in the tests: ComfyUI, if COMFYUI_PATH names a checkout of it, or a stand-in.

The stand-in has the functions of ComfyUI that the nodes use, with the shapes and the order of calls of the real ones.
The same tests run with both.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from torch import Tensor

from tests.models.layouts import wan_transformer

PATH = os.environ.get("COMFYUI_PATH")
REAL = bool(PATH)


def start() -> None:
    """Make the modules of ComfyUI importable, on the CPU."""
    if not REAL:
        from tests.comfyui import standin

        standin.install()
    elif PATH not in sys.path:
        sys.path.append(str(PATH))
        from comfy.cli_args import args

        args.cpu = True


def model(network: Any) -> Any:
    """A MODEL of ComfyUI with the weights of a Wan of diffusers, in float32 on the CPU."""
    if not REAL:
        from tests.comfyui import standin

        return standin.ModelPatcher(network)
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    config = network.config
    kind = comfy.supported_models.WAN21_T2V(
        {
            "image_model": "wan2.1",
            "model_type": "t2v",
            "dim": config.num_attention_heads * config.attention_head_dim,
            "num_heads": config.num_attention_heads,
            "ffn_dim": config.ffn_dim,
            "freq_dim": config.freq_dim,
            "text_dim": config.text_dim,
            "num_layers": config.num_layers,
            "patch_size": tuple(config.patch_size),
            "in_dim": config.in_channels,
            "out_dim": config.out_channels,
        }
    )
    kind.set_inference_dtype(torch.float32, None)
    base = comfy.model_base.WAN21(kind, device="cpu")
    weights = wan_transformer({name: value.detach().clone() for name, value in network.state_dict().items()})
    missing = set(base.diffusion_model.state_dict()) ^ set(weights)
    assert not missing, missing
    base.load_model_weights(weights)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(base, load_device=cpu, offload_device=cpu)


def conditioning(tokens: Tensor) -> list[Any]:
    """A CONDITIONING of an encoded prompt [1, L, D]."""
    return [[tokens, {}]]
