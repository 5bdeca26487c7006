"""Runs a server until it is told to stop."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Callable
from contextlib import suppress

import uvicorn

from pusa.errors import InputError
from pusa.serving.app import make_app
from pusa.serving.http_protocol import HttpProtocol
from pusa.serving.server import Server, ServerOptions

_HEAD = 65536
"""bytes of the headers of a request at most"""
_CONNECTIONS = 1000
_STOP = 5
"""seconds that open connections have when the server stops"""


def run(options: ServerOptions, ready: Callable[[str], None]) -> None:
    """Answer requests until Ctrl-C or SIGTERM. ready: is given the address as soon as the server listens.

    Raises InputError if the address is taken, or if the folder or the database cannot be used.
    """
    logging.basicConfig(level=logging.INFO, format="pusa: %(message)s", stream=sys.stderr)
    for chatty in ("httpx", "dbos", "uvicorn.access"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    listening = _listen(options.host, options.port)
    server = Server(options)
    host, port = options.host, listening.getsockname()[1]
    config = uvicorn.Config(
        make_app(server),
        http=HttpProtocol,
        log_level="warning",
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=_HEAD,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=_STOP,
        timeout_keep_alive=30,
    )
    ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    with suppress(KeyboardInterrupt):  # uvicorn stops in order, and then raises it
        uvicorn.Server(config).run([listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # With its protocol, so that asyncio switches off Nagle's algorithm, which delays each answer by 40 ms.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(1024)
    except OSError as error:
        raise InputError(f"--host {host} --port {port}: {error.strerror}; choose another port.") from None
    return listening
