"""The sections of the settings of a training, each setting with its kind, range, default and help.

The text under a setting is its help: `pusa train --help` shows it, reading this file as text so that help needs no
import. What a setting takes is said once, in its type; `Give` puts it into words for the error message.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, field_validator, model_validator


class Give(str):
    """What a setting takes, as the end of the sentence "…; give"."""


def _none(value: Any) -> Any:
    """TOML has no null: the word "none" stands for it."""
    return None if value == "none" else value


def _path(value: Any) -> Any:
    """The empty path would be the folder we are in."""
    if value == "":
        raise ValueError("is empty; give a path")
    return value


Absent = BeforeValidator(_none)
Count = Annotated[int, Field(ge=1), Give("a whole number of at least 1")]
Whole = Annotated[int, Field(ge=0), Give("a whole number of at least 0")]
Positive = Annotated[float, Field(gt=0), Give("a number above 0")]
Amount = Annotated[float, Field(ge=0), Give("a number of at least 0")]
Number = Annotated[float, Give("a number")]
Share = Annotated[float, Field(ge=0, le=1), Give("a number from 0 to 1")]
Level = Annotated[float, Field(gt=0, le=1), Give("a number above 0 and at most 1")]
Momentum = Annotated[float, Field(ge=0, lt=1), Give("a number of at least 0 and below 1")]
Decay = Annotated[float, Field(gt=0, lt=1), Give("a number between 0 and 1, such as 0.999")]
Folder = Annotated[Path, Strict(False), BeforeValidator(_path), Give("a path")]
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
    """Which model is trained."""

    source: str = "tiny-base"
    """tiny-base (embedded), a diffusers folder, or a hub id."""
    expert: Annotated[Literal["high", "low"] | None, Absent] = None
    """Which expert of Wan2.2 A14B."""
    boundary: Annotated[float, Field(gt=0, lt=1), Give("a number between 0 and 1")] = 0.875
    """The noise level at which the experts change."""
    full_range: bool = True
    """Train the expert over all noise levels (the author's finding), not only over its own side of the boundary."""


class DataConfig(Section):
    """Which clips, and how they are cut."""

    path: str | None = None
    """Folder, list or dataset id; --data is the same."""
    cache: Folder = Path("runs/cache")
    """Where encoded clips are kept."""
    buckets: Annotated[list[str] | None, Absent, Give("a list such as [832x480x81]")] = None
    """WIDTHxHEIGHTxFRAMES to cut to; null: the model's own."""
    cut: Literal["head", "uniform", "slide"] = "head"
    """Which parts of a long clip are used: its beginning, spread evenly, or all of it."""
    fps: Annotated[Positive | None, Absent] = None
    """Frames per second that clips are resampled to; null: the model's own."""
    held_out: Annotated[Whole | None, Absent] = None
    """Clips kept for validation and never trained on; null: 10 %, at most 16."""

    @field_validator("buckets")
    @classmethod
    def _buckets(cls, value: list[str] | None) -> list[str] | None:
        for text in value or ():
            if not re.fullmatch(r"(\d{1,5})x(\d{1,5})x(\d{1,5})", text):
                raise ValueError(f"has {text!r}, which is no bucket; give WIDTHxHEIGHTxFRAMES such as 832x480x81")
        if value == [] or len(set(value or ())) < len(value or ()):
            raise ValueError("is empty or names a bucket twice; give each once, or null for the model's own")
        return value


class SigmaConfig(Section):
    """How frames get their noise levels."""

    pattern: Literal["independent", "ptss", "shared", "first-clean", "tasks"] = "independent"
    """One level per frame (the method), a mix of that and one per clip, one per clip, the ablation, or tasks."""
    p: Share = 0.5
    """ptss: the probability of one level per frame, otherwise one per clip."""
    tasks: dict[Task, Share] = Field(default=TASKS, validate_default=True)  # type: ignore[arg-type]
    """tasks: the probability of each task."""
    condition_noise: Share = 0.0
    """tasks: given frames get a noise multiplier drawn evenly from 0 to this; 0 keeps them clean."""
    law: Literal["uniform", "shifted", "logit-normal"] = "uniform"
    """How one level is distributed: evenly (the paper), a shifted grid (the official code), or mostly in the middle."""
    shift: Positive = 5.0
    """shifted: how far towards noise."""
    levels: Annotated[Count | None, Absent] = None
    """shifted: the number of levels, 1000 in the official code; null: all."""
    mean: Number = 0.0
    """logit-normal: mean before the sigmoid."""
    std: Positive = 1.0
    """logit-normal: standard deviation before the sigmoid."""
    low: Share = 0.0
    """The least level of a clip's noisiest frame."""
    high: Share = 1.0
    """The greatest level of a clip's noisiest frame."""
    weighting: Literal["none", "bell", "official"] = "none"
    """Of the loss over levels: none (the paper), a bell for each frame, or a bell averaged over the clip."""

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
            raise ValueError(f"has low {self.low:g} and high {self.high:g}; make low the smaller one")
        return self


class LoraSettings(Section):
    """The adapter; null trains the whole model."""

    rank: Count = 32
    """Rank of every pair of factors."""
    alpha: Annotated[Positive | None, Absent] = None
    """Scale: alpha / rank multiplies the product; null: the rank."""
    targets: Annotated[list[str], Field(min_length=1), Give("a list of module names")] = list(TARGETS)
    """Endings of the names of the linear layers that are adapted."""
    rslora: bool = False
    """Scale by alpha / √rank instead."""


class TrainSettings(Section):
    """How the weights are changed."""

    steps: Count = 900
    """Optimiser steps."""
    batch: Count = 1
    """Clips per process in one pass."""
    accumulate: Count = 1
    """Passes per optimiser step."""
    lr: Positive = 1e-4
    """Learning rate at its highest."""
    warmup: Whole = 0
    """Steps over which it rises."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """What it does after that."""
    weight_decay: Amount = 0.01
    """Of matrices; biases and norms are not decayed."""
    betas: Annotated[tuple[Momentum, Momentum], Strict(False), Give("two numbers of at least 0 and below 1")] = (
        0.9,
        0.999,
    )
    """Memory of Adam's two moments."""
    clip: Annotated[Positive | None, Absent] = 1.0
    """Greatest norm of the gradient; null: any."""
    optimiser: Literal["adamw", "adamw8bit"] = "adamw"
    """adamw8bit needs bitsandbytes and a GPU."""
    ema: Annotated[Decay | Literal["post-hoc"] | None, Absent, Give("a number between 0 and 1, or post-hoc")] = None
    """Average of the weights: a decay, or post-hoc (EDM2)."""
    caption_dropout: Share = 0.1
    """Probability that a clip is trained without its caption."""
    gradient_checkpointing: bool = False
    """Less memory for a third more time."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the frozen weights and the arithmetic; trained weights are float32."""
    workers: Whole = 2
    """Threads that read ahead; the result does not depend on it."""
    seed: Annotated[int, Field(ge=0, lt=2**63), Give("a whole number from 0 to 2^63 - 1")] = 0
    """The same seed gives the same weights."""
    on_nan: Literal["stop", "skip"] = "stop"
    """What happens at a loss or gradient that is no number."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """With several processes: each holds the model, or a part of it."""


class SaveSettings(Section):
    """Checkpoints."""

    every: Count = 100
    """Steps between checkpoints."""
    keep: Annotated[Count | None, Absent] = 3
    """How many are kept; null: all."""


class ValidateSettings(Section):
    """Loss on held-out clips, at fixed noise."""

    every: Whole = 100
    """Steps between validations; 0: none."""
    clips: Count = 8
    """How many of the held-out clips are used, at most."""
    sigmas: Annotated[list[Level], Field(min_length=1), Give("a list of numbers above 0 and at most 1")] = [
        0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95
    ]  # fmt: skip
    """Noise levels of the frames that are made."""

    @field_validator("sigmas")
    @classmethod
    def _sigmas(cls, value: list[float]) -> list[float]:
        if len(set(value)) < len(value):
            raise ValueError("names a level twice; give each once")
        return value


class PreviewSettings(Section):
    """Clips made on the way."""

    every: Whole = 0
    """Steps between previews; 0: none."""
    tasks: Annotated[list[PreviewTask], Field(min_length=1)] = ["text-to-video", "image-to-video"]
    """What is made of each prompt."""
    prompts: Annotated[list[str] | None, Absent, Give("a list of texts")] = None
    """Captions; null: those of held-out clips."""
    steps: Annotated[Count | None, Absent] = None
    """Sampling steps; null: the model's own."""
    guidance: Annotated[Amount | None, Absent] = None
    """Guidance scale; null: the model's own."""


class TrackSettings(Section):
    """Where numbers go, beside log.jsonl."""

    loggers: list[Literal["tensorboard", "trackio", "wandb"]] = []
    """Further places."""
    price: Annotated[Amount | None, Absent] = None
    """Money for one hour of one device, for the cost sheet."""
    currency: str = "USD"
    """Of the price."""
