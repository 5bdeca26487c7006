"""The addresses of the server, as a FastAPI application.

`docs/serving.md` describes them, and `openapi.json` defines them.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from pusa import __version__
from pusa.embedded import examples
from pusa.serving.answers import (
    ApiError,
    Checked,
    DeletedVideo,
    ErrorBody,
    Matrix,
    ModelDefaults,
    ModelList,
    ModelObject,
    VideoList,
    VideoObject,
    video_object,
)
from pusa.serving.bodies import Body, receive
from pusa.serving.folders import CLIP, SOURCES, SPRITESHEET, THUMBNAIL, is_source
from pusa.serving.metrics import Metrics
from pusa.serving.orders import seconds
from pusa.serving.protection import COOKIE, SecurityHeaders, check_origin, owner_of
from pusa.serving.recipes import matrix_of, public_recipe
from pusa.serving.server import Server
from pusa.serving.store import ENDED, Video
from pusa.serving.wire_names import schema

PAGE = Path(__file__).parent / "page"
_FILES = {
    "video": (CLIP, "video/mp4"),
    "thumbnail": (THUMBNAIL, "image/webp"),
    "spritesheet": (SPRITESHEET, "image/jpeg"),
}
_MOST_UPLOADED = 4
"""times the size of one file that a form may have"""
_OPENED_AT_ONCE = 4
_KEY = 200
"""characters of an idempotency key"""
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        400: "The request is wrong; the message says how.",
        401: "The API key is missing or not valid.",
        403: "A page of another site sent the request.",
        404: "There is no such thing.",
        408: "The body arrived too slowly.",
        409: "Not in this state.",
        413: "The body is too large.",
        415: "The body is neither JSON nor a form.",
        429: "The queue is full; Retry-After says when to try again.",
        503: "The database does not answer.",
    }.items()
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": schema()},
            "multipart/form-data": {"schema": {"type": "object", "additionalProperties": True}},
        },
    }
}
_PROMPT = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {"prompt": {"type": "string"}},
                    "required": ["prompt"],
                    "additionalProperties": False,
                }
            }
        },
    }
}


def make_app(server: Server) -> FastAPI:
    """The application of a server. It starts and stops the server with itself."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        server.start()
        yield
        await run_in_threadpool(server.stop)

    app = FastAPI(title="pusa", version=__version__, lifespan=life, docs_url=None, redoc_url=None, responses=_ERRORS)
    app.add_middleware(SecurityHeaders)
    _add_errors(app)
    _add_videos(app, server)
    _add_files(app, server)
    _add_others(app, server)
    _add_page(app, server)
    return app


def _owner(server: Server, request: Request) -> str:
    return owner_of(server, request.headers, request.cookies, request.method)


def _told(server: Server, row: Video) -> VideoObject:
    waiting = server.store.waiting() if row.status == "queued" else []
    return video_object(row, server.options.model.name, waiting)


def _answer(server: Server, row: Video) -> JSONResponse:
    """A video, with the header that tells OpenAI's client when to ask again."""
    told = _told(server, row)
    headers = {}
    if row.status not in ENDED:
        wait = told.eta_seconds if told.eta_seconds is not None else 1.0
        headers["openai-poll-after-ms"] = str(round(1000 * min(5.0, max(0.25, wait / 4))))
    return JSONResponse(told.model_dump(), headers=headers)


async def _with_body(server: Server, request: Request, work: Callable[[Body, str, Path], Any], task: str = "") -> Any:
    """Receive the body into a folder of its own, call `work` in a thread, and remove what was not accepted."""
    owner = await run_in_threadpool(_owner, server, request)
    received = await run_in_threadpool(server.folders.receive)
    try:
        body = await receive(request, received, _MOST_UPLOADED * server.options.uploads.bytes)
        return await to_thread.run_sync(work, body, owner, received, limiter=_opening())
    finally:
        await run_in_threadpool(shutil.rmtree, received, True)


@cache
def _opening() -> CapacityLimiter:
    """Lets few threads open uploads at once, since each may need much memory. The others answer meanwhile."""
    return CapacityLimiter(_OPENED_AT_ONCE)


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= _KEY:
        raise ApiError(400, f"The Idempotency-Key has {len(key)} characters: give 1 to {_KEY}.", "invalid_request")
    return key


def _add_videos(app: FastAPI, server: Server) -> None:
    def create(task: str, *, edit: bool = False) -> Callable[[Request], Awaitable[JSONResponse]]:
        async def answer(request: Request) -> JSONResponse:
            def work(body: Body, owner: str, received: Path) -> Video:
                key = _idempotency_key(request)
                return server.add(body, owner, received, task=task, edit=edit, idempotency_key=key)

            row = await _with_body(server, request, work)
            return await run_in_threadpool(_answer, server, row)

        return answer

    post: dict[str, Any] = {"response_model": VideoObject, "openapi_extra": _BODY, "methods": ["POST"]}
    app.add_api_route("/v1/videos", create("generate"), summary="Make a video", operation_id="create_video", **post)
    app.add_api_route(
        "/v1/videos/extensions", create("extend"), summary="Continue a clip", operation_id="extend_video", **post
    )
    app.add_api_route(
        "/v1/videos/edits",
        create("generate", edit=True),
        summary="Edit a clip",
        operation_id="edit_video",
        **post,
    )

    @app.post("/v1/videos/check", response_model=Checked, openapi_extra=_BODY, operation_id="check_video")
    async def check(request: Request) -> Any:
        """Check a request and say what it would make. Nothing is made."""

        def work(body: Body, owner: str, received: Path) -> Checked:
            planned = server.plan(body, owner, received)
            size = "{}x{}".format(*planned.settings.size)
            return Checked(
                task=planned.request.task,
                size=size,
                num_frames=planned.frames,
                fps=planned.fps,
                seconds=seconds(planned.frames, planned.fps),
                num_inference_steps=planned.settings.steps,
                notes=planned.notes,
                matrix=Matrix(sigma=matrix_of(planned, server.limits)),
            )

        return await _with_body(server, request, work)

    @app.post(
        "/v1/videos/sync", openapi_extra=_BODY, operation_id="create_video_and_wait", response_class=Response,
        responses={200: {"content": {"video/mp4": {}}, "description": "The video."}},
    )  # fmt: skip
    async def sync(request: Request) -> Response:
        """Make a video, wait for it, and return it. If the client goes away, the video is deleted."""

        def work(body: Body, owner: str, received: Path) -> Video:
            return server.add(body, owner, received)

        row: Video = await _with_body(server, request, work)
        try:
            async for _ in server.events.of_video(row):
                if await request.is_disconnected():
                    raise ApiError(400, "The client went away.", "disconnected")
        except BaseException:
            server.store.delete(row)
            raise
        done = await run_in_threadpool(server.video, row.id, row.owner)
        if done.status == "failed":
            raise ApiError(
                500 if done.error["code"] == "server_error" else 400, done.error["message"], done.error["code"]
            )
        path = await run_in_threadpool(server.file, done, CLIP)
        taken = str(round(done.completed_at - done.started_at, 3))
        return FileResponse(path, media_type="video/mp4", headers={"x-inference-time-s": taken, "x-video-id": row.id})

    @app.get("/v1/videos", response_model=VideoList, operation_id="list_videos")
    def list_videos(
        request: Request,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
    ) -> VideoList:
        """The videos of this key, a page of them. after: the last id of the page before."""
        owner = _owner(server, request)
        behind = None if after is None else server.video(after, owner).number
        rows, more = server.store.page(owner, behind, limit, order)
        waiting = server.store.waiting() if any(row.status == "queued" for row in rows) else []
        data = [video_object(row, server.options.model.name, waiting) for row in rows]
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return VideoList(data=data, first_id=first, last_id=last, has_more=more)

    @app.get("/v1/videos/{id}", response_model=VideoObject, operation_id="retrieve_video")
    def retrieve(request: Request, id: str) -> JSONResponse:
        """A video: how far it is, and what is wrong if it failed."""
        return _answer(server, server.video(id, _owner(server, request)))

    @app.delete("/v1/videos/{id}", response_model=DeletedVideo, operation_id="delete_video")
    def delete(request: Request, id: str) -> DeletedVideo:
        """Delete a video. One that waits leaves the queue; one in progress stops after its step."""
        server.store.delete(server.video(id, _owner(server, request)))
        return DeletedVideo(id=id)

    @app.post("/v1/videos/{id}/remix", response_model=VideoObject, openapi_extra=_PROMPT, operation_id="remix_video")
    async def remix(request: Request, id: str) -> JSONResponse:
        """The request of another video, with another prompt."""

        def work(body: Body, owner: str, received: Path) -> Video:
            old = server.video(id, owner)
            if set(body.fields) - {"prompt"} or body.parts:
                name = next(iter({*body.fields, *body.parts} - {"prompt"}))
                raise ApiError(
                    400, f"A remix takes a prompt, and not {name[:60]}: leave it out.", "invalid_request", name[:60]
                )
            return server.remix(old, body.fields.get("prompt"), owner, received)

        row = await _with_body(server, request, work)
        return await run_in_threadpool(_answer, server, row)


def _add_files(app: FastAPI, server: Server) -> None:
    @app.get(
        "/v1/videos/{id}/content", operation_id="download_video", response_class=Response,
        responses={200: {"content": {kind: {} for _, kind in _FILES.values()}, "description": "The file."}},
    )  # fmt: skip
    def content(
        request: Request, id: str, variant: Literal["video", "thumbnail", "spritesheet"] = "video"
    ) -> FileResponse:
        """The files of a completed video."""
        row = server.video(id, _owner(server, request))
        name, kind = _FILES[variant]
        path = server.file(row, name)
        return _file(path, kind, f"{id}{path.suffix}")

    @app.get("/v1/videos/{id}/recipe", operation_id="download_recipe")
    def recipe(request: Request, id: str) -> JSONResponse:
        """The sidecar of a completed video: everything that made it."""
        row = server.video(id, _owner(server, request))
        told = public_recipe(row, server.file(row, CLIP))
        return JSONResponse(told, headers={"content-disposition": f'attachment; filename="{id}.json"'})

    @app.get("/v1/videos/{id}/matrix", response_model=Matrix, operation_id="retrieve_matrix")
    def matrix(request: Request, id: str) -> Matrix:
        """The timestep matrix of a completed video."""
        row = server.video(id, _owner(server, request))
        return Matrix(sigma=public_recipe(row, server.file(row, CLIP))["matrix"]["sigma"])

    @app.get(
        "/v1/videos/{id}/sources/{name}", operation_id="download_source", response_class=Response,
        responses={200: {"content": {"image/png": {}, "video/mp4": {}}, "description": "The file."}},
    )  # fmt: skip
    def source(request: Request, id: str, name: str) -> FileResponse:
        """A picture or a clip that a video is made from."""
        row = server.video(id, _owner(server, request))
        if not is_source(name) or name not in row.sources:
            raise ApiError(404, "This video has no such source: see its field `sources`.", "not_found")
        path = server.folders.folder(id, SOURCES) / row.sources[name]["file"]
        return _file(path, "image/png" if row.sources[name]["kind"] == "image" else "video/mp4", path.name)

    @app.get(
        "/v1/videos/{id}/events", operation_id="watch_video", response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}, "description": "Server-sent events."}},
    )  # fmt: skip
    def events(request: Request, id: str) -> StreamingResponse:
        """Server-sent events of a video: status, progress and preview, until it ends."""
        row = server.video(id, _owner(server, request))
        return StreamingResponse(server.events.of_video(row), media_type="text/event-stream")

    @app.get(
        "/v1/events", operation_id="watch_videos", response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}, "description": "Server-sent events."}},
    )  # fmt: skip
    def all_events(request: Request) -> StreamingResponse:
        """Server-sent events of all videos of this key."""
        return StreamingResponse(server.events.of_owner(_owner(server, request)), media_type="text/event-stream")


def _file(path: Path, kind: str, name: str) -> FileResponse:
    return FileResponse(
        path,
        media_type=kind,
        filename=name,
        content_disposition_type="inline",
        headers={"cache-control": "private, max-age=3600"},
    )


def _add_others(app: FastAPI, server: Server) -> None:
    metrics = Metrics(server)

    @app.get("/v1/models", response_model=ModelList, operation_id="list_models")
    def models(request: Request) -> ModelList:
        """The model of this server, and what it can make."""
        _owner(server, request)
        limits, model = server.limits, server.options.model
        defaults = limits.defaults
        return ModelList(
            data=[
                ModelObject(
                    id=model.name,
                    created=int(server.started),
                    defaults=ModelDefaults(
                        num_frames=defaults.frames,
                        size=defaults.size,
                        fps=defaults.fps,
                        num_inference_steps=defaults.steps,
                        guidance_scale=defaults.guidance,
                        flow_shift=defaults.shift,
                    ),
                    frames_per_latent=limits.geometry.frames_per_slot,
                    size_multiple=limits.multiple,
                    longest=limits.geometry.pixel_frames(limits.positions),
                    loras=sorted(model.offered),
                    examples=list(examples(model.source)),
                )
            ]
        )

    @app.get("/v1/models/{id}", response_model=ModelObject, operation_id="retrieve_model")
    def model(request: Request, id: str) -> ModelObject:
        """The model of this server."""
        if id != server.options.model.name:
            _owner(server, request)
            raise ApiError(
                404, f"There is no model {id[:60]!r}: this server has {server.options.model.name}.", "not_found"
            )
        return models(request).data[0]

    @app.get("/health", operation_id="health")
    def health() -> dict[str, str]:
        """Whether this process answers."""
        return {"status": "ok"}

    @app.get("/ready", operation_id="ready")
    def ready() -> dict[str, str]:
        """Whether requests are taken: the database answers, and a worker runs."""
        if not server.ready():
            raise ApiError(503, "The database does not answer or no worker runs: see the server's log.", "not_ready")
        return {"status": "ready"}

    @app.get(
        "/metrics", operation_id="metrics", response_class=Response,
        responses={200: {"content": {"text/plain": {}}, "description": "Prometheus' text format."}},
    )  # fmt: skip
    def metrics_text(request: Request) -> Response:
        """Numbers for Prometheus."""
        _owner(server, request)
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_page(app: FastAPI, server: Server) -> None:
    @app.post("/session", operation_id="open_session", include_in_schema=False)
    async def session(request: Request) -> JSONResponse:
        """Keep the key of the page in a cookie that its scripts cannot read."""
        check_origin(server, request.headers, request.method)
        body = await _small_json(request)
        key = body.get("key")
        if not isinstance(key, str) or await run_in_threadpool(server.keys.owner, key) is None:
            raise ApiError(401, "The API key is not valid: check it.", "invalid_api_key", "key")
        answer = JSONResponse({"ok": True})
        answer.set_cookie(
            COOKIE, key, httponly=True, samesite="strict", secure=request.url.scheme == "https", max_age=30 * 86400
        )
        return answer

    if PAGE.is_dir():
        app.mount("/static", StaticFiles(directory=PAGE), name="static")

        @app.get("/", include_in_schema=False)
        def page() -> FileResponse:
            return FileResponse(PAGE / "index.html", headers={"cache-control": "no-cache"})


async def _small_json(request: Request) -> dict[str, Any]:
    received = await receive(request, Path(), 65536)
    return received.fields


def _add_errors(app: FastAPI) -> None:
    def said(error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), error.status, headers=error.headers)

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> JSONResponse:
        return said(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        name = str(first["loc"][-1])
        return said(
            ApiError(
                400, f"{name} is not usable ({str(first['msg']).rstrip('.')}): change it.", "invalid_request", name
            )
        )

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        known = {
            404: "There is no such address: see /openapi.json.",
            405: "This address does not take this method: see /openapi.json.",
        }
        status = error.status_code if error.status_code in known else 400
        return said(
            ApiError(
                status,
                known.get(status, "The request cannot be read: mend it."),
                "not_found",
                headers=dict(error.headers or {}),
            )
        )

    @app.exception_handler(SQLAlchemyError)
    async def database(_: Request, error: SQLAlchemyError) -> JSONResponse:
        if "disk is full" in str(error):
            return said(ApiError(507, "The server's disk is full: ask its operator.", "disk_full"))
        return said(
            ApiError(
                503, "The database does not answer: try again in a moment.", "no_database", headers={"retry-after": "5"}
            )
        )

    @app.exception_handler(OSError)
    async def system(_: Request, error: OSError) -> JSONResponse:
        full = error.errno in (28, 122)
        text = (
            "The server's disk is full: ask its operator."
            if full
            else "The server cannot use its files: ask its operator."
        )
        return said(ApiError(507 if full else 500, text, "disk_full" if full else "server_error"))

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        with suppress(Exception):
            import traceback

            traceback.print_exception(error)
        return said(ApiError(500, "The server failed on this request; its log says why.", "server_error"))
