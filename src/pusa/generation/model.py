"""A loaded model as it stands: its networks, where they lie, the LoRAs on it, and what it says about a clip's noise.

A model with two experts, Wan2.2 A14B, asks one of them in each step, by the noisiest frame; only that one has to be on
the device. Nothing here knows of tasks; `pipeline.py` makes clips with it.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from pusa import __version__, processes
from pusa.core import sampler
from pusa.core.objectives import Velocity
from pusa.errors import InputError
from pusa.generation.clip import vae_fingerprint
from pusa.generation.limits import Limits
from pusa.images import Frames
from pusa.models import context_parallel
from pusa.models.loading import checkpoints
from pusa.models.loading.checkpoints import Components
from pusa.models.lora import header, runtime
from pusa.models.memory import profiles
from pusa.models.wan import latents
from pusa.models.wan.defaults import Defaults
from pusa.models.wan.recognise import Expert
from pusa.models.wan.transformer import VectorWanTransformer3DModel
from pusa.processes import ProcessGroup


class Model:
    """A loaded model. `transformer`, `transformer_2`, `vae`, `text_encoder`, `tokenizer` are the stock objects."""

    def __init__(self, components: Components) -> None:
        self.components = components
        self.limits = Limits.loaded(components)
        self.profile = profiles.PLAIN
        self.group = ProcessGroup()
        self._device = torch.device(components.transformer.device)
        self._disk: TemporaryDirectory[str] | None = None

    def lay_out(self, profile: profiles.Profile, device: str | torch.device) -> None:
        """Spread the model, which is on the CPU, over device, memory and disk as a memory profile says; once.

        LoRAs may be there already; with a profile that offloads to disk none can be added later.
        """
        if profile.transformer == "disk":
            self._disk = TemporaryDirectory(prefix="pusa-weights-")
        profiles.apply(self.components, profile, torch.device(device), self._disk.name if self._disk else None)
        self.profile, self._device = profile, torch.device(device)

    def share_tokens(self) -> None:
        """Compute only a share of every clip's tokens here, and the rest in the other processes that have met; once.

        After the model is laid out. Every process then has to make the same calls, and gets the same clips. Raises
        InputError when the attention heads do not divide by the number of processes.
        """
        group = processes.current_group()
        context_parallel.enable(list(self._experts(None).values()), group.size)
        self.group = group

    @property
    def transformer(self) -> VectorWanTransformer3DModel:
        """diffusers' WanTransformer3DModel, upgraded to one timestep per latent frame; of two, that for high noise."""
        return self.components.transformer

    @property
    def transformer_2(self) -> VectorWanTransformer3DModel | None:
        """The expert for low noise of a model that has two; None for others."""
        return self.components.transformer_2

    @property
    def vae(self) -> AutoencoderKLWan:
        """diffusers' AutoencoderKLWan."""
        return self.components.vae

    @property
    def text_encoder(self) -> UMT5EncoderModel:
        """transformers' UMT5EncoderModel; read again where the memory profile released it."""
        parts = self.components
        if parts.text_encoder is None:
            again = checkpoints.load_encoders(parts.source, **parts.beside, dtype=self.transformer.dtype, device="cpu")
            profiles.lay_text_encoder(again.text_encoder, self.profile, self.device)
            parts.text_encoder = again.text_encoder
        return parts.text_encoder

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The text encoder's tokenizer."""
        return self.components.tokenizer

    @property
    def defaults(self) -> Defaults:
        """What the model makes when nothing is said: fps, frames, size, steps, guidance, shift."""
        return self.components.defaults

    @property
    def device(self) -> torch.device:
        """Where the transformer runs."""
        return self._device if self.transformer_2 is not None else torch.device(self.transformer.device)

    def encode(self, frames: Frames) -> Tensor:
        """uint8 frames [N, H, W, 3], N = 4n+1, to normalised latents, float32 [1, C, n+1, h, w] on the CPU."""
        return latents.encode(self.vae, frames).cpu()

    def decode(self, z: Tensor) -> Frames:
        """Normalised latents [1, C, F, h, w] to uint8 frames [4(F-1)+1, H, W, 3]."""
        factor = int(self.vae.config.scale_factor_spatial)
        with self.explained((z.shape[4] * factor, z.shape[3] * factor), latents.pixel_frames(z.shape[2])):
            return latents.decode(self.vae, z)

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Prompts to what the transformer reads, [B, 512, D] in its dtype and on its device."""
        with self.explained():
            encoded = latents.encode_text(self.text_encoder, self.tokenizer, prompts)
        if self.profile.releases:
            self.components.text_encoder = None
        return encoded.to(self.device, self.transformer.dtype)

    @property
    def loras(self) -> tuple[runtime.Lora, ...]:
        """The LoRAs that run, with their strengths, in the order in which they are added up."""
        return self.components.loras

    def load_lora(
        self, path: str | Path, scale: float = 1.0, name: str | None = None, expert: Expert | None = None
    ) -> runtime.Lora:
        """Add a LoRA at a strength: a file of any dialect, or the folder of a PEFT adapter.

        name: what `set_lora` and `remove_lora` know it by; a LoRA that has it is replaced. By default it is the file's
        name, with a number where another file has that; so the same file again is replaced. expert: of two, the one
        that it is for; None puts it on both, each of which then has it as a LoRA of its own. Raises InputError, with
        nothing changed, for a file that cannot be read or does not fit, for one that runs under another name, and for
        one that was made for the other expert, as its metadata or its name says.
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
            with context_parallel.aside(transformer):
                added = dataclasses.replace(runtime.load(transformer, path, scale, name), expert=which)
            others = [x for x in self.loras if (x.name, x.expert) != (name, which)]
            self.components.loras = (*others, added)
        return self.loras[-1]

    def set_lora(self, name: str, scale: float, expert: Expert | None = None) -> None:
        """Give a LoRA another strength from the next clip on, whatever it had; at 0 the model runs without it.

        expert: on that one of two only.
        """
        for present in self._named(name, expert):
            runtime.set_scale(self._experts(present.expert)[present.expert], name, scale)
            changed = dataclasses.replace(present, scale=scale)
            self.components.loras = tuple(changed if x is present else x for x in self.loras)

    def remove_lora(self, name: str, expert: Expert | None = None) -> None:
        """Take a LoRA off the model, or off one of two experts, bit for bit, and free its memory."""
        self._check_changeable()
        for gone in self._named(name, expert):
            runtime.remove(self._experts(gone.expert)[gone.expert], name)
            self.components.loras = tuple(x for x in self.loras if x is not gone)

    def _experts(self, expert: Expert | None) -> dict[Expert | None, VectorWanTransformer3DModel]:
        """The transformers that are meant, by the expert that they are: all of them for None."""
        if self.transformer_2 is None:
            if expert is not None:
                raise InputError(f"{self.components.source} has one transformer and no {expert}-noise expert.")
            return {None: self.transformer}
        both: dict[Expert | None, VectorWanTransformer3DModel] = {"high": self.transformer, "low": self.transformer_2}
        return both if expert is None else {expert: both[expert]}

    def _check_changeable(self) -> None:
        if self._disk is not None:
            raise InputError(
                f"The weights lie on the disk (memory profile {self.profile.name}), where no LoRA can come or go: give "
                "LoRAs when the model is loaded."
            )

    def explained(self, size: tuple[int, int] | None = None, frames: int | None = None) -> AbstractContextManager[None]:
        """For the block, running out of memory is one sentence with what to try next."""
        return profiles.explained(self.profile.name, on_cpu=self.device.type == "cpu", size=size, frames=frames)

    def _named(self, name: str, expert: Expert | None) -> list[runtime.Lora]:
        if found := [x for x in self.loras if x.name == name and expert in (None, x.expert)]:
            return found
        there = ", ".join(dict.fromkeys(x.name for x in self.loras)) or "none"
        where = "" if expert is None else f" on the {expert}-noise expert"
        raise InputError(f"There is no LoRA {name!r}{where}: there is {there}.")

    def guided(self, guidance: float, guidance_2: float | None = None, boundary: float | None = None) -> Velocity:
        """The model's prediction of eps - x0 with classifier-free guidance, for the sampler.

        It is called with x [B, C, F, h, w], sigma [B, F] and a pair of contexts, each the name of the guidance branch,
        which diffusers' caches need, and the encoded text [B, 512, D]. Of two experts the one for high noise is asked
        where the noisiest frame is at `boundary` (the model's own by default) or above, with `guidance`, else the other
        with `guidance_2` (by default the same).
        """
        high = sampler.guided(partial(self._predict, self.transformer), guidance)
        if self.transformer_2 is None:
            return high
        low = sampler.guided(partial(self._predict, self.transformer_2), guidance if guidance_2 is None else guidance_2)
        boundary = self.defaults.boundary if boundary is None else boundary
        assert boundary is not None
        return sampler.by_noise(high, low, boundary)

    def velocity(self, x: Tensor, sigma: Tensor, context: tuple[str, Tensor]) -> Tensor:
        """`guided` without guidance: one context, and the transformer's own prediction."""
        return self.guided(1.0)(x, sigma, (context, context))

    def _predict(
        self, transformer: VectorWanTransformer3DModel, x: Tensor, sigma: Tensor, context: tuple[str, Tensor]
    ) -> Tensor:
        branch, text = context
        if self.transformer_2 is not None and self.profile.transformer == "device":
            self._bring(transformer)
        with transformer.cache_context(branch):
            predicted: Tensor = transformer(
                hidden_states=x.to(transformer.dtype),
                timestep=1000 * sigma.float(),
                encoder_hidden_states=text,
                return_dict=False,
            )[0]
        return predicted.to(x.dtype)

    def _bring(self, wanted: VectorWanTransformer3DModel) -> None:
        """Put an expert on the device, and first the other one off it."""
        if wanted.device != self.device:
            other = self.transformer_2 if wanted is self.transformer else self.transformer
            assert other is not None
            other.to("cpu")
            wanted.to(self.device)

    def recipe(self) -> dict[str, Any]:
        """What identifies the model and the software, for a clip's recipe."""
        parts = self.components
        return {
            "model": {
                "source": parts.source,
                **({"beside": parts.beside} if parts.beside else {}),
                "fingerprint": parts.fingerprint,
                "vae": vae_fingerprint(parts.vae),
                "dtype": str(self.transformer.dtype).removeprefix("torch."),
                "device": self.device.type,
                **({} if self.profile == profiles.PLAIN else {"memory": self.profile.name}),
            },
            "loras": [
                {"name": x.name, "path": str(x.path), "sha256": x.sha256, "scale": x.scale}
                | ({} if x.expert is None else {"expert": x.expert})
                for x in parts.loras
            ],
            "versions": versions(),
            **({"processes": self.group.size} if self.group.size > 1 else {}),
        }


def versions() -> dict[str, str]:
    """The versions that decide a clip's bits."""
    packages = {package: version(package) for package in ("torch", "diffusers", "transformers", "peft")}
    return {"pusa": __version__, "python": platform.python_version(), **packages}
