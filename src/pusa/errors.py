"""The exceptions of this project. Each message is one sentence: what is wrong, where, and what to do.

The command line prints the message without a traceback and exits with the `exit_code` of the class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class PusaError(Exception):
    """A failure that the user has to know about.

    summary: one sentence. details: further sentences, if several things are wrong or have failed; each is a line.
    """

    exit_code = 1

    def __init__(self, summary: str = "", details: Sequence[str] = ()) -> None:
        super().__init__(summary, *([tuple(details)] if details else []))
        self.summary, self.details = summary, tuple(details)

    def __str__(self) -> str:
        return "\n".join([self.summary, *self.details])


class InputError(PusaError, ValueError):
    """The user's input is wrong, or it names a place that cannot be written (a full disk, a read-only folder).

    The message says which input, why, and what is accepted instead.
    """

    exit_code = 2


class Cancelled(PusaError):
    """A callback requested a stop, or Ctrl-C stopped work that then ended in a consistent state."""

    exit_code = 130


class Adjustment(UserWarning):
    """Says what becomes of a source, or that a size or a length is far from the model's own."""


STOPS = (KeyboardInterrupt, SystemExit, GeneratorExit, Cancelled)
"""Exceptions that end a command; no work goes on after them."""


def sentence(error: BaseException) -> str:
    """What went wrong, for an exception of any class."""
    if isinstance(error, PusaError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{f': {error.filename}' if error.filename else ''}."
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory; use fewer --frames, a smaller --size, or close other programs."
    detail = f"{type(error).__name__}: {first_line(error)}" if str(error).strip() else type(error).__name__
    return f"{detail} (unexpected error: run the command again with --debug to see the traceback)."


def first_line(error: BaseException | None) -> str:
    """The first line of what a library says, without its full stop; the class of the exception if it says nothing."""
    return str(error).strip().partition("\n")[0].rstrip(". ") or type(error).__name__


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """If a library is missing in the block, raise an InputError that says how to install the extra that contains it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed: run `pip install 'pusa[{extra}]'`.") from error
