"""Addresses are opened only if they are allowed and public, and never cost more than the limits."""

from __future__ import annotations

import base64
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from pusa.errors import InputError
from pusa.serving.addresses import fetch, is_public
from pusa.serving.inspection import UploadLimits
from tests.footage import no_leftovers

LIMITS = UploadLimits(bytes=100_000, wall_seconds=600)
PUBLIC = "93.184.216.34"
# A key that is used here only, and its certificate for pictures.example and other.example until 2120.
KEY_AND_CERTIFICATE = """\
-----BEGIN EC PRIVATE KEY-----
MHcCAQEEIH6HTgbqREVnAN0Bj6N5WSHLH0pa1Jqg5dpWyWlXtyNHoAoGCCqGSM49
AwEHoUQDQgAEyNrP0BduPWAzn3LaKf5kBZgMM/A/bzr5GK5MYrrfNVjhXSRw4XqJ
v2/EGmkJAA8Q2gtjD/oK5KaH9QW5nhOFKQ==
-----END EC PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBljCCATugAwIBAgIBAjAKBggqhkjOPQQDAjAbMRkwFwYDVQQDDBBwaWN0dXJl
cy5leGFtcGxlMCAXDTIwMDEwMTAwMDAwMFoYDzIxMjAwMTAxMDAwMDAwWjAbMRkw
FwYDVQQDDBBwaWN0dXJlcy5leGFtcGxlMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcD
QgAEyNrP0BduPWAzn3LaKf5kBZgMM/A/bzr5GK5MYrrfNVjhXSRw4XqJv2/EGmkJ
AA8Q2gtjD/oK5KaH9QW5nhOFKaNuMGwwKgYDVR0RBCMwIYIQcGljdHVyZXMuZXhh
bXBsZYINb3RoZXIuZXhhbXBsZTAPBgNVHRMBAf8EBTADAQH/MA4GA1UdDwEB/wQE
AwIChDAdBgNVHQ4EFgQUFaOjPEAaf5DI8voKvEw9v96bbQswCgYIKoZIzj0EAwID
SQAwRgIhAMnAKjXjuTKIbqNcsE8alIFeB5ChxX4Ad4lRgCAW992gAiEAmZeWTube
9dSez+bg1er+QNaHq2x77GgJpko76U3SFgg=
-----END CERTIFICATE-----
"""


class Handler(BaseHTTPRequestHandler):
    """A host with pages that behave well and badly."""

    protocol_version = "HTTP/1.1"
    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        kind, _, rest = self.path[1:].partition("?")
        if kind.startswith("to/"):
            self._head(302, Location=kind[3:] if "//" in kind else f"/{kind[3:]}")
        elif kind.startswith("again"):
            self._head(301, Location=f"/again{int(kind[5:] or 0) + 1}")
        elif kind == "missing":
            self._head(404)
        elif kind == "endless":
            self._head(200, length=None)
            self._until_closed(bytes(10_000))
        elif kind == "drip":
            self._head(200, length=10_000)
            self._until_closed(b"x", pause=0.05)
        elif kind == "drip_headers":
            self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            self._until_closed(b"x", pause=0.05)
        elif kind == "states_much":
            self._head(200, length=10**12)
        elif kind == "ends_early":
            self._head(200, length=50)
            self.wfile.write(b"short")
        elif kind == "garbage":
            self.wfile.write(b"\x00\xff" * 100 + b"\r\n\r\n")
        else:
            body = f"{self.headers['Host']} {kind} {rest}".encode()
            self._head(200, length=len(body))
            self.wfile.write(body)
        self.close_connection = True

    def _head(self, status: int, length: int | None = 0, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def _until_closed(self, data: bytes, pause: float = 0.0) -> None:
        try:
            while True:
                self.wfile.write(data)
                self.wfile.flush()
                time.sleep(pause)
        except OSError:
            return

    def log_message(self, format: str, *args: Any) -> None:
        return


@dataclass
class Net:
    """What a name is looked up as, and which addresses were connected to."""

    names: dict[str, list[str]] = field(default_factory=lambda: {"pictures.example": [PUBLIC]})
    connected: list[tuple[str, int]] = field(default_factory=list)
    looked_up: list[str] = field(default_factory=list)


@pytest.fixture
def net(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Net]:
    """A host on this machine that seems to have a public address."""
    pem = tmp_path_factory.mktemp("tls") / "both.pem"
    pem.write_text(KEY_AND_CERTIFICATE)
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    Handler.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pem)
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up are meant here
    net = Net()

    def look_up(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        net.looked_up.append(host)
        if host not in net.names:
            raise socket.gaierror("no such host")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in net.names[host]]

    def to_the_server(address: tuple[str, int], timeout: float) -> socket.socket:
        net.connected.append(address)
        plain = socket.socket()
        plain.settimeout(timeout)
        plain.connect(server.server_address)
        return plain

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket, "create_connection", to_the_server)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield net
    server.shutdown()
    server.server_close()


def fetched(url: str, folder: Path, **limits: int) -> bytes:
    fetch(url, folder / "file", replace(LIMITS, **limits), allowed=True)
    assert no_leftovers(folder, "file")
    return (folder / "file").read_bytes()


def refused(url: str, folder: Path, **limits: int) -> str:
    with pytest.raises(InputError) as error:
        fetch(url, folder / "file", replace(LIMITS, **limits), allowed=True)
    assert no_leftovers(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


# data: addresses


def test_data_needs_no_permission(tmp_path: Path) -> None:
    data = bytes(range(256))
    for url in (
        "data:image/png;base64," + base64.b64encode(data).decode(),
        "DATA:;BASE64," + quote(base64.b64encode(data).decode(), safe=""),
        "data:," + quote(data),
    ):
        fetch(url, tmp_path / "file", LIMITS, allowed=False)
        assert (tmp_path / "file").read_bytes() == data


def test_bad_data(tmp_path: Path) -> None:
    assert "no comma" in refused("data:image/png;base64", tmp_path)
    assert "not valid base64" in refused("data:image/png;base64,!!!!", tmp_path)
    assert "not valid base64" in refused("data:image/png;base64,abc", tmp_path)
    full = "data:;base64," + base64.b64encode(bytes(100)).decode()
    assert len(fetched(full, tmp_path, bytes=100)) == 100
    (tmp_path / "file").unlink()
    assert "99 are taken" in refused(full, tmp_path, bytes=99)
    assert "are taken" in refused("data:," + "x" * 10_000_000, tmp_path)
    assert len(refused("data:image/png" + "x" * 10_000, tmp_path)) < 400


# What is opened


def test_a_picture_is_fetched_from_the_address_that_was_checked(net: Net, tmp_path: Path) -> None:
    assert fetched("https://pictures.example/cat.png?size=2&x=%20y", tmp_path) == (
        b"pictures.example cat.png size=2&x=%20y"
    )
    assert net.looked_up == ["pictures.example"]
    assert net.connected == [(PUBLIC, 443)]


def test_nothing_is_opened_unless_it_is_allowed(net: Net, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="this server opens none"):
        fetch("https://pictures.example/cat.png", tmp_path / "file", LIMITS, allowed=False)
    assert not net.looked_up


def test_redirects_are_followed_and_checked(net: Net, tmp_path: Path) -> None:
    net.names["other.example"] = ["2606:2800:220:1::5"]
    assert fetched("https://pictures.example/to/https://other.example/x", tmp_path) == b"other.example x "
    assert fetched("https://pictures.example/to/to/to/cat", tmp_path) == b"pictures.example cat "
    (tmp_path / "file").unlink()
    assert "more than 3 times" in refused("https://pictures.example/again", tmp_path)
    assert "not an https: address" in refused("https://pictures.example/to/http://pictures.example/x", tmp_path)
    assert "not an https: address" in refused("https://pictures.example/to/file:///etc/passwd", tmp_path)
    net.names["inside.example"] = ["10.0.0.7"]
    assert "not public" in refused("https://pictures.example/to/https://inside.example/x", tmp_path)
    assert "10.0.0.7" not in {address for address, _ in net.connected}


# What is refused


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("224.0.0.1", "240.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.2.1"),
        *("::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::7f00:1", "fe80::1", "fe80::1%eth0", "fc00::1"),
        *("fd00:ec2::254", "fec0::1", "ff02::1", "2002:7f00:1::", "2001:0:4136:e378:8000:63bf:3fff:fdd2"),
        *("64:ff9b::7f00:1", "64:ff9b:1::a00:1", "2001:db8::1"),
    ],
)
def test_addresses_that_are_not_public(net: Net, tmp_path: Path, address: str) -> None:
    assert not is_public(address)
    net.names["evil.example"] = [PUBLIC, address]  # one of them is enough
    assert "not public" in refused("https://evil.example/", tmp_path)
    assert not net.connected


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:2800:220:1:248:1893:25c8:1946"])
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://pictures.example/", "not an https: address"),
        ("ftp://pictures.example/", "not an https: address"),
        ("file:///etc/passwd", "not an https: address"),
        ("//pictures.example/", "not an https: address"),
        ("", "not an https: address"),
        ("https:///x", "no host"),
        ("https://", "no host"),
        ("https://pictures.example:8443/", "port 8443"),
        ("https://pictures.example:99999/", "not a valid address"),
        ("https://[::1/", "not a valid address"),
        ("https://me:secret@pictures.example/", "name and password"),
        ("https://pictures.example@127.0.0.1/", "name and password"),
        ("https://pictures.example/\r\nX-Evil: 1", "no address has"),
        ("https://pictures.example/a b", "no address has"),
        ("https://pictures.example\\@127.0.0.1/", "no address has"),
        ("https://pictures.example/\0", "no address has"),
        ("https://" + "a" * 300 + ".example/", "not a valid address"),
        ("https://unknown.example/", "not known"),
    ],
)
def test_addresses_that_are_not_valid(net: Net, tmp_path: Path, url: str, reason: str) -> None:
    assert reason in refused(url, tmp_path)
    assert not net.connected


def test_a_certificate_of_another_host(net: Net, tmp_path: Path) -> None:
    net.names["third.example"] = [PUBLIC]
    assert "certificate" in refused("https://third.example/", tmp_path)


def test_hosts_that_behave_badly(net: Net, tmp_path: Path) -> None:
    host = "https://pictures.example"
    assert "status 404" in refused(f"{host}/missing", tmp_path)
    assert "100,000 are taken" in refused(f"{host}/endless", tmp_path)
    assert "1,000,000,000,000 bytes" in refused(f"{host}/states_much", tmp_path)
    assert "45 bytes too early" in refused(f"{host}/ends_early", tmp_path)
    assert "cannot be fetched" in refused(f"{host}/garbage", tmp_path)


@pytest.mark.parametrize("page", ["drip", "drip_headers"])
def test_a_host_that_never_ends(net: Net, tmp_path: Path, page: str) -> None:
    assert "takes too long" in refused(f"https://pictures.example/{page}", tmp_path, wall_seconds=1)
