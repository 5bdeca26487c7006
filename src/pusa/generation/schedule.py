"""Schedules by name: `staircase,block=3,delay=5` is the matrix that `pusa.core.schedules.staircase` builds.

A schedule says how the frames of a clip descend before conditions scale their columns. One text names it everywhere:
on the command line, in a batch file, in a sidecar and in Python. Parsing needs no torch, so that a wrong text is
refused at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pusa.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from pusa.core.timesteps import TimestepMatrix

DEFAULT = "synchronous"
RENOISE = "renoise"
SCHEDULES: Mapping[str, tuple[str, ...]] = {
    "synchronous": (),
    "staircase": ("block", "delay"),
    "chunked": ("block", "context"),
    "sliding-window": ("window", "block", "context"),
    "in-context": ("given", "buffers", "release"),
}
"""The parameters of each schedule, in the order of its function in `pusa.core.schedules`."""
_NEEDED = {"chunked": ("block",), "sliding-window": ("window",), "in-context": ("given", "buffers")}
_EXAMPLE = {
    "chunked": "chunked,block=3",
    "sliding-window": "sliding-window,window=6,block=3",
    "in-context": "in-context,given=1,buffers=2",
}


@dataclass(frozen=True)
class Schedule:
    """A named schedule and its parameters.

    renoise: every step predicts the clean clip and adds fresh noise, as few-step distilled models need it.
    """

    name: str
    parameters: Mapping[str, int | bool]
    renoise: bool = False

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Read `NAME[,key=value ...]`. Raises InputError for an unknown name, key or value."""
        name, *extras = (part.strip() for part in text.split(","))
        name = name.replace("_", "-")
        if name not in SCHEDULES:
            near = difflib.get_close_matches(name, SCHEDULES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose {', '.join(SCHEDULES)}."
            raise InputError(f"The schedule {name!r} is unknown: {hint}")
        known, found = (*SCHEDULES[name], RENOISE), {}
        for extra in extras:
            key, equals, value = (part.strip() for part in extra.partition("="))
            if key not in known:
                raise InputError(f"The schedule {text!r} has the unknown key {key!r}: {name} takes {', '.join(known)}.")
            if key in found:
                raise InputError(f"The schedule {text!r} gives {key} twice: keep one.")
            found[key] = _value(text, key, value if equals else "true")
        if missing := [key for key in _NEEDED.get(name, ()) if key not in found]:
            raise InputError(f"The schedule {text!r} needs {missing[0]}: write for example {_EXAMPLE[name]}.")
        renoise = bool(found.pop(RENOISE, False))
        return cls(name, found, renoise)

    def matrix(self, sigmas: Tensor, frames: int) -> TimestepMatrix:
        """The matrix of `frames` latent frames that descend through `sigmas` [S + 1].

        Raises InputError when the parameters do not fit the number of frames.
        """
        from pusa.core import schedules

        values: dict[str, Any] = dict(self.parameters)
        if self.name == "in-context":
            targets = frames - values["given"] - values["buffers"]
            built = schedules.in_context(sigmas, targets=targets, **values)
        else:
            built = getattr(schedules, self.name.replace("-", "_"))(sigmas, frames, **values)
        return schedules.renoising(built) if self.renoise else built

    def __str__(self) -> str:
        keys = [f"{key}={str(value).lower()}" for key, value in self.parameters.items()]
        return ",".join([self.name, *keys, *([RENOISE] if self.renoise else [])])


def _value(text: str, key: str, value: str) -> int | bool:
    if key in (RENOISE, "release"):
        if value not in ("true", "false"):
            raise InputError(f"The schedule {text!r} has {key}={value}: give true or false.")
        return value == "true"
    if not value.isdecimal():
        raise InputError(f"The schedule {text!r} has {key}={value}: give a number of latent frames or steps.")
    return int(value)
