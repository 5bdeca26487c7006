"""How often something happens in a training: every so many steps, or every so many epochs."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

_EPOCHS = re.compile(r"(?:(\d+) ?)?epochs?")


def _at_least(least: int, value: int | str) -> int | str:
    epochs = _EPOCHS.fullmatch(value) if isinstance(value, str) else None
    number = value if isinstance(value, int) else int(epochs[1] or 1) if epochs else -1
    if number < max(least, int(epochs is not None)):
        raise ValueError(
            f"is {value!r}; give a number of steps of at least {least}, epoch, or a number such as 2 epochs"
        )
    return value


Interval = Annotated[int | str, AfterValidator(lambda value: _at_least(1, value))]
"""A number of steps, or "epoch", "2 epochs" and so on."""
IntervalOrNever = Annotated[int | str, AfterValidator(lambda value: _at_least(0, value))]
"""The same, or 0 for never."""


def is_due(every: int | str, step: int, *, clips: int, samples: int) -> bool:
    """Return whether an interval ends with `step` (the number of finished steps, at least 1).

    clips: samples of one step in all processes. samples: those of an epoch. An epoch ends with the step in which its
    last sample is used.
    """
    if isinstance(every, int):
        return every > 0 and step % every == 0
    epochs = _EPOCHS.fullmatch(every)
    assert epochs
    period = int(epochs[1] or 1) * samples
    return step * clips // period > (step - 1) * clips // period
