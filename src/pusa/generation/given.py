"""What the user gives for some frames of a clip: a picture, or a part of a video, at its place and with its noise.

These are plain data. `conditions.py` opens and encodes them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from pusa.errors import InputError
from pusa.generation.options import Option, strict_dataclass

Encoding = Literal["single", "repeat"]
Place = int | str
Picture = Any
"""of `conditions`: a path, a PIL picture, or uint8 [H, W, 3]"""


def listed(value: Any) -> Any:
    """A list as a tuple; anything else as it is."""
    return tuple(value) if isinstance(value, list) else value


def _place(value: Any) -> Any:
    if isinstance(value, bool) or not re.fullmatch(r"-?\d+|(\d+\.?\d*|\.\d+)s", str(value).strip()):
        raise InputError(f"{value!r} is not a frame: give a number, -1 for the last, or a time such as '1.5s'.")
    return value


Rate = Literal["model", "file"]
Source = Annotated[Any, Option("A path.", schema={"type": "string"})]
Noise = Annotated[float, Ge(0), Le(1)]
_FRAME = Option("", "give a pixel frame, or a time such as 1.5s", convert=_place)
_NOISE = "give a number from 0 to 1; 0 keeps it exactly, 1 ignores it"


@strict_dataclass
class Image:
    """A picture at a pixel frame of the clip.

    Attributes:
        src: a path, a PIL picture, or uint8 [H, W, 3].
        frame: a pixel frame, -1 for the last one, or a time such as "1.5s".
        noise: the noise multiplier in [0, 1]: 0 keeps the picture exactly, 1 ignores it.
        encoding: how the picture fills a latent frame that stands for several pixel frames. "single" encodes it alone,
            as the official code does; "repeat" encodes a still clip of it; None is "repeat". At frame 0 both are equal.
    """

    src: Source
    frame: Annotated[Place, _FRAME] = 0
    noise: Annotated[Noise, Option("", _NOISE)] = 0.0
    encoding: Encoding | None = None
    type: Literal["image"] = field(default="image", kw_only=True, repr=False)

    def __repr__(self) -> str:
        return _short(self)


@strict_dataclass
class Clip:
    """A part of a video at a place in the clip.

    Attributes:
        src: a path (read at the model's frame rate), uint8 [N, H, W, 3] at that rate, or a generated clip.
        at: the pixel frame at which it begins, or a time. With a negative number it ends there: -1 ends with the last
            frame.
        frames: how many of its frames are used; None uses all from `start` on.
        noise: the noise multiplier in [0, 1], one number or one for each latent frame.
        start: its first frame that is used, negative from its end, or a time.
        rate: "model" reads a file at the model's frame rate; "file" takes every frame of the file, one after the other,
            as the official code does.
    """

    src: Source
    at: Annotated[Place, _FRAME] = 0
    frames: Annotated[int | None, Option("", "give a whole number of frames")] = None
    noise: Annotated[
        Noise | tuple[Noise, ...],
        Option("", "give a number from 0 to 1, or one for each latent frame; 0 keeps it exactly", convert=listed),
    ] = 0.0
    start: Annotated[Place, _FRAME] = 0
    rate: Annotated[Rate, Option("", 'give "model" or "file"')] = "model"
    type: Literal["clip"] = field(default="clip", kw_only=True, repr=False)

    def __post_init__(self) -> None:
        if self.rate == "file" and str(self.start).strip().endswith("s"):
            raise InputError(f"start={self.start} is a time, and with rate='file' frames are counted: give a frame.")

    def fps(self, model: float) -> float | None:
        """The frame rate at which a file is read, for a model of this rate; None for every frame of the file."""
        return model if self.rate == "model" else None

    def __repr__(self) -> str:
        return _short(self)


def frame_index(value: Place, count: int, fps: float, what: str) -> int:
    """The pixel frame that a number, a number from the end, or a time "1.5s" means in a clip of `count` frames."""
    text = str(_place(value)).strip()
    frame = round(float(text[:-1]) * fps) if text.endswith("s") else int(text)
    if not -count <= frame < count:
        span = f"0 to {count - 1}, -{count} to -1, or 0s to {(count - 1) / fps:g}s"
        raise InputError(f"{what}: frame {value} is outside the clip, which has {count} frames: {span}.")
    return frame % count


def claim(owners: dict[int, str], slots: Sequence[int], label: str, frames_of: Callable[[int], Sequence[int]]) -> None:
    """Enter the condition `label` as the owner of its latent frames. Raises InputError if one of them has an owner.

    owners: the labels so far, by latent frame. frames_of: the pixel frames of a latent frame.
    """
    for slot in slots:
        if slot in owners:
            held = frames_of(slot)
            span = f"frames {held[0]} to {held[-1]}" if len(held) > 1 else f"frame {held[0]}"
            raise InputError(
                f"{owners[slot]} and {label} fall into the same latent frame ({span}): keep one of them, or give a "
                "clip instead."
            )
        owners[slot] = label


def conditions(value: Any) -> tuple[Image | Clip, ...]:
    """Conditions from any sequence. Raises InputError for anything else.

    A path or a picture (PIL, or uint8 [H, W, 3]) becomes the first frame, and a dictionary a condition.
    """
    if isinstance(value, Image | Clip | str | Path):
        raise InputError(f"The conditions are {value!r}: give a list of conditions, [{value!r}].")
    if not isinstance(value, Sequence):
        raise InputError(f"The conditions are of type {type(value).__name__}: give a list of pusa.Image and pusa.Clip.")
    return tuple(_condition(each) for each in value)


def _condition(value: Any) -> Image | Clip:
    if isinstance(value, Image | Clip):
        return value
    if isinstance(value, Mapping):
        return condition(value)
    if isinstance(value, str | Path) or _is_picture(value):
        return Image(value)
    raise InputError(
        f"A condition is a pusa.Image, a pusa.Clip, a path or a picture, not of type {type(value).__name__}: give one."
    )


def _is_picture(value: Any) -> bool:
    """Whether a value is a PIL picture or an array of one. This imports neither PIL nor NumPy."""
    return any(kind.__module__.startswith("PIL.") for kind in type(value).__mro__) or getattr(value, "ndim", 0) == 3


def _short(value: Image | Clip) -> str:
    """`Image('cat.png', frame=-1)`: the source, and the fields that differ from their defaults."""
    src = value.src
    if isinstance(src, Path):
        src = str(src)
    shape = getattr(src, "shape", None) or getattr(src, "size", None)
    pixels = not isinstance(src, str) and isinstance(shape, tuple)
    shown = f"<{'x'.join(map(str, shape or ()))} pixels>" if pixels else repr(src)
    others = [one for one in fields(value) if one.name not in ("src", "type")]  # type: ignore[arg-type]
    said = [f"{one.name}={getattr(value, one.name)!r}" for one in others if getattr(value, one.name) != one.default]
    return f"{type(value).__name__}({', '.join([shown, *said])})"


def condition(record: Mapping[str, Any]) -> Image | Clip:
    """A condition from its dictionary; a sidecar names the source `path` and adds hashes of it."""
    kinds: dict[Any, type[Image | Clip]] = {"image": Image, "clip": Clip}
    if (kind := kinds.get(str(record.get("type")))) is None:
        raise InputError(f"The condition {record.get('src', record.get('path'))} needs a type: give image or clip.")
    values = {key: value for key, value in record.items() if not key.endswith("sha256")}
    if "path" in values:
        values["src"] = values.pop("path")
    return kind(**values)


def edited(value: Any) -> Any:
    """The clip to edit from its dictionary; a sidecar records its noise as one 0 for each latent frame."""
    if not isinstance(value, Mapping):
        return value
    values = {key: x for key, x in value.items() if key != "noise" or any([x] if isinstance(x, int | float) else x)}
    return condition({"type": "clip", **values})
