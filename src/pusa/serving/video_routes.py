"""The addresses that make, check, list and delete videos."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from pusa.serving.answers import ApiError, Checked, DeletedVideo, Matrix, VideoList, VideoObject, video_object
from pusa.serving.bodies import Body, receive
from pusa.serving.folders import CLIP
from pusa.serving.orders import seconds
from pusa.serving.protection import owner_of
from pusa.serving.recipes import matrix_of
from pusa.serving.server import Server
from pusa.serving.store import ENDED, Video
from pusa.serving.wire_names import schema

_MOST_UPLOADED = 4
"""times the size of one file that a form may have"""
_OPENED_AT_ONCE = 4
_KEY = 200
"""characters of an idempotency key"""
_KEY_HEADER = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": _KEY},
    "description": "A repeated request with the same key returns the first video.",
}
_BODY: dict[str, Any] = {
    "parameters": [_KEY_HEADER],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": schema()},
            "multipart/form-data": {"schema": {"type": "object", "additionalProperties": True}},
        },
    },
}
_PROMPT: dict[str, Any] = {
    "parameters": [_KEY_HEADER],
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
    },
}


def add_video_routes(app: FastAPI, server: Server) -> None:
    """Add them to the application."""

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
            return server.add(body, owner, received, idempotency_key=_idempotency_key(request))

        row: Video = await _with_body(server, request, work)
        try:
            async for _ in server.events.of_video(row):
                if await request.is_disconnected():
                    raise ApiError(400, "The client went away.", "disconnected")
        except BaseException:
            if _idempotency_key(request) is None:  # with a key, the client may ask again
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
        owner = owner_of(server, request)
        behind = None if after is None else server.video(after, owner).number
        rows, more = server.store.page(owner, behind, limit, order)
        waiting = server.store.waiting() if any(row.status == "queued" for row in rows) else []
        data = [video_object(row, waiting) for row in rows]
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return VideoList(data=data, first_id=first, last_id=last, has_more=more)

    @app.get("/v1/videos/{id}", response_model=VideoObject, operation_id="retrieve_video")
    def retrieve(request: Request, id: str) -> JSONResponse:
        """A video: how far it is, and what is wrong if it failed."""
        return _answer(server, server.video(id, owner_of(server, request)))

    @app.delete("/v1/videos/{id}", response_model=DeletedVideo, operation_id="delete_video")
    def delete(request: Request, id: str) -> DeletedVideo:
        """Delete a video. One that waits leaves the queue; one in progress stops after its step."""
        row = server.video(id, owner_of(server, request))
        server.store.delete(row)
        server.events.deleted(row)
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
            return server.remix(old, body, owner, received, idempotency_key=_idempotency_key(request))

        row = await _with_body(server, request, work)
        return await run_in_threadpool(_answer, server, row)


def _told(server: Server, row: Video) -> VideoObject:
    waiting = server.store.waiting() if row.status == "queued" else []
    return video_object(row, waiting)


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
    owner = await run_in_threadpool(owner_of, server, request)
    received = await run_in_threadpool(server.folders.receive)
    try:
        body = await receive(request, received, _MOST_UPLOADED * server.options.uploads.bytes)
        limiter = _opening() if body.brings_files else None
        return await to_thread.run_sync(work, body, owner, received, limiter=limiter)
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
