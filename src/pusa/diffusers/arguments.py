"""From the arguments of a pipeline of diffusers to requests of this project."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from pusa.diffusers import inputs
from pusa.diffusers.seeds import seeds_of
from pusa.errors import InputError
from pusa.generation.given import Clip, Image
from pusa.generation.request import Generate

NAMES = {
    "num_frames": "frames",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "guidance_scale_2": "guidance_2",
    "timestep_matrix": "matrix",
}
"""{argument of diffusers: field of `Generate`}"""
_ELSEWHERE = {"size": "height and width", "seed": "generator", "init": "video with a strength"} | {
    field: argument for argument, field in NAMES.items()
}
"""{field of `Generate`: the arguments that stand for it}"""
OPTIONS = tuple(
    one.name
    for one in fields(Generate)  # type: ignore[arg-type]
    if one.name not in (*_ELSEWHERE, "prompt", "negative_prompt", "conditions", "strength")
)
"""the fields of `Generate` that are arguments under their own name"""
_REFUSED = {
    "latents": "the noise of a clip is a function of its seed: give a generator",
    "prompt_embeds": "a sidecar names texts: give prompt",
    "negative_prompt_embeds": "a sidecar names texts: give negative_prompt",
    "attention_kwargs": "LoRAs have strengths: call set_adapters",
    "max_sequence_length": "prompts have 512 tokens: leave it out",
    "timesteps": "the noise levels are a matrix: give timestep_matrix",
    "sigmas": "the noise levels are a matrix: give timestep_matrix",
}
"""arguments of other pipelines, and what to do instead"""


@dataclass(frozen=True)
class Given:
    """What is known of the frames, as `PusaPipeline.__call__` takes it."""

    image: Any
    last_image: Any
    video: Any
    strength: float | None
    conditions: Sequence[Image | Clip]
    noise: inputs.Noise


def requests(
    prompt: str | Sequence[str],
    negative_prompt: str | Sequence[str] | None,
    per_prompt: int,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    given: Given,
    *,
    height: int | None,
    width: int | None,
    **values: Any,
) -> list[Generate]:
    """Return the requests of a call, in the order of diffusers: the clips of the first prompt come first.

    They differ by prompt, negative prompt and seed only. values: the arguments in `NAMES` and the options. Raises
    InputError for what is wrong.
    """
    _check_names(values)
    if isinstance(per_prompt, bool) or not isinstance(per_prompt, int) or per_prompt < 1:
        raise InputError(f"num_videos_per_prompt is {per_prompt!r}: give a whole number from 1 on.")
    if (height is None) != (width is None):
        raise InputError("Only one of height and width is given: give both, or none for the model's size.")
    prompts = _texts(prompt, "prompt", None)
    negatives = _texts("" if negative_prompt is None else negative_prompt, "negative_prompt", len(prompts))
    if (scale := values.get("guidance_scale")) is not None:
        values["guidance_scale"] = _guidance(scale)
    if (scale := values.get("guidance_scale_2")) is not None:
        values["guidance_scale_2"] = _guidance(scale)
    edited = given.video is not None and given.strength is not None
    if given.strength is not None and not edited:
        raise InputError("A strength needs a video to edit: give one, or leave the strength out.")
    if given.conditions and given.noise != 0 and given.image is given.last_image is given.video is None:
        raise InputError("noise is for image, last_image and video: give each of the conditions a noise of its own.")
    nothing = given.image is None and given.last_image is None and (given.video is None or edited)
    if nothing and given.noise not in (0, 0.0, None):
        raise InputError(
            f"The noise {given.noise!r} is of image, last_image and a continued video: give one, or no noise."
        )
    known = inputs.conditions(given.image, given.last_image, None if edited else given.video, given.noise)
    with _in_the_words_of_diffusers():
        first = Generate(
            prompts[0],
            [*known, *_listed(given.conditions)],  # type: ignore[arg-type]
            size=None if height is None else (width, height),  # type: ignore[arg-type]
            init=Clip(inputs.frames(given.video)) if edited else None,
            strength=given.strength,
            **{NAMES.get(name, name): value for name, value in values.items()},
        )
    texts = [pair for pair in zip(prompts, negatives, strict=True) for _ in range(per_prompt)]
    seeds = seeds_of(generator, len(texts))
    return [
        replace(first, prompt=text, negative_prompt=negative, seed=seed)
        for (text, negative), seed in zip(texts, seeds, strict=True)
    ]


@contextmanager
def _in_the_words_of_diffusers() -> Iterator[None]:
    """Let a message that begins with the name of a field begin with the argument that stands for it."""
    try:
        yield
    except InputError as error:
        first, space, rest = str(error).partition(" ")
        argument = {field: argument for argument, field in NAMES.items()}.get(first)
        raise (error if argument is None else InputError(argument + space + rest)) from None


def named_options(call: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of a call with a parameter for each of `OPTIONS` before its `**options`."""
    signature = inspect.signature(call)
    *own, rest = signature.parameters.values()
    defaults = {one.name: one.default for one in fields(Generate)}  # type: ignore[arg-type]
    named = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name]) for name in OPTIONS]
    return signature.replace(parameters=[*own, *named, rest])


def _check_names(values: Mapping[str, Any]) -> None:
    for name in values:
        if name in NAMES or name in OPTIONS:
            continue
        if name in _ELSEWHERE:
            raise InputError(f"{name} is called {_ELSEWHERE[name]} here: give that.")
        if name in _REFUSED:
            raise InputError(f"A PusaPipeline takes no {name}, because {_REFUSED[name]}.")
        near = difflib.get_close_matches(name, (*NAMES, *OPTIONS, "image", "last_image", "video", "conditions"), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(OPTIONS)}."
        raise InputError(f"A PusaPipeline takes no {name}: {hint}")


def _texts(value: Any, name: str, count: int | None) -> list[str]:
    """Return a list of texts; a single text is repeated `count` times."""
    texts = [value] * (count or 1) if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f"The {name} is {value!r}: give a text, or a list of texts.")
    if count is not None and len(texts) != count:
        raise InputError(f"There are {len(texts)} negative prompts for {count} prompts: give one for all, or each.")
    return list(texts)


def _guidance(scale: Any) -> Any:
    """Return the guidance scale. Pipelines of diffusers guide above 1 only, and 1 is no guidance here."""
    return 1.0 if isinstance(scale, int | float) and scale < 1 else scale


def _listed(conditions: Any) -> list[Any]:
    if not isinstance(conditions, (list, tuple)):
        raise InputError(f"The conditions are of type {type(conditions).__name__}: give a list of them.")
    return list(conditions)
