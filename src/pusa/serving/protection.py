"""What protects the server's answers: the key of a request, pages of other sites, headers for browsers."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pusa.serving.answers import ApiError
from pusa.serving.server import LOOPBACK, Server

COOKIE = "pusa_key"
_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; object-src 'none'; base-uri 'none'; "
        "form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class SecurityHeaders:
    """Adds the headers to every answer, also to errors."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)


class HeadRequests:
    """Answers HEAD as GET without the body. Streams of events have no such answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD" or scope["path"].endswith("/events"):
            await self.app(scope, receive, send)
            return

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self.app({**scope, "method": "GET"}, receive, without_body)


def owner_of(server: Server, request: Request) -> str:
    """The owner of a request's key.

    Raises ApiError if the key is missing or wrong, or if the page of another site sent the request.
    """
    check_origin(server, request)
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    given = key.strip() if scheme.lower() == "bearer" else request.cookies.get(COOKIE)
    owner = server.keys.owner(given)
    if owner is None:
        what = "is not valid" if given else "is missing"
        raise ApiError(
            401,
            f"The API key {what}: send the header Authorization: Bearer KEY.",
            "invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )
    return owner


def check_origin(server: Server, request: Request) -> None:
    """Raise ApiError for a request that a page of another site made a browser send.

    A page can send forms to 127.0.0.1 without asking, and can give its own name the address 127.0.0.1.
    """
    headers, method = request.headers, request.method
    host = headers.get("host", "")
    if server.options.host in LOOPBACK and _name(host) not in LOOPBACK:
        raise ApiError(403, "This server answers to 127.0.0.1 and localhost only.", "wrong_host")
    origin = headers.get("origin")
    if origin is not None and method not in ("GET", "HEAD") and urlsplit(origin).netloc != host:
        raise ApiError(403, "A page of another site sent this request, which is refused.", "wrong_origin")
    if method not in ("GET", "HEAD") and headers.get("sec-fetch-site") == "cross-site":
        raise ApiError(403, "A page of another site sent this request, which is refused.", "wrong_origin")


def _name(host: str) -> str:
    """The name in a Host header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
