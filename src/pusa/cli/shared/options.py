"""Options that several verbs share, each group a frozen dataclass; their docstrings are the help text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, make_dataclass, replace
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

from cyclopts import Group, Parameter

from pusa.cli.shared.arguments import lora, number, path, whole
from pusa.errors import InputError
from pusa.generation import request
from pusa.generation.options import options_of
from pusa.generation.request import Generate

CONDITIONS = Group.create_ordered("Conditions")
CLIP = Group.create_ordered("Clip")
MANY = Group.create_ordered("Many clips")
SAMPLING = Group.create_ordered("Sampling")
MODEL = Group.create_ordered("Model")
OUTPUT = Group.create_ordered("Output")
OFFICIAL = Group.create_ordered(
    "Flags of the official scripts", help="With their meaning there: positions are latent frames, not pixel frames."
)


def of_model(_: object) -> str:
    """How the help shows a default that depends on the model."""
    return "the model's own"


Many = Parameter(negative="", show_default=False)
"""A repeatable option."""
Switch = Parameter(negative="", show_default=False)
"""An option without a value."""
Whole = Parameter(converter=whole)
"""An option that counts."""
File = Parameter(converter=path)
"""A path."""


def flags_of(names: Iterable[str], title: str, help_text: str) -> Any:
    """A group of options made of fields of a request: their types, defaults and help are the fields' own."""
    options, defaults = options_of(Generate), {one.name: one.default for one in fields(Generate)}  # type: ignore[arg-type]
    made = []
    for name in names:
        kind, option = options[name]
        default = defaults[name]
        shown: Any = of_model if option.of_model else None
        if option.default:
            shown = _always(option.default)
        elif default in (None, "") and shown is None:
            shown = False
        kinds = get_args(kind) or (kind,)
        parameter = Parameter(help=option.help, show_default=shown, converter=whole if int in kinds else None)
        made.append((name, Annotated[kind, parameter], dataclass_field(default=default)))
    group = make_dataclass(title, made, frozen=True, kw_only=True)
    group.__doc__, group.__module__ = help_text, __name__
    return Parameter(name="*", group=SAMPLING)(group)


def _always(text: str) -> Callable[[object], str]:
    return lambda _: text


SAMPLING_FIELDS = tuple(one.name for one in fields(request.Sampling))  # type: ignore[arg-type]
if TYPE_CHECKING:
    Sampling = request.Request
    SeedlessSampling = request.Sampling
else:
    Sampling = flags_of((*SAMPLING_FIELDS, "seed", "negative_prompt"), "Sampling", "How the sampler walks.")
    SeedlessSampling = flags_of(SAMPLING_FIELDS, "SeedlessSampling", "How the sampler walks, seeds apart.")


def values_of(group: Any) -> dict[str, Any]:
    """The values of a group of options, by name."""
    return {one.name: getattr(group, one.name) for one in fields(group)}


@Parameter(name="*", group=MODEL)
@dataclass(frozen=True, kw_only=True)
class Model:
    """Which networks run."""

    preset: Annotated[str | None, Parameter(metavar="NAME")] = None
    """Weights and settings that belong together; what is typed beside it wins. pusa info --presets lists them."""
    model: Annotated[str | None, Parameter(show_default=lambda _: "tiny")] = None
    """tiny (embedded), tiny-base (without its adapter), a folder, a .safetensors or .gguf file, or a hub id."""
    vae: Annotated[str | None, Parameter(metavar="PATH")] = None
    """File or folder of the autoencoder, where the model is a file without one."""
    text_encoder: Annotated[str | None, Parameter(metavar="PATH")] = None
    """File or folder of the text encoder, where the model is a file without one."""
    transformer_2: Annotated[str | None, Parameter(metavar="PATH")] = None
    """File or folder of the expert for low noise, where the model is a file of the one for high noise."""
    lora: Annotated[tuple[str, ...], Many, Parameter(name="--lora", metavar="PATH[:SCALE]")] = ()
    """A LoRA file, or OWNER/REPOSITORY/FILE on the hub, and its strength: pusa_v1.safetensors:1.4. Repeatable."""
    lora_high: Annotated[tuple[str, ...], Many, Parameter(name="--lora-high", metavar="PATH[:SCALE]")] = ()
    """The same for the expert for high noise alone."""
    lora_low: Annotated[tuple[str, ...], Many, Parameter(name="--lora-low", metavar="PATH[:SCALE]")] = ()
    """The same for the expert for low noise alone."""
    lora_scale: float = 1.0
    """Strength of every LoRA that names none of its own."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """What transformer and text encoder compute in; auto is bfloat16 on a GPU and float32 on a CPU."""
    memory: Literal["auto", "none", "80gb", "48gb", "24gb", "16gb", "12gb", "8gb", "cpu"] = "auto"
    """How the model is laid out in memory: auto is the fastest way that fits; none loads it without weighing it."""

    @property
    def source(self) -> str:
        """The model."""
        return "tiny" if self.model is None else self.model

    def loras(self) -> tuple[tuple[Path, float, Literal["high", "low"] | None], ...]:
        """File, strength and expert of each LoRA."""
        number(str(self.lora_scale), "--lora-scale", "finite number")
        flags: list[tuple[str, tuple[str, ...], Literal["high", "low"] | None]] = [
            ("--lora", self.lora, None),
            ("--lora-high", self.lora_high, "high"),
            ("--lora-low", self.lora_low, "low"),
        ]
        return tuple((*lora(text, self.lora_scale, flag), expert) for flag, texts, expert in flags for text in texts)

    def beside(self) -> dict[str, str | None]:
        """The parts that are given beside the model."""
        return {"vae": self.vae, "text_encoder": self.text_encoder, "transformer_2": self.transformer_2}


def given_of(group: Any) -> dict[str, Any]:
    """The values of a group of options that are not at their defaults, by name."""
    return {one.name: getattr(group, one.name) for one in fields(group) if getattr(group, one.name) != one.default}


Options = TypeVar("Options", bound="request.Sampling")


def with_preset(model: Model, sampling: Options, noise: float | None) -> tuple[Model, Options, float]:
    """The options, and from the preset those that were not given; noise is that of conditions.

    A preset's LoRAs are left out when any LoRA is given.
    """
    from pusa.models.loading.presets import named

    preset = named(model.preset).options() if model.preset is not None else {}
    if model.lora or model.lora_high or model.lora_low:
        preset = {name: value for name, value in preset.items() if not name.startswith("lora")}

    def missing(options: Any) -> dict[str, Any]:
        return {
            name: preset[name] for name, value in values_of(options).items() if name in preset and value in (None, ())
        }

    changed = replace(sampling, **missing(sampling))
    return replace(model, **missing(model)), changed, preset.get("noise", 0.0) if noise is None else noise


@Parameter(name="*", group=OUTPUT)
@dataclass(frozen=True, kw_only=True)
class Talk:
    """How much is said."""

    json: Annotated[bool, Switch] = False
    """Print one JSON object on stdout, also for errors."""
    quiet: Annotated[bool, Switch, Parameter(alias="-q")] = False
    """Say nothing but the result."""
    debug: Annotated[bool, Switch] = False
    """Show the traceback of an error."""

    @property
    def talkative(self) -> bool:
        return not (self.quiet or self.json)


@Parameter(name="*", group=OUTPUT)
@dataclass(frozen=True, kw_only=True)
class Output:
    """Where the result goes and how much is said."""

    out: Annotated[Path | None, File, Parameter(show_default=lambda _: "outputs")] = None
    """An .mp4 file, or a folder, in which the clip is named for its prompt or source, its seed and its size."""
    overwrite: Annotated[bool, Switch] = False
    """Replace a file that is already there."""
    talk: Talk = Talk()

    def check(self) -> None:
        """Refuse an --out that cannot be a clip, before any work is done."""
        if self.out is None or self.out.is_dir() or self.out.suffix == "":
            return
        if self.out.suffix != ".mp4":
            raise InputError(f"--out {self.out}: clips are written as .mp4; use {self.out.with_suffix('.mp4')}.")
        self.free(self.out)

    def path(self, name: str, *, seed: int | None = None) -> Path:
        """The file for a clip whose default name is `name`.mp4; `seed` joins an --out that several clips share."""
        out = self.out or Path("outputs")
        if out.suffix.lower() != ".mp4" or out.is_dir():
            return self.free(out / f"{name}.mp4")
        return self.free(out if seed is None else out.with_stem(f"{out.stem}_{seed}"))

    def free(self, path: Path) -> Path:
        if path.exists() and not self.overwrite:
            raise InputError(f"{path} exists already; give --overwrite to replace it, or another --out.")
        return path
