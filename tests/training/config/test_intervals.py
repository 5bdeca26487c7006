"""Intervals of steps and epochs: what is written, and when one ends."""

from __future__ import annotations

import pytest

from pusa.errors import InputError
from pusa.training.config.intervals import is_due
from pusa.training.config.tree import Config, read


@pytest.mark.parametrize(("typed", "value"), [("7", 7), ("epoch", "epoch"), ("2 epochs", "2 epochs")])
def test_steps_and_epochs_are_typed_and_written(typed: str, value: int | str) -> None:
    names = {"save.every": typed, "validate.every": typed, "preview.every": typed}
    config = read(None, None, names)
    assert (config.save.every, config.validate_.every, config.preview.every) == (value,) * 3
    assert Config.model_validate(config.plain()) == config


@pytest.mark.parametrize("typed", ["0 epochs", "-1", "1.5", "two epochs", "steps", "null"])
def test_other_words_are_refused(typed: str) -> None:
    for name in ("save.every", "validate.every"):
        with pytest.raises(InputError, match=rf"{name}.*\(the command line\).*; give"):
            read(None, None, {name: typed})
    assert read(None, None, {"validate.every": "0"}).validate_.every == 0
    with pytest.raises(InputError, match=r"save.every \(the command line\) is 0; give a number of steps of at least 1"):
        read(None, None, {"save.every": "0"})


def test_an_epoch_ends_with_the_step_of_its_last_sample() -> None:
    def due(every: int | str, clips: int = 4, samples: int = 10, steps: int = 15) -> list[int]:
        return [step for step in range(1, steps + 1) if is_due(every, step, clips=clips, samples=samples)]

    assert due("epoch") == [3, 5, 8, 10, 13, 15]
    assert due("2 epochs") == [5, 10, 15]
    assert due(5) == [5, 10, 15]
    assert due(0) == []
    assert due("epoch", clips=10, samples=4) == list(range(1, 16)), "several epochs in a step are one interval"
