"""What people type, turned into values: `cat.png@8,noise=0.2`, `832x480`, `1.5s`, `style.safetensors:1.4`.

Nothing here reads a file or imports more than the standard library, so that a mistyped argument is answered at once,
before a model is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pusa.errors import InputError

if TYPE_CHECKING:
    from cyclopts import Token

FRAME = re.compile(r"-?\d+|\d+(?:\.\d*)?s|\.\d+s")
Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Source:
    """A file that conditions a clip.

    at: where it goes, a pixel frame (-1 is the last) or a time such as "1.5s". start, frames: which part of a video is
    used. noise: its noise multiplier. None where nothing was said.
    """

    path: Path
    at: str | None = None
    noise: float | None = None
    start: str | None = None
    frames: int | None = None

    @classmethod
    def parse(cls, text: str, flag: str, *, keys: Sequence[str] = ("noise",)) -> Source:
        """Read `PATH[@FRAME][,key=value ...]`; a file whose own name looks like that is taken as a plain path."""
        if Path(text).is_file():
            return cls(Path(text))
        name, *extras = text.split(",")
        if not name:
            raise InputError(f"{flag} {text!r}: the path is empty; name a file.")
        while extras and not re.match(r"\w+=", extras[0]):
            name += "," + extras.pop(0)
        path, at = _split_place(name, flag)
        values: dict[str, str] = {}
        for extra in extras:
            key, _, value = extra.partition("=")
            if key not in keys:
                known = " or ".join(f"{word}=" for word in keys)
                raise InputError(f"{flag} {text}: there is no {key!r} here; after the comma comes {known}.")
            values[key] = value
        where = f"{flag} {text}"
        return cls(
            path,
            at,
            noise=multiplier(values["noise"], where) if "noise" in values else None,
            start=place(values["start"], where) if "start" in values else None,
            frames=_count(values["frames"], where) if "frames" in values else None,
        )


def _split_place(name: str, flag: str) -> tuple[Path, str | None]:
    path, at, frame = name.rpartition("@")
    if at and path and (FRAME.fullmatch(frame) or not Path(name).is_file()):
        return Path(path), place(frame, f"{flag} {name}")
    path, colon, frame = name.rpartition(":")
    if colon and path and FRAME.fullmatch(frame):
        return Path(path), frame
    return Path(name), None


def place(text: str, flag: str) -> str:
    """A place in a clip, checked: a pixel frame, negative from the end, or a time."""
    if not FRAME.fullmatch(text):
        raise InputError(
            f"{flag}: {text!r} is no place in a clip; give a pixel frame such as 8, -1 for the last one, or a time "
            "such as 1.5s."
        )
    return text


def _count(text: str, flag: str) -> int:
    if not re.fullmatch(r"\d+", text):
        raise InputError(f"{flag}: {text!r} is no number of frames; write for example frames=9.")
    return int(text)


def whole(_: object, tokens: Sequence[Token]) -> int:
    """The converter of every option that counts: 16 is read, 16.5 is not rounded to it."""
    text = tokens[0].value
    if not re.fullmatch(r"[-+]?\d{1,99}", text):
        raise InputError(f"{text[:99]!r} is no whole number that can be used; write for example 9.")
    return int(text)


def path(_: object, tokens: Sequence[Token]) -> Path:
    """The converter of every option and argument that is a path: an empty one is not the folder we are in."""
    if not tokens[0].value:
        raise InputError("'' is an empty path; name a file or a folder.")
    return Path(tokens[0].value)


def number(text: str, flag: str, what: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise InputError(f"{flag}: {text!r} is no {what}; give a number.")
    return value


def multiplier(text: str, flag: str) -> float:
    """A noise multiplier in [0, 1]."""
    value = number(text, flag, "noise multiplier")
    if not 0 <= value <= 1:
        raise InputError(f"{flag}: noise {text} is outside 0 to 1; 0 keeps the picture exactly, 1 ignores it.")
    return value


def size(text: str, flag: str = "--size") -> tuple[int, int]:
    """`WxH` in pixels."""
    match = re.fullmatch(r"(\d+)\s*[x×*X]\s*(\d+)", text.strip())
    if not match:
        raise InputError(f"{flag}: {text!r} is no size; write WIDTHxHEIGHT in pixels, for example 832x480.")
    return int(match[1]), int(match[2])


def listed(text: str, flag: str, read: Callable[[str], Number]) -> list[Number]:
    """A comma list such as `0,20`, as the official scripts take it; brackets and spaces may surround it."""
    words = text.strip("[]() ").replace(",", " ").split()
    try:
        return [read(word) for word in words]
    except ValueError:
        raise InputError(f"{flag}: {text!r} is no list of numbers; write for example {flag} 0,20.") from None


def lora(text: str, scale: float, flag: str = "--lora") -> tuple[Path, float]:
    """`PATH[:scale]`; without a scale of its own, or when a file has this whole name, the file takes `scale`.

    What follows the last colon is no scale when it has a slash (C:/style.safetensors) or a suffix (a:b.safetensors).
    """
    file, colon, own = text.rpartition(":")
    if not text:
        raise InputError(f"{flag}: the path is empty; name a file.")
    if not colon or not file or re.search(r"[/\\]|\.[A-Za-z]\w*$", own) or Path(text).exists():
        return Path(text), scale
    return Path(file), number(own, f"The scale of {flag} {text}", "finite number")


def slug(prompt: str, length: int = 60) -> str:
    """A file name's worth of a prompt: its words, lower case, joined by hyphens."""
    words = re.sub(r"[\W_]+", "-", prompt.lower()).strip("-") or "clip"
    return words if len(words) <= length else words[:length].rsplit("-", 1)[0]


def default_name(prompt: str, seed: int, frames: int, size: Sequence[int]) -> str:
    """`<prompt>_<seed>_<WxHxF>`."""
    return f"{slug(prompt)}_{seed}_{size[0]}x{size[1]}x{frames}"
