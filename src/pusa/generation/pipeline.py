"""Make clips: conditions -> known latents -> timestep matrix -> sampler -> frames. Every task is this one call.

A known latent with noise multiplier m is noised once, z <- (1 - m) z + m eps with the frame's own initial noise, and
its column of the matrix is m times everybody else's (arXiv 2507.16116, Algorithm 1 and App. B); m = 0 is bit-constant.
The noise of a clip is a function of its seed alone, drawn on the CPU in float32, and clips of a batch run one after the
other, so neither the device nor the batch size changes what a seed means.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack, overload

import torch
from torch import Tensor

from pusa import processes
from pusa.acceleration.accounting import Accelerated
from pusa.core import sampler, schedules, sigmas
from pusa.core.sampler import Step
from pusa.core.timesteps import TimestepMatrix
from pusa.errors import Adjustment, InputError
from pusa.generation import plans
from pusa.generation.advice import advice
from pusa.generation.clip import GeneratedClip, SampledClip
from pusa.generation.conditions import Known
from pusa.generation.given import Clip, Image, Picture
from pusa.generation.model import Model
from pusa.generation.plans import Plan
from pusa.generation.request import (
    SEEDS,
    VERSION,
    Extend,
    ExtendOptions,
    Generate,
    GenerateOptions,
    Request,
    Transition,
    TransitionOptions,
)
from pusa.generation.schedule import DEFAULT, Schedule
from pusa.generation.settings import Settings
from pusa.models import context_parallel, kernels
from pusa.models.backbone import Expert, Text
from pusa.models.kernels import Attention
from pusa.models.loading import checkpoints, sources
from pusa.models.lora import header
from pusa.models.lora.header import LoraFile
from pusa.models.memory import profiles

AnyRequest = Generate | Extend | Transition
Callback = Callable[[Step], bool | None]


class Pipeline(Model):
    """A loaded model that makes clips."""

    @overload
    def generate(
        self,
        prompt: str = "",
        conditions: Sequence[Image | Clip | Picture] = (),
        *,
        callback: Callback | None = None,
        **options: Unpack[GenerateOptions],
    ) -> GeneratedClip: ...
    @overload
    def generate(
        self,
        prompt: list[str],
        conditions: Sequence[Image | Clip | Picture] = (),
        *,
        callback: Callback | None = None,
        **options: Unpack[GenerateOptions],
    ) -> list[GeneratedClip]: ...

    def generate(
        self,
        prompt: str | list[str] = "",
        conditions: Sequence[Image | Clip | Picture] = (),
        *,
        callback: Callback | None = None,
        **options: Unpack[GenerateOptions],
    ) -> GeneratedClip | list[GeneratedClip]:
        """Make a clip from a prompt, or one from each of several prompts, and from what is known of its frames.

        Args:
            prompt: what the clip shows; it may be empty. A list makes clip i with seed + i.
            conditions: pictures and clips at their frames; without any it is text-to-video. A path or a picture itself
                is the first frame.
            callback: called with a `Step` after each step of each clip; returning False raises Cancelled.
            options: the fields of `pusa.generation.request.Generate`, which explains them.

        Raises InputError when the options do not fit together or a source cannot be used, before the model runs. If an
        error or Ctrl-C stops a list, its attribute `clips` has the clips that are finished; `generate_each` hands out
        each clip at once.
        """
        prompts = list(prompt) if isinstance(prompt, (list, tuple)) else [prompt]
        made = map(self.decoded, self.sampled_each(_requests(prompts, conditions, options), callback))
        if isinstance(prompt, str):
            return next(made)
        clips: list[GeneratedClip] = []
        try:
            for clip in made:
                clips.append(clip)
        except BaseException as error:
            with suppress(AttributeError):  # an exception of a library may take no attributes
                error.clips = clips  # type: ignore[attr-defined]
                error.add_note(
                    f"{len(clips)} of {len(prompt)} clips are finished: they are in `clips` of this exception."
                )
            raise
        return clips

    def generate_each(
        self,
        prompts: Sequence[str],
        conditions: Sequence[Image | Clip | Picture] = (),
        *,
        callback: Callback | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Iterator[GeneratedClip]:
        """The clips of `generate` for a list of prompts, one after the other, so that each can be saved at once.

        What is wrong with the options is raised by this call, before the first clip is asked for.
        """
        return map(self.decoded, self.sampled_each(_requests(prompts, conditions, options), callback))

    def opened(self, request: Generate) -> Generate:
        """The request with its pictures decoded and its clips read, so that several clips of it read them once.

        Its `frames` then say how long an edited clip is.
        """
        return plans.opened(self, request)

    def make(self, request: Request, callback: Callback | None = None, *, after: Step | None = None) -> GeneratedClip:
        """Make the clip of a request of any task; see `Request.run`.

        after: a step that a callback of the same request got before it was interrupted. Sampling goes on behind it,
        with the same bits. Raises InputError if the request has an acceleration, which depends on all steps before.
        """
        assert isinstance(request, AnyRequest)
        return self.decoded(next(self.sampled_each([request], callback, after=after)))

    def sampled_each(
        self, requests: Sequence[AnyRequest], callback: Callback | None = None, *, after: Step | None = None
    ) -> Iterator[SampledClip]:
        """Sample requests that differ by prompt and seed only, one after the other; `decoded` makes the clips.

        after: of the first request, see `make`. What is wrong with the requests is raised by this call, before the
        first clip is sampled.
        """
        first = requests[0]
        plan = PLANS[first.task](self, first)
        for sentence in first.notes(self.limits):
            warnings.warn(sentence, Adjustment, stacklevel=3)
        self.advise(plan.settings, given=bool(plan.known))
        walked = plan.matrix or self.matrix(plan.settings, plan.known)
        negative = [first.negative_prompt] if plan.settings.guidances - {1} else []
        texts = self.encode_text([*(request.prompt for request in requests), *negative])
        return self._walked(requests, plan, walked, texts, callback, after)

    def decoded(self, clip: SampledClip) -> GeneratedClip:
        """Decode a sampled clip."""
        frames = self.decode(clip.latents)
        return GeneratedClip(frames, clip.latents, self.defaults.fps, clip.matrix, clip.recipe, clip.prompt)

    def _walked(
        self,
        requests: Sequence[AnyRequest],
        plan: Plan,
        walked: TimestepMatrix,
        texts: Text,
        callback: Callback | None,
        after: Step | None,
    ) -> Iterator[SampledClip]:
        recipes = [self._recipe_of(request, plan, walked) for request in requests]
        for i, (request, recipe) in enumerate(zip(requests, recipes, strict=True)):
            context = texts[i : i + 1], texts[-1:]
            with self.accelerated(plan.settings.accelerate, walked) as accelerated:
                z = self.sample(
                    walked,
                    context,
                    plan.settings,
                    known=plan.known,
                    init=plan.init,
                    seed=request.seed,
                    callback=callback,
                    accelerated=accelerated,
                    after=after if i == 0 else None,
                )
            if accelerated is not None:
                recipe["acceleration"] = accelerated.accounting.to_dict()
            yield SampledClip(plan.join(z), walked, recipe, request.prompt)

    def _recipe_of(self, request: AnyRequest, plan: Plan, matrix: TimestepMatrix) -> dict[str, Any]:
        """The sidecar of a clip without its result. Raises InputError for values that JSON does not have."""
        recipe = {
            "version": VERSION,
            "task": request.task,
            **self.recipe(),
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            **plan.settings.record(),
            "fit": request.fit,
            "seed": request.seed,
            "matrix": matrix.to_dict(),
            **plan.record,
        }
        for name, value in recipe.items():
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise InputError(
                    f"The sidecar of the clip cannot hold its {name} ({error}): give another value."
                ) from error
        return recipe

    def matrix(self, settings: Settings, known: Known) -> TimestepMatrix:
        """The schedule from σ = shift(strength) down, with the columns of known frames scaled by their multipliers."""
        grid = sigmas.grid(settings.steps, settings.shift, settings.strength)
        slots = self.backbone.geometry.latent_frames(settings.frames)
        free = Schedule.parse(settings.schedule or DEFAULT).matrix(grid, slots)
        return schedules.conditioned(free, {slot: multiplier for slot, (_, multiplier) in known.items()})

    def noise(self, seed: int, settings: Settings) -> Tensor:
        """The initial noise of a seed, float32 [1, C, F, h, w] on the CPU."""
        shape = self.backbone.geometry.latent_shape(self.backbone.channels, settings.frames, settings.size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)

    @torch.no_grad()
    def sample(
        self,
        matrix: TimestepMatrix,
        text: tuple[Text, Text],
        settings: Settings,
        *,
        known: Known,
        init: Tensor | None = None,
        seed: int = 0,
        callback: Callback | None = None,
        accelerated: Accelerated | None = None,
        after: Step | None = None,
    ) -> Tensor:
        """Walk the matrix from the seed's noise: float32 [1, C, F, h, w] on the CPU.

        Args:
            text: the encoded prompt and negative prompt, one each.
            known: latents at their slots; they start at the matrix's first row.
            init: latents of the whole clip, for the slots that are not known.
            accelerated: what the context of `accelerated` gives.
            after: a step of the same walk, behind which it goes on.

        Raises InputError if a slot starts below σ = 1 and is neither known nor in `init`. If several processes share
        the tokens, all start from the latents of rank 0.
        """
        self._check_shares(matrix, settings)
        if after is not None and accelerated is not None:
            raise InputError("An accelerated clip depends on all of its steps: sample it from its start.")
        noise = self.noise(seed, settings)
        clean = torch.zeros_like(noise) if init is None else init.clone()
        for slot, (latent, _) in known.items():
            clean[:, :, slot : slot + 1] = latent
        begin = matrix.sigma[0].float()
        if init is None:
            for slot, level in enumerate(begin.tolist()):
                if level < 1 and slot not in known:
                    raise InputError(
                        f"The matrix starts latent frame {slot} at σ = {level:g}: give a condition or init for this "
                        "frame, or let it start at 1."
                    )
        x = sampler.add_noise(clean, noise, begin[None])
        if self.group.size > 1:
            if not processes.all_agree(self.group, f"{matrix.to_dict()} {settings} {seed} {callback is None}"):
                raise InputError("The processes make different clips: make the same calls in each of them.")
            x, prompt, negative = processes.broadcast([x, *(each.tokens for each in text)])
            text = text[0].with_tokens(prompt), text[1].with_tokens(negative)
            callback = callback and self._shared_stop(callback)

        def renoise(step: int) -> Tensor:
            return self.noise((seed ^ 0x9E3779B97F4A7C15 * (step + 1)) % SEEDS, settings)

        with self.explained(settings.size, settings.frames), self.backbone.walk():
            z = sampler.sample(
                self.guided(
                    settings.guidance,
                    settings.guidance_2,
                    settings.boundary,
                    accelerated,
                    batch=settings.guidance_batch,
                    interval=settings.interval,
                ),
                x.to(self.device),
                matrix,
                (("cond", text[0]), ("uncond", text[1])),
                solver=settings.solver,
                noise=renoise,
                callback=callback,
                after=after,
            )
        return z.cpu()

    def _check_shares(self, matrix: TimestepMatrix, settings: Settings) -> None:
        """Raise InputError unless the number of processes divides the tokens of every step."""
        geometry = self.backbone.geometry
        width, height = (side // geometry.multiple for side in settings.size)
        for slots in {int(row.sum()) for row in matrix.visible}:
            context_parallel.check_tokens(slots, width * height, self.backbone.heads, self.group.size, geometry)

    def _shared_stop(self, callback: Callback) -> Callback:
        """The callback; if it returns False on one process, every process stops after the same step."""
        return lambda step: not processes.any_rank(self.group, callback(step) is False)

    def advise(self, settings: Settings, *, given: bool) -> None:
        """Warn if the settings contradict the LoRAs. given: whether some frames have conditions."""
        for sentence in advice(self.backbone.source, self.loras, settings, given=given, merged=self.defaults.per_frame):
            warnings.warn(sentence, stacklevel=4)


PLANS: Mapping[str, Callable[[Pipeline, Any], Plan]] = {
    "generate": plans.generate,
    "extend": plans.extend,
    "transition": plans.transition,
}


def _requests(prompts: Sequence[str], conditions: Sequence[Image | Clip], options: Any) -> list[Generate]:
    """One request for each prompt, with consecutive seeds."""
    if isinstance(prompts, str):
        raise InputError("The prompts are one text: give a list of texts.")
    if not prompts:
        raise InputError("The list of prompts is empty: give a list of at least one text.")
    first = Generate(prompts[0], conditions, **options)  # type: ignore[arg-type]
    return [replace(first, prompt=text, seed=first.seed + i) for i, text in enumerate(prompts)]


def extend(
    pipe: Pipeline,
    clip: Any,
    prompt: str = "",
    *,
    callback: Callback | None = None,
    **options: Unpack[ExtendOptions],
) -> GeneratedClip:
    """Continue a clip, or make what came before it; returns the given clip and the new frames as one.

    clip: a generated clip, a video file (with its latents where they were saved), or uint8 [N, H, W, 3]. options: the
    fields of `pusa.generation.request.Extend`. Raises InputError when they do not fit together.
    """
    return Extend(clip, prompt, **options).run(pipe, callback)  # type: ignore[arg-type]


def transition(
    pipe: Pipeline,
    a: Any,
    b: Any,
    prompt: str = "",
    *,
    callback: Callback | None = None,
    **options: Unpack[TransitionOptions],
) -> GeneratedClip:
    """Join two clips by new frames; returns a, the new frames and b as one clip of len(a) + frames + len(b) - 1.

    The last new frame stands for b's first one. a, b: as `clip` of `extend`. options: the fields of
    `pusa.generation.request.Transition`. Raises InputError when they do not fit together.
    """
    return Transition(a, b, prompt, **options).run(pipe, callback)


def load(
    source: str | Path = sources.TINY,
    *,
    vae: str | Path | None = None,
    text_encoder: str | Path | None = None,
    transformer_2: str | Path | None = None,
    lora: str | Path | LoraFile | Sequence[str | Path | LoraFile] = (),
    lora_scale: float | Sequence[float] = 1.0,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    memory: str | None = None,
    share_tokens: bool = False,
    attention: Attention = kernels.NATIVE,
    compiled: bool = False,
) -> Pipeline:
    """Load a model and make a pipeline of it.

    Args:
        source: "tiny" (embedded, with its adapter), "tiny-base" (without), a folder, a file or a hub id.
        vae, text_encoder: files or folders of these parts, if the source lacks them.
        transformer_2: the low-noise expert, if the source is a file of the high-noise expert.
        lora: LoRA files to add, each at its lora_scale. A `LoraFile` has its own strength and expert.
        dtype: of transformer and text encoder; by default bfloat16 on a GPU and float32 on a CPU.
        device: by default the GPU if there is one.
        memory: a profile of `pusa.models.memory.profiles`; by default the whole model is on the device.
        share_tokens: the processes of the group (`pusa.processes.join`) make each clip together.
        attention: the kernel of attention, see `pusa.models.kernels`.
        compiled: whether the blocks of the transformer are compiled, in the first step.

    Raises InputError for what cannot be loaded.
    """
    kernels.check(attention)
    if share_tokens:
        context_parallel.check_model(source, processes.current_group().size)
    wanted = _lora_files([lora] if isinstance(lora, (str, Path, LoraFile)) else list(lora), lora_scale)
    profile = profiles.PLAIN if memory is None else profiles.named(memory)
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    first = target if profile == profiles.PLAIN else torch.device("cpu")
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise InputError(f"dtype is {dtype!r}: give a torch.dtype, such as torch.bfloat16.")
    dtype = dtype or (torch.float32 if target.type == "cpu" else torch.bfloat16)
    pipe = Pipeline(
        checkpoints.load(
            source, vae=vae, text_encoder=text_encoder, transformer_2=transformer_2, dtype=dtype, device=first
        )
    )
    for one in wanted:
        file = header.file_of(one.path).absolute()
        if own := next((x for x in pipe.loras if x.path == file and x.expert in (None, one.expert)), None):
            raise InputError(
                f"{source} runs the LoRA {one.path} at strength {own.scale:g} by default: leave it out, or give it "
                f"to {sources.TINY_BASE} with a strength."
            )
        pipe.load_lora(one.path, one.scale, expert=one.expert)
    if profile != profiles.PLAIN:
        pipe.lay_out(profile, target)
    if share_tokens:
        pipe.share_tokens()
    pipe.use(attention, compiled=compiled)
    return pipe


def _lora_files(given: Sequence[str | Path | LoraFile], scales: float | Sequence[float]) -> list[LoraFile]:
    """The LoRAs to load. Raises InputError unless each has a strength and no transformer gets a file twice."""
    scales = list(scales) if isinstance(scales, Sequence) else [scales] * len(given)
    if len(scales) != len(given):
        raise InputError(f"{len(scales)} LoRA scales for {len(given)} LoRAs: give one for all or one each.")
    wanted = [
        one if isinstance(one, LoraFile) else LoraFile(one, scale) for one, scale in zip(given, scales, strict=True)
    ]
    seen: list[tuple[Path, Expert | None]] = []
    for one in wanted:
        file = Path(os.path.normpath(header.file_of(one.path).absolute()))
        if any(file == other and (one.expert == expert or None in (one.expert, expert)) for other, expert in seen):
            raise InputError(f"The LoRA {one.path} is given twice: give it once, with one strength.")
        seen.append((file, one.expert))
    return wanted
