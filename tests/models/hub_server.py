"""A hub of one repository on this machine: the endpoints that huggingface_hub asks, and ways to misbehave."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".pth")
"""Files that the hub keeps by their sha256; the others have git's sha1."""


class Hub:
    """What is served and what was asked.

    gets: (path, Range header) of every download. tokens: the Authorization headers. cut: after how many bytes the
    connection breaks, by path, as often as the list is long. flip: paths that are sent with a wrong bit. private: the
    token that is needed, if one is.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.gets: list[tuple[str, str | None]] = []
        self.tokens: set[str | None] = set()
        self.cut: dict[str, list[int]] = {}
        self.flip: set[str] = set()
        self.private: str | None = None
        self.endpoint = ""

    def etag(self, path: str) -> str:
        data = (self.folder / path).read_bytes()
        if path.endswith(LARGE):
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()

    def tree(self) -> list[dict[str, Any]]:
        entries = []
        for file in sorted(p for p in self.folder.rglob("*") if p.is_file()):
            path, size = file.relative_to(self.folder).as_posix(), file.stat().st_size
            entry = {"type": "file", "path": path, "size": size, "oid": self.etag(path)[:40]}
            if path.endswith(LARGE):
                entry["lfs"] = {"oid": self.etag(path), "size": size, "pointerSize": 134}
            entries.append(entry)
        return entries


@contextmanager
def serving(folder: Path, name: str) -> Iterator[Hub]:
    """Serve the files of a folder as the repository `name` while the block runs."""
    hub = Hub(folder, name)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.tokens.add(self.headers.get("Authorization"))
            if hub.private and self.headers.get("Authorization") != f"Bearer {hub.private}":
                return self.answer(401, b"{}", X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
            if path.startswith(f"/api/models/{name}/revision/"):
                body = json.dumps({"id": name, "modelId": name, "sha": COMMIT, "siblings": [], "tags": []})
                return self.answer(200, body.encode(), Content_Type="application/json")
            if path.startswith(f"/api/models/{name}/tree/"):
                return self.answer(200, json.dumps(hub.tree()).encode(), Content_Type="application/json")
            match = re.fullmatch(rf"/{re.escape(name)}/resolve/[^/]+/(.+)", path)
            if match is None:
                return self.answer(404, b"{}", X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
            return self.file(match[1])

        def file(self, path: str) -> None:
            data = bytearray((folder / path).read_bytes())
            etag = hub.etag(path)
            if path in hub.flip:
                data[len(data) // 2] ^= 1
            wanted = self.headers.get("Range")
            start = int(re.match(r"bytes=(\d+)-", wanted)[1]) if wanted else 0  # type: ignore[index]
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("ETag", f'"{etag}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            if self.command == "HEAD":
                return
            hub.gets.append((path, wanted))
            cuts = hub.cut.get(path)
            if cuts:
                self.wfile.write(data[start : start + cuts.pop()])
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()
                return
            self.wfile.write(data[start:])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
