"""The exceptions of this project. Each message is one sentence: what is wrong, where, and what to do.

The command line prints the message without a traceback and exits with the `exit_code` of the class.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class PusaError(Exception):
    """A failure that the user has to know about."""

    exit_code = 1


class InputError(PusaError, ValueError):
    """The user's input is wrong, or it names a place that cannot be written (a full disk, a read-only folder).

    The message says which input, why, and what is accepted instead.
    """

    exit_code = 2


class Cancelled(PusaError):
    """A callback requested a stop, or Ctrl-C stopped work that then ended in a consistent state."""

    exit_code = 130


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """If a library is missing in the block, raise an InputError that says how to install the extra that contains it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed: run `pip install 'pusa[{extra}]'`.") from error
