"""The server as a FastAPI application. `docs/serving.md` describes its addresses, and `openapi.json` defines them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from pusa import __version__
from pusa.serving.file_routes import add_file_routes
from pusa.serving.protection import HeadRequests, SecurityHeaders
from pusa.serving.refusals import STATUSES, add_refusals
from pusa.serving.server import Server
from pusa.serving.service_routes import add_page, add_service_routes
from pusa.serving.video_routes import add_video_routes


def make_app(server: Server) -> FastAPI:
    """The application of a server. It starts and stops the server with itself."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        server.start()
        yield
        await run_in_threadpool(server.stop)

    app = FastAPI(
        title="pusa",
        version=__version__,
        lifespan=life,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=STATUSES,
    )
    app.add_middleware(HeadRequests)
    app.add_middleware(SecurityHeaders)
    add_refusals(app)
    add_video_routes(app, server)
    add_file_routes(app, server)
    add_service_routes(app, server)
    add_page(app, server)
    return app
