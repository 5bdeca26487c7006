"""What a model cannot be asked for is refused in a sentence, from its configurations, as it is with its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import pusa
from pusa.errors import InputError
from pusa.generation.limits import Limits
from pusa.generation.pipeline import Pipeline


@pytest.fixture(scope="module")
def limits(tiny_folder: Path) -> Limits:
    return Limits.of(str(tiny_folder), tiny_folder, {})


def test_configurations_tell_what_the_loaded_model_does(limits: Limits, tiny_pipe: Pipeline) -> None:
    assert limits == tiny_pipe.limits


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"frames": 5.0}, "frames is 5.0: give a whole number"),
        ({"frames": 4101}, "4,101 frames are too many: .* make at most"),
        ({"frames": 6}, "6 frames cannot be made"),
        ({"steps": "2"}, "steps is '2': give a whole number"),
        ({"steps": 0}, "steps"),
        ({"size": "32x32"}, "size is '32x32': give"),
        ({"size": (32.0, 32)}, "size is 32.0"),
        ({"size": (40, 32)}, "multiples of 16, as in 32x32"),
        ({"size": (1 << 20, 32)}, "1048576x32 is too large: .* sides of at most"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"guidance": "3"}, "guidance is '3': give a finite number"),
        ({"guidance_2": 3.0}, "one transformer, .* and a preset that sets it"),
        ({"shift": "5"}, "shift is '5'"),
        ({"solver": "heun"}, "solver 'heun' is unknown"),
    ],
)
def test_wishes_that_cannot_be_met(limits: Limits, wish: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        limits.settings(**wish)


def test_the_longest_and_largest_clip_is_allowed(limits: Limits) -> None:
    frames, side = 4 * (limits.positions - 1) + 1, limits.positions * limits.geometry.multiple
    assert limits.settings(frames=frames, size=(side, side)).frames == frames


def test_arguments_of_the_wrong_kind(tiny_pipe: Pipeline, tmp_path: Path) -> None:
    for seed in (1.5, -1, True, 2**63):
        with pytest.raises(InputError, match="give a whole number from 0 to"):
            tiny_pipe.generate("a", seed=seed)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="give a list of conditions"):
        tiny_pipe.generate("a", pusa.Image(tmp_path / "a.png"))  # type: ignore[call-overload]
    with pytest.raises(InputError, match="give a name, a path or a hub id"):
        pusa.load(None)  # type: ignore[arg-type]
