"""The networks that are compared, and a shorter way through text that is mostly padding.

Stock Wan pads every prompt with zeros to 512 positions and attends to all of them. n equal keys with the logit s weigh
as one key with the logit s + log n, so the few tokens of a caption and one that counts for the rest give the same
output to rounding, in a third of the time for this tiny model.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor, nn

from pusa.models.wan.transformer import VectorWanTransformer3DModel

MASK_CHANNELS = 4
"""Wan-I2V says for each of a slot's four frames whether it is given."""


class SharedPadding(WanAttnProcessor):  # type: ignore[misc]
    """Cross-attention in which one pad token stands for all; `bias` is [B, 1, 1, tokens]."""

    bias: Tensor | None = None

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: Any = None,
    ) -> Tensor:
        mask = self.bias if encoder_hidden_states is not None else attention_mask
        mixed: Tensor = super().__call__(attn, hidden_states, encoder_hidden_states, mask, rotary_emb)
        return mixed


class Network(nn.Module):
    """A transformer as it is trained and asked here.

    With more input channels than output channels it is of the Wan-I2V kind: the noisy clip, the mask, and the latents
    of what is given, zero elsewhere.
    """

    def __init__(self, transformer: VectorWanTransformer3DModel) -> None:
        super().__init__()
        self.transformer = transformer
        self.padding = SharedPadding()
        for block in transformer.blocks:
            block.attn2.processor = self.padding

    @property
    def takes_image_channels(self) -> bool:
        """Whether the picture enters beside the clip."""
        return int(self.transformer.config.in_channels) > int(self.transformer.config.out_channels)

    def forward(self, x: Tensor, sigma: Tensor, context: tuple[Tensor, Tensor]) -> Tensor:
        """The prediction of ε − x0 for x [B, C, F, h, w] and sigma [B, F].

        context: the text [B, 512, D], zero past each caption, and the latent of the first frame, [B, C, 1, h, w].
        """
        text, first = context
        text, self.padding.bias = counted_padding(text)
        if self.takes_image_channels:
            given = torch.zeros_like(x)
            given[:, :, :1] = first
            mask = torch.zeros_like(x[:, :MASK_CHANNELS])
            mask[:, :, 0] = 1
            x = torch.cat([x, mask, given], dim=1)
            sigma = sigma[:, -1]  # one level for the clip
        predicted: Tensor = self.transformer(x, 1000 * sigma, text, return_dict=False)[0]
        return predicted


def counted_padding(text: Tensor) -> tuple[Tensor, Tensor]:
    """Text [B, L, D], zero past each caption, cut behind the longest caption and a zero; and the bias of its keys.

    The bias [B, 1, 1, T] is 0 for a caption's tokens, log n for the first of its n zeros and −∞ for others.
    """
    lengths = (text != 0).any(dim=2).sum(dim=1, keepdim=True)
    kept = min(text.shape[1], int(lengths.max()) + 1)
    positions = torch.arange(kept, device=text.device)
    padding = torch.log((text.shape[1] - lengths).clamp(min=1).float())
    bias = torch.zeros(len(text), kept, device=text.device)
    bias = torch.where(positions == lengths, padding, bias).masked_fill(positions > lengths, -torch.inf)
    return text[:, :kept], bias[:, None, None]


def with_image_channels(transformer: VectorWanTransformer3DModel) -> VectorWanTransformer3DModel:
    """The same transformer with the input channels of Wan-I2V, whose weights begin at zero: at first it is the base."""
    config = dict(transformer.config)
    channels = int(config["in_channels"])
    config["in_channels"] = 2 * channels + MASK_CHANNELS
    wider: VectorWanTransformer3DModel = VectorWanTransformer3DModel.from_config(config)
    state = dict(transformer.state_dict())
    narrow = state["patch_embedding.weight"]
    state["patch_embedding.weight"] = torch.cat(
        [narrow, narrow.new_zeros(len(narrow), channels + MASK_CHANNELS, *narrow.shape[2:])], dim=1
    )
    wider.load_state_dict(state)
    wider.eval()
    return wider
