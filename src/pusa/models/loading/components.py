"""A model of networks that another program has loaded, such as the components of a pipeline of diffusers.

`checkpoints.py` knows the files of a model. Here only the networks are known, so the fingerprint is one of the
networks, and a sidecar names a model that `pusa` cannot load again.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import diffusers
import torch
from diffusers import AutoencoderKLWan, SchedulerMixin, UniPCMultistepScheduler
from torch import nn
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from pusa.errors import InputError
from pusa.models.backbone import Defaults
from pusa.models.loading import configurations, sources
from pusa.models.lora import runtime
from pusa.models.wan import autoencoder_layers, defaults, recognise
from pusa.models.wan.backbone import WanBackbone
from pusa.models.wan.transformer import VectorWanTransformer3DModel

_SAMPLED = 16
"""how many values of each tensor are hashed"""


_SETTINGS: WeakKeyDictionary[nn.Module, Defaults] = WeakKeyDictionary()
"""the default settings of the transformers of loaded models, for pipelines that get their networks alone"""


def remember(transformer: nn.Module, settings: Defaults) -> None:
    """Keep the default settings of a model with its transformer. `called` finds them."""
    _SETTINGS[transformer] = settings


def adopt(
    *,
    transformer: Any,
    transformer_2: Any,
    vae: AutoencoderKLWan,
    text_encoder: UMT5EncoderModel,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
) -> WanBackbone:
    """Return the networks as a backbone with the defaults of their family. They are changed in place.

    The transformers get one timestep per latent frame. With one timestep per clip, they still compute what they did,
    bit for bit. The autoencoder gets the layers of `autoencoder_layers`. source: the name of the model in messages.

    Raises InputError unless the networks are those of a text-to-video model that fit together, and for a transformer
    that has hooks.
    """
    if transformer is None:
        raise InputError(f"{source} has no transformer: give one.")
    networks = [network for network in (transformer, transformer_2) if network is not None]
    for network in networks:
        recognise.refuse_config(source, dict(network.config), wan22=transformer_2 is not None)
        if network.config.in_channels != vae.config.z_dim:
            raise InputError(
                f"The transformer of {source} takes {network.config.in_channels} channels, and its autoencoder makes "
                f"{vae.config.z_dim}: give the two of one model."
            )
    upgraded = [VectorWanTransformer3DModel.upgrade(network) for network in networks]
    return WanBackbone(
        vae=autoencoder_layers.upgrade(vae),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        source=source,
        transformer=upgraded[0],
        transformer_2=upgraded[1] if transformer_2 is not None else None,
        fingerprint=_fingerprint(networks),
        defaults=_family(int(transformer.config.in_channels), two=transformer_2 is not None),
    )


def called(backbone: WanBackbone, name: str | None, boundary: float | None) -> WanBackbone:
    """Return the backbone with the name and the defaults of its folder, or else with those that are remembered.

    boundary: the noise level at which experts change, instead of the default. Raises InputError for a transformer with
    a LoRA, because its file and its strength are not known.
    """
    networks = (backbone.transformer, backbone.transformer_2)
    if present := [lora for network in networks if network is not None for lora in runtime.names(network)]:
        raise InputError(
            f"The transformer of {backbone.source} has the LoRA {present[0]!r}, whose file is not known: unload it, "
            "and load its file with load_lora_weights of the PusaPipeline."
        )
    settings = _SETTINGS.get(backbone.transformer, backbone.defaults)
    if name is not None and (Path(name) / "model_index.json").is_file():
        settings, name = configurations.defaults_of(Path(name)), str(Path(name).resolve())
    if boundary is not None and backbone.transformer_2 is not None:
        settings = replace(settings, boundary=boundary)
    return replace(backbone, source=name or backbone.source, defaults=settings)


def scheduler(source: str, settings: Defaults) -> SchedulerMixin:
    """Return the scheduler in the folder of a model, or else one with the shift of its defaults. Pusa does not use it.

    A pipeline of diffusers has a scheduler, so a folder without one could not be loaded as such.
    """
    _, folder = sources.find(source)
    if (path := folder / "scheduler" / "scheduler_config.json").is_file():
        kind = getattr(diffusers, str(sources.read_json(path).get("_class_name")), UniPCMultistepScheduler)
        stored: SchedulerMixin = kind.from_pretrained(path.parent, local_files_only=True)
        return stored
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=float(settings.shift)
    )


def _family(channels: int, *, two: bool) -> Defaults:
    if channels == 48:
        return defaults.WAN22_5B
    return defaults.WAN22_A14B if two else defaults.WAN21


@torch.no_grad()
def _fingerprint(networks: list[nn.Module]) -> str:
    """Return a hash of the names, shapes and first values of all tensors."""
    digest = hashlib.sha256()
    for number, network in enumerate(networks):
        for name, tensor in sorted(network.state_dict().items()):
            digest.update(f"{number} {name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.flatten()[:_SAMPLED].to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()
