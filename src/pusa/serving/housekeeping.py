"""What a server does beside its work: it shows that it lives, and removes what is not to be kept.

That is what expired, what exceeds the disk quota, and what was deleted.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

from sqlalchemy.exc import SQLAlchemyError

from pusa.serving.folders import Folders
from pusa.serving.liveness import PACE as BEAT
from pusa.serving.liveness import Presence
from pusa.serving.store import Store, Video
from pusa.serving.tables import reason

log = logging.getLogger("pusa.serving.housekeeping")
PACE = 10.0
"""seconds between two rounds"""
UNREAD = 600.0
"""A video of which a file was sent in the last so many seconds is not removed for the quota."""


class Housekeeping:
    """A thread of the server. quota: bytes of finished videos; None is no limit. presence: of the server."""

    def __init__(self, store: Store, folders: Folders, quota: int | None, presence: Presence) -> None:
        self.store, self.folders, self.quota, self.presence = store, folders, quota, presence
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after this round."""
        self._stopping.set()
        self._thread.join()

    def round(self) -> None:
        """Remove everything that is over now. Several servers may do this at once."""
        self._delete(self.store.expired())
        if self.quota is not None:
            self._delete(self.store.over_quota(self.quota, UNREAD))
        gone = [row.id for row in self.store.forgotten()]
        for video in gone:
            self.folders.remove(video)
        self.store.remove(gone)
        self.folders.sweep(self.store.ids())

    def _delete(self, rows: Iterable[Video]) -> None:
        for row in rows:
            log.info("%s is removed", row.id)
            self.store.delete(row)

    def _run(self) -> None:
        rounds = 0
        while not self._stopping.wait(BEAT):
            try:
                self.presence.beat()
                rounds += 1
                if rounds * BEAT % PACE < BEAT:
                    self.round()
            except (SQLAlchemyError, OSError) as error:
                log.warning("housekeeping: %s", reason(error))
