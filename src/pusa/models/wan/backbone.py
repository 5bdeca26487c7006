"""Wan as a `Backbone`, and the only function that calls its transformer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from pusa.media.images import Frames
from pusa.models.backbone import Defaults, Geometry, HubNames, Text
from pusa.models.wan import autoencoder, fingerprints, partial_blocks, per_clip, text
from pusa.models.wan.geometry import geometry_of
from pusa.models.wan.operations import StepCounter, block_operations
from pusa.models.wan.per_clip import TextMemory
from pusa.models.wan.transformer import VectorWanTransformer3DModel, is_beginning


@dataclass
class WanEncoders:
    """Wan's autoencoder and text encoder, see `pusa.models.backbone.Encoders`.

    source: the name of the model; a folder is an absolute path. patch: latents per token, of the transformer.
    """

    vae: AutoencoderKLWan
    text_encoder: UMT5EncoderModel
    tokenizer: PreTrainedTokenizerBase
    source: str
    patch: tuple[int, int, int] = field(default=(1, 2, 2), kw_only=True)

    @property
    def geometry(self) -> Geometry:
        return geometry_of(self.vae.config, self.patch)

    @property
    def channels(self) -> int:
        """The number of latent channels: 16, or 48 for Wan2.2's autoencoder."""
        return int(self.vae.config.z_dim)

    @property
    def text_tokens(self) -> int:
        return text.TOKENS

    @property
    def text_width(self) -> int:
        """The width of a text token: 4096 for umt5-xxl."""
        return int(self.text_encoder.config.d_model)

    @property
    def vae_fingerprint(self) -> str:
        return autoencoder.fingerprint(self.vae)

    def latents_fingerprint(self) -> str:
        return fingerprints.of_latents(self.vae)

    def text_fingerprint(self) -> str:
        return fingerprints.of_text(self.text_encoder, self.tokenizer, text.TOKENS)

    @staticmethod
    def clean(prompt: str) -> str:
        return text.clean(prompt)

    def encode(self, frames: Frames) -> Tensor:
        """Encode uint8 frames [4n+1, H, W, 3] to latents [1, C, n+1, h, w], see `autoencoder.encode`."""
        return autoencoder.encode(self.vae, frames)

    def decode(self, latents: Tensor) -> Frames:
        """Decode latents [1, C, F, h, w] to uint8 frames [4(F-1)+1, H, W, 3], see `autoencoder.decode`."""
        return autoencoder.decode(self.vae, latents)

    def encode_text(self, prompts: Sequence[str]) -> Text:
        """Encode prompts to [B, 512, D]. There is no mask, because Wan attends to the zeros after a prompt, too."""
        return Text(text.encode(self.text_encoder, self.tokenizer, prompts))


@dataclass
class WanBackbone(WanEncoders):
    """A loaded Wan, see `pusa.models.backbone.Backbone`. Its networks are objects of diffusers and transformers."""

    transformer: VectorWanTransformer3DModel
    fingerprint: str
    defaults: Defaults
    transformer_2: VectorWanTransformer3DModel | None = None
    loras: tuple[Any, ...] = ()
    beside: dict[str, str] = field(default_factory=dict)
    hub_names = HubNames("wan", "WanPipeline", "WanTransformer3DModel")

    def __post_init__(self) -> None:
        p_t, p_h, p_w = self.transformer.config.patch_size
        self.patch = (p_t, p_h, p_w)

    @property
    def positions(self) -> int:
        """The number of positions of the rotary embedding, along each of time, height and width."""
        return int(self.transformer.config.rope_max_seq_len)

    @property
    def heads(self) -> int:
        return int(self.transformer.config.num_attention_heads)

    @staticmethod
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
        """Return Wan's prediction of ε − x0, in the type of `latents`. Every call of the transformer is made here.

        The transformer gets the timestep 1000 σ in float32. network: a `VectorWanTransformer3DModel`, also in DDP.
        sigma: [B, V], or [B] for one level per clip. The other arguments are those of `Backbone.velocity`.
        """
        options: dict[str, Any] = {}
        if frames is not None and not is_beginning(frames):
            options["frame_positions"] = frames
        x, tokens = latents, text.tokens
        with ExitStack() as stack:
            if branch is not None:  # of diffusers' CacheMixin; tests/generation/test_pipeline.py fails when it moves
                stack.enter_context(network.cache_context(branch))  # type: ignore[operator]
            if autocast is not None:
                stack.enter_context(torch.autocast(latents.device.type, autocast))
            else:
                memory: TextMemory | None = getattr(network, "text_memory", None)
                source: Any = memory or getattr(network, "module", network)
                x = x.to(source.dtype)
                tokens = tokens.to(x.dtype) if memory is None else stack.enter_context(memory.reading(tokens))
            predicted: Tensor = network(
                hidden_states=x,
                timestep=1000 * sigma.float(),
                encoder_hidden_states=tokens,
                return_dict=False,
                **options,
            )[0]
        return predicted.to(latents.dtype)

    @contextmanager
    def walk(self) -> Iterator[None]:
        """During the block, keep what does not change between the steps of a clip, see `per_clip`."""
        with ExitStack() as stack:
            for network in self._networks:
                stack.enter_context(per_clip.walk(network))
            yield

    def forget(self) -> None:
        """Drop what a walk keeps, because weights have changed."""
        for network in self._networks:
            if network.text_memory is not None:
                network.text_memory.forget()

    @property
    def _networks(self) -> list[VectorWanTransformer3DModel]:
        return [network for network in (self.transformer, self.transformer_2) if network is not None]

    def exact_modules(self, network: VectorWanTransformer3DModel) -> Sequence[nn.Module]:
        """Return the time embedder. In bfloat16, neighbouring timesteps would be rounded to the same number."""
        return [network.condition_embedder.time_embedder]

    def blocks(self, network: VectorWanTransformer3DModel) -> Sequence[nn.Module]:
        return list(network.blocks)

    def blocks_run_by(self, network: nn.Module, run: partial_blocks.Run) -> AbstractContextManager[None]:
        return partial_blocks.blocks_run_by(network, run)

    def block_operations(self, network: VectorWanTransformer3DModel, tokens: int, computed: int) -> int:
        return block_operations(network, tokens, computed)

    def step_counter(self, network: VectorWanTransformer3DModel) -> StepCounter:
        return StepCounter(network)
