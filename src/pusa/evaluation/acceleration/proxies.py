"""Signs that the prediction of a network changes, ranked by how well they tell the change.

A sign is cheap: it is known after the first block. Its change from one step to the next is compared with the change of
the guided velocity, over the frames that move, by the rank correlation of Spearman. A good sign has a correlation near
1, because a threshold on it then cuts where a threshold on the true change would cut. GalaxyDiT (arXiv 2512.03451)
chooses its sign in this way for each family of models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pusa.core.sampler import Step
from pusa.generation.pipeline import Pipeline
from pusa.models.backbone import BlockCall

SIGNS = ("noise level", "input", "output of the first block", "what the first block adds")
"""the signs that are compared; `pusa.acceleration.reuse` uses the last"""


@dataclass(frozen=True)
class _Seen:
    """A step. network: whose call it was. sigma: [F], after it. latents: [1, C, F, h, w], after it.

    hidden, out: [n, D], the input and the output of the first block, with the prompt.
    """

    network: int
    sigma: Tensor
    latents: Tensor
    hidden: Tensor
    out: Tensor


class Proxies:
    """Watches clips of a pipeline while they are sampled, and correlates each sign with the change of the velocity."""

    def __init__(self, pipe: Pipeline) -> None:
        self.pipe = pipe
        self._changes: list[tuple[float, ...]] = []

    @contextmanager
    def watching(self) -> Iterator[Callable[[Step], None]]:
        """Inside the block, the pipeline makes one clip, without acceleration, whose callback is the value."""
        networks = [one for one in (self.pipe.transformer, self.pipe.transformer_2) if one is not None]
        calls: list[tuple[int, Tensor, Tensor]] = []
        steps: list[_Seen] = []

        def run(number: int, block: BlockCall) -> Tensor:
            out = block.whole()
            if block.index == 0:
                calls.append((number, block.hidden[0].float().cpu(), out[0].float().cpu()))
            return out

        def note(step: Step) -> None:
            number, hidden, out = calls[0]  # the prompt's branch comes first
            calls.clear()
            steps.append(_Seen(number, step.sigma[0].cpu(), step.latents.cpu(), hidden, out))
            self._compare(steps[-3:])

        with ExitStack() as stack:
            for number, network in enumerate(networks):
                stack.enter_context(self.pipe.backbone.blocks_run_by(network, partial(run, number)))
            yield note

    def _compare(self, steps: Sequence[_Seen]) -> None:
        """Compare the last step with the one before. A third one tells where the frames were before both."""
        if len(steps) < 3 or steps[1].network != steps[2].network or steps[1].hidden.shape != steps[2].hidden.shape:
            return
        before, old, new = steps
        frames = len(new.sigma)
        moving = (old.sigma != before.sigma) & (new.sigma != old.sigma)
        if not moving.any() or len(new.hidden) % frames:
            return

        def velocity(a: _Seen, b: _Seen) -> Tensor:
            slope = (b.latents - a.latents)[0, :, moving]
            return slope / (b.sigma - a.sigma)[moving][None, :, None, None]

        tokens = moving.repeat_interleave(len(new.hidden) // frames)
        signs = (
            float((new.sigma - old.sigma)[moving].abs().mean() / old.sigma[moving].mean().clamp(min=1e-6)),
            _relative(new.hidden[tokens], old.hidden[tokens]),
            _relative(new.out[tokens], old.out[tokens]),
            _relative((new.out - new.hidden)[tokens], (old.out - old.hidden)[tokens]),
        )
        self._changes.append((*signs, _relative(velocity(old, new), velocity(before, old))))

    def correlations(self) -> dict[str, float]:
        """The rank correlation of each sign over all steps, -1 to 1; empty if too few steps were watched."""
        if len(self._changes) < 5:
            return {}
        *signs, truth = zip(*self._changes, strict=True)
        return {name: round(spearman(values, truth), 3) for name, values in zip(SIGNS, signs, strict=True)}


def spearman(a: Any, b: Any) -> float:
    """The rank correlation of two lists of numbers without ties, -1 to 1."""
    first, second = (np.argsort(np.argsort(values)) for values in (a, b))
    return float(np.corrcoef(first, second)[0, 1])


def _relative(new: Tensor, old: Tensor) -> float:
    """Σ|new − old| / Σ|old|"""
    return float((new - old).abs().sum() / old.abs().sum().clamp(min=torch.finfo(torch.float32).tiny))
