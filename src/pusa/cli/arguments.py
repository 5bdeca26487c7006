"""What people type, turned into values: `cat.png@8,noise=0.2`, `832x480`, `1.5s`, `style.safetensors:1.4`.

Nothing here reads a file or imports more than the standard library, so that a mistyped argument is answered at once,
before a model is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pusa.errors import InputError

FRAME = re.compile(r"-?\d+|\d+(?:\.\d*)?s|\.\d+s")
Number = TypeVar("Number", int, float)
PART = re.compile(r"(-?\d*):(-?\d*)")


@dataclass(frozen=True)
class Position:
    """A place in a clip: a pixel frame (negative counts from the end, −1 is the last) or a time in seconds."""

    text: str

    @classmethod
    def parse(cls, text: str, flag: str) -> Position:
        if not FRAME.fullmatch(text):
            raise InputError(
                f"{flag}: {text!r} is no place in a clip; give a pixel frame such as 8, -1 for the last one, "
                "or a time such as 1.5s."
            )
        return cls(text)

    def frame(self, fps: float) -> int:
        """The pixel frame, still negative when counted from the end."""
        return round(float(self.text[:-1]) * fps) if self.text.endswith("s") else int(self.text)


@dataclass(frozen=True)
class Source:
    """A file that conditions a clip: where it goes, which part of it is used, how noisy it stays."""

    path: Path
    position: Position | None = None
    noise: float | None = None
    part: slice | None = None

    @classmethod
    def parse(cls, text: str, flag: str, *, keys: Sequence[str] = ("noise",)) -> Source:
        """Read `PATH[@FRAME][,key=value …]`; a file whose own name looks like that is taken as a plain path."""
        if Path(text).is_file():
            return cls(Path(text))
        name, *extras = text.split(",")
        while extras and not re.match(r"(\w+)=", extras[0]):
            name += "," + extras.pop(0)
        path, position = _split_position(name, flag)
        values: dict[str, str] = {}
        for extra in extras:
            key, _, value = extra.partition("=")
            if key not in keys:
                raise InputError(f"{flag} {text}: there is no {key!r} here; after the comma comes {_either(keys)}.")
            values[key] = value
        return cls(
            path,
            position,
            noise=multiplier(values["noise"], flag) if "noise" in values else None,
            part=_part(values["frames"], flag) if "frames" in values else None,
        )


def _split_position(name: str, flag: str) -> tuple[Path, Position | None]:
    if "@" in name:
        path, _, place = name.rpartition("@")
        if path and (FRAME.fullmatch(place) or not Path(name).is_file()):
            return Path(path), Position.parse(place, f"{flag} {name}")
    path, colon, place = name.rpartition(":")
    if colon and path and FRAME.fullmatch(place):
        return Path(path), Position(place)
    return Path(name), None


def _either(words: Sequence[str]) -> str:
    return " or ".join(f"{word}=" for word in words)


def _part(text: str, flag: str) -> slice:
    match = PART.fullmatch(text)
    if not match or text == ":":
        raise InputError(
            f"{flag}: frames={text} is no part of a clip; write frames=0:9 for its first nine frames or frames=-8: "
            "for its last eight."
        )
    start, stop = (int(value) if value else None for value in match.groups())
    return slice(start, stop)


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


def lora(text: str, scale: float) -> tuple[Path, float]:
    """`PATH[:scale]`; without a scale of its own the file takes `scale`."""
    path, colon, own = text.rpartition(":")
    if colon and path and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)", own):
        return Path(path), number(own, f"--lora {text}", "scale")
    return Path(text), scale


def slug(prompt: str, length: int = 60) -> str:
    """A file name's worth of a prompt: its words, lower case, joined by hyphens."""
    words = re.sub(r"[\W_]+", "-", prompt.lower()).strip("-") or "clip"
    return words if len(words) <= length else words[:length].rsplit("-", 1)[0]
