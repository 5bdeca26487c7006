"""A server: its options, its parts, and what the routes do with them. `app` gives it its addresses."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pusa.errors import InputError
from pusa.generation.request import Request
from pusa.serving import queue, tables
from pusa.serving.answers import ApiError
from pusa.serving.api_keys import ApiKeys
from pusa.serving.bodies import Body
from pusa.serving.events import Events
from pusa.serving.field_values import FieldError
from pusa.serving.fields import read
from pusa.serving.folders import SOURCES, Folders, is_id, new_id
from pusa.serving.housekeeping import Housekeeping
from pusa.serving.inspection import UploadLimits
from pusa.serving.liveness import Presence
from pusa.serving.orders import Order, order, with_sources
from pusa.serving.served_model import ServedModel
from pusa.serving.sources import Receiver
from pusa.serving.store import Conflict, Full, Store, Video
from pusa.serving.supervisor import Supervisor
from pusa.serving.worker import WorkerOptions

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class ServerOptions:
    """How a server is run.

    Attributes:
        model: the model.
        files: the folder of the files, and of the database unless `store` names one.
        workers: processes that make videos; 0 is a server that only answers.
        store: the address of a PostgreSQL database that servers share; None is SQLite in `files`.
        results: an address of fsspec for the files, which servers share in place of a folder.
        keys: the file of API keys; None is a server without keys.
        host, port: where it listens.
        most_waiting: videos in the queue at most; further ones are refused.
        largest: how many times as large as the model's own clip a clip may be, in pixels times frames.
        expires: seconds after which a finished video is removed; None keeps it.
        quota: bytes of finished videos at most; the oldest are removed. None is no limit.
        uploads: limits of files.
        addresses: whether pictures may be fetched from https addresses.
    """

    model: ServedModel
    files: Path
    workers: int = 1
    store: str | None = None
    results: str | None = None
    keys: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    most_waiting: int = 100
    largest: float = 16.0
    expires: float | None = None
    quota: int | None = None
    uploads: UploadLimits = field(default_factory=UploadLimits)
    addresses: bool = False

    def check(self) -> None:
        """Raise InputError for options that do not go together."""
        if self.host not in LOOPBACK and self.keys is None:
            raise InputError(
                f"--host {self.host} can be reached from other machines: give --api-keys FILE with a name and a key on "
                "each line, or listen on 127.0.0.1."
            )
        if self.workers < 0 or self.most_waiting < 1:
            raise InputError("--workers is 0 or more, and --max-queued is 1 or more: change them.")
        if self.uploads.bytes < 1 or not self.largest > 0:
            raise InputError("--max-upload-mb and --max-clip are above 0: change them.")


class Server:
    """The parts of a server, in this process. Raises InputError if its folder or its database cannot be used."""

    def __init__(self, options: ServerOptions) -> None:
        options.check()
        self.options = options
        self.limits = options.model.limits()
        self.keys = ApiKeys(options.keys)
        self.folders = Folders(options.files, options.results)
        self.folders.make()
        address = options.store or self.folders.database
        if options.store is None:
            self._claim_folder()
        self.engine = tables.open_database(address)
        try:
            self.engine.connect().close()  # DBOS would try for half a minute
            queue.prepare(self.engine)
            tables.create(self.engine, options.files)
        except tables.UNREACHABLE as error:
            raise InputError(
                f"--store: the database does not answer ({tables.reason(error)}): check its address."
            ) from None
        self.store = Store(self.engine)
        self.receiver = Receiver(self.store, self.folders, options.uploads, addresses=options.addresses)
        self.events = Events(self.store)
        self.presence = Presence(self.engine, self.folders.locks, "server")
        cores = os.cpu_count() or 1
        self.supervisor = Supervisor(
            [
                WorkerOptions(
                    self.presence.id,
                    address,
                    options.files,
                    options.results,
                    options.model,
                    number,
                    options.workers,
                    cores,
                    options.expires,
                )
                for number in range(options.workers)
            ]
        )
        self.housekeeping = Housekeeping(self.store, self.folders, options.quota, self.presence)
        self.started = time.time()

    def _claim_folder(self) -> None:
        """Hold a lock on the folder: a SQLite file serves one server."""
        import fcntl

        self._claim = (self.folders.root / "server.lock").open("w")
        try:
            fcntl.flock(self._claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"Another server uses {self.folders.root}: give --data another folder, or share the queue with "
                "--store postgresql://…"
            ) from None

    def start(self) -> None:
        """Start the workers and the housekeeping."""
        self.housekeeping.start()
        self.supervisor.start()

    def stop(self) -> None:
        """Stop everything. A video in progress waits for the next start."""
        self.supervisor.stop()
        self.housekeeping.stop()
        self.presence.leave()
        self.engine.dispose()

    # ------------------------------------------------------------------------------------------------- new videos

    def plan(self, body: Body, owner: str, received: Path, task: str = "generate", *, edit: bool = False) -> Order:
        """Check a request, and receive its sources. Raises ApiError."""
        try:
            asked = read(body.fields, body.parts, task, edit=edit)
            if asked.model not in ("", self.options.model.name):
                raise FieldError(
                    f"There is no model {asked.model[:60]!r}: this server has {self.options.model.name}.", "model"
                )
            opened = self.receiver.open(asked.sources(), body.parts, owner, received)
            planned = order(asked, opened, self.limits, self.options.model)
            self._check_work(planned)
            return planned
        except InputError as error:
            raise _refused(error) from error

    def _check_work(self, planned: Order) -> None:
        """Raise FieldError for a clip that would hold a worker for too long."""
        own = math.prod(self.limits.defaults.size) * self.limits.defaults.frames
        asked = math.prod(planned.settings.size) * max(planned.frames, planned.settings.frames)
        if asked > self.options.largest * own:
            width, height = planned.settings.size
            raise FieldError(
                f"{planned.frames} frames of {width}x{height} are {asked / own:.0f} times the clip that "
                f"{self.options.model.name} makes by itself, and this server makes at most {self.options.largest:g} "
                "times as much: ask for a smaller size or fewer frames.",
                "size",
            )

    def add(
        self,
        body: Body,
        owner: str,
        received: Path,
        *,
        task: str = "generate",
        edit: bool = False,
        idempotency_key: str | None = None,
    ) -> Video:
        """Make a video wait in the queue. Raises ApiError."""
        if idempotency_key is not None and (earlier := self._earlier(owner, idempotency_key, body.digest)) is not None:
            return earlier
        planned = self.plan(body, owner, received, task, edit=edit)
        key = idempotency_key, body.digest
        return self._queue(planned.stored, planned.shown, planned.sources, planned.lora, owner, received, key)

    def remix(self, old: Video, body: Body, owner: str, received: Path, *, idempotency_key: str | None = None) -> Video:
        """The same request with the prompt of the body. Raises ApiError."""
        if idempotency_key is not None and (earlier := self._earlier(owner, idempotency_key, body.digest)) is not None:
            return earlier
        prompt = body.fields.get("prompt")
        for file in self.folders.folder(old.id, SOURCES).iterdir():
            shutil.copyfile(file, received / SOURCES / file.name)
        try:
            if not isinstance(prompt, str):
                raise FieldError("prompt is missing: say what the new video shows.", "prompt")
            changed = {**old.request, "prompt": prompt}
            Request.from_dict(
                with_sources(changed, lambda name: str(received / SOURCES / old.sources[name]["file"]))
            ).check(self.limits)
        except InputError as error:
            raise _refused(error) from error
        shown = {**old.shown, "model": self.options.model.name, "prompt": prompt, "remixed_from": old.id}
        return self._queue(changed, shown, old.sources, old.lora, owner, received, (idempotency_key, body.digest))

    def _queue(
        self,
        request: Mapping[str, Any],
        shown: Mapping[str, Any],
        sources: Mapping[str, Any],
        lora: Any,
        owner: str,
        received: Path,
        key: tuple[str | None, str],
    ) -> Video:
        id = new_id()
        values = {"id": id, "owner": owner, "request": request, "shown": shown, "sources": sources, "lora": lora}
        values |= {"created_at": time.time(), "idempotency_key": key[0], "body_hash": key[1]}
        self.folders.accept(received, id)
        new = False
        try:
            row, new = self.store.add(values, self.options.most_waiting)
        except Full as full:
            raise ApiError(
                429,
                f"{self.options.most_waiting} videos wait already: try again in {full.seconds:.0f} s.",
                "queue_full",
                headers={"retry-after": str(max(1, round(full.seconds)))},
            ) from None
        except Conflict:
            raise _conflict() from None
        finally:
            if not new:
                self.folders.remove(id)
        return row

    def _earlier(self, owner: str, key: str, digest: str) -> Video | None:
        if (row := self.store.by_key(owner, key)) is not None and row.body_hash != digest:
            raise _conflict()
        return row

    # ---------------------------------------------------------------------------------------------------- old videos

    def video(self, id: str, owner: str) -> Video:
        """The record of a video of this key. Raises ApiError."""
        row = self.store.get(id, owner) if is_id(id) else None
        if row is None:
            raise ApiError(404, "There is no such video: check its id.", "not_found")
        return row

    def file(self, row: Video, name: str) -> Path:
        """A file that a completed video has. Raises ApiError if it is not ready."""
        if row.status == "failed":
            raise ApiError(409, f"This video has failed, so it has no files: {row.error['message']}", "failed")
        if row.status != "completed":
            raise ApiError(
                409, f"This video is {row.status} ({row.progress} %): ask again when it is completed.", "not_ready"
            )
        path = self.folders.folder(row.id, row.result) / name
        if not path.is_file():
            raise ApiError(404, "The file of this video is gone: make it again.", "not_found")
        if row.read_at is None or abs(time.time() - row.read_at) > READ_AGAIN:
            self.store.read(row.id)
        return path

    def ready(self) -> bool:
        """Whether requests can be taken and, by some server, be worked on."""
        return self.store.answers() and (self.options.workers == 0 or self.presence.children() > 0)


READ_AGAIN = 30.0
"""seconds between two notes that a video is read"""


def _refused(error: InputError) -> ApiError:
    return ApiError(400, str(error).replace("\n", " "), "invalid_request", getattr(error, "param", None))


def _conflict() -> ApiError:
    return ApiError(
        409,
        "The Idempotency-Key was used for another request: use a new key for a new request.",
        "idempotency_conflict",
    )
