"""The sizes of a Wan transformer, from its configurations: the operations and the activations of a training.

Operations for D = width, L = tokens of a sample and T = 512 text tokens, for each block and forward pass:

    linear layers    2 (6 D² + 2 D·ffn) L + 4 D² T      queries, keys, values, outputs, feed-forward; cross keys, values
    attention        4 D L² + 4 D L T

If the base is frozen, a step has two such passes for the linear layers (forward, and backward to the inputs), because
frozen weights need no gradient. It has three for attention, and three times 2 r (in + out) L for the LoRA. If all
weights are trained, a step has three passes for both. Gradient checkpointing adds one forward pass.

The activations are about 20 D + 2 ffn numbers for each token and block. (Blocks of the 1.3B model were measured with
31.7 D, and the formula gives 31.7 D.) With checkpointing they are D numbers for each token and block, and 20 D + 4 ffn
for each token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from pusa.models.backbone import Geometry
from pusa.models.wan.geometry import geometry_of
from pusa.models.wan.text import TOKENS


@dataclass(frozen=True)
class WanSizes:
    """The sizes of a Wan transformer, see `pusa.models.backbone.Sizes`."""

    width: int
    ffn: int
    blocks: int
    text: int
    frequencies: int
    channels_in: int
    channels_out: int
    patch: int
    geometry: Geometry

    @classmethod
    def of(cls, transformer: Mapping[str, Any], vae: Mapping[str, Any]) -> WanSizes:
        """Read the sizes from the configs of the transformer and the autoencoder."""
        patch = transformer.get("patch_size", (1, 2, 2))
        return cls(
            width=transformer.get("num_attention_heads", 40) * transformer.get("attention_head_dim", 128),
            ffn=transformer.get("ffn_dim", 13824),
            blocks=transformer.get("num_layers", 40),
            text=transformer.get("text_dim", 4096),
            frequencies=transformer.get("freq_dim", 256),
            channels_in=transformer.get("in_channels", 16),
            channels_out=transformer.get("out_channels", 16),
            patch=prod(patch),
            geometry=geometry_of(vae, tuple(patch)),
        )

    @property
    def parameters(self) -> int:
        """The exact number of parameters of the transformer."""
        d, ffn = self.width, self.ffn
        block = 8 * (d * d + d) + 2 * d * ffn + ffn + d + 4 * d + 2 * d + 6 * d
        ends = (self.channels_in + self.channels_out) * self.patch * d + d + self.channels_out * self.patch + 2 * d
        time = self.frequencies * d + d + d * d + d + 6 * (d * d + d)
        return self.blocks * block + ends + time + self.text * d + d + d * d + d

    @property
    def layers(self) -> dict[str, tuple[int, int]]:
        """{name: (inputs, outputs)} of the linear layers of the blocks."""
        square = [f"{part}.{name}" for part in ("attn1", "attn2") for name in ("to_q", "to_k", "to_v", "to_out.0")]
        block = dict.fromkeys(square, (self.width, self.width))
        block |= {"ffn.net.0.proj": (self.width, self.ffn), "ffn.net.2": (self.ffn, self.width)}
        return {f"blocks.{i}.{name}": size for i in range(self.blocks) for name, size in block.items()}

    def tokens(self, frames: int, size: tuple[int, int]) -> int:
        """Return the tokens of a clip of `frames` pixel frames and (width, height) pixels."""
        pixels = self.geometry.multiple
        return self.geometry.latent_frames(frames) * (size[0] // pixels) * (size[1] // pixels)

    def step(self, tokens: int, *, keeps_base: bool, extra: int, checkpointing: bool) -> float:
        """Return the operations of the forward and backward pass of a clip of `tokens` tokens."""
        d, text = self.width, TOKENS
        linear = self.blocks * (2 * (6 * d * d + 2 * d * self.ffn) * tokens + 4 * d * d * text)
        attention = self.blocks * (4 * d * tokens * tokens + 4 * d * tokens * text)
        passes = 2 if keeps_base else 3  # weights that do not change need no gradient
        again = linear + attention if checkpointing else 0
        return float(passes * linear + 3 * attention + 6 * extra * tokens + again)

    def activations(self, tokens: int, checkpointing: bool) -> int:
        """Return how many numbers such a clip stores for the backward pass."""
        d = self.width
        if checkpointing:
            return tokens * (self.blocks * d + 20 * d + 4 * self.ffn)
        return tokens * self.blocks * (20 * d + 2 * self.ffn)
