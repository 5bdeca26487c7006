"""Policies by name, as options write them: `steps,threshold=0.1`, or several that act together, joined by `+`.

Reading a text needs no torch, so that a wrong one is refused at once.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pusa.errors import InputError

if TYPE_CHECKING:
    from pusa.core.timesteps import TimestepMatrix

Shares = tuple[float | tuple[float, ...], ...]
"""of the tokens: one for all steps, or one for each step. A tuple stands for a step with one for each latent frame."""
Value = float | int | Shares


@dataclass(frozen=True)
class Key:
    """A parameter of a policy. read: from its text, raising ValueError. form: what an error message asks for."""

    default: Value
    read: Callable[[str], Value]
    form: str


def _real(least: float, most: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = float(text)
        if not (math.isfinite(value) and least <= value <= most):
            raise ValueError(text)
        return value

    return read


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _shares(text: str) -> Shares:
    share = _real(0, 1)

    def row(part: str) -> float | tuple[float, ...]:
        return tuple(map(share, part.split(":"))) if ":" in part else share(part)

    return tuple(map(row, text.split("/")))


_THRESHOLD = Key(0.1, _real(0, 100), "a number from 0, such as 0.1")
_FIRST = Key(0.2, _real(0, 1), "the share of the steps, 0 to 1, that are always computed at the start")
_EVERY = Key(4, _count, "a number of steps, at least 1")
POLICIES: Mapping[str, Mapping[str, Key]] = {
    "steps": {"threshold": _THRESHOLD, "first": _FIRST},
    "frames": {"threshold": _THRESHOLD, "first": _FIRST},
    "uniform": {"every": Key(2, _count, "a number of steps, at least 1"), "first": _FIRST},
    "held": {"every": _EVERY},
    "tokens": {
        "share": Key(
            (0.5,),
            _shares,
            "a share from 0 to 1, or one for each step, as in 1/0.6/0.4; a step may have one for each latent frame, as "
            "in 1/0.2:0.6:0.6",
        ),
    },
    "first-block": {"threshold": _THRESHOLD},
    "taylorseer": {"every": Key(3, _count, "a number of steps, at least 1")},
}
LIBRARY = ("first-block", "taylorseer")
"""those of diffusers"""
ALONE = ("tokens", *LIBRARY)
"""those that cannot be joined with others"""
_KEPT = {
    "steps": (2, 0),
    "frames": (1, 1),
    "uniform": (1, 0),
    "held": (0, 1),
    "tokens": (1, 1),
    "first-block": (2, 0),
    "taylorseer": (0, 4),
}
"""Hidden states that are kept for each guidance branch, and how many more for each block. TaylorSeer keeps the value
and the change of two layers."""


@dataclass(frozen=True)
class Acceleration:
    """Named policies with their parameters, in the order in which they were given."""

    parts: tuple[tuple[str, Mapping[str, Value]], ...]

    def check(self, steps: int, frames: int, matrix: TimestepMatrix | None = None) -> None:
        """Raise InputError if it cannot run on a clip of so many steps and latent frames.

        matrix: of the clip, unless all of its frames descend together.
        """
        for name, values in self.parts:
            if name == "tokens":
                _check_shares(values["share"], steps, frames)
        if not self.library or matrix is None:
            return
        for step, (row, moves) in enumerate(zip(matrix.model_sigma, matrix.moves, strict=True), 1):
            if len(set(row[moves].tolist())) > 1:
                raise InputError(
                    f"The acceleration {self.parts[0][0]} has one noise level for the clip, and step {step} moves "
                    "frames at different levels: use frames, steps or tokens."
                )

    @classmethod
    def parse(cls, text: str) -> Acceleration:
        """Read `NAME[,key=value ...][+NAME ...]`. Raises InputError for an unknown name, key or value."""
        parts = tuple(_part(text, part) for part in text.split("+"))
        names = [name for name, _ in parts]
        if len(parts) > 1 and (alone := next((name for name in names if name in ALONE), None)):
            raise InputError(f"The acceleration {text!r} joins {alone} with others: it runs alone.")
        if len(set(names)) < len(names):
            raise InputError(f"The acceleration {text!r} has a policy twice: keep one.")
        return cls(parts)

    @property
    def library(self) -> bool:
        """Whether it is a cache of diffusers."""
        return self.parts[0][0] in LIBRARY

    @property
    def kept_states(self) -> tuple[int, int]:
        """How many hidden states [n, D] are kept for each guidance branch, and how many more for each block."""
        fixed, for_each_block = zip(*(_KEPT[name] for name, _ in self.parts), strict=True)
        return sum(fixed), max(for_each_block)

    def __str__(self) -> str:
        texts = [[name, *(f"{key}={_written(value)}" for key, value in values.items())] for name, values in self.parts]
        return "+".join(map(",".join, texts))


def _check_shares(shares: Any, steps: int, frames: int) -> None:
    if len(shares) not in (1, steps):
        raise InputError(
            f"The acceleration has {len(shares)} shares of tokens, and the matrix has {steps} steps: give one share, "
            "or one for each step."
        )
    for step, share in enumerate(shares, 1):
        if isinstance(share, tuple) and len(share) != frames:
            raise InputError(
                f"The acceleration has {len(share)} shares of tokens in step {step}, and the clip has {frames} latent "
                "frames: give one share for the step, or one for each latent frame."
            )


def _part(text: str, part: str) -> tuple[str, Mapping[str, Value]]:
    name, *extras = (piece.strip() for piece in part.split(","))
    if not name:
        raise InputError(f"The acceleration {text!r} has an empty part: choose {', '.join(POLICIES)}.")
    if name not in POLICIES:
        near = difflib.get_close_matches(name, POLICIES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose {', '.join(POLICIES)}."
        raise InputError(f"The acceleration {name!r} is unknown: {hint}")
    known = POLICIES[name]
    values: dict[str, Value] = {key: one.default for key, one in known.items()}
    given: set[str] = set()
    for extra in extras:
        key, equals, written = (piece.strip() for piece in extra.partition("="))
        if key in known and not equals:
            raise InputError(f"The acceleration {text!r} has {key} without a value: write {key}=, {known[key].form}.")
        if key not in known:
            takes = ", ".join(f"{each}=…" for each in known)
            raise InputError(f"The acceleration {text!r} has the unknown part {extra!r}: {name} takes {takes}.")
        if key in given:
            raise InputError(f"The acceleration {text!r} gives {key} twice: keep one.")
        given.add(key)
        try:
            values[key] = known[key].read(written)
        except ValueError:
            raise InputError(f"The acceleration {text!r} has {key}={written}: give {known[key].form}.") from None
    return name, values


def _written(value: Any, between: str = "/") -> str:
    return between.join(_written(each, ":") for each in value) if isinstance(value, tuple) else f"{value:.12g}"
