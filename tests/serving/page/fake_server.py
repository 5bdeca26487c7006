"""A small server with the interface of `pusa serve`, for the tests of the page: it draws clips without a model.

It keeps everything in memory, makes one clip at a time, and can be told to wait before each step. `python -m
tests.serving.page.fake_server` runs it, to work on the page.
"""

from __future__ import annotations

import base64
import json
import queue
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import pusa
from pusa.media.videos import write_video
from tests.serving.page.fake_orders import FPS, MODEL, Job, Refused, checked, drawn, read_body, stored, thumbnail

PAGE = Path(pusa.__file__).parent / "serving" / "page"
POLICY = "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; object-src 'none'; base-uri 'none'"


@dataclass
class FakeServer:
    """The server, while it is entered as a context.

    key: the key that it asks for, "" for none. waits: whether each step waits for `release`.
    """

    folder: Path
    key: str = ""
    waits: bool = False
    jobs: dict[str, Job] = field(default_factory=dict)
    orders: list[dict[str, Any]] = field(default_factory=list)
    fail_next: str = ""
    port: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._waiting: list[str] = []
        self._steps = threading.Semaphore(0)
        self._listeners: list[queue.Queue[str | None]] = []
        self._stop = threading.Event()

    # Running

    def __enter__(self) -> FakeServer:
        self._stop.clear()
        config = uvicorn.Config(self._app(), host="127.0.0.1", port=self.port, log_level="error", lifespan="off")
        self._server = uvicorn.Server(config)
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._server.run, self._work)]
        for thread in self._threads:
            thread.start()
        while not self._server.started:
            time.sleep(0.01)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for listener in self._listeners:
            listener.put(None)
        self._server.should_exit = True
        self._server.force_exit = True
        for thread in self._threads:
            thread.join(30)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def release(self, steps: int = 1000) -> None:
        """Let so many steps go on, of this clip and of later ones."""
        for _ in range(steps):
            self._steps.release()

    def reset(self) -> None:
        """Forget all clips."""
        for id in list(self.jobs):
            self._drop(id)
        self.orders.clear()
        self.waits, self.fail_next = False, ""
        self._steps = threading.Semaphore(0)

    def _app(self) -> Starlette:
        routes = [
            Route("/", lambda _: FileResponse(PAGE / "index.html")),
            Mount("/static", StaticFiles(directory=PAGE)),
            Route("/session", self._session, methods=["POST"]),
            Route("/v1/models", lambda _: JSONResponse({"object": "list", "data": [MODEL]})),
            Route("/v1/videos", self._create, methods=["POST"]),
            Route("/v1/videos", self._list),
            Route("/v1/videos/check", self._check, methods=["POST"]),
            Route("/v1/events", self._events),
            Route("/v1/videos/{id}", self._get),
            Route("/v1/videos/{id}", self._delete, methods=["DELETE"]),
            Route("/v1/videos/{id}/content", self._content),
            Route("/v1/videos/{id}/matrix", lambda request: JSONResponse({"sigma": self._job(request).sigma})),
            Route("/v1/videos/{id}/recipe", self._recipe),
            Route("/v1/videos/{id}/sources/{name}", self._source),
        ]
        app = Starlette(routes=routes, exception_handlers={Refused: _refusal})
        return Starlette(routes=[Mount("/", self._guarded(app))])

    def _guarded(self, app: ASGIApp) -> ASGIApp:
        """The app behind its key, with the security policy of the real server on every answer."""

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            async def send_with_policy(message: Message) -> None:
                if message["type"] == "http.response.start":
                    MutableHeaders(scope=message)["Content-Security-Policy"] = POLICY
                await send(message)

            request = Request(scope)
            is_open = request.url.path in ("/", "/session") or request.url.path.startswith("/static/")
            if self.key and not is_open and request.cookies.get("pusa_session") != self.key:
                refused = Refused("The key is missing: enter the key of this server.", None, 401)
                await _refusal(request, refused)(scope, receive, send)
                return
            await app(scope, receive, send_with_policy)

        return guarded

    # Orders

    async def _session(self, request: Request) -> Response:
        if (await request.json()).get("key") != self.key:
            raise Refused("This is not a key of this server: check it.", "key", 401)
        response = JSONResponse({"ok": True})
        response.set_cookie("pusa_session", self.key, httponly=True)
        return response

    async def _create(self, request: Request) -> Response:
        order, files = await read_body(request)
        shown, sigma = checked(order, files)
        with self._lock:
            self.orders.append(order)
            id = f"video_{uuid.uuid4().hex}"
            kept, sources, about = stored(order, files, self.jobs)
            seed = order.get("seed", len(self.orders) * 1000)
            video = {
                "id": id,
                "object": "video",
                "model": "tiny",
                "status": "queued",
                "progress": 0,
                "created_at": int(time.time()) * 1000 + len(self.orders),
                "completed_at": None,
                "expires_at": None,
                "prompt": order.get("prompt", ""),
                "remixed_from_video_id": None,
                "error": None,
                "task": order.get("task", "generate"),
                "seed": seed,
                "step": 0,
                "queue_position": None,
                "eta_seconds": None,
                "attempts": 1,
                "lora": [],
                "request": {**kept, "seed": seed},
                "sources": about,
                **shown,
            }
            self.jobs[id] = Job(video, sources, sigma, self.folder)
            self._waiting.append(id)
            self._place()
        return JSONResponse(video)

    async def _check(self, request: Request) -> Response:
        order, files = await read_body(request)
        shown, sigma = checked(order, files)
        return JSONResponse({"ok": True, **shown, "matrix": {"sigma": sigma}})

    # Clips

    def _job(self, request: Request) -> Job:
        with self._lock:
            if (job := self.jobs.get(request.path_params["id"])) is None:
                raise Refused("There is no such video: check its id.", "id", 404)
            return job

    def _list(self, request: Request) -> Response:
        limit, after = int(request.query_params.get("limit", 20)), request.query_params.get("after")
        with self._lock:
            videos = [job.video for job in reversed(self.jobs.values())]
        if after:
            videos = videos[[video["id"] for video in videos].index(after) + 1 :]
        page = videos[:limit]
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
        return JSONResponse({"object": "list", "data": page, **ends, "has_more": len(videos) > limit})

    def _get(self, request: Request) -> Response:
        return JSONResponse(self._job(request).video)

    def _delete(self, request: Request) -> Response:
        id = self._job(request).video["id"]
        self._drop(id)
        return JSONResponse({"id": id, "object": "video.deleted", "deleted": True})

    def _drop(self, id: str) -> None:
        with self._lock:
            job = self.jobs.pop(id)
            job.cancelled = True
            if id in self._waiting:
                self._waiting.remove(id)
            self._tell("deleted", {"id": id})
            self._place()

    def _content(self, request: Request) -> Response:
        job = self._job(request)
        if job.video["status"] != "completed":
            raise Refused("This video is not finished: ask again later.", None, 409)
        if request.query_params.get("variant") == "thumbnail":
            return Response(thumbnail(job.video), media_type="image/webp")
        return FileResponse(job.path, media_type="video/mp4")

    def _recipe(self, request: Request) -> Response:
        job = self._job(request)

        def named(value: Any) -> Any:
            """The value with the names of files in place of the sources."""
            if isinstance(value, list):
                return [named(one) for one in value]
            if not isinstance(value, dict):
                return value
            if "source" in value:
                about = job.video["sources"][value["source"]]
                return {"path": f"{about['video']}.mp4" if "video" in about else about["filename"], "sha256": "0"}
            plain = {key: named(one) for key, one in value.items() if key != "src"}
            return plain | (named(value["src"]) if "src" in value else {})

        recipe = {
            "version": 1,
            "task": job.video["task"],
            "model": {"source": "tiny"},
            "steps": job.video["num_inference_steps"],
            "guidance_batch": "auto",
            "solver": "euler",
            "strength": 1.0,
            **named({key: value for key, value in job.video["request"].items() if key != "task"}),
            "own_matrix": False,
            "matrix": {"sigma": job.sigma},
        }
        return JSONResponse(recipe, headers={"Content-Disposition": "attachment"})

    def _source(self, request: Request) -> Response:
        content, kind = self._job(request).sources[request.path_params["name"]]
        return Response(content, media_type=kind)

    # Making

    def _work(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                job = self.jobs[self._waiting.pop(0)] if self._waiting else None
                if job is not None:
                    job.video.update(status="in_progress", queue_position=None)
                    self._place()
                    self._tell("status", job.video)
            if job is None:
                self._stop.wait(0.02)
            else:
                self._make(job)

    def _make(self, job: Job) -> None:
        video = job.video
        steps = video["num_inference_steps"]
        for step in range(1, steps + 1):
            while self.waits and not self._steps.acquire(timeout=0.05):
                if job.cancelled or self._stop.is_set():
                    return
            if job.cancelled or self._stop.is_set():
                return
            with self._lock:
                video.update(step=step, progress=100 * step // steps, eta_seconds=0.5 * (steps - step))
                told = {"id": video["id"], "step": step, "steps": steps, "progress": video["progress"]}
                self._tell("progress", {**told, "eta_seconds": video["eta_seconds"]})
                image = base64.b64encode(thumbnail(video, noise=1 - step / steps)).decode()
                self._tell("preview", {"id": video["id"], "step": step, "image": f"data:image/webp;base64,{image}"})
        with self._lock:
            if self.fail_next:
                error = {"code": "failed", "message": self.fail_next}
                video.update(status="failed", error=error, eta_seconds=None)
                self.fail_next = ""
            else:
                write_video(job.path, drawn(video), FPS)
                video.update(status="completed", completed_at=int(time.time()), progress=100, eta_seconds=None)
            if not job.cancelled:
                self._tell("status", video)

    def _place(self) -> None:
        for position, id in enumerate(self._waiting):
            if self.jobs[id].video["queue_position"] != position:
                self.jobs[id].video["queue_position"] = position
                self._tell("status", self.jobs[id].video)

    def _tell(self, event: str, data: dict[str, Any]) -> None:
        for listener in self._listeners:
            listener.put(f"event: {event}\ndata: {json.dumps(data)}\n\n")

    def _events(self, _: Request) -> Response:
        listener: queue.Queue[str | None] = queue.Queue()
        self._listeners.append(listener)

        def stream() -> Iterator[str]:
            yield ": watching\n\n"
            while not self._stop.is_set():
                with suppress(queue.Empty):
                    event = listener.get(timeout=0.5)
                    if event is None:
                        break
                    yield event
                    continue
                yield ": still here\n\n"
            self._listeners.remove(listener)

        return StreamingResponse(stream(), media_type="text/event-stream")


def _refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    body = {"message": str(error), "type": "invalid_request_error", "param": error.param, "code": "invalid_request"}
    return JSONResponse({"error": body}, status_code=error.status)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch, FakeServer(Path(scratch), port=8765) as server:
        print(server.url)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
