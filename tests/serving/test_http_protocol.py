"""Silent connections do not stay, and slow answers do."""

from __future__ import annotations

import asyncio

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from pusa.serving import http_protocol
from pusa.serving.http_protocol import HttpProtocol
from pusa.serving.running import _listen
from tests.serving.conftest import awaited


def test_connections_without_a_request_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "PATIENCE", 0.3)

    async def slow(_: Request) -> PlainTextResponse:
        await asyncio.sleep(2)
        return PlainTextResponse("answer")

    async def run() -> list[bytes]:
        config = uvicorn.Config(
            Starlette(routes=[Route("/", slow)]), http=HttpProtocol, lifespan="off", log_level="error"
        )
        listening = _listen("127.0.0.1", 0)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve([listening]))
        port = listening.getsockname()[1]

        async def client(sent: bytes) -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            return await reader.read()

        request = b"GET / HTTP/1.1\r\nHost: x\r\n"
        said = await asyncio.gather(client(b""), client(request), client(request + b"\r\n"))
        server.should_exit = True
        await serving
        return list(said)

    silent, half, whole = awaited(asyncio.wait_for(run(), 120))

    assert (silent, half) == (b"", b"")
    assert whole.endswith(b"answer")
