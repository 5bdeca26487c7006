"""Requests: the one place where an option of making a clip is defined.

A flag of `pusa generate`, a key of a batch file, an entry of a sidecar and a keyword of `Pipeline.generate` are
spellings of one field here. A new sampling option is one new field with its help, and every spelling has it.

Nothing here imports torch. What is wrong by itself is refused when a request is built; what a model cannot make is
refused by `check`, which needs the model's configuration and not its weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, Self, TypeVar

from annotated_types import Ge, Gt, Le, Lt

from pusa.errors import InputError
from pusa.files import existing_file
from pusa.generation import options
from pusa.generation.calibration import chosen
from pusa.generation.footage import changes, crop_of_picture, footage, joined_changes, joined_size, strain
from pusa.generation.given import Clip, Image, Noise, claim, conditions, edited, frame_index, listed
from pusa.generation.options import Option, python_number, strict_dataclass
from pusa.generation.placement import Span, edited_part, place_clip
from pusa.generation.sampling import Sampling, SamplingOptions

Decided = TypeVar("Decided", covariant=True)
Made = TypeVar("Made", covariant=True)

if TYPE_CHECKING:
    from pusa.core.sampler import Step
    from pusa.core.timesteps import TimestepMatrix

    Callback = Callable[[Step], bool | None]


class _Limits(Protocol[Decided]):
    """What a model can make, see `pusa.generation.limits.Limits`."""

    @property
    def defaults(self) -> Any: ...
    @property
    def geometry(self) -> Any: ...
    @property
    def source(self) -> str: ...
    @property
    def multiple(self) -> int: ...
    def check_size(self, size: Size | None) -> Size: ...
    @property
    def settings(self) -> Callable[..., Decided]: ...
    def window(self, added: int | None, overlap: int | None, *, clips: int) -> tuple[int, int]: ...


class _Pipeline(Protocol[Made]):
    """What makes clips, see `pusa.generation.pipeline.Pipeline`."""

    def make(self, request: Request, callback: Callback | None = None) -> Made: ...


VERSION = 1
"""of the format of `Request.to_dict`"""
SEEDS = 2**63
"""how many seeds there are"""
EDIT_STRENGTH = 0.6
# Sphinx reads no f-string inside an annotation.
_GIVE_SEED = f"give a whole number from 0 to {SEEDS - 1}"
_EDIT_STRENGTH = f"{EDIT_STRENGTH:g}"
Fit = Literal["crop", "pad", "stretch"]
"""as in `pusa.media.images`, whose import takes longer than a help may"""
Direction = Literal["forward", "backward"]
Size = tuple[int, int]


def _source(value: Any) -> Any:
    return value["path"] if isinstance(value, Mapping) else value


def _text(value: Any) -> Any:
    if isinstance(value, str) and (lost := re.search("[\ud800-\udfff]", value)):
        raise InputError(
            f"The text {value[max(0, lost.start() - 20) : lost.start() + 20]!r} has a byte that is not UTF-8, so it "
            "cannot be saved: type it again, or convert the file that it comes from to UTF-8."
        )
    return value


def _size(value: Any) -> Any:
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+)\s*[x×*X]\s*(\d+)", value.strip())):
        return int(match[1]), int(match[2])
    if isinstance(value, list | tuple) and len(value) == 2:
        return tuple(map(python_number, value))
    if value is not None:
        raise InputError(f"size is {value!r}: give (width, height), or a text such as '832x480'.")
    return None


@strict_dataclass
class Request(Sampling):
    """What every task has in common; see `Generate`, `Extend` and `Transition`."""

    task: ClassVar[str]

    _: KW_ONLY
    negative_prompt: Annotated[str, Option("What the clip should not show.", convert=_text)] = ""
    seed: Annotated[
        int,
        Ge(0),
        Lt(SEEDS),
        Option("The same seed gives the same clip.", _GIVE_SEED),
    ] = 0
    frames: Annotated[int | None, Option("Length in pixel frames.", "give a whole number", of_model=True)] = None
    size: Annotated[
        Size | None,
        Option("Width and height in pixels.", "give whole numbers (width, height)", of_model=True, convert=_size),
    ] = None
    fit: Annotated[Fit, Option("How pictures and clips of another shape are brought to the size.")] = "crop"

    def check(self, limits: _Limits[Decided]) -> Decided:
        """Return the `Settings` of the sampled window. Raises InputError for what the model cannot make."""
        raise NotImplementedError

    def notes(self, limits: _Limits[Decided]) -> list[str]:
        """Sentences about what becomes of the sources, and about a size or length that is far from the model's own.

        A picture counts once it is opened; see `pusa.generation.footage`. Raises the errors of `check`.
        """
        raise NotImplementedError

    def run(self, pipe: _Pipeline[Made], callback: Callback | None = None) -> Made:
        """Make the clip with a `Pipeline`.

        callback: called with a `Step` after each step. If it returns False, `Cancelled` is raised.

        Raises InputError, before the model runs, when the request does not fit the model or a source cannot be used.
        """
        return pipe.make(self, callback)

    def files(self) -> list[Path]:
        """The files that it is made from."""
        raise NotImplementedError

    def check_files(self) -> None:
        """Raise InputError for a file that is missing or empty. No file is decoded."""
        for path in self.files():
            existing_file(path)

    def opened(self) -> Self:
        """The request with every picture decoded, so that `run` does not decode it again. Clips are only looked for.

        Raises InputError for a picture that cannot be read and for a missing file.
        """
        self.check_files()
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; fields at their defaults are left out. InputError for pixels in memory."""
        said = {one.name: getattr(self, one.name) for one in fields(self)}  # type: ignore[arg-type]
        defaults = {one.name: one.default for one in fields(self)}  # type: ignore[arg-type]
        kept = {name: plain(value) for name, value in said.items() if not _equal(value, defaults[name])}
        return {"version": VERSION, "task": self.task, **kept}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Request:
        """The request that `to_dict` wrote, or that a sidecar holds. Raises InputError for anything else."""
        if not isinstance(data, Mapping):
            raise InputError(f"A request is a dictionary, not of type {type(data).__name__}.")
        version, task = data.get("version", VERSION), str(data.get("task", "generate"))
        if version != VERSION:
            raise InputError(f"The request has version {version!r} and this program reads {VERSION}: update pusa.")
        if task not in TASKS:
            raise InputError(f"The task {task!r} is unknown: choose {', '.join(TASKS)}.")
        values = {key: value for key, value in data.items() if key not in ("version", "task", *RECORDED)}
        if "own_matrix" in data or "model" in data:  # a sidecar: it holds the settings too that the program chose
            own = bool(data.get("own_matrix"))
            unused = ["shift", "schedule"] if own else ["matrix"]
            if own or values.get("init") is None:
                unused += ["strength", "init"]
            matrix = data.get("matrix")
            if isinstance(matrix, Mapping) and all(matrix.get("renoise") or [False]):  # so the solver has no effect
                unused.append("solver")
            values = {key: value for key, value in values.items() if key not in unused}
        return TASKS[task](**values)


RECORDED = ("model", "loras", "versions", "processes", "result", "request", "own_matrix", "variant_of", "acceleration")
"""Entries of a sidecar that say what made the clip and what came out; they are not part of the request."""


class RequestOptions(SamplingOptions, total=False):
    """The fields of `Request` as keywords, for type checkers."""

    negative_prompt: str
    seed: int
    frames: int | None
    size: Size | None
    fit: Fit


@strict_dataclass
class Generate(Request):
    """A clip from a prompt and from what is known of its frames; without conditions it is text-to-video."""

    task: ClassVar[str] = "generate"

    prompt: Annotated[str, Option("What the clip shows.", "give a text, which may be empty", convert=_text)] = ""
    conditions: Annotated[
        tuple[Image | Clip, ...], Option("Pictures and clips at their frames.", convert=conditions)
    ] = ()
    _: KW_ONLY
    init: Annotated[
        Clip | None,
        Option("A whole clip to edit: its motion stays, the prompt repaints it.", "give a pusa.Clip", convert=edited),
    ] = None
    strength: Annotated[
        float | None,
        Gt(0),
        Le(1),
        Option(
            "How much of the edited clip may change, above 0: a little at 0.1, everything at 1.",
            "give a number above 0 and at most 1",
            default=_EDIT_STRENGTH,
        ),
    ] = None
    matrix: Annotated[
        Any,
        Option(
            "A timestep matrix of your own: a JSON file. It replaces steps, shift, schedule and noise.",
            schema={"type": ["object", "array", "string", "null"]},
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init is None and self.strength is not None:
            raise InputError(f"A strength ({self.strength:g}) needs a clip to edit: give one as init.")
        if self.init is not None and (self.init.at != 0 or self.init.noise != 0):
            raise InputError("The clip to edit is all of the new clip: init takes no at and no noise.")
        if self.matrix is not None and (self.shift, self.strength, self.schedule) != (None, None, None):
            raise InputError(
                "A matrix of your own decides where it starts and how it descends: leave shift, schedule and strength "
                "out."
            )

    def check(self, limits: _Limits[Decided]) -> Decided:
        settings: Any = limits.settings(
            frames=self._length(limits),
            size=self.size,
            strength=1.0 if self.init is None else EDIT_STRENGTH if self.strength is None else self.strength,
            matrix=self.own_matrix(),
            **self.sampling(),
        )
        owners: dict[int, str] = {}
        span = Span(settings.frames, limits.defaults.fps, limits.geometry)
        for one in self.conditions:
            if isinstance(one, Image):
                label = _label(one.src)
                slot = span.geometry.slot_of(frame_index(one.frame, span.frames, span.fps, label))
                claim(owners, [slot], f"{label} at frame {one.frame}", span.geometry.frames_of)
            elif (found := footage(one.src, one.fps(span.fps))).count is not None:
                place = place_clip(one, found.named(span.fps), found.count, span)
                claim(owners, place.slots, f"{found.label} at frame {one.at}", span.geometry.frames_of)
        decided: Decided = settings
        return decided

    def _length(self, limits: _Limits[Any]) -> int | None:
        """`frames`, or the length of the clip to edit, if it is known."""
        found = None if self.init is None else footage(self.init.src, self.init.fps(limits.defaults.fps))
        if self.init is None or found is None or found.count is None:
            return self.frames
        span = Span(0, limits.defaults.fps, limits.geometry)
        return edited_part(self.init, self.frames, found.named(span.fps), found.count, span)[1]

    def notes(self, limits: _Limits[Decided]) -> list[str]:
        settings: Any = self.check(limits)
        found, fps = chosen(self, settings, limits.source), limits.defaults.fps
        for one in (*self.conditions, self.init):
            if isinstance(one, Clip):
                found += changes(footage(one.src, one.fps(fps)), settings.size, self.fit, fps)
            elif one is not None and hasattr(one.src, "pixels"):
                height, width = one.src.pixels.shape[:2]
                found += crop_of_picture(one.src.label, (width, height), settings.size, self.fit)
        if (matrix := self.own_matrix()) is not None:
            noisy = [(slot, level) for slot, level in enumerate(matrix.sigma[-1].tolist()) if level > 0]
            found += [
                f"The matrix ends latent frame {slot} at σ = {level:g}, so that this frame stays noisy: let its column "
                "end at 0, unless you want the noise."
                for slot, level in noisy[:1]
            ]
        return list(dict.fromkeys(found)) + strain(settings.size, settings.frames, limits)

    def own_matrix(self) -> TimestepMatrix | None:
        """`matrix` as a `TimestepMatrix`, or None; see `pusa.generation.own_matrix`."""
        if self.matrix is None:
            return None
        from pusa.generation.own_matrix import own_matrix

        return own_matrix(self.matrix)

    def files(self) -> list[Path]:
        return _paths(one.src for one in (*self.conditions, self.init) if one is not None)

    def opened(self) -> Self:
        from pusa.generation.pictures import open_picture

        self.check_files()
        pictures = [
            replace(one, src=open_picture(one.src)) if isinstance(one, Image) else one for one in self.conditions
        ]
        return replace(self, conditions=tuple(pictures))


class GenerateOptions(RequestOptions, total=False):
    """The fields of `Generate` as keywords, for type checkers."""

    init: Clip | None
    strength: float | None
    matrix: Any


@strict_dataclass
class Extend(Request):
    """A clip and what comes after it, or before it; `frames` is how many are added."""

    task: ClassVar[str] = "extend"

    clip: Annotated[Any, Option("The clip to continue.", schema={"type": "string"}, convert=_source)]
    prompt: Annotated[str, Option("What the new frames show.", "give a text, which may be empty", convert=_text)] = ""
    _: KW_ONLY
    direction: Annotated[Direction, Option("Whether the new frames follow the clip or precede it.")] = "forward"
    overlap: Annotated[
        int | None, Option("How many frames of the clip the model sees.", "give a whole number", of_model=True)
    ] = None
    noise: Annotated[
        Noise | tuple[Noise, ...],
        Option(
            "Noise multiplier of the overlap: 0 keeps it exactly, more gives the new frames more freedom.",
            "give a number from 0 to 1, or one for each latent frame",
            convert=listed,
        ),
    ] = 0.0

    def check(self, limits: _Limits[Decided]) -> Decided:
        overlap, added = limits.window(self.frames, self.overlap, clips=1)
        size = joined_size(self.size, [self.clip], overlap, limits)
        return limits.settings(frames=overlap + added, size=size, **self.sampling())

    def notes(self, limits: _Limits[Decided]) -> list[str]:
        settings: Any = self.check(limits)
        clips = [(self.clip, "start" if self.direction == "forward" else "end")]
        lost = joined_changes(clips, settings.size, self.fit, limits)
        return lost + strain(settings.size, settings.frames, limits) + chosen(self, settings, limits.source)

    def files(self) -> list[Path]:
        return _paths([self.clip])


class ExtendOptions(RequestOptions, total=False):
    """The fields of `Extend` as keywords, for type checkers."""

    direction: Direction
    overlap: int | None
    noise: float | Sequence[float]


@strict_dataclass
class Transition(Request):
    """Two clips joined by `frames` new ones."""

    task: ClassVar[str] = "transition"

    a: Annotated[Any, Option("The clip to start from.", schema={"type": "string"}, convert=_source)]
    b: Annotated[Any, Option("The clip to arrive at.", schema={"type": "string"}, convert=_source)]
    prompt: Annotated[
        str, Option("What the frames between them show.", "give a text, which may be empty", convert=_text)
    ] = ""
    _: KW_ONLY
    overlap: Annotated[
        int | None, Option("How many frames of each clip the model sees.", "give a whole number", of_model=True)
    ] = None
    noise: Annotated[
        Noise,
        Option(
            "Noise multiplier of both overlaps: 0 keeps them exactly, more gives the new frames more freedom.",
            "give a number from 0 to 1",
        ),
    ] = 0.0

    def check(self, limits: _Limits[Decided]) -> Decided:
        overlap, added = limits.window(self.frames, self.overlap, clips=2)
        size = joined_size(self.size, [self.a, self.b], overlap, limits)
        return limits.settings(frames=added + 2 * overlap - 1, size=size, **self.sampling())

    def notes(self, limits: _Limits[Decided]) -> list[str]:
        settings: Any = self.check(limits)
        lost = joined_changes([(self.a, "start"), (self.b, "end")], settings.size, self.fit, limits)
        return lost + strain(settings.size, settings.frames, limits) + chosen(self, settings, limits.source)

    def files(self) -> list[Path]:
        return _paths([self.a, self.b])


class TransitionOptions(RequestOptions, total=False):
    """The fields of `Transition` as keywords, for type checkers."""

    overlap: int | None
    noise: float


TASKS: Mapping[str, type[Generate | Extend | Transition]] = {one.task: one for one in (Generate, Extend, Transition)}


def json_schema() -> dict[str, Any]:
    """The JSON schema of a request of any task."""
    kinds = []
    definitions: dict[str, Any] = {}
    for name, kind in TASKS.items():
        written = options.json_schema(kind)
        definitions |= written.pop("$defs")
        written["properties"] = {"version": {"const": VERSION}, "task": {"const": name}, **written["properties"]}
        written["required"] = ["task", *written["required"]]
        kinds.append(written)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A request for a clip",
        "oneOf": kinds,
        "$defs": definitions,
    }


def _paths(sources: Iterable[Any]) -> list[Path]:
    return [Path(src) for src in sources if isinstance(src, str | Path)]


def _label(src: Any) -> str:
    return str(src) if isinstance(src, str | Path) else getattr(src, "label", "a condition")


def _equal(value: Any, default: Any) -> bool:
    return value is default or (isinstance(value, str | int | float | tuple) and bool(value == default))


def plain(value: Any) -> Any:
    """A value of a request for JSON. Raises InputError for pixels in memory."""
    if isinstance(value, Image | Clip):
        said = {one.name: getattr(value, one.name) for one in fields(value)}  # type: ignore[arg-type]
        return {name: plain(each) for name, each in said.items()}
    if isinstance(value, tuple | list):
        return [plain(each) for each in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | int | float | bool | dict):
        return value
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(rows := getattr(value, "tolist", lambda: None)(), list) and getattr(value, "ndim", 0) == 2:
        return rows  # of a matrix, which is an array or a tensor
    raise InputError(f"A {type(value).__name__} in memory cannot be written: save it and give its path.")
