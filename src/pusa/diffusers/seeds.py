"""From a generator of PyTorch to the seeds of clips.

The noise of a clip is a function of its seed. A generator that was seeded and not used means its seed: the clip of
`torch.Generator().manual_seed(7)` is the clip of seed 7, and text-to-video starts from the same noise as in
`WanPipeline`. A generator that was used has no seed that stands for its state, so the seed is drawn from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pusa.errors import InputError
from pusa.generation.request import SEEDS

FIRST_SEED = 0
"""of a call without a generator"""


def seeds_of(generator: torch.Generator | Sequence[torch.Generator] | None, clips: int) -> list[int]:
    """Return one seed for each clip of a call, and draw from each generator once, so that its next call differs.

    generator: one for all clips, which get consecutive seeds; one for each clip; or None for the seeds from 0 on.
    Raises InputError for another number of generators, for what is no generator, and for a seed of 2**63 or above.
    """
    if generator is None:
        return list(range(FIRST_SEED, FIRST_SEED + clips))
    if isinstance(generator, (list, tuple)):
        if len(generator) != clips:
            raise InputError(
                f"There are {len(generator)} generators for {clips} clips: give one for all, or one for each clip."
            )
        return [_seed(each) for each in generator]
    first = _seed(generator)
    return list(range(first, first + clips))


def _seed(generator: Any) -> int:
    if not isinstance(generator, torch.Generator):
        raise InputError(
            f"The generator is of type {type(generator).__name__}: give torch.Generator().manual_seed(SEED)."
        )
    seed = generator.initial_seed()
    unused = torch.equal(generator.get_state(), torch.Generator(generator.device).manual_seed(seed).get_state())
    drawn = int(torch.randint(SEEDS - 1, (), dtype=torch.int64, device=generator.device, generator=generator))
    if unused and not 0 <= seed < SEEDS:
        raise InputError(f"The generator has the seed {seed}: give one from 0 to {SEEDS - 1} to manual_seed.")
    return seed if unused else drawn
