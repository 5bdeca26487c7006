"""Estimate the memory, time and cost of a training from the model's config and the buckets, before weights are read.

Operations for D = width, L = tokens of a sample and T = 512 text tokens, for each block and forward pass:

    linear layers    2 (6 D² + 2 D·ffn) L + 4 D² T      queries, keys, values, outputs, feed-forward; cross keys, values
    attention        4 D L² + 4 D L T

If the base is frozen, a step has two such passes for the linear layers (forward, and backward to the inputs), because
frozen weights need no gradient. It has three for attention, and three times 2 r (in + out) L for the LoRA. If all
weights are trained, a step has three passes for both. Gradient checkpointing adds one forward pass.

Memory is the sum of three parts: the frozen weights; 16 bytes for each trained parameter (its value, its gradient and
two moments of Adam, float32); and the activations. The activations are about 20 D + 2 ffn numbers for each token and
block. (Blocks of the 1.3B model were measured with 31.7 D, and the formula gives 31.7 D.) With checkpointing they are D
numbers for each token and block, and 20 D + 4 ffn for each token. The estimate is accurate to about a third.
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
from pusa.models.backbone import Geometry
from pusa.models.loading import checkpoints, sources
from pusa.models.wan.autoencoder import geometry_of
from pusa.models.wan.text import TOKENS
from pusa.training.config.sections import TARGETS
from pusa.training.data.samples import Bucket

EFFICIENCY = (0.3, 0.7)
"""The share of the rate for large matrix products that a training step reaches, at worst and at best."""


def sizes_for(name: str, folder: Path, texts: Sequence[str]) -> tuple[Model, list[Bucket]]:
    """Return the sizes of the model in `folder`, and the buckets for its clips.

    name: of the model, for error messages. texts: buckets such as 832x480x81; if empty, the default size of the model.
    Raises InputError for a bucket that the model cannot use.
    """
    model = Model.of(*(sources.config(name, folder, part) for part in ("transformer", "vae")))
    defaults = checkpoints.defaults_of(folder)
    buckets = [Bucket.parse(text) for text in texts] or [Bucket(*defaults.size, defaults.frames)]
    for bucket in buckets:
        bucket.check(model.geometry)
    return model, buckets


@dataclass(frozen=True)
class Model:
    """The sizes of a Wan transformer."""

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
    def of(cls, transformer: Mapping[str, Any], vae: Mapping[str, Any]) -> Model:
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

    def tokens(self, bucket: Bucket) -> int:
        """Return the number of latent tokens of one sample."""
        pixels = self.geometry.multiple
        slots = self.geometry.latent_frames(bucket.frames)
        return slots * (bucket.width // pixels) * (bucket.height // pixels)

    def step(self, bucket: Bucket, adapter: Adapter, checkpointing: bool) -> float:
        """Return the floating-point operations of the forward and backward pass of one sample."""
        d, tokens, text = self.width, self.tokens(bucket), TOKENS
        linear = self.blocks * (2 * (6 * d * d + 2 * d * self.ffn) * tokens + 4 * d * d * text)
        attention = self.blocks * (4 * d * tokens * tokens + 4 * d * tokens * text)
        passes = 2 if adapter.keeps_base else 3  # weights that do not change need no gradient
        again = linear + attention if checkpointing else 0
        return float(passes * linear + 3 * attention + 6 * adapter.extra_parameters(self.layers) * tokens + again)

    def activations(self, bucket: Bucket, checkpointing: bool) -> int:
        """Return how many numbers one sample stores for the backward pass."""
        d, tokens = self.width, self.tokens(bucket)
        if checkpointing:
            return tokens * (self.blocks * d + 20 * d + 4 * self.ffn)
        return tokens * self.blocks * (20 * d + 2 * self.ffn)


@dataclass(frozen=True)
class Estimate:
    """The estimate of a run. Memory is in bytes; seconds and cost are (at best, at worst).

    parameters, trained: numbers of parameters. tokens: of the largest sample. samples: clips seen in all steps.
    epochs: how often each sample is seen. rate: operations per second for large matrix products.
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
        """Bytes in total, without gradient checkpointing."""
        return self.weights + self.optimiser + self.activations

    @property
    def memory_checkpointed(self) -> int:
        """Bytes in total, with gradient checkpointing."""
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
    """Estimate `steps` steps of `batch` samples on one device; return None if there are no samples.

    buckets: the number of samples in each. batch: samples of a step, all in one pass. rank: of the LoRA; 0 trains all
    weights. rate: operations per second for large matrix products. number: bytes of one stored number. price: money for
    one hour. The best time is without gradient checkpointing, the worst with it.
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
