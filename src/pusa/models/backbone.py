"""The interface of a network, its autoencoder and its text encoder; everything outside `models/` uses only this.

`wan/backbone.py` implements it for Wan. `tests/generation/test_toy_backbone.py` has a second implementation, of about
60 lines. Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pusa.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pusa.media.images import Frames

Expert = Literal["high", "low"]
"""Which of two transformers: the one for high noise levels, or the one for low noise levels."""


@dataclass(frozen=True)
class Defaults:
    """The settings of a clip that the user does not give.

    fps: frames per second. frames: the number of pixel frames. size: (width, height) in pixels. guidance: the scale of
    classifier-free guidance; 1 is none. shift: see `core.sigmas.shift`. boundary: the σ in [0, 1] at and above which
    the high-noise expert runs; None for one model. per_frame: those of `transformer` and `transformer_2` whose own
    weights take a timestep per frame, for example after merging an adapter.
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
    """How pixels become latents, and how latents become tokens.

    A slot is a latent frame. Slot 0 encodes pixel frame 0. Slot k >= 1 encodes the P = `frames_per_slot` pixel frames
    P(k-1)+1 to Pk. So a clip of n+1 slots has Pn+1 pixel frames. spatial: pixels per latent, along width and height.
    patch: latents per token, along time, height and width.
    """

    frames_per_slot: int
    spatial: int
    patch: tuple[int, int, int] = (1, 1, 1)

    @property
    def multiple(self) -> int:
        """The side of a token in pixels. Width and height of a clip are multiples of it."""
        return self.spatial * self.patch[1]

    def latent_frames(self, frames: int) -> int:
        """Return the number of slots, n+1, for `frames` = Pn+1 pixel frames. InputError for any other number."""
        if not self.is_whole(frames):
            nearest = [str(n) for n in self.nearest(frames) if n >= 1] or ["1"]
            raise InputError(
                f"{frames} frames cannot be made, a clip has {self.form()} of them: use {' or '.join(nearest)}."
            )
        return (frames - 1) // self.frames_per_slot + 1

    def pixel_frames(self, slots: int) -> int:
        """Return the number of pixel frames that `slots` >= 1 slots decode to."""
        return self.frames_per_slot * (slots - 1) + 1

    def slot_of(self, frame: int) -> int:
        """Return the slot that encodes pixel frame `frame` >= 0."""
        return (frame + self.frames_per_slot - 1) // self.frames_per_slot

    def frames_of(self, slot: int) -> range:
        """Return the pixel frames that slot `slot` >= 0 encodes: one for slot 0, P for every other slot."""
        if slot == 0:
            return range(1)
        return range(self.frames_per_slot * (slot - 1) + 1, self.frames_per_slot * slot + 1)

    def is_whole(self, frames: int) -> bool:
        """Return whether `frames` is Pn+1, so that the frames from frame 0 on fill their slots."""
        return frames >= 1 and (frames - 1) % self.frames_per_slot == 0

    def begins_slot(self, frame: int) -> bool:
        """Return whether pixel frame `frame` >= 0 is the first frame of its slot."""
        return frame == 0 or (frame - 1) % self.frames_per_slot == 0

    def whole(self, frames: int) -> int:
        """Return the largest Pn+1 that is at most `frames`, but at least 1."""
        return self.groups(max(frames, 1) - 1) + 1

    def groups(self, frames: int) -> int:
        """Return the largest multiple of P that is at most `frames`."""
        return frames // self.frames_per_slot * self.frames_per_slot

    def nearest(self, frames: int) -> tuple[int, int]:
        """Return the clip lengths below and above `frames`, which is not a clip length. The first may be below 1."""
        below = self.groups(frames - 1) + 1
        return below, below + self.frames_per_slot

    def form(self, letter: str = "n", plus: int = 1) -> str:
        """Return the form of a number of frames for messages: `4n+1`, or with plus=0 `4n`."""
        return f"{self.frames_per_slot}{letter}" + (f"+{plus}" if plus else "")

    @property
    def group(self) -> str:
        """P in words, for messages: `four`."""
        words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
        return words[self.frames_per_slot - 1] if self.frames_per_slot <= len(words) else str(self.frames_per_slot)

    def latent_shape(self, channels: int, frames: int, size: tuple[int, int]) -> tuple[int, int, int, int, int]:
        """Return the latent shape (1, C, F, h, w) for `frames` pixel frames and `size` = (width, height) pixels."""
        width, height = size
        return 1, channels, self.latent_frames(frames), height // self.spatial, width // self.spatial


@dataclass(frozen=True, eq=False)
class Text:
    """Encoded prompts.

    tokens: [B, L, D], zero after the end of each prompt. mask: bool [B, L], True up to the end of each prompt; None for
    a network that takes no mask.
    """

    tokens: Tensor
    mask: Tensor | None = None

    @classmethod
    def padded(cls, tokens: Tensor) -> Text:
        """Return a text with the mask that follows from the zero rows at the end of each prompt."""
        used = tokens.ne(0).any(dim=2)
        return cls(tokens, used.flip(1).cumsum(1).flip(1) > 0)

    def with_tokens(self, tokens: Tensor) -> Text:
        """Return a text of other tokens [B, L, D]. It has a mask if this text has one."""
        return Text(tokens) if self.mask is None else Text.padded(tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, prompts: slice) -> Text:
        """Return the text of some of the prompts."""
        return Text(self.tokens[prompts], None if self.mask is None else self.mask[prompts])

    def followed_by(self, other: Text) -> Text:
        """Return the text of these prompts and then of those of `other`."""
        import torch

        mask = None if self.mask is None or other.mask is None else torch.cat([self.mask, other.mask])
        return Text(torch.cat([self.tokens, other.tokens]), mask)

    def expand(self, batch: int) -> Text:
        """Return the text of one prompt, repeated for `batch` clips without a copy."""
        mask = None if self.mask is None else self.mask.expand(batch, -1)
        return Text(self.tokens.expand(batch, -1, -1), mask)

    def to(self, device: torch.device, dtype: torch.dtype) -> Text:
        """Return the text on `device`, with tokens of type `dtype`."""
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
    """The sizes of a network, read from configurations. They decide the operations and the memory of a training."""

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


@dataclass(frozen=True)
class HubNames:
    """What a model card calls a network. tag: of the hub. pipeline, transformer: classes of diffusers."""

    tag: str
    pipeline: str
    transformer: str


class Encoders(Protocol):
    """The autoencoder and the text encoder of a network. The cache of a training is filled with these alone."""

    vae: Any
    """nn.Module, the autoencoder."""
    text_encoder: Any
    """nn.Module; None while it is released to save memory."""
    tokenizer: Any
    source: str
    """The name of the model. Loading this name gives the same model."""

    @property
    def geometry(self) -> Geometry: ...
    @property
    def channels(self) -> int:
        """C, the number of latent channels."""

    @property
    def text_tokens(self) -> int:
        """L, the length to which every prompt is padded."""

    @property
    def text_width(self) -> int:
        """D, the width of a text token."""

    @property
    def vae_fingerprint(self) -> str:
        """A short, quick hash of the autoencoder. Saved latents are reused only if it is the same."""

    def latents_fingerprint(self) -> str:
        """Return a hash of everything that decides the latents of a clip, with every weight; cache keys contain it."""

    def text_fingerprint(self) -> str:
        """Return a hash of everything that decides an encoded prompt, with every weight; cache keys contain it."""

    @staticmethod
    def clean(prompt: str) -> str:
        """Return the prompt as `encode_text` reads it. Prompts with the same result share an entry of the cache."""

    def encode(self, frames: Frames) -> Tensor:
        """Encode uint8 frames [N, H, W, 3] to normalised latents, float32 [1, C, F, h, w] on the autoencoder's device.

        The first latent of a clip is that of its first frame alone. Raises InputError if N, H or W do not fit the
        geometry.
        """

    def decode(self, latents: Tensor) -> Frames:
        """Decode normalised latents [1, C, F, h, w] to uint8 frames [N, H, W, 3]."""

    def encode_text(self, prompts: Sequence[str]) -> Text:
        """Encode prompts, in the encoder's type and on its device. The result of a prompt does not depend on others."""


class BlockCall(Protocol):
    """A block of a network that is about to run.

    Attributes:
        index, count: the number of the block, from 0, and the number of blocks.
        hidden: [B, n, D], its input: the tokens of the visible frames, in their order. A process of several that share
            a clip has its part of them.
    """

    @property
    def index(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def hidden(self) -> Tensor: ...

    def whole(self) -> Tensor:
        """Run the block; return its output for all tokens, [B, n, D]."""

    def some(self, tokens: Tensor) -> Tensor:
        """Run the block for the tokens at int64 [m]; they see all tokens. Return their output, [B, m, D]."""

    def some_with_attention(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """As `some`; the second result is the log-sum-exp of each token's attention logits, float32 [m]."""


class Backbone(Encoders, Protocol):
    """A loaded network. `transformer` is an nn.Module with `dtype` and `device`; the same for `transformer_2`."""

    transformer: Any
    """The only transformer, or the expert for high noise."""
    transformer_2: Any
    """The expert for low noise, or None."""
    fingerprint: str
    """A hash that changes when a file of the checkpoint changes."""
    defaults: Defaults
    beside: dict[str, str]
    """{part: source} of the parts that do not come from `source`. Loading these sources gives the same parts."""
    loras: tuple[Any, ...]
    """The LoRAs on the transformers, see `pusa.models.lora.runtime.Lora`."""

    @property
    def hub_names(self) -> HubNames | None:
        """The names for model cards; None if diffusers does not have the network."""

    @property
    def positions(self) -> int:
        """The number of positions that the network knows, along each of time, height and width."""

    @property
    def heads(self) -> int:
        """The number of attention heads. Several processes can share them."""

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
        """Return the network's prediction of ε − x0, [B, C, V, h, w] in the type of `latents`.

        Args:
            network: `transformer`, `transformer_2`, or a wrapper of one of them, such as DDP.
            latents: [B, C, V, h, w].
            sigma: [B, V] in [0, 1], the noise level of each frame.
            text: B prompts, on the network's device.
            frames: int64 [V], the absolute latent frames in `latents`, in ascending order; None: 0 to V - 1.
            branch: the name of the guidance branch. Caches keep one state for each name.
            autocast: the type of mixed precision, as in training; None computes in the network's own type.
        """

    def walk(self) -> AbstractContextManager[None]:
        """Enter this around the calls for one clip: what they have in common may be kept until the block ends.

        Texts and weights do not change inside the block. A network with nothing to keep returns `nullcontext()`.
        """

    def forget(self) -> None:
        """Drop what `walk` keeps, because weights have changed nevertheless."""

    def exact_modules(self, network: Any) -> Sequence[Any]:
        """Return the modules of a transformer that must compute in float32 even in mixed precision."""

    def blocks(self, network: Any) -> Sequence[Any]:
        """Return the modules that run one after another and have most of the parameters. FSDP shards each alone."""

    def blocks_run_by(self, network: Any, run: Callable[[BlockCall], Tensor]) -> AbstractContextManager[None]:
        """Return a context in which `run` is called instead of each block of a transformer, and returns its output."""

    def block_operations(self, network: Any, tokens: int, computed: int) -> int:
        """Return the operations of a block for one clip of `tokens` tokens, of which `computed` are computed."""

    def step_counter(self, network: Any) -> Callable[[int, int, int], Flops]:
        """Return a function from (clips, tokens, latent frames of all clips) to the operations of a training step.

        network: a transformer with its adapters, as it is trained; it may be on the meta device.
        """
