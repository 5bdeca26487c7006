"""API keys: a file that is read again when it changes, so that keys are added and revoked without a restart.

Each line is a name and a key. The name owns the videos, so that a key can be replaced and its videos stay.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
from contextlib import suppress
from pathlib import Path

from pusa.errors import InputError
from pusa.files import existing_file, lines_of, read_text

log = logging.getLogger("pusa.serving.api_keys")
NOBODY = "everyone"
"""the owner of all videos on a server without keys"""
SHORTEST = 16
"""characters of a key"""


class ApiKeys:
    """The keys in a file; None: there are no keys, and everybody is `NOBODY`."""

    def __init__(self, file: Path | None) -> None:
        self.file = None if file is None else existing_file(file)
        self._read_at: tuple[int, int] | None = None
        self._keys: list[tuple[str, bytes]] = []
        self.needed = self.file is not None
        if self.file is not None:
            self._keys, self._read_at = read(self.file), self._stamp()

    def owner(self, key: str | None) -> str | None:
        """The name of a key; None if it is not valid. Every key is compared, so that the time tells nothing."""
        if self.file is None:
            return NOBODY
        self._refresh()
        given, found = _digest(key or ""), None
        for name, digest in self._keys:
            if hmac.compare_digest(given, digest):
                found = name
        return found

    def _stamp(self) -> tuple[int, int] | None:
        assert self.file is not None
        with suppress(OSError):
            about = os.stat(self.file)
            return about.st_mtime_ns, about.st_size
        return None

    def _refresh(self) -> None:
        """Read the file again if it has changed. Without it no key is valid; a wrong file leaves the former keys."""
        assert self.file is not None
        if (stamp := self._stamp()) == self._read_at:
            return
        self._read_at = stamp
        if stamp is None:
            self._keys = []
            log.error("%s is gone, so no API key is valid", self.file)
            return
        try:
            self._keys = read(self.file)
            log.info("%s was read again", self.file)
        except InputError as error:
            log.error("the former API keys stay: %s", error)


def read(file: Path) -> list[tuple[str, bytes]]:
    """(name, hash of the key) of each line. Raises InputError for a line that is no name and key."""
    found = []
    for number, line in enumerate(lines_of(read_text(file)), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or len(words[1]) < SHORTEST:
            raise InputError(
                f"{file}, line {number}: give a name and a key of at least {SHORTEST} characters, such as one that "
                "`openssl rand -hex 24` prints."
            )
        found.append((words[0], _digest(words[1])))
    if not found:
        raise InputError(f"{file} has no keys: write a name and a key on each line.")
    return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
