"""A schedule's text is its matrix, and a wrong text is one sentence."""

from __future__ import annotations

import pytest

from pusa.core import schedules, sigmas
from pusa.core.timesteps import TimestepMatrix
from pusa.errors import InputError
from pusa.generation.schedule import SCHEDULES, Schedule

GRID = sigmas.grid(4)
MATRICES: dict[str, TimestepMatrix] = {
    "synchronous": schedules.synchronous(GRID, 5),
    "staircase": schedules.staircase(GRID, 5),
    "staircase,block=2,delay=3": schedules.staircase(GRID, 5, block=2, delay=3),
    "chunked,block=2": schedules.chunked(GRID, 5, block=2),
    "chunked,block=2,context=1": schedules.chunked(GRID, 5, block=2, context=1),
    "sliding-window,window=4,block=2,context=1": schedules.sliding_window(GRID, 5, window=4, block=2, context=1),
    "in-context,given=1,buffers=2": schedules.in_context(GRID, 1, 2, 2),
    "in-context,given=1,buffers=2,release=false": schedules.in_context(GRID, 1, 2, 2, release=False),
    "staircase,block=2,renoise": schedules.renoising(schedules.staircase(GRID, 5, block=2)),
}


@pytest.mark.parametrize("text", MATRICES)
def test_the_text_is_the_matrix(text: str) -> None:
    assert Schedule.parse(text).matrix(GRID, 5) == MATRICES[text]
    assert str(Schedule.parse(text)) == text


def test_every_schedule_is_tried() -> None:
    assert {text.partition(",")[0] for text in MATRICES} == set(SCHEDULES)


def test_spaces_and_underscores() -> None:
    assert str(Schedule.parse("sliding_window, window=4 , block=2")) == "sliding-window,window=4,block=2"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("stairs", "'stairs' is unknown: did you mean 'staircase'"),
        ("", "choose synchronous, staircase"),
        ("staircase,blok=3", "unknown key 'blok': staircase takes block, delay, renoise"),
        ("staircase,block", "block=true: give a number"),
        ("staircase,block=-1", "block=-1: give a number"),
        ("staircase,block=1,block=2", "gives block twice"),
        ("chunked", "needs block: write for example chunked,block=3"),
        ("in-context,given=1", "needs buffers"),
        ("staircase,renoise=yes", "renoise=yes: give true or false"),
    ],
)
def test_a_wrong_text_is_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Schedule.parse(text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("in-context,given=4,buffers=2", "give at least 1 target"),
        ("sliding-window,window=3,block=2", "make the window a multiple of the block"),
        ("staircase,block=0", "block is 0; give at least 1"),
    ],
)
def test_what_does_not_fit_the_clip(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Schedule.parse(text).matrix(GRID, 5)
