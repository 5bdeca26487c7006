"""The record of every video: made with its place in the queue, changed by one worker at a time, read by the API.

A worker may be thought dead and live, so each change of a worker names the worker, and counts only while the record
still names it. So no video is completed twice.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from pusa.serving.queue import Queue
from pusa.serving.tables import PREVIEWS, VIDEOS

Video = sa.Row[Any]
"""a row of `tables.VIDEOS`"""
DEATHS = 2
"""A video fails when this many workers have died alone while they made it."""
FALLS = 8
"""A video fails when so many servers died with the worker that made it, since it may bring the machine down."""
UNKNOWN = 5.0
"""seconds that a video is thought to take before one was made"""
ENDED = ("completed", "failed")


class Full(Exception):
    """The queue has no room. seconds: when to try again."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Conflict(Exception):
    """The idempotency key was used for another request."""


class Store:
    """The records, in the database of `engine`."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self.queue = Queue(engine)

    # ------------------------------------------------------------------------------------------------------ the API

    def add(self, values: Mapping[str, Any], most_waiting: int) -> tuple[Video, bool]:
        """Make a record and its place in the queue; return it, and whether it is new.

        With the idempotency key and the body of an earlier record, the earlier one is returned. Raises Conflict if the
        key was used for another body, and Full if `most_waiting` videos wait already.
        """
        try:
            with self.engine.begin() as connection:
                if connection.dialect.name == "postgresql":  # SQLite lets one transaction write at a time
                    connection.execute(sa.text("SELECT pg_advisory_xact_lock(7190317)"))
                connection.execute(sa.insert(VIDEOS).values(status="queued", deleted=False, **values))
                waiting = connection.execute(
                    sa.select(sa.func.count()).select_from(VIDEOS).where(_SHOWN, VIDEOS.c.status == "queued")
                ).scalar_one()
                if waiting > most_waiting:
                    raise Full(self.pace())
                self.queue.add(connection, values["id"])
        except IntegrityError:
            if (earlier := self.by_key(values["owner"], values["idempotency_key"])) is None:
                raise
            if earlier.body_hash != values["body_hash"]:
                raise Conflict from None
            return earlier, False
        video = self.get(values["id"], values["owner"])
        assert video is not None
        return video, True

    def get(self, video: str, owner: str | None) -> Video | None:
        """The record that this key may see. owner: the name of the key; None sees all."""
        mine = _SHOWN & (VIDEOS.c.id == video)
        if owner is not None:
            mine &= VIDEOS.c.owner == owner
        with self.engine.connect() as connection:
            return connection.execute(sa.select(VIDEOS).where(mine)).one_or_none()

    def by_key(self, owner: str, key: str | None) -> Video | None:
        """The record that was made with this idempotency key."""
        wanted = (VIDEOS.c.owner == owner) & (VIDEOS.c.idempotency_key == key)
        with self.engine.connect() as connection:
            return connection.execute(sa.select(VIDEOS).where(wanted)).one_or_none()

    def page(
        self, owner: str, after: int | None, limit: int, order: Literal["asc", "desc"]
    ) -> tuple[Sequence[Video], bool]:
        """Up to `limit` records behind the number `after`, and whether there are more."""
        wanted = _SHOWN & (VIDEOS.c.owner == owner)
        if after is not None:
            wanted &= VIDEOS.c.number > after if order == "asc" else VIDEOS.c.number < after
        by = VIDEOS.c.number.asc() if order == "asc" else VIDEOS.c.number.desc()
        with self.engine.connect() as connection:
            rows = connection.execute(sa.select(VIDEOS).where(wanted).order_by(by).limit(limit + 1)).all()
        return rows[:limit], len(rows) > limit

    def active(self, owner: str) -> Sequence[Video]:
        """The records of this key that wait or are in progress, in their order."""
        wanted = _SHOWN & (VIDEOS.c.owner == owner) & VIDEOS.c.status.in_(["queued", "in_progress"])
        with self.engine.connect() as connection:
            return connection.execute(sa.select(VIDEOS).where(wanted).order_by(VIDEOS.c.number)).all()

    def waiting(self) -> list[int]:
        """The numbers of all videos that wait, in their order."""
        wanted = _SHOWN & (VIDEOS.c.status == "queued")
        with self.engine.connect() as connection:
            return list(
                connection.execute(sa.select(VIDEOS.c.number).where(wanted).order_by(VIDEOS.c.number)).scalars()
            )

    def delete(self, video: Video) -> None:
        """Hide a record; a worker that makes it stops after its step. `forgotten` removes it."""
        with self.engine.begin() as connection:
            connection.execute(
                sa.update(VIDEOS).where(VIDEOS.c.id == video.id).values(deleted=True, idempotency_key=None)
            )
            connection.execute(sa.delete(PREVIEWS).where(PREVIEWS.c.video == video.id))
        if video.status == "queued":
            self.queue.cancel(video.id)

    def preview(self, video: str) -> tuple[int, bytes] | None:
        """(step, animated WebP) of the last preview of a video in progress."""
        with self.engine.connect() as connection:
            row = connection.execute(
                sa.select(PREVIEWS.c.step, PREVIEWS.c.image).where(PREVIEWS.c.video == video)
            ).one_or_none()
        return None if row is None else (row.step, bytes(row.image))

    def read(self, video: str) -> None:
        """Note that a file of a video is being sent."""
        with self.engine.begin() as connection:
            connection.execute(sa.update(VIDEOS).where(VIDEOS.c.id == video).values(read_at=time.time()))

    def counts(self) -> dict[str, int]:
        """How many videos have each status."""
        counted = sa.select(VIDEOS.c.status, sa.func.count()).where(_SHOWN).group_by(VIDEOS.c.status)
        with self.engine.connect() as connection:
            return dict(row._tuple() for row in connection.execute(counted))

    def pace(self) -> float:
        """Seconds that a video has taken, the median of the last ones; `UNKNOWN` if there is none."""
        last = sa.select(VIDEOS.c.started_at, VIDEOS.c.completed_at).where(VIDEOS.c.status == "completed")
        with self.engine.connect() as connection:
            rows = connection.execute(last.order_by(VIDEOS.c.number.desc()).limit(15)).all()
        taken = sorted(max(0.0, row.completed_at - row.started_at) for row in rows)
        return taken[len(taken) // 2] if taken else UNKNOWN

    def answers(self) -> bool:
        """Whether the database answers."""
        with suppress(sa.exc.SQLAlchemyError), self.engine.connect() as connection:
            return bool(connection.execute(sa.select(1)).scalar_one() == 1)
        return False

    # -------------------------------------------------------------------------------------------------- the workers

    def begin(self, video: str, worker: str) -> Video | None:
        """Take a video that waits; None if there is nothing to do for it, or if it fails because of its history."""
        with self.engine.begin() as connection:
            row = connection.execute(sa.select(VIDEOS).where(VIDEOS.c.id == video).with_for_update()).one_or_none()
            if row is None or row.deleted or row.status in ENDED:
                return None
            change: dict[str, Any] = {"worker": worker, "attempts": row.attempts + 1, "progress": 0, "step": 0}
            change |= {"status": "in_progress", "started_at": time.time(), "eta": None}
            if row.deaths >= DEATHS or row.falls >= FALLS:
                change = _failed("worker_died", _DIED if row.deaths >= DEATHS else _FELL)
            connection.execute(sa.update(VIDEOS).where(VIDEOS.c.id == video).values(**change))
            begun = connection.execute(sa.select(VIDEOS).where(VIDEOS.c.id == video)).one()
        return begun if begun.status == "in_progress" else None

    def advance(self, video: str, worker: str, *, progress: int, step: int, eta: float | None) -> bool:
        """Record how far a video is. False if this worker must stop: it was deleted, or others took it over."""
        values = {"progress": progress, "step": step, "eta": eta}
        with self.engine.begin() as connection:
            return connection.execute(sa.update(VIDEOS).where(_held(video, worker)).values(**values)).rowcount == 1

    def wanted(self, video: str, worker: str) -> bool:
        """Whether this worker is still to make the video."""
        with self.engine.connect() as connection:
            return connection.execute(sa.select(VIDEOS.c.number).where(_held(video, worker))).one_or_none() is not None

    def show(self, video: str, step: int, image: bytes) -> None:
        """Replace the preview of a video."""
        with self.engine.begin() as connection:
            connection.execute(sa.delete(PREVIEWS).where(PREVIEWS.c.video == video))
            connection.execute(sa.insert(PREVIEWS).values(video=video, step=step, image=image))

    def complete(self, video: str, worker: str, *, result: str, frames: int, size: int, expires: float | None) -> bool:
        """Record the folder of the files of a video, its length and its bytes. False if it is not wanted any more."""
        now = time.time()
        done = {"status": "completed", "progress": 100, "eta": None, "completed_at": now, "result": result}
        done |= {"bytes": size, "expires_at": None if expires is None else now + expires}
        with self.engine.connect() as connection:
            shown = connection.execute(sa.select(VIDEOS.c.shown).where(VIDEOS.c.id == video)).scalar_one_or_none() or {}
        return self._end(video, worker, done | {"shown": {**shown, "frames": frames}})

    def fail(self, video: str, worker: str, code: str, message: str) -> bool:
        """Record why a video cannot be made."""
        return self._end(video, worker, _failed(code, message))

    def drop(self, video: str, worker: str) -> None:
        """Record that this worker has stopped making a deleted video."""
        gone = VIDEOS.c.deleted & (VIDEOS.c.id == video) & (VIDEOS.c.worker == worker)
        with self.engine.begin() as connection:
            connection.execute(sa.update(VIDEOS).where(gone).values(status="failed"))

    def _end(self, video: str, worker: str, values: Mapping[str, Any]) -> bool:
        with self.engine.begin() as connection:
            ended = connection.execute(sa.update(VIDEOS).where(_held(video, worker)).values(**values)).rowcount == 1
            connection.execute(sa.delete(PREVIEWS).where(PREVIEWS.c.video == video))
        return ended

    def release(self, workers: Mapping[str, str]) -> None:
        """Let the videos of ended workers wait again. workers: what `liveness.Observer.dead` found."""
        for worker, how in workers.items():
            held = (VIDEOS.c.worker == worker) & (VIDEOS.c.status == "in_progress")
            values: dict[str, Any] = {"status": "queued", "worker": None, "eta": None, "progress": 0, "step": 0}
            if how == "alone":
                values["deaths"] = VIDEOS.c.deaths + 1
            elif how == "with its server":
                values["falls"] = VIDEOS.c.falls + 1
            with self.engine.begin() as connection:
                connection.execute(sa.update(VIDEOS).where(held).values(**values))

    # -------------------------------------------------------------------------------------------------- housekeeping

    def expired(self) -> Sequence[Video]:
        """The records whose time is over."""
        over = _SHOWN & VIDEOS.c.status.in_(ENDED) & (VIDEOS.c.expires_at < time.time())
        with self.engine.connect() as connection:
            return connection.execute(sa.select(VIDEOS).where(over)).all()

    def over_quota(self, most: int, unread_for: float) -> Sequence[Video]:
        """The oldest completed videos, so many that the others have at most `most` bytes.

        unread_for: a video of which a file was sent in the last so many seconds is none of them.
        """
        done = _SHOWN & (VIDEOS.c.status == "completed")
        with self.engine.connect() as connection:
            rows = connection.execute(sa.select(VIDEOS).where(done).order_by(VIDEOS.c.number)).all()
        excess, chosen, now = sum(row.bytes for row in rows) - most, [], time.time()
        for row in rows:
            if excess <= 0:
                break
            if row.read_at is None or abs(now - row.read_at) > unread_for:
                chosen.append(row)
                excess -= row.bytes
        return chosen

    def forgotten(self) -> Sequence[Video]:
        """The deleted records that no worker makes any more."""
        gone = VIDEOS.c.deleted & (VIDEOS.c.status != "in_progress")
        with self.engine.connect() as connection:
            return connection.execute(sa.select(VIDEOS).where(gone)).all()

    def remove(self, videos: Iterable[str]) -> None:
        """Remove deleted records, and what the queue knows of them."""
        if ids := list(videos):
            self.queue.forget(ids)
            with self.engine.begin() as connection:
                connection.execute(sa.delete(VIDEOS).where(VIDEOS.c.id.in_(ids), VIDEOS.c.deleted))

    def ids(self) -> set[str]:
        """The ids of all records, deleted ones too."""
        with self.engine.connect() as connection:
            return set(connection.execute(sa.select(VIDEOS.c.id)).scalars())


_SHOWN = sa.not_(VIDEOS.c.deleted)
_DIED = (
    f"{DEATHS} workers died while they made this video, so it was given up: it may need more memory than there is; "
    "ask for a smaller size or fewer frames."
)
_FELL = (
    f"The server died {FALLS} times while it made this video, so it was given up: ask for a smaller size or fewer "
    "frames."
)


def _held(video: str, worker: str) -> sa.ColumnElement[bool]:
    """The record, while this worker makes it."""
    return _SHOWN & (VIDEOS.c.id == video) & (VIDEOS.c.worker == worker) & (VIDEOS.c.status == "in_progress")


def _failed(code: str, message: str) -> dict[str, Any]:
    error = {"code": code, "message": message}
    return {"status": "failed", "error": error, "completed_at": time.time(), "eta": None}
