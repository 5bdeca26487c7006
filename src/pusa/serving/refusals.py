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
