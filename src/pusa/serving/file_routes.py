"""The addresses of what a video has: its files, its recipe, its matrix, its sources and its events."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse

from pusa.serving.answers import ApiError, Matrix
from pusa.serving.folders import CLIP, SOURCES, SPRITESHEET, THUMBNAIL, is_source
from pusa.serving.protection import owner_of
from pusa.serving.recipes import public_recipe
from pusa.serving.server import Server

_FILES = {
    "video": (CLIP, "video/mp4"),
    "thumbnail": (THUMBNAIL, "image/webp"),
    "spritesheet": (SPRITESHEET, "image/jpeg"),
}
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
"""one range; several are answered with the whole file"""


def add_file_routes(app: FastAPI, server: Server) -> None:
    """Add them to the application."""

    @app.get(
        "/v1/videos/{id}/content", operation_id="download_video", response_class=Response,
        responses={200: {"content": {kind: {} for _, kind in _FILES.values()}, "description": "The file."}},
    )  # fmt: skip
    def content(request: Request, id: str, variant: Literal["video", "thumbnail", "spritesheet"] = "video") -> Response:
        """The files of a completed video."""
        row = server.video(id, owner_of(server, request))
        name, kind = _FILES[variant]
        path = server.file(row, name)
        return _file(request, path, kind, f"{id}{path.suffix}")

    @app.get("/v1/videos/{id}/recipe", operation_id="download_recipe")
    def recipe(request: Request, id: str) -> JSONResponse:
        """The sidecar of a completed video: everything that made it."""
        row = server.video(id, owner_of(server, request))
        told = public_recipe(row, server.file(row, CLIP))
        return JSONResponse(told, headers={"content-disposition": f'attachment; filename="{id}.json"'})

    @app.get("/v1/videos/{id}/matrix", response_model=Matrix, operation_id="retrieve_matrix")
    def matrix(request: Request, id: str) -> Matrix:
        """The timestep matrix of a completed video."""
        row = server.video(id, owner_of(server, request))
        return Matrix(sigma=public_recipe(row, server.file(row, CLIP))["matrix"]["sigma"])

    @app.get(
        "/v1/videos/{id}/sources/{name}", operation_id="download_source", response_class=Response,
        responses={200: {"content": {"image/png": {}, "video/mp4": {}}, "description": "The file."}},
    )  # fmt: skip
    def source(request: Request, id: str, name: str) -> Response:
        """A picture or a clip that a video is made from."""
        row = server.video(id, owner_of(server, request))
        if not is_source(name) or name not in row.sources:
            raise ApiError(404, "This video has no such source: see its field `sources`.", "not_found")
        path = server.folders.folder(id, SOURCES) / row.sources[name]["file"]
        return _file(request, path, "image/png" if row.sources[name]["kind"] == "image" else "video/mp4", path.name)

    @app.get(
        "/v1/videos/{id}/events", operation_id="watch_video", response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}, "description": "Server-sent events."}},
    )  # fmt: skip
    def events(request: Request, id: str) -> StreamingResponse:
        """Server-sent events of a video: status, progress and preview, until it ends."""
        row = server.video(id, owner_of(server, request))
        return StreamingResponse(server.events.of_video(row), media_type="text/event-stream")

    @app.get(
        "/v1/events", operation_id="watch_videos", response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}, "description": "Server-sent events."}},
    )  # fmt: skip
    def all_events(request: Request) -> StreamingResponse:
        """Server-sent events of all videos of this key."""
        return StreamingResponse(server.events.of_owner(owner_of(server, request)), media_type="text/event-stream")


def _file(request: Request, path: Path, kind: str, name: str) -> Response:
    """A file, or the range of it that is asked for; status 304 if the client has it already."""
    about = path.stat()
    answer = FileResponse(
        path,
        media_type=kind,
        filename=name,
        content_disposition_type="inline",
        headers={"cache-control": "private, max-age=3600"},
        stat_result=about,
    )
    tag = answer.headers["etag"]
    if tag in [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]:
        return Response(status_code=304, headers={"etag": tag, "cache-control": answer.headers["cache-control"]})
    match = _RANGE.fullmatch(request.headers.get("range", "").replace(" ", ""))
    start, end = (match[1], match[2]) if match else ("", "")
    if match is None or not (start or end) or (start and end and int(start) > int(end)):  # to be ignored, RFC 9110
        request.scope["headers"] = [each for each in request.scope["headers"] if each[0] != b"range"]
    elif start and int(start) >= about.st_size:
        size = about.st_size
        raise ApiError(
            416,
            f"The file has {size:,} bytes: ask for a range in them.",
            "invalid_range",
            headers={"content-range": f"bytes */{size}"},
        )
    return answer
