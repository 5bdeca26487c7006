"""Options that several verbs share. Each group is a frozen dataclass; the docstrings of its fields are the help."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, make_dataclass, replace
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

from cyclopts import Group, Parameter

from pusa.cli.shared.arguments import factor, lora, number, path, whole
from pusa.errors import InputError
from pusa.generation import request, sampling
from pusa.generation.options import options_of
from pusa.generation.outputs import SUFFIXES, check_place, media_path, shortened, sidecar_path
from pusa.generation.request import Generate
from pusa.models.kernels import NATIVE, Attention

CONDITIONS = Group.create_ordered(
    "Conditions", help="FRAME is a pixel frame (0 is the first, -1 the last) or a time such as 1.5s."
)
CLIP = Group.create_ordered("Clip")
MANY = Group.create_ordered("Many clips")
SAMPLING = Group.create_ordered("Sampling")
MODEL = Group.create_ordered("Model")
OUTPUT = Group.create_ordered("Output")
OFFICIAL = Group.create_ordered(
    "Flags of the official scripts", help="As in the official scripts, positions are latent frames, not pixel frames."
)


def model_default(_: object) -> str:
    """Return the text by which the help shows a default that depends on the model."""
    return "the model's own"


Many = Parameter(negative="", show_default=False)
"""A repeatable option."""
Switch = Parameter(negative="", show_default=False)
"""An option without a value."""
Whole = Parameter(converter=whole)
"""An option that takes a whole number."""
File = Parameter(converter=path)
"""An option or argument that takes a path."""


def option_group(names: Iterable[str], title: str, help_text: str, *, unset: bool = False) -> Any:
    """Return a group of options for fields of a request, with the types, defaults and help of these fields.

    A text has the default None, which a preset or the field's own default replaces: see `with_preset`.

    unset: an option that is not given is None, so that a command can tell it from one that has its default.
    """
    options, defaults = options_of(Generate), {one.name: one.default for one in fields(Generate)}  # type: ignore[arg-type]
    members = []
    for name in names:
        kind, option = options[name]
        default = defaults[name]
        shown: Any = model_default if option.of_model else None
        if option.default:
            shown = _constant(option.default)
        elif default in (None, "") and shown is None:
            shown = False
        if kind is str:
            kind, default = str | None, None
        kinds = get_args(kind) or (kind,)
        if unset and default is not None:
            kind, shown = kind | None, shown or (bool(default != "") and _constant(str(default)))
            default = None
        converter = whole if int in kinds else factor if name == "speed" else None
        parameter = Parameter(help=option.help, show_default=shown, converter=converter)
        members.append((name, Annotated[kind, parameter], dataclass_field(default=default)))
    group = make_dataclass(title, members, frozen=True, kw_only=True)
    group.__doc__, group.__module__ = help_text, __name__
    return Parameter(name="*", group=SAMPLING)(group)


def _constant(text: str) -> Callable[[object], str]:
    return lambda _: text


SAMPLING_FIELDS = tuple(one.name for one in fields(sampling.Sampling))  # type: ignore[arg-type]
if TYPE_CHECKING:
    Sampling = request.Request
    GivenSampling = request.Request
    SeedlessSampling = sampling.Sampling
else:
    _SEEDED = (*SAMPLING_FIELDS, "seed", "negative_prompt")
    Sampling = option_group(_SEEDED, "Sampling", "Options of the sampler.")
    GivenSampling = option_group(_SEEDED, "GivenSampling", "Options of the sampler, None where not given.", unset=True)
    SeedlessSampling = option_group(SAMPLING_FIELDS, "SeedlessSampling", "Options of the sampler, without the seed.")


def values_of(group: Any) -> dict[str, Any]:
    """Return the values of a group of options, by name."""
    return {one.name: getattr(group, one.name) for one in fields(group)}


@Parameter(name="*", group=MODEL)
@dataclass(frozen=True, kw_only=True)
class Model:
    """The model: its weights, LoRAs, number type and memory profile."""

    preset: Annotated[str | None, Parameter(metavar="NAME")] = None
    """A set of weights and settings. Other options override it. pusa info --presets lists all presets."""
    model: Annotated[str | None, Parameter(show_default=lambda _: "tiny")] = None
    """tiny (embedded), tiny-base (without its adapter), a folder, a .safetensors or .gguf file, or a hub id."""
    vae: Annotated[str | None, Parameter(metavar="PATH")] = None
    """File or folder of the autoencoder, if the model is a file that does not contain one."""
    text_encoder: Annotated[str | None, Parameter(metavar="PATH")] = None
    """File or folder of the text encoder, if the model is a file that does not contain one."""
    transformer_2: Annotated[str | None, Parameter(metavar="PATH")] = None
    """File or folder of the low-noise expert, if the model is a file of the high-noise expert."""
    lora: Annotated[tuple[str, ...], Many, Parameter(name="--lora", metavar="PATH[:SCALE]")] = ()
    """A LoRA file, or OWNER/REPOSITORY/FILE on the hub, and its strength: pusa_v1.safetensors:1.4. Repeatable."""
    lora_high: Annotated[tuple[str, ...], Many, Parameter(name="--lora-high", metavar="PATH[:SCALE]")] = ()
    """A LoRA for the high-noise expert only. Repeatable."""
    lora_low: Annotated[tuple[str, ...], Many, Parameter(name="--lora-low", metavar="PATH[:SCALE]")] = ()
    """A LoRA for the low-noise expert only. Repeatable."""
    lora_scale: float = 1.0
    """Strength of every LoRA that is given without a SCALE."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Number type of the transformer and the text encoder; auto is bfloat16 on a GPU and float32 on a CPU."""
    memory: Literal["auto", "none", "80gb", "48gb", "24gb", "16gb", "12gb", "8gb", "cpu"] = "auto"
    """Memory profile: auto is the fastest one that fits; none loads the model without a profile and without a check."""
    attention: Attention = NATIVE
    """Kernel of attention. sage and sage-hub quantise queries and keys and change the clip; all others are exact. Those
    that end in -hub are downloaded."""
    compile: Annotated[bool, Switch] = False
    """Compile the blocks of the transformer. The first step then takes from half a minute to several minutes."""

    @property
    def source(self) -> str:
        """The model's name, path or hub id; the default is the embedded model."""
        return "tiny" if self.model is None else self.model

    def loras(self) -> tuple[tuple[Path, float, Literal["high", "low"] | None], ...]:
        """Return (file, strength, expert) of each LoRA; the expert None means both."""
        number(str(self.lora_scale), "--lora-scale", "finite number")
        if self.lora_scale != 1 and not (self.lora or self.lora_high or self.lora_low):
            raise InputError(f"--lora-scale {self.lora_scale:g} needs a LoRA; give --lora too.")
        flags: list[tuple[str, tuple[str, ...], Literal["high", "low"] | None]] = [
            ("--lora", self.lora, None),
            ("--lora-high", self.lora_high, "high"),
            ("--lora-low", self.lora_low, "low"),
        ]
        return tuple((*lora(text, self.lora_scale, flag), expert) for flag, texts, expert in flags for text in texts)

    def separate_parts(self) -> dict[str, str | None]:
        """Return the paths of the parts that are not in the model's file, by name; None where no path is given."""
        return {"vae": self.vae, "text_encoder": self.text_encoder, "transformer_2": self.transformer_2}


def given_of(group: Any) -> dict[str, Any]:
    """Return the values of a group of options that differ from their defaults, by name."""
    return {one.name: getattr(group, one.name) for one in fields(group) if getattr(group, one.name) != one.default}


Options = TypeVar("Options", bound="sampling.Sampling")


def with_preset(model: Model, sampling: Options, noise: float | None) -> tuple[Model, Options, float]:
    """Fill in options that are not given from the preset; return the model, the sampling options and the noise.

    noise: the noise multiplier of the conditions, None if it is not given. If any LoRA is given, the LoRAs of the
    preset are not used. Raises InputError for an unknown preset.
    """
    from pusa.models.loading.presets import named

    preset = named(model.preset).options() if model.preset is not None else {}
    if model.lora or model.lora_high or model.lora_low:
        preset = {name: value for name, value in preset.items() if not name.startswith("lora")}

    def missing(options: Any) -> dict[str, Any]:
        return {
            name: preset[name] for name, value in values_of(options).items() if name in preset and value in (None, ())
        }

    filled = missing(sampling)
    if getattr(sampling, "negative_prompt", "") is None:
        filled.setdefault("negative_prompt", "")
    changed = replace(sampling, **filled)
    return replace(model, **missing(model)), changed, preset.get("noise", 0.0) if noise is None else noise


def negative_of(model: Model) -> str:
    """Return the negative prompt of the preset, for commands that have no option for it; "" if there is none."""
    from pusa.models.loading.presets import named

    return "" if model.preset is None else named(model.preset).negative_prompt or ""


@Parameter(name="*", group=OUTPUT)
@dataclass(frozen=True, kw_only=True)
class Verbosity:
    """What a verb prints."""

    json: Annotated[bool, Switch] = False
    """Print one JSON object on stdout, also for an error."""
    quiet: Annotated[bool, Switch, Parameter(alias="-q")] = False
    """Print only the result, no notes and no progress."""
    debug: Annotated[bool, Switch] = False
    """Print the traceback of an error."""

    @property
    def verbose(self) -> bool:
        """Whether the verb prints notes and progress."""
        return not (self.quiet or self.json)


@Parameter(name="*", group=OUTPUT)
@dataclass(frozen=True, kw_only=True)
class Output:
    """Where a verb writes the clip, and what it prints."""

    out: Annotated[Path | None, File, Parameter(show_default=lambda _: "outputs")] = None
    """A file that ends in .mp4, .gif or .webp; NAME.png for a folder NAME of PNG frames; or a folder. In a folder, the
    clip is named after its prompt or source, its seed and its size."""
    overwrite: Annotated[bool, Switch] = False
    """Replace an existing file."""
    open: Annotated[bool, Switch] = False
    """Show the clip when it is made, or the page of several clips, in the browser."""
    fps: Annotated[float | None, Parameter(show=False)] = None
    """Frames per second, which the model decides; see `check_rate`."""
    verbosity: Verbosity = Verbosity()

    def check(self, sources: Iterable[Path] = (), *, replaces: Path | None = None) -> None:
        """Raise InputError if no clip can be written at --out, or if it is an existing file that may not be replaced.

        sources, replaces: see `check_path`.
        """
        if self.out is None or os.path.isdir(self.out) or self.out.suffix == "":
            check_place((self.out or Path("outputs")) / "clip.mp4")
        elif self.out.suffix not in SUFFIXES:
            raise InputError(
                f"--out {self.out}: clips are written as .mp4, .gif, .webp or, for a folder of frames, .png; use "
                f"{self.out.with_suffix('.mp4')}."
            )
        else:
            self.check_path(self.out, sources, replaces=replaces)

    def path(self, stem: str, end: str, *, seed: int | None = None) -> Path:
        """Return the file of a clip.

        stem, end: its name without the suffix, if --out is a folder; the stem is cut if the name would be too long.
        seed: is added to the name if --out is a file and several clips are made.
        """
        out = self.out or Path("outputs")
        if out.suffix.lower() not in SUFFIXES or os.path.isdir(out):
            return out / f"{shortened(stem, end)}.mp4"
        return out if seed is None else out.with_stem(f"{out.stem}_{seed}")

    def check_path(
        self, path: Path, sources: Iterable[Path] = (), *, replaces: Path | None = None, bytes_needed: int = 0
    ) -> None:
        """Raise InputError if no clip can be written at `path`, or if its files exist and may not be replaced.

        sources, bytes_needed: see `pusa.generation.outputs.check_place`. replaces: a file that may be replaced.
        """
        check_place(path, sources, bytes_needed)
        if (taken := self.taken(path, replaces)) is not None:
            raise InputError(f"{taken} exists already; give --overwrite to replace it, or give another --out.")

    def taken(self, path: Path, replaces: Path | None = None) -> Path | None:
        """Return the video or the sidecar of a clip at `path` that exists and may not be replaced, or None."""
        files = () if self.overwrite else (media_path(path), sidecar_path(path))
        return next((file for file in files if file.exists() and not (replaces and file.samefile(replaces))), None)
