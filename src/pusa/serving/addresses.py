"""Write what an address names into a file: `data:` addresses, and `https:` ones if the operator allows it.

A server that opens addresses for strangers can be made to reach what only it can reach: its own machine, its network,
the metadata of a cloud. So a host is looked up once, all of its addresses must be public, and the connection goes to
one of the addresses that were checked. A second look-up could give another answer. Each redirect is checked in the same
way.

The connection is one of `http.client`, whose `connect` can be replaced by a few lines, and which uses no proxy of the
environment. The HTTP libraries look a host up inside their pools of connections.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes, urljoin, urlsplit

from pusa.errors import InputError
from pusa.files import replacing
from pusa.serving.inspection import UploadLimits, shown

MOST_REDIRECTS = 3
_SILENCE = 10.0
"""seconds without any byte after which a server is given up"""
_CHUNK = 65_536
_PORT = 443
_REDIRECTS = (301, 302, 303, 307, 308)
_UNICAST = ipaddress.IPv6Network("2000::/3")
"""all IPv6 addresses that belong to single hosts of the public Internet, and to the tunnels below"""
_TUNNELS = (ipaddress.IPv6Network("2001::/32"), ipaddress.IPv6Network("2002::/16"))
"""Teredo and 6to4, whose addresses contain an IPv4 address"""
_HEADERS = {"Accept": "image/*, video/*", "Accept-Encoding": "identity", "User-Agent": "pusa"}


def fetch(url: str, path: Path, limits: UploadLimits, *, allowed: bool) -> None:
    """Write the content of an address to `path`.

    Args:
        url: a `data:` address, or an `https:` one.
        path: the new file; it appears when it is complete.
        limits: `bytes` and `wall_seconds` hold for the content, with all redirects.
        allowed: whether the operator allows `https:` addresses; `data:` addresses need no network and always are.

    Raises InputError with one sentence if the address is not allowed, cannot be fetched, or exceeds a limit.
    """
    if url[:5].lower() == "data:":
        with replacing(path) as part:
            part.write_bytes(_decoded(url, limits))
        return
    if not allowed:
        raise InputError(f"{_named(url)} is an address, and this server opens none; send the file itself")
    deadline = time.monotonic() + limits.wall_seconds
    for _ in range(MOST_REDIRECTS + 1):
        with _answered(url, deadline) as response:
            if response.status in _REDIRECTS and (place := response.getheader("Location")):
                url = urljoin(url, place)
                continue
            if response.status != 200:
                raise InputError(f"{_named(url)} answers with status {response.status}; check the address")
            if (length := response.length or 0) > limits.bytes:
                raise _too_large(url, length, limits)
            with replacing(path) as part, part.open("wb") as file:
                size = 0
                for chunk in _chunks(response, url, deadline):
                    if (size := size + len(chunk)) > limits.bytes:
                        raise _too_large(url, size, limits)
                    file.write(chunk)
                if size < length:
                    raise InputError(f"{_named(url)} ends {length - size:,} bytes too early; try it again")
            return
    raise InputError(f"{_named(url)} redirects more than {MOST_REDIRECTS} times; give the final address")


def _decoded(url: str, limits: UploadLimits) -> bytes:
    """The bytes of a `data:` address (RFC 2397)."""
    head, comma, body = url.partition(",")
    if not comma:
        raise InputError(f"{_named(url)} has no comma before its data; write data:image/png;base64,…")
    if len(body) > 3 * limits.bytes:  # the longest form, in which each byte is %XX
        raise _too_large(url, len(body) // 3, limits)
    data = unquote_to_bytes(body)
    if head.lower().endswith(";base64"):
        try:
            data = base64.b64decode(re.sub(rb"\s", b"", data), validate=True)
        except binascii.Error as error:
            raise InputError(f"{_named(url)} is not valid base64 ({error}); encode it again") from error
    if len(data) > limits.bytes:
        raise _too_large(url, len(data), limits)
    return data


@contextmanager
def _answered(url: str, deadline: float) -> Iterator[http.client.HTTPResponse]:
    """The answer of a host, if the address and the host pass all checks. Its content must be read in the block."""
    host, target = _parts(url)
    connection = _Connection(host, _public(url, host))
    cut = threading.Timer(max(0.0, deadline - time.monotonic()), connection.cut)
    cut.daemon = True
    cut.start()
    try:
        with _sentences(url, deadline):
            connection.request("GET", target, headers=_HEADERS)
            response = connection.getresponse()
        yield response
    finally:
        cut.cancel()
        connection.close()


def _chunks(response: http.client.HTTPResponse, url: str, deadline: float) -> Iterator[bytes]:
    with _sentences(url, deadline):
        while chunk := response.read1(_CHUNK):
            yield chunk
        if time.monotonic() >= deadline:  # the end may be that of `_Connection.cut`
            raise TimeoutError


@contextmanager
def _sentences(url: str, deadline: float) -> Iterator[None]:
    """Raise the errors of a connection as one sentence about the address."""
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        reason = "it takes too long" if time.monotonic() >= deadline else str(error) or type(error).__name__
        raise InputError(f"{_named(url)} cannot be fetched ({shown(reason)}); send the file itself") from error


class _Connection(http.client.HTTPSConnection):
    """A connection to an address that was looked up before, with the certificate of the host."""

    def __init__(self, host: str, address: str) -> None:
        self._tls = ssl.create_default_context()
        super().__init__(host, _PORT, timeout=_SILENCE, context=self._tls)
        self._address, self._is_cut = address, False

    def connect(self) -> None:
        plain = socket.create_connection((self._address, _PORT), _SILENCE)
        self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)
        if self._is_cut:
            raise TimeoutError

    def cut(self) -> None:
        """End the connection while another thread waits for it."""
        self._is_cut = True
        if self.sock is not None:
            with suppress(OSError):
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)


def _parts(url: str) -> tuple[str, str]:
    """The host of an `https:` address, and what is asked of it."""
    if not url.isprintable() or re.search(r"[\s\\]", url):
        raise InputError(f"{_named(url)} contains characters that no address has; encode them as %XX")
    try:
        parts = urlsplit(url)
        port, host = parts.port, (parts.hostname or "").encode("idna").decode("ascii")
    except (ValueError, UnicodeError) as error:
        raise InputError(f"{_named(url)} is not a valid address ({error}); check it") from error
    if parts.scheme != "https":
        raise InputError(f"{_named(url)} is not an https: address; give one, or send the file itself")
    if not host or "@" in parts.netloc:
        raise InputError(f"{_named(url)} has no host, or a name and password; give https://host/path")
    if port not in (None, _PORT):
        raise InputError(f"{_named(url)} names port {port}; only the ordinary port of https is opened")
    target = parts.path or "/"
    return host, quote(f"{target}?{parts.query}" if parts.query else target, safe="/%?=&+,;:@!$'()*~-._[]")


def _public(url: str, host: str) -> str:
    """One of the addresses of a host, all of which are public."""
    try:
        found = socket.getaddrinfo(host, _PORT, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InputError(f"{_named(url)} names a host that is not known; check the address") from error
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(map(is_public, addresses)):
        raise InputError(f"{_named(url)} leads to an address that is not public; send the file itself")
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an address is that of a host in the public Internet, and contains no other address."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        tunnelled = any(ip in network for network in _TUNNELS)
        return ip in _UNICAST and ip.is_global and not tunnelled and ip.scope_id is None
    return ip.is_global and not ip.is_multicast


def _named(url: str) -> str:
    """An address in a message: as much of it as is readable, and no data."""
    return shown(url.partition(",")[0]) if url[:5].lower() == "data:" else shown(url)


def _too_large(url: str, size: int, limits: UploadLimits) -> InputError:
    return InputError(f"{_named(url)} has {size:,} bytes or more, and {limits.bytes:,} are taken; give a smaller file")
