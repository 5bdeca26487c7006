"""A loaded model as it stands: its networks, where they lie, the LoRAs on it, and what it says about a clip's noise.

Nothing here knows of tasks; `pipeline.py` makes clips with it.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from pusa import __version__
from pusa.errors import InputError
from pusa.generation.clip import vae_fingerprint
from pusa.images import Frames
from pusa.models import checkpoints, latents, lora, profiles
from pusa.models.checkpoints import Components, Defaults
from pusa.models.wan import VectorWanTransformer3DModel


class Model:
    """A loaded model. `transformer`, `vae`, `text_encoder`, `tokenizer` are the stock objects."""

    def __init__(self, components: Components) -> None:
        self.components = components
        self.profile = profiles.PLAIN
        self._disk: TemporaryDirectory[str] | None = None

    def lay_out(self, profile: profiles.Profile, device: str | torch.device) -> None:
        """Spread the model, which is on the CPU, over device, memory and disk as a memory profile says; once.

        LoRAs may be there already; with a profile that offloads to disk none can be added later.
        """
        if profile.transformer == "disk":
            self._disk = TemporaryDirectory(prefix="pusa-weights-")
        profiles.apply(self.components, profile, torch.device(device), self._disk.name if self._disk else None)
        self.profile = profile

    @property
    def transformer(self) -> VectorWanTransformer3DModel:
        """diffusers' WanTransformer3DModel, upgraded to one timestep per latent frame."""
        return self.components.transformer

    @property
    def vae(self) -> AutoencoderKLWan:
        """diffusers' AutoencoderKLWan."""
        return self.components.vae

    @property
    def text_encoder(self) -> UMT5EncoderModel:
        """transformers' UMT5EncoderModel; read again where the memory profile released it."""
        parts = self.components
        if parts.text_encoder is None:
            beside = {kind: parts.beside.get(kind) for kind in ("vae", "text_encoder")}
            again = checkpoints.load_encoders(parts.source, **beside, dtype=self.transformer.dtype, device="cpu")
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
        """Where the transformer is."""
        return torch.device(self.transformer.device)

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
    def loras(self) -> tuple[lora.Lora, ...]:
        """The LoRAs that run, with their strengths, in the order in which they are added up."""
        return self.components.loras

    def load_lora(self, path: str | Path, scale: float = 1.0, name: str | None = None) -> lora.Lora:
        """Add a LoRA at a strength: a file of any dialect, or the folder of a PEFT adapter.

        name: what `set_lora` and `remove_lora` know it by; a LoRA that has it is replaced. By default it is the file's
        name, with a number where another file has that; so the same file again is replaced. Raises InputError, with
        nothing changed, for a file that cannot be read or does not fit, and for one that runs under another name.
        """
        self._check_changeable()
        self.components.loras = lora.stack(self.transformer, self.loras, path, scale, name)
        return self.loras[-1]

    def set_lora(self, name: str, scale: float) -> lora.Lora:
        """Give a LoRA another strength from the next clip on, whatever it had; at 0 the model runs without it."""
        changed = dataclasses.replace(self._lora(name), scale=scale)
        lora.set_scale(self.transformer, name, scale)
        self.components.loras = tuple(changed if x.name == name else x for x in self.loras)
        return changed

    def remove_lora(self, name: str) -> None:
        """Take a LoRA off the model, bit for bit, and free its memory."""
        self._check_changeable()
        gone = self._lora(name)
        lora.remove(self.transformer, name)
        self.components.loras = tuple(x for x in self.loras if x is not gone)

    def _check_changeable(self) -> None:
        if self._disk is not None:
            raise InputError(
                f"The weights lie on the disk (memory profile {self.profile.name}), where no LoRA can come or go: give "
                "LoRAs when the model is loaded."
            )

    def explained(self, size: tuple[int, int] | None = None, frames: int | None = None) -> AbstractContextManager[None]:
        """For the block, running out of memory is one sentence with what to try next."""
        return profiles.explained(self.profile.name, on_cpu=self.device.type == "cpu", size=size, frames=frames)

    def _lora(self, name: str) -> lora.Lora:
        if found := next((x for x in self.loras if x.name == name), None):
            return found
        raise InputError(f"There is no LoRA {name!r}: there is {', '.join(x.name for x in self.loras) or 'none'}.")

    def velocity(self, x: Tensor, sigma: Tensor, context: tuple[str, Tensor]) -> Tensor:
        """The transformer's prediction of eps - x0 at noise levels sigma [B, F], for x [B, C, F, h, w].

        context: the name of the guidance branch, which diffusers' caches need, and the encoded text [B, 512, D].
        """
        branch, text = context
        with self.transformer.cache_context(branch):
            predicted: Tensor = self.transformer(
                hidden_states=x.to(self.transformer.dtype),
                timestep=1000 * sigma.float(),
                encoder_hidden_states=text,
                return_dict=False,
            )[0]
        return predicted.to(x.dtype)

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
            "loras": [{"name": x.name, "path": str(x.path), "sha256": x.sha256, "scale": x.scale} for x in parts.loras],
            "versions": versions(),
        }


def versions() -> dict[str, str]:
    """The versions that decide a clip's bits."""
    packages = {package: version(package) for package in ("torch", "diffusers", "transformers", "peft")}
    return {"pusa": __version__, "python": platform.python_version(), **packages}
