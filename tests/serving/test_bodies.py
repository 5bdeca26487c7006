"""The limits of a body hold while it is read, so that nobody fills the disk or holds a connection for ever."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from pusa.serving import bodies
from pusa.serving.answers import ApiError
from tests.serving.conftest import awaited

FORM = "multipart/form-data; boundary=x"
HEAD = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'


def request(chunks: list[bytes] | Callable[[], bytes], kind: str = FORM, pause: float = 0.0, **headers: str) -> Request:
    """A request whose body arrives in chunks; after the last one the client is silent."""
    left = iter(chunks) if isinstance(chunks, list) else iter(chunks, None)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause)
        for chunk in left:
            if chunk == b"":
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": chunk, "more_body": True}
        await asyncio.Event().wait()
        raise AssertionError

    raw = [(b"content-type", kind.encode()), *((name.encode(), value.encode()) for name, value in headers.items())]
    return Request({"type": "http", "method": "POST", "headers": raw}, receive)


def refusal(wanted: Request, folder: Path, most: int = 1_000_000) -> ApiError:
    with pytest.raises(ApiError) as error:
        awaited(bodies.receive(wanted, folder, most))
    return error.value


def test_a_form_is_refused_as_soon_as_it_is_too_large(tmp_path: Path) -> None:
    sent = 0

    def chunk() -> bytes:
        nonlocal sent
        sent += 1
        return HEAD if sent == 1 else b"0" * 100_000

    assert refusal(request(chunk), tmp_path).status == 413
    assert sent < 15
    assert not any(tmp_path.iterdir())


def test_a_form_is_refused_for_the_size_that_it_announces(tmp_path: Path) -> None:
    error = refusal(request([], **{"content-length": "2000000"}), tmp_path)

    assert (error.status, str(error)) == (413, "The request is larger than 1 MiB: send smaller files.")


def test_a_client_that_falls_silent_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "SILENCE", 0.2)

    assert refusal(request([HEAD, b"0"]), tmp_path).status == 408


def test_a_client_that_drips_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "SILENCE", 0.3)

    content = itertools.chain([HEAD], itertools.repeat(b"0"))

    assert refusal(request(lambda: next(content), pause=0.02), tmp_path).status == 408


def test_a_client_that_goes_away_leaves_nothing(tmp_path: Path) -> None:
    assert refusal(request([HEAD, b"0", b""]), tmp_path).code == "disconnected"
    assert not any(tmp_path.iterdir())


def test_a_body_says_whether_it_brings_files(tmp_path: Path) -> None:
    def brings(content: bytes, kind: str = "application/json") -> bool:
        sent = Request(
            {"type": "http", "method": "POST", "headers": [(b"content-type", kind.encode())]},
            _once(content),
        )
        return awaited(bodies.receive(sent, tmp_path, 1_000_000)).brings_files

    assert not brings(b'{"prompt": "a cat"}')
    assert brings(b'{"image": "data:image/png;base64,AAAA"}')
    assert brings(HEAD + b"0\r\n--x--\r\n", FORM)


def _once(content: bytes) -> Callable[[], Any]:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": content, "more_body": False}

    return receive
