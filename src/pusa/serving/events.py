"""Server-sent events: the progress and the previews of videos, for many clients from one look at the database.

A client that watches a video causes no query of its own. One task looks at all watched keys a few times a second, and
hands each client what has changed.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from pusa.serving.answers import video_object
from pusa.serving.store import ENDED, Store, Video
from pusa.serving.tables import reason

log = logging.getLogger("pusa.serving.events")
PACE = 0.25
"""seconds between two looks"""
QUIET = 15.0
"""seconds without news after which a comment keeps the connection alive"""
_MOST_UNREAD = 1000
"""events that a client may leave unread"""


@dataclass(eq=False)
class _Watch:
    """A client. video: the only one that it watches; None watches all of its key."""

    owner: str
    video: str | None
    events: asyncio.Queue[str | None] = field(default_factory=lambda: asyncio.Queue(_MOST_UNREAD))

    def tell(self, event: str | None) -> None:
        with suppress(asyncio.QueueFull):  # a client that does not read learns the rest when it asks again
            self.events.put_nowait(event)


class Events:
    """The task that looks, and its clients."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._watches: set[_Watch] = set()
        self._seen: dict[str, dict[str, tuple[Any, ...]]] = {}  # {owner: {id: what was told last}}
        self._shown: dict[str, int] = {}  # {id: the step of its last preview}
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def of_video(self, row: Video) -> AsyncIterator[str]:
        """The events of one video, from now to its end."""
        yield _event("status", await run_in_threadpool(self._object, row))
        if row.status in ENDED:
            return
        async for event in self._listen(_Watch(row.owner, row.id)):
            yield event

    async def of_owner(self, owner: str) -> AsyncIterator[str]:
        """The events of all videos of a key."""
        async for event in self._listen(_Watch(owner, None)):
            yield event

    def deleted(self, row: Video) -> None:
        """Tell the clients of this process that a video that had ended is gone. Any thread may call it."""
        if self._loop is not None and row.status in ENDED:
            self._loop.call_soon_threadsafe(self._teller(row.owner, row.id, "deleted", {"id": row.id}))

    async def _listen(self, watch: _Watch) -> AsyncIterator[str]:
        self._loop = asyncio.get_running_loop()
        self._watches.add(watch)
        self._seen.setdefault(watch.owner, {})
        if watch.video is not None:
            self._seen[watch.owner].setdefault(watch.video, ())
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look())
        try:
            yield ": watching\n\n"
            while True:
                try:
                    event = await asyncio.wait_for(watch.events.get(), QUIET)
                except TimeoutError:
                    event = ": still here\n\n"
                if event is None:
                    return
                yield event
        finally:
            self._watches.discard(watch)

    async def _look(self) -> None:
        while self._watches:
            try:
                for owner in {watch.owner for watch in self._watches}:
                    for call in await run_in_threadpool(self._news, owner):
                        call()
            except SQLAlchemyError as error:
                log.warning("events: the database cannot be used: %s", reason(error))
            await asyncio.sleep(PACE)
        self._seen, self._shown = {}, {}

    def _news(self, owner: str) -> list[Callable[[], None]]:
        """What has changed, as calls for the event loop."""
        seen, calls = self._seen.get(owner, {}), []
        active = {row.id: row for row in self.store.active(owner)}
        waiting = self.store.waiting() if any(row.status == "queued" for row in active.values()) else []
        for id, row in active.items():
            position = waiting.index(row.number) if row.number in waiting else None
            now = (row.status, row.step, row.progress, position)
            if seen.get(id) == now:
                continue
            changed_status = not seen.get(id) or (seen[id][0], seen[id][3]) != (row.status, position)
            seen[id] = now
            if changed_status:
                told = video_object(row, waiting).model_dump()
                calls.append(self._teller(owner, id, "status", told))
            steps = {"id": id, "step": row.step, "steps": row.shown["steps"], "progress": row.progress}
            calls.append(self._teller(owner, id, "progress", {**steps, "eta_seconds": row.eta}))
        for id, row in active.items():
            if row.status != "in_progress" or (found := self.store.preview(id)) is None:
                continue
            step, image = found
            if self._shown.get(id) != step:
                self._shown[id] = step
                address = "data:image/webp;base64," + base64.b64encode(image).decode()
                calls.append(self._teller(owner, id, "preview", {"id": id, "step": step, "image": address}))
        for id in set(seen) - set(active):
            del seen[id]
            self._shown.pop(id, None)
            ended = self.store.get(id, owner)
            name, told = ("deleted", {"id": id}) if ended is None else ("status", self._object(ended))
            calls.append(self._teller(owner, id, name, told, last=True))
        return calls

    def _object(self, row: Video) -> dict[str, Any]:
        return video_object(row, self.store.waiting()).model_dump()

    def _teller(self, owner: str, id: str, name: str, data: Any, *, last: bool = False) -> Callable[[], None]:
        def tell() -> None:
            event = _event(name, data)
            for watch in self._watches:
                if watch.owner == owner and watch.video in (None, id):
                    watch.tell(event)
                    if last and watch.video == id:
                        watch.tell(None)

        return tell


def _event(name: str, data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"
