"""The network that the methods train, with faster cross-attention to padded captions.

Stock Wan pads every prompt with zeros to 512 positions and attends to all of them. In the softmax, n equal keys with
the logit s have the weight of one key with the logit s + log n. So this network attends to the tokens of the caption
and to one key for all padding. The output is the same up to rounding; this tiny model needs a third of the time.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor, nn

from pusa.core.sampler import Call
from pusa.models.backbone import Text
from pusa.models.wan.backbone import WanBackbone
from pusa.models.wan.transformer import VectorWanTransformer3DModel

MASK_CHANNELS = 4
"""channels of the mask of Wan-I2V, which marks each given pixel frame; a latent frame has four"""


class SharedPadding(WanAttnProcessor):  # type: ignore[misc]
    """Cross-attention with one key for all padding. bias: added to the logits, [B, 1, 1, tokens]."""

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
    """A transformer, called as training and sampling need it.

    If the transformer has more input channels than output channels, it is a Wan-I2V model: its input is the noisy clip,
    the mask, and the latents of the given frames, with zeros for the other frames.
    """

    def __init__(self, transformer: VectorWanTransformer3DModel) -> None:
        super().__init__()
        self.transformer = transformer
        self.padding = SharedPadding()
        for block in transformer.blocks:
            block.attn2.processor = self.padding

    @property
    def takes_image_channels(self) -> bool:
        """Whether the given picture enters in additional input channels, as in Wan-I2V."""
        return int(self.transformer.config.in_channels) > int(self.transformer.config.out_channels)

    def forward(self, x: Tensor, sigma: Tensor, context: tuple[Tensor, Tensor], call: Call | None = None) -> Tensor:
        """The prediction of ε − x0, [B, C, F, h, w], for x [B, C, F, h, w] and sigma [B, F], 0 to 1.

        The matrices here show all frames, so the call says nothing new.

        context: the text [B, 512, D], zero after each caption, and the latent of the first frame, [B, C, 1, h, w].
        """
        text, first = context
        text, self.padding.bias = counted_padding(text)
        if self.takes_image_channels:
            given = torch.zeros_like(x)
            given[:, :, :1] = first
            mask = torch.zeros_like(x[:, :MASK_CHANNELS])
            mask[:, :, 0] = 1
            x = torch.cat([x, mask, given], dim=1)
            sigma = sigma[:, -1]  # one noise level for the clip
        return WanBackbone.velocity(self.transformer, x, sigma, Text(text))


def counted_padding(text: Tensor) -> tuple[Tensor, Tensor]:
    """Shorten a padded text and compute the bias of its keys.

    text: [B, L, D], zero after each caption. Returns the first T positions, where T is the length of the longest
    caption plus 1, and the bias [B, 1, 1, T]: 0 for the tokens of a caption, log n for the first of its n zeros, −∞
    after it.
    """
    lengths = (text != 0).any(dim=2).sum(dim=1, keepdim=True)
    kept = min(text.shape[1], int(lengths.max()) + 1)
    positions = torch.arange(kept, device=text.device)
    padding = torch.log((text.shape[1] - lengths).clamp(min=1).float())
    bias = torch.zeros(len(text), kept, device=text.device)
    bias = torch.where(positions == lengths, padding, bias).masked_fill(positions > lengths, -torch.inf)
    return text[:, :kept], bias[:, None, None]


def with_image_channels(transformer: VectorWanTransformer3DModel) -> VectorWanTransformer3DModel:
    """The transformer with the input channels of Wan-I2V. Their weights are zero, so that its output is unchanged."""
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
