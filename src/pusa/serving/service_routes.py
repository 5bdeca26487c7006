"""The addresses that tell about the service: its model, whether it works, its numbers; and the page."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool

from pusa.embedded import examples
from pusa.serving.answers import ApiError, ModelDefaults, ModelList, ModelObject
from pusa.serving.bodies import receive
from pusa.serving.metrics import Metrics
from pusa.serving.protection import COOKIE, check_origin, owner_of
from pusa.serving.server import Server

PAGE = Path(__file__).parent / "page"
_MOST_KEY = 65536
"""bytes of a body that holds a key"""


def add_service_routes(app: FastAPI, server: Server) -> None:
    """Add them to the application."""

    metrics = Metrics(server)

    @app.get("/v1/models", response_model=ModelList, operation_id="list_models")
    def models(request: Request) -> ModelList:
        """The model of this server, and what it can make."""
        owner_of(server, request)
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
            owner_of(server, request)
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
            raise ApiError(
                503,
                "No worker has loaded the model yet, or the database does not answer: see the server's log.",
                "not_ready",
            )
        return {"status": "ready"}

    @app.get(
        "/metrics", operation_id="metrics", response_class=Response,
        responses={200: {"content": {"text/plain": {}}, "description": "Prometheus' text format."}},
    )  # fmt: skip
    def metrics_text(request: Request) -> Response:
        """Numbers for Prometheus."""
        owner_of(server, request)
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def add_page(app: FastAPI, server: Server) -> None:
    """Add the page, and the cookie of its key."""

    @app.post("/session", operation_id="open_session", include_in_schema=False)
    async def session(request: Request) -> JSONResponse:
        """Keep the key of the page in a cookie that its scripts cannot read."""
        check_origin(server, request)
        key = (await receive(request, Path(), _MOST_KEY)).fields.get("key")
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
