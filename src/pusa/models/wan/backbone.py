"""Wan as a `Backbone`: the stock networks, and the one place where its transformer is called."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from pusa.images import Frames
from pusa.models.backbone import Defaults, Geometry, Text
from pusa.models.wan import autoencoder, text
from pusa.models.wan.operations import StepCounter
from pusa.models.wan.transformer import VectorWanTransformer3DModel, is_beginning


@dataclass
class WanEncoders:
    """The parts of Wan that clips and captions are encoded with.

    source: the model's name, in a form that `load` takes again (folders as absolute paths). patch: the transformer's.
    """

    vae: AutoencoderKLWan
    text_encoder: UMT5EncoderModel
    tokenizer: PreTrainedTokenizerBase
    source: str
    patch: tuple[int, int, int] = field(default=(1, 2, 2), kw_only=True)

    @property
    def geometry(self) -> Geometry:
        """From the configurations of autoencoder and transformer."""
        return autoencoder.geometry_of(self.vae.config, self.patch)

    @property
    def channels(self) -> int:
        """Of the latents: 16, or 48 for Wan2.2's autoencoder."""
        return int(self.vae.config.z_dim)

    @property
    def text_tokens(self) -> int:
        """512."""
        return text.TOKENS

    @property
    def text_width(self) -> int:
        """Of a text token, 4096 for umt5-xxl."""
        return int(self.text_encoder.config.d_model)

    @property
    def vae_fingerprint(self) -> str:
        """A short hash of the autoencoder."""
        return autoencoder.fingerprint(self.vae)

    def encode(self, frames: Frames) -> Tensor:
        """uint8 frames [4n+1, H, W, 3] to normalised latents, float32 [1, C, n+1, h, w], see `autoencoder.encode`."""
        return autoencoder.encode(self.vae, frames)

    def decode(self, latents: Tensor) -> Frames:
        """Normalised latents [1, C, F, h, w] to uint8 frames [4(F-1)+1, H, W, 3], see `autoencoder.decode`."""
        return autoencoder.decode(self.vae, latents)

    def encode_text(self, prompts: Sequence[str]) -> Text:
        """Prompts to [B, 512, D]. There is no mask: stock Wan attends to the zeros past a prompt's end too."""
        return Text(text.encode(self.text_encoder, self.tokenizer, prompts))


@dataclass
class WanBackbone(WanEncoders):
    """A loaded Wan: the diffusers and transformers objects, and what identifies it.

    transformer, transformer_2: the only one and None, or the experts for high and for low noise. fingerprint: changes
    when a file of the checkpoint does. loras: the adapters loaded so far. beside: the parts that were given beside the
    source, in a form that `load` takes again.
    """

    transformer: VectorWanTransformer3DModel
    fingerprint: str
    defaults: Defaults
    transformer_2: VectorWanTransformer3DModel | None = None
    loras: tuple[Any, ...] = ()
    beside: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        p_t, p_h, p_w = self.transformer.config.patch_size
        self.patch = (p_t, p_h, p_w)

    @property
    def positions(self) -> int:
        """Of the rotary embedding, along each of time, height and width."""
        return int(self.transformer.config.rope_max_seq_len)

    @property
    def heads(self) -> int:
        """Attention heads."""
        return int(self.transformer.config.num_attention_heads)

    def velocity(
        self,
        network: nn.Module,
        latents: Tensor,
        sigma: Tensor,
        text: Text,
        *,
        frames: Tensor | None = None,
        branch: str | None = None,
        autocast: torch.dtype | None = None,
    ) -> Tensor:
        """See `Backbone.velocity` and the function `velocity`."""
        return velocity(network, latents, sigma, text, frames=frames, branch=branch, autocast=autocast)

    def exact_modules(self, network: VectorWanTransformer3DModel) -> Sequence[nn.Module]:
        """The time embedder: rounded to bfloat16, neighbouring timesteps would become one."""
        return [network.condition_embedder.time_embedder]

    def step_counter(self, network: VectorWanTransformer3DModel) -> StepCounter:
        """The operations of a training step, counted layer by layer."""
        return StepCounter(network)


def velocity(
    network: nn.Module,
    latents: Tensor,
    sigma: Tensor,
    text: Text,
    *,
    frames: Tensor | None = None,
    branch: str | None = None,
    autocast: torch.dtype | None = None,
) -> Tensor:
    """Wan's prediction of ε − x0, in the type of `latents`. Every call of the transformer is made here.

    The timestep is 1000 σ in float32. network: a `VectorWanTransformer3DModel` or what FSDP or DDP made of it. latents:
    [B, C, V, h, w]. sigma: [B, V], or [B] for one level per clip. The rest as in `Backbone.velocity`.
    """
    options: dict[str, Any] = {}
    if frames is not None and not is_beginning(frames):
        options["frame_positions"] = frames
    x, tokens = latents, text.tokens
    with ExitStack() as stack:
        if branch is not None:
            stack.enter_context(network.cache_context(branch))  # type: ignore[operator]
        if autocast is not None:
            stack.enter_context(torch.autocast(latents.device.type, autocast))
        else:
            dtype: Any = getattr(network, "module", network).dtype
            x, tokens = x.to(dtype), tokens.to(dtype)
        predicted: Tensor = network(
            hidden_states=x,
            timestep=1000 * sigma.float(),
            encoder_hidden_states=tokens,
            return_dict=False,
            **options,
        )[0]
    return predicted.to(latents.dtype)
