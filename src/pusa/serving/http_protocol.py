"""uvicorn's protocol of HTTP, with a limit of the time that a client may take to send the head of a request.

uvicorn limits the time between two requests of a connection, and not that before the first one. So silent connections
would take all places of the server, and stay.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

PATIENCE = 20.0
"""seconds that a connection may be open without a request that is being answered"""


class HttpProtocol(H11Protocol):
    """Closes a connection that sends no complete head of a request in time."""

    def __init__(self, *args: Any, **values: Any) -> None:
        super().__init__(*args, **values)
        self._waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
        super().connection_lost(exc)

    def _wait(self, last: object) -> None:
        """Look again in a while. last: the request that the connection had begun last."""
        self._waiting = self.loop.call_later(PATIENCE, self._look, last)

    def _look(self, last: object) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering or self.cycle is not last:
            self._wait(self.cycle)
        elif not self.transport.is_closing():
            self.transport.close()
