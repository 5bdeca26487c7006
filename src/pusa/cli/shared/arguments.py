"""Parse command-line arguments: `cat.png@8,noise=0.2`, `832x480`, `1.5s`, `style.safetensors:1.4`.

This module reads no file and imports only the standard library. So a mistyped argument fails at once, before a model is
loaded. Every function raises InputError for a text that it cannot parse.
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

    at: its place in the clip: a pixel frame (-1 is the last) or a time such as "1.5s". start: the first frame of a
    video that is used: a pixel frame or a time. frames: how many frames of the video are used. noise: the noise
    multiplier in [0, 1]. A value is None if the argument does not give it.
    """

    path: Path
    at: str | None = None
    noise: float | None = None
    start: str | None = None
    frames: int | None = None

    @classmethod
    def parse(cls, text: str, flag: str, *, keys: Sequence[str] = ("noise",)) -> Source:
        """Parse `PATH[@FRAME][,key=value ...]`. If a file has this whole text as its name, the text is a path."""
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
                raise InputError(f"{flag} {text}: {key!r} is not a key of this option; write {known} after the comma.")
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
    """Check and return a place in a clip: a pixel frame, which counts from the end if it is negative, or a time."""
    if not FRAME.fullmatch(text):
        raise InputError(
            f"{flag}: {text!r} is not a place in a clip; give a pixel frame such as 8, -1 for the last one, or a time "
            "such as 1.5s."
        )
    return text


def _count(text: str, flag: str) -> int:
    if not re.fullmatch(r"\d+", text):
        raise InputError(f"{flag}: {text!r} is not a number of frames; write for example frames=9.")
    return int(text)


def whole(_: object, tokens: Sequence[Token]) -> int:
    """Convert the value of an option that takes a whole number. A fraction such as 16.5 is an error, not rounded."""
    text = tokens[0].value
    if not re.fullmatch(r"[-+]?\d{1,99}", text):
        raise InputError(f"{text[:99]!r} is not a whole number; write for example 9.")
    return int(text)


def factor(_: object, tokens: Sequence[Token]) -> float:
    """Convert the value of an option that takes a factor: 2 or 2x."""
    text = tokens[0].value
    try:
        value = float(text.lower().removesuffix("x"))
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise InputError(f"{text!r} is not a factor; write for example 2.")
    return value


def path(_: object, tokens: Sequence[Token]) -> Path:
    """Convert the value of an option that takes a path. An empty path is an error, not the current folder."""
    if not tokens[0].value:
        raise InputError("'' is an empty path; name a file or a folder.")
    return Path(tokens[0].value)


def number(text: str, flag: str, what: str) -> float:
    """Parse a finite number. what: the kind of number, for the error message."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise InputError(f"{flag}: {text!r} is not a {what}; give a number.")
    return value


def multiplier(text: str, flag: str) -> float:
    """Parse a noise multiplier in [0, 1]."""
    value = number(text, flag, "noise multiplier")
    if not 0 <= value <= 1:
        raise InputError(f"{flag}: noise {text} is outside 0 to 1; 0 keeps the picture exactly, 1 ignores it.")
    return value


def size(text: str, flag: str = "--size") -> tuple[int, int]:
    """Parse `WxH` into (width, height) in pixels."""
    match = re.fullmatch(r"(\d+)\s*[x×*X]\s*(\d+)", text.strip())
    if not match:
        raise InputError(f"{flag}: {text!r} is not a size; write WIDTHxHEIGHT in pixels, for example 832x480.")
    return int(match[1]), int(match[2])


def number_list(text: str, flag: str, read: Callable[[str], Number]) -> list[Number]:
    """Parse a list such as `0,20`, as the official scripts take it; brackets and spaces are allowed."""
    words = text.strip("[]() ").replace(",", " ").split()
    try:
        return [read(word) for word in words]
    except ValueError:
        raise InputError(f"{flag}: {text!r} is not a list of numbers; write for example {flag} 0,20.") from None


def lora(text: str, scale: float, flag: str = "--lora") -> tuple[Path, float]:
    """Parse `PATH[:SCALE]` into the path and its scale. The default is `scale`.

    If a file has this whole text as its name, the text is a path. The text after the last colon is part of the path if
    it contains a slash (C:/style.safetensors) or ends in a suffix (a:b.safetensors).
    """
    file, colon, own = text.rpartition(":")
    if not text:
        raise InputError(f"{flag}: the path is empty; name a file.")
    if not colon or not file or re.search(r"[/\\]|\.[A-Za-z]\w*$", own) or Path(text).exists():
        return Path(text), scale
    return Path(file), number(own, f"The scale of {flag} {text}", "finite number")


def slug(prompt: str, length: int = 60) -> str:
    """Return a file name for a prompt: its words in lower case, joined by hyphens, at most `length` characters."""
    words = re.sub(r"[\W_]+", "-", prompt.lower()).strip("-") or "clip"
    return words if len(words) <= length else words[:length].rsplit("-", 1)[0]


def default_name(prompt: str, seed: int, frames: int, size: Sequence[int]) -> tuple[str, str]:
    """Return the default name of a clip without its suffix, as its stem and its end: `<prompt>`, `_<seed>_<WxHxF>`."""
    return slug(prompt), f"_{seed}_{size[0]}x{size[1]}x{frames}"


def extension_name(clip: Path, seed: int, *, backward: bool) -> tuple[str, str]:
    """Return the default name of an extension without its suffix, as its stem and its end."""
    return clip.stem, f"_{'preceded' if backward else 'extended'}_{seed}"


def transition_name(a: Path, b: Path, seed: int) -> tuple[str, str]:
    """Return the default name of a transition without its suffix, as its stem and its end."""
    return f"{a.stem}_to_{b.stem}", f"_{seed}"
