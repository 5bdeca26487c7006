"""A `DiffusionPipeline` whose clips are made by `pusa.generation`.

The class translates: components to a model, arguments to requests, and clips to frames. It has no sampler, so a clip
has the same latents as that of `pusa.load(...).generate`, bit for bit.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn, Self

import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline, SchedulerMixin, WanTransformer3DModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor, nn
from transformers import AutoTokenizer, UMT5EncoderModel

from pusa import embedded
from pusa.diffusers import arguments, outputs, saving
from pusa.diffusers.loras import LoraMethods
from pusa.diffusers.outputs import OutputType, PusaPipelineOutput
from pusa.diffusers.steps import TENSORS, OnStepEnd, Steps, check_names
from pusa.errors import Cancelled, InputError
from pusa.generation.clip import GeneratedClip
from pusa.generation.given import Clip, Image
from pusa.generation.pipeline import Pipeline, load
from pusa.generation.request import Generate
from pusa.media.images import Frames
from pusa.models.loading import components
from pusa.models.memory import profiles

_NO_SCHEDULER = (
    "A PusaPipeline samples without the scheduler, so another one has no effect: give shift and solver in the call."
)
NETWORKS = ("tokenizer", "text_encoder", "vae", "transformer", "transformer_2")


class PusaPipeline(LoraMethods, DiffusionPipeline):  # type: ignore[misc]
    """A Wan text-to-video model that takes pictures and videos at any frame, as a pipeline of diffusers.

    Its components are those of `WanPipeline`: `WanPipeline(**pipe.components, **pipe.parameters)` is the stock pipeline
    of the same networks. The scheduler is only kept for this; the timestep matrix decides the noise levels.
    """

    _optional_components = ["transformer", "transformer_2"]
    _callback_tensor_inputs = list(TENSORS)

    def __init__(
        self,
        tokenizer: AutoTokenizer,
        text_encoder: UMT5EncoderModel,
        vae: AutoencoderKLWan,
        scheduler: SchedulerMixin,
        transformer: WanTransformer3DModel | None = None,
        transformer_2: WanTransformer3DModel | None = None,
        boundary_ratio: float | None = None,
        expand_timesteps: bool = False,
    ) -> None:
        """Make a pipeline of loaded networks; see `from_pretrained` and `from_pipe`.

        The networks are changed in place, see `pusa.models.loading.components.adopt`, which also says what is refused.
        boundary_ratio: the noise level at which two experts change. expand_timesteps: is only kept for `WanPipeline`.
        """
        super().__init__()
        self._backbone = components.adopt(
            transformer=transformer,
            transformer_2=transformer_2,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            source="the pipeline",
        )
        self._pusa: Pipeline | None = None
        self._interrupt = False
        self._num_timesteps = 0
        self.register_modules(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            vae=vae,
            scheduler=scheduler,
            transformer=transformer,
            transformer_2=transformer_2,
        )
        self.register_to_config(boundary_ratio=boundary_ratio, expand_timesteps=expand_timesteps)
        self._complete = True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Load a model, on the CPU unless a device or a memory profile is given.

        Args:
            pretrained_model_name_or_path: as for `pusa.load`: "tiny", a folder, a file or a hub id.
            options: the keywords of `pusa.load`; `torch_dtype` is its `dtype`. Or those of `from_pretrained` of
                diffusers, among them loaded components such as `vae=`. The autoencoder is float32 unless it is given.

        Raises InputError as `pusa.load` does, for keywords of both kinds, and for another scheduler.
        """
        source = pretrained_model_name_or_path
        if "scheduler" in options:
            raise InputError(_NO_SCHEDULER)
        if "torch_dtype" in options:
            options["dtype"] = options.pop("torch_dtype")
        own = inspect.signature(load).parameters
        theirs = [
            name
            for name, value in options.items()
            if name not in own or isinstance(value, nn.Module) or (name == "dtype" and isinstance(value, dict))
        ]
        if not theirs:
            options.setdefault("device", "cpu" if options.get("memory") is None else None)
            return cls._of(load(source, **options))
        if only_own := [name for name in options if name not in (*theirs, "dtype", *NETWORKS)]:
            raise InputError(
                f"{theirs[0]} is an option of diffusers and {only_own[0]} is one of pusa.load: leave one of them out."
            )
        if str(source) in embedded.NAMES:
            raise InputError(f"The embedded model {source} takes no {theirs[0]}: leave it out.")
        dtype = options.pop("dtype", torch.float32)
        kinds = dtype if isinstance(dtype, dict) else {"default": dtype, "vae": torch.float32}
        made: Self = super().from_pretrained(source, dtype=kinds, **options)
        return made

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **changes: Any) -> Self:
        """Make a pipeline of the components of another one, without a copy. Types and devices do not change.

        pipeline: a `WanPipeline`, which can be used further, or a `PusaPipeline`. changes: other components, and
        `torch_dtype` to convert all networks. Raises InputError for a pipeline of another kind, for LoRAs that
        diffusers has loaded, and where `__init__` does.
        """
        dtype = changes.pop("torch_dtype", None)
        if "scheduler" in changes:
            raise InputError(_NO_SCHEDULER)
        if not isinstance(pipeline, DiffusionPipeline):
            raise InputError(f"from_pipe got a {type(pipeline).__name__}: give a WanPipeline.")
        parts = {**pipeline.components, **pipeline.parameters, **changes}
        expected, optional = cls._get_signature_keys(cls)
        missing = [name for name in expected if name not in parts and name not in cls._optional_components]
        if missing or "image_encoder" in parts:
            what = f"has no {missing[0]}" if missing else "has an image encoder"
            raise InputError(f"A {type(pipeline).__name__} {what}, so it is no WanPipeline: give one.")
        if unknown := [name for name in changes if name not in (*expected, *optional)]:
            raise InputError(f"A PusaPipeline has no component {unknown[0]!r}: it has {', '.join(expected)}.")
        made = cls(**{name: value for name, value in parts.items() if name in (*expected, *optional)})
        made.register_to_config(_name_or_path=pipeline.config.get("_name_or_path"))
        if isinstance(pipeline, PusaPipeline) and not changes:
            made._pusa = pipeline.pusa
        _ = made.pusa  # raises what is wrong
        return made if dtype is None else made.to(dtype)

    @classmethod
    def _of(cls, loaded: Pipeline) -> Self:
        parts = loaded.backbone
        made = cls(
            **{name: getattr(parts, name) for name in NETWORKS},
            scheduler=components.scheduler(parts.source, parts.defaults),
            boundary_ratio=parts.defaults.boundary,
            expand_timesteps=parts.channels == 48,
        )
        made.register_to_config(_name_or_path=parts.source)
        made._pusa = loaded
        components.remember(made.transformer, parts.defaults)
        return made

    @property
    def pusa(self) -> Pipeline:
        """The pipeline of this project that makes the clips, for `pusa.extend` and all else that it can."""
        if self._pusa is None:
            name = self.config.get("_name_or_path")
            self._pusa = Pipeline(components.called(self._backbone, name, self.config.boundary_ratio))
        return self._pusa

    @property
    def text_encoder(self) -> Any:
        """The text encoder; None while a memory profile has released it."""
        return self._backbone.text_encoder if self._pusa is None else self._pusa.backbone.text_encoder

    @text_encoder.setter
    def text_encoder(self, value: Any) -> None:
        self._backbone.text_encoder = value

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "scheduler" and "_complete" in self.__dict__:
            raise InputError(_NO_SCHEDULER)
        if name in NETWORKS and "_complete" in self.__dict__:
            raise InputError(f"The {name} of a PusaPipeline cannot change: give it to from_pretrained or from_pipe.")
        super().__setattr__(name, value)

    # ------------------------------------------------------------------------------------------------ place in memory

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As in diffusers: move the networks to a device, or convert them to a type."""
        moved: Self = super().to(*args, **kwargs)
        if self.pusa.profile == profiles.PLAIN:
            self.pusa.moved(self.pusa.transformer.device)
        return moved

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None) -> None:
        """Keep the text encoder, and an expert that does not run, in the machine's memory: the memory profile 48gb.

        Raises InputError without an accelerator, and if another memory profile is in use.
        """
        target = torch.device(device or torch.accelerator.current_accelerator() or "cpu")
        if target.type == "cpu":
            raise InputError("There is no accelerator to which the networks could be moved: leave the offload out.")
        profile = profiles.named("48gb")
        if self.pusa.profile == profile:
            return
        if self.pusa.profile != profiles.PLAIN:
            raise InputError(f"The memory profile {self.pusa.profile.name} is in use: leave the offload out.")
        self.to("cpu")
        self.pusa.lay_out(profile, target if gpu_id is None else torch.device(target.type, gpu_id))

    def enable_sequential_cpu_offload(self, *_: Any, **__: Any) -> NoReturn:
        """Raise InputError: the memory profiles 16gb to 8gb do this."""
        raise InputError("A PusaPipeline offloads by memory profiles: give memory='16gb' or '8gb' to from_pretrained.")

    # ---------------------------------------------------------------------------------------------------------- files

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Write a folder of diffusers, which `WanPipeline` and `pusa.load` read too. LoRAs are merged into the weights.

        The folder has the default settings of the model in `pusa.json`. options: those of diffusers. Raises InputError
        for weights that a memory profile stores in fp8 or on the disk, and, with LoRAs, for a folder that is not empty.
        """
        saving.save(self.pusa, Path(save_directory), super().save_pretrained, options)

    def to_json_string(self) -> str:
        """Return the configuration with the class names of diffusers, so that each pipeline of Wan loads the folder."""
        return saving.stock_names(super().to_json_string())

    # ---------------------------------------------------------------------------------------------------------- clips

    @property
    def interrupt(self) -> bool:
        """Whether sampling stops after the present step. A callback, or another thread, sets `_interrupt` to True."""
        return self._interrupt

    @property
    def num_timesteps(self) -> int:
        """The number of steps of the last clip."""
        return self._num_timesteps

    def __call__(
        self,
        prompt: str | Sequence[str] = "",
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_scale_2: float | None = None,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: OutputType = "np",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        *,
        image: Any = None,
        last_image: Any = None,
        video: Any = None,
        strength: float | None = None,
        conditions: Sequence[Image | Clip] = (),
        noise: float | Sequence[float] = 0.0,
        timestep_matrix: Any = None,
        **options: Any,
    ) -> PusaPipelineOutput | tuple[Any]:
        """Make clips. None stands for the model's default.

        Args:
            prompt, negative_prompt: a text, or a list of texts.
            height, width: in pixels. num_frames: pixel frames, 4n+1.
            guidance_scale, guidance_scale_2: at 1 and below, the model is called once per step. The second one is for
                the low-noise expert.
            num_videos_per_prompt: with consecutive seeds.
            generator: its seed, see `pusa.diffusers.seeds`; None is seed 0.
            output_type: "np", "pil", "pt" or "latent", see `PusaPipelineOutput`.
            return_dict: False returns the tuple (frames,).
            callback_on_step_end: called as callback(pipe, step, timestep, {name: tensor}) after each step of each clip.
                timestep: 1000 times the noise level of the noisiest frame before the step. It returns None or a
                dictionary; "latents" in it replace those of the clip.
            callback_on_step_end_tensor_inputs: "latents", "denoised" or both.
            image, last_image: the first and the last frame: a path, a PIL picture, an array or a tensor.
            video: the first frames, which the clip continues: a path, a list of pictures, an array, a tensor or a
                generated clip. With a strength in (0, 1], it is edited instead.
            conditions: `pusa.Image` and `pusa.Clip` at any frame, besides the above.
            noise: the noise multiplier of image, last_image and video, see `pusa.diffusers.inputs.conditions`.
            timestep_matrix: a matrix of your own, in every form that `pusa.Pipeline.generate` takes.
            options: its other options: shift, schedule, solver, boundary, guidance_interval, guidance_batch,
                accelerate, speed, min_psnr, fit.

        Raises InputError, before the model runs, for what is wrong or cannot be honoured.
        """
        outputs.check(output_type)
        if callback_on_step_end is not None and not callable(callback_on_step_end):
            raise InputError(f"callback_on_step_end is {callback_on_step_end!r}: give a function.")
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        check_names(callback_on_step_end_tensor_inputs)
        requests = arguments.requests(
            prompt,
            negative_prompt,
            num_videos_per_prompt,
            generator,
            arguments.Given(image, last_image, video, strength, conditions, noise),
            num_frames=num_frames,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_scale_2=guidance_scale_2,
            timestep_matrix=timestep_matrix,
            **options,
        )
        steps = Steps(self, len(requests), callback_on_step_end, callback_on_step_end_tensor_inputs)
        made = self._make(requests, output_type, steps)
        return made if return_dict else (made.frames,)

    def _make(self, requests: Sequence[Generate], output_type: OutputType, steps: Steps) -> PusaPipelineOutput:
        """Make the clips one after the other. After an interruption, the last one is what has been sampled of it."""
        self._interrupt = False
        latents: list[Tensor] = []
        frames: list[Frames] = []
        clips: list[GeneratedClip] = []
        try:
            for _, group in groupby(requests, key=lambda request: request.negative_prompt):
                for sampled in self.pusa.sampled_each(list(group), steps):
                    latents.append(sampled.latents)
                    if output_type != "latent":
                        clips.append(self.pusa.decoded(sampled))
                        frames.append(clips[-1].frames)
        except Cancelled:
            assert steps.latents is not None
            latents.append(steps.latents.float().cpu())
            if output_type != "latent":
                frames.append(self.pusa.decode(latents[-1]))
        finally:
            steps.close()
        found = torch.cat(latents) if output_type == "latent" else outputs.converted(frames, output_type)
        return PusaPipelineOutput(frames=found, clips=clips)


# Programs read the signature to see which arguments they may pass, so the options are named in it.
PusaPipeline.__call__.__signature__ = arguments.named_options(PusaPipeline.__call__)  # type: ignore[attr-defined]
