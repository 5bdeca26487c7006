"""What a training will take, from the model's config and the buckets alone, before any weight is read.

Arithmetic, for D = width, L = tokens of a sample, T = 512 text tokens, per block and forward pass:

    linear layers    2 (6 D² + 2 D·ffn) L + 4 D² T      queries, keys, values, outputs, feed-forward; cross keys, values
    attention        4 D L² + 4 D L T

A LoRA step is two such passes for the linear layers (forward, and back to the inputs; the frozen weights need no
gradient) and three for attention, and three times the adapter's own 2 r (in + out) L; full fine-tuning is three of
everything. Gradient checkpointing adds one forward pass.

Memory is the weights, 16 bytes per trained parameter (itself, its gradient, two moments of Adam, float32), and what the
forward pass keeps: about 20 D + 2 ffn numbers per token and block (measured on blocks of the 1.3B model: 31.7 D against
31.7 D so computed), or with checkpointing D per token and block and 20 D + 4 ffn per token once. Expect it to be right
within a third.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from pusa.adapters.base import Adapter
from pusa.adapters.full import AllWeights
from pusa.adapters.lora import Lora
from pusa.models.loading import checkpoints, sources
from pusa.models.wan.latents import TEXT_TOKENS
from pusa.training.config.sections import TARGETS
from pusa.training.data.samples import Bucket

EFFICIENCY = (0.3, 0.7)
"""The share of a machine's rate for large matrices that a training step reaches, at worst and at best."""


def sizes_for(name: str, folder: Path, texts: Sequence[str]) -> tuple[Model, list[Bucket]]:
    """The model in `folder` and the sizes that clips are cut to for it, its own where `texts` names none.

    Raises InputError for a size that it cannot take; `name` is what the model is called then.
    """
    model = Model.of(*(sources.config(name, folder, part) for part in ("transformer", "vae")))
    wishes = checkpoints.defaults_of(folder)
    buckets = [Bucket.parse(text) for text in texts] or [Bucket(*wishes.size, wishes.frames)]
    for bucket in buckets:
        bucket.check(model.scale)
    return model, buckets


@dataclass(frozen=True)
class Model:
    """A Wan transformer's sizes. scale: pixels per token and side."""

    width: int
    ffn: int
    blocks: int
    text: int
    frequencies: int
    channels_in: int
    channels_out: int
    patch: int
    scale: int

    @classmethod
    def of(cls, transformer: Mapping[str, Any], vae: Mapping[str, Any]) -> Model:
        """Read from the configs of the transformer and the autoencoder."""
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
            scale=vae.get("scale_factor_spatial", 8) * patch[1],
        )

    @property
    def parameters(self) -> int:
        """Of the transformer, exactly."""
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

    def tokens(self, bucket: Bucket) -> int:
        """Tokens of one sample."""
        return bucket.slots * (bucket.width // self.scale) * (bucket.height // self.scale)

    def step(self, bucket: Bucket, adapter: Adapter, checkpointing: bool) -> float:
        """Return the floating-point operations of the forward and backward pass of one sample."""
        d, tokens, text = self.width, self.tokens(bucket), TEXT_TOKENS
        linear = self.blocks * (2 * (6 * d * d + 2 * d * self.ffn) * tokens + 4 * d * d * text)
        attention = self.blocks * (4 * d * tokens * tokens + 4 * d * tokens * text)
        passes = 2 if adapter.keeps_base else 3  # weights that do not change need no gradient
        again = linear + attention if checkpointing else 0
        return float(passes * linear + 3 * attention + 6 * adapter.extra_parameters(self.layers) * tokens + again)

    def activations(self, bucket: Bucket, checkpointing: bool) -> int:
        """Numbers that one sample keeps for the backward pass."""
        d, tokens = self.width, self.tokens(bucket)
        if checkpointing:
            return tokens * (self.blocks * d + 20 * d + 4 * self.ffn)
        return tokens * self.blocks * (20 * d + 2 * self.ffn)


@dataclass(frozen=True)
class Estimate:
    """What a run takes. Memory in bytes; seconds and cost at best and at worst.

    tokens: of the largest sample. epochs: how often each sample is seen.
    """

    parameters: int
    trained: int
    tokens: int
    samples: int
    epochs: float
    flops_per_step: float
    weights: int
    optimiser: int
    activations: int
    activations_checkpointed: int
    rate: float
    seconds: tuple[float, float]
    cost: tuple[float, float] | None

    @property
    def memory(self) -> int:
        """Bytes without gradient checkpointing."""
        return self.weights + self.optimiser + self.activations

    @property
    def memory_checkpointed(self) -> int:
        """Bytes with it."""
        return self.weights + self.optimiser + self.activations_checkpointed


def estimate(
    model: Model,
    buckets: Mapping[Bucket, int],
    *,
    steps: int,
    batch: int,
    rank: int,
    rate: float,
    number: int = 4,
    price: float | None = None,
) -> Estimate | None:
    """What `steps` steps of `batch` samples take on one device; None when there is no sample.

    buckets: samples in each. batch: samples of a step, all in one pass. rate: operations per second for large matrices.
    number: bytes of one number. price: money for an hour. The best time is without checkpointing, the worst with it.
    """
    count = sum(buckets.values())
    if not count:
        return None
    adapter: Adapter = Lora(rank, TARGETS) if rank else AllWeights()
    largest = max(buckets, key=model.tokens)
    plain, checkpointed = (
        sum(model.step(bucket, adapter, again) * share for bucket, share in buckets.items()) / count * batch
        for again in (False, True)
    )
    trained = adapter.extra_parameters(model.layers) + (0 if adapter.keeps_base else model.parameters)
    seconds = plain * steps / rate / EFFICIENCY[1], checkpointed * steps / rate / EFFICIENCY[0]
    return Estimate(
        parameters=model.parameters,
        trained=trained,
        tokens=model.tokens(largest),
        samples=steps * batch,
        epochs=steps * batch / count,
        flops_per_step=plain,
        weights=model.parameters * number if adapter.keeps_base else 0,
        optimiser=16 * trained,
        activations=batch * model.activations(largest, False) * number,
        activations_checkpointed=batch * model.activations(largest, True) * number,
        rate=rate,
        seconds=seconds,
        cost=None if price is None else (seconds[0] / 3600 * price, seconds[1] / 3600 * price),
    )
