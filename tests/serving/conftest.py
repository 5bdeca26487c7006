"""A server in this process, and a worker that makes its videos when a test says so."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

pytest.importorskip("dbos", reason="the extra `serve` is not installed")

from PIL import Image
from starlette.testclient import TestClient

import pusa
from pusa.serving.app import make_app
from pusa.serving.inspection import UploadLimits
from pusa.serving.served_model import ServedModel
from pusa.serving.server import Server, ServerOptions
from pusa.serving.worker import Worker, WorkerOptions

T = TypeVar("T")


@cache
def pipeline() -> pusa.Pipeline:
    """The embedded model, loaded once."""
    return pusa.load("tiny")


class LoadedModel(ServedModel):
    """The embedded model, which all tests share."""

    def load(self, device: str | None) -> pusa.Pipeline:
        return pipeline()


@dataclass
class Service:
    """A server without workers, a client of it, and a worker that works by hand."""

    server: Server
    client: TestClient
    kept: list[Worker] = field(default_factory=list)

    @property
    def worker(self) -> Worker:
        if not self.kept:
            self.kept.append(self.another_worker())
        return self.kept[0]

    def another_worker(self) -> Worker:
        """A further worker of the same server."""
        options = self.server.options
        store = options.store or self.server.folders.database
        return Worker(
            WorkerOptions(
                self.server.presence.id, store, options.files, options.results, options.model, 0, 1, 2, options.expires
            )
        )

    def post(
        self, path: str = "", status: int = 200, files: dict[str, Any] | None = None, **values: Any
    ) -> dict[str, Any]:
        """The answer to a POST. JSON unless there are files."""
        body: dict[str, Any] = {"json": values} if files is None else {"data": values, "files": files}
        answer = self.client.post(f"/v1/videos{path}", **body)
        assert answer.status_code == status, answer.text
        said: dict[str, Any] = answer.json()
        return said

    def refused(
        self, path: str = "", status: int = 400, files: dict[str, Any] | None = None, **values: Any
    ) -> dict[str, Any]:
        """The error in the answer to a POST."""
        said = self.post(path, status, files, **values)
        assert set(said) == {"error"}
        assert set(said["error"]) == {"message", "type", "param", "code"}
        error: dict[str, Any] = said["error"]
        return error

    def get(self, video: str, path: str = "") -> Any:
        answer = self.client.get(f"/v1/videos/{video}{path}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def made(self, path: str = "", **values: Any) -> dict[str, Any]:
        """A video that is asked for and made."""
        video = self.post(path, **values)
        self.worker.make(video["id"])
        done: dict[str, Any] = self.get(video["id"])
        assert done["status"] == "completed", done["error"]
        return done

    def latents(self, video: str) -> Any:
        """The latents of a completed video."""
        from pusa.generation.clip import read_latents

        row = self.server.store.get(video, None)
        assert row is not None
        return read_latents(self.server.folders.of(video) / row.result / "clip.latents.safetensors")[0]

    def working(self) -> Working:
        """In the block, everything that is asked for is made by a thread."""
        return Working(self)


class Working:
    def __init__(self, service: Service) -> None:
        self.service, self.stop = service, threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        from pusa.serving.api_keys import NOBODY

        while not self.stop.wait(0.02):
            for row in self.service.server.store.active(NOBODY):
                self.service.worker.make(row.id)

    def __enter__(self) -> None:
        assert self.service.worker
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()


@pytest.fixture
def make_service(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """A function that makes a service; keywords are of `ServerOptions`."""
    opened: list[Service] = []

    def make(**options: Any) -> Service:
        values = {"model": LoadedModel("tiny", "tiny"), "files": tmp_path / f"data-{len(opened)}", "workers": 0}
        values |= {"uploads": UploadLimits(bytes=4 * 2**20, memory=2**30), **options}
        server = Server(ServerOptions(**values))
        client = TestClient(make_app(server), base_url="http://127.0.0.1")
        client.__enter__()
        opened.append(Service(server, client))
        return opened[-1]

    yield make
    for one in opened:
        one.client.__exit__(None, None, None)


@pytest.fixture
def service(make_service: Callable[..., Service]) -> Service:
    """A server without keys, whose queue is empty."""
    return make_service()


def awaited(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, in a thread: a browser of other tests keeps a loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def png(seed: int = 0, size: tuple[int, int] = (64, 64)) -> bytes:
    """A picture as a file."""
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(out, "PNG")
    return out.getvalue()
