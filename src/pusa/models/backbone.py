"""What the rest of the project knows of a network: its frame arithmetic, its texts, and what a call of it takes.

`generation`, `training` and `cli` use a `Backbone` and name no network. `wan/backbone.py` is one;
`tests/generation/test_toy_backbone.py` has another, which shows all that one has to bring.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from pusa.errors import InputError
from pusa.images import Frames

Expert = Literal["high", "low"]
"""Which of two transformers: the one for high noise levels or the one for low."""


@dataclass(frozen=True)
class Defaults:
    """The settings of a clip that the user leaves out.

    Attributes:
        fps: frames per second.
        frames: pixel frames.
        size: (width, height) in pixels.
        steps, guidance, shift: of sampling.
        boundary: the noise level in [0, 1] from which on the first of two experts runs; None where there is one model.
        per_frame: of `transformer` and `transformer_2`, those whose own weights take a timestep per frame, as a merged
            adapter has them.
    """

    fps: float = 16
    frames: int = 81
    size: tuple[int, int] = (832, 480)
    steps: int = 10
    guidance: float = 3.0
    shift: float = 5.0
    boundary: float | None = None
    per_frame: tuple[str, ...] = ()


@dataclass(frozen=True)
class Geometry:
    """How pixels become latents and latents become tokens.

    Latent slot 0 is pixel frame 0. Slot k >= 1 holds the `frames_per_slot` = P pixel frames P(k-1)+1 ... Pk. A clip of
    n+1 slots has Pn+1 pixel frames.

    Attributes:
        frames_per_slot: pixel frames of every slot but the first.
        spatial: pixels per latent, along width and height.
        patch: latents per token, along time, height and width.
    """

    frames_per_slot: int
    spatial: int
    patch: tuple[int, int, int] = (1, 1, 1)

    @property
    def multiple(self) -> int:
        """Width and height of a clip are multiples of this many pixels; a token is as large."""
        return self.spatial * self.patch[1]

    def latent_frames(self, frames: int) -> int:
        """The slots of a clip of `frames` = Pn+1 pixel frames: n+1. InputError for any other number."""
        if not self.is_whole(frames):
            nearest = [str(n) for n in self.nearest(frames) if n >= 1]
            raise InputError(
                f"{frames} frames cannot be made, a clip has {self.form()} of them: use {' or '.join(nearest)}."
            )
        return (frames - 1) // self.frames_per_slot + 1

    def pixel_frames(self, slots: int) -> int:
        """The pixel frames that `slots` >= 1 slots decode to."""
        return self.frames_per_slot * (slots - 1) + 1

    def slot_of(self, frame: int) -> int:
        """The slot that holds pixel frame `frame` >= 0."""
        return (frame + self.frames_per_slot - 1) // self.frames_per_slot

    def frames_of(self, slot: int) -> range:
        """The pixel frames that slot `slot` >= 0 holds: one for slot 0, P for every other."""
        if slot == 0:
            return range(1)
        return range(self.frames_per_slot * (slot - 1) + 1, self.frames_per_slot * slot + 1)

    def is_whole(self, frames: int) -> bool:
        """Whether `frames` frames from frame 0 on fill their slots: whether the number is Pn+1."""
        return frames >= 1 and (frames - 1) % self.frames_per_slot == 0

    def begins_slot(self, frame: int) -> bool:
        """Whether pixel frame `frame` >= 0 is the first one of its slot."""
        return frame == 0 or (frame - 1) % self.frames_per_slot == 0

    def whole(self, frames: int) -> int:
        """The longest clip, Pn+1, that `frames` frames fill; 1 where there are fewer."""
        return self.groups(max(frames, 1) - 1) + 1

    def groups(self, frames: int) -> int:
        """The largest multiple of P that is at most `frames`."""
        return frames // self.frames_per_slot * self.frames_per_slot

    def nearest(self, frames: int) -> tuple[int, int]:
        """The two clip lengths around `frames`, which is none; the first may be below 1."""
        below = self.groups(frames - 1) + 1
        return below, below + self.frames_per_slot

    def form(self, letter: str = "n", plus: int = 1) -> str:
        """How messages write a number of frames: `4n+1`, or with plus=0 `4n`."""
        return f"{self.frames_per_slot}{letter}" + (f"+{plus}" if plus else "")

    @property
    def group(self) -> str:
        """The frames of a slot in words: `four`."""
        words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
        return words[self.frames_per_slot - 1] if self.frames_per_slot <= len(words) else str(self.frames_per_slot)

    def latent_shape(self, channels: int, frames: int, size: tuple[int, int]) -> tuple[int, int, int, int, int]:
        """[1, C, F, h, w] of a clip of `frames` pixel frames and `size` = (width, height) pixels."""
        width, height = size
        return 1, channels, self.latent_frames(frames), height // self.spatial, width // self.spatial


@dataclass(frozen=True, eq=False)
class Text:
    """Encoded prompts.

    Attributes:
        tokens: [B, L, D], zero past the end of each prompt.
        mask: bool [B, L], True up to the end of each prompt; None for a network that takes no mask.
    """

    tokens: Tensor
    mask: Tensor | None = None

    @classmethod
    def padded(cls, tokens: Tensor) -> Text:
        """Tokens [B, L, D] with the mask that their zeros give."""
        used = tokens.ne(0).any(dim=2)
        return cls(tokens, used.flip(1).cumsum(1).flip(1) > 0)

    def like(self, tokens: Tensor) -> Text:
        """Other tokens, with a mask where this text has one."""
        return Text(tokens) if self.mask is None else Text.padded(tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, prompts: slice) -> Text:
        """Some of the prompts."""
        return Text(self.tokens[prompts], None if self.mask is None else self.mask[prompts])

    def expand(self, batch: int) -> Text:
        """One prompt for `batch` clips."""
        mask = None if self.mask is None else self.mask.expand(batch, -1)
        return Text(self.tokens.expand(batch, -1, -1), mask)

    def to(self, device: torch.device, dtype: torch.dtype) -> Text:
        """The same on a device, with tokens of a type."""
        return replace(
            self, tokens=self.tokens.to(device, dtype), mask=None if self.mask is None else self.mask.to(device)
        )


@dataclass(frozen=True)
class Flops:
    """Operations of the forward and backward pass, and of forward passes that gradient checkpointing repeats."""

    forward: int
    backward: int
    recomputed: int = 0

    @property
    def model(self) -> int:
        """The operations of the forward and backward pass, which count towards MFU."""
        return self.forward + self.backward


class Sizes(Protocol):
    """The sizes of a network, from configurations alone; they decide the operations and the memory of a training."""

    @property
    def geometry(self) -> Geometry: ...
    @property
    def parameters(self) -> int:
        """The number of parameters of the transformer."""

    @property
    def layers(self) -> Mapping[str, tuple[int, int]]:
        """{name: (inputs, outputs)} of the linear layers of the blocks."""

    def tokens(self, frames: int, size: tuple[int, int]) -> int:
        """Return the tokens of a clip of `frames` pixel frames and (width, height) pixels."""

    def step(self, tokens: int, *, keeps_base: bool, extra: int, checkpointing: bool) -> float:
        """Return the operations of the forward and backward pass of a clip of `tokens` tokens.

        keeps_base: the weights do not change. extra: parameters of the adapter.
        """

    def activations(self, tokens: int, checkpointing: bool) -> int:
        """Return how many numbers such a clip stores for the backward pass."""


class Encoders(Protocol):
    """What clips and captions are encoded with; a training needs nothing else before its cache is full."""

    vae: Any
    """nn.Module, the autoencoder."""
    text_encoder: Any
    """nn.Module, or None while it is released."""
    tokenizer: Any
    source: str
    """The model's name, in a form that loads it again."""

    @property
    def geometry(self) -> Geometry: ...
    @property
    def channels(self) -> int:
        """C, of the latents."""

    @property
    def text_tokens(self) -> int:
        """L, to which every prompt is padded."""

    @property
    def text_width(self) -> int:
        """D, of a text token."""

    @property
    def vae_fingerprint(self) -> str:
        """A short hash that tells autoencoders apart; kept latents belong to one."""

    def encode(self, frames: Frames) -> Tensor:
        """uint8 frames [N, H, W, 3] to normalised latents, float32 [1, C, F, h, w] on the autoencoder's device.

        A clip's first latent is that of its first frame alone. Raises InputError unless the geometry has such a clip.
        """

    def decode(self, latents: Tensor) -> Frames:
        """Normalised latents [1, C, F, h, w] to uint8 frames [N, H, W, 3]."""

    def encode_text(self, prompts: Sequence[str]) -> Text:
        """Prompts to texts, in the encoder's type and on its device. One prompt does not change another's bits."""


class Backbone(Encoders, Protocol):
    """A loaded network. `transformer` is an nn.Module with `dtype` and `device`; the same for `transformer_2`."""

    transformer: Any
    """The only one, or the expert for high noise."""
    transformer_2: Any
    """The expert for low noise, or None."""
    fingerprint: str
    """Changes when a file of the checkpoint does."""
    defaults: Defaults
    beside: dict[str, str]
    """The parts that were given beside the source, in a form that loads them again."""
    loras: tuple[Any, ...]
    """The LoRAs that run, see `pusa.models.lora.runtime.Lora`."""

    @property
    def positions(self) -> int:
        """How many positions the network knows, along each of time, height and width."""

    @property
    def heads(self) -> int:
        """Attention heads, which several processes share."""

    def velocity(
        self,
        network: Any,
        latents: Tensor,
        sigma: Tensor,
        text: Text,
        *,
        frames: Tensor | None = None,
        branch: str | None = None,
        autocast: torch.dtype | None = None,
    ) -> Tensor:
        """The network's prediction of ε − x0, [B, C, V, h, w] in the type of `latents`.

        Args:
            network: `transformer`, `transformer_2`, or what is wrapped around one of them.
            latents: [B, C, V, h, w].
            sigma: [B, V] in [0, 1], the noise level of each frame.
            text: of B prompts, on the network's device.
            frames: int64 [V], the latent frames of the clip that are given, in ascending order; None: 0 ... V - 1.
            branch: the name of the guidance branch, for caches that keep a state for each.
            autocast: the type of mixed precision, as in training; None computes in the network's own type.
        """

    def exact_modules(self, network: Any) -> Sequence[Any]:
        """The modules of a transformer that have to compute in float32 also in mixed precision."""

    def step_counter(self, network: Any) -> Callable[[int, int, int], Flops]:
        """A function from (clips, tokens, latent frames of all clips) to the operations of a training step.

        network: a transformer with its adapters, as it is trained; it may lie on the meta device.
        """
