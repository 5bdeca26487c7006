"""Make one clip on several devices: each process has the whole model and computes a part of the clip's tokens.

This is the context parallelism of diffusers, in the form of Ulysses (arXiv 2309.14509). Each layer computes the tokens
of its process. For self-attention, the processes exchange them, so that each has all tokens for some of the heads. So
the number of tokens and the number of heads must be multiples of the number of processes. The part of a process may
begin inside a frame, see `wan.transformer.FrameIndex`.

Ring attention would not restrict the heads, but diffusers' default attention does not return what it needs.
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
from pusa.models.loading import configurations, sources
from pusa.models.loading.sources import Beside


def check_heads(heads: int, processes: int, tokens: int = 0) -> None:
    """Raise InputError unless `heads` is a multiple of `processes`. tokens: of the clip, for the advice."""
    if heads % processes:
        raise InputError(
            f"The model's {heads} attention heads cannot be shared by {processes} processes: use "
            f"{_counts(math.gcd(heads, tokens))}."
        )


def check_model(source: str | Path, processes: int) -> None:
    """Raise InputError unless `processes` processes can share the clips of a model. It reads no weights."""
    if processes < 2:
        raise InputError("Sharing a clip's tokens needs several processes: start them with torchrun and join them.")
    name, folder = sources.find(source, ())
    check_heads(_heads(sources.config(name, folder, "transformer")), processes)


def check_clip(
    source: str | Path, beside: Beside, size: tuple[int, int] | None, frames: int | None, processes: int
) -> None:
    """Call `check_tokens` for a clip of a model. It reads no weights.

    beside: {part: source} of parts from elsewhere. size, frames: of the clip; None for the defaults of the model.
    """
    name, folder = sources.find(source, ())
    own = configurations.defaults_of(folder)
    transformer = sources.config(name, folder, "transformer")
    geometry = configurations.geometry(name, folder, beside)
    width, height = (side // geometry.multiple for side in size or own.size)
    slots = geometry.latent_frames(frames or own.frames)
    check_tokens(slots, width * height, _heads(transformer), processes, geometry)


def check_tokens(slots: int, per_slot: int, heads: int, processes: int, geometry: Geometry) -> None:
    """Raise InputError unless the numbers of heads and of tokens are multiples of the number of processes.

    slots: the latent frames in a call of the model. per_slot: the tokens of a latent frame.
    """
    tokens = slots * per_slot
    check_heads(heads, processes, tokens)
    if tokens % processes == 0:
        return
    multiple = processes // math.gcd(processes, per_slot)
    near = [n for n in (slots // multiple * multiple, (slots // multiple + 1) * multiple) if n > 0]
    lengths = " or ".join(str(geometry.pixel_frames(n)) for n in near)
    change = " or ".join(
        f"{abs(n - slots) * geometry.frames_per_slot} {'fewer' if n < slots else 'more'}" for n in near
    )
    fitting = math.gcd(tokens, heads)
    fewer = f"{_counts(fitting)}, " if fitting > 1 else ""
    length = f"{geometry.pixel_frames(slots)} frame{'s' * (slots > 1)}"
    raise InputError(
        f"The {tokens} tokens of {length}, which the model sees at once, cannot be shared by {processes} processes: "
        f"use {fewer}{lengths} frames ({change}), or another size."
    )


def enable(transformers: Sequence[Any], processes: int) -> None:
    """Let all processes share each forward pass of these models. Call `pusa.processes.join` before, and this once.

    Afterwards every process must call the models at the same time with the same input, and gets the whole output. The
    models must be on their device, with offloading. To add LoRAs later, use `suspended`.
    """
    log = logging.get_logger("diffusers.models.modeling_utils")
    level = log.level
    log.setLevel(logging.ERROR)  # hides the warning that it is experimental
    try:
        for transformer in transformers:
            check_heads(int(transformer.config.num_attention_heads), processes)
            transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=processes))
    finally:
        log.setLevel(level)


@contextmanager
def suspended(transformer: Any) -> Iterator[None]:
    """Remove the hooks of `enable` inside the block, so that layers with hooks can be wrapped by LoRAs."""
    # _parallel_config, _cp_plan and the functions are not public; tests/cli/shared/test_ranks.py fails when they move
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
    """Return the numbers of processes that divide `number`, as in `2, 3 or 6 processes`."""
    *some, last = [str(n) for n in range(2, number + 1) if number % n == 0] or ["1"]
    return f"{', '.join(some)} or {last} processes" if some else f"{last} process{'es' * (last != '1')}"
