"""A worker: a process with the loaded model that takes videos from the queue and makes them, one at a time.

It is a process of its own, so that a request that kills it (out of memory, a broken driver) ends nothing else. It ends
with its server, however that ends.
"""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import sqlalchemy as sa

from pusa.errors import Cancelled, InputError, PusaError
from pusa.media.containers import accept_only
from pusa.serving import kept_steps, queue
from pusa.serving.folders import CLIP, SOURCES, SPRITESHEET, THUMBNAIL, Folders, size_of
from pusa.serving.inspection_process import CODECS, FORMATS
from pusa.serving.kept_steps import made_by
from pusa.serving.liveness import PACE, Observer, Presence
from pusa.serving.orders import with_sources
from pusa.serving.served_model import ServedModel
from pusa.serving.store import Store, Video
from pusa.serving.tables import open_database, reason

if TYPE_CHECKING:
    from pusa.core.sampler import Step
    from pusa.generation.clip import GeneratedClip
    from pusa.generation.pipeline import Pipeline

T = TypeVar("T")
log = logging.getLogger("pusa.serving.worker")
PREVIEW = 1.0
"""seconds between two previews"""
RECORD = 0.2
"""seconds between two records of the progress"""
KEEP = 20.0
"""seconds between two kept steps, which a dead worker's video goes on from"""
_SAMPLING = 0.9
"""the share of the sampling in the progress; the rest is decoding and saving"""


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker needs to know; it is sent to a new process.

    Attributes:
        server: the id of its server.
        store: the address of the database.
        files, results: the folder of the files, and the address that servers share in its place, or None.
        model: the model.
        number, workers: which of how many workers it is: each has a GPU in turn, or its share of the cores of a CPU.
        cores: of the machine.
        expires: seconds after which a finished video is removed; None keeps it.
    """

    server: str
    store: str
    files: Path
    results: str | None
    model: ServedModel
    number: int
    workers: int
    cores: int
    expires: float | None


def run(options: WorkerOptions) -> None:
    """Work until the server ends or says to stop (SIGTERM). The body of the process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    accept_only(FORMATS, CODECS)  # it opens clips of strangers
    logging.basicConfig(level=logging.INFO, format="pusa: %(message)s", stream=sys.stderr)
    for chatty in ("dbos", "httpx", "diffusers", "transformers"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    worker = Worker(options)
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    worker.work()


def _end_with_parent() -> None:
    """End this process when its parent ends, even of SIGKILL: a pipe to the parent then breaks."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


class Worker:
    """A worker; see `WorkerOptions`."""

    def __init__(self, options: WorkerOptions) -> None:
        import torch

        gpus, device = torch.cuda.device_count(), None
        if gpus:
            device = f"cuda:{options.number % gpus}"
        elif options.workers > 1:
            torch.set_num_threads(max(1, options.cores // options.workers))
        self.options = options
        self.engine = open_database(options.store)
        self.store, self.folders = Store(self.engine), Folders(options.files, options.results)
        self.pipe: Pipeline = options.model.load(device)
        from pusa.serving.previews import LatentColours

        self.colours = LatentColours(self.pipe.backbone)
        self.presence = Presence(self.engine, self.folders.locks, "worker", options.server)
        self.observer = Observer(self.engine)
        self.stopping = threading.Event()

    def work(self) -> None:
        """Take videos until `stop` is called. The process then ends."""
        queue.work(self.engine, self.presence.id, self._work_on)
        log.info("worker %s is ready", self.presence.id)
        while not self.stopping.wait(PACE):
            try:
                if not self.presence.beat():
                    log.error("worker %s was thought dead, so it ends", self.presence.id)
                    break
                self._recover()
            except sa.exc.SQLAlchemyError as error:
                log.warning("the database cannot be used: %s", reason(error))
        queue.rest()
        self.presence.leave()
        os._exit(0)  # the thread of a video may still compute

    def stop(self) -> None:
        """End after this step. The video in progress waits again, for another worker or the next start."""
        self.stopping.set()

    def _recover(self) -> None:
        if dead := self.observer.dead():
            self.store.release(dead)
            queue.recover(list(dead))
            self.observer.forget(dead)
            log.info("%d dead workers: their videos wait again", len(dead))

    # ---------------------------------------------------------------------------------------------------- one video

    def _work_on(self, video: str) -> None:
        self.make(video)
        if self.stopping.is_set():  # returning would tell the queue that the video is done; the process ends instead
            threading.Event().wait()

    def make(self, video: str) -> None:
        """Make a video of the queue, or record why it cannot be made. It raises no error, which would end the video."""
        row = self._insist(lambda: self.store.begin(video, self.presence.id))
        if row is None:
            return
        try:
            self._finish(row, self._sample(row))
        except Cancelled:
            self._insist(lambda: self.store.drop(video, self.presence.id))
        except Exception as error:
            code, text = self._explained(error, row)
            if code != "invalid_request":
                traceback.print_exception(error)
            self._insist(lambda: self.store.fail(video, self.presence.id, code, text))

    def _insist(self, call: Callable[[], T]) -> T | None:
        """Call until the database answers. None if this worker is told to stop; the video then waits again."""
        while True:
            try:
                return call()
            except sa.exc.SQLAlchemyError as error:
                log.warning("the database cannot be used: %s", reason(error))
            if self.stopping.wait(PACE):
                return None

    def _sample(self, row: Video) -> GeneratedClip:
        from pusa.generation.request import Request

        if (asked := row.shown["model"]) != (here := self.options.model.name):
            raise InputError(f"This video was asked of the model {asked}, and the server now has {here}: ask again.")
        sources = self.folders.folder(row.id, SOURCES)
        request = Request.from_dict(with_sources(row.request, lambda name: str(sources / row.sources[name]["file"])))
        names: list[str] = []
        try:
            for name, scale in row.lora:
                names.append(self.pipe.load_lora(self._offered(name), scale).name)
            maker = made_by(self.pipe.recipe())
            accelerated = any(getattr(request, name) is not None for name in ("accelerate", "speed", "min_psnr"))
            file = None if accelerated else self.folders.of(row.id) / kept_steps.NAME
            progress = _Progress(self, row, file, maker)
            return self.pipe.make(request, progress, after=None if file is None else kept_steps.kept(file, maker))
        finally:
            for name in names:
                self.pipe.remove_lora(name)

    def _offered(self, name: str) -> Path:
        if name not in self.options.model.offered:
            raise InputError(f"The server no longer offers the LoRA {name}: ask without it.")
        return self.options.model.offered[name]

    def _finish(self, row: Video, clip: GeneratedClip) -> None:
        from pusa.serving.previews import write_spritesheet, write_thumbnail

        attempt = f"attempt-{row.attempts}-{self.presence.id[-8:]}"
        folder = self.folders.of(row.id) / attempt
        try:
            path = clip.save(folder / CLIP)
            write_thumbnail(path.with_name(THUMBNAIL), clip.frames)
            write_spritesheet(path.with_name(SPRITESHEET), clip.frames)
        except InputError as error:  # not of the client's input
            raise OSError(errno.ENOSPC if "disk is full" in str(error) else errno.EIO, str(error)) from error
        self.folders.publish(row.id, attempt)
        size = size_of(self.folders.of(row.id))
        done = self._insist(
            lambda: self.store.complete(
                row.id,
                self.presence.id,
                result=attempt,
                frames=len(clip.frames),
                size=size,
                expires=self.options.expires,
            )
        )
        if done:
            self.folders.keep_only(row.id, attempt)
        else:
            raise Cancelled(f"{row.id} is not wanted any more")

    def _explained(self, error: Exception, row: Video) -> tuple[str, str]:
        """(code, sentence) of an error, for the client."""
        if isinstance(error, InputError):
            return "invalid_request", self._public(str(error), row)
        if _is_memory(error):
            return "out_of_memory", "There is not enough memory for this video: ask for a smaller size or fewer frames."
        if isinstance(error, PusaError) and "NaN" in str(error):
            return "overflow", (
                "The numbers of the model became too large: use a smaller guidance_scale, and smaller scales of LoRAs."
            )
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return "disk_full", "The server's disk is full: ask its operator."
        return "server_error", "The server failed on this video; its log says why."

    def _public(self, text: str, row: Video) -> str:
        """A message without the paths of this machine."""
        for about in row.sources.values():
            text = text.replace(str(self.folders.of(row.id) / SOURCES / about["file"]), str(about["filename"]))
        return text.replace(str(self.options.files), "…")


class _Progress:
    """The sampler's callback: records the progress and a preview, and stops a video that is not wanted any more.

    file: where a step is kept now and then, for the case that this worker dies; None keeps none.
    """

    def __init__(self, worker: Worker, row: Video, file: Path | None, maker: str) -> None:
        self.worker, self.row, self.file, self.maker = worker, row, file, maker
        self.begun = self.kept = time.monotonic()
        self.recorded = self.shown = 0.0
        self.first: int | None = None

    def __call__(self, step: Step) -> bool:
        worker, video, mine = self.worker, self.row.id, self.worker.presence.id
        if worker.stopping.is_set():
            return False
        done, now = step.index + 1, time.monotonic()
        if self.first is None:
            self.first = step.index
        if self.file is not None and now - self.kept >= KEEP and done < step.steps:
            self.kept = now
            with suppress(OSError, PusaError):  # a full disk costs the kept step and not the video
                kept_steps.keep(self.file, step, self.maker)
        try:
            if now - self.recorded < RECORD and done < step.steps:
                return worker.store.wanted(video, mine)
            self.recorded = now
            eta = (now - self.begun) / (done - self.first) * (step.steps - done)
            percent = int(100 * _SAMPLING * done / step.steps)
            if not worker.store.advance(video, mine, progress=percent, step=done, eta=eta):
                return False
            if now - self.shown >= PREVIEW or done == 1:
                self.shown = now
                self._show(step)
        except sa.exc.SQLAlchemyError as error:  # the video goes on while the database is away
            log.warning("the progress of %s is not recorded: %s", video, reason(error))
        return True

    def _show(self, step: Step) -> None:
        from pusa.serving.previews import animated

        pipe = self.worker.pipe
        milliseconds = 1000 * pipe.backbone.geometry.frames_per_slot / pipe.defaults.fps
        picture = animated(self.worker.colours(step.denoised), milliseconds)
        self.worker.store.show(self.row.id, step.index + 1, picture)


def _is_memory(error: BaseException) -> bool:
    from pusa.models.memory.profiles import is_out_of_memory

    return any(is_out_of_memory(each) for each in (error, error.__cause__) if isinstance(each, Exception))
