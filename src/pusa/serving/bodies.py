"""Receives the body of a request, JSON or a form with files, and enforces its limits while it reads."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from pusa.files import sha256
from pusa.serving.answers import ApiError
from pusa.serving.sources import Part

MOST_JSON = 48 * 2**20
"""bytes of a JSON body, which may hold pictures as `data:` addresses"""
MOST_FIELD = 24 * 2**20
"""bytes of a field of a form that is no file"""
MOST_FIELDS, MOST_FILES = 200, 64
SILENCE = 30.0
"""seconds that a client may send nothing in the middle of a body"""
SLOWEST = 4096
"""bytes per second that a body has on average at least, after the first `SILENCE` seconds"""


@dataclass
class Body:
    """A received body.

    fields: values or texts by name. parts: files by name. digest: of all its content. brings_files: whether it has
    files or may name addresses, so that working on it can take long.
    """

    fields: dict[str, Any]
    parts: dict[str, Part] = field(default_factory=dict)
    digest: str = ""
    brings_files: bool = False


async def receive(request: Request, folder: Path, most: int) -> Body:
    """Read the body of a request. Files are written into `folder`. most: bytes of a form with its files.

    Raises ApiError for a body that is too large, too slow, neither JSON nor a form, or not readable.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "The body is compressed, which is not read: send it as it is.", "unsupported_type")
    kind = request.headers.get("content-type", "application/json").split(";")[0].strip().lower()
    try:
        if kind == "multipart/form-data":
            return await _form(request, folder, most)
        if kind in ("application/json", ""):
            return _json(b"".join([chunk async for chunk in _limited(request, MOST_JSON, "send its files in a form")]))
    except ClientDisconnect:
        raise ApiError(400, "The client went away before its request was complete.", "disconnected") from None
    raise ApiError(
        415,
        f"The content type {kind[:60]!r} is not read: send JSON, or a form (multipart/form-data).",
        "unsupported_type",
    )


async def _limited(request: Request, most: int, advice: str) -> AsyncGenerator[bytes, None]:
    """The chunks of the body. Raises ApiError as soon as it is too large or too slow."""
    loop = asyncio.get_running_loop()
    begun, size = loop.time(), 0
    if (
        request.headers.get("content-length", "0").isdecimal()
        and int(request.headers.get("content-length", "0")) > most
    ):
        raise _too_large(most, advice)
    stream = request.stream().__aiter__()
    while True:
        try:
            chunk = await asyncio.wait_for(anext(stream), SILENCE)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise _too_slow() from None
        size += len(chunk)
        if size > most:
            raise _too_large(most, advice)
        if (passed := loop.time() - begun) > SILENCE and size < SLOWEST * (passed - SILENCE):
            raise _too_slow()
        yield chunk


def _too_large(most: int, advice: str) -> ApiError:
    return ApiError(
        413,
        f"The request is larger than {most / 2**20:.0f} MiB: {advice}.",
        "too_large",
        headers={"connection": "close"},
    )


def _too_slow() -> ApiError:
    return ApiError(
        408,
        "The request arrived too slowly: send it again over a better connection.",
        "too_slow",
        headers={"connection": "close"},
    )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ApiError(400, f"The field {twice[:60]!r} is given twice: leave one out.", "invalid_json", twice[:60])
    return found


def _json(raw: bytes) -> Body:
    def refuse(word: str) -> None:
        raise ApiError(400, f"The body holds {word}, which is no number: send a finite one.", "invalid_json")

    try:
        text = raw.decode("utf-8-sig") or "{}"
        value = json.loads(text, parse_constant=refuse, object_pairs_hook=_once)
    except UnicodeDecodeError:
        raise ApiError(400, "The body is not UTF-8: send JSON in UTF-8.", "invalid_json") from None
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is not valid JSON: mend it.", "invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "The body is no JSON object: send an object with the fields of a request.", "invalid_json")
    named = b"data:" in raw.lower() or b"http" in raw.lower()
    return Body(value, digest=hashlib.sha256(raw).hexdigest(), brings_files=named)


class _Parser(MultiPartParser):
    """Refuses text that is not UTF-8, which Starlette reads as Latin-1."""

    def on_part_end(self) -> None:
        if self._current_part.file is None:
            bytes(self._current_part.data).decode("utf-8")  # a UnicodeDecodeError ends the parsing
        super().on_part_end()


async def _form(request: Request, folder: Path, most: int) -> Body:
    parser = _Parser(
        request.headers,
        _limited(request, most, "send smaller files"),
        max_files=MOST_FILES,
        max_fields=MOST_FIELDS,
        max_part_size=MOST_FIELD,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise ApiError(
            400, f"The form cannot be read ({error.message.rstrip('.')}): send it as `curl -F` does.", "invalid_form"
        ) from None
    except (UnicodeDecodeError, KeyError, ValueError):
        raise ApiError(
            400, "The form cannot be read: send valid multipart/form-data in UTF-8.", "invalid_form"
        ) from None
    try:
        return await run_in_threadpool(_kept, form.multi_items(), folder)
    finally:
        await form.close()


def _kept(items: list[tuple[str, UploadFile | str]], folder: Path) -> Body:
    body = Body({})
    digest = hashlib.sha256()
    for number, (name, value) in enumerate(items):
        if name in body.parts or (isinstance(value, str) and name in body.fields and not name.endswith("[]")):
            raise ApiError(400, f"The field {name[:60]!r} is given twice: leave one out.", "invalid_form", name[:60])
        if isinstance(value, str):
            if name.endswith("[]"):
                body.fields.setdefault(name, []).append(value)
            else:
                body.fields[name] = value
            digest.update(f"{name}\0{value}\0".encode("utf-8", "surrogatepass"))
        else:
            path = folder / f"part_{number}"
            with path.open("xb") as file:
                shutil.copyfileobj(value.file, file)
            body.parts[name] = Part(path, value.filename or name)
            digest.update(f"{name}\0{sha256(path)}\0".encode("utf-8", "surrogatepass"))
    body.digest = digest.hexdigest()
    named = any(word in str(value).lower() for value in body.fields.values() for word in ("data:", "http"))
    body.brings_files = bool(body.parts) or named
    return body
