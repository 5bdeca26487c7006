"""Estimate the memory, time and cost of a training from the model's config and the buckets, before weights are read.

The sizes of the model give operations and activations (for Wan see `models/wan/sizes.py`). Memory is the sum of three
parts: the frozen weights; 16 bytes for each trained parameter (its value, its gradient and two moments of Adam,
float32); and the activations. The estimate is accurate to about a third.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pusa.adapters.base import Adapter
from pusa.models.backbone import Sizes
from pusa.models.loading import checkpoints, configurations
from pusa.training.data.samples import Bucket

EFFICIENCY = (0.3, 0.7)
"""The share of the rate for large matrix products that a training step reaches, at worst and at best."""


def sizes_for(name: str, folder: Path, texts: Sequence[str]) -> tuple[Sizes, list[Bucket]]:
    """Return the sizes of the model in `folder`, and the buckets for its clips.

    name: of the model, for error messages. texts: buckets such as 832x480x81; if empty, the default size of the model.
    Raises InputError for a bucket that the model cannot use.
    """
    model = checkpoints.sizes(name, folder)
    defaults = configurations.defaults_of(folder)
    buckets = [Bucket.parse(text) for text in texts] or [Bucket(*defaults.size, defaults.frames)]
    for bucket in buckets:
        bucket.check(model.geometry)
    return model, buckets


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
    model: Sizes,
    buckets: Mapping[Bucket, int],
    *,
    steps: int,
    batch: int,
    accumulate: int = 1,
    adapter: Adapter,
    rate: float,
    number: int = 4,
    price: float | None = None,
) -> Estimate | None:
    """Estimate `steps` steps on one device; return None if there are no samples.

    buckets: the number of samples in each. batch: samples of a pass. accumulate: passes of a step. adapter: what is
    trained. rate: operations per second for large matrix products. number: bytes of one stored number. price: money for
    one hour. The best time is without gradient checkpointing, the worst with it.
    """
    count = sum(buckets.values())
    if not count:
        return None
    keeps_base, extra = adapter.keeps_base, adapter.extra_parameters(model.layers)
    tokens = {bucket: model.tokens(bucket.frames, (bucket.width, bucket.height)) for bucket in buckets}
    largest = max(tokens.values())
    plain, checkpointed = (
        sum(
            model.step(tokens[bucket], keeps_base=keeps_base, extra=extra, checkpointing=again) * share
            for bucket, share in buckets.items()
        )
        / count
        * batch
        * accumulate
        for again in (False, True)
    )
    trained = extra + (0 if keeps_base else model.parameters)
    seconds = plain * steps / rate / EFFICIENCY[1], checkpointed * steps / rate / EFFICIENCY[0]
    return Estimate(
        parameters=model.parameters,
        trained=trained,
        tokens=largest,
        samples=steps * batch * accumulate,
        epochs=steps * batch * accumulate / count,
        flops_per_step=plain,
        weights=model.parameters * number if keeps_base else 0,
        optimiser=16 * trained,
        activations=batch * model.activations(largest, False) * number,
        activations_checkpointed=batch * model.activations(largest, True) * number,
        rate=rate,
        seconds=seconds,
        cost=None if price is None else (seconds[0] / 3600 * price, seconds[1] / 3600 * price),
    )
