"""Make clips: conditions -> known latents -> timestep matrix -> sampler -> frames. Every task is this one call.

A known latent with noise multiplier m is noised once, z <- (1 - m) z + m eps with the frame's own initial noise, and
its column of the matrix is m times everybody else's (arXiv 2507.16116, Algorithm 1 and App. B); m = 0 is bit-constant.
The noise of a clip is a function of its seed alone, drawn on the CPU in float32, and clips of a batch run one after the
other, so neither the device nor the batch size changes what a seed means.
"""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Unpack, overload

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from pusa import __version__
from pusa.core import sampler, schedules, sigmas
from pusa.core.timesteps import TimestepMatrix
from pusa.errors import InputError
from pusa.generation.clip import GeneratedClip, vae_fingerprint
from pusa.generation.conditions import Clip, Image, Known, Placed, Target, frame_index, place, resolve
from pusa.generation.footage import open_footage
from pusa.generation.settings import (
    EDIT_STRENGTH,
    MAX_STEPS,
    SEEDS,
    Callback,
    Options,
    Settings,
    Solver,
    check_prompts,
    check_seed,
)
from pusa.images import Fit, Frames
from pusa.models import checkpoints, dialects, latents, lora, profiles
from pusa.models.checkpoints import Components, Defaults
from pusa.models.wan import VectorWanTransformer3DModel


class Pipeline:
    """A loaded model that makes clips. `transformer`, `vae`, `text_encoder`, `tokenizer` are the stock objects."""

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
        with self._explained((z.shape[4] * factor, z.shape[3] * factor), latents.pixel_frames(z.shape[2])):
            return latents.decode(self.vae, z)

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Prompts to what the transformer reads, [B, 512, D] in its dtype and on its device."""
        with self._explained():
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

    def _explained(
        self, size: tuple[int, int] | None = None, frames: int | None = None
    ) -> AbstractContextManager[None]:
        return profiles.explained(self.profile.name, on_cpu=self.device.type == "cpu", size=size, frames=frames)

    def _lora(self, name: str) -> lora.Lora:
        if found := next((x for x in self.loras if x.name == name), None):
            return found
        raise InputError(f"There is no LoRA {name!r}: there is {', '.join(x.name for x in self.loras) or 'none'}.")

    @overload
    def generate(
        self, prompt: str, conditions: Sequence[Image | Clip] = (), **options: Unpack[Options]
    ) -> GeneratedClip: ...
    @overload
    def generate(
        self, prompt: list[str], conditions: Sequence[Image | Clip] = (), **options: Unpack[Options]
    ) -> list[GeneratedClip]: ...

    def generate(
        self,
        prompt: str | list[str],
        conditions: Sequence[Image | Clip] = (),
        *,
        negative_prompt: str = "",
        frames: int | None = None,
        size: tuple[int, int] | None = None,
        fit: Fit = "crop",
        steps: int | None = None,
        guidance: float | None = None,
        shift: float | None = None,
        seed: int = 0,
        init: Clip | None = None,
        strength: float | None = None,
        matrix: TimestepMatrix | None = None,
        solver: Solver = "euler",
        callback: Callback | None = None,
    ) -> GeneratedClip | list[GeneratedClip]:
        """Make a clip from a prompt, or one from each of several prompts, and from what is known of its frames.

        Args:
            prompt: what to show; may be empty. A list makes clip i with seed + i.
            conditions: pictures and clips at their frames; none is text-to-video.
            negative_prompt: what guidance moves away from.
            frames: pixel frames, 4n+1. size: (width, height), multiples of 16 (32 for Wan2.2-5B). By default what the
                model likes, as are steps, guidance (1 is none and halves the time) and shift.
            fit: how a picture of another shape is brought to the size: crop, pad or stretch.
            init: a whole clip to edit; it is noised to `strength` in (0, 1] (0.6 if not given) and denoised from there.
            matrix: your own timestep matrix; it then decides everything that steps, shift and the conditions' noise
                would, and a frame that starts below σ = 1 must have a condition or `init` to start from.
            solver: "euler" or "dpm++2m".
            callback: called with a `Step` after each step of each clip; returning False raises Cancelled.

        Raises InputError when the arguments do not fit together or a source cannot be used, before the model runs.
        """
        prompts = check_prompts(prompt, negative_prompt)
        check_seed(seed, len(prompts))
        target_size = self.check_size(size)
        edited: Placed | None = None
        if init is not None:
            frames, edited = self._place_init(init, frames, target_size, fit)
        elif strength is not None:
            raise InputError(f"A strength ({strength}) needs a clip to edit: give init=pusa.Clip(...).")
        if matrix is not None and (shift is not None or strength is not None):
            raise InputError("A matrix of your own decides where it starts and how it descends: no shift or strength.")
        settings = self.settings(
            frames=frames,
            size=target_size,
            steps=steps,
            guidance=guidance,
            shift=shift,
            solver=solver,
            strength=1.0 if init is None else EDIT_STRENGTH if strength is None else strength,
            matrix=matrix,
        )
        target = Target(settings.frames, target_size, self.defaults.fps, fit, self.vae)
        known, records = resolve(conditions, target)
        start = None if edited is None else edited.encode()
        walked = matrix or self.matrix(settings, known)
        texts = self.encode_text([*prompts, negative_prompt] if settings.guidance != 1 else prompts)

        clips = []
        for i, text in enumerate(prompts):
            z = self.sample(
                walked,
                (texts[i : i + 1], texts[-1:]),
                settings,
                known=known,
                init=start,
                seed=seed + i,
                callback=callback,
            )
            recipe = {
                "task": "generate",
                **self.recipe(),
                "prompt": text,
                "negative_prompt": negative_prompt,
                "conditions": records,
                "init": None if edited is None else edited.record,
                **settings.record(),
                "fit": fit,
                "seed": seed + i,
                "matrix": walked.to_dict(),
                "own_matrix": matrix is not None,
            }
            clips.append(GeneratedClip(self.decode(z), z, self.defaults.fps, walked, recipe, text))
        return clips[0] if isinstance(prompt, str) else clips

    # ------------------------------------------------------------------------------- the parts that extension shares

    def settings(
        self,
        *,
        frames: int | None = None,
        size: tuple[int, int] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        shift: float | None = None,
        solver: Solver = "euler",
        strength: float = 1.0,
        matrix: TimestepMatrix | None = None,
    ) -> Settings:
        """Fill what is None with the model's defaults (or the matrix's shape) and check everything."""
        wishes = self.defaults
        if frames is None:
            frames = wishes.frames if matrix is None else latents.pixel_frames(matrix.frames)
        slots = latents.latent_frames(frames)
        if matrix is not None and matrix.frames != slots:
            raise InputError(
                f"The matrix has {matrix.frames} latent frames but {frames} frames have {slots}: make it for {slots}, "
                f"or ask for {latents.pixel_frames(matrix.frames)} frames."
            )
        if matrix is not None and steps not in (None, matrix.steps):
            raise InputError(f"The matrix has {matrix.steps} steps but steps={steps}: leave steps out.")
        steps = (wishes.steps if matrix is None else matrix.steps) if steps is None else steps
        guidance = wishes.guidance if guidance is None else guidance
        shift = wishes.shift if shift is None else shift
        if not math.isfinite(guidance):
            raise InputError(f"guidance is {guidance}: give a finite number, 1 for none.")
        if solver not in ("euler", "dpm++2m"):
            raise InputError(f"The solver {solver!r} is unknown: choose euler or dpm++2m.")
        if matrix is None and steps > MAX_STEPS:
            raise InputError(f"steps is {steps}: give at most {MAX_STEPS}, as many as the model has timesteps.")
        sigmas.grid(steps, shift, strength)
        return Settings(frames, self.check_size(size), steps, float(guidance), float(shift), solver, float(strength))

    def check_size(self, size: tuple[int, int] | None) -> tuple[int, int]:
        """(width, height) in pixels, the model's default for None; InputError unless the model can make it."""
        width, height = size or self.defaults.size
        multiple = self.components.multiple
        if width < 1 or height < 1 or width % multiple or height % multiple:
            better = "x".join(str(max(1, round(side / multiple)) * multiple) for side in (width, height))
            raise InputError(
                f"The size {width}x{height} cannot be made: both sides must be multiples of {multiple}, as in {better}."
            )
        return width, height

    def matrix(self, settings: Settings, known: Known) -> TimestepMatrix:
        """All frames together from σ = shift(strength) down, the known ones scaled by their noise multipliers."""
        grid = sigmas.grid(settings.steps, settings.shift, settings.strength)
        together = schedules.synchronous(grid, latents.latent_frames(settings.frames))
        return schedules.conditioned(together, {slot: multiplier for slot, (_, multiplier) in known.items()})

    def noise(self, seed: int, settings: Settings) -> Tensor:
        """The initial noise of a seed, float32 [1, C, F, h, w] on the CPU."""
        factor = int(self.vae.config.scale_factor_spatial)
        slots, (width, height) = latents.latent_frames(settings.frames), settings.size
        shape = (1, int(self.transformer.config.in_channels), slots, height // factor, width // factor)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)

    @torch.no_grad()
    def sample(
        self,
        matrix: TimestepMatrix,
        text: tuple[Tensor, Tensor],
        settings: Settings,
        *,
        known: Known,
        init: Tensor | None = None,
        seed: int = 0,
        callback: Callback | None = None,
    ) -> Tensor:
        """Walk the matrix from the seed's noise: float32 [1, C, F, h, w] on the CPU.

        text: encoded prompt and negative prompt, each [1, 512, D]. known: latents at their slots. init: latents of the
        whole clip, for the slots that are not known. Known and init latents start at the matrix's first row; a slot
        that starts below σ = 1 and has neither is an InputError.
        """
        noise = self.noise(seed, settings)
        clean = torch.zeros_like(noise) if init is None else init.clone()
        for slot, (latent, _) in known.items():
            clean[:, :, slot : slot + 1] = latent
        begin = matrix.state[0].float()
        if init is None:
            for slot, level in enumerate(begin.tolist()):
                if level < 1 and slot not in known:
                    raise InputError(
                        f"The matrix starts latent frame {slot} at σ = {level:g}, so something must be known of it: "
                        "give a condition or init for it, or start it at 1."
                    )
        x = sampler.add_noise(clean, noise, begin[None])

        def renoise(step: int) -> Tensor:
            return self.noise((seed ^ 0x9E3779B97F4A7C15 * (step + 1)) % SEEDS, settings)

        with self._explained(settings.size, settings.frames):
            z = sampler.sample(
                sampler.guided(self.velocity, settings.guidance),
                x.to(self.device),
                matrix,
                (("cond", text[0]), ("uncond", text[1])),
                solver=settings.solver,
                noise=renoise,
                callback=callback,
            )
        return z.cpu()

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

    def _place_init(self, init: Clip, frames: int | None, size: tuple[int, int], fit: Fit) -> tuple[int, Placed]:
        """The number of frames of a clip to edit, and the clip, checked and not encoded yet."""
        footage = open_footage(init.src, self.defaults.fps, self.vae)
        start = frame_index(init.start, footage.count, self.defaults.fps, f"the start of {footage.label}")
        count = frames or init.frames or footage.count - start
        latents.latent_frames(count)
        if init.at != 0 or init.noise != 0.0 or init.frames not in (None, count):
            raise InputError("The clip to edit is all of the new clip: init takes no at, no noise and no other frames.")
        whole = Clip(footage, frames=count, start=start)
        return count, place(whole, Target(count, size, self.defaults.fps, fit, self.vae))


def load(
    source: str | Path = checkpoints.TINY,
    *,
    vae: str | Path | None = None,
    text_encoder: str | Path | None = None,
    lora: str | Path | Sequence[str | Path] = (),
    lora_scale: float | Sequence[float] = 1.0,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    memory: str | None = None,
) -> Pipeline:
    """Load a model and make a pipeline of it.

    source: "tiny" (embedded, with its adapter), "tiny-base" (without), a folder, a file or a hub id. vae, text_encoder:
    files or folders for those parts, where the source lacks them. lora: LoRA files to add, each at its lora_scale.
    dtype, device: see `checkpoints.load`, as for the rest. memory: a profile of `pusa.models.profiles`; by default
    everything lies on the device. Raises InputError for what cannot be loaded.
    """
    paths = [lora] if isinstance(lora, (str, Path)) else list(lora)
    scales = list(lora_scale) if isinstance(lora_scale, Sequence) else [lora_scale] * len(paths)
    if len(scales) != len(paths):
        raise InputError(f"{len(scales)} LoRA scales for {len(paths)} LoRAs: give one for all or one each.")
    files = [dialects.file_of(path).resolve() for path in paths]
    if twice := [path for path, file in zip(paths, files, strict=True) if files.count(file) > 1]:
        raise InputError(f"The LoRA {twice[0]} is given twice: give it once, at the strength it should have.")
    profile = profiles.PLAIN if memory is None else profiles.named(memory)
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    first = target if profile == profiles.PLAIN else torch.device("cpu")
    dtype = dtype or (torch.float32 if target.type == "cpu" else torch.bfloat16)
    pipe = Pipeline(checkpoints.load(source, vae=vae, text_encoder=text_encoder, dtype=dtype, device=first))
    for path, scale in zip(paths, scales, strict=True):
        pipe.load_lora(path, scale)
    if profile != profiles.PLAIN:
        pipe.lay_out(profile, target)
    return pipe


def versions() -> dict[str, str]:
    """The versions that decide a clip's bits."""
    packages = {package: version(package) for package in ("torch", "diffusers", "transformers", "peft")}
    return {"pusa": __version__, "python": platform.python_version(), **packages}
