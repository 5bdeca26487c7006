"""The caches of diffusers behind the same names, as alternatives and to compare with.

They decide for a clip as a whole, by one noise level. If the moving frames of a step have different levels, they would
decide by a mean of changes that have little to do with each other, so this is refused. Each guidance branch decides for
itself. Frames that are given count like all others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig

from pusa.acceleration.names import Acceleration
from pusa.core.timesteps import TimestepMatrix
from pusa.errors import InputError


def _configuration(name: str, values: Any) -> Any:
    if name == "first-block":
        return FirstBlockCacheConfig(threshold=values["threshold"])
    return TaylorSeerCacheConfig(
        cache_interval=values["every"],
        disable_cache_before_step=2,
        cache_identifiers=[r"^blocks\.\d+\.attn[12]$"],  # the default pattern matches nothing in Wan
    )


@contextmanager
def cached(acceleration: Acceleration, matrix: TimestepMatrix, networks: Sequence[Any]) -> Iterator[None]:
    """Enable a cache of diffusers on the networks inside the context.

    Raises InputError if the moving frames of a step have different noise levels, or if a cache is enabled already.
    """
    (name, values), = acceleration.parts
    for step, (row, moves) in enumerate(zip(matrix.model_sigma, matrix.moves, strict=True)):
        if moves.any() and len(set(row[moves].tolist())) > 1:
            raise InputError(
                f"The acceleration {name} has one noise level for the clip, and step {step + 1} moves frames at "
                "different levels: use frames, steps or tokens."
            )
    enabled = []
    try:
        for network in networks:
            network.enable_cache(_configuration(name, values))
            enabled.append(network)
        yield
    finally:
        for network in enabled:
            network.disable_cache()
