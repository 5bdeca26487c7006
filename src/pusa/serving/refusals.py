"""What goes wrong, as answers: every error of the server leaves it in one envelope, with a sentence."""

from __future__ import annotations

import errno
import traceback
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from pusa.serving.answers import ApiError, ErrorBody

STATUSES: dict[int | str, dict[str, Any]] = {
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
        416: "The file has no such bytes.",
        429: "The queue is full; Retry-After says when to try again.",
        503: "The database does not answer.",
    }.items()
}
"""{status: what it means}, for the definition of the API"""


def add_refusals(app: FastAPI) -> None:
    """Answer every exception."""

    def said(error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), error.status, headers=error.headers)

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> JSONResponse:
        return said(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        name, given = str(first["loc"][-1]), str(first.get("input"))[:40]
        limits = first.get("ctx", {})
        words = "a whole number from 1 to 100" if first["type"] != "literal_error" else str(limits.get("expected", ""))
        said_words = words.replace("'", "")
        return said(ApiError(400, f"{name} is {given!r}: give {said_words}.", "invalid_request", name))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 405:
            methods = sorted(
                {
                    method
                    for route in request.app.routes
                    if route.matches(request.scope)[0] != Match.NONE
                    for method in getattr(route, "methods", None) or ()
                }
            )
            text = f"This address does not take {request.method[:20]}: it takes {', '.join(methods)}."
            return said(ApiError(405, text, "method_not_allowed", headers={"allow": ", ".join(methods)}))
        if error.status_code == 404:
            return said(ApiError(404, "There is no such address: see /openapi.json.", "not_found"))
        return said(ApiError(400, "The request cannot be read: mend it.", "invalid_request"))

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
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        text = (
            "The server's disk is full: ask its operator."
            if full
            else "The server cannot use its files: ask its operator."
        )
        return said(ApiError(507 if full else 500, text, "disk_full" if full else "server_error"))

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        traceback.print_exception(error)
        return said(ApiError(500, "The server failed on this request; its log says why.", "server_error"))
