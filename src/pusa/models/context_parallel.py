"""One clip on several devices: each process holds all of the model and computes its share of the clip's tokens.

Context parallelism as diffusers has it, of the kind called Ulysses (arXiv 2309.14509): every layer works on a process's
own tokens, and around self-attention they are exchanged for all tokens of a share of the heads. So both the tokens and
the heads have to divide by the number of processes. A share may begin in the middle of a frame, see `wan.FrameIndex`.

Ring attention, the other kind, would not need the heads to divide, but the attention of PyTorch that diffusers uses by
default cannot give what it has to add up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers import ContextParallelConfig
from diffusers.hooks.context_parallel import apply_context_parallel, remove_context_parallel
from diffusers.utils import logging

from pusa.errors import InputError
from pusa.models.backbone import Geometry
from pusa.models.loading import checkpoints, sources
from pusa.models.loading.sources import Beside


def check_heads(heads: int, processes: int, tokens: int = 0) -> None:
    """InputError unless the attention heads of a model divide by the number of processes; tokens: those of the clip."""
    if heads % processes:
        raise InputError(
            f"The model's {heads} attention heads cannot be shared by {processes} processes: use "
            f"{_counts(math.gcd(heads, tokens))}."
        )


def check_model(source: str | Path, processes: int) -> None:
    """InputError, before any weight is read, unless several processes can share the clips of a model."""
    if processes < 2:
        raise InputError("Sharing a clip's tokens takes several processes: start them with torchrun and join them.")
    name, folder = sources.find(source, ())
    check_heads(_heads(sources.config(name, folder, "transformer")), processes)


def check_clip(
    source: str | Path, beside: Beside, size: tuple[int, int] | None, frames: int | None, processes: int
) -> None:
    """`check_tokens` before any weight is read.

    beside: the parts that are given beside the source. size, frames: of the clip, None for the model's own.
    """
    name, folder = sources.find(source, ())
    own = checkpoints.defaults_of(folder)
    transformer = sources.config(name, folder, "transformer")
    geometry = checkpoints.geometry(name, folder, beside)
    width, height = (side // geometry.multiple for side in size or own.size)
    slots = geometry.latent_frames(frames or own.frames)
    check_tokens(slots, width * height, _heads(transformer), processes, geometry)


def check_tokens(slots: int, per_slot: int, heads: int, processes: int, geometry: Geometry) -> None:
    """InputError unless the heads and the tokens of a clip divide by the number of processes.

    slots: latent frames that the model sees at once. per_slot: tokens of each.
    """
    tokens = slots * per_slot
    check_heads(heads, processes, tokens)
    if tokens % processes == 0:
        return
    every = processes // math.gcd(processes, per_slot)
    near = [n for n in (slots // every * every, (slots // every + 1) * every) if n > 0]
    lengths = " or ".join(str(geometry.pixel_frames(n)) for n in near)
    apart = " or ".join(f"{abs(n - slots) * geometry.frames_per_slot} {'fewer' if n < slots else 'more'}" for n in near)
    fitting = math.gcd(tokens, heads)
    fewer = f"{_counts(fitting)}, " if fitting > 1 else ""
    length = f"{geometry.pixel_frames(slots)} frame{'s' * (slots > 1)}"
    raise InputError(
        f"The {tokens} tokens of {length}, which the model sees at once, cannot be shared by {processes} processes: "
        f"use {fewer}{lengths} frames ({apart}), or another size."
    )


def enable(transformers: Sequence[Any], processes: int) -> None:
    """Make every forward of these models one of all processes, which have met (`pusa.processes.join`); once.

    From then on every process has to call them at the same time with the same input, and each gets the whole output.
    The models are where they are to run, with their LoRAs and offloading; LoRAs that come later need `aside`.
    """
    log = logging.get_logger("diffusers.models.modeling_utils")
    level = log.level
    log.setLevel(logging.ERROR)  # that it is experimental
    try:
        for transformer in transformers:
            check_heads(int(transformer.config.num_attention_heads), processes)
            transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=processes))
    finally:
        log.setLevel(level)


@contextmanager
def aside(transformer: Any) -> Iterator[None]:
    """For the block, the hooks of `enable` are off a model, so that layers which carry them can be wrapped."""
    parallel = transformer._parallel_config
    if parallel is None:
        yield
        return
    remove_context_parallel(transformer, transformer._cp_plan)
    try:
        yield
    finally:
        apply_context_parallel(transformer, parallel.context_parallel_config, transformer._cp_plan)


def _heads(config: Mapping[str, Any]) -> int:
    return int(config.get("num_attention_heads", 40))


def _counts(number: int) -> str:
    """The numbers of processes that divide a number: `2, 3 or 6 processes`."""
    *some, last = [str(n) for n in range(2, number + 1) if number % n == 0] or ["1"]
    return f"{', '.join(some)} or {last} processes" if some else f"{last} process{'es' * (last != '1')}"
