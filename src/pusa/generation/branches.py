"""Both branches of guidance in one call of the network, where this is faster.

A call of few tokens does not fill the device: much of its time is the start of operations, and small matrix products.
With both branches in one batch it has twice the tokens. On one thread of a CPU, the two branches of the embedded model
(80 tokens of width 256) are 1.3 times as fast in one call. At the width of Wan 1.3B, the factor is about 1.05 for 260
tokens and 1.0 for 780 (`benchmarks/exact_step.py`). A GPU is filled later. The limit on tokens is also one on memory: a
call of so few tokens needs less than the decoding of the clip.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

from torch import Tensor

from pusa.core.sampler import Call, Velocity
from pusa.errors import InputError
from pusa.generation.sampling import GuidanceBatch
from pusa.models.backbone import Text

MOST_TOKENS = {"cpu": 256}
"""tokens of one branch up to which `auto` puts both into one call"""
MOST_TOKENS_OF_GPU = 1024
"""The same for other devices. It follows from the time that the start of operations takes; it is not measured."""


class Branches:
    """The velocities of both branches, from one call of the network or from two.

    A branch is a pair of its name and the text of B prompts.
    """

    def __init__(self, predict: Velocity, batch: GuidanceBatch, patch: tuple[int, int, int]) -> None:
        """predict: the network, for one branch. patch: latents per token, along time, height and width."""
        self._predict, self._batch, self._patch = predict, batch, patch
        self._joined: tuple[Text, Text, Text] | None = None

    def __call__(self, latents: Tensor, sigma: Tensor, context: tuple[Any, Any], call: Call) -> tuple[Tensor, Tensor]:
        """Return the velocities with the prompts and with the negative prompts, each in the shape of `latents`."""
        if not self._in_one(latents):
            positive, negative = (self._predict(latents, sigma, branch, call) for branch in context)
            return positive, negative
        twice = replace(call, held=call.held.repeat(2, 1))
        text = self._text(context[0][1], context[1][1])
        v = self._predict(latents.repeat(2, 1, 1, 1, 1), sigma.repeat(2, 1), ("both", text), twice)
        positive, negative = v.chunk(2)
        return positive, negative

    def _in_one(self, latents: Tensor) -> bool:
        if self._batch != "auto":
            return self._batch == "on"
        tokens = len(latents) * prod(latents.shape[2:]) // prod(self._patch)
        return tokens <= MOST_TOKENS.get(latents.device.type, MOST_TOKENS_OF_GPU)

    def _text(self, positive: Text, negative: Text) -> Text:
        """Return both texts as one. It is the same object in every step, as `Backbone.walk` needs it."""
        if self._joined is None or self._joined[0] is not positive or self._joined[1] is not negative:
            batch = max(len(positive), len(negative))
            both = [text if len(text) == batch else text.expand(batch) for text in (positive, negative)]
            self._joined = positive, negative, both[0].followed_by(both[1])
        return self._joined[2]


def checked(batch: GuidanceBatch, transformer: Any) -> GuidanceBatch:
    """Return how the branches run on a transformer. InputError for `on` with a cache, which needs a call per branch."""
    if not getattr(transformer, "is_cache_enabled", False):
        return batch
    if batch == "on":
        raise InputError(
            "guidance_batch is on, and the transformer has a cache of diffusers, which needs one call per branch: "
            "disable the cache, or set guidance_batch to off."
        )
    return "off"
