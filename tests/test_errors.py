"""Every exception becomes a sentence, and several sentences stay apart."""

from __future__ import annotations

import pickle

import pytest

from pusa.errors import InputError, PusaError, first_line, sentence


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (InputError("steps is 0: give 1."), "steps is 0: give 1."),
        (ValueError("first.\nsecond"), "ValueError: first (unexpected error"),
        (ValueError(), "ValueError (unexpected error"),
        (KeyError("x"), "KeyError: 'x' (unexpected error"),
        (MemoryError(), "out of memory; use fewer"),
        (FileNotFoundError(2, "No such file or directory", "a.png"), "No such file or directory: a.png."),
    ],
)
def test_an_exception_of_any_class_is_a_sentence(error: BaseException, says: str) -> None:
    assert sentence(error).startswith(says)
    assert "\n" not in sentence(error)


def test_an_error_without_a_text_is_its_class() -> None:
    assert first_line(ValueError()) == "ValueError"
    assert first_line(ValueError("one.\ntwo")) == "one"


def test_details_survive_another_process() -> None:
    error = pickle.loads(pickle.dumps(PusaError("2 of 3 failed", ["a: one", "b: two"])))
    assert (error.summary, error.details) == ("2 of 3 failed", ("a: one", "b: two"))
    assert str(error) == "2 of 3 failed\na: one\nb: two"
