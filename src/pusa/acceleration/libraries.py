"""The caches of diffusers behind the same names, as alternatives and to compare with.

They decide for a clip as a whole, by one noise level. If the moving frames of a step have different levels, they would
decide by a mean of changes that have little to do with each other, so `Acceleration.check` refuses this. Each guidance
branch decides for itself. Frames that are given count like all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, Self

from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig
from torch import nn

from pusa.acceleration.accounting import Accounting
from pusa.acceleration.names import Acceleration
from pusa.core.sampler import Call
from pusa.models.backbone import Backbone


class LibraryCache:
    """A cache of diffusers on the networks of a backbone, inside the context.

    It counts a block as computed if its first linear layer runs. (TaylorSeer computes the feed-forward layers of every
    block, and leaves out attention.)
    """

    def __init__(self, acceleration: Acceleration, backbone: Backbone, networks: Sequence[Any]) -> None:
        ((self.name, self.values),) = acceleration.parts
        self.backbone, self.networks = backbone, networks
        self.accounting = Accounting()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for network in self.networks:
            blocks = list(self.backbone.blocks(network))
            network.enable_cache(self._configuration())
            self._stack.callback(network.disable_cache)
            layers = [next(layer for layer in block.modules() if isinstance(layer, nn.Linear)) for block in blocks]
            hooks = [layer.register_forward_pre_hook(self._computed) for layer in layers]
            for hook in hooks:
                self._stack.callback(hook.remove)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def call(self, network: Any, branch: str, call: Call) -> AbstractContextManager[None]:
        """See `Accelerated`. The cache gets the branch from `Backbone.velocity`."""
        self.accounting.total += len(self.backbone.blocks(network))
        return nullcontext()

    def _computed(self, *_: object) -> None:
        self.accounting.computed += 1

    def _configuration(self) -> Any:
        values: Any = self.values
        if self.name == "first-block":
            return FirstBlockCacheConfig(threshold=values["threshold"])
        return TaylorSeerCacheConfig(
            cache_interval=values["every"],
            disable_cache_before_step=2,
            cache_identifiers=[r"^blocks\.\d+\.attn[12]$"],  # the default pattern matches nothing in Wan
        )
