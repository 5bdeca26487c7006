"""A loaded model: its networks, their place in memory, its LoRAs, and its prediction for the sampler.

A model with two experts (Wan2.2 A14B) calls one of them in each step. The noisiest frame decides which. Only this
expert has to be on the device. `pipeline.py` makes clips with a model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from pusa import processes
from pusa.acceleration.accounting import Accelerated
from pusa.acceleration.names import Acceleration
from pusa.acceleration.running import running
from pusa.core import sampler
from pusa.core.sampler import Call, Velocity
from pusa.core.timesteps import TimestepMatrix
from pusa.errors import InputError
from pusa.generation import branches
from pusa.generation.limits import Limits
from pusa.generation.sampling import GuidanceBatch
from pusa.media.images import Frames
from pusa.models import context_parallel, kernels
from pusa.models.backbone import Backbone, Defaults, Expert, Text
from pusa.models.kernels import Attention
from pusa.models.loading import checkpoints
from pusa.models.lora import header, runtime
from pusa.models.memory import profiles
from pusa.processes import ProcessGroup
from pusa.versions import versions


class Model:
    """A loaded model.

    `transformer`, `transformer_2`, `vae`, `text_encoder`, `tokenizer` are those of the backbone: for Wan the objects of
    diffusers and transformers, with one timestep per latent frame.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.limits = Limits.loaded(backbone)
        self.profile = profiles.PLAIN
        self.group = ProcessGroup()
        self.attention: Attention = kernels.NATIVE
        self.compiled = False
        self._device = torch.device(backbone.transformer.device)
        self._disk: TemporaryDirectory[str] | None = None

    def __repr__(self) -> str:
        loras = "".join(f", {lora.name} at {lora.scale:g}" for lora in self.backbone.loras)
        return f"{type(self).__name__}({self.backbone.source!r} on {self.device}{loras})"

    def lay_out(self, profile: profiles.Profile, device: str | torch.device) -> None:
        """Place the model, which is on the CPU, on device, memory and disk by a memory profile. Call this once.

        LoRAs may be loaded before. With a profile that offloads to disk, none can be added later.
        """
        if profile.transformer == "disk":
            self._disk = TemporaryDirectory(prefix="pusa-weights-")
        profiles.apply(self.backbone, profile, torch.device(device), self._disk.name if self._disk else None)
        self.profile, self._device = profile, torch.device(device)

    def moved(self, device: str | torch.device) -> None:
        """State that all networks were moved to a device, after `.to(device)` of each. For a model without profile."""
        self._device = torch.device(device)

    def use(self, attention: Attention = kernels.NATIVE, *, compiled: bool = False) -> None:
        """Choose the kernel of attention, and whether blocks are compiled. Call this once, after `lay_out` and
        `share_tokens`.

        Raises InputError for a kernel that does not run here, and for compiled blocks with a memory profile that moves
        or converts the weights of blocks while they run.
        """
        if compiled and (self.profile.transformer != "device" or "transformer" in self.profile.fp8):
            raise InputError(
                f"Blocks cannot be compiled with the memory profile {self.profile.name}, which moves or converts their "
                "weights while they run: leave --compile out, or give --memory 48gb or none."
            )
        transformers = list(self._experts(None).values())
        kernels.use_attention(transformers, attention, self.device.type)
        if compiled:
            kernels.compile_blocks(transformers)
        self.attention, self.compiled = attention, compiled

    def share_tokens(self) -> None:
        """Share the tokens of every clip with the other processes of the group. Call this once, after `lay_out`.

        Every process must then make the same calls, and gets the same clips. Raises InputError unless the number of
        processes divides the number of attention heads.
        """
        group = processes.current_group()
        context_parallel.enable(list(self._experts(None).values()), group.size)
        self.group = group

    @property
    def transformer(self) -> Any:
        """The network, or the high-noise expert of two."""
        return self.backbone.transformer

    @property
    def transformer_2(self) -> Any:
        """The low-noise expert, or None."""
        return self.backbone.transformer_2

    @property
    def vae(self) -> Any:
        """The autoencoder."""
        return self.backbone.vae

    @property
    def text_encoder(self) -> Any:
        """The text encoder. It is loaded again if the memory profile has released it."""
        parts = self.backbone
        if parts.text_encoder is None:
            again = checkpoints.load_encoders(parts.source, **parts.beside, dtype=self.transformer.dtype, device="cpu")
            profiles.place_text_encoder(again.text_encoder, self.profile, self.device)
            parts.text_encoder = again.text_encoder
        return parts.text_encoder

    @property
    def tokenizer(self) -> Any:
        """The text encoder's tokenizer."""
        return self.backbone.tokenizer

    @property
    def defaults(self) -> Defaults:
        """The default fps, frames, size, steps, guidance and shift."""
        return self.backbone.defaults

    @property
    def device(self) -> torch.device:
        """The device on which the transformer runs."""
        return self._device if self.transformer_2 is not None else torch.device(self.transformer.device)

    def encode(self, frames: Frames) -> Tensor:
        """uint8 frames [N, H, W, 3] of n+1 slots to normalised latents, float32 [1, C, n+1, h, w] on the CPU."""
        return self.backbone.encode(frames).cpu()

    def decode(self, z: Tensor) -> Frames:
        """Normalised latents [1, C, F, h, w] to uint8 frames [N, H, W, 3]."""
        geometry = self.backbone.geometry
        size = z.shape[4] * geometry.spatial, z.shape[3] * geometry.spatial
        with self.explained(size, geometry.pixel_frames(z.shape[2])):
            return self.backbone.decode(z)

    def encode_text(self, prompts: Sequence[str]) -> Text:
        """Prompts to the text [B, L, D] that the transformer takes, in its dtype and on its device."""
        with self.explained():
            _ = self.text_encoder  # loads it again if it was released
            encoded = self.backbone.encode_text(prompts)
        if self.profile.releases:
            self.backbone.text_encoder = None
        return encoded.to(self.device, self.transformer.dtype)

    @property
    def loras(self) -> tuple[runtime.Lora, ...]:
        """The LoRAs that run, with their strengths, in the order in which they are added."""
        return self.backbone.loras

    def load_lora(
        self, path: str | Path, scale: float = 1.0, name: str | None = None, expert: Expert | None = None
    ) -> runtime.Lora:
        """Add a LoRA at a strength: a file of any dialect, or the folder of a PEFT adapter.

        Args:
            path: the file or folder.
            scale: the strength.
            name: the name for `set_lora` and `remove_lora`. A LoRA of the same name is replaced. By default it is the
                name of the file, with a number if another file has this name.
            expert: the expert that gets the LoRA. None gives it to both. Of a file with a LoRA for each expert, each
                expert gets its own.

        Raises InputError, and changes nothing, for a file that cannot be read or does not fit, for a file that runs
        under another name, and for a file that was made for the other expert by its metadata or name.
        """
        self._check_changeable()
        places = self._experts(expert)
        if self.transformer_2 is not None and (made_for := header.expert_for(path)) not in (None, expert):
            raise InputError(
                f"The LoRA {path} is for the {made_for}-noise expert: give it with --lora-{made_for} "
                f"(expert={made_for!r})."
            )
        name = runtime.choose_name([x for x in self.loras if x.expert in places], path, name)
        for which, transformer in places.items():
            with context_parallel.suspended(transformer):
                added = dataclasses.replace(runtime.load(transformer, path, scale, name, which), expert=which)
            self.backbone.forget()
            others = [x for x in self.loras if (x.name, x.expert) != (name, which)]
            self.backbone.loras = (*others, added)
        return self.loras[-1]

    def set_lora(self, name: str, scale: float, expert: Expert | None = None) -> None:
        """Set the strength of a LoRA for the next clips. At 0 the model runs without it, bit for bit.

        expert: only on this expert.
        """
        for present in self._named(name, expert):
            runtime.set_scale(self._experts(present.expert)[present.expert], name, scale)
            self.backbone.forget()
            changed = dataclasses.replace(present, scale=scale)
            self.backbone.loras = tuple(changed if x is present else x for x in self.loras)

    def remove_lora(self, name: str, expert: Expert | None = None) -> None:
        """Remove a LoRA from the model, or from one expert, and free its memory. The base stays bit-identical."""
        self._check_changeable()
        for gone in self._named(name, expert):
            runtime.remove(self._experts(gone.expert)[gone.expert], name)
            self.backbone.forget()
            self.backbone.loras = tuple(x for x in self.loras if x is not gone)

    def _experts(self, expert: Expert | None) -> dict[Expert | None, Any]:
        """The transformers by expert; None selects all."""
        if self.transformer_2 is None:
            if expert is not None:
                raise InputError(f"{self.backbone.source} has one transformer and no {expert}-noise expert.")
            return {None: self.transformer}
        both: dict[Expert | None, Any] = {"high": self.transformer, "low": self.transformer_2}
        return both if expert is None else {expert: both[expert]}

    def _check_changeable(self) -> None:
        if self._disk is not None:
            raise InputError(
                f"The weights are on the disk (memory profile {self.profile.name}), so LoRAs cannot change: give them "
                "when the model is loaded."
            )

    def explained(self, size: tuple[int, int] | None = None, frames: int | None = None) -> AbstractContextManager[None]:
        """Turn running out of memory inside the block into one sentence that says what to try."""
        on_cpu, geometry = self.device.type == "cpu", self.backbone.geometry
        return profiles.explained(self.profile.name, on_cpu=on_cpu, geometry=geometry, size=size, frames=frames)

    def _named(self, name: str, expert: Expert | None) -> list[runtime.Lora]:
        if found := [x for x in self.loras if x.name == name and expert in (None, x.expert)]:
            return found
        there = ", ".join(dict.fromkeys(x.name for x in self.loras)) or "none"
        where = "" if expert is None else f" on the {expert}-noise expert"
        raise InputError(f"There is no LoRA {name!r}{where}: there is {there}.")

    def guided(
        self,
        guidance: float,
        guidance_2: float | None = None,
        boundary: float | None = None,
        accelerated: Accelerated | None = None,
        *,
        batch: GuidanceBatch = "off",
        interval: tuple[float, float] | None = None,
    ) -> Velocity:
        """The model's prediction of eps - x0 with classifier-free guidance, for the sampler.

        The context is a pair, for the prompt and for the negative prompt. Each has the name of the guidance branch,
        which diffusers' caches need, and the encoded text of B prompts. With two experts, the high-noise expert runs
        with `guidance` if the noisiest frame is at `boundary` (default: the model's) or above. Otherwise the low-noise
        expert runs with `guidance_2` (default: `guidance`).

        accelerated: what the context of `accelerated` gives. batch: whether both branches are one call, see `branches`.
        interval: see `sampler.guided`. Raises InputError if they must be one call and the transformer has a cache.
        """

        def one(transformer: Any, scale: float) -> Velocity:
            predict = partial(self._predict, transformer, accelerated)
            how = branches.checked(batch, transformer)
            both = branches.Branches(predict, how, self.backbone.geometry.patch)
            return sampler.guided(predict, scale, interval=interval, both=both)

        high = one(self.transformer, guidance)
        if self.transformer_2 is None:
            return high
        low = one(self.transformer_2, guidance if guidance_2 is None else guidance_2)
        boundary = self.defaults.boundary if boundary is None else boundary
        assert boundary is not None
        return sampler.by_noise(high, low, boundary)

    def velocity(self, x: Tensor, sigma: Tensor, context: tuple[str, Text], call: Call) -> Tensor:
        """`guided` without guidance: one context, and the transformer's own prediction."""
        return self.guided(1.0)(x, sigma, (context, context), call)

    def _predict(
        self,
        transformer: Any,
        accelerated: Accelerated | None,
        x: Tensor,
        sigma: Tensor,
        context: tuple[str, Text],
        call: Call,
    ) -> Tensor:
        branch, text = context
        if self.transformer_2 is not None and self.profile.transformer == "device":
            self._bring(transformer)
        with nullcontext() if accelerated is None else accelerated.call(transformer, branch, call):
            return self.backbone.velocity(transformer, x, sigma, text, frames=call.frames, branch=branch)

    def accelerated(
        self, acceleration: str | None, matrix: TimestepMatrix
    ) -> AbstractContextManager[Accelerated | None]:
        """Return a context for one clip, in which the networks run with an acceleration. Its value is for `guided`.

        acceleration: see `pusa.acceleration.names`; None for none, and the value is None. Raises InputError if it does
        not fit the matrix or the processes that share the clip.
        """
        if acceleration is None:
            return nullcontext()
        networks = list(self._experts(None).values())
        return running(Acceleration.parse(acceleration), matrix, self.backbone, networks, self.group)

    def _bring(self, wanted: Any) -> None:
        """Move the other expert off the device, then this one onto it."""
        if wanted.device != self.device:
            other = self.transformer_2 if wanted is self.transformer else self.transformer
            assert other is not None
            other.to("cpu")
            wanted.to(self.device)

    def recipe(self) -> dict[str, Any]:
        """The entries of a recipe that identify the model and the software."""
        parts = self.backbone
        return {
            "model": {
                "source": parts.source,
                **({"beside": parts.beside} if parts.beside else {}),
                "fingerprint": parts.fingerprint,
                "vae": parts.vae_fingerprint,
                "dtype": str(self.transformer.dtype).removeprefix("torch."),
                "device": self.device.type,
                **({} if self.profile == profiles.PLAIN else {"memory": self.profile.name}),
                **({} if self.attention == kernels.NATIVE else {"attention": self.attention}),
                **({"compiled": True} if self.compiled else {}),
            },
            "loras": [
                {"name": x.name, "path": str(x.path), "sha256": x.sha256, "scale": x.scale}
                | ({} if x.expert is None else {"expert": x.expert})
                for x in parts.loras
            ],
            "versions": versions(),
            **({"processes": self.group.size} if self.group.size > 1 else {}),
        }
