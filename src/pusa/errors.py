"""One family of exceptions, each saying in one sentence what is wrong, where, and what to do.

Messages are written for the person at the keyboard: the command line prints them bare, without a traceback, and exits
with the `exit_code` of the class.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class PusaError(Exception):
    """Something failed that the user may need to know about."""

    exit_code = 1


class InputError(PusaError, ValueError):
    """What the user gave is wrong, or names a place that cannot be written (a full disk, a read-only folder).

    The message says which thing, why, and what would be accepted.
    """

    exit_code = 2


class Cancelled(PusaError):
    """A callback asked to stop, or Ctrl-C did where work was first brought to a good end."""

    exit_code = 130


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """For the block, a library that is not installed is a sentence that says how to install the extra it belongs to."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed: run `pip install 'pusa[{extra}]'`.") from error
