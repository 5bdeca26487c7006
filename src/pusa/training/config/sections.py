"""The sections of the training settings. Each setting has a type, a range, a default and a help text.

The text below a setting is its help. `pusa train --help` reads this file as text, so that the help needs no import. The
type of a setting defines which values are allowed. `Give` describes these values for error messages.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    field_validator,
    model_validator,
)

from pusa.training.config.intervals import Interval, IntervalOrNever


class Give(str):
    """A description of the allowed values, such as "a number above 0". An error message adds it to "…; give"."""


def _none(value: Any) -> Any:
    """Convert the word "none" to None, because TOML has no null."""
    return None if value == "none" else value


def _held_out(value: float) -> float:
    """Raise ValueError for a number of clips below 0, and for a share outside (0, 1)."""
    if not (value >= 0 if isinstance(value, int) else 0 < value < 1):
        raise ValueError(f"is {value!r}; give a share above 0 and below 1, or a whole number of clips")
    return value


def _unescaped(value: Any) -> Any:
    """Raise ValueError for a path with a control character, which an escape in double quotes has made."""
    if isinstance(value, str) and any(ord(letter) < 32 for letter in value):
        raise ValueError(
            f"is {value!r}: a backslash in double quotes begins an escape; write the path in single quotes or with "
            "slashes"
        )
    return value


def _path(value: Any) -> Any:
    """Raise ValueError for an empty path, which would mean the current folder, and see `_unescaped`."""
    if value == "":
        raise ValueError("is empty; give a path")
    return _unescaped(value)


def _patterns(value: Any) -> Any:
    """Raise ValueError for a regular expression that is not valid."""
    for pattern in value or ():
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"has the pattern {pattern!r}, which is damaged ({error}); give parts of names") from error
    return value


Absent = BeforeValidator(_none)
Patterns = AfterValidator(_patterns)
Count = Annotated[int, Field(ge=1), Give("a whole number of at least 1")]
Whole = Annotated[int, Field(ge=0), Give("a whole number of at least 0")]
Positive = Annotated[float, Field(gt=0), Give("a number above 0")]
Amount = Annotated[float, Field(ge=0), Give("a number of at least 0")]
Number = Annotated[float, Give("a number")]
Share = Annotated[float, Field(ge=0, le=1), Give("a number from 0 to 1")]
Level = Annotated[float, Field(gt=0, le=1), Give("a number above 0 and at most 1")]
Momentum = Annotated[float, Field(ge=0, lt=1), Give("a number of at least 0 and below 1")]
Decay = Annotated[float, Field(gt=0, lt=1), Give("a number between 0 and 1, such as 0.999")]
HeldOut = Annotated[int | float, AfterValidator(_held_out), Give("a share such as 0.1, or a whole number of clips")]
Source = Annotated[str, BeforeValidator(_unescaped)]
PathSetting = Annotated[Path, Strict(False), BeforeValidator(_path), Give("a path")]
Task = Literal[
    "text-to-video",
    "image-to-video",
    "last-frame",
    "start-end",
    "keyframes",
    "extension",
    "backward-extension",
    "completion",
    "staircase",
    "independent",
]
PreviewTask = Literal["text-to-video", "image-to-video", "last-frame", "start-end", "keyframes", "extension"]
TASKS: dict[str, float] = {
    "text-to-video": 0.3,
    "image-to-video": 0.3,
    "start-end": 0.1,
    "keyframes": 0.1,
    "extension": 0.1,
    "completion": 0.1,
}
AUTO = "auto"
"""Among the buckets: further ones for other aspect ratios."""
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")


class Section(BaseModel):
    """A group of settings."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        validate_by_name=True,
        validate_by_alias=True,
    )


class ModelConfig(Section):
    """The model to train."""

    source: Source = "tiny-base"
    """tiny-base (embedded), a diffusers folder, or a hub id."""
    expert: Annotated[Literal["high", "low"] | None, Absent] = None
    """The expert of Wan2.2 A14B to train."""
    boundary: Annotated[float, Field(gt=0, lt=1), Give("a number between 0 and 1")] = 0.875
    """Noise level between the two experts."""
    full_range: bool = True
    """true: train the expert on all noise levels, which works better; false: only on its own side of the boundary."""


class Folder(Section):
    """One of several sources of clips."""

    path: Source
    repeats: Count = 1
    prefix: Annotated[str | None, Absent] = None


def _folders(value: Any) -> Any:
    """Return a list of `Folder` for a list of paths or mappings, or for a mapping of paths to repeats."""
    forms = "give a list such as [{path: clips, repeats: 2, prefix: sks}, {path: more}], or clips=2,more=1"
    if isinstance(value, dict):
        value = [{"path": path, "repeats": repeats} for path, repeats in value.items()]
    if not isinstance(value, list) or not value:
        return value
    found = []
    for number, one in enumerate(value):
        try:
            found.append(one if isinstance(one, Folder) else Folder(**({"path": one} if isinstance(one, str) else one)))
        except (ValidationError, TypeError) as error:
            what = f" ({_first_mistake(error)})" if isinstance(error, ValidationError) else ""
            raise ValueError(f"has {one!r} as item {number + 1}{what}; {forms}") from error
    if len({folder.path for folder in found}) < len(found):
        raise ValueError("has a path twice; give it once, with repeats")
    return found


def _first_mistake(error: ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(map(str, first["loc"]))
    if first["type"] == "value_error":
        return f"{name} {first['ctx']['error']}"
    return f"{name} is {'missing' if first['type'] == 'missing' else repr(first['input'])}"


class DataConfig(Section):
    """The clips and how they are cut into samples."""

    path: Source | None = None
    """Folder, table or dataset id; the same as --data."""
    folders: Annotated[list[Folder] | None, Absent, BeforeValidator(_folders), Give("a list of folders")] = None
    """Several sources instead of path: [{path: a, repeats: 2, prefix: sks}, {path: b}], or a=2,b=1. Each sample of a is
    then trained on twice in an epoch."""
    validation: Annotated[Source | None, Absent] = None
    """Folder, table or dataset id of clips for validation only; then no other clip is held out."""
    prefix: Annotated[str | None, Absent] = None
    """Text before each caption, such as a trigger word; a space follows it."""
    captions: Literal["one", "variants"] = "one"
    """variants: each line of a caption, and each row of a clip in a table, is a caption, and one is drawn at each step;
    one: the whole text is the caption."""
    uncaptioned: bool = False
    """true: train on clips without a caption, too, with the prefix or an empty caption."""
    cache: PathSetting = Path("runs/cache")
    """Folder of the encoded clips."""
    buckets: Annotated[list[str] | None, Absent, Give("a list such as [832x480x81]")] = None
    """Sizes of the samples, WIDTHxHEIGHTxFRAMES; null: the model's own size. auto adds sizes for other aspect ratios of
    the clips."""
    cut: Literal["head", "uniform", "slide"] = "head"
    """Samples of a long clip: one from its beginning, as many as fit without overlap, or one every half length."""
    fps: Annotated[Positive | None, Absent] = None
    """Frames per second to which clips are resampled; null: the model's own rate."""
    held_out: Annotated[HeldOut | None, Absent] = None
    """Clips for validation only: a share such as 0.1, which stays the same when clips are added, or an exact number;
    null: 0.1, and none of fewer than 10 clips."""

    @field_validator("buckets", mode="before")
    @classmethod
    def _one_bucket(cls, value: Any) -> Any:
        return [value] if value == AUTO else value

    @field_validator("buckets")
    @classmethod
    def _buckets(cls, value: list[str] | None) -> list[str] | None:
        for text in value or ():
            if text != AUTO and not re.fullmatch(r"(\d{1,5})x(\d{1,5})x(\d{1,5})", text):
                raise ValueError(
                    f"has {text!r}, which is not a bucket; give WIDTHxHEIGHTxFRAMES such as 832x480x81, or auto"
                )
        if value == [] or len(set(value or ())) < len(value or ()):
            raise ValueError("is empty or has a bucket twice; give each bucket once, or null for the model's own size")
        return value

    @model_validator(mode="after")
    def _once(self) -> Self:
        if self.path is not None and self.folders is not None:
            raise ValueError("has both path and folders; give one of them")
        if self.validation is not None and self.held_out:
            raise ValueError("has both validation and held_out; leave held_out out")
        return self

    @property
    def sources(self) -> list[Folder]:
        """The sources of the clips to train on, with their prefixes."""
        if self.path is not None:
            return [Folder(path=self.path, prefix=self.prefix)]
        folders = self.folders or []
        return [one if one.prefix is not None else one.model_copy(update={"prefix": self.prefix}) for one in folders]


class SigmaConfig(Section):
    """Noise levels of the frames in training."""

    pattern: Literal["independent", "ptss", "shared", "first-clean", "tasks"] = "independent"
    """independent: a level per frame (the paper); ptss: per frame or per clip, at random; shared: a level per clip;
    first-clean: a level per clip, with a clean first frame; tasks: levels of randomly chosen tasks."""
    p: Share = 0.5
    """For ptss: probability of a level per frame."""
    tasks: dict[Task, Share] = Field(default=TASKS, validate_default=True)  # type: ignore[arg-type]
    """For tasks: probability of each task."""
    condition_noise: Share = 0.0
    """For tasks: upper limit of the noise multiplier of given frames, drawn uniformly from 0; 0 keeps them clean."""
    law: Literal["uniform", "shifted", "logit-normal"] = "uniform"
    """Distribution of a level: uniform (the paper), shifted towards noise (the official code), or logit-normal."""
    shift: Positive = 5.0
    """For shifted: strength of the shift towards noise."""
    levels: Annotated[Count | None, Absent] = None
    """For shifted: number of different levels, 1000 in the official code; null: continuous."""
    mean: Number = 0.0
    """For logit-normal: mean before the sigmoid."""
    std: Positive = 1.0
    """For logit-normal: standard deviation before the sigmoid."""
    low: Share = 0.0
    """Lower limit of the level of the noisiest frame of a clip."""
    high: Share = 1.0
    """Upper limit of the level of the noisiest frame of a clip."""
    weighting: Literal["none", "bell", "official"] = "none"
    """Weight of the loss by level. none: constant (the paper); bell: a bell curve per frame; official: its mean over
    the clip."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        used = {"p": ("pattern", "ptss"), "tasks": ("pattern", "tasks"), "condition_noise": ("pattern", "tasks"),
                "shift": ("law", "shifted"), "levels": ("law", "shifted"),
                "mean": ("law", "logit-normal"), "std": ("law", "logit-normal")}  # fmt: skip
        for name, (switch, needed) in used.items():
            field = type(self).model_fields[name]
            if getattr(self, name) != field.default and getattr(self, switch) != needed:
                raise ValueError(
                    f"sets {name}, which only {switch} {needed} uses; set {switch} to {needed} or leave {name} out"
                )
        total = sum(self.tasks.values())
        if abs(total - 1) > 1e-6:
            raise ValueError(f"has tasks whose probabilities add up to {total:g}; make them add up to 1")
        if self.low >= self.high:
            raise ValueError(f"has low {self.low:g} and high {self.high:g}; make low smaller than high")
        return self


class LoraSettings(Section):
    """The LoRA; null trains the whole model."""

    rank: Count = 32
    """Rank of the LoRA."""
    alpha: Annotated[Positive | None, Absent] = None
    """The LoRA is scaled by alpha / rank; null: alpha is the rank."""
    targets: Annotated[list[str], Field(min_length=1), Give("a list of module names")] = list(TARGETS)
    """Linear layers that get a LoRA, by the end of their names."""
    rslora: bool = False
    """Scale by alpha / √rank instead of alpha / rank."""
    exclude: Annotated[list[str] | None, Absent, Patterns, Give("a list of patterns of names")] = None
    """Patterns of names of layers that get no LoRA, such as blocks.[0-9].attn2."""
    init_weights: Literal["kaiming", "gaussian"] = "kaiming"
    """Distribution from which A is drawn; B is zero."""
    init: Annotated[str | None, Absent] = None
    """A LoRA to start from: a file in any dialect, a folder, or OWNER/REPOSITORY/FILE of the hub. It sets rank, alpha
    and targets."""


class TrainSettings(Section):
    """Steps, batches and the optimiser."""

    steps: Count = 900
    """Optimiser steps."""
    batch: Count = 1
    """Samples per process in one forward pass."""
    accumulate: Count = 1
    """Forward passes per optimiser step."""
    lr: Positive = 1e-4
    """Highest learning rate."""
    warmup: Whole = 0
    """Steps in which the learning rate rises to its highest value."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Course of the learning rate after the warm-up."""
    weight_decay: Amount = 0.01
    """Weight decay of matrices; biases and norms have none."""
    betas: Annotated[tuple[Momentum, Momentum], Strict(False), Give("two numbers of at least 0 and below 1")] = (
        0.9,
        0.999,
    )
    """Decay of Adam's first and second moment."""
    clip: Annotated[Positive | None, Absent] = 1.0
    """Greatest norm of the gradient; null: no limit."""
    optimiser: Literal["adamw", "adamw8bit", "adamw-kahan", "prodigy", "schedule-free", "muon"] = "adamw"
    """Optimiser. adamw8bit needs pusa[lowmemory]; adamw-kahan, prodigy and schedule-free need pusa[optimisers]."""
    rates: Annotated[dict[str, Positive] | None, Absent, Patterns, Give("patterns with numbers, such as lora_B=16")] = (
        None
    )
    """Factors of the learning rate for trained weights whose names match a pattern. lora_B=16 is LoRA+."""
    ema: Annotated[Decay | Literal["post-hoc"] | None, Absent, Give("a number between 0 and 1, or post-hoc")] = None
    """Average of the weights: its decay, or post-hoc (EDM2); null: no average."""
    caption_dropout: Share = 0.1
    """Probability of training a sample without its caption."""
    gradient_checkpointing: bool = False
    """Save memory; a step takes a third more time."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Type of the frozen weights and of the computation; trained weights are float32."""
    workers: Whole = 2
    """Threads that read ahead. The result does not depend on this number."""
    seed: Annotated[int, Field(ge=0, lt=2**63), Give("a whole number from 0 to 2^63 - 1")] = 0
    """Seed. The same seed gives the same weights."""
    on_nan: Literal["stop", "skip"] = "stop"
    """If a loss or a gradient is not finite: stop the training, or skip the step."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """With several processes: each has the whole model (ddp) or a part of it (fsdp)."""


class MemorySettings(Section):
    """Less memory for the frozen base of a LoRA."""

    base: Annotated[Literal["fp8", "int8", "nf4"] | None, Absent] = None
    """Storage of the base's linear layers; null: as they are loaded. nf4 needs bitsandbytes."""
    swap: Annotated[Whole | None, Absent] = None
    """Blocks of the base in the machine's memory, which visit the device one after another; null: as many as limit
    needs."""
    offload: bool = False
    """Keep the checkpoints of gradient checkpointing in the machine's memory."""
    limit: Annotated[Positive | None, Absent] = None
    """Gigabytes of device memory that the training may use, as predicted; null: no limit."""


class SaveSettings(Section):
    """Checkpoints."""

    every: Interval = 100
    """Steps between checkpoints, or epoch, or a number such as 2 epochs."""
    keep: Annotated[Count | None, Absent] = 3
    """How many checkpoints to keep; null: all."""


class ValidateSettings(Section):
    """Loss on held-out clips, with the same noise every time."""

    every: IntervalOrNever = 100
    """Steps between validations, or epoch, or a number such as 2 epochs; 0: no validation."""
    clips: Count = 8
    """How many held-out clips to use at most."""
    sigmas: Annotated[list[Level], Field(min_length=1), Give("a list of numbers above 0 and at most 1")] = [
        0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95
    ]  # fmt: skip
    """Noise levels of the frames that the model predicts."""

    @field_validator("sigmas")
    @classmethod
    def _sigmas(cls, value: list[float]) -> list[float]:
        if len(set(value)) < len(value):
            raise ValueError("has a level twice; give each level once")
        return value


class PreviewSettings(Section):
    """Clips that are made during the training."""

    every: IntervalOrNever = 0
    """Steps between previews, or epoch, or a number such as 2 epochs; 0: no previews."""
    tasks: Annotated[list[PreviewTask], Field(min_length=1)] = ["text-to-video", "image-to-video"]
    """Tasks for each prompt."""
    prompts: Annotated[list[str] | None, Absent, Give("a list of texts")] = None
    """Prompts; null: the captions of held-out clips."""
    pictures: Annotated[list[PathSetting] | None, Absent, Give("a list of paths")] = None
    """A picture for each prompt, which the given frames show; null: the frames of held-out clips."""
    steps: Annotated[Count | None, Absent] = None
    """Sampling steps; null: the model's own."""
    guidance: Annotated[Amount | None, Absent] = None
    """Guidance scale; null: the model's own."""

    @model_validator(mode="after")
    def _picture_for_each(self) -> Self:
        pictures, prompts = len(self.pictures or ()), len(self.prompts or ())
        if self.pictures is not None and (pictures != prompts or not pictures):
            raise ValueError(f"has {pictures} pictures and {prompts} prompts; give one picture for each prompt")
        return self


class TrackSettings(Section):
    """Loggers and the cost sheet."""

    loggers: list[Literal["tensorboard", "trackio", "wandb"]] = []
    """Loggers in addition to log.jsonl."""
    price: Annotated[Amount | None, Absent] = None
    """Price of one hour of one device, for the cost sheet."""
    currency: str = "USD"
    """Currency of the price."""
